"""What the user wrote wrong is said in a sentence before the first pass, and what is as good as right works.

A report of a new case is a line in a table. `WRONG` has the settings of all methods, of this library and of
others: their names are taken from the signatures, and a setting without a line fails.
"""

import inspect
from functools import cache, partial

import networks
import numpy as np
import oracle
import pytest
import torch
from torch import nn

import thesis_lib as tl
from thesis_lib.data.models import vgg19_cutouts
from thesis_lib.metrics import (
    boundary_distance,
    effective_resolution,
    energy_inside,
    mean_over_classes,
    similarity,
)
from thesis_lib.peers import real_time

NAN = float("nan")
H, W = 48, 56  # above the blur's 25 pixels
N = 2


def classifier(**options):
    return tl.Classifier(networks.random_network(networks.Plain, 2), networks.Plain.layer, **options)


CNN, VIT = classifier(), tl.Classifier(networks.vit(size=32))
# CAM wants a single linear layer, behind global pooling.
POOLED = tl.Classifier(
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)), "1"
)
MASKED = tl.Classifier(vgg19_cutouts(classes=7), name="vgg19_cutouts")
METHODS = {**tl.METHODS, **tl.peers.METHODS}
PEERS = set(tl.peers.METHODS)
# Every method once more under windows and under SESS: the same must hold there.
WINDOWED = {
    "enhanced": tl.enhance("grad_cam", window=24, stride=16, cutoff=9),
    "SESS": tl.sess("grad_cam", sizes=[48, 64]),
    "random enhanced": tl.enhance("random", window=24, stride=16, cutoff=9),
}


def network_of(name):
    if name in ("cam", "real_time"):
        return POOLED if name == "cam" else MASKED
    return VIT if getattr(METHODS.get(name), "family", "") == "transformer" else CNN


@pytest.fixture(autouse=True)
def masks_of_seven_classes(monkeypatch):
    """The trained masking network knows 51."""
    monkeypatch.setattr(real_time, "_trained", lambda device: real_time.Masking(7).eval())


@cache
def pictures(name="", n=N):
    return networks.images(n, 32, 32) if network_of(name) is VIT else networks.images(n, H, W)


def refused(error, word, call, passes=0):
    """One sentence that has the word, and no more images passed than said."""
    with tl.counting() as counts, pytest.raises(error, match=word) as raised:
        call()
    assert counts["forward images"] <= passes, f"{counts['forward images']} passes"
    sentence = str(raised.value)
    assert "\n" not in sentence and len(sentence) < 500, sentence


def settings_of(method):
    """The names of a method's own settings, from its signature."""
    return list(inspect.signature(method).parameters)[3:]


