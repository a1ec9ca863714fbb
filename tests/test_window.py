"""The window enhancer and SESS against oracle_window.py, and what they promise."""

import functools

import networks
import numpy as np
import oracle
import oracle_attention
import oracle_window
import pytest
import test_runs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, random_network

import thesis_lib as tl
from thesis_lib.kernels import fuse_windows, low_pass, take_windows, window_corners

BASES = {
    "grad_cam": {},
    "group_cam": {"groups": 4},
    "msg_cam": {"groups": 4, "sizes": [40, 57]},
}
FAMILIES = [networks.Plain, networks.Residual, networks.Dense]
SETTINGS = dict(window=(24, 28), stride=(11, 13), cutoff=9)  # neither divides 40 x 56
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def classifier(family=networks.Plain, dtype=torch.float64, seed=2, **options):
    return tl.Classifier(random_network(family, seed).to(dtype), family.layer, **options)


def pictures(n=2, h=40, w=56, dtype=torch.float64, seed=0):
    return images(n, h, w, seed=seed, dtype=dtype)


def literal(clf, name, x, classes, transcription=oracle_window.enhanced, base=None, **options):
    """The oracle's maps of images one by one."""
    forward = oracle.Forward(clf.network, clf.layer, activation=clf.activation)
    base = BASES[name] if base is None else base

    def f(image, c):
        if name in oracle_attention.METHODS:
            return oracle_attention.METHODS[name](clf.network, image, c)
        return oracle.METHODS[name](forward, image, c, **base)

    pairs = zip(x.double().split(1), map(int, classes), strict=True)
    for key in {"window", "stride"} & set(options):
        options[key] = tuple(np.broadcast_to(options[key], 2).tolist())
    return torch.stack([transcription(forward, f, image, c, **options) for image, c in pairs])


def check(clf, name, x, classes=None, **options):
    ours = tl.enhance(name, **options, **BASES[name])(clf, x, classes)
    targets = clf.predict(x) if classes is None else torch.as_tensor(classes).expand(len(x))
    expected = literal(clf, name, x, targets, **options)
    assert ours.shape == (len(x), *x.shape[-2:]) and ours.dtype == clf.dtype
    assert expected.amax((1, 2)).min() == 1, "nothing to compare: a map is zero"
    assert oracle.relative_error(ours, expected).max() < TOLERANCE[clf.dtype]
    return ours


# Equations 4-1 to 4-11


# In float32 a pixel at its mask's percentile may go either way, in every window.
@pytest.mark.parametrize(
    "name, dtype",
    [(name, torch.float64) for name in BASES] + [("grad_cam", torch.float32)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_enhanced_methods_equal_their_equations(name, family, dtype):
    options = SETTINGS if name == "grad_cam" else SETTINGS | {"stride": (16, 20)}
    check(classifier(family, dtype), name, pictures(dtype=dtype), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"cover": "mean"},
        {"weight": "logit"},
        {"cover": "mean", "weight": "logit", "lowpass": "gaussian"},
        {"lowpass": "gaussian"},
        {"lowpass": "gaussian", "cutoff": 2.5},
        {"cutoff": None},
        {"cutoff": 0.5},  # only the mean is left of the rest: see below
        {"cutoff": 1},
        {"cutoff": 34},
        {"window": 40, "stride": 40},
        {"window": (40, 56), "stride": 5},  # one window, the image itself
        {"window": (20, 28), "stride": (20, 28)},  # tiles
        {"window": 17, "stride": 29},
        {"skip": 0.3},
        {"skip": 0.3, "weight": "logit", "cover": "mean"},
    ],
    ids=str,
)
def test_settings(options):
    if options.get("cutoff") == 0.5:
        with tl.counting() as counts:
            maps = tl.enhance("grad_cam", **SETTINGS | options)(classifier(), pictures())
        assert not maps.any() and counts["flat maps"] >= 2
        return
    check(classifier(), "grad_cam", pictures(), **SETTINGS | options)


@pytest.mark.parametrize("classes", [None, 4, [5, 0], torch.tensor([1, 2])], ids=str)
def test_classes_are_those_of_the_whole_image(classes):
    check(classifier(seed=1), "grad_cam", pictures(seed=1), classes, **SETTINGS)


def test_multi_label_networks():
    check(classifier(activation="sigmoid"), "grad_cam", pictures(), [6, 2], **SETTINGS)


