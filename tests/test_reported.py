"""What users met, or people reported of other libraries: a script for each, as they would write it.

The kinds and their siblings are tested elsewhere, in tables; here stands what was met first. What a run's key has to
see is in test_runs.py, a ViT that was changed in test_attention.py, results of one name in test_your_own.py.
"""

import collections
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import thesis_lib as tl
from thesis_lib.data import CUTOUTS, subsets
from thesis_lib.data.cutouts import categories
from thesis_lib.data.datasets import VOC2007, Folder, ImageNet
from thesis_lib.data.pictures import read_picture

HALF = 12_544  # pixels a step: five points of a curve


@pytest.fixture
def vgg():
    return tl.load_classifier("vgg19_cutouts", device="cpu")


@pytest.fixture
def vit():
    return tl.load_classifier("vit_cutouts", device="cpu")


def run(data, clf, out, methods=("grad_cam",), **settings):
    return tl.evaluate(data, clf, list(methods), out, step=HALF, progress=False, **settings)


def test_channels_last_layers_are_not_read_as_channels_first():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("swin_tiny_patch4_window7_224").eval()
        for p in net.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0, 0.05)
    assert tuple(tl.Classifier(net).features(torch.rand(1, 3, 224, 224))[0].shape) == (1, 768, 7, 7)


def test_one_output_and_the_default_softmax():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    with pytest.raises(ValueError, match='use activation="sigmoid"'):
        tl.METHODS["grad_cam"](tl.Classifier(net), torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: nn.Sequential(nn.Identity(), n)])
def test_a_vit_in_a_wrapper_has_the_same_layer(vit, wrap):
    image = torch.rand(1, 3, 224, 224)
    wrapped = tl.Classifier(wrap(vit.network))
    assert wrapped.layer.endswith("encoder.layers.encoder_layer_5.ln_1")
    assert torch.equal(tl.METHODS["grad_cam"](wrapped, image), tl.METHODS["grad_cam"](vit, image))


def test_one_classifier_in_four_threads(vgg):
    vgg.network.train()
    images = [torch.rand(1, 3, 224, 224) for _ in range(4)]
    truth = [(vgg.logits(i), tl.METHODS["grad_cam"](vgg, i)) for i in images]

    def work(k):
        found = vgg.logits(images[k]), tl.METHODS["grad_cam"](vgg, images[k])
        return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, truth[k], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert collections.Counter(pool.map(work, list(range(4)) * 6)) == {True: 24}


def test_mean_std_autocast_compiled_scripted(vgg, tmp_path):
    net, image = vgg.network, torch.rand(1, 3, 224, 224)
    imagenet = {"mean": torch.tensor([0.485, 0.456, 0.406]), "std": torch.tensor([0.229, 0.224, 0.225])}
    assert len(run(tl.open_dataset("cutouts"), tl.Classifier(net, **imagenet), tmp_path, limit=1)) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert tl.METHODS["grad_cam"](vgg, image).dtype == torch.float32
        low = tl.METHODS["group_cam"](vgg, image)
    assert torch.equal(low, tl.METHODS["group_cam"](vgg, image))
    compiled = tl.Classifier(torch.compile(net, backend="eager"))
    assert torch.equal(tl.METHODS["grad_cam"](compiled, image), tl.METHODS["grad_cam"](vgg, image))
    scripted = torch.jit.script(net)
    for layer in (None, "features.35"):
        with pytest.raises(ValueError, match="give the nn.Module"):
            tl.Classifier(scripted, layer)


def test_a_layer_of_patches_within_tokens():
    clf = tl.load_classifier("timm/tnt_s_patch16_224", weights="random", device="cpu")
    images = torch.rand(2, 3, 224, 224)
    assert tl.METHODS["grad_cam"](clf, images).shape == (2, 224, 224)
    chosen = tl.load_classifier(
        "timm/tnt_s_patch16_224", weights="random", layer="pixel_embed.proj", device="cpu"
    )
    for method in ("grad_cam", "score_cam"):
        with pytest.raises(ValueError, match="392 maps for 2 images: name another|392 maps for 2 images"):
            tl.METHODS[method](chosen, images)