# Settings: name, wrong value, what is raised, a word of it. Under a setting's name or "METHOD SETTING".
WRONG = [
    ("groups", 0, ValueError, "1 or more, not 0"),
    ("groups", -1, ValueError, "1 or more"),
    ("groups", 2.5, TypeError, "whole number"),
    ("groups", 4.0, TypeError, "whole number"),
    ("groups", "32", TypeError, "whole number"),
    ("groups", None, TypeError, "whole number"),
    ("groups", True, TypeError, "whole number"),
    ("groups", [8], TypeError, "whole number"),
    ("groups", NAN, TypeError, "whole number"),
    ("theta", -1, ValueError, "0 to 100, not -1"),
    ("theta", 101, ValueError, "0 to 100"),
    ("theta", NAN, ValueError, "0 to 100"),
    ("theta", float("inf"), ValueError, "0 to 100"),
    ("theta", "70", TypeError, "a number"),
    ("theta", None, TypeError, "a number"),
    ("theta", torch.tensor([70.0, 80.0]), TypeError, "a number"),
    ("score", "softmax", ValueError, '"logit" or "probability"'),
    ("score", None, TypeError, '"logit" or "probability"'),
    ("score", ["logit"], TypeError, '"logit" or "probability"'),
    ("sizes", [], ValueError, "an entry at least"),
    ("sizes", (), ValueError, "an entry at least"),
    ("sizes", range(324, 224, 100), ValueError, "an entry at least"),
    ("sizes", [0], ValueError, "1 or more"),
    ("sizes", [40, -57], ValueError, r"sizes\[1\] .*1 or more"),
    ("sizes", 224, TypeError, "a list"),
    ("sizes", "224", TypeError, "a list"),
    ("sizes", ["224"], TypeError, "whole number"),
    ("sizes", [40.5], TypeError, "whole number"),
    ("sizes", [40, None], TypeError, "whole number"),
    ("sizes", [[40, 48]], TypeError, "whole number"),
    ("sizes", torch.tensor(40), TypeError, "a list"),
    ("sizes", torch.tensor([40.0]), TypeError, "whole number"),
    ("sizes", (size for size in [40, 57]), TypeError, "a list"),  # empty for the second batch
    ("sizes", {40: 57}, TypeError, "a list"),
    ("gate", "x", ValueError, '"prediction" or "always"'),
    ("gate", True, TypeError, '"prediction" or "always"'),
    ("gate", None, TypeError, '"prediction" or "always"'),
    ("fuse", "raw", ValueError, '"denoised" or "normalised"'),
    ("fuse", 1, TypeError, '"denoised" or "normalised"'),
    ("start_layer", 0.5, TypeError, "whole number"),
    ("start_layer", "1", TypeError, "whole number"),
    ("start_layer", True, TypeError, "whole number"),
    ("start_layer", None, TypeError, "whole number"),
    ("reading", "squared", ValueError, '"absolute" or "positive"'),
    ("reading", None, TypeError, '"absolute" or "positive"'),
    ("samples", 0, ValueError, "or more"),
    ("samples", 2.5, TypeError, "whole number"),
    ("samples", "16", TypeError, "whole number"),
    ("vargrad samples", 1, ValueError, "2 or more"),  # one gradient has no variance
    ("noise", -0.1, ValueError, "0 or more"),
    ("noise", NAN, ValueError, "0 or more"),
    ("noise", "x", TypeError, "a number"),
    ("steps", 0, ValueError, "1 or more"),
    ("steps", 1.5, TypeError, "whole number"),
    ("scales", 0, ValueError, "1 or more"),
    ("scales", [224], TypeError, "whole number"),
    ("gamma", -1, ValueError, "0 or more"),
    ("gamma", NAN, ValueError, "0 or more"),
    ("window", 0, ValueError, "1 or more"),
    ("window", 8.5, TypeError, "whole number"),
    ("stride", 0, ValueError, "1 or more"),
    ("stride", -4, ValueError, "1 or more"),
    ("window", 49, ValueError, "1 to 48"),
    ("stride", 49, ValueError, "1 to 48"),  # beyond the window
    ("areas", 0, ValueError, "1 or more"),
    ("areas", 4.5, TypeError, "whole number"),
    ("extremal_perturbation areas", [], ValueError, "an entry at least"),
    ("extremal_perturbation areas", 0.1, TypeError, "a list"),
    ("extremal_perturbation areas", [0], ValueError, "above 0"),
    ("extremal_perturbation areas", [0.1, 1.5], ValueError, r"areas\[1\].* 1 or less"),
    ("extremal_perturbation areas", [NAN], ValueError, "a number"),
    ("cells", 0, ValueError, "1 or more"),
    ("cells", 3.5, TypeError, "whole number"),
    ("share", 0, ValueError, "above 0"),
    ("share", 1.5, ValueError, "1 or less"),
    ("share", NAN, ValueError, "a number"),
    ("grouqs", 3, TypeError, "grouqs"),  # of every method
]


def lines_for(name):
    """The table's lines for a method."""
    for setting, value, error, word in WRONG:
        only, _, short = setting.rpartition(" ")
        own = f"{name} {short}" in [line[0] for line in WRONG]
        if (
            only == name
            or (not only and not own and short in settings_of(METHODS[name]))
            or short == "grouqs"
        ):
            yield short, value, error, word


LINES = [(name, *line) for name in METHODS for line in lines_for(name)]


def told(part):
    """What a case is called: a function by its name, since its address is another in each process."""
    while isinstance(part, partial):
        part = part.func
    return getattr(part, "__name__", str(part)[:40])


def with_id(line):
    return "-".join(map(told, line[:3]))[:60]


