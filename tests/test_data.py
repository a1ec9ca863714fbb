"""The embedded benchmark, the dataset readers and load_classifier."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cutouts as script
import numpy as np
import pytest
import torch
import trees
from PIL import Image

import thesis_lib as tl
from thesis_lib.data import REPOSITORY, cutouts, datasets, layouts, models, registry
from thesis_lib.data.registry import open_dataset
from thesis_lib.peers import real_time
from thesis_lib.registry import UnknownName


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small benchmark in the three real layouts."""
    root = tmp_path_factory.mktemp("cutouts")
    script.write_pictures(root, singles=20, voc=6, coco=6, occurrences=6)
    return root


@pytest.mark.parametrize("index", [0, 7, 100, 203])
def test_the_committed_split_is_what_the_seed_draws(index):
    dataset = open_dataset("cutouts")
    assert len(dataset) == 204
    sample = dataset[index]
    picture = cutouts.compose(cutouts.draw(index, "singles", "test"))
    (label,), (mask,) = picture.classes, picture.masks
    assert sample.classes == (label,)
    assert np.array_equal(sample.pixel_masks[label].numpy(), mask)
    difference = sample.pixels.permute(1, 2, 0).numpy() - picture.pixels / 255
    assert np.abs(difference).mean() < 0.03  # JPEG


def test_voc_and_coco_layouts_give_boxes_and_masks_back(tree):
    for name, folder, kind, first in (
        ("cutouts_scenes", "", "scenes", 0),
        ("cutouts_scenes_coco", "coco", "scenes", 1001),
        ("cutouts_occurrences", "occurrences", "occurrences", 2001),
    ):
        dataset = open_dataset(name, tree / folder)
        assert len(dataset) == 6 and dataset.categories == cutouts.categories()
        for i in range(6):
            sample, picture = dataset[i], cutouts.compose(cutouts.draw(first + i, kind, "test"))
            classes, masks = picture.classes, picture.masks
            assert sample.classes == tuple(sorted(set(classes)))
            for c in sample.classes:
                union = np.any([m for k, m in zip(classes, masks, strict=True) if k == c], 0)
                assert np.array_equal(sample.pixel_masks[c].numpy(), union)
                if name != "cutouts_scenes":  # VOC's layout has the objects in pictures of their own
                    own = [m for k, m in zip(classes, masks, strict=True) if k == c]
                    assert np.array_equal(sample.things[c].numpy(), own)
                boxes = np.zeros_like(union)
                for k, m in zip(classes, masks, strict=True):
                    if k == c:
                        x0, y0, x1, y1 = layouts.box_of(m)
                        boxes[y0 : y1 + 1, x0 : x1 + 1] = True
                assert np.array_equal(sample.masks[c].numpy(), boxes)


def test_masks_follow_a_resized_picture(tree):
    whole = datasets.VOC2007(tree, categories=cutouts.categories())[0]
    small = datasets.VOC2007(tree, size=112, categories=cutouts.categories())[0]
    assert small.pixels.shape == (3, 112, 112)
    for c in whole.classes:
        share, expected = (d.masks[c].float().mean().item() for d in (small, whole))
        assert share == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("called", ["by WNID", "by number"])
def test_imagenet_indices_are_sorted_folders(tree, tmp_path, called):
    """Whatever the folders are called; their masks go with them."""
    folders = list(cutouts.classes().items())[:20]
    names = [wnid if called == "by WNID" else f"{k:02d}_{name}" for k, (wnid, name) in enumerate(folders)]
    for part in ("val", "masks"):
        for (wnid, _), name in zip(folders, names, strict=True):
            shutil.copytree(tree / f"ILSVRC2012/{part}/{wnid}", tmp_path / part / name)
    dataset = datasets.ImageNet(tmp_path, size=64)
    assert dataset.categories == names and names[1] in ("n01514859", "01_hen")
    assert dataset[1].classes == (1,) and dataset[1].pixels.shape == (3, 64, 64)
    assert dataset[1].pixel_masks[1].any()
    assert dataset.ids == sorted(dataset.ids)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (30, 20), (200, 10, 10)).convert(mode).save(
        tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    )
    pixels = datasets.Folder(tmp_path, size=16)[0].pixels
    assert pixels.shape == (3, 16, 16) and pixels.min() >= 0 and pixels.max() <= 1


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
    with pytest.raises(ValueError, match="cutouts_scenes_coco"):
        open_dataset("cutouts_pairs")


def test_difficult_objects_as_torchray_treats_them(tmp_path):
    script.write_voc(tmp_path, 3)
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    before = open_dataset("cutouts_scenes", tmp_path)[0].classes
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    after = open_dataset("cutouts_scenes", tmp_path)[0].classes
    assert len(after) == len(before) - 1


