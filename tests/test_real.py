"""The methods on a real ImageNet network and real photographs, where they are at hand.

SqueezeNet 1.1 and 96 photographs stand in a folder beside the repository on the authors' machines;
nothing in the project needs them, and these tests skip without them.
"""

import csv
from pathlib import Path

import oracle
import pytest
import torch

import thesis_lib as tl
from thesis_lib.data.datasets import Folder

REAL = Path(__file__).parents[2] / "shared" / "real"
pytestmark = pytest.mark.skipif(
    not REAL.is_dir(), reason="no ImageNet network and photographs beside the repository"
)


@pytest.fixture(scope="module")
def classifier():
    weights = REAL / "squeezenet1_1_imagenet_fp16.safetensors"
    return tl.load_classifier("squeezenet1_1", weights, device="cpu")


@pytest.fixture(scope="module")
def photographs(classifier):
    with open(REAL / "photos.csv") as file:
        truth = [int(row["class_index"]) for row in csv.DictReader(file)]
    dataset = Folder(REAL / "photos")
    pixels = torch.stack([dataset[i].pixels for i in range(len(dataset))])
    return classifier.normalise(pixels), torch.tensor(truth)


def test_layer_and_accuracy(classifier, photographs):
    images, truth = photographs
    assert classifier.layer == "features.12"
    accuracy = (classifier.predict(images) == truth).float().mean()
    assert 0.5 < accuracy < 0.8  # 64.9 % on the thousand that these 96 were drawn from


@pytest.mark.parametrize("name", list(oracle.METHODS))
def test_methods_equal_their_equations(classifier, photographs, name):
    """One photograph against the float64 transcription; pixels at a percentile are spared."""
    settings = {"sizes": [224, 324, 424]} if name in ("cameras", "msg_cam") else {}
    image = photographs[0][:1]
    with tl.counting() as counts:
        maps = tl.METHODS[name](classifier, image, **settings)
    assert counts["flat maps"] == 0
    forward = oracle.Forward(classifier.network, classifier.layer)
    literal = oracle.maps(forward, name, image, classifier.predict(image), **settings)
    spared = 32 if name in ("group_cam", "msg_cam") else 0
    assert oracle.relative_error(maps, literal, spared).max() < 1e-3


def test_maps_beat_random_ones_on_a_real_network(classifier, photographs):
    """Over-all AUC of Grad-CAM on eight photographs, against random maps: far above."""
    images = photographs[0][:8]
    classes = classifier.predict(images)
    maps = tl.METHODS["grad_cam"](classifier, images, classes)
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    ours = tl.insertion_deletion(classifier, images, maps, classes, step=1792).overall
    random = tl.insertion_deletion(classifier, images, noise, classes, step=1792).overall
    assert ours.mean() > random.mean() + 0.1