@pytest.mark.parametrize("name, setting, value, error, word", LINES, ids=map(with_id, LINES))
def test_a_wrong_setting_is_said_before_the_first_pass(name, setting, value, error, word):
    call = partial(METHODS[name], network_of(name), pictures(name), 3, **{setting: value})
    refused(error, word, call)
    if name not in PEERS:
        refused(error, word, partial(METHODS[name], network_of(name), pictures(name), **{setting: value}))
        # What the windows are made of is asked when they are made.
        if value is not None or setting != "sizes":
            for make in tl.enhance, tl.sess:
                refused(error, word, lambda: make(partial(METHODS[name], **{setting: value})))
        if setting not in ("sizes", "window", "stride"):
            for make in tl.enhance, tl.sess:
                refused(error, word, lambda: make(name, **{setting: value}))


def test_every_setting_of_every_method_has_a_line_and_is_checked():
    for name, method in METHODS.items():
        own = set(settings_of(method)) - {"batch"}
        assert own == {line[0] for line in lines_for(name)} - {"grouqs"}, name
        assert own == set(getattr(method, "checks", {})), name


def test_a_setting_without_a_line_is_found(monkeypatch):
    def new(clf, images, classes=None, *, groups=3, depth=4, batch=None):
        """A method that somebody adds."""

    monkeypatch.setitem(METHODS, "new", new)
    with pytest.raises(AssertionError, match="new"):
        test_every_setting_of_every_method_has_a_line_and_is_checked()


@pytest.mark.parametrize("name", [*METHODS, *WINDOWED])
@pytest.mark.parametrize(
    "batch, error", [(0, ValueError), (-3, ValueError), (2.5, TypeError), ("8", TypeError)]
)
def test_a_wrong_batch_is_said_before_the_first_pass(name, batch, error):
    method = METHODS.get(name) or WINDOWED[name]
    refused(error, "batch is", lambda: method(network_of(name), pictures(name), batch=batch))


@pytest.mark.parametrize("start_layer", [-1, 2, 99])
def test_a_block_that_is_not_there_is_known_when_the_network_is_open(start_layer):
    method = partial(tl.METHODS["transformer_attribution"], start_layer=start_layer)
    refused(
        ValueError, "start_layer is 0 to 1", lambda: method(VIT, pictures("attention_rollout")), passes=2 * N
    )


# Windows: settings of `enhance` and `sess`; what depends on the picture is said at the call, before a pass.
WINDOWS = [
    (tl.enhance, {"window": 0}, ValueError, "does not fit"),
    (tl.enhance, {"window": 49}, ValueError, "does not fit an image of 48 x 56"),
    (tl.enhance, {"window": (20, 57)}, ValueError, "does not fit"),
    (tl.enhance, {"window": 20.0}, TypeError, "whole number"),
    (tl.enhance, {"window": "20"}, TypeError, "whole number"),
    (tl.enhance, {"window": None}, TypeError, "whole number"),
    (tl.enhance, {"window": True}, TypeError, "whole number"),
    (tl.enhance, {"window": (20, 20, 20)}, ValueError, "two of them"),
    (tl.enhance, {"window": (20, 20.5)}, TypeError, "whole number"),
    (tl.enhance, {"stride": 0}, ValueError, "at least 1"),
    (tl.enhance, {"stride": -8}, ValueError, "at least 1"),
    (tl.enhance, {"stride": (8, 0)}, ValueError, "at least 1"),
    (tl.enhance, {"stride": 2.5}, TypeError, "whole number"),
    (tl.enhance, {"stride": 25, "window": 10, "cover": "mean"}, ValueError, "gaps"),
    (tl.enhance, {"cutoff": 0}, ValueError, "cutoff lies above 0"),
    (tl.enhance, {"cutoff": -1}, ValueError, "cutoff"),
    (tl.enhance, {"cutoff": 38}, ValueError, "at 37 cycles"),
    (tl.enhance, {"cutoff": NAN}, ValueError, "cutoff"),
    (tl.enhance, {"cutoff": "9"}, TypeError, "cutoff"),
    (tl.enhance, {"lowpass": "box"}, ValueError, '"ideal" or "gaussian"'),
    (tl.enhance, {"lowpass": "box", "cutoff": None}, ValueError, '"ideal" or "gaussian"'),
    (tl.enhance, {"cover": "x"}, ValueError, '"sum" or "mean"'),
    (tl.enhance, {"cover": None}, TypeError, '"sum" or "mean"'),
    (tl.enhance, {"weight": "margin"}, ValueError, '"probability" or "logit"'),
    (tl.enhance, {"skip": -0.1}, ValueError, "0 to 1"),
    (tl.enhance, {"skip": 1.5}, ValueError, "0 to 1"),
    (tl.enhance, {"skip": NAN}, ValueError, "0 to 1"),
    (tl.enhance, {"skip": "0"}, TypeError, "a number"),
    (tl.enhance, {"groups": 8}, TypeError, "grad_cam has no setting 'groups'; it has batch"),
    (tl.sess, {"sizes": []}, ValueError, "SESS enlarges"),
    (tl.sess, {"sizes": [47]}, ValueError, "48 pixels or more"),
    (tl.sess, {"sizes": [48, 0]}, ValueError, "1 or more"),
    (tl.sess, {"sizes": 40}, TypeError, "a list"),
    (tl.sess, {"sizes": ["40"]}, TypeError, "whole number"),
    (tl.sess, {"sizes": [40.5]}, TypeError, "whole number"),
    (tl.sess, {"prefilter": 1}, ValueError, "prefilter"),
    (tl.sess, {"prefilter": -0.1}, ValueError, "prefilter"),
    (tl.sess, {"prefilter": NAN}, ValueError, "prefilter"),
    (tl.sess, {"prefilter": "0.5"}, TypeError, "prefilter"),
    (tl.sess, {"groups": 8}, TypeError, "no setting 'groups'"),
]


