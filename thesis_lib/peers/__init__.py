"""Methods of other libraries as `method(classifier, images, classes=None) -> maps`, for chapter 1.

Captum, TorchCAM, pytorch-grad-cam and PAIR's saliency come with the extra `.[peers]`; each has its
file here, from_NAME.py, and is imported when a method of its is made or called. What no library has stands
beside them in a few lines: RISE, excitation backpropagation, Relevance-CAM, extremal perturbation, SIGCAM,
Opti-CAM, LeGrad, and real-time saliency, whose network `thesis_lib.training.masking` trained. Most are works that the thesis cites; the others, whose entries have `thesis=False`, are relatives
of its methods that came after them or that it does not name.

    maps = tl.peers.METHODS["integrated_gradients"](clf, images)      # (N, H, W) in [0, 1]
    maps = tl.peers.torchcam("LayerCAM")(clf, images, classes=[3, 7])  # any class of TorchCAM

Each file's functions get a classifier, one image (1, 3, H, W), normalised, and one class (1,); `peer`
and `pixelwise` make methods of them, `@PEERS.entry` says what is known of each.

Conventions, so that maps may be compared: what is left out of a picture is replaced by the mean
colour, which is 0 after normalisation; gradients are those of the class's logit, and what looks at
outputs alone looks at its probability. Images are explained one by one, each from seed 0, so that a
map does not depend on the others. Libraries get a copy of the network, in eval mode and with nothing
in place.
"""

import importlib

from thesis_lib.peers.base import PEERS as METHODS
from thesis_lib.peers.base import library, peer, pixelwise
from thesis_lib.peers.counting import passes

# Each file registers its methods. Within a family this is the gallery's order.
for _file in (
    "from_captum", "excitation", "from_torchcam", "from_pytorch_grad_cam", "opti_cam", "sig_cam", "legrad", "rise",
    "extremal", "from_saliency", "real_time",
):  # fmt: skip
    importlib.import_module(f"thesis_lib.peers.{_file}")

from thesis_lib.peers.from_pytorch_grad_cam import pytorch_grad_cam  # noqa: E402  (behind the others)
from thesis_lib.peers.from_torchcam import torchcam  # noqa: E402

__all__ = ["METHODS", "library", "passes", "peer", "pixelwise", "pytorch_grad_cam", "torchcam"]
