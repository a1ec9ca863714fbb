"""Other libraries' methods through thesis_lib.peers: the contract of a method, and exact relations."""

import copy
import re
import subprocess
import sys
from functools import partial
from inspect import unwrap
from pathlib import Path

import nbformat
import networks
import pytest
import torch
from test_classifier import assert_same_state, state
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

import thesis_lib as tl
from thesis_lib import peers
from thesis_lib.kernels import min_max
from thesis_lib.peers.base import lend
from thesis_lib.runs import key

for library in ("captum", "torchcam", "pytorch_grad_cam", "saliency"):
    pytest.importorskip(library)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # captum's, where a test calls it itself

ROOT = Path(tl.__file__).parents[1]
SMALL = {  # settings for images of 48 pixels
    "occlusion": {"window": 16, "stride": 8},
    "rise": {"samples": 30},
    "kernel_shap": {"samples": 60},
    "lime": {"samples": 60},
    "extremal_perturbation": {"steps": 8, "cells": 6},
    "smoothgrad": {"samples": 4},
    "vargrad": {"samples": 4},
    "opti_cam": {"steps": 5},
    "sess": {"scales": 2},
    "sig_cam": {"steps": 1, "samples": 3, "cells": 6},
}
METHODS = {n: partial(m, **SMALL.get(n, {})) for n, m in peers.METHODS.items()}
# They want one linear layer behind global pooling, a Transformer, or the network whose masks were learnt.
ELSEWHERE = {"cam", "legrad", "real_time"}


def classifier(family=networks.Plain, dtype=torch.float32, seed=2):
    return tl.Classifier(networks.random_network(family, seed).to(dtype), family.layer)


@pytest.fixture(scope="module")
def clf():
    return classifier()


@pytest.fixture(scope="module")
def double():
    return classifier(dtype=torch.float64)


@pytest.fixture(scope="module")
def x():
    return networks.images(2, 48, 40)


def raw(name, clf, x, target, **settings):
    """What a method computes for one image, before it becomes a map."""
    return unwrap(peers.METHODS[name])(lend(clf), x[:1], torch.tensor([target]), **settings)


def gradient(clf, x, target):
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(clf.network(x)[:, target].sum(), x)
    return found


# The contract


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ELSEWHERE])
def test_a_method(name, x):
    clf = classifier()
    clf.network.train()  # explained in eval mode all the same, and in train mode again afterwards
    clf.network.head[5].weight.requires_grad_(False)
    before, generator = state(clf.network), torch.get_rng_state()
    classes = clf.predict(x)
    maps = METHODS[name](clf, x, classes.tolist())
    assert maps.shape == (2, 48, 40) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.amin((1, 2)).tolist() == [0, 0] and maps.amax((1, 2)).tolist() == [1, 1]
    assert_same_state(clf.network, before)
    assert torch.equal(torch.get_rng_state(), generator), "the caller's random numbers are his own"
    # The same again, without the other image, in no_grad, wherever the random numbers stand.
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        alone = METHODS[name](clf, x[1:], int(classes[1]))
    torch.testing.assert_close(alone, maps[1:], rtol=0, atol=1e-5)


def test_the_predicted_class_is_the_default(clf, x):
    predicted = clf.predict(x)
    for name in ("gradient", "rise"):
        assert torch.equal(METHODS[name](clf, x), METHODS[name](clf, x, predicted))
        assert not torch.equal(METHODS[name](clf, x), METHODS[name](clf, x, (predicted + 1) % 7))


def test_inference_mode(clf, x):
    expected = [METHODS[name](clf, x, 3) for name in ("gradient", "relevance_cam", "lrp")]
    with torch.inference_mode():
        inside = x.clone()
        for name, maps in zip(("gradient", "relevance_cam", "lrp"), expected, strict=True):
            assert torch.equal(METHODS[name](clf, inside, 3), maps)


def test_networks_that_reuse_a_module_or_work_in_place(x):
    for family in (networks.Residual, networks.Dense):
        other = classifier(family)
        for name in ("gradient", "smooth_grad_cam_plus_plus", "ablation_cam", "relevance_cam", "refine_cam"):
            assert METHODS[name](other, x, 3).amax((1, 2)).tolist() == [1, 1]