@pytest.mark.parametrize("make, options, error, word", WINDOWS, ids=told)
def test_wrong_windows_are_said_before_the_first_pass(make, options, error, word):
    fine = {"window": 24, "stride": 16, "cutoff": 9} if make is tl.enhance else {}
    refused(error, word, lambda: make("grad_cam", **fine | options)(CNN, pictures()))


@pytest.mark.parametrize("make", [tl.enhance, tl.sess])
def test_every_setting_of_the_windows_has_a_line(make):
    own = {name for name, p in inspect.signature(make).parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert own - {"method"} == {name for m, line, *_ in WINDOWS if m is make for name in line} - {"groups"}


# Images. Passes: a network that is asked what it takes may run once, on a batch.
BATCHED = N
IMAGES = [
    ("list", [[0.5]], ValueError, "float tensor", 0),
    ("None", None, ValueError, "float tensor", 0),
    ("numpy", np.zeros((N, 3, H, W), np.float32), ValueError, "float tensor", 0),
    ("uint8", torch.zeros(N, 3, H, W, dtype=torch.uint8), ValueError, "float tensor", 0),
    ("int64", torch.zeros(N, 3, H, W).long(), ValueError, "float tensor", 0),
    ("3-D", torch.zeros(3, H, W), ValueError, "float tensor", 0),
    ("2-D", torch.zeros(H, W), ValueError, "float tensor", 0),
    ("none", torch.zeros(0, 3, H, W), ValueError, "no images", 0),
    ("no pixels", torch.zeros(N, 3, 0, W), ValueError, "no images", 0),
]
EXPLAINED = [*METHODS, *WINDOWED]


def explain(name, images, classes=None):
    return (METHODS.get(name) or WINDOWED[name])(network_of(name), images, classes)


@pytest.mark.parametrize("name", [*EXPLAINED, "insertion_deletion"])
@pytest.mark.parametrize("what, images, error, word, passes", IMAGES, ids=[line[0] for line in IMAGES])
def test_what_are_no_images_is_said_before_the_first_pass(name, what, images, error, word, passes):
    if name == "insertion_deletion":
        call = partial(tl.insertion_deletion, CNN, images, torch.rand(N, H, W), step=400)
    else:
        call = partial(explain, name, images)
    refused(error, word, call, passes)


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("name", [*EXPLAINED, "insertion_deletion"])
def test_images_that_are_not_finite_give_no_map(name, value):
    """Even where classes are given and no logits are looked at."""
    images = pictures(name).clone()
    images[1, 0, 3, 3] = value
    for classes in None, 3:
        if name == "insertion_deletion":
            call = partial(tl.insertion_deletion, CNN, images, torch.rand(N, H, W), classes)
        else:
            call = partial(explain, name, images, classes)
        refused(ValueError, "hold NaN", call)


@pytest.mark.parametrize("call", [
    lambda x: tl.METHODS["group_cam"](CNN, x), lambda x: tl.METHODS["msg_cam"](CNN, x, sizes=[20, 40]),
    lambda x: tl.insertion_deletion(CNN, x, torch.rand(N, *x.shape[-2:]), step=10),
], ids=["group_cam", "msg_cam", "insertion_deletion"])  # fmt: skip
@pytest.mark.parametrize("side", [(20, 40), (40, 25), (8, 8)])
def test_images_too_small_for_the_blur_are_said_before_the_first_pass(call, side):
    refused(ValueError, "at least 26 pixels", lambda: call(networks.images(N, *side)))


# Classes: value, what is raised, a word, passes
CLASSES = [
    (3.0, TypeError, "one class index", 0),
    ([1.0, 2.0], TypeError, "one class index", 0),
    (True, TypeError, "one class index", 0),
    ([True, False], TypeError, "one class index", 0),
    ([], TypeError, "one class index", 0),
    ([[1, 2]], TypeError, "one class index", 0),
    ([1], ValueError, "1 classes for 2 images", 0),
    ([1, 2, 3], ValueError, "3 classes for 2 images", 0),
    ("3", TypeError, "one class index", 0),
    ([1, None], TypeError, "one class index", 0),
    ({1, 2}, TypeError, "one class index", 0),
    (7, IndexError, "7 classes|out of range", BATCHED),
    (-1, IndexError, "7 classes|out of range", BATCHED),
    ([1, 99], IndexError, "7 classes|out of range", BATCHED),
]


@pytest.mark.parametrize("name", [*EXPLAINED, "insertion_deletion"])
@pytest.mark.parametrize("classes, error, word, passes", CLASSES, ids=told)
def test_wrong_classes_are_said_before_the_first_pass_or_in_it(name, classes, error, word, passes):
    """How many outputs there are is known in the first pass. The yardsticks ask no network."""
    if name in ("random", "centre") and error is IndexError:
        assert explain(name, pictures(), classes).equal(explain(name, pictures(), 0))
        return
    if name == "insertion_deletion":
        call = partial(tl.insertion_deletion, CNN, pictures(), torch.rand(N, H, W), classes, step=400)
    else:
        call = partial(explain, name, pictures(name), classes)
    # Windows, masks and altered copies fill their first batch.
    refused(error, word, call, passes and (CNN.batch if name in {*WINDOWED, *PEERS} else passes))


# Metrics
def maps(n=N, h=H, w=W):
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(0))


