"""Saliency methods: functions (classifier, images, classes, **settings) -> maps (N, H, W)."""

from thesis_lib.methods.attention import (
    attention_rollout,
    gradient_attention,
    transformer_attribution,
)
from thesis_lib.methods.cam import grad_cam, grad_cam_plus_plus, xgrad_cam
from thesis_lib.methods.masks import group_cam, score_cam
from thesis_lib.methods.multiscale import cameras, msg_cam
from thesis_lib.methods.window import enhance, sess

__all__ = ["METHODS", "enhance", "sess"]


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
