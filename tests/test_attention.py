"""Attention methods against oracle_attention.py, and what must hold of any ViT."""

import copy

import networks
import oracle
import oracle_attention
import pytest
import torch
from networks import images, vit
from test_classifier import assert_same_state, state

import thesis_lib as tl
from thesis_lib.kernels import min_max
from thesis_lib.methods import open_vit, relevance

NAMES = list(oracle_attention.METHODS)


def deit(name="deit3_small_patch16_224", **settings):
    """timm's, tiny; DeiT III has a layer scale in every block."""
    timm = pytest.importorskip("timm")
    options = dict(depth=2, embed_dim=16, num_heads=2, img_size=32, patch_size=8, num_classes=7)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = timm.create_model(name, pretrained=False, **options | settings)
        return networks.liven_tokens(network)


NETWORKS = {
    "torchvision": vit,
    "hidden head": lambda: vit(1, representation_size=12),
    "layer scale": deit,
    "timm": lambda: deit("vit_tiny_patch16_224"),
}


def classifier(build=vit, dtype=torch.float64, **settings):
    return tl.Classifier(build().to(dtype), **settings)


def pictures(n=3, dtype=torch.float64, seed=0):
    return images(n, 32, 32, seed=seed, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_methods_equal_their_formulae(name, network, dtype, tolerance):
    clf = classifier(NETWORKS[network], dtype)
    x, classes = pictures(dtype=dtype), [0, 3, 6]
    ours = tl.METHODS[name](clf, x, classes)
    assert ours.shape == (3, 32, 32) and ours.dtype == dtype
    literal = oracle_attention.maps(name, clf.network, x, classes)
    assert oracle.relative_error(ours, literal).max() < tolerance


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_start_layer(layer):
    clf = classifier(lambda: vit(depth=3))
    x, name = pictures(), "transformer_attribution"
    ours = tl.METHODS[name](clf, x, 2, start_layer=layer)
    literal = oracle_attention.maps(name, clf.network, x, [2] * 3, start_layer=layer)
    assert oracle.relative_error(ours, literal).max() < 1e-9
    assert layer == 0 or not torch.allclose(ours, tl.METHODS[name](clf, x, 2), atol=1e-3)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_start_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match="start_layer is 0 to 1"):
        tl.METHODS["transformer_attribution"](classifier(), pictures(1), start_layer=layer)


@pytest.mark.parametrize("network", NETWORKS)
def test_relevance_is_kept_from_block_to_block(network):
    """1 at the logit is 1 before every block: biases take nothing, sums are scaled.

    Relevance of attention is half of what a block's product is given, and the values' the other
    half. What the product is given differs by block and image.
    """
    clf = classifier(NETWORKS[network])
    x = pictures()
    for i, c in enumerate([0, 3, 6]):
        parts = oracle_attention.analyse(clf.network, x[[i]], c)
        for entering, ra, rv in zip(parts[3], parts[2], parts[4], strict=True):
            assert entering.sum().item() == pytest.approx(1, abs=1e-5)
            assert ra.sum().item() == pytest.approx(rv.sum().item(), abs=1e-5)
    trace = open_vit.open_vit(clf, x, torch.tensor([0, 3, 6]))
    for i, found in enumerate(zip(*relevance.attention_relevance(trace), strict=True)):
        literal = oracle_attention.analyse(clf.network, x[[i]], [0, 3, 6][i])[2]
        for ours, theirs in zip(found, literal, strict=True):
            error = (ours - theirs).abs().max() / theirs.abs().max()
            assert error < 1e-9