def mask(n=N, h=H, w=W):
    found = torch.zeros(n, h, w, dtype=torch.bool)
    found[:, 5:15, 5:20] = True
    return found


def spoiled(value):
    found = maps()
    found[1, 2, 3] = value
    return found


def scored(given=None, **options):
    return tl.insertion_deletion(CNN, pictures(), maps() if given is None else given, **options)


def game(given=None, masks=None, **options):
    return tl.pointing_game(maps() if given is None else given, mask() if masks is None else masks, **options)


def energy(given=None, masks=None):
    return energy_inside(maps() if given is None else given, mask() if masks is None else masks)


def boundary(given=None, masks=None):
    return boundary_distance(maps() if given is None else given, mask() if masks is None else masks)


def alike(given=None):
    return similarity(maps() if given is None else given, maps())


def resolution(given=None, **options):
    return effective_resolution(maps() if given is None else given, **options)


OF_MAPS = [scored, game, energy, boundary, alike, resolution]
OF_MASKS = [game, energy, boundary]
WRONG_MAPS = [
    ("2-D", maps()[0], ValueError, r"\(N, H, W\)"),
    ("4-D", maps()[:, None], ValueError, r"\(N, H, W\)"),
    ("none", maps()[:0], ValueError, r"\(N, H, W\)"),
    ("NaN", spoiled(NAN), ValueError, r"images \[1\] hold NaN"),
    ("inf", spoiled(float("inf")), ValueError, r"images \[1\] hold NaN"),
    ("complex", maps() * 1j, TypeError, "real"),
    ("None", [None], TypeError, "numbers"),
    ("words", [["a"]], TypeError, "numbers"),
    ("numpy of words", np.array([[["a"]]]), TypeError, "numbers"),
    ("ragged", [[[1.0], [1.0, 2.0]]], TypeError, "numbers"),
]
WRONG_MASKS = [
    ("float", mask().float(), ValueError, "bool"),
    ("uint8", mask().byte(), ValueError, "bool"),
    ("2-D", mask()[0], ValueError, "bool"),
    ("empty", mask() & torch.tensor([True, False])[:, None, None], ValueError, r"\[1\] are empty"),
    ("another size", mask(N, 30, 30), ValueError, r"\(2, 30, 30\)"),
    ("fewer", mask(1), ValueError, r"\(1, 48, 56\)"),
    ("none", mask(0), ValueError, r"\(0, 48, 56\)"),
    ("None", [None], TypeError, "numbers"),
]


