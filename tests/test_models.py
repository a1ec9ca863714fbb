"""load_classifier: networks of all names, and files of weights as people have them.

Each table has a line for a situation. What is right is the right logits, or one sentence.
"""

import argparse
import inspect
import json
import re
import warnings
from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import networks
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import thesis_lib as tl
from thesis_lib.data import models
from thesis_lib.training import train as training

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)


def loaded(name, weights):
    return tl.load_classifier(name, weights, device="cpu")


def logits(network, x):
    with torch.no_grad():
        return network.eval()(x)


@pytest.fixture
def stub(monkeypatch):
    """Every name builds one small network, for what does not depend on the network."""

    def build(name, classes=1000, **options):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
        )

    monkeypatch.setattr(models, "build", build)
    return build


# ---- What torchvision says of its weights


def test_every_torchvision_network_normalises_as_its_own_weights_do(stub, tmp_path):
    """A picture of one colour, through torchvision's own preprocessing and through ours."""
    colour = torch.tensor([10, 100, 200], dtype=torch.uint8)[:, None, None]
    torch.save(stub("").state_dict(), tmp_path / "w.pt")
    other = set()
    for name in CLASSIFIERS:
        theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()(colour.expand(3, 8, 8))
        for weights in (None, "random", tmp_path / "w.pt"):
            clf = loaded(name, weights)
            torch.testing.assert_close(clf.normalise(colour[None] / 255)[0], theirs[:, :1, :1])
            assert clf.categories == torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
        other |= {name} if clf.mean[0] != models.IMAGENET_MEAN[0] else set()
    assert len(CLASSIFIERS) >= 80 and "efficientnet_v2_l" in other


def test_what_torchvisions_builders_set_with_their_weights_is_known():
    """A new one is a new way for a file of weights to give other logits than torchvision's network."""
    found = set()
    for name in CLASSIFIERS:
        source = inspect.getsource(inspect.getmodule(torchvision.models.get_model_builder(name)))
        found |= set(re.findall(r'_ovewrite_named_param\(kwargs, "(\w+)"', source))
    assert found == {
        "num_classes",  # from the file
        "transform_input", "aux_logits", "init_weights",  # in `build`
        "image_size",  # from the file
        "input_size",  # MaxViT's: its default
        "groups", "width_per_group",  # in the name
    }  # fmt: skip