def test_split_keeps_each_images_relevance():
    generator = torch.Generator().manual_seed(0)
    r, a, b = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    first, second = relevance._split(r, a, b)
    torch.testing.assert_close((first + second).sum((1, 2)), r.sum((1, 2)), rtol=1e-6, atol=1e-6)
    alone = relevance._split(r[[2]], a[[2]], b[[2]])
    torch.testing.assert_close(alone[0][0], first[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_maps_do_not_depend_on_the_batch(name, network):
    clf = classifier(NETWORKS[network])
    x, classes = pictures(5), [0, 1, 2, 3, 4]
    whole = tl.METHODS[name](clf, x, classes)
    for batch in (1, 2):
        split = tl.METHODS[name](clf, x, classes, batch=batch)
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)
    alone = tl.METHODS[name](clf, x[[3]], 3)
    torch.testing.assert_close(alone[0], whole[3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_matters_except_to_rollout(name):
    clf, x = classifier(), pictures(1)
    maps = torch.cat([tl.METHODS[name](clf, x, c) for c in range(7)])
    assert (maps.amax((1, 2)) == 1).all()
    spread = (maps - maps[0]).abs().max()
    assert spread < 1e-12 if name == "attention_rollout" else spread > 0.05
    predicted = int(clf.predict(x))
    assert torch.equal(tl.METHODS[name](clf, x)[0], maps[predicted])
    with pytest.raises(IndexError, match="7 classes"):
        tl.METHODS[name](clf, x, 7)


@pytest.mark.parametrize("name", NAMES)
def test_other_networks_are_refused(name):
    cnn = tl.Classifier(networks.random_network(networks.Plain), networks.Plain.layer)
    with pytest.raises(ValueError, match="VisionTransformer and in timm's ViT and DeiT, not in"):
        tl.METHODS[name](cnn, images(1, 40, 40))


@pytest.mark.parametrize("name", NAMES)
def test_a_vit_that_pools_its_tokens_is_refused(name):
    options = dict(global_pool="avg", class_token=True)
    pooled = tl.Classifier(deit("vit_tiny_patch16_224", **options).double())
    with pytest.raises(ValueError, match="not a plain ViT|timm's ViT"):
        tl.METHODS[name](pooled, pictures(1))


def ablate_attention(block):
    def without(module, args, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    attention = getattr(block, "self_attention", None) or block.attn
    return attention.register_forward_hook(without).remove


def ablate_mlp(block):
    return block.mlp.register_forward_hook(lambda module, args, output: output * 0).remove


def adapt(block):
    """As LoRA does: a linear layer in a wrapper that adds to it and shows the weights of the old one."""

    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias
            self.down = torch.nn.Parameter(torch.ones(1, base.in_features).to(base.weight) / base.in_features)

        def forward(self, x):
            return self.base(x) + x @ self.down.T

    parent, name = (block.mlp, "fc1") if hasattr(block, "attn") else (block.mlp, "0")
    old = getattr(parent, name)
    setattr(parent, name, Adapted(old))
    return lambda: setattr(parent, name, old)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["torchvision", "layer scale"])
@pytest.mark.parametrize("change", [ablate_attention, ablate_mlp, adapt])
def test_a_vit_that_is_changed_after_its_first_explanation_is_refused(name, network, change):
    clf, x = classifier(NETWORKS[network]), pictures(3)
    before = tl.METHODS[name](clf, x, 2)
    blocks = clf.network.encoder.layers if network == "torchvision" else clf.network.blocks
    undo = change(blocks[-1])
    for _ in range(2):
        with pytest.raises(ValueError, match="not a plain ViT"):
            tl.METHODS[name](clf, x, 2)
    undo()
    assert torch.equal(tl.METHODS[name](clf, x, 2), before)


def test_one_head_less_is_another_network():
    """One of four, in one of six blocks, which moves the logits by 2 % of the largest."""
    clf = tl.load_classifier("vit_cutouts", device="cpu")
    x = clf.normalise(tl.open_dataset("cutouts")[4].pixels[None])
    before = clf.logits(x)
    tl.METHODS["attention_rollout"](clf, x)
    block = clf.network.encoder.layers[3]
    mixing = block.self_attention.out_proj.weight
    weight, bias = mixing[:, 32:64].detach().clone(), torch.zeros(mixing.shape[0])
    mixed = open_vit.open_vit(clf, x).states[3].mixed[..., 32:64].detach()
    block.self_attention.register_forward_hook(
        lambda module, args, out: (out[0] - torch.nn.functional.linear(mixed, weight, bias), *out[1:])
    )
    moved = (clf.logits(x) - before).abs().max() / before.abs().max()
    assert 0.01 < moved < 0.03
    with pytest.raises(ValueError, match="not a plain ViT"):
        tl.METHODS["attention_rollout"](clf, x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", ["head", "block"])
@pytest.mark.parametrize("part", [torch.nn.Dropout, torch.nn.BatchNorm1d])
def test_everything_runs_in_eval_mode_and_the_mode_comes_back(name, position, part):
    """A Dropout or a BatchNorm, in the head or in a block, of a network in train mode."""
    network, x = vit(1, representation_size=12).double(), pictures(4)
    if position == "head":
        extra = part(0.5) if part is torch.nn.Dropout else part(12)
        network.heads.act = torch.nn.Sequential(torch.nn.Tanh(), extra)
    elif part is torch.nn.Dropout:
        network.encoder.layers[0].mlp[1] = torch.nn.Sequential(torch.nn.GELU(), torch.nn.Dropout(0.5))
    else:  # over the tokens
        network.encoder.layers[1].ln_2 = torch.nn.BatchNorm1d(17)
    network.double()
    expected = tl.METHODS[name](tl.Classifier(copy.deepcopy(network).eval()), x, 2)
    network.train()
    clf, before = tl.Classifier(network), state(network)
    for batch in (None, 1):
        found = tl.METHODS[name](clf, x, 2, batch=batch)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    opened = [open_vit.open_vit(clf, x, 2).logits for _ in range(2)]
    assert torch.equal(*opened)
    torch.testing.assert_close(opened[0].detach(), clf.logits(x))
    assert_same_state(network, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoilt", [0, 1])
def test_images_that_are_not_finite_are_refused(name, spoilt):
    x = pictures(2)
    x[spoilt, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="hold NaN"):
        tl.METHODS[name](classifier(), x, 0)


@pytest.mark.parametrize("name", NAMES)
def test_any_state_of_the_network_gives_the_same_maps_and_is_kept(name):
    clf, x = classifier(), pictures(2)
    expected = tl.METHODS[name](clf, x)
    network = copy.deepcopy(clf.network).train()
    for frozen in (False, True):
        network.requires_grad_(not frozen)
        other, before = tl.Classifier(network), state(network)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                maps = tl.METHODS[name](other, x.clone())
            torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
            assert not maps.requires_grad
        assert_same_state(network, before)


@pytest.mark.parametrize("ours, theirs", [("grad_cam", "GradCAM"), ("xgrad_cam", "XGradCAM")])
def test_cams_of_tokens_equal_pytorch_grad_cam(ours, theirs):
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    clf, x = classifier(dtype=torch.float32), pictures(dtype=torch.float32)
    classes = [2, 0, 6]
    with getattr(peer, theirs)(
        clf.network, [clf.network.get_submodule(clf.layer)],
        reshape_transform=lambda tokens: tokens[:, 1:].mT.unflatten(2, (4, 4)),
    ) as cam:  # fmt: skip
        maps = torch.from_numpy(cam(x, [ClassifierOutputTarget(c) for c in classes]))
    found = tl.METHODS[ours](clf, x, classes)
    assert found.max() == 1
    torch.testing.assert_close(found, min_max(maps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "score_cam"])
def test_cam_methods_equal_their_equations_on_tokens(name):
    """oracle.py on tokens: through a network whose layer gives them as maps."""

    class Maps(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.maps = norm, torch.nn.Identity()

        def forward(self, x):
            tokens = self.norm(x)
            maps = self.maps(tokens[:, 1:].mT.unflatten(2, (4, 4)))
            return torch.cat([tokens[:, :1], maps.flatten(2).mT], 1)

    clf = classifier()
    network = copy.deepcopy(clf.network)
    network.encoder.layers[-1].ln_1 = Maps(network.encoder.layers[-1].ln_1)
    forward = oracle.Forward(network, f"{clf.layer}.maps")
    x, classes = pictures(), [2, 0, 6]
    ours = tl.METHODS[name](clf, x, classes)
    literal = oracle.maps(forward, name, x, classes)
    assert literal.max() == 1
    assert oracle.relative_error(ours, literal).max() < 1e-9