# ---- load_classifier


def test_networks_say_what_they_are():
    """Each embedded one, by what its file and its layers say."""
    assert {name for name, entry in models.NETWORKS.items() if entry.weights} == {
        file.stem for file in models.WEIGHTS.glob("*.safetensors")
    } - {real_time.FILE.stem}  # which draws masks, and classifies nothing
    for name, entry in models.NETWORKS.items():
        own = registry.DATASETS[entry.dataset]
        if entry.package:  # test_photographs.py
            continue
        if entry.weights is None:
            assert name in models.torchvision.models.list_models() and not own.embedded
            continue
        clf = tl.load_classifier(name, device="cpu")
        assert clf.activation == ("sigmoid" if entry.multi_label else "softmax")
        assert clf.categories == open_dataset(entry.dataset).categories
        attentive = any(isinstance(m, torch.nn.MultiheadAttention) for m in clf.network.modules())
        assert entry.family == ("transformer" if attentive else "convolutional")


def test_unknown_network_suggests_names():
    for name, meant in (("vgg19_cutout", "vgg19_cutouts"), ("vgg91", "vgg19"), ("resnet_18", "resnet18")):
        with pytest.raises(UnknownName, match=f"no network is called '{name}'; did you mean.* {meant}[ ?]"):
            tl.load_classifier(name)
    with pytest.raises(ValueError, match="see torchvision.models"):
        tl.load_classifier("?")


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
        tl.load_classifier("vgg19_cutouts", tmp_path / "other.pt")
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
    assert len(open_dataset("cutouts")) == 204
    assert len(open_dataset("imagenet", tree / "ILSVRC2012")) == 20
    with pytest.raises(ValueError, match="voc2007"):
        open_dataset("voc")
    with pytest.raises(ValueError, match="needs root"):
        open_dataset("folder")


# ---- the real layouts, and the faults of real files

READERS = {
    "imagenet": (trees.imagenet, {}, datasets.ImageNet, {}),
    "imagenet flat": (trees.imagenet, {"flat": True}, datasets.ImageNet, {}),
    "voc": (trees.voc, {}, datasets.VOC2007, {}),
    "voc trainval": (trees.voc, {"split": "trainval"}, datasets.VOC2007, {"split": "trainval"}),
    "coco": (trees.coco, {}, datasets.COCO2014, {}),
    "coco train": (trees.coco, {"split": "train"}, datasets.COCO2014, {"split": "train"}),
}


@pytest.fixture(scope="module", params=READERS)
def real(request, tmp_path_factory):
    """A tree as trees.py writes it, its dataset, and the samples or errors by id."""
    write, how, reader, split = READERS[request.param]
    tree = write(tmp_path_factory.mktemp("real"), **how)
    dataset, results = reader(tree.root, size=96, **split), {}
    for i, name in enumerate(dataset.ids):
        try:
            results[name] = dataset[i]
        except OSError as error:
            results[name] = error
    return tree, dataset, results


def test_every_picture_is_an_item_and_nothing_else_is(real):
    tree, dataset, _ = real
    assert dataset.ids == tree.ids and len(dataset) == len(tree.ids)


def test_classes_of_pictures_with_and_without_annotations(real):
    tree, _, results = real
    assert {name: results[name].classes for name in tree.classes} == tree.classes
    assert all(not results[name].masks for name in tree.unlabelled)


def test_what_cannot_be_read_is_an_oserror_that_says_why(real):
    tree, _, results = real
    broken = {name: str(r) for name, r in results.items() if isinstance(r, OSError)}
    assert broken.keys() == tree.skipped.keys() and broken
    for name, reason in tree.skipped.items():
        assert name in broken[name] and reason in broken[name]


def test_masks_lie_on_the_objects(real):
    """Of pictures cut by the border, turned by EXIF or annotated as stored; boxes and pixels."""
    tree, dataset, results = real
    checked = 0
    for name in tree.classes:
        sample = results[name]
        assert sample.pixels.shape == (3, 96, 96)
        assert sample.pixels.min() >= 0 and sample.pixels.max() <= 1
        assert not sample.classes or sample.pixels.std() > 0.1  # neither black nor white
        for c, mask in [*sample.masks.items(), *sample.pixel_masks.items()]:
            if (name, c) in tree.empty:
                assert not mask.any()
                continue
            inside = sample.pixels.mean(0)[mask]
            assert inside.mean() > 0.7, (name, c)
            checked += 1
    assert checked > 20 or isinstance(dataset, datasets.ImageNet)