def test_enhanced_vits_equal_their_equations():
    clf = tl.Classifier(networks.vit().double())
    x, options = pictures(2, 32, 32), dict(window=20, stride=7, cutoff=6)
    name = "transformer_attribution"
    ours = tl.enhance(name, **options)(clf, x, [1, 5])
    expected = literal(clf, name, x, [1, 5], base={}, **options)
    assert expected.amax((1, 2)).min() == 1
    assert oracle.relative_error(ours, expected).max() < 1e-9


@pytest.mark.parametrize("method", [tl.METHODS["grad_cam"], functools.partial(
    tl.METHODS["group_cam"], groups=4), "group_cam"])  # fmt: skip
def test_methods_are_names_functions_and_partials(method):
    name = "grad_cam" if method is tl.METHODS["grad_cam"] else "group_cam"
    options = {"groups": 4} if method == "group_cam" else {}
    clf, x = classifier(), pictures()
    expected = tl.enhance(name, **SETTINGS, **BASES[name])(clf, x)
    assert torch.equal(tl.enhance(method, **SETTINGS, **options)(clf, x), expected)


# Windows


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_windows_cover_every_pixel_and_none_outside(data):
    size = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    window = tuple(data.draw(st.integers(1, side)) for side in size)
    stride = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    corners = window_corners(size, window, stride)
    assert corners.tolist() == [list(c) for c in oracle_window.corners_of(size, window, stride)]
    assert len({tuple(c) for c in corners.tolist()}) == len(corners)
    assert (corners >= 0).all() and (corners + torch.tensor(window) <= torch.tensor(size)).all()
    assert corners[0].tolist() == [0, 0]
    assert (corners[-1] + torch.tensor(window)).tolist() == list(size)
    covered = fuse_windows(torch.ones(1, len(corners), *window), corners, size)
    if all(s <= w for s, w in zip(stride, window, strict=True)):
        assert covered.min() >= 1
    assert covered.sum() == len(corners) * window[0] * window[1]


def test_windows_are_taken_where_they_belong_and_put_back():
    x = images(3, 10, 13)
    corners, owners = torch.tensor([[0, 0], [4, 6], [5, 8]]), torch.tensor([2, 0, 0])
    found = take_windows(x, owners, corners, (5, 5))
    for window, i, (top, left) in zip(found, owners, corners, strict=True):
        assert torch.equal(window, x[i, :, top : top + 5, left : left + 5])
    fused = fuse_windows(found[:, 0][None], corners, (10, 13))
    assert fused[0, 9, 12] == found[2, 0, 4, 4] and fused[0, 0, 12] == 0
    assert fused[0, 6, 8] == found[1, 0, 2, 2] + found[2, 0, 1, 0]


def test_windows_of_all_images_share_full_passes():
    clf = classifier()
    sizes = []
    clf.network.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    x = pictures(3)
    with tl.counting() as counts:
        tl.enhance("grad_cam", **SETTINGS)(clf, x, [0, 1, 2], batch=8)
    windows = 3 * len(window_corners((40, 56), SETTINGS["window"], SETTINGS["stride"]))
    full = [8] * (windows // 8) + [windows % 8] * (windows % 8 > 0)
    assert sizes == [3] + full + full  # the images; weights; maps
    assert counts["forward images"] == sum(sizes) and counts["skipped windows"] == 0


@pytest.mark.parametrize("make", [
    lambda name: tl.enhance(name, **SETTINGS, **BASES[name]),
    lambda name: tl.sess(name, [40, 60], **BASES[name]),
], ids=["enhance", "sess"])  # fmt: skip
@pytest.mark.parametrize("name", ["grad_cam", "group_cam"])
def test_maps_do_not_depend_on_the_batch(make, name):
    clf, x, classes = classifier(), pictures(4), [0, 1, 2, 3]
    whole = make(name)(clf, x, classes)
    for batch in (1, 3, 100):
        split = make(name)(clf, x, classes, batch=batch)
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
    alone = make(name)(clf, x[[2]], 2)
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=1e-9)


