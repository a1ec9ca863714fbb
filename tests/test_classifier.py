import copy
import json

import networks
import numpy as np
import oracle
import pytest
import torch
import torchvision
from networks import FAMILIES, images, random_network
from torch import nn
from torch.utils.checkpoint import checkpoint

import thesis_lib as tl
from thesis_lib.layers import find_layer, token_grid
from thesis_lib.methods.base import explainer


def classifier(family=networks.Plain, seed=0, **settings):
    return tl.Classifier(random_network(family, seed), family.layer, **settings)


def state(network):
    """Everything of a network that must come back as it was given."""
    return (
        {name: (p.clone(), p.requires_grad, p.grad) for name, p in network.named_parameters()},
        {name: b.clone() for name, b in network.named_buffers()},
        {name: m.training for name, m in network.named_modules()},
        {name: len(m._forward_hooks) for name, m in network.named_modules()},
    )


def assert_same_state(network, before):
    after = state(network)
    for name, (value, requires_grad, grad) in before[0].items():
        assert torch.equal(value, after[0][name][0]) and grad is None, name
        assert (requires_grad, grad) == after[0][name][1:], name
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    assert before[2:] == after[2:]


# Features and gradients


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_gradients_of_the_tail_equal_back_propagation_through_everything(family, dtype, tolerance, score):
    clf = classifier(family)
    clf.network.to(dtype)
    x = images(3, 40, 56, dtype=dtype)
    features, gradients, logits, classes = clf.features_and_gradients(x, [1, 6, 3], score)
    assert features.is_contiguous() and gradients.is_contiguous()
    forward = oracle.Forward(clf.network, family.layer)
    for i, c in enumerate([1, 6, 3]):
        a, g = forward.features_and_gradients(x[[i]].double(), c)
        if score == "probability":  # dp_c/dA = p_c (dl_c/dA - sum_j p_j dl_j/dA)
            p = forward.probabilities(x[[i]].double())
            each = [forward.features_and_gradients(x[[i]].double(), j)[1] for j in range(7)]
            g = p[c] * (g - sum(p[j] * each[j] for j in range(7)))
        for ours, literal in [(features[i], a), (gradients[i], g)]:
            error = (ours - literal).abs().max() / literal.abs().max()
            assert error < tolerance
        torch.testing.assert_close(logits[i].double(), forward(x[[i]].double()), atol=1e-4, rtol=0)
    assert classes.tolist() == [1, 6, 3]


def test_a_network_in_bfloat16_takes_and_gives_float32():
    clf, x = tl.load_classifier("vgg19_cutouts", device="cpu"), images(4, 224, 224)
    low = tl.load_classifier("vgg19_cutouts", device="cpu", bf16=True)
    assert {p.dtype for p in low.network.parameters()} == {torch.bfloat16}
    pair = low.features_and_gradients(x, 3), clf.features_and_gradients(x, 3)
    for ours, exact in zip(*pair, strict=True):
        assert ours.dtype == exact.dtype
        if ours.is_floating_point():
            assert (ours - exact).norm() < 0.2 * exact.norm()  # 8 bits, and max-pooling chooses
    for name in ("msg_cam", "score_cam"):
        ours, exact = (tl.METHODS[name](c, x[:1], 3) for c in (low, clf))
        assert ours.dtype == torch.float32 and (ours - exact).abs().mean() < 0.02
    with pytest.raises(ValueError, match="bfloat16"):
        vit = tl.load_classifier("vit_cutouts", device="cpu", bf16=True)
        tl.METHODS["transformer_attribution"](vit, x)
    assert tl.METHODS["grad_cam"](vit, x).isfinite().all()


def test_one_forward_pass_with_a_graph_for_the_tail_only():
    clf = classifier()
    seen = []
    for name in ["features.0", "features.6", "head.2"]:
        module = clf.network.get_submodule(name)
        module.register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
    with tl.counting() as counts:
        clf.features_and_gradients(images(3))
    assert seen == [False, False, True]
    assert counts["forward images"] == 3