def test_transformers(x):
    vit = tl.Classifier(networks.vit())
    images = networks.images(1, 32, 32)
    for name in ("gradient", "integrated_gradients", "occlusion", "rise", "legrad"):
        assert METHODS[name](vit, images, 3).max() == 1
    with pytest.raises(TypeError, match="LayerNorm"):
        METHODS["lrp"](vit, images, 3)


def test_what_is_refused(clf, x):
    with pytest.raises(ValueError, match="this network has 2 linear layers"):
        METHODS["cam"](clf, x)
    with pytest.raises(ValueError, match='"absolute" or "positive"'):
        METHODS["gradient"](clf, x, reading="squared")
    with pytest.raises(ValueError, match="in timm's ViT and DeiT, not in"):
        METHODS["legrad"](clf, x)
    for name in set(NEEDS["pytorch_grad_cam"].split()) & set(METHODS):
        with pytest.raises(ValueError, match="reads maps with their channels first; 'encoder.* gives tokens"):
            METHODS[name](tl.Classifier(networks.vit()), networks.images(1, 32, 32), 3)
    with pytest.raises((IndexError, RuntimeError)):
        METHODS["gradient"](clf, x, 7)


@pytest.mark.parametrize(
    "name, missing",
    [
        ("gradient", "captum"), ("ss_cam", "torchcam"), ("ablation_cam", "pytorch_grad_cam"),
        ("xrai", "saliency"),
    ],
)  # fmt: skip
def test_a_missing_library(name, missing, clf, x, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing} is not installed.*\.\[peers\]"):
        METHODS[name](clf, x, 3)


