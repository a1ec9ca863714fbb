"""The embedded benchmark, the dataset readers and load_classifier."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import thesis_lib as tl
from thesis_lib.data import datasets, glyphs, models


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small benchmark in the three real layouts."""
    root = tmp_path_factory.mktemp("glyphs")
    glyphs.write(root, singles=20, voc=6, coco=6)
    return root


def test_a_picture_is_a_function_of_its_name():
    one, two = glyphs.draw(0, "test", 3), glyphs.draw(0, "test", 3)
    assert np.array_equal(one[0], two[0]) and one[1] == two[1] == [3]
    others = [(1, "test", 3), (0, "train", 3), (0, "validation", 3), (0, "test", 23)]
    for other in others:
        assert not np.array_equal(one[0], glyphs.draw(*other)[0])


def test_masks_hold_the_object_and_only_it():
    plain = glyphs._background(np.random.default_rng([0, 2, 1, 3]), "test")
    pixels, _, (mask,) = glyphs.draw(0, "test", 3)
    change = np.abs(pixels / 255 - plain).mean(-1)
    assert change[mask].mean() > 5 * change[~mask].mean()
    assert mask.any() and not mask.all()


def test_every_class_has_a_glyph_of_its_own():
    shapes = {
        glyphs._pictograph(np.random.default_rng(0), c).tobytes() for c in glyphs.CLASSES.values()
    }
    assert len(shapes) == 20  # a missing character would draw the same empty box for two classes


def test_scene_objects_do_not_overlap():
    for index in range(20):
        _, classes, masks = glyphs.draw(0, "test", index, objects=3)
        assert 1 <= len(classes) == len(masks) <= 3
        assert sum(mask.astype(int) for mask in masks).max() == 1