@pytest.mark.parametrize("family", [networks.Dense, networks.Residual])
def test_features_are_those_of_the_layer_despite_in_place_work_behind_it(family):
    clf = classifier(family)
    x = images(2)
    features, logits = clf.features(x)
    a, _, expected, _ = clf.features_and_gradients(x)
    assert torch.equal(features, a) and torch.equal(logits, expected)
    if family is networks.Dense:
        assert (features < 0).any()  # before the in-place ReLU
    torch.testing.assert_close(logits, clf.network(x))


def test_classes_default_to_the_predicted_ones():
    clf = classifier()
    x = images(5)
    expected = clf.network(x).argmax(1)
    assert torch.equal(clf.features_and_gradients(x)[3], expected)
    assert torch.equal(clf.predict(x), expected)


@pytest.mark.parametrize("classes", [4, [4, 4, 4], (4, 4, 4), torch.tensor([4, 4, 4])])
def test_classes_are_an_index_or_one_for_each_image(classes):
    clf = classifier()
    assert clf.features_and_gradients(images(3), classes)[3].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "classes, error, message",
    [
        (7, IndexError, "7 classes, 0 to 6"),
        (-1, IndexError, "out of range"),
        ([1, 2], ValueError, "2 classes for 3 images"),
        ([1.0, 2.0, 3.0], TypeError, "one index for each image"),
        ([[1], [2], [3]], TypeError, "one index for each image"),
    ],
)
def test_wrong_classes_say_so(classes, error, message):
    with pytest.raises(error, match=message):
        classifier().features_and_gradients(images(3), classes)


# The network comes back as it was given


@pytest.mark.parametrize("family", FAMILIES)
def test_train_mode_frozen_parameters_and_hooks_are_left_alone(family):
    clf = classifier(family)
    x = images(3)
    expected = clf.features_and_gradients(x)
    clf.network.train()
    next(clf.network.children()).eval()
    for parameter in list(clf.network.parameters())[::2]:
        parameter.requires_grad_(False)
    clf.network.get_submodule(clf.layer).register_forward_hook(lambda m, a, out: None)
    before = state(clf.network)
    for ours, literal in zip(clf.features_and_gradients(x), expected, strict=True):
        torch.testing.assert_close(ours, literal)
    clf.features(x), clf.predict(x)
    assert_same_state(clf.network, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


class Failing(networks.Plain):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("out of cheese")


@pytest.mark.parametrize("call", ["features", "features_and_gradients", "logits"])
def test_the_network_is_restored_after_an_exception(call):
    network = Failing().train()
    clf = tl.Classifier(network, "features.7")
    before = state(network)
    with pytest.raises(ValueError, match="out of cheese"):
        getattr(clf, call)(images(2))
    assert_same_state(network, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [True, False])
def test_inside_no_grad_and_inference_mode(mode, frozen):
    clf = classifier(networks.Inverted)
    clf.network.requires_grad_(not frozen)
    expected = clf.features_and_gradients(images(3), [0, 1, 2])
    with mode():
        x, classes = images(3), torch.tensor([0, 1, 2])
        results = clf.features_and_gradients(x, classes)
        logits = clf.logits(x)
        assert not torch.is_grad_enabled()
    for ours, literal in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, literal)
    torch.testing.assert_close(logits, expected[2])


def test_images_of_inference_mode_that_the_network_uses_behind_the_layer():
    class Gated(networks.Plain):
        def forward(self, x):
            return self.head(self.features(x) * x[:, :1, ::8, ::8])

    clf = tl.Classifier(random_network(Gated), Gated.layer)
    with torch.inference_mode():  # in the format of the pass: no other copy is made
        x = images(2, 64, 64).to(memory_format=torch.channels_last)
        gradients = clf.features_and_gradients(x)[1]
    torch.testing.assert_close(gradients, clf.features_and_gradients(images(2, 64, 64))[1])


def test_a_network_that_runs_itself_under_no_grad():
    clf = classifier()
    expected = clf.features_and_gradients(images(2))
    clf.network.forward = torch.no_grad()(clf.network.forward)
    for ours, literal in zip(clf.features_and_gradients(images(2)), expected, strict=True):
        torch.testing.assert_close(ours, literal)


