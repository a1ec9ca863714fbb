"""Networks as people have them: families, wrappers, number types, surroundings.

Each line of a table is a situation and what is right in it: Grad-CAM equal to one that is written out below
on the bare network, in ordinary float32; or one sentence before anything is computed. A report of a wrong map
becomes a line here.
"""

import collections
import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import networks
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import thesis_lib as tl
from thesis_lib.layers import find_layer, layout

SWIN = dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 3, 4))

# How the explained layer's output becomes maps (N, K, h, w).
READ = {
    "first": lambda output: output,
    "last": lambda output: output.permute(0, 3, 1, 2),
    "tokens": lambda output: output.transpose(1, 2).unflatten(2, (int(output.shape[1] ** 0.5), -1)),
    "behind 1": lambda output: READ["tokens"](output[:, 1:]),
    "behind 2": lambda output: READ["tokens"](output[:, 2:]),
    "behind 5": lambda output: READ["tokens"](output[:, 5:]),
}
# network of timm: (its settings, the pictures' side, the layer that is explained, how it is read)
TABLE = {
    "swin_tiny_patch4_window7_224": (SWIN | dict(img_size=56, patch_size=2, window_size=7), 56, "norm", "last"),
    "swinv2_tiny_window8_256": (SWIN | dict(img_size=64, window_size=2), 64, "norm", "last"),
    "swinv2_cr_tiny_224": (SWIN | dict(img_size=64, window_size=2), 64, "stages.3", "first"),
    "maxvit_rmlp_pico_rw_256": (dict(img_size=64), 64, "norm", "first"),
    "coatnet_pico_rw_224": (dict(img_size=64), 64, "norm", "first"),
    "convnext_atto": (dict(depths=(1, 1, 1, 1)), 96, "stages.3.blocks.0", "first"),
    "poolformer_s12": ({}, 96, "stages.3.blocks.1", "first"),
    "regnetx_002": ({}, 64, "s4.b7.act3", "first"),
    "eva02_tiny_patch14_224": (dict(depth=2, img_size=56), 56, "blocks.1", "behind 1"),
    "flexivit_small": (dict(depth=2, embed_dim=48, num_heads=2, img_size=64), 64, "blocks.1.norm1", "behind 1"),
    "deit_tiny_distilled_patch16_224": (dict(depth=2, img_size=64), 64, "blocks.1.norm1", "behind 2"),
    "vit_tiny_patch16_224": (dict(depth=2, img_size=64, reg_tokens=4), 64, "blocks.1.norm1", "behind 5"),
    "vit_base_patch16_siglip_224": (
        dict(depth=2, embed_dim=48, num_heads=2, img_size=64), 64, "norm", "tokens",
    ),
    "mixer_s32_224": (dict(img_size=128), 128, "norm", "tokens"),
    "resmlp_12_224": (dict(img_size=64), 64, "norm", "tokens"),
    "cait_xxs24_224": (dict(depth=2, img_size=64), 64, "blocks_token_only.1.norm1", "behind 1"),
    "xcit_nano_12_p16_224": (dict(depth=2, img_size=64), 64, "cls_attn_blocks.1.norm1", "behind 1"),
    "efficientformer_l1": (dict(depths=(1, 1, 1, 2)), 224, "norm", "tokens"),
    "tresnet_m": (dict(layers=(1, 1, 1, 1)), 64, "body.layer4.0.act", "first"),  # its first convolution has 48 channels
}  # fmt: skip


def build(name):
    settings, side, layer, reading = TABLE[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=7, **settings).eval()
        for parameter in network.parameters():
            if parameter.ndim > 1:  # as initialised, many give nearly the same logits for all
                nn.init.normal_(parameter, 0, 0.7 * parameter[0].numel() ** -0.5)
    return network, networks.images(2, side, side), layer, READ[reading]


