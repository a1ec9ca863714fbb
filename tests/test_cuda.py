"""On a GPU with CUDA: maps and scores equal those of the CPU. `make gpu` runs this, elsewhere it is skipped.

In float64, where rounding decides no threshold and no tie of these networks.
"""

import copy

import networks
import pytest
import torch

import thesis_lib as tl

DEVICE = "cuda"
TOLERANCE = {"rtol": 0, "atol": 1e-7}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def pairs(name):
    """A network on the CPU and the same on the GPU, with pictures for it."""
    if name in tl.METHODS.of("transformer"):
        network, layer, x = networks.vit(), None, networks.images(3, 32, 32)
    else:
        network, layer = networks.random_network(networks.Plain, 2), networks.Plain.layer
        x = networks.images(3)
    here, there = (tl.Classifier(copy.deepcopy(network).double().to(d), layer) for d in ("cpu", DEVICE))
    return here, there, x.double()


def settings(name):
    grouped = {"groups": 5} if name in ("group_cam", "msg_cam") else {}
    return grouped | ({"sizes": [40, 57, 83]} if name in ("cameras", "msg_cam") else {})


def same(method, name):
    here, there, x = pairs(name)
    expected, maps = method(here, x), method(there, x.to(DEVICE))
    assert maps.device.type == DEVICE and expected.amax() == 1
    torch.testing.assert_close(maps.cpu(), expected, **TOLERANCE)
    return expected


@pytest.mark.parametrize("name", [*tl.METHODS.convolutional, *tl.METHODS.of("transformer")])
def test_maps_equal_the_cpus(name):
    def method(clf, x):
        return tl.METHODS[name](clf, x, **settings(name))

    same(method, name)


@pytest.mark.parametrize("name", ["grad_cam", "gradient_attention"])
@pytest.mark.parametrize("cover", ["sum", "mean"])
def test_enhanced_maps_equal_the_cpus(name, cover):
    same(tl.enhance(name, window=24, stride=8, cutoff=6, cover=cover), name)


def test_sess_equals_the_cpus():
    same(tl.sess("grad_cam", sizes=[48, 64]), "grad_cam")


def test_scores_equal_the_cpus():
    here, there, x = pairs("grad_cam")
    maps = tl.METHODS["grad_cam"](here, x)
    expected = tl.insertion_deletion(here, x, maps, step=100)
    scores = tl.insertion_deletion(there, x.to(DEVICE), maps.to(DEVICE), step=100)
    for name in ("insertion", "deletion", "overall"):
        found, wanted = getattr(scores, name), getattr(expected, name)
        torch.testing.assert_close(torch.as_tensor(found).cpu(), torch.as_tensor(wanted), **TOLERANCE)


def test_pictures_go_where_the_network_is():
    here, there, x = pairs("grad_cam")
    maps = tl.METHODS["grad_cam"](there, x).cpu()
    torch.testing.assert_close(maps, tl.METHODS["grad_cam"](here, x), **TOLERANCE)


def test_a_network_is_loaded_onto_the_gpu_where_there_is_one():
    assert tl.load_classifier("vgg19_cutouts").device.type == "cuda"
