"""Equal to pytorch-grad-cam, torch-cam and captum where they implement the same formula.

Where they do not, and so are not compared:
- Grad-CAM++: torch-cam 0.5 divides a copy, so its weights are sum g^2 ReLU(g); captum has none.
  pytorch-grad-cam adds 1e-6 to the denominator, which outweighs gradients below 1e-3: it is
  compared where gradients are large.
- Score-CAM: pytorch-grad-cam takes logits, a softmax over channels and align_corners=True;
  torch-cam scales masks before up-sampling and takes a softmax over channels.
- No peer has Group-CAM, CAMERAS or MSG-CAM.
- pytorch-grad-cam keeps the layer's own tensor as features, which an in-place layer behind
  overwrites (DenseNet's ReLU): DenseNet is explained one layer earlier.
"""

import networks
import pytest
import torch
from other_libraries import captum_grad_cam, pytorch_grad_cam, torchcam
from torchvision.models import DenseNet, ResNet, mobilenet_v2, squeezenet1_1
from torchvision.models.resnet import BasicBlock

import thesis_lib as tl
from thesis_lib.data.models import vgg19_cutouts
from thesis_lib.kernels import min_max

for library in ("captum", "torchcam", "pytorch_grad_cam"):
    pytest.importorskip(library)

TOLERANCE = 1e-4  # of maps in [0, 1], in float32
FAMILIES = {
    "vgg": (lambda: vgg19_cutouts(9), "features.35"),
    "resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=9), "layer4"),
    "mobilenet": (lambda: mobilenet_v2(width_mult=0.35, num_classes=9), "features.18"),
    "densenet": (lambda: DenseNet(8, (2, 2, 2, 2), 16, num_classes=9), "features.denseblock4"),
    "squeezenet": (lambda: squeezenet1_1(num_classes=9), "features.12"),
}  # fmt: skip
CLASSES = [3, 0, 8]


@pytest.fixture(scope="module", params=FAMILIES)
def clf(request):
    build, layer = FAMILIES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return tl.Classifier(networks.liven(build()), layer, name=request.param)


@pytest.fixture(scope="module")
def x():
    return networks.images(3, 64, 96)


def assert_same_maps(ours, theirs):
    assert ours.max() == 1, "zero maps alone compare nothing"
    torch.testing.assert_close(ours, min_max(theirs), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("ours, theirs", [("grad_cam", "GradCAM"), ("xgrad_cam", "XGradCAM")])
@pytest.mark.parametrize("peer", [pytorch_grad_cam, torchcam])
def test_grad_cam_and_xgrad_cam(clf, x, ours, theirs, peer):
    # XGrad-CAM's epsilon, 1e-6 here as in its official code, is 1e-7 and 1e-8 there: it matters
    # only to channels that are all but zero.
    assert_same_maps(tl.METHODS[ours](clf, x, CLASSES), peer(theirs, clf, x, CLASSES))


def test_grad_cam_of_captum(clf, x):
    assert_same_maps(tl.METHODS["grad_cam"](clf, x, CLASSES), captum_grad_cam(clf, x, CLASSES))


def test_grad_cam_plus_plus_with_large_gradients(clf, x):
    last = list(clf.network.parameters())[-2:]
    for parameter in last:  # the last layer: logits and gradients a thousand times as large
        parameter.data.mul_(1000)
    try:
        ours = tl.METHODS["grad_cam_plus_plus"](clf, x, CLASSES)
        assert_same_maps(ours, pytorch_grad_cam("GradCAMPlusPlus", clf, x, CLASSES))
    finally:
        for parameter in last:
            parameter.data.div_(1000)