def test_libraries_are_imported_when_they_are_called():
    script = (
        "import sys, thesis_lib as tl; tl.METHODS; assert 'thesis_lib.peers' not in sys.modules;"
        "tl.peers.METHODS;"
        "print({'captum', 'torchcam', 'pytorch_grad_cam', 'saliency'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_known_of_a_method(name):
    """Its family is one of the thesis's three, or it reads attention; the book's references have the work that its
    source names."""
    method = peers.METHODS[name]
    assert method.__name__ == name and method.__doc__
    assert method.family in ("backpropagation", "class activation", "perturbation", "transformer")
    surname, year = re.match(r"(\w+)", method.source)[1], re.search(r", (?:.* )?(\d{4})$", method.source)[1]
    bibliography = (ROOT / "book/references.bib").read_text("utf-8")
    works = [work for work in bibliography.split("\n@") if re.search(rf"author = {{{surname},", work)]
    assert any(f"year = {{{year}}}" in work for work in works), method.source


def test_titles_differ_from_each_other_and_from_ours():
    titles = [m.title for registry in (tl.METHODS, peers.METHODS) for m in registry.values()]
    assert len(set(titles)) == len(titles)


# What names a run


NEEDS = {  # whose versions a run's key holds
    "captum": "deconvolution deeplift gradient guided_backprop integrated_gradients kernel_shap lime lrp "
    "occlusion smoothgrad vargrad xrai",
    "torchcam": "cam smooth_grad_cam_plus_plus ss_cam torchcam",
    "pytorch_grad_cam": "ablation_cam finer_cam hires_cam layer_cam pytorch_grad_cam refine_cam sess shapley_cam",
    "saliency": "xrai",
}


@pytest.fixture(scope="module")
def runs():
    """What a run's key holds of each method, again each time that it is called."""
    methods = peers.METHODS | {
        "ours": tl.METHODS["grad_cam"],
        "torchcam": peers.torchcam("LayerCAM"),
        "pytorch_grad_cam": peers.pytorch_grad_cam("LayerCAM"),
    }
    return lambda: {name: key.describe(method) for name, method in methods.items()}


@pytest.fixture(scope="module")
def named(runs):
    return runs()


@pytest.mark.parametrize("changed", NEEDS)
def test_another_version_of_a_library_is_another_run_of_its_methods_alone(changed, runs, named, monkeypatch):
    installed = key._version
    monkeypatch.setattr(key, "_version", lambda name: "0.0" if name == changed else installed(name))
    found = {name for name, description in runs().items() if description != named[name]}
    assert found == {*NEEDS[changed].split()}


def test_other_classes_and_settings_of_a_library_are_other_runs():
    made = [
        peers.torchcam("LayerCAM"), peers.torchcam("GradCAM"), peers.torchcam("SSCAM"),
        peers.torchcam("SSCAM", num_samples=2), peers.pytorch_grad_cam("GradCAM"),
    ]  # fmt: skip
    assert len({str(key.describe(method)) for method in made}) == len(made)


# Exact relations: backpropagation


def test_gradient_is_autograds(clf, x):
    expected = min_max(gradient(clf, x, 3).abs().amax(1))
    torch.testing.assert_close(METHODS["gradient"](clf, x, 3), expected)
    positive = min_max(gradient(clf, x, 3).sum(1).relu())
    torch.testing.assert_close(METHODS["gradient"](clf, x, 3, reading="positive"), positive)
    assert not torch.equal(positive, expected)


def test_no_noise_leaves_the_gradient(clf, x):
    smooth = peers.METHODS["smoothgrad"](clf, x, 3, samples=3, noise=1e-7)
    torch.testing.assert_close(smooth, METHODS["gradient"](clf, x, 3), rtol=0, atol=1e-3)
    assert not torch.allclose(METHODS["smoothgrad"](clf, x, 3), smooth, atol=0.1)


def test_smoothgrad_and_vargrad_are_mean_and_variance(double, x):
    image, samples, noise = x[:1].double(), 5, 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deviation = noise * float(image.max() - image.min())
        copies = image + torch.normal(0, torch.full((samples, *image.shape[1:]), deviation))
    assert copies.dtype == torch.float64
    gradients = gradient(double, copies, 3)
    expected = {"smoothgrad": gradients.mean(0), "vargrad": gradients.var(0, unbiased=False)}
    for name, colours in expected.items():
        maps = peers.METHODS[name](double, image, 3, samples=samples, noise=noise)
        torch.testing.assert_close(maps, min_max(colours.abs().amax(0)[None]), rtol=0, atol=1e-4)


def test_guided_backprop_and_deconvolution(x):
    """With nothing negative anywhere they are the gradient; else guided is the literal rule."""
    clf = classifier()
    for parameter in clf.network.parameters():
        parameter.data.abs_()
    positive = x.abs() + 0.1
    for name in ("guided_backprop", "deconvolution"):
        torch.testing.assert_close(METHODS[name](clf, positive, 3), METHODS["gradient"](clf, positive, 3))

    clf = classifier()
    plain = METHODS["gradient"](clf, x, 3)
    for guided in (True, False):
        network = copy.deepcopy(clf.network)
        for path, module in list(network.named_modules()):
            if isinstance(module, nn.ReLU):
                parent = network.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], _Ruled(guided))
        maps = METHODS["guided_backprop" if guided else "deconvolution"](clf, x, 3)
        expected = gradient(tl.Classifier(network, clf.layer), x, 3).abs().amax(1)
        torch.testing.assert_close(maps, min_max(expected))
        assert not torch.allclose(maps, plain, atol=0.01)


class _Ruled(nn.Module):
    """A ReLU whose gradient passes where it is positive; guided: and where the input was."""

    def __init__(self, guided):
        super().__init__()
        self.guided = guided

    def forward(self, z):
        class Rule(torch.autograd.Function):
            @staticmethod
            def forward(context, z):
                context.save_for_backward(z)
                return z.relu()

            @staticmethod
            def backward(context, g):
                (z,) = context.saved_tensors
                return g.relu() * (z > 0) if self.guided else g.relu()

        return Rule.apply(z)


def test_completeness_of_integrated_gradients_and_deeplift(double, x):
    image = x[:1].double()
    change = float((double.logits(image) - double.logits(0 * image))[0, 3])
    total = float(raw("integrated_gradients", double, image, 3, steps=300).sum())
    assert total == pytest.approx(change, rel=0.01)
    assert float(raw("deeplift", double, image, 3).sum()) == pytest.approx(change, rel=0.1)