@pytest.mark.parametrize("call", OF_MAPS)
@pytest.mark.parametrize("what, given, error, word", WRONG_MAPS, ids=[line[0] for line in WRONG_MAPS])
def test_what_are_no_maps_is_said_before_the_first_pass(call, what, given, error, word):
    refused(error, word, lambda: call(given))


@pytest.mark.parametrize("call", [scored, game, energy, boundary, alike])
@pytest.mark.parametrize("given", [maps(N, 30, 30), maps(1), maps(N, W, H)], ids=["size", "fewer", "turned"])
def test_maps_of_another_size_are_said_before_the_first_pass(call, given):
    refused(ValueError, r"\(N, H, W\)", lambda: call(given))


@pytest.mark.parametrize("call", OF_MASKS)
@pytest.mark.parametrize("what, given, error, word", WRONG_MASKS, ids=[line[0] for line in WRONG_MASKS])
def test_what_are_no_masks_is_said(call, what, given, error, word):
    refused(error, word, lambda: call(None, given))


# Settings of the metrics: what is called, with what
MEASURED = [
    (scored, {"step": 0}, ValueError, r"1..2687"),
    (scored, {"step": -448}, ValueError, r"1..2687"),
    (scored, {"step": H * W}, ValueError, r"1..2687"),
    (scored, {"step": 2.5}, TypeError, "whole number"),
    (scored, {"step": 448.0}, TypeError, "whole number"),
    (scored, {"step": "448"}, TypeError, "whole number"),
    (scored, {"step": None}, TypeError, "whole number"),
    (scored, {"step": NAN}, TypeError, "whole number"),
    (game, {"points": 0}, ValueError, r"1..2688"),
    (game, {"points": H * W + 1}, ValueError, r"1..2688"),
    (game, {"points": 2.5}, TypeError, "whole number"),
    (game, {"points": "100"}, TypeError, "whole number"),
    (game, {"tolerance": -1}, ValueError, "0 or more"),
    (game, {"tolerance": NAN}, ValueError, "0 or more"),
    (game, {"tolerance": float("inf")}, ValueError, "0 or more"),
    (game, {"tolerance": "15"}, TypeError, "a number"),
    (resolution, {"share": 0}, ValueError, "above 0"),
    (resolution, {"share": 1.5}, ValueError, "1 or less"),
    (resolution, {"share": NAN}, ValueError, "a number"),
    (resolution, {"share": "x"}, TypeError, "a number"),
    (partial(tl.randomize, CNN), {"mode": "cascade"}, ValueError, '"cascading" or "independent"'),
    (partial(tl.randomize, CNN), {"mode": 1}, TypeError, '"cascading" or "independent"'),
    (partial(tl.randomize, CNN), {"layers": "linear"}, ValueError, '"convolutions" or "all"'),
    (partial(tl.randomize, CNN), {"seed": 0.5}, TypeError, "whole number"),
    (partial(tl.randomize, CNN), {"seed": "0"}, TypeError, "whole number"),
    (partial(tl.randomize, CNN), {"seed": None}, TypeError, "whole number"),
    (similarity, {"a": maps(N, 10, 40), "b": maps(N, 10, 40)}, ValueError, "11 pixels"),
    (energy, {"given": maps() - 1}, ValueError, "negative"),
    (mean_over_classes, {"hits": [], "misses": [], "classes": []}, ValueError, "at least"),
    (mean_over_classes, {"hits": [0, 1], "misses": [0, 1], "classes": [1, 2]}, ValueError, "at least"),
    (mean_over_classes, {"hits": [-1], "misses": [3], "classes": [1]}, ValueError, "from 0 on"),
    (mean_over_classes, {"hits": [NAN], "misses": [3], "classes": [1]}, ValueError, "from 0 on"),
    (partial(tl.peers.torchcam, "LayerCam"), {}, KeyError, "LayerCAM"),
    (partial(tl.peers.pytorch_grad_cam, "LayerCam"), {}, KeyError, "LayerCAM"),
    (partial(tl.peers.pytorch_grad_cam, "GradCAM"), {"sample": 2}, TypeError, "no setting 'sample'"),
    (tl.enhance, {"method": "gradcam"}, KeyError, "grad_cam"),
    (tl.sess, {"method": 7}, TypeError, "a name in METHODS"),
]