def test_training_backgrounds_and_test_backgrounds_are_disjoint(monkeypatch):
    """Left halves for training, right halves for the others."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    monkeypatch.setattr(glyphs, "_photograph", lambda name: ramp)
    for i in range(10):
        scale = [np.random.default_rng(i) for _ in range(2)]
        train = glyphs._background(scale[0], "train").max()
        test = glyphs._background(scale[1], "test").max()
        assert train < test


@pytest.mark.parametrize("index", [0, 7, 100, 319])
def test_the_committed_split_is_what_the_seed_draws(index):
    dataset = datasets.glyphs("singles")
    assert len(dataset) == 320
    sample = dataset[index]
    pixels, (label,), (mask,) = glyphs.draw(0, "test", index)
    assert sample.classes == (label,)
    assert np.array_equal(sample.pixel_masks[label].numpy(), mask)
    difference = sample.pixels.permute(1, 2, 0).numpy() - pixels / 255
    assert np.abs(difference).mean() < 0.03  # JPEG


def test_voc_and_coco_layouts_give_boxes_and_masks_back(tree):
    for part, first in (("scenes", 0), ("scenes_coco", 100_000)):
        dataset = datasets.glyphs(part, tree)
        assert len(dataset) == 6 and dataset.categories == list(glyphs.CLASSES)
        for i in range(6):
            sample, (_, classes, masks) = dataset[i], glyphs.draw(0, "test", first + i, 3)
            assert sample.classes == tuple(sorted(set(classes)))
            for c in sample.classes:
                union = np.any([m for k, m in zip(classes, masks, strict=True) if k == c], 0)
                assert np.array_equal(sample.pixel_masks[c].numpy(), union)
                boxes = np.zeros_like(union)
                for k, m in zip(classes, masks, strict=True):
                    if k == c:
                        x0, y0, x1, y1 = glyphs._box(m)
                        boxes[y0 : y1 + 1, x0 : x1 + 1] = True
                assert np.array_equal(sample.masks[c].numpy(), boxes)


def test_masks_follow_a_resized_picture(tree):
    whole = datasets.VOC2007(tree, categories=glyphs.CLASSES)[0]
    small = datasets.VOC2007(tree, size=112, categories=glyphs.CLASSES)[0]
    assert small.pixels.shape == (3, 112, 112)
    for c in whole.classes:
        share, expected = (d.masks[c].float().mean().item() for d in (small, whole))
        assert share == pytest.approx(expected, abs=0.02)


def test_imagenet_indices_are_sorted_folders(tree):
    dataset = datasets.ImageNet(tree / "ILSVRC2012", size=64)
    assert dataset.categories[1] == "01_anchor"
    assert dataset[1].classes == (1,) and dataset[1].pixels.shape == (3, 64, 64)
    assert dataset.ids == sorted(dataset.ids)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (30, 20), (200, 10, 10)).convert(mode).save(
        tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    )
    pixels = datasets.Folder(tmp_path, size=16)[0].pixels
    assert pixels.shape == (3, 16, 16) and 0 <= pixels.min() and pixels.max() <= 1


def test_unreadable_pictures_name_themselves(tmp_path, tree):
    whole = next((tree / "VOCdevkit/VOC2007/JPEGImages").iterdir()).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:3000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    for i, name in enumerate(["cut.jpg", "empty.jpg"]):
        with pytest.raises(OSError, match=name):
            datasets.Folder(tmp_path)[i]


def test_missing_folders_say_what_to_do(tmp_path):
    for make in (datasets.ImageNet, datasets.VOC2007, datasets.COCO2014):
        with pytest.raises(FileNotFoundError, match="data/README.md"):
            make(tmp_path)
    with pytest.raises(FileNotFoundError, match="no picture"):
        datasets.Folder(tmp_path)
    with pytest.raises(ValueError, match="scenes_coco"):
        datasets.glyphs("pairs")


def test_difficult_objects_as_torchray_treats_them(tmp_path):
    glyphs.write_voc(tmp_path, 3)
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    before = datasets.glyphs("scenes", tmp_path)[0].classes
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    after = datasets.glyphs("scenes", tmp_path)[0].classes
    assert len(after) == len(before) - 1


# ---- load_classifier


def test_unknown_network_suggests_names():
    with pytest.raises(ValueError, match="vgg19_glyphs"):
        tl.load_classifier("vgg19_glyph")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_back_from_a_file(tmp_path, suffix):
    from safetensors.torch import save_file

    clf = tl.load_classifier("squeezenet1_1", "random", device="cpu")
    state = {k: v.contiguous() for k, v in clf.network.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    again = tl.load_classifier("squeezenet1_1", path, device="cpu")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(clf.logits(images), again.logits(images))
    assert len(again.categories) == 1000


def test_a_file_with_another_number_of_classes(tmp_path):
    state = tl.load_classifier("squeezenet1_1", "random", device="cpu").network.state_dict()
    state = {k: v[:7].clone() if k.startswith("classifier") else v for k, v in state.items()}
    torch.save(state, tmp_path / "w.pt")
    clf = tl.load_classifier("squeezenet1_1", tmp_path / "w.pt", device="cpu")
    assert clf.logits(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_random_weights_are_seeded_and_leave_the_global_state_alone():
    state = torch.random.get_rng_state()
    one = tl.load_classifier("squeezenet1_1", "random", device="cpu").network.state_dict()
    two = tl.load_classifier("squeezenet1_1", "random", device="cpu").network.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(state, torch.random.get_rng_state())


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (json.loads, ('{"ran": true}',))


def test_bad_weights_are_refused(tmp_path):
    state = tl.load_classifier("squeezenet1_1", "random", device="cpu").network.state_dict()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        tl.load_classifier("squeezenet1_1", tmp_path / "none.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Boom()))
    torch.save({"code": Boom()}, tmp_path / "code2.pt")
    for name in ("code.pt", "code2.pt"):
        with pytest.raises(ValueError, match="never run"):
            tl.load_classifier("squeezenet1_1", tmp_path / name)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit"):
        tl.load_classifier("vgg19_glyphs", tmp_path / "other.pt")
    state = {k: v.clone() for k, v in state.items()}
    state["features.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="NaN"):
        tl.load_classifier("squeezenet1_1", tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="safetensors"):
        models.read_weights(__file__)


def test_missing_imagenet_weights_say_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(models.torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match='weights="random"'):
        tl.load_classifier("squeezenet1_0")


def test_datasets_by_name(tree):
    assert len(datasets.open_dataset("glyphs")) == 320
    assert len(datasets.open_dataset("imagenet", tree / "ILSVRC2012")) == 20
    with pytest.raises(ValueError, match="voc2007"):
        datasets.open_dataset("voc")
    with pytest.raises(ValueError, match="needs root"):
        datasets.open_dataset("voc2007")
