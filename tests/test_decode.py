"""Datasets decoded to files: what is in them, what is left out, and when they are used again."""

import json
import shutil

import cutouts as script
import numpy as np
import pytest
import trees

import thesis_lib as tl
from thesis_lib.data import cutouts, datasets, decode
from thesis_lib.data.registry import open_dataset
from thesis_lib.training import train as training


@pytest.fixture
def voc(tmp_path):
    """Six scenes in VOC2007's layout."""
    script.write_voc(tmp_path / "voc", 6)
    return open_dataset("cutouts_scenes", tmp_path / "voc")


def test_pixels_and_labels_are_the_datasets(voc, tmp_path):
    pixels, labels, skipped = decode.decode(voc, tmp_path / "d", size=32)
    assert pixels.shape == (6, 3, 32, 32) and pixels.dtype == np.uint8
    assert isinstance(pixels, np.memmap) and labels.dtype == bool and skipped == {}
    small = datasets.VOC2007(tmp_path / "voc", size=32, categories=cutouts.categories())
    for i in range(6):
        assert np.array_equal(pixels[i], (small[i].pixels * 255).round().byte().numpy())
        assert np.array_equal(np.flatnonzero(labels[i]), small[i].classes)
    assert voc.size == 224  # the caller's dataset stays as it is


def test_what_cannot_be_used_is_left_out_and_listed(voc, tmp_path):
    folder = tmp_path / "voc/VOCdevkit/VOC2007"
    (folder / "JPEGImages/000002.jpg").write_bytes(b"no picture")
    path = folder / "Annotations/000005.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    pixels, labels, skipped = decode.decode(voc, tmp_path / "d", size=16)
    assert len(pixels) == len(labels) == len(np.load(tmp_path / "d/pixels.npy")) == 4
    assert skipped["000005"] == "shows no class" and "000002.jpg" in skipped["000002"]
    assert json.loads((tmp_path / "d/decoded.json").read_text())["skipped"] == skipped
    kept = [(voc[i].classes) for i in (0, 2, 3, 5)]  # rows move up
    assert [tuple(np.flatnonzero(row)) for row in labels] == kept


def test_a_finished_folder_is_used_again_and_no_other(voc, tmp_path):
    before, _, _ = decode.decode(voc, tmp_path / "d", size=16)
    before = before.copy()
    shutil.rmtree(tmp_path / "voc/VOCdevkit/VOC2007/JPEGImages")  # nothing left to read
    again, labels, _ = decode.decode(voc, tmp_path / "d", size=16)
    assert np.array_equal(before, again) and len(labels) == 6
    for other in (dict(size=8), dict(size=16, limit=3)):
        with pytest.raises(ValueError, match="none of . pictures can be used"):
            decode.decode(voc, tmp_path / "d", **other)


def test_an_interrupted_decode_starts_anew(voc, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK", 2)
    real, read = datasets.VOC2007.__getitem__, []

    def stop_at_fourth(self, i):
        read.append(i)
        if i == 3:
            raise KeyboardInterrupt
        return real(self, i)

    decode.decode(voc, tmp_path / "d", size=8)  # of another size, to be replaced
    with monkeypatch.context() as patch:
        patch.setattr(datasets.VOC2007, "__getitem__", stop_at_fourth)
        with pytest.raises(KeyboardInterrupt):
            decode.decode(voc, tmp_path / "d", size=16)
    assert read and not (tmp_path / "d/decoded.json").exists()
    pixels, _, _ = decode.decode(voc, tmp_path / "d", size=16)
    whole, _, _ = decode.decode(voc, tmp_path / "whole", size=16)
    assert np.array_equal(pixels, whole)


def test_a_full_disk_is_told_before_anything_is_decoded(voc, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match="free space.*make room"):
        decode.decode(voc, tmp_path / "d")


def test_subsets_and_coco_are_decoded(tmp_path):
    tree = trees.coco(tmp_path / "coco", pictures=4, split="train", ugly=False)
    dataset = open_dataset("coco2014_train", tree.root)
    list_ = tmp_path / "list.csv"
    list_.write_text("id\n" + "\n".join(reversed(dataset.ids[:3])) + "\n")
    subset = open_dataset("coco2014_train", tree.root, subset=list_)
    whole, labels, _ = decode.decode(dataset, tmp_path / "whole", size=16)
    part, part_labels, _ = decode.decode(subset, tmp_path / "part", size=16)
    assert labels.shape[1] == len(dataset.categories)
    assert np.array_equal(part, whole[2::-1]) and np.array_equal(part_labels, labels[2::-1])


def test_from_voc_on_disk_to_a_network_that_load_classifier_reads(tmp_path):
    tree = trees.voc(tmp_path, pictures=6, split="trainval", ugly=False)
    dataset = open_dataset("voc2007_trainval", tree.root)
    pixels, labels, _ = decode.decode(dataset, tmp_path / "d", size=32)
    classifier = training.new_head("squeezenet1_1", dataset.categories, "random")
    curve = training.train(
        classifier.network, pixels, labels, epochs=1, batch=2, sizes=(32,), rate=1e-3,
        multi_label=True, held_out=(pixels, labels), checkpoint=tmp_path / "c.pt",
    )  # fmt: skip
    assert 0 < curve[0]["score"] <= 1
    file = tmp_path / "tuned.safetensors"
    training.save_weights(
        classifier.network, file, architecture=classifier.name, categories=dataset.categories,
        activation=classifier.activation,
    )  # fmt: skip
    loaded = tl.load_classifier("squeezenet1_1", file, device="cpu")
    assert loaded.categories == datasets.VOC_CATEGORIES and loaded.activation == "sigmoid"
    expected = training.predict(classifier.network, pixels, 32)
    assert np.array_equal(training.predict(loaded.network, pixels, 32), expected)