def test_lrp_without_gamma_is_gradient_times_input(double, x):
    image = x[:1].double()
    expected = gradient(double, image, 3) * image
    torch.testing.assert_close(raw("lrp", double, image, 3, gamma=0), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(raw("lrp", double, image, 3).to(expected), expected, rtol=0.1)


def behind(clf, features):
    """What the two linear layers see of the features (1, K, h, w): both poolings' output, flat."""
    return clf.network.head[1](clf.network.head[0](clf.network.features[8](features)))[0]


def walk_down(clf, features, start):
    """Excitation backpropagation, literally: from probabilities (C,) at the logits to the features."""
    first, second = clf.network.head[2], clf.network.head[5]

    def down(a, layer, p):
        w = layer.weight.clamp(min=0)
        z = w @ a
        return a * (w.T @ torch.where(z > 0, p / z, 0))

    with torch.no_grad():
        a0 = behind(clf, features)
        p0 = down(a0, first, down(first(a0).relu(), second, start))
        share = torch.where(a0 > 0, p0 / a0, 0)
    features = features.clone().requires_grad_()  # poolings hand on what they took
    (gradients,) = torch.autograd.grad((share * behind(clf, features)).sum(), features)
    return (features * gradients).detach()


@pytest.fixture(scope="module")
def features(double, x):
    return double.features(x[:1].double())[0]


def test_excitation_backprop_is_its_equation(double, features, x):
    image = x[:1].double()
    logit = double.logits(image)[0, 3]
    start = torch.zeros(7, dtype=torch.float64)
    start[3] = logit
    expected = walk_down(double, features, start).sum(1)
    found = raw("excitation_backprop", double, image, 3)
    torch.testing.assert_close(found, expected)
    assert (found / logit).min() >= 0


def test_excitation_backprop_keeps_its_sum_without_biases(x):
    clf = classifier(dtype=torch.float64)
    for module in clf.network.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    image = x[:1].double()
    target = int(clf.logits(image)[0].argmax())
    total = raw("excitation_backprop", clf, image, target).sum()
    torch.testing.assert_close(total, clf.logits(image)[0, target])


# Exact relations: class activation


@pytest.mark.parametrize("ours, theirs", [("grad_cam", "GradCAM"), ("xgrad_cam", "XGradCAM")])
@pytest.mark.parametrize("library", [peers.torchcam, peers.pytorch_grad_cam])
def test_any_class_of_the_cam_libraries(ours, theirs, library, clf, x):
    expected = tl.METHODS[ours](clf, x, [3, 5])
    torch.testing.assert_close(library(theirs)(clf, x, [3, 5]), expected, rtol=0, atol=1e-4)


def test_cam_is_grad_cam_where_there_is_cam(x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = networks.liven(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=9))
    clf = tl.Classifier(network, "layer4")
    torch.testing.assert_close(
        METHODS["cam"](clf, x, [3, 5]), tl.METHODS["grad_cam"](clf, x, [3, 5]), rtol=0, atol=1e-4
    )


def test_ablation_cam_is_its_equation(double, features, x):
    image = x[:1].double()

    def head(features):
        return double.network.head(double.network.features[8](features))

    with torch.no_grad():
        whole = head(features)[0, 3]
        drops = []
        for k in range(features.shape[1]):
            without = features.clone()
            without[:, k] = 0
            drops.append((whole - head(without)[0, 3]) / whole)
    expected = torch.einsum("k,nkhw->nhw", torch.stack(drops), features).relu()
    found = METHODS["ablation_cam"](double, image, 3)
    # pytorch-grad-cam enlarges with OpenCV, in float32.
    expected = min_max(tl.kernels.resize(expected[:, None], image.shape[-2:]))[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_relevance_cam_is_its_equation(double, features, x):
    start = torch.full((7,), -1 / 6, dtype=torch.float64)
    start[3] = 1
    weights = walk_down(double, features, start).mean((-2, -1), keepdim=True)
    expected = (weights * features).sum(1).relu()
    torch.testing.assert_close(raw("relevance_cam", double, x[:1].double(), 3), expected)
    assert expected.max() > 0


# Exact relations: perturbation


def test_one_window_takes_everything_away(double, x):
    image = x[:1, :, :40].double()
    drop = (double.probabilities(image) - double.probabilities(0 * image))[0]
    target = int(drop.argmax())
    found = raw("occlusion", double, image, target, window=40, stride=40)
    torch.testing.assert_close(found[0].double(), drop[target].expand(40, 40), rtol=1e-5, atol=0)


def test_rise(clf, x):
    with tl.counting() as counts:
        assert not peers.METHODS["rise"](clf, x, 3, samples=5, share=1.0).any()
    assert counts["flat maps"] == 2, "masks that show everything tell nothing"
    everything = raw("rise", clf, x, 3, samples=5, share=1.0)
    p = clf.probabilities(x[:1])[0, 3]
    torch.testing.assert_close(everything, p.expand_as(everything))


def test_rise_of_a_network_that_looks_at_one_corner():
    """Only masks that show the corner raise the score."""

    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1, bias=False)
            self.conv.weight.data = torch.tensor([[4.0, 0, 0], [-4, 0, 0]])[..., None, None]

        def forward(self, x):
            return self.conv(x)[:, :, 4:12, 4:12].mean((-2, -1))

    corner = tl.Classifier(Corner(), "conv")
    maps = peers.METHODS["rise"](corner, torch.ones(1, 3, 64, 64), 0, samples=2000)
    row, column = divmod(int(maps[0].argmax()), 64)
    assert row < 16 and column < 16
    assert maps[0, 32:, 32:].mean() < 0.5 * maps[0, 4:12, 4:12].mean()


@pytest.mark.parametrize("name", ["kernel_shap", "lime", "extremal_perturbation", "occlusion", "xrai"])
def test_maps_fall_on_the_only_thing_that_counts(name):
    """A bright square on black, and a network that measures its brightness."""

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)
            self.conv.weight.data = torch.stack([torch.full((3, 3, 3), 0.1), torch.full((3, 3, 3), -0.1)])
            self.conv.bias.data.zero_()

        def forward(self, x):
            return 20 * self.conv(x).relu().mean((-2, -1))

    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 12:28, 30:46] = 2
    settings = {
        "occlusion": {"window": 16, "stride": 8},
        "extremal_perturbation": {"areas": (0.1,), "steps": 40},
    }
    maps = peers.METHODS[name](tl.Classifier(Bright(), "conv"), image, 0, **settings.get(name, {}))[0]
    inside = maps[12:28, 30:46].mean()
    outside = (maps.sum() - maps[12:28, 30:46].sum()) / (64 * 64 - 16 * 16)
    assert inside > 3 * outside and inside > 0.5


