"""Every method against the literal transcription of its equations (oracle.py, in float64)."""

import copy
from pathlib import Path

import networks
import oracle
import pytest
import torch
import torchvision
from networks import FAMILIES, images, random_network
from test_classifier import assert_same_state, state

import thesis_lib as tl
from thesis_lib.data.registry import open_dataset

SIZES = [40, 57, 83]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
GROUPED, SCALED = ("group_cam", "msg_cam"), ("cameras", "msg_cam")


def settings(name):
    return ({"groups": 5} if name in GROUPED else {}) | ({"sizes": SIZES} if name in SCALED else {})


def classifier(family=networks.Plain, seed=2, dtype=torch.float64, **options):
    network = random_network(family, seed).to(dtype)
    return tl.Classifier(network, family.layer, **options)


def literal(clf, name, x, classes, **options):
    forward = oracle.Forward(clf.network, clf.layer, activation=clf.activation)
    return oracle.maps(forward, name, x, classes, **options)


def check(clf, name, x, classes=None, **options):
    """Compares the maps and returns what was counted."""
    with tl.counting() as counts:
        ours = tl.METHODS[name](clf, x, classes, **options)
    targets = clf.predict(x) if classes is None else torch.as_tensor(classes).expand(len(x))
    expected = literal(clf, name, x, targets, **options)
    assert ours.shape == (len(x), *x.shape[-2:]) and ours.dtype == clf.dtype
    assert expected.amax((1, 2)).max() == 1, "nothing to compare: all maps are zero"
    at_percentile = name == "msg_cam" and clf.dtype == torch.float32
    spared = options.get("groups", 32) if at_percentile else 0
    assert oracle.relative_error(ours, expected, spared).max() < TOLERANCE[clf.dtype]
    return counts


# Networks, types, shapes


