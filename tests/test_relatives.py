"""What came after the thesis's methods, against equations written out and against other libraries.

Where pytorch-grad-cam is compared, its maps are enlarged by OpenCV in float32: hence 1e-3.
"""

import networks
import pytest
import torch
import torch.nn.functional as F
from oracle_attention import blocks_of
from test_attention import deit
from test_peers import classifier, raw

import thesis_lib as tl
from thesis_lib import peers
from thesis_lib.data.registry import open_dataset
from thesis_lib.kernels import blur, min_max, resize
from thesis_lib.peers.base import lend
from thesis_lib.peers.from_pytorch_grad_cam import _of_three_sizes
from thesis_lib.runs.record import PLAN, relatives

for library in ("torchcam", "pytorch_grad_cam"):
    pytest.importorskip(library)
CLOSE = {"rtol": 0, "atol": 1e-3}
METHODS = peers.METHODS


@pytest.fixture(scope="module")
def double():
    return classifier(dtype=torch.float64)


@pytest.fixture(scope="module")
def image():
    return networks.images(1, 48, 40, dtype=torch.float64)


@pytest.fixture(scope="module")
def lite0():
    clf = tl.load_classifier("efficientnet_lite0")
    sample = open_dataset("photographs")[0]
    return clf, clf.normalise(sample.pixels[None])


def finished(small, image):
    """A map (h, w) as a method returns it: enlarged, in [0, 1]."""
    return min_max(resize(small[None, None], image.shape[-2:]))[:, 0]


def parts(clf, image, c):
    """Features (K, h, w), gradients of the class's logit, and the logits as a function of the features."""
    features, gradients, _, _ = clf.features_and_gradients(image, c)
    return features[0], gradients[0], lambda a: clf.network.head(clf.network.features[8](a[None]))[0]


# Weights of one formula


def test_hires_cam_and_layer_cam_are_their_equations(double, image):
    a, g, _ = parts(double, image, 3)
    hires = sum(g[k] * a[k] for k in range(len(a))).relu()
    layer = sum(g[k].relu() * a[k] for k in range(len(a))).relu()
    torch.testing.assert_close(METHODS["hires_cam"](double, image, 3), finished(hires, image), **CLOSE)
    torch.testing.assert_close(METHODS["layer_cam"](double, image, 3), finished(layer, image), **CLOSE)
    assert not torch.allclose(finished(hires, image), finished(layer, image), atol=0.1)


def test_layer_cam_is_torchcams():
    clf, x = classifier(), networks.images(2, 48, 40)
    expected = peers.torchcam("LayerCAM")(clf, x, [3, 5])
    torch.testing.assert_close(METHODS["layer_cam"](clf, x, [3, 5]), expected, rtol=0, atol=1e-4)


