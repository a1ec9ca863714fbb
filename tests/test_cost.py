"""What may cost time or memory is counted, which is exact: no test looks at a clock.

Waiting for the device, whatever it is, shows as one of some operations: `item` (also behind `if tensor`),
`nonzero`, and what copies a tensor to Python. How often they run must not depend on how much there is to do.
"""

from collections import Counter

import networks
import pytest
import torch
from networks import images, random_network
from torch.utils._python_dispatch import TorchDispatchMode

import thesis_lib as tl
from thesis_lib.kernels import masked_scores
from thesis_lib.methods import multiscale

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}


class Watch(TorchDispatchMode):
    """Counts the operations that wait, and keeps the size of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits[name] += name in WAITING
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(tensor) and not func.is_view:
                self.largest = max(self.largest, tensor.numel())
        return out


def watched(work):
    """How often it waits, and the largest tensor that it makes."""
    with Watch() as watch, pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # no operations of their own

            def counted(self, *args, name=name, own=getattr(torch.Tensor, name), **settings):
                watch.waits[name] += 1
                return own(self, *args, **settings)

            patch.setattr(torch.Tensor, name, counted)
        work()
    return sum(watch.waits.values()), watch.largest


def classifier(batch=4):
    """One whose first logits were looked at already, which is done once."""
    clf = tl.Classifier(random_network(networks.Plain, 0), networks.Plain.layer, batch=batch)
    clf.logits(images(1, 40, 40))
    return clf


def test_the_watch_sees_what_waits():
    x = torch.ones(3)
    assert watched(lambda: x.sum().item())[0] == 1
    assert watched(lambda: bool(x.sum() > 0))[0] == 1
    assert watched(lambda: x.nonzero())[0] == 1
    assert watched(lambda: (x.tolist(), x.numpy(), x.cpu()))[0] == 3
    assert watched(lambda: x[None].expand(50, -1) + 1) == (0, 150)


def test_curves_wait_equally_often_however_many_frames():
    clf, x, maps = classifier(), images(2, 40, 40), torch.rand(2, 40, 40)
    few, many = (
        watched(lambda step=step: tl.insertion_deletion(clf, x, maps, 0, step=step))[0] for step in (800, 40)
    )
    assert few == many <= 8


def test_masks_wait_equally_often_however_many_there_are():
    clf, x = classifier(), images(2, 40, 40)
    classes = torch.tensor([1, 2])

    def scores(n):
        return masked_scores(
            lambda inputs, owners: clf.scores(inputs, classes[owners], "logit"),
            x, torch.zeros_like(x), torch.rand(2, n, 40, 40), lambda mask: mask, 4,
        )  # fmt: skip

    assert watched(lambda: scores(2))[0] == watched(lambda: scores(30))[0] <= 2


@pytest.mark.parametrize("name", ["score_cam", "group_cam", "msg_cam"])
def test_groups_and_channels_do_not_make_methods_wait(name):
    settings = {"group_cam": {"groups": 3}, "msg_cam": {"groups": 3, "sizes": [40, 60]}}
    clf, x = classifier(), images(2, 40, 40)
    few = watched(lambda: tl.METHODS[name](clf, x, 0, **settings.get(name, {})))[0]
    more = {k: v | {"groups": 13} for k, v in settings.items()}
    many = watched(lambda: tl.METHODS[name](clf, x, 0, **more.get(name, {})))[0]
    assert few == many <= 16


@pytest.mark.parametrize("name", ["cameras", "msg_cam"])
def test_sizes_do_not_make_methods_wait(name):
    clf, x = classifier(), images(2, 40, 40)
    some, more = [40, 60], [40, 44, 48, 52, 56, 60]
    tl.METHODS[name](clf, x, 0, sizes=more)  # matrices of a size are made once, on the CPU
    few, many = (
        watched(lambda sizes=sizes: tl.METHODS[name](clf, x, 0, sizes=sizes))[0] for sizes in (some, more)
    )
    assert few == many <= 12


@pytest.mark.parametrize("settings", [{}, {"skip": 0.1}, {"cover": "mean"}, {"batch": 2}], ids=str)
def test_windows_do_not_make_the_enhancer_wait(settings):
    clf, x = classifier(settings.pop("batch", 8)), images(2, 40, 40)
    few, many = (
        watched(lambda stride=stride: tl.enhance("grad_cam", 24, stride, 8, **settings)(clf, x, 0))[0]
        for stride in (16, 2)
    )
    assert few == many <= 12


def test_frames_are_composed_batch_by_batch():
    clf, x, maps = classifier(4), images(3, 96, 96), torch.rand(3, 96, 96)
    _, largest = watched(lambda: tl.insertion_deletion(clf, x, maps, 0, step=96))
    network = 4 * 8 * 96 * 96  # what the first convolution makes of a batch
    assert largest <= network


def test_channels_are_never_held_at_the_resolution_of_the_image(monkeypatch):
    """The network's own largest tensor has 8 channels of the image's size; all K = 13 would be more."""
    clf, x = classifier(1), images(1, 96, 96)
    network = watched(lambda: clf.features_and_gradients(x, 0))[1]
    monkeypatch.setattr(multiscale, "CHUNK", 2 * 96 * 96)
    for name in ("cameras", "msg_cam"):
        settings = {"groups": 4} if name == "msg_cam" else {}
        _, largest = watched(lambda: tl.METHODS[name](clf, x, 0, sizes=[96], **settings))
        assert largest <= network < 13 * 96 * 96, name


def test_passes_do_not_make_gradients_wait():
    """Methods check each batch of pictures once (finite logits, classes that exist); its passes do not."""
    clf = classifier(2)
    few, many = (watched(lambda n=n: clf.features_and_gradients(images(n, 40, 40), 0))[0] for n in (2, 12))
    assert few == many == 2
    # And all pictures together are looked at once.
    assert watched(lambda: tl.METHODS["grad_cam"](clf, images(12, 40, 40), 0))[0] == 1 + 12 / 2 * 2
