import networks
import numpy as np
import pytest
import test_attention
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from thesis_lib.classifier import Classifier
from thesis_lib.data.models import vgg19_cutouts
from thesis_lib.methods import METHODS
from thesis_lib.metrics.sanity import randomize, similarity


def small_clf(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
    network = network.to(dtype).eval().requires_grad_(False)
    return Classifier(network, layer="6", name="small", categories=list("abcde"), batch=3)


def changed(a, b):
    """Names of the modules in which two classifiers differ."""
    a, b = a.network.state_dict(), b.network.state_dict()
    return sorted({name.rpartition(".")[0] for name in a if not a[name].equal(b[name])})


def test_cascading_adds_up_from_the_output_end():
    clf = small_clf()
    steps = list(randomize(clf))
    assert [name for name, _ in steps] == ["5", "3", "0"]
    assert [changed(clf, random) for _, random in steps] == [["5"], ["3", "5"], ["0", "3", "5"]]
    for (_, before), (name, after) in zip(steps[:-1], steps[1:], strict=True):
        assert changed(before, after) == [name]  # what was random stays the same
    last = steps[-1][1].network
    assert not last[3].weight.equal(last[5].weight)  # layers of one shape differ


def test_independent_changes_one_layer():
    clf = small_clf()
    cascading = dict(randomize(clf, "cascading"))
    for name, random in randomize(clf, "independent"):
        assert changed(clf, random) == [name]
        a, b = (c.network.get_submodule(name) for c in (random, cascading[name]))
        assert a.weight.equal(b.weight) and a.bias.equal(b.bias)


def test_all_layers():
    clf = small_clf()
    clf.network[1].running_mean += 1
    steps = list(randomize(clf, "independent", layers="all"))
    assert [name for name, _ in steps] == ["9", "5", "3", "1", "0"]
    assert changed(clf, steps[0][1]) == ["9"]
    assert steps[3][1].network[1].running_mean.abs().max() == 0  # statistics are reset as well


def kept(clf, random):
    """Names of the parameters that are the same in two classifiers."""
    after = dict(random.network.named_parameters())
    return [name for name, p in clf.network.named_parameters() if p.equal(after[name])]


def test_all_layers_of_a_transformer():
    clf = Classifier(networks.vit())
    steps = dict(randomize(clf, "independent", layers="all"))
    for name, random in steps.items():
        assert changed(clf, random) == [name]
    names = list(steps)
    assert len(names) == 1 + 1 + 2 * 6 + 1  # head, last norm, blocks, convolution
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in (1, 0)]
    for block in blocks:
        k = names.index(f"{block}.self_attention")
        assert names[k - 1] == f"{block}.self_attention.out_proj"
        assert names[k + 1] == f"{block}.ln_1"
    attentions = [f"{block}.self_attention" for block in blocks]
    first, second = (steps[name].network.get_submodule(name) for name in attentions)
    assert not first.in_proj_weight.equal(second.in_proj_weight)
    bound = np.sqrt(6 / (16 + 48))  # xavier_uniform_ from 16 features to queries, keys, values
    assert 0.9 * bound < first.in_proj_weight.abs().max() <= bound
    assert not first.in_proj_bias.any()


def test_what_has_no_initialiser_stays_as_trained():
    clf = Classifier(networks.vit())
    *_, (_, last) = randomize(clf, layers="all")
    assert kept(clf, last) == ["class_token", "encoder.pos_embedding"]
    pytest.importorskip("timm")
    clf = Classifier(test_attention.deit())
    *_, (_, last) = randomize(clf, layers="all")
    # Whether a layer scale has an initialiser depends on timm's version.
    names = [name for name in kept(clf, last) if not name.endswith(".gamma")]
    assert names == ["cls_token", "pos_embed"]


def test_the_seed_decides_and_nothing_else_does():
    clf = small_clf()
    before = {key: value.clone() for key, value in clf.network.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [c.network[0].weight for _, c in randomize(clf, seed=3)][-1]
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(99)
    again = [c.network[0].weight for _, c in randomize(clf, seed=3)][-1]
    other = [c.network[0].weight for _, c in randomize(clf, seed=4)][-1]
    assert first.equal(again) and not first.equal(other)
    assert all(before[k].equal(v) for k, v in clf.network.state_dict().items())
    assert not any(p.requires_grad for p in clf.network.parameters())


def test_the_memory_format_does_not_change_the_draw():
    clf, other = small_clf(), small_clf()
    other.network.to(memory_format=torch.channels_last)
    for (_, a), (_, b) in zip(randomize(clf), randomize(other), strict=True):
        assert changed(a, b) == []
    assert b.network[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_parameters_are_fresh_as_pytorch_makes_them():
    clf = small_clf()
    weight = dict(randomize(clf, "independent"))["0"].network[0].weight
    bound = 1 / np.sqrt(27)  # kaiming_uniform_(a=sqrt(5)) over 27 inputs
    assert 0.8 * bound < weight.abs().max() <= bound


def test_the_copies_explain_and_carry_the_settings():
    clf = small_clf(torch.float64)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    classes = clf.predict(images)
    original = METHODS["grad_cam"](clf, images, classes)
    for _, random in randomize(clf):
        assert (random.layer, random.batch, random.categories) == ("6", 3, list("abcde"))
        assert random.dtype == torch.float64
        maps = METHODS["grad_cam"](random, images, classes)
        assert maps.shape == (2, 32, 32) and not maps.equal(original)


def test_vgg19_has_sixteen_convolutions():
    clf = Classifier(vgg19_cutouts(), layer="features.35")
    steps = list(randomize(clf))
    numbers = [34, 32, 30, 28, 25, 23, 21, 19, 16, 14, 12, 10, 7, 5, 2, 0]
    assert [name for name, _ in steps] == [f"features.{n}" for n in numbers]
    assert len(changed(clf, steps[-1][1])) == 16  # the classifier is left alone
    names = [name for name, _ in randomize(clf, layers="all")]
    assert names == ["classifier.6", "classifier.3", "classifier.0"] + [n for n, _ in steps]


def test_bad_input():
    clf = small_clf()
    with pytest.raises(ValueError, match="mode"):
        randomize(clf, "cascade")
    with pytest.raises(ValueError, match="layers"):
        randomize(clf, layers="linear")
    with pytest.raises(ValueError, match="must be"):
        similarity(torch.rand(2, 20, 20), torch.rand(2, 20, 21))


def test_similarity_equals_scipy_and_skimage():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 24, 30))
    a, b = a.round(1), b.round(1)  # ties
    b[0] = 0.7 * a[0] + 0.3 * b[0]
    spearman, ssim = similarity(torch.tensor(a), torch.tensor(b))
    for i in range(3):
        x, y = abs(a[i]), abs(b[i])
        assert spearman[i] == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic, abs=1e-12)
        x, y = ((m - m.min()) / (m.max() - m.min()) for m in (x, y))
        options = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
        assert ssim[i] == pytest.approx(structural_similarity(x, y, sigma=1.5, **options))


def test_similarity_of_known_maps():
    maps = torch.rand(2, 20, 20)
    spearman, ssim = similarity(maps, maps)
    assert spearman == pytest.approx([1, 1]) and ssim == pytest.approx([1, 1])
    assert similarity(maps, -3 * maps)[0] == pytest.approx([1, 1])  # absolute values
    assert similarity(maps, 1 - maps)[0] == pytest.approx([-1, -1])
    flat = torch.zeros(2, 20, 20)
    assert similarity(maps, flat)[0].tolist() == [0, 0]
    assert similarity(flat, flat)[0].tolist() == [0, 0]