# Counting


@pytest.mark.parametrize(
    "name, forward, backward",
    [
        ("gradient", 1, 1), ("smoothgrad", 4, 4), ("integrated_gradients", 20, 20), ("deeplift", 2, 2),
        ("lrp", 2, 1), ("excitation_backprop", 1, 0), ("ablation_cam", 2 + 13, 0), ("rise", 30, 0),
        ("extremal_perturbation", 16, 16), ("xrai", 20, 20),
    ],
)  # fmt: skip
def test_passes(name, forward, backward, clf, x):
    with peers.passes(clf, x.shape[-2:]) as counts:
        METHODS[name](clf, x, 3)
    assert (counts["forward"], counts["backward"]) == (2 * forward, 2 * backward)
    assert not clf.network._forward_hooks


def test_passes_of_our_own_methods_and_of_larger_images(clf, x):
    with peers.passes(clf, (48, 40)) as counts, tl.counting() as ours:
        tl.METHODS["grad_cam"](clf, x)
        tl.METHODS["score_cam"](clf, x)
    assert counts["forward"] == ours["forward images"] > 2 and not counts["backward"]
    with peers.passes(clf, (48, 40)) as counts:
        clf.logits(tl.kernels.resize(x, (96, 80)))
    assert counts["forward"] == 2 * 4


# The gallery


def test_the_gallery_lists_every_reference_and_names_methods_that_exist():
    notebook = nbformat.read(ROOT / "notebooks/01_1_gallery.ipynb", as_version=4)
    table = next(c.source for c in notebook.cells if "(gallery-systems)=" in c.source)
    rows = re.findall(r"^\| (\d+) \| \{cite:t\}`\w+` \| (.+) \|$", table, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 30))
    named = {name for _, text in rows for name in re.findall(r"(?<!\})`(\w+)`", text)}
    cited = {name for name, method in peers.METHODS.items() if method.thesis}
    assert named <= {*peers.METHODS, *tl.METHODS} and cited <= named
    later = re.findall(r"^\| \{cite:t\}`\w+` \| .*?(?<!\})`(\w+)`.* \|$", table, re.M)
    assert set(later) == set(peers.METHODS) - cited