@pytest.mark.parametrize("call, options, error, word", MEASURED, ids=told)
def test_wrong_settings_of_measures_are_said_before_the_first_pass(call, options, error, word):
    if getattr(call, "args", [""])[0] in ("LayerCam", "GradCAM"):
        pytest.importorskip("torchcam" if call.func is tl.peers.torchcam else "pytorch_grad_cam")
    refused(error, word, partial(call, **options))


# As good as right


def same(a, b):
    a, b = (tuple(map(np.asarray, x)) if isinstance(x, tuple) else (np.asarray(x),) for x in (a, b))
    assert a[0].any(), "nothing to compare"
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def explained(name, **options):
    few = {"sizes": [48, 57]} if name in ("cameras", "msg_cam") else {}
    return tl.METHODS[name](CNN, pictures(), **few | options)


def enhanced(**options):
    return tl.enhance("grad_cam", **{"window": 24, "stride": 16, "cutoff": 9} | options)(CNN, pictures())


GROUP, MSG, CAM = (partial(explained, name) for name in ("group_cam", "msg_cam", "grad_cam"))
AS_GOOD = [
    (GROUP, "groups", 3, [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)]),
    (GROUP, "theta", 70, [70.0, np.float32(70), np.int32(70), torch.tensor(70.0)]),
    (MSG, "sizes", [48, 56, 64], [(48, 56, 64), range(48, 65, 8), np.array([48, 56, 64]), torch.arange(48, 65, 8)]),
    (MSG, "groups", 5, [np.int64(5), torch.tensor(5)]),
    (partial(explained, "cameras"), "sizes", [48, 56], [(48, 56), range(48, 57, 8), np.array([48, 56])]),
    (CAM, "classes", 3, [np.int64(3), np.uint8(3), torch.tensor(3), [3, 3], (3, 3), np.array([3, 3]),
                         torch.tensor([3, 3]), torch.tensor([3, 3], dtype=torch.uint8)]),
    (CAM, "classes", [0, 1], [range(2), (np.int64(0), np.int64(1)), [torch.tensor(0), torch.tensor(1)]]),
    (CAM, "batch", 1, [np.int64(1)]),
    (enhanced, "window", 24, [(24, 24), [24, 24], np.int64(24), np.array([24, 24]), torch.tensor(24)]),
    (enhanced, "stride", 16, [(16, 16), [16, 16], np.int64(16), torch.tensor([16, 16])]),
    (enhanced, "cutoff", 9, [9.0, np.float32(9), np.int64(9), torch.tensor(9)]),
    (enhanced, "skip", 0.25, [np.float32(0.25), torch.tensor(0.25)]),
    (scored, "step", 640, [np.int64(640), torch.tensor(640)]),
    (scored, "classes", 3, [np.int64(3), torch.tensor(3), (3, 3), np.array([3, 3])]),
    (game, "points", 100, [np.int64(100), torch.tensor(100)]),
    (game, "tolerance", 15, [15.0, np.float32(15), torch.tensor(15)]),
    (game, "tolerance", 100, [10**9]),  # every pixel of the image is as near
    (resolution, "share", 0.5, [np.float32(0.5), torch.tensor(0.5)]),
    (partial(tl.peers.METHODS["gradient"], CNN, pictures(), 3), "reading", "absolute", ["absolute"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "call, setting, plain, others", AS_GOOD, ids=[f"{k}-{line[1]}" for k, line in enumerate(AS_GOOD)]
)
def test_numbers_lists_and_arrays_are_as_good_as_pythons_own(call, setting, plain, others):
    few = {"step": 640} if call is scored and setting != "step" else {}
    expected = call(**few | {setting: plain})
    for other in others:
        same(call(**few | {setting: other}), expected)


@pytest.mark.parametrize("call", OF_MAPS)
def test_maps_may_be_arrays_lists_and_of_any_type(call):
    """float16 too, which is exact here: its own sum of a large map would be infinity."""
    given = (maps() * 100).round() * 64
    call = partial(call, **{"step": 640} if call is scored else {})
    expected = call(given)
    tracked = given.clone().requires_grad_()
    backwards = np.ascontiguousarray(given.numpy()[:, ::-1])[:, ::-1]
    for other in given.numpy(), given.tolist(), given.int(), given.half(), given.double(), tracked, backwards:
        found = call(other)
        for x, y in zip(*(v if isinstance(v, tuple) else (v,) for v in (found, expected)), strict=True):
            np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-6)