def test_skipped_windows_are_counted_and_their_maps_are_zero():
    clf, x = classifier(), pictures()
    classes = clf.predict(x)
    corners = window_corners((40, 56), (24, 28), (11, 13))
    score = tl.methods.window.score_windows
    probability = score(clf, x, classes, corners, (24, 28), "probability")
    bar = probability.median().item()
    explained = []

    def spoilt(clf, images, classes=None):
        """Grad-CAM, and zero on windows below the bar."""
        maps = tl.METHODS["grad_cam"](clf, images, classes)
        explained.append(len(images))
        if len(explained) > 1:
            low = clf.scores(images, classes, "probability") < bar
            maps[low] = 0
        return maps

    with tl.counting() as counts:
        skipped = tl.enhance("grad_cam", **SETTINGS, skip=bar)(clf, x)
    below = int((probability < bar).sum())
    assert counts["skipped windows"] == below and 0 < below < probability.numel()
    expected = tl.enhance(spoilt, **SETTINGS)(clf, x)
    torch.testing.assert_close(skipped, expected, rtol=0, atol=1e-9)
    # The bar is a probability, whatever alpha is.
    with tl.counting() as counts:
        tl.enhance("grad_cam", **SETTINGS, skip=bar, weight="logit")(clf, x)
    assert counts["skipped windows"] == below
    # With all skipped S_0 is left, as often as windows cover it.
    whole = tl.METHODS["grad_cam"](clf, x)
    options = SETTINGS | dict(skip=1.0, cutoff=None, cover="mean")
    torch.testing.assert_close(tl.enhance("grad_cam", **options)(clf, x), whole)


# The filter


def test_the_ideal_filter_rings_and_the_gaussian_does_not():
    step = torch.zeros(1, 64, 64, dtype=torch.float64)
    step[:, 16:48] = 1
    ideal, gaussian = low_pass(step, 4, "ideal"), low_pass(step, 4, "gaussian")
    assert ideal.max() > 1.05 and ideal.min() < -0.05
    assert gaussian.max() <= 1 + 1e-9 and gaussian.min() >= -1e-9


@pytest.mark.parametrize("shape", [(16, 16), (15, 16), (16, 15), (13, 20)])
@pytest.mark.parametrize("kind", ["ideal", "gaussian"])
@pytest.mark.parametrize("cutoff", [1, 3, 5, 10])
def test_the_filter_is_the_masked_spectrum(shape, kind, cutoff):
    cam = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cutoff = min(cutoff, np.hypot(*shape) / 2)
    expected = oracle_window.low_pass(cam[0], cutoff, kind)
    torch.testing.assert_close(low_pass(cam, cutoff, kind)[0], expected, rtol=0, atol=1e-12)


# SESS


@pytest.mark.parametrize(
    "name, family",
    [("grad_cam", family) for family in FAMILIES] + [("group_cam", networks.Plain)],
)
@pytest.mark.parametrize("prefilter", [0.0, 0.5, 0.9])
def test_sess_equals_its_oracle(name, family, prefilter):
    clf, x = classifier(family), pictures()
    windows = 1 + 4 + 4  # at 40, 60 and 75 pixels
    with tl.counting() as counts:
        ours = tl.sess(name, [40, 60, 75], prefilter, **BASES[name])(clf, x, [1, 3])
    assert counts["skipped windows"] == 2 * int(windows * prefilter)
    expected = literal(clf, name, x, [1, 3], oracle_window.sess, sizes=[40, 60, 75], prefilter=prefilter)
    assert expected.amax((1, 2)).min() == 1
    assert oracle.relative_error(ours, expected).max() < 1e-9


def test_sizes_are_those_of_sess_and_partial_gives_the_method_its_own():
    given = []

    def scaled(clf, images, classes=None, *, sizes="default"):
        given.append((len(images), sizes))
        return images[:, 0].abs()

    clf, x = classifier(), pictures(1)
    tl.sess(scaled, sizes=[60])(clf, x, 0)
    tl.sess(functools.partial(scaled, sizes=[224, 324]), sizes=[60])(clf, x, 0)
    assert given == [(4, "default"), (4, [224, 324])]


def test_sess_has_122_windows_of_a_square_image():
    clf = tl.Classifier(random_network(networks.Residual), networks.Residual.layer)
    counted = []

    def explained(clf, images, classes=None):
        counted.append(tuple(images.shape[-2:]) + (len(images),))
        return images[:, 0].abs()

    tl.sess(explained)(clf, images(1, 224, 224), 0)
    assert {shape[:2] for shape in counted} == {(224, 224)}
    assert sum(shape[2] for shape in counted) == 122