def test_cam_and_hires_cam_are_grad_cam_on_efficientnet_lite0(lite0):
    """Behind its pooling and its one linear layer a gradient is the same all over a channel."""
    expected = tl.METHODS["grad_cam"](*lite0)
    for name in ("cam", "hires_cam"):
        torch.testing.assert_close(METHODS[name](*lite0), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(METHODS["layer_cam"](*lite0), expected, atol=0.05)


def test_shapley_cam_is_its_equation(double, image):
    """H A by central differences of the gradient along the features."""
    a, _, head = parts(double, image, 3)

    def slope(a):
        a = a.clone().requires_grad_()
        logits = head(a)
        return torch.autograd.grad(logits[3] + logits.log_softmax(0)[3], a)[0]

    ha = (slope(a * (1 + 1e-5)) - slope(a * (1 - 1e-5))) / 2e-5
    weights = (slope(a) - ha / 2).mean((-2, -1))
    expected = sum(weights[k] * a[k] for k in range(len(a))).relu()
    assert ha.abs().max() > 0.01 * slope(a).abs().max(), "the Hessian has to matter"
    torch.testing.assert_close(METHODS["shapley_cam"](double, image, 3), finished(expected, image), **CLOSE)


def test_finer_cam_is_its_equation(double, image):
    a, _, head = parts(double, image, 3)
    a = a.clone().requires_grad_()
    logits = head(a)
    nearest = (logits - logits[3]).abs().argsort()[1:4].tolist()
    assert 3 not in nearest
    p = logits.softmax(0)
    score = sum(p[d] * (logits[3] - logits[d]) for d in nearest) / sum(p[d] for d in nearest)
    weights = torch.autograd.grad(score, a)[0].mean((-2, -1))
    expected = sum(weights[k] * a[k].detach() for k in range(len(a))).relu()
    torch.testing.assert_close(METHODS["finer_cam"](double, image, 3), finished(expected, image), **CLOSE)
    assert not torch.allclose(finished(expected, image), tl.METHODS["grad_cam"](double, image, 3), atol=0.1)


# Several layers, several sizes


def test_refine_cam_multiplies_maps_of_three_sizes(image):
    clf, x = classifier(), image.float()
    layers = _of_three_sizes(lend(clf), x)
    assert layers == ["features.1", "features.4", "features.7"]
    literal = torch.ones(1, 48, 40)
    for layer in layers:
        literal = literal * peers.pytorch_grad_cam("GradCAMPlusPlus")(tl.Classifier(clf.network, layer), x, 3)
    found = METHODS["refine_cam"](clf, x, 3)
    torch.testing.assert_close(found, min_max(literal), **CLOSE)
    assert not clf.network._forward_hooks


def test_refine_cam_on_other_networks(lite0):
    """One size, a module used twice; and a real network's sizes."""
    other = classifier(networks.Residual)
    assert _of_three_sizes(lend(other), networks.images(1, 48, 40)) == ["block"]
    clf, x = lite0
    assert _of_three_sizes(lend(clf), x)[-1] == clf.layer
    sizes = [tl.Classifier(clf.network, n).features(x)[0].shape[-1] for n in _of_three_sizes(lend(clf), x)]
    assert sizes == [28, 14, 7]


def test_refine_cam_is_torchcams(lite0):
    """With Layer-CAM, of whose formula both have the same."""
    torchcam, theirs = pytest.importorskip("torchcam.methods"), pytest.importorskip("pytorch_grad_cam")
    clf, x = lite0
    lent, layers, c = lend(clf), _of_three_sizes(lend(clf), x), int(clf.predict(x))
    with torchcam.RefineCAM(lent.network, layers, base_method=torchcam.LayerCAM) as cam:
        expected = cam(c, lent.network(x.clone().requires_grad_()), target_shape=(224, 224))[0]
    modules = [lent.network.get_submodule(layer) for layer in layers]
    target = theirs.utils.model_targets.ClassifierOutputTarget(c)
    found = theirs.RefineCAM(lent.network, modules, base_method=theirs.LayerCAM)(x.requires_grad_(), [target])
    # torchcam scales a layer's map before it enlarges it, pytorch-grad-cam before and behind.
    assert (torch.from_numpy(found) - min_max(expected)).abs().max() < 0.02


def test_sess_is_ours(lite0):
    """pytorch-grad-cam's SESS of Grad-CAM is an oracle for `tl.sess`, on a square picture.

    They differ by design in three things. Its windows are squares of the shorter side, ours have the picture's
    shape. Its weights are divided by the largest, a factor that scaling removes. It counts whatever is above 0, we
    what is above rounding errors: that alone shows here, as 0.002 in some hundred pixels of some pictures.
    """
    clf, x = lite0
    c = int(clf.predict(x))
    theirs = METHODS["sess"](clf, x, c, scales=3)
    ours = tl.sess("grad_cam", sizes=[224, 288, 352])(clf, x, c)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
    assert (ours - theirs).abs().mean() < 2e-5
    assert not torch.allclose(tl.sess("grad_cam", sizes=[224, 288])(clf, x, c), theirs, atol=0.1)


# Optimised for each picture


def test_opti_cam_is_its_equation(double, image):
    """Adam written out, and a sum over channels one by one."""
    a = double.features(image)[0][0]
    u, m, v = (torch.zeros(len(a), dtype=torch.float64) for _ in range(3))

    def combined(u):
        alpha = u.exp() / u.exp().sum()
        return sum(alpha[k] * a[k] for k in range(len(a)))

    def logit(u):
        big = F.interpolate(combined(u)[None, None], size=(48, 40), mode="bilinear", align_corners=False)
        return double.network(image * (big - big.min()) / (big.max() - big.min()))[0, 3]

    start = None
    for t in range(1, 9):
        leaf = u.clone().requires_grad_()
        score = logit(leaf)
        start = float(score.detach()) if start is None else start
        g = -torch.autograd.grad(score, leaf)[0]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = u - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    found = METHODS["opti_cam"](double, image, 3, steps=8)
    torch.testing.assert_close(found, finished(combined(u), image), rtol=0, atol=1e-6)
    with torch.no_grad():
        assert logit(u) > start + 0.01, "the masked picture has to gain"
    first = finished(a.mean(0), image)
    assert not torch.allclose(found, first, atol=0.01)


def test_sig_cam_is_its_equation(double, image):
    """Two steps, by loops over samples and neighbours; the noise is the same."""
    steps, samples, cells = 2, 3, 6
    a, g, _ = parts(double, image, 3)
    small = sum((g[k] * a[k]).mean() * a[k] for k in range(len(a))).relu()
    mask = 1 - min_max(F.interpolate(small[None, None], size=(cells, cells), mode="bilinear"))[0, 0]
    blurred = blur(image)

    def seen(mask, noise=0):
        big = F.interpolate(mask[None, None], size=(48, 40), mode="bilinear")
        return double.network(image * big + blurred * (1 - big) + noise).softmax(1)[0, 3]

    def terms(mask):
        down = sum((mask[i + 1, j] - mask[i, j]) ** 2 for i in range(cells - 1) for j in range(cells))
        across = sum((mask[i, j + 1] - mask[i, j]) ** 2 for i in range(cells) for j in range(cells - 1))
        return (1 - mask).abs().mean() + 20 * (down + across) / (cells * (cells - 1))

    start = float((terms(mask) + seen(mask)).detach())
    torch.manual_seed(0)
    for _ in range(steps):
        big = F.interpolate(mask[None, None], size=(48, 40), mode="bilinear")
        shown = image * big + blurred * (1 - big)
        noise = torch.randn(samples, 3, 48, 40).double() * 0.25 / (shown.max() - shown.min())
        leaf = mask.clone().requires_grad_()
        total = (
            terms(leaf) + sum(seen(leaf * s / samples, noise[s - 1]) for s in range(1, samples + 1)) / samples
        )
        slope = torch.autograd.grad(total, leaf)[0]
        with torch.no_grad():
            before, length = terms(mask) + seen(mask), 200.0
            while length >= 1e-5:
                new = (mask - length * slope).clamp(0, 1)
                if terms(new) + seen(new) <= before - 1e-4 * length * (slope**2).sum():
                    break
                length /= 5
            mask = (mask - length * slope).clamp(0, 1)
    found = METHODS["sig_cam"](double, image, 3, steps=steps, samples=samples, cells=cells)
    torch.testing.assert_close(found, finished(1 - mask, image), rtol=0, atol=1e-6)
    assert float((terms(mask) + seen(mask)).detach()) < start
    assert not torch.allclose(found, finished(small, image), atol=0.01)


def test_sig_cam_of_one_cell_and_of_one_sample(double, image):
    assert raw("sig_cam", double, image, 3, steps=1, samples=1, cells=1).shape == (1, 1, 1)


# Attention


@pytest.mark.parametrize("build", [networks.vit, deit, lambda: deit("vit_tiny_patch16_224")])
def test_legrad_is_its_equation(build):
    """Slopes by central differences: every entry of every attention matrix, raised and lowered."""
    clf = tl.Classifier(build().double())
    x = networks.images(1, 32, 32, dtype=torch.float64)
    network = clf.network
    norm = network.encoder.ln if hasattr(network, "encoder") else network.norm
    head = network.heads if hasattr(network, "heads") else network.head
    tokens = []
    first = network.encoder.layers[0] if hasattr(network, "encoder") else network.blocks[0]
    with first.register_forward_pre_hook(lambda module, args: tokens.append(args[0])), torch.no_grad():
        network.eval()(x)
        z, total = tokens[0][0], 0  # (L, E)
        for norm1, weight, bias, heads, projection, norm2, up, activation, down in blocks_of(network):
            size = z.shape[1] // heads
            q, k, v = F.linear(norm1(z), weight, bias).chunk(3, 1)
            columns = [slice(h * size, (h + 1) * size) for h in range(heads)]
            attention = torch.stack([(q[:, c] @ k[:, c].T / size**0.5).softmax(1) for c in columns])

            def leaves(attention, z=z, v=v, columns=columns, parts=(projection, norm2, up, activation, down)):
                projection, norm2, up, activation, down = parts
                mixed = torch.cat([a @ v[:, c] for a, c in zip(attention, columns, strict=True)], 1)
                middle = z + F.linear(mixed, *projection)
                return middle + F.linear(activation(up(norm2(middle))), *down)

            slopes = torch.zeros_like(attention)
            for place in torch.ones_like(attention).nonzero().tolist():
                ends = []
                for sign in (1, -1):
                    changed = attention.clone()
                    changed[tuple(place)] += sign * 1e-4
                    ends.append(head(norm(leaves(changed).mean(0)))[3])
                slopes[tuple(place)] = (ends[0] - ends[1]) / 2e-4
            total = total + slopes.clamp(min=0).mean((0, 1))
            z = leaves(attention)
    expected = finished(total[1:].unflatten(0, (4, 4)), x)
    torch.testing.assert_close(METHODS["legrad"](clf, x, 3), expected, rtol=0, atol=1e-5)


def test_legrad_is_torchcams():
    clf, x = tl.Classifier(networks.vit()), networks.images(2, 32, 32)
    blocks = list(lend(clf).network.encoder.layers)
    theirs = pytest.importorskip("torchcam.methods")
    for image, c in zip(x.split(1), (3, 5), strict=True):
        lent = lend(clf)
        blocks = list(lent.network.encoder.layers)
        with theirs.LeGrad(lent.network, blocks) as cam:
            lent.network(image)
            expected = cam(c, normalized=False)[0][0]
        found = METHODS["legrad"](clf, image, c)
        torch.testing.assert_close(found, finished(expected, image), rtol=0, atol=1e-4)


# Where they stand


def test_the_registry_tells_the_relatives():
    """Those that the thesis does not name; the plan records those that read feature maps."""
    (part,) = [part for part in PLAN if part.name == "relatives"]
    assert part.methods() == relatives()
    unnamed = {n: m for n, m in METHODS.items() if not m.thesis}
    assert {n for n in unnamed if n not in relatives()} == {"legrad"}