def test_results_are_ordinary_tensors():
    clf = classifier()
    for result in [clf.logits(images(1)), *clf.features(images(1))]:
        assert not result.is_inference() and not result.requires_grad


def test_channels_last_networks_and_images():
    clf = classifier(networks.Residual)
    x = images(3)
    expected = clf.features_and_gradients(x)
    clf.network.to(memory_format=torch.channels_last)
    results = clf.features_and_gradients(x.to(memory_format=torch.channels_last))
    for ours, literal in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, literal)


def test_a_network_that_views_its_pixels_in_plain_order():
    clf = classifier(networks.Viewed)
    x = images(3)
    features, gradients, logits, _ = clf.features_and_gradients(x)
    torch.testing.assert_close(logits, clf.network(x))
    forward = oracle.Forward(clf.network, "conv")
    a, g = forward.features_and_gradients(x[[0]].double(), logits[0].argmax())
    torch.testing.assert_close(features[0].double(), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0].double(), g, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clf.logits(x), clf.network(x))


def test_a_gradient_checkpoint_runs_again_in_eval_mode_too():
    """What is behind the layer is computed twice: going forward, and on the way back."""

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tail = [nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 12 * 12, 7)]
        network = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), Checkpointed(*tail)).train()
    clf, x = tl.Classifier(network, "0"), images(2)
    expected = tl.Classifier(copy.deepcopy(network).eval(), "0").features_and_gradients(x)
    before = state(network)
    for ours, literal in zip(clf.features_and_gradients(x), expected, strict=True):
        assert torch.equal(ours, literal)
    assert_same_state(network, before)


@pytest.mark.parametrize("training", [False, True])
def test_a_method_of_ones_own_runs_in_eval_mode(training):
    """Also where it calls modules of the network itself."""
    clf = classifier(networks.Residual)
    clf.network.train(training)

    @explainer()
    def norm_of_the_stem(clf, images, classes=None, *, batch=None):
        assert not any(module.training for module in clf.network.modules())
        return clf.network.block.bn1(clf.network.stem(images)).norm(dim=1)

    before = state(clf.network)
    assert norm_of_the_stem(clf, images(3)).amax((1, 2)).tolist() == [1, 1, 1]
    assert_same_state(clf.network, before)


# Batches, devices, inputs


def test_passes_are_full_batches_each_run_when_it_is_asked_for():
    clf = classifier(networks.Residual, batch=2)
    x, whole = images(5), classifier(networks.Residual).logits(images(5))
    clf.network.train()
    with tl.counting() as counts:
        passes = clf.passes(x)
        assert not counts
        for k, (part, logits) in enumerate(passes):
            assert torch.equal(part, x[2 * k : 2 * k + 2]) and counts["forward images"] == 2 * k + len(part)
            torch.testing.assert_close(logits, whole[2 * k : 2 * k + 2])
            assert not logits.is_inference() and not logits.requires_grad
            assert clf.network.training and torch.is_grad_enabled()
    assert k == 2
    with pytest.raises(ValueError, match="images are a float tensor"):
        next(clf.passes(x[0]))


@pytest.mark.parametrize("batch, side, passes", [(2, 48, 3), (5, 48, 1), (4, 448, 5), (1, 32, 5)])
def test_batch_bounds_the_images_of_a_pass(batch, side, passes):
    clf = classifier(batch=batch)
    x = images(5, side, side)
    sizes = []
    clf.network.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    results = clf.features_and_gradients(x, [0, 1, 2, 3, 4])
    assert len(sizes) == passes and sum(sizes) == 5
    whole = clf.with_batch(1000).features_and_gradients(x, [0, 1, 2, 3, 4])
    for ours, literal in zip(results, whole, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-5)
    assert clf.batch == batch


def test_few_pictures_pass_at_a_time_where_convolutions_are_depthwise():
    """They wait for memory: 4 on the CPU, as long as nobody names another number."""
    for groups, batch in ((1, 16), (2, 16), (6, 4)):
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=groups), nn.Flatten(), nn.LazyLinear(2)
        )
        network(torch.zeros(1, 3, 8, 8))
        clf = tl.Classifier(network, layer="1")
        assert clf.batch == batch and clf.with_batch(7).batch == 7