def test_class_folders_and_outputs_are_different_lists(vgg, tmp_path):
    folders, correct = sorted((CUTOUTS / "ILSVRC2012/val").iterdir()), {}
    for name, some, stray in (
        ("complete", folders, ""),
        ("stray", folders, "00_readme"),
        ("half", folders[25:], ""),
    ):
        for folder in some:
            (tmp_path / name / "val" / folder.name).mkdir(parents=True)
            shutil.copy(min(folder.iterdir()), tmp_path / name / "val" / folder.name)
        if stray:
            (tmp_path / name / "val" / stray).mkdir()
        correct[name] = run(ImageNet(tmp_path / name), vgg, tmp_path / "out", limit=20).correct.mean()
    assert correct["complete"] == correct["stray"] > 0.7 and correct["half"] > 0.7


@pytest.mark.parametrize(
    "text, easy", [("0", True), (" 0 ", True), ("", True), ("False", True), ("1", False)]
)
def test_difficult_as_other_tools_write_it(text, easy, tmp_path):
    shutil.copytree(CUTOUTS / "VOCdevkit", tmp_path / "VOCdevkit")
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    file.write_text(re.sub(r"<difficult>.*?</difficult>", f"<difficult>{text}</difficult>", file.read_text()))
    assert VOC2007(tmp_path, categories=categories())[0].classes == ((0, 42) if easy else ())


def test_difficult_that_says_neither(tmp_path):
    shutil.copytree(CUTOUTS / "VOCdevkit", tmp_path / "VOCdevkit")
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    file.write_text(
        re.sub(r"<difficult>.*?</difficult>", "<difficult>Unspecified</difficult>", file.read_text())
    )
    with pytest.raises(OSError, match="000001.xml cannot be used: difficult is 'unspecified'"):
        VOC2007(tmp_path, categories=categories())[0]


def test_pictures_of_32_bits_and_folders_behind_links(tmp_path):
    ramp = np.linspace(0, 255, 64)[None].repeat(64, 0)
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "i.tif")
    Image.fromarray((ramp / 255).astype(np.float32)).save(tmp_path / "f.tif")
    for name in ("i.tif", "f.tif"):
        found = np.asarray(read_picture(tmp_path / name))[..., 0]
        assert np.abs(found - ramp).max() <= 1
    for folder, name in (("root", "b"), ("real", "a")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "root/more").symlink_to(tmp_path / "real")
    assert Folder(tmp_path / "root").ids == ["b", "more/a"]


def test_ids_that_begin_with_a_hash_and_ids_twice(tmp_path):
    subsets.write(tmp_path / "l.csv", "mine", ["a", "#1", "b"], 3, 0)
    assert subsets.read(tmp_path / "l.csv") == (["a", "#1", "b"], 0)
    sources = sorted((CUTOUTS / "ILSVRC2012/val").glob("*/*.JPEG"))
    for folder, k in (("cat", 0), ("dog", 100)):
        (tmp_path / "val" / folder).mkdir(parents=True)
        shutil.copy(sources[k], tmp_path / "val" / folder / "001.jpg")
    assert ImageNet(tmp_path).ids == ["cat/001", "dog/001"]


@pytest.mark.parametrize(
    "name, side", [("timm/swinv2_tiny_window8_256", 256), ("timm/maxvit_nano_rw_256", 256)]
)
def test_networks_of_one_size_load(name, side):
    clf = tl.load_classifier(name, weights="random", device="cpu")
    assert clf.layer == "norm" and clf.features(torch.rand(1, 3, side, side))[0].shape[-2:] == (8, 8)


def test_a_method_that_asks_for_other_sizes_than_the_network_takes(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 7, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 28 * 28, 51))
    with pytest.raises(ValueError, match="the network refuses images of 324 x 324"):
        run(tl.open_dataset("cutouts"), tl.Classifier(net), tmp_path, ("grad_cam", "msg_cam"), limit=2)


def test_torchvisions_weights_normalise_as_they_say():
    mean = torchvision.models.EfficientNet_V2_L_Weights.DEFAULT.transforms().mean
    with torch.device("meta"):
        clf = tl.load_classifier("efficientnet_v2_l", weights="random", layer="features.8", device="meta")
    assert list(clf.mean) == list(mean) == [0.5, 0.5, 0.5]


def test_googlenets_weights_in_a_file(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.googlenet(aux_logits=False, transform_input=True, init_weights=True).eval()
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    clf, image = (
        tl.load_classifier("googlenet", weights=tmp_path / "mine.pt", device="cpu"),
        torch.rand(1, 3, 224, 224),
    )
    torch.testing.assert_close(clf.logits(image), net(image).detach(), atol=1e-4, rtol=1e-4)