def test_sess_of_a_vit():
    clf = tl.Classifier(networks.vit().double())
    x, name = pictures(2, 32, 32), "transformer_attribution"
    ours = tl.sess(name, [32, 48])(clf, x, [1, 5])
    expected = literal(clf, name, x, [1, 5], oracle_window.sess, base={}, sizes=[32, 48])
    assert oracle.relative_error(ours, expected).max() < 1e-9


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 41}, "does not fit an image of 40 x 56"),
        ({"window": (40, 57)}, "does not fit"),
        ({"window": 0}, "does not fit"),
        ({"stride": 0}, "stride is at least 1"),
        ({"stride": (4, -1)}, "stride is at least 1"),
        ({"cutoff": 0}, "cutoff lies above 0 and at 34"),
        ({"cutoff": -3}, "cutoff"),
        ({"cutoff": 35}, "cutoff"),
        ({"lowpass": "box"}, "low-pass"),
        ({"cover": "max"}, "cover"),
        ({"weight": "margin"}, "weight"),
        ({"skip": 1.5}, "skip"),
        ({"skip": -0.1}, "skip"),
        ({"window": 20.5}, "window is a whole number"),
        ({"stride": (1, 2, 3)}, "stride is a whole number"),
    ],
    ids=str,
)
def test_wrong_settings_say_so(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tl.enhance("grad_cam", **SETTINGS | options)(classifier(), pictures(1))


@pytest.mark.parametrize("options, message", [
    ({"sizes": [39]}, "SESS enlarges"), ({"sizes": []}, "SESS enlarges"),
    ({"prefilter": 1}, "prefilter"), ({"prefilter": -0.1}, "prefilter"),
])  # fmt: skip
def test_wrong_settings_of_sess_say_so(options, message):
    with pytest.raises(ValueError, match=message):
        tl.sess("grad_cam", **options)(classifier(), pictures(1))


@pytest.mark.parametrize("make", [tl.enhance, tl.sess])
@pytest.mark.parametrize("inner", [tl.enhance, tl.sess])
@pytest.mark.parametrize("wrap", [
    lambda m: m, functools.partial, lambda m: functools.partial(functools.partial(m), batch=2),
], ids=["bare", "partial", "twice"])  # fmt: skip
def test_windows_of_windows_are_refused(make, inner, wrap):
    with pytest.raises(ValueError, match="windows already"):
        make(wrap(inner("grad_cam")))


@pytest.mark.parametrize("make", [tl.enhance, tl.sess])
def test_unknown_methods(make):
    with pytest.raises(KeyError, match="no method is called 'gradcam'"):
        make("gradcam")
    with pytest.raises(TypeError, match="a name in METHODS or a function"):
        make(7)


# In a run


def test_runs_tell_settings_apart_and_know_them_again(tmp_path):
    fine = dict(window=16, stride=8, cutoff=6)
    makers = [
        lambda: tl.METHODS["grad_cam"],
        lambda: tl.enhance("grad_cam", **fine),
        lambda: tl.enhance("grad_cam", **fine | {"window": 20}),
        lambda: tl.enhance("grad_cam", **fine | {"stride": 9}),
        lambda: tl.enhance("grad_cam", **fine | {"cutoff": 7}),
        lambda: tl.enhance("grad_cam", **fine, lowpass="gaussian"),
        lambda: tl.enhance("grad_cam", **fine, cover="mean"),
        lambda: tl.enhance("grad_cam", **fine, weight="logit"),
        lambda: tl.enhance("grad_cam", **fine, skip=0.2),
        lambda: tl.enhance("xgrad_cam", **fine),
        lambda: tl.enhance("group_cam", **fine, groups=2),
        lambda: tl.enhance("group_cam", **fine, groups=3),
        lambda: tl.sess("grad_cam", [32, 40]),
        lambda: tl.sess("grad_cam", [32, 48]),
        lambda: tl.sess("grad_cam", [32, 40], prefilter=0.5),
    ]
    described = [str(tl.runs.key.describe(make())) for make in makers]
    assert len(set(described)) == len(makers)
    assert described == [str(tl.runs.key.describe(make())) for make in makers]
    assert all(" at 0x" not in text for text in described)

    def run():
        methods = {"plain": makers[0](), "enhanced": makers[1](), "SESS": makers[12]()}
        return test_runs.run(tmp_path, methods=methods, limit=3, metrics=("pointing_game", "fineness"))

    rows = run()
    assert rows["method"].unique().tolist() == ["plain", "enhanced", "SESS"]
    assert rows["effective_resolution"].notna().all() and len(list(tmp_path.iterdir())) == 1
    again = run()
    assert again.equals(rows) and len(list(tmp_path.iterdir())) == 1