def test_batch_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        classifier(batch=0)
    with pytest.raises(ValueError, match="at least 1"):
        classifier().with_batch(0)


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).long(), "image", torch.zeros(0, 3, 8, 8)]
)
def test_images_that_are_none(bad):
    with pytest.raises(ValueError, match="images"):
        classifier().logits(bad)


def test_images_move_to_the_networks_type():
    clf = classifier()
    clf.network.double()
    assert clf.dtype == torch.float64 and clf.device.type == "cpu"
    assert clf.logits(images(1)).dtype == torch.float64


def test_mean_and_std_may_be_tensors():
    mean, std = [0.5, 0.25, 0.125], [1, 2, 4]  # exact in binary
    network, x = classifier().network, images(2).sigmoid()
    expected = tl.Classifier(network, mean=mean, std=std)
    for given in (torch.tensor(mean), torch.tensor(std)), (np.array(mean), np.array(std)):
        clf = tl.Classifier(network, mean=given[0], std=given[1])
        assert clf.mean == (0.5, 0.25, 0.125) and clf.std == (1, 2, 4)
        assert json.loads(json.dumps([clf.mean, clf.std])) == [mean, std]
        assert torch.equal(clf.normalise(x), expected.normalise(x))


def test_normalise_and_back():
    pixels = torch.rand(2, 3, 4, 5)
    clf = classifier()
    normalised = clf.normalise(pixels)
    torch.testing.assert_close(normalised[:, 1], (pixels[:, 1] - 0.456) / 0.224)
    torch.testing.assert_close(clf.denormalise(normalised), pixels)


@pytest.mark.parametrize("pixels", [torch.rand(1, 3, 4, 5) * 255, torch.ones(1, 3, 4, 5).byte(), np.ones(3)])
def test_pixels_of_0_to_255_are_refused(pixels):
    """They would be a bright picture without contrast, and give plausible maps."""
    with pytest.raises(ValueError, match="divide 0 to 255 by 255"):
        classifier().normalise(pixels)
    classifier().normalise(torch.rand(1, 3, 4, 5) * 1.2 - 0.1)  # what enlarges may overshoot


def test_probabilities_by_activation():
    x = images(2)
    network = random_network(networks.Plain)
    softmax = tl.Classifier(network, "features.7")
    sigmoid = tl.Classifier(network, "features.7", activation="sigmoid")
    torch.testing.assert_close(softmax.probabilities(x), network(x).softmax(1))
    torch.testing.assert_close(sigmoid.probabilities(x), network(x).sigmoid())
    picked = sigmoid.scores(x, torch.tensor([2, 5]), "probability")
    torch.testing.assert_close(picked, network(x).sigmoid()[[0, 1], [2, 5]])
    with pytest.raises(ValueError, match="softmax"):
        tl.Classifier(network, "features.7", activation="tanh")
    with pytest.raises(ValueError, match="logit"):
        softmax.features_and_gradients(x, score="margin")


def test_weights_that_are_nan_give_one_clear_error():
    clf = classifier()
    nn.init.constant_(clf.network.head[2].weight, float("nan"))
    for call in [clf.logits, clf.features, clf.features_and_gradients]:
        with pytest.raises(ValueError, match="not finite"):
            call(images(1))


# Layers


@pytest.mark.parametrize(
    "layer, message",
    [
        ("features.99", "no layer 'features.99'"),
        ("head.2", "neither feature maps nor tokens"),
        ("unused", "does not run"),
        ("shared", "more than once"),
        ("beside", "do not depend"),
    ],
)
def test_layers_that_cannot_be_explained_say_so(layer, message):
    class Odd(networks.Plain):
        def __init__(self):
            super().__init__()
            self.unused, self.beside = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.shared = nn.ReLU()

        def forward(self, x):
            self.beside(x)
            return self.head(self.shared(self.shared(self.features(x))))

    with pytest.raises(ValueError, match=message):
        tl.Classifier(Odd(), layer).features_and_gradients(images(1))