@pytest.mark.parametrize("name", oracle.METHODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_methods_equal_their_equations(name, family, dtype):
    clf = classifier(family, dtype=dtype)
    check(clf, name, images(3, 40, 56, dtype=dtype), **settings(name))


@pytest.mark.parametrize("name", [n for n in oracle.METHODS if n != "score_cam"])  # 512 passes
@pytest.mark.parametrize("model", ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_methods_equal_their_equations_on_torchvisions_networks(name, model):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = networks.liven(torchvision.models.get_model(model, weights=None, num_classes=9))
    clf = tl.Classifier(network.double())
    options = settings(name) | ({"sizes": [64, 96]} if name in SCALED else {})
    x = images(1, 64, 96, seed=1, dtype=torch.float64)
    # With random weights, masks may well lower a class's score: take one that has a map.
    target = next(c for c in range(9) if tl.METHODS[name](clf, x, c, **options).any())
    check(clf, name, x, target, **options)


WEIGHTS = Path(tl.__file__).parents[1] / "data" / "weights" / "vgg19_cutouts.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="vgg19_cutouts has no weights yet")
@pytest.mark.parametrize("name", oracle.METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_methods_equal_their_equations_on_vgg19_cutouts(name, dtype):
    clf = tl.load_classifier("vgg19_cutouts", device="cpu")
    clf.network.to(dtype)
    pixels = open_dataset("cutouts")[0].pixels[None].to(dtype)
    x = clf.normalise(tl.kernels.resize(pixels, (64, 96)))
    check(clf, name, x, **{"sizes": [64, 100]} if name in SCALED else {})


# Settings


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    "options",
    [
        {"groups": 1},
        {"groups": 13},
        {"groups": 32},  # more than channels
        {"theta": 0},
        {"theta": 50.5},
        {"theta": 97},
        {"score": "logit"},
        {"score": "probability"},
    ],
    ids=str,
)
def test_settings_of_the_groups(name, options):
    options = settings(name) | options
    check(classifier(seed=1), name, images(2, 40, 44, seed=1, dtype=torch.float64), **options)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("gate", ["prediction", "always"])
def test_the_gate_drops_scales_that_predict_another_class(name, gate):
    clf = classifier(seed=2)
    x = images(3, 40, 56, seed=2, dtype=torch.float64)
    counts = check(clf, name, x, **settings(name) | {"gate": gate})
    assert (counts["skipped scales"] > 0) == (gate == "prediction")
    # No scale predicts this class: only the image itself is left.
    other = (clf.predict(x)[0] + 3) % 7
    assert other not in torch.stack([clf.predict(s) for s in scaled(x)])
    counts = check(clf, name, x, classes=int(other), **settings(name) | {"gate": gate})
    assert counts["skipped scales"] == (6 if gate == "prediction" else 0)


def scaled(x, mode="bilinear"):
    return tl.methods.multiscale.scaled_inputs(x, SIZES, mode)


@pytest.mark.parametrize("name", SCALED)
def test_default_sizes_are_eight_in_steps_of_100(name):
    clf = classifier(networks.Residual, seed=1)
    x = images(1, 30, 34, dtype=torch.float64)
    counts = check(clf, name, x, **{"groups": 5} if name == "msg_cam" else {})
    assert counts["forward images"] >= 8
    assert tl.methods.multiscale.scale_sizes((224, 224)) == [(s, s) for s in range(224, 925, 100)]


@pytest.mark.parametrize("name", SCALED)
def test_the_class_is_the_images_own_even_where_sizes_start_elsewhere(name):
    clf = classifier(seed=2)
    x = images(3, 40, 56, seed=2, dtype=torch.float64)
    options = settings(name) | {"sizes": [83, 61]}
    ours = tl.METHODS[name](clf, x, **options)
    assert torch.equal(ours, tl.METHODS[name](clf, x, clf.predict(x), **options))


@pytest.mark.parametrize("fuse", ["denoised", "normalised"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_equation_3_12_sums(family, fuse):
    x = images(2, 40, 48, dtype=torch.float64)
    check(classifier(family), "msg_cam", x, **settings("msg_cam"), fuse=fuse)


@pytest.mark.parametrize("name", oracle.METHODS)
def test_multi_label_networks_and_classes_that_are_not_the_top_one(name):
    clf = classifier(seed=1, activation="sigmoid")
    x = images(3, 40, 48, seed=1, dtype=torch.float64)
    check(clf, name, x, classes=[6, 1, 4], **settings(name))


@pytest.mark.parametrize("name, options", [
    ("msg_cam", {"gate": "never"}), ("msg_cam", {"fuse": "raw"}), ("msg_cam", {"score": "margin"}),
    ("msg_cam", {"sizes": []}), ("cameras", {"sizes": [0, 40]}), ("group_cam", {"groups": 0}),
])  # fmt: skip
def test_wrong_settings_say_so(name, options):
    with pytest.raises(ValueError, match="gate|fuse|score|sizes|groups"):
        tl.METHODS[name](classifier(), images(1, 40, 40), **options)


def test_an_unknown_method_lists_the_names():
    with pytest.raises(KeyError, match="grad_cam, grad_cam_plus_plus, .*msg_cam"):
        tl.METHODS["gradcam"]


# Steps of MSG-CAM


def test_fused_weights_need_no_up_sampling():
    clf = classifier(seed=2)
    x = images(3, 40, 56, seed=2, dtype=torch.float64)
    steps = tl.methods.multiscale
    _, gradients, keep, _ = steps.explain_scales(clf, x, sizes=SIZES)
    assert not keep.all()
    expected = steps.mean_over_scales(gradients, keep, (40, 56)).mean((-2, -1))
    torch.testing.assert_close(steps.fused_weights(gradients, keep, (40, 56)), expected)


# Batches


@pytest.mark.parametrize("name", oracle.METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_do_not_depend_on_the_batch(name, family):
    clf = classifier(family)
    x = images(6, 40, 48, dtype=torch.float64)
    classes = [0, 1, 2, 3, 4, 5]
    whole = tl.METHODS[name](clf, x, classes, batch=100, **settings(name))
    for batch in [1, 4, 9]:
        split = tl.METHODS[name](clf, x, classes, batch=batch, **settings(name))
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
    alone = tl.METHODS[name](clf, x[[4]], 4, **settings(name))
    torch.testing.assert_close(alone[0], whole[4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", oracle.METHODS)
def test_batch_bounds_every_forward_pass(name):
    clf = classifier()
    sizes = []
    clf.network.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    with tl.counting() as counts:
        tl.METHODS[name](clf, images(5, 40, 40), batch=3, **settings(name))
    assert max(sizes) <= 3 and sum(sizes) == counts["forward images"]


def test_forward_passes_are_no_more_than_the_equations_need():
    clf, x = classifier(networks.Dense), images(4, 40, 40)
    needed = {
        "grad_cam": 1, "grad_cam_plus_plus": 1, "xgrad_cam": 1, "score_cam": 1 + 16,
        "group_cam": 1 + 1 + 5, "cameras": 3, "msg_cam": 3 + 1 + 5,
    }  # fmt: skip
    for name, passes in needed.items():
        with tl.counting() as counts:
            tl.METHODS[name](clf, x, **settings(name))
        assert counts["forward images"] + counts["flat groups"] == 4 * passes, name


def test_cameras_in_tiles_of_any_height(monkeypatch):
    clf, x = classifier(), images(2, 40, 48, dtype=torch.float64)
    whole = tl.METHODS["cameras"](clf, x, sizes=SIZES)
    monkeypatch.setattr(tl.methods.multiscale, "CHUNK", 1)
    torch.testing.assert_close(tl.METHODS["cameras"](clf, x, sizes=SIZES), whole)


# Flat, dead and NaN


@pytest.mark.parametrize("name", ["score_cam", *GROUPED])
def test_nan_groups_are_skipped_and_counted(name):
    clf = classifier(networks.NanChannel)
    counts = check(clf, name, images(2, 40, 48, dtype=torch.float64), **settings(name))
    assert counts["nan groups"] == 2 and counts["flat maps"] == 0


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "cameras"])
def test_maps_that_are_nan_become_zero_and_are_counted(name):
    clf = classifier(networks.NanChannel)
    with tl.counting() as counts:
        maps = tl.METHODS[name](clf, images(2, 40, 48), **settings(name))
    assert not maps.any() and counts["flat maps"] == 2


@pytest.mark.parametrize("name", ["score_cam", *GROUPED])
def test_flat_groups_are_skipped_and_counted(name):
    clf = classifier(networks.Dense)
    with torch.no_grad():  # channels 0 to 7 are dead: the first two groups of 5, or 8 channels
        clf.network.norm.weight[:8], clf.network.norm.bias[:8] = 0, 0.25
    counts = check(clf, name, images(2, 40, 48, dtype=torch.float64), **settings(name))
    assert counts["flat groups"] >= 2 * (8 if name == "score_cam" else 2)
    assert counts["nan groups"] == 0


@pytest.mark.parametrize("name", oracle.METHODS)
def test_a_dead_layer_gives_a_zero_map_and_is_counted(name):
    clf = classifier()
    with torch.no_grad():
        clf.network.features[6].weight.zero_()
        clf.network.features[6].bias.fill_(-1)
    with tl.counting() as counts:
        maps = tl.METHODS[name](clf, images(3, 40, 48), **settings(name))
    assert maps.shape == (3, 40, 48) and not maps.any() and counts["flat maps"] == 3


def test_a_mask_whose_score_is_nan_is_skipped_and_counted():
    clf, x = classifier(), images(1, 40, 48, dtype=torch.float64)
    scores = iter([torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([0.5])])
    clf.scores = lambda *args: next(scores).double()
    masks, alive = torch.ones(1, 4, 40, 48).double(), torch.tensor([[True, True, True, False]])
    with tl.counting() as counts:
        weights = tl.methods.masks.mask_weights(clf, x, x, masks, alive, torch.tensor([0]), "logit")
    assert weights.tolist() == [[0.5, 0, 1.5, 0]] and counts["nan groups"] == 1


# The network as it was given


@pytest.mark.parametrize("name", oracle.METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_state_of_the_network_gives_the_same_maps_and_is_kept(name, family):
    clf = classifier(family)
    x = images(2, 40, 48, dtype=torch.float64)
    expected = tl.METHODS[name](clf, x, **settings(name))
    network = copy.deepcopy(clf.network).train().to(memory_format=torch.channels_last)
    next(network.parameters()).requires_grad_(False)
    other, before = tl.Classifier(network, clf.layer), state(network)
    for mode in [torch.enable_grad, torch.no_grad, torch.inference_mode]:
        with mode():
            maps = tl.METHODS[name](other, x.clone(), **settings(name))
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
        assert not maps.requires_grad
    network.requires_grad_(False)
    before[0].update(state(network)[0])
    maps = tl.METHODS[name](other, x, **settings(name))
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
    assert_same_state(network, before)


@pytest.mark.parametrize("name", oracle.METHODS)
def test_the_network_is_restored_after_an_exception_in_any_pass(name):
    class Failing(networks.Plain):
        left = 99

        def forward(self, x):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of cheese")
            return super().forward(x)

    network = random_network(Failing).train()
    clf, before = tl.Classifier(network, Failing.layer), state(network)
    passes = 0 if name in ("grad_cam", "grad_cam_plus_plus", "xgrad_cam") else 1
    for left in range(passes + 1):
        network.left = left
        # Where no image of that size has passed yet, it may be the size: then it is a ValueError.
        with pytest.raises((RuntimeError, ValueError), match="out of cheese"):
            tl.METHODS[name](clf, images(1, 40, 40), **settings(name))
        assert_same_state(network, before)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