@pytest.mark.parametrize("call", OF_MASKS)
def test_masks_may_be_arrays_and_lists(call):
    for other in mask().numpy(), mask().tolist(), mask().numpy()[:, ::-1][:, ::-1]:
        same(call(maps(), other), call(maps(), mask()))


@pytest.mark.parametrize("name", ["group_cam", "msg_cam"])
def test_more_groups_than_channels_are_as_many_as_channels(name):
    """Groups without a channel are flat, and count for nothing."""
    clf, x = one_output(), networks.images(1, H, W, dtype=torch.float64)
    own = {"sizes": [48]} if name == "msg_cam" else {}
    one_each = tl.METHODS[name](clf, x, groups=13, **own)
    assert one_each.any()
    for groups in 14, 1000:
        more = tl.METHODS[name](clf, x, groups=groups, **own)
        torch.testing.assert_close(more, one_each, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["cameras", "msg_cam"])
def test_the_image_itself_counts_wherever_its_size_stands(name):
    """The gate keeps the image's own size, not what happens to be the first."""
    clf = tl.Classifier(networks.random_network(networks.Plain, 2).double(), networks.Plain.layer)
    x = networks.images(3, 40, 56, seed=2, dtype=torch.float64)
    classes = [(c + 3) % 7 for c in clf.predict(x).tolist()]  # which no scale predicts
    with tl.counting() as counts:
        expected = tl.METHODS[name](clf, x, classes, sizes=[40, 57, 83])
    assert counts["skipped scales"] == 6 and expected.any()
    for sizes in [57, 40, 83], [83, 57, 40]:
        assert torch.equal(tl.METHODS[name](clf, x, classes, sizes=sizes), expected)


# One output with a sigmoid


def one_output():
    network = networks.random_network(networks.Plain, 2)
    network.head[-1] = torch.nn.Linear(16, 1)
    torch.nn.init.constant_(network.head[-1].weight, 0.05)
    return tl.Classifier(network.double(), networks.Plain.layer, activation="sigmoid")


ONE = [(name, {}) for name in oracle.METHODS]
ONE += [(name, {"score": s}) for name in ("group_cam", "msg_cam") for s in ("logit", "probability")]


@pytest.mark.parametrize("name, options", ONE, ids=str)
def test_one_output_with_a_sigmoid_equals_the_equations(name, options):
    clf, x = one_output(), networks.images(2, 32, 36, dtype=torch.float64)
    options = options | ({"sizes": [32, 45]} if name in ("cameras", "msg_cam") else {})
    ours = tl.METHODS[name](clf, x, **options)
    literal = oracle.maps(
        oracle.Forward(clf.network, clf.layer, activation="sigmoid"), name, x, [0, 0], **options
    )
    assert literal.amax((1, 2)).max() == 1, "nothing to compare"
    assert oracle.relative_error(ours, literal).max() < 1e-9
    assert torch.equal(tl.METHODS[name](clf, x, 0, **options), ours)
    refused(IndexError, "1 classes", lambda: tl.METHODS[name](clf, x, 1, **options), 2)


def test_one_output_has_no_other_to_contrast_with():
    """Relevance-CAM: minus 1 / (C - 1) for each of no other outputs is nothing, not NaN."""
    clf, x = one_output(), networks.images(2, H, W, dtype=torch.float64)
    with tl.counting() as counts:
        found = tl.peers.METHODS["relevance_cam"](clf, x)
    assert found.any() and counts["flat maps"] < 2