def test_a_dataset_can_be_sent_to_another_process(real):
    _, dataset, results = real
    again = pickle.loads(pickle.dumps(dataset))
    name = again.ids[0]
    assert again.ids == dataset.ids and torch.equal(again[0].pixels, results[name].pixels)


def test_both_layouts_of_imagenet_give_the_same(tmp_path):
    by_class = trees.imagenet(tmp_path / "a", ugly=False)
    flat = trees.imagenet(tmp_path / "b", flat=True, ugly=False)
    one, two = datasets.ImageNet(by_class.root), datasets.ImageNet(flat.root)
    assert one.categories == two.categories == ["n02100735", "n02110185", "n02119789"]
    assert [one[i].classes for i in range(6)] == [two[i].classes for i in range(6)]
    assert set(by_class.classes.values()) == {(0,), (1,), (2,)}


def test_a_class_folder_without_pictures_is_none_but_the_kits_classes_stay(tmp_path):
    """Whatever folder lies there by chance. An output is found by the WNID, so no index shifts it."""
    tree = trees.imagenet(tmp_path / "whole", pictures=3, ugly=False)
    for path in (tree.root / "val/n02100735").iterdir():
        path.unlink()
    dataset = datasets.ImageNet(tree.root)
    assert dataset.categories == ["n02110185", "n02119789"]
    said = [dataset.categories[dataset[i].classes[0]] for i in range(2)]
    assert said == [dataset.items[i][0].parts[0] for i in range(2)]
    kit = trees.imagenet(tmp_path / "kit", flat=True, ugly=False).root / "ILSVRC2012_devkit_t12"
    kit.rename(tree.root / kit.name)
    dataset = datasets.ImageNet(tree.root)
    assert dataset.categories == ["n02100735", "n02110185", "n02119789"]
    assert [dataset[i].classes for i in range(2)] == [tree.classes[name] for name in dataset.ids]