def literal(network, x, layer, read, c):
    """Grad-CAM (equations 2-10 and 2-11), by back-propagation through the whole bare network."""
    kept = []

    def keep(module, args, output):
        kept.append(output)

    with torch.enable_grad(), network.get_submodule(layer).register_forward_hook(keep):
        logits = network(x.requires_grad_())
        (gradient,) = torch.autograd.grad(logits[:, c].sum(), kept[0])
    maps, gradients = read(kept[0].detach()), read(gradient)
    cam = (maps * gradients.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return ((cam - low) / (high - low)).nan_to_num()  # a flat map is zero


@pytest.mark.parametrize("name", TABLE)
def test_a_network_whose_layout_only_its_family_knows(name):
    network, x, layer, read = build(name)
    clf = tl.Classifier(copy.deepcopy(network))
    assert clf.layer == layer
    spread = []
    for c in (0, 3, 4):
        expected = literal(network, x, layer, read, c)
        torch.testing.assert_close(tl.METHODS["grad_cam"](clf, x, c), expected, atol=2e-3, rtol=0)
        spread.append(expected.std())
    assert max(spread) > 0.05


def test_a_chosen_layer_is_read_by_the_images_shape():
    network, _, _, _ = build("swin_tiny_patch4_window7_224")
    clf = tl.Classifier(network, "layers.1")
    assert clf.features(networks.images(2, 56, 56))[0].shape == (2, 48, 14, 14)
    with pytest.raises(
        ValueError, match="layer 'layers.0.blocks.0.attn' cannot be explained: it gives 32 maps for 2"
    ):
        tl.METHODS["grad_cam"](tl.Classifier(network, "layers.0.blocks.0.attn"), networks.images(2, 56, 56))


@pytest.mark.parametrize(
    "shape, images, right",
    [
        ((2, 768, 7, 7), (224, 224), "channels first"),
        ((2, 7, 7, 768), (224, 224), "channels last"),
        ((2, 7, 14, 768), (224, 448), "channels last"),
        ((2, 14, 7, 768), (448, 224), "channels last"),
        ((2, 768, 14, 7), (448, 224), "channels first"),
        ((2, 7, 7, 8), (224, 224), "channels last"),  # only so is the shape exactly the image's
        ((2, 8, 7, 7), (224, 224), "channels first"),
        ((2, 7, 7, 7), (224, 224), "channels first"),  # nothing can tell
        ((2, 512, 7, 10), (224, 300), "channels first"),  # rounded
        ((2, 64, 4, 24), (224, 1000), "channels first"),  # unpadded convolutions took a cell or two
        ((2, 64, 1, 1), (224, 300), "channels first"),
        ((2, 196, 64), (224, 224), "tokens"),
        ((2, 1 + 4 * 6, 64), (64, 96), "tokens"),
        ((392, 768, 7, 7), (224, 224), "392 maps for 2 images"),
        ((197, 2, 64), (224, 224), "197 maps for 2 images"),  # tokens before images
        ((2, 60, 196), (224, 224), "do not form a grid"),  # tokens last
        ((2, 12, 197, 64), (224, 224), "not laid out as an image of 224 x 224"),  # heads of attention
        ((2, 768), (224, 224), "neither feature maps nor tokens"),
        ((2, 64, 4, 7, 7), (224, 224), "neither feature maps nor tokens"),
    ],
)
def test_what_an_output_is_can_be_told_from_its_shape(shape, images, right):
    if right in ("channels first", "channels last", "tokens"):
        assert layout(shape, (2, 3, *images)) == right
    else:
        with pytest.raises(ValueError, match=right):
            layout(shape, (2, 3, *images))


def test_a_layer_that_can_be_read_two_ways_says_which_was_taken():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    clf = tl.Classifier(network)
    with pytest.warns(
        UserWarning, match="8 x 8 x 8 maps of layer '1' can be read two ways: the channels are .* first"
    ):
        clf.features(networks.images(2, 64, 64))
    # What was seen at one size holds for the others, where the shape alone would say otherwise.
    assert clf.features(networks.images(2, 64, 72))[0].shape == (2, 8, 8, 9)


def test_of_one_classifier_the_layout_is_the_same_at_every_size():
    network = networks.random_network(networks.Residual)  # 12 maps
    clf = tl.Classifier(network, "block")
    for height, width in [(40, 48), (56, 68), (48, 56), (48, 68)]:
        assert clf.features(networks.images(1, height, width))[0].shape[1] == 12


# Wrappers, number types, surroundings. Each makes another network or context of the same numbers.


def half(network):
    return network.to(torch.bfloat16)


class LoRA(nn.Module):
    """A linear layer with a low-rank change beside it, as PEFT has it."""

    def __init__(self, linear, rank=2):
        super().__init__()
        self.base = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def lora(network):
    blocks = network.blocks if hasattr(network, "blocks") else network.layers[-1].blocks
    blocks[-1].mlp.fc1 = LoRA(blocks[-1].mlp.fc1)
    return network


def hooked(network):
    next(network.children()).register_forward_hook(lambda module, args, output: output * 1.5)
    return network


def checkpointed(network):
    network.set_grad_checkpointing()
    return network


def normed(network):
    """Weights that are computed when they are used."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    parametrizations.weight_norm(linear)
    return network


def inside_compiled(network):
    return nn.Sequential(nn.Identity(), torch.compile(network, backend="eager"))


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def part_compiled(network):
    blocks = network.blocks if hasattr(network, "blocks") else network.layers[-1].blocks
    blocks[-1].compile(backend="eager")
    return network


WRAPPERS = {
    "Sequential": (lambda n: nn.Sequential(nn.Identity(), n), "1."),
    "DataParallel": (nn.DataParallel, "module."),
    "compiled": (lambda n: torch.compile(n, backend="eager"), "_orig_mod."),
    "compiled, in a Sequential": (inside_compiled, "1._orig_mod."),
    "compiled in place": (compiled_in_place, ""),
    "a compiled block": (part_compiled, ""),
    "float64": (lambda n: n.double(), ""),
    "bfloat16": (half, ""),
    "float16": (lambda n: n.half(), ""),
    "frozen": (lambda n: n.requires_grad_(False), ""),
    "train mode": (lambda n: n.train(), ""),
    "hooks": (hooked, ""),
    "LoRA": (lora, ""),
    "gradient checkpoints": (checkpointed, ""),
    "weight norm": (normed, ""),
    "channels_last": (lambda n: n.to(memory_format=torch.channels_last), ""),
}
WRAPPED = {
    "vit_tiny_patch16_224": "a ViT",
    "swin_tiny_patch4_window7_224": "channels last",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_network_in_a_wrapper_is_explained_at_the_same_layer(name, wrapper):
    network, x, layer, read = build(name)
    wrap, prefix = WRAPPERS[wrapper]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bare = wrap(copy.deepcopy(network)).eval() if not prefix else copy.deepcopy(network)
        torch.manual_seed(1)
        clf = tl.Classifier(wrap(network))
    assert clf.layer == prefix + layer
    low = wrapper in ("bfloat16", "float16")
    x = x.double() if wrapper == "float64" else x
    expected = literal(bare.float() if low else bare, x, layer, read, 3)
    ours = tl.METHODS["grad_cam"](clf, x, 3)
    assert ours.dtype == (torch.float64 if wrapper == "float64" else torch.float32)
    torch.testing.assert_close(ours, expected.to(ours.dtype), atol=0.2 if low else 2e-3, rtol=0)
    assert clf.logits(x).dtype == ours.dtype


@pytest.mark.parametrize(
    "wrap", [lambda n: nn.Sequential(nn.Identity(), n), nn.DataParallel], ids=["Sequential", "DataParallel"]
)
@pytest.mark.parametrize("method", tl.METHODS.of("transformer"))
def test_attention_of_a_vit_in_a_wrapper_is_that_of_the_vit(wrap, method):
    vit, x = networks.vit(), networks.images(2, 32, 32)
    bare, wrapped = tl.Classifier(vit), tl.Classifier(wrap(vit))
    assert torch.equal(tl.METHODS[method](wrapped, x, 3), tl.METHODS[method](bare, x, 3))
    changed = tl.Classifier(nn.Sequential(vit, nn.Linear(7, 7)))
    with pytest.raises(ValueError, match="is not a plain ViT"):
        tl.METHODS[method](changed, x, 3)


CONTEXTS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "a graph": torch.enable_grad,
    "deterministic algorithms": lambda: _deterministic(),
    "anomaly detection": lambda: torch.autograd.detect_anomaly(check_nan=False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_surroundings_do_not_change_what_is_computed(context, kind):
    if kind == "convolutional":
        clf, x = tl.Classifier(networks.random_network(networks.Plain), "features.7"), networks.images(2)
        settings = {"groups": 4}, {"groups": 4, "sizes": [48, 56]}, {"sizes": [48, 56]}
        runs = {
            "grad_cam": {},
            "score_cam": {},
            "group_cam": settings[0],
            "msg_cam": settings[1],
            "cameras": settings[2],
        }
    else:
        clf, x = tl.Classifier(networks.vit()), networks.images(2, 32, 32)
        runs = {name: {} for name in ("grad_cam", *tl.METHODS.of("transformer"))}
    x.requires_grad_()
    enhanced = tl.enhance("grad_cam", window=24, stride=8) if kind == "convolutional" else None
    masks = torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool)
    masks[:, 4:20, 4:20] = True

    def everything():
        maps = {name: tl.METHODS[name](clf, x, 3, **settings) for name, settings in runs.items()}
        if enhanced:
            maps["enhanced"] = enhanced(clf, x, 3)
        curves = tl.insertion_deletion(clf, x.detach(), maps["grad_cam"], step=256)
        hits, _ = tl.pointing_game(maps["grad_cam"], masks, tolerance=5)
        features, gradients, logits, _ = clf.features_and_gradients(x, 3)
        return [
            *maps.values(),
            curves.insertion,
            curves.deletion,
            hits,
            features,
            gradients,
            logits,
            clf.probabilities(x),
        ]

    expected = everything()
    with CONTEXTS[context]():
        found = everything()
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == right.dtype and not ours.requires_grad
        torch.testing.assert_close(ours, right, atol=1e-5, rtol=0)


class _deterministic:
    def __enter__(self):
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error):
        torch.use_deterministic_algorithms(False)


def test_one_classifier_in_several_threads():
    """The mode that one thread gives back, and its hooks, are not seen by another."""
    clf, x = tl.Classifier(networks.random_network(networks.Plain), "features.7"), networks.images(12)
    clf.network.train()
    images = x.split(1)
    right = [
        (clf.logits(i), tl.METHODS["grad_cam"](clf, i, 3), tl.METHODS["group_cam"](clf, i, 3, groups=4))
        for i in images
    ]

    def work(k):
        i = images[k]
        own = clf.logits(i), tl.METHODS["grad_cam"](clf, i, 3), tl.METHODS["group_cam"](clf, i, 3, groups=4)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, right[k], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert collections.Counter(pool.map(work, list(range(12)) * 6)) == {True: 72}
    assert all(module.training for module in clf.network.modules())


def test_several_classifiers_of_one_network_in_several_threads():
    network, images = networks.random_network(networks.Residual).train(), networks.images(6).split(1)
    classifiers = [tl.Classifier(network, layer) for layer in ("stem", "block")]
    right = [[clf.features(i)[0] for i in images] for clf in classifiers]

    def work(k):
        return torch.allclose(
            classifiers[k % 2].features(images[k // 2 % 6])[0], right[k % 2][k // 2 % 6], atol=1e-5
        )

    with ThreadPoolExecutor(4) as pool:
        assert collections.Counter(pool.map(work, range(96))) == {True: 96}


# One sentence, before anything is computed.


def one_output(activation):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    return tl.Classifier(network, activation=activation)


@pytest.mark.parametrize("call", ["logits", "probabilities", "predict", "grad_cam", "group_cam", "score_cam"])
def test_a_softmax_over_one_output_is_no_score(call):
    x = networks.images(2, 64, 64)
    with pytest.raises(ValueError, match='one output.*use activation="sigmoid"'):
        (
            lambda: (
                getattr(one_output("softmax"), call, None)
                or (lambda x: tl.METHODS[call](one_output("softmax"), x))
            )
        )()(x)
    clf = one_output("sigmoid")
    torch.testing.assert_close(clf.probabilities(x), clf.network(x).sigmoid())
    assert clf.predict(x).tolist() == [0, 0]


@pytest.mark.parametrize("last, activation", [(nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid")])
def test_a_network_that_returns_probabilities_is_warned_of_once(last, activation):
    network, x = networks.random_network(networks.Plain), networks.images(4)
    clf = tl.Classifier(nn.Sequential(network, last), "0.features.7", activation=activation)
    with pytest.warns(
        UserWarning, match=f"look like probabilities, and get another {activation}: give the network"
    ):
        clf.logits(x)
    with warnings.catch_warnings(action="error"):
        clf.logits(x)
        tl.Classifier(network, "features.7", activation=activation).logits(x)
    # The logarithm of a softmax has the same softmax.
    logs = tl.Classifier(nn.Sequential(network, nn.LogSoftmax(1)), "0.features.7")
    torch.testing.assert_close(logs.probabilities(x), network(x).softmax(1))


@pytest.mark.parametrize(
    "network, error, message",
    [
        (lambda n: torch.jit.script(n), ValueError, "scripted or traced network.*give the nn.Module"),
        (lambda n: torch.jit.trace(n, networks.images(1)), ValueError, "scripted or traced network"),
        (
            lambda n: nn.Sequential(nn.Identity(), torch.jit.script(n)),
            ValueError,
            "scripted or traced network",
        ),
        (lambda n: n.forward, TypeError, "a torch.nn.Module, not method"),
        (lambda n: n.state_dict(), TypeError, "a torch.nn.Module, not OrderedDict"),
        (lambda n: "resnet18", TypeError, "a torch.nn.Module, not str"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_network_to_explain(network, error, message):
    plain = networks.random_network(networks.Plain)
    for layer in (None, "features.7"):
        with pytest.raises(error, match=message):
            tl.Classifier(network(plain), layer)


def of_one_size():
    return nn.Sequential(nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 28 * 28, 7))


@pytest.mark.parametrize(
    "name, side, other",
    [
        (of_one_size, 224, 324),  # RuntimeError: shapes cannot be multiplied
        ("swinv2_tiny_window8_256", 64, 96),  # AssertionError
        ("maxvit_rmlp_pico_rw_256", 64, 96),
        ("vit_tiny_patch16_224", 64, 96),
    ],
)
def test_a_network_of_one_size_says_so_at_another(name, side, other):
    network = name() if callable(name) else build(name)[0]
    clf = tl.Classifier(network)
    for x in (
        networks.images(1, side, side),
        networks.images(1, other, other),
        networks.images(1, side, side),
    ):
        if x.shape[-1] == side:
            assert tl.METHODS["grad_cam"](clf, x, 3).isfinite().all()
        else:
            with pytest.raises(ValueError, match=f"the network refuses images of {other} x {other}"):
                clf.logits(x)
            with pytest.raises(ValueError, match=f"the network refuses images of {other} x {other}"):
                tl.METHODS["msg_cam"](clf, networks.images(1, side, side), 3, sizes=[side, other], groups=4)


def test_a_fault_that_is_not_about_the_images_stays_what_it_is():
    """Out of memory, say, which a run answers with a smaller batch."""
    network = networks.random_network(networks.Plain)
    clf, x = tl.Classifier(network, "features.7"), networks.images(1)
    for error in (torch.OutOfMemoryError("full"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")):
        with network.register_forward_hook(lambda *a, error=error: (_ for _ in ()).throw(error)):
            with pytest.raises(type(error), match=str(error)):
                clf.logits(x)
    clf.logits(x)
    with network.register_forward_hook(lambda *a: (_ for _ in ()).throw(RuntimeError("sudden"))):
        with pytest.raises(RuntimeError, match="sudden"):  # this size has passed
            clf.logits(x)


def test_a_layer_whose_first_axis_is_not_the_images_is_passed_over():
    class Patches(nn.Module):
        """As TNT: patches of the image in a batch of their own, before tokens of the whole."""

        def __init__(self):
            super().__init__()
            self.cut, self.inner = nn.Unfold(16, stride=16), nn.Conv2d(3, 8, 3, padding=1)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x):
            patches = self.cut(x).mT.reshape(-1, 3, 16, 16)
            tokens = self.inner(patches).mean((2, 3)).reshape(len(x), -1, 8)
            return self.head(self.norm(tokens).mean(1))

    clf, x = tl.Classifier(Patches()), networks.images(3, 64, 64)
    assert clf.layer == "norm" and tl.METHODS["grad_cam"](clf, x, 1).shape == (3, 64, 64)
    with pytest.raises(ValueError, match="48 maps for 3 images"):
        tl.METHODS["grad_cam"](tl.Classifier(Patches(), "inner"), x, 1)


def test_a_layer_that_decides_nothing_is_passed_over():
    class Beside(networks.Plain):
        def __init__(self):
            super().__init__()
            self.beside = nn.Conv2d(13, 4, 1)

        def forward(self, x):
            x = self.features(x)
            self.beside(x)  # an auxiliary output, say, that is thrown away
            return self.head(x)

    assert find_layer(networks.random_network(Beside)) == "features.7"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_networks_of_other_channels(channels):
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 7, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    clf = tl.Classifier(network, mean=[0.5] * channels, std=[0.5] * channels)
    assert clf.layer == "1"
    x = torch.rand(2, channels, 96, 96)
    assert tl.METHODS["grad_cam"](clf, clf.normalise(x)).shape == (2, 96, 96)


def test_categories_that_are_not_the_outputs():
    network, x = networks.random_network(networks.Plain), networks.images(1)
    with pytest.raises(ValueError, match="3 categories for a network of 7 outputs"):
        tl.Classifier(network, "features.7", categories=["a", "b", "c"]).logits(x)