@pytest.mark.parametrize(
    "name, layer",
    [
        ("vgg19", "features.35"),
        ("vgg19_bn", "features.51"),
        ("alexnet", "features.11"),
        ("resnet50", "layer4.2"),
        ("squeezenet1_1", "features.12"),
        ("mobilenet_v2", "features.18.2"),
        ("mobilenet_v3_small", "features.12.2"),
        ("densenet121", "features.norm5"),
        ("efficientnet_b0", "features.8.2"),
        ("convnext_tiny", "features.7.2"),
        ("shufflenet_v2_x0_5", "conv5.2"),
    ],
)
def test_the_explained_layer_of_torchvisions_networks(name, layer):
    with torch.device("meta"):  # shapes only
        network = torchvision.models.get_model(name, weights=None).train()
    assert find_layer(network) == layer
    assert all(module.training and not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_explained_layer_of_small_networks(family):
    assert find_layer(random_network(family)) == family.layer


def test_the_explained_layer_of_a_vit_is_the_last_blocks_first_norm():
    clf = tl.Classifier(networks.vit())
    assert clf.layer == "encoder.layers.encoder_layer_1.ln_1"
    timm = pytest.importorskip("timm")
    network = timm.create_model("deit_tiny_patch16_224", pretrained=False, depth=3, img_size=32)
    assert find_layer(network) == "blocks.2.norm1"


def test_tokens_are_feature_maps_and_the_class_token_is_not_among_them():
    clf = tl.Classifier(networks.vit().double())
    x = images(2, 32, 32, dtype=torch.float64)
    tokens = []
    layer = clf.network.get_submodule(clf.layer)
    with layer.register_forward_hook(lambda m, args, out: tokens.append(out)):
        expected = clf.network(x)
    features, gradients, logits, _ = clf.features_and_gradients(x, [1, 4])
    torch.testing.assert_close(logits, expected)
    assert features.shape == gradients.shape == (2, 16, 4, 4)
    for i, j in [(0, 0), (1, 3), (3, 2)]:
        torch.testing.assert_close(features[:, :, i, j], tokens[0][:, 1 + 4 * i + j])
    (literal,) = torch.autograd.grad(expected[0, 1] + expected[1, 4], tokens[0])
    torch.testing.assert_close(gradients.flatten(2).mT, literal[:, 1:])
    assert gradients.any()


@pytest.mark.parametrize(
    "length, size, expected",
    [
        (197, (224, 224), (1, (14, 14))),
        (198, (224, 224), (2, (14, 14))),  # DeiT's distillation token
        (196, (224, 224), (0, (14, 14))),
        (1 + 4 * 6, (64, 96), (1, (4, 6))),
    ],
)
def test_tokens_lie_on_a_grid_of_the_images_shape(length, size, expected):
    assert token_grid(length, size) == expected


def test_tokens_that_form_no_grid():
    with pytest.raises(ValueError, match="do not form a grid"):
        token_grid(190, (224, 224))


def test_a_vit_takes_images_of_its_own_size_only():
    clf = tl.Classifier(networks.vit())
    with pytest.raises(ValueError, match="refuses images of 40 x 40"):
        clf.logits(images(1, 40, 40))
    with pytest.raises(ValueError, match="refuses images of 48 x 48"):
        tl.METHODS["msg_cam"](clf, images(1, 32, 32), sizes=[32, 48], groups=4)


def test_a_network_without_a_layer_to_find():
    with pytest.raises(ValueError, match="name the layer"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 3)).train()
    before = state(network)
    with pytest.raises(ValueError, match="name the layer"):  # made for 32 pixel images
        find_layer(network)
    assert_same_state(network, before)


def test_networks_that_return_no_logits():
    clf = tl.Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "1")
    for call in [clf.logits, clf.features_and_gradients]:
        with pytest.raises(TypeError, match="must return logits"):
            call(images(1))


def test_two_classifiers_may_share_a_network():
    clf = classifier(networks.Residual)
    other = tl.Classifier(clf.network, "stem")
    assert copy.copy(clf).features(images(1))[0].shape == (1, 12, 12, 12)
    assert not torch.equal(other.features(images(1))[0], clf.features(images(1))[0])