@pytest.mark.parametrize("name, size", [("googlenet", 64), ("inception_v3", 96)])
def test_a_file_is_read_as_torchvisions_pretrained_network_of_that_name(tmp_path, name, size):
    """Input that is normalised again, and heads for training only, there or not, fitting or not."""
    builder = getattr(torchvision.models, name)
    options = {"transform_input": True, "init_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = builder(**options, num_classes=7)
    x = networks.images(2, size, size)
    for module in network.eval().modules():  # logits that differ from image to image
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None
    with torch.no_grad():
        network(networks.images(8, size, size))
    expected = logits(network, x)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    state = network.state_dict()
    heads = tuple({key.split(".")[0] + "." for key in state if key.lower().startswith("aux")})
    assert heads
    files = {
        "all of it": state,
        "without the heads": {k: v for k, v in state.items() if not k.startswith(heads)},
        "a new head only": {
            k: v.new_zeros(1000, *v.shape[1:]) if k.startswith(heads) and v.shape[:1] == (7,) else v
            for k, v in state.items()
        },
    }
    for kind, file in files.items():
        torch.save(file, tmp_path / "w.pt")
        clf = loaded(name, tmp_path / "w.pt")
        torch.testing.assert_close(clf.logits(x), expected, rtol=0, atol=1e-3, msg=kind)
    random = loaded(name, "random").network  # what is trained from it, and saved, is read alike
    assert random.transform_input and not random.aux_logits


def small_vit(monkeypatch):
    """torchvision's vit_b_16, small: 2 layers, patches of 8 pixels, made for 32."""
    builder = partial(VisionTransformer, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)

    def get_model(name, weights=None, image_size=32, num_classes=1000):
        assert name == "vit_b_16" and weights is None
        return builder(image_size, num_classes=num_classes)

    monkeypatch.setattr(models.torchvision.models, "get_model", get_model)
    return lambda **options: networks.liven_tokens(get_model("vit_b_16", **options))


@pytest.mark.parametrize("options", [{}, {"image_size": 48}, {"image_size": 64, "num_classes": 5}])
def test_a_vit_has_the_size_of_its_file(monkeypatch, tmp_path, options):
    network = small_vit(monkeypatch)(**options)
    x = networks.images(2, *2 * [network.image_size])
    torch.save(network.state_dict(), tmp_path / "w.pt")
    clf = loaded("vit_b_16", tmp_path / "w.pt")
    torch.testing.assert_close(clf.logits(x), logits(network, x))
    assert clf.network.image_size == options.get("image_size", 32)


def test_a_new_head_keeps_the_positions_of_a_vit_of_another_size(monkeypatch, tmp_path):
    network = small_vit(monkeypatch)(image_size=48)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    tuned = training.new_head("vit_b_16", ["ant", "bee"], tmp_path / "w.pt").network
    assert tuned.image_size == 48 and tuned.encoder.pos_embedding.equal(network.encoder.pos_embedding)


def old_densenet(key):
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(?=[12])", r"\1.", key)


def old_vit(key):
    return key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")


@pytest.mark.parametrize(
    "name, older, suffix",
    [
        ("mnasnet0_5", lambda key: key, ".pt"),  # its version stands beside the state dict
        ("mnasnet0_5", lambda key: key, ".safetensors"),
        ("densenet121", old_densenet, ".pt"),  # torchvision's own file has these names
        ("vit_b_16", old_vit, ".pt"),
        (
            "resnet18",
            lambda key: None if key.endswith("num_batches_tracked") else key,
            ".pt",
        ),  # of PyTorch 0.3
    ],
)
def test_files_of_older_torchvisions_and_without_versions(monkeypatch, tmp_path, name, older, suffix):
    if name == "vit_b_16":
        network, size = small_vit(monkeypatch)(num_classes=5), 32
    else:
        network, size = networks.liven(torchvision.models.get_model(name, num_classes=5), 64), 64
    x = networks.images(2, size, size)
    state = {older(k): v for k, v in network.state_dict().items() if older(k)}
    assert name == "mnasnet0_5" or set(state) != set(network.state_dict())
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    clf = loaded(name, tmp_path / f"w{suffix}")
    torch.testing.assert_close(clf.logits(x), logits(network, x), rtol=1e-4, atol=1e-4)


# ---- Files of weights


@pytest.fixture(scope="module")
def squeezenet():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return networks.liven(torchvision.models.squeezenet1_1(num_classes=7), 64)


def under(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def averaged(state):
    return under("module.")(state) | {"n_averaged": torch.tensor(3)}


def trained(network_state):
    """What torchvision's reference script writes beside the weights."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "model": network_state, "optimizer": optimizer.state_dict(), "epoch": 3,
        "lr_scheduler": {"last_epoch": 3}, "args": argparse.Namespace(lr=0.1, data="/data"),
    }  # fmt: skip


RIGHT = {
    "plain": lambda s: s,
    "an ordered dict": OrderedDict,
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "compiled, then parallel": under("module._orig_mod."),
    "parallel, then compiled": under("_orig_mod.module."),
    "a part compiled": lambda s: {k.replace("features.", "features._orig_mod."): v for k, v in s.items()},
    "Lightning, alone": under("model."),
    "a wrapper's attribute": under("network."),
    "a wrapper in a wrapper": under("net.backbone."),
    "nn.Sequential": under("1."),
    "AveragedModel": averaged,
    "state_dict and epoch": lambda s: {"state_dict": s, "epoch": 3, "best": 0.7},
    "PyTorch's tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}, "loss": torch.tensor(0.1)},
    "torchvision's script": trained,
    "ModelEma": lambda s: {"model_ema": averaged(s), "epoch": 1},
    "Lightning": lambda s: {"state_dict": under("model.")(s), "pytorch-lightning_version": "2.0", "callbacks": {}, "hyper_parameters": {"lr": 1e-3}},
    "an empty criterion beside": lambda s: {"model": s, "criterion": {}},
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_a_file_of_weights_as_people_have_them_gives_the_networks_logits(tmp_path, squeezenet, kind):
    x = networks.images(2, 64, 64)
    torch.save(RIGHT[kind](squeezenet.state_dict()), tmp_path / "w.pt")
    torch.testing.assert_close(loaded("squeezenet1_1", tmp_path / "w.pt").logits(x), logits(squeezenet, x))


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "last.ckpt", "pytorch_model.bin", "model_best.pth.tar"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_of_any_float_type_and_ending_gives_the_networks_logits_in_float32(
    tmp_path, squeezenet, name, dtype
):
    x = networks.images(2, 64, 64)
    state = {k: v.to(dtype) for k, v in squeezenet.state_dict().items()}
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "w.pth")
    clf = loaded("squeezenet1_1", tmp_path / name)
    expected = torchvision.models.squeezenet1_1(num_classes=7)
    expected.load_state_dict({k: v.float() for k, v in state.items()})
    torch.testing.assert_close(clf.logits(x), logits(expected, x))
    assert {p.dtype for p in clf.network.parameters()} == {torch.float32}


def first(state, key="features.0.weight"):
    return {k: v.mean(1, keepdim=True) if k == key else v for k, v in state.items()}


REFUSED = {
    "the network and its running mean": (lambda s: {"model": s, "model_ema": averaged(s)}, r"holds several state dicts \(model, model_ema\): save the one that you mean"),
    "timm's, with both": (lambda s: {"epoch": 1, "state_dict": s, "state_dict_ema": s}, r"several state dicts \(state_dict, state_dict_ema\)"),
    "teacher and student": (lambda s: under("teacher.")(s) | under("student.")(s), "does not fit squeezenet1_1: it lacks features.0.weight, .* and 49 more, has besides teacher"),
    "a layer that normalises before it": (lambda s: {"0.mean": torch.rand(3)} | under("1.")(s), "it lacks .* has besides 0.mean, "),
    "a weighted loss beside it": (lambda s: under("model.")(s) | {"loss.weight": torch.rand(7)}, "has besides .*name the network that it was saved from"),
    "one layer too few": (lambda s: {k: v for k, v in s.items() if k != "features.0.bias"}, "fit squeezenet1_1: it lacks features.0.bias; name the"),
    "one channel": (first, "it has in another shape features.0.weight; name"),
    "another version": (lambda s: torchvision.models.squeezenet1_0(num_classes=7).state_dict(), "in another shape features.0.weight, "),
    "another network": (lambda s: torchvision.models.resnet18().state_dict(), "it lacks features.0.weight, features.0.bias, features.3.squeeze.weight and 49 more, has besides conv1.weight, "),
    "another network of the same prefix": (lambda s: under("module.")(torchvision.models.resnet18().state_dict()), "does not fit"),
    "nothing": (lambda s: {}, "is no state dict: save network.state_dict.. alone"),
    "only a count": (lambda s: {"n_averaged": torch.tensor(3)}, "it lacks"),
    "no weights": (lambda s: {"epoch": 3}, "is no state dict"),
    "a list": (lambda s: list(s.values()), "is no state dict"),
    "numbered": (lambda s: dict(enumerate(s.values())), "is no state dict"),
    "numbers among the weights": (lambda s: s | {"epoch": 3}, "is no state dict"),
    "the network itself": (lambda s: torchvision.models.squeezenet1_1(), "code in weights is never run: save network.state_dict"),
    "NaN": (lambda s: s | {"features.0.bias": torch.full((64,), torch.nan)}, "NaN or infinite values in features.0.bias"),
    "too large for float32": (lambda s: s | {"features.0.bias": torch.full((64,), 1e300, dtype=torch.float64)}, "NaN or infinite values"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_of_weights_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, squeezenet, kind):
    change, message = REFUSED[kind]
    torch.save(change(squeezenet.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as caught:
        loaded("squeezenet1_1", tmp_path / "w.pt")
    said = str(caught.value)
    assert "w.pt" in said and "\n" not in said
    assert len(said.replace(str(tmp_path), "")) < 500


def test_a_scripted_network_is_no_file_of_weights(tmp_path, squeezenet):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.script(squeezenet).save(tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"w.pt cannot be read .* save network.state_dict\(\)"):
            loaded("squeezenet1_1", tmp_path / "w.pt")


def test_a_file_names_as_many_categories_as_it_has_outputs(tmp_path, squeezenet):
    for names, right in (("abcdefg", True), ("abc", False)):
        facts = {"categories": json.dumps(list(names))}
        save_file(squeezenet.state_dict(), tmp_path / "w.safetensors", facts)
        if right:
            assert loaded("squeezenet1_1", tmp_path / "w.safetensors").categories == list(names)
            continue
        with pytest.raises(ValueError, match="names 3 categories and has 7 outputs: save it anew"):
            loaded("squeezenet1_1", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "weights", [torchvision.models.ResNet18_Weights.DEFAULT, {"fc.bias": torch.zeros(3)}, True, 1]
)
def test_weights_are_no_state_dict_nor_torchvisions_enumeration(weights):
    with pytest.raises(TypeError, match=r'weights are None, "random" or the path of a file, not') as caught:
        loaded("resnet18", weights)
    assert len(str(caught.value)) < 160


# ---- Names


@pytest.mark.parametrize(
    "name, message",
    [
        ("quantized_resnet50", "of torchvision.models.quantization, and only .* in floating point"),
        ("fcn_resnet50", "of torchvision.models.segmentation, and only torchvision's classifiers"),
        ("fasterrcnn_resnet50_fpn", "of torchvision.models.detection, and"),
        ("r3d_18", "of torchvision.models.video, and"),
        ("raft_small", "of torchvision.models.optical_flow, and"),
        ("resnet18_int8", "no network is called 'resnet18_int8'; did you mean resnet18"),
        ("timm/fcn_resnet50", "no network is called"),
    ],
)
def test_what_is_no_classifier_of_pictures_is_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        loaded(name, "random")


def test_every_other_name_of_torchvision_is_refused():
    others = set(torchvision.models.list_models()) - set(CLASSIFIERS)
    assert len(others) > 30
    for name in others:
        with pytest.raises(ValueError, match=f"^{name} is of torchvision.models"):
            loaded(name, "random")


@pytest.mark.parametrize(
    "name, outputs, named",
    [
        ("timm/vit_tiny_patch16_224.augreg_in21k", 21843, False),
        ("timm/mobilenetv3_small_050", 1000, True),
        ("mobilenet_v3_small", 1000, True),
    ],
)
def test_only_a_thousand_outputs_have_imagenets_names(name, outputs, named):
    clf = loaded(name, "random")
    assert clf.logits(networks.images(1, 224, 224)).shape == (1, outputs)
    assert (clf.categories is not None) is named


def test_a_timm_network_without_a_head_has_no_classes(tmp_path):
    timm = pytest.importorskip("timm")
    assert models.head_of("timm/x", SimpleNamespace(pretrained_cfg={"classifier": None})) == ".weight"
    bare = timm.create_model("mobilenetv3_small_050", num_classes=0)
    torch.save(bare.state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match="does not fit timm/mobilenetv3_small_050: it lacks classifier.weight"
    ):
        loaded("timm/mobilenetv3_small_050", tmp_path / "w.pt")


@pytest.mark.parametrize(
    "name, side", [("timm/swinv2_tiny_window8_256", 256), ("timm/maxvit_nano_rw_256", 256)]
)
def test_a_network_of_one_size_loads_and_is_explained_at_it(name, side):
    clf = loaded(name, "random")
    images = networks.images(1, side, side)
    assert clf.logits(images).shape == (1, 1000)
    assert tl.METHODS["grad_cam"](clf, images, 3).shape == (1, side, side)