def test_flat_imagenet_without_its_kit_says_what_is_missing(tmp_path):
    tree = trees.imagenet(tmp_path, flat=True, ugly=False)
    kit = tree.root / "ILSVRC2012_devkit_t12/data"
    whole = (kit / "meta.mat").read_bytes()
    (kit / "meta.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="unpack ILSVRC2012_devkit_t12.tar.gz again"):
        datasets.ImageNet(tree.root)
    (kit / "meta.mat").unlink()
    with pytest.raises(FileNotFoundError, match="meta.mat"):
        datasets.ImageNet(tree.root)


def test_pixel_masks_of_voc_leave_the_border_out(tmp_path):
    tree = trees.voc(tmp_path, ugly=False)
    dataset = datasets.VOC2007(tree.root, size=96)
    sample = dataset[0]
    assert sample.pixel_masks.keys() == sample.masks.keys() == {11, 14}
    for c, mask in sample.masks.items():
        assert 0 < sample.pixel_masks[c].sum() < mask.sum()
    assert not dataset[1].pixel_masks


def test_a_box_without_an_outline_leaves_no_pixel_mask(tmp_path):
    tree = trees.coco(tmp_path)
    dataset = datasets.COCO2014(tree.root)
    samples = [dataset[i] for i, name in enumerate(tree.ids) if name in tree.classes]
    without = [s for s in samples if s.masks.keys() - s.pixel_masks.keys()]
    assert len(without) == 1 and dataset.categories[without[0].classes[0]] == "bottle"


def test_pictures_without_annotations_are_turned_as_their_exif_says(tmp_path):
    upright = trees.picture([(0, 0, 96, 20)])  # bright at the top
    (tmp_path / "a.jpg").write_bytes(trees.turned(upright))
    exif = b"Exif\x00\x00garbage that no reader understands"
    (tmp_path / "b.jpg").write_bytes(trees.encode(upright, exif=exif))
    for i in range(2):
        rows = datasets.Folder(tmp_path, size=64)[i].pixels.mean((0, 2))
        assert rows[:15].mean() > 0.7 and rows[30:].mean() < 0.3


def test_sixteen_bits_keep_their_greys(tmp_path):
    values = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = datasets.Folder(tmp_path, size=64)[0].pixels
    assert np.abs(pixels.numpy() - values / 65535).max() < 1 / 255


def test_pictures_that_differ_in_their_ending_have_two_ids(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg", "._b.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(trees.encode(trees.picture()))
    assert datasets.Folder(tmp_path).ids == ["a.jpg", "a.png", "b.jpg"]


def test_paths_count_from_the_repository(tmp_path, monkeypatch):
    """Wherever a notebook runs; datasets without a root are looked for in data/downloads."""
    monkeypatch.setattr("thesis_lib.data.REPOSITORY", tmp_path / "repository")
    for name, entry in registry.DATASETS.items():
        if entry.folder:
            folder = tmp_path / "repository" / entry.folder.relative_to(REPOSITORY)
            monkeypatch.setitem(registry.DATASETS, name, replace(entry, folder=folder))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    downloads = tmp_path / "repository/data/downloads"
    with pytest.raises(FileNotFoundError, match="downloads/VOC2007.*data/README.md"):
        open_dataset("voc2007")
    trees.imagenet(downloads / "ILSVRC2012", ugly=False)
    trees.voc(downloads / "VOC2007", ugly=False)
    trees.voc(downloads / "VOC2007", 4, "trainval", ugly=False)
    trees.coco(downloads / "COCO2014", ugly=False)
    trees.coco(downloads / "COCO2014", 5, "train", ugly=False)
    sizes = {"imagenet": 6, "voc2007": 6, "voc2007_trainval": 4, "coco2014": 6, "coco2014_train": 5}
    assert {name: len(open_dataset(name)) for name in sizes} == sizes
    assert len(open_dataset("voc2007", "data/downloads/VOC2007")) == 6
    assert len(open_dataset("voc2007", str(downloads / "VOC2007"))) == 6
    assert len(open_dataset("folder", "data/downloads/COCO2014/train2014")) == 5


# ---- timm, and files of weights that are not what they say


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_timm_by_name(tmp_path, name):
    import timm

    clf = tl.load_classifier(name, "random", device="cpu")
    cfg = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    assert (clf.mean, clf.std) == (cfg.mean, cfg.std) and len(clf.categories) == 1000
    seven = timm.create_model(name.removeprefix("timm/"), num_classes=7)
    torch.save(seven.state_dict(), tmp_path / "seven.pt")
    again = tl.load_classifier(name, tmp_path / "seven.pt", device="cpu")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(again.logits(images), seven.eval()(images), atol=1e-4)
    assert again.categories is None  # a thousand names would not be theirs
    assert tl.METHODS["grad_cam"](again, images, [3]).shape == (1, 224, 224)


def test_timm_says_what_is_wrong_with_a_name(monkeypatch):
    with pytest.raises(ValueError, match="did you mean timm/resnet"):
        tl.load_classifier("timm/resnet_18")
    with pytest.raises(ValueError, match="Invalid pretrained tag"):
        tl.load_classifier("timm/resnet18.nobody", "random")
    with pytest.raises(ValueError, match="no classes"):
        tl.load_classifier("timm/vit_base_patch16_224.mae", "random")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        tl.load_classifier("timm/resnet18")


def test_missing_timm_weights_say_what_to_do(monkeypatch):
    import timm

    def offline(*_, pretrained, **__):
        assert pretrained
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match='weights="random"'):
        tl.load_classifier("timm/resnet18")


class Writes:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_of_weights_is_never_run(tmp_path, save):
    trap, file = tmp_path / "ran", tmp_path / "code.pt"
    save({"features.0.weight": Writes(trap)}, file)
    with pytest.raises(ValueError, match="never run"):
        tl.load_classifier("squeezenet1_1", file)
    assert not trap.exists()
    torch.load(file, weights_only=False) if save is torch.save else pickle.loads(file.read_bytes())
    assert trap.exists()  # it would have been


def test_damaged_files_of_weights_are_a_clear_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.rand(100)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, data in {
        "cut.safetensors": whole[:-100], "empty.safetensors": b"",
        "pickle.safetensors": pickle.dumps({"a": 1}), "empty.pt": b"", "html.pt": b"<html>",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            models.read_weights(tmp_path / name)
    torch.save({"state_dict": {"a": [torch.rand(2)]}, "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save(torch.rand(3), tmp_path / "tensor.pt")
    for name in ("checkpoint.pt", "tensor.pt"):
        with pytest.raises(ValueError, match=f"{name} is no state dict"):
            models.read_weights(tmp_path / name)


def test_weights_are_also_looked_for_from_the_repository(tmp_path, monkeypatch):
    state = tl.load_classifier("squeezenet1_1", "random", device="cpu").network.state_dict()
    (tmp_path / "repository/runs").mkdir(parents=True)
    torch.save(state, tmp_path / "repository/runs/w.pt")
    monkeypatch.setattr(models, "REPOSITORY", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    assert tl.load_classifier("squeezenet1_1", "runs/w.pt", device="cpu")
    with pytest.raises(FileNotFoundError, match="no weights at runs/none.pt"):
        tl.load_classifier("squeezenet1_1", "runs/none.pt", device="cpu")
