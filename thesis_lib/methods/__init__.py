"""Saliency methods: functions (classifier, images, classes, **settings) -> maps (N, H, W)."""

from functools import partial

from thesis_lib.methods.attention import (
    attention_rollout,
    gradient_attention,
    transformer_attribution,
)
from thesis_lib.methods.cam import grad_cam, grad_cam_plus_plus, xgrad_cam
from thesis_lib.methods.masks import group_cam, score_cam
from thesis_lib.methods.multiscale import cameras, msg_cam
from thesis_lib.methods.window import enhance, sess

__all__ = ["METHODS", "enhance", "sess", "variants"]


class _Methods(dict):
    def __missing__(self, name):
        raise KeyError(f"no method is called {name!r}; there are {', '.join(self)}")


METHODS = _Methods(
    grad_cam=grad_cam,
    grad_cam_plus_plus=grad_cam_plus_plus,
    xgrad_cam=xgrad_cam,
    score_cam=score_cam,
    group_cam=group_cam,
    cameras=cameras,
    msg_cam=msg_cam,
    transformer_attribution=transformer_attribution,
    gradient_attention=gradient_attention,
    attention_rollout=attention_rollout,
)


def variants(names, window, stride, cutoff, sess_sizes, settings):
    """Each base method bare, enhanced by windows, and under SESS, as chapter 4 compares them.

    Args:
        names: keys of METHODS.
        window, stride, cutoff: as `enhance` takes them.
        sess_sizes: the sizes of `sess`.
        settings: {name: its own settings}, used in all three alike.

    Returns:
        a dict of methods for `evaluate`, whose keys are such as "grad_cam", "grad_cam enhanced" and
        "grad_cam SESS"; `report.variants_table` compares rows by these names.

    >>> list(variants(["grad_cam"], 160, 32, 28, [224, 288], {}))
    ['grad_cam', 'grad_cam enhanced', 'grad_cam SESS']
    """
    methods = {}
    for name in names:
        bare = partial(METHODS[name], **settings.get(name, {}))
        methods[name] = bare
        methods[f"{name} enhanced"] = enhance(bare, window, stride, cutoff)
        methods[f"{name} SESS"] = sess(bare, sess_sizes)
    return methods
