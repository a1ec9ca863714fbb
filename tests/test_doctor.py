"""The doctor, on tiny trees and on environments with parts missing."""

import re
import shutil
import subprocess
import sys

import pytest
import trees

from thesis_lib.data import REPOSITORY
from thesis_lib.pages import doctor


def report(capsys, *arguments):
    """Exit status, {part: whether OK}, the whole text."""
    status = doctor.main(list(arguments))
    text = capsys.readouterr().out
    return status, text


def line(text, part):
    (found,) = [row for row in text.splitlines() if part in row and row.startswith("[")]
    return found


def step(text, part):
    rows = text.splitlines()
    return rows[rows.index(line(text, part)) + 1]


@pytest.fixture(autouse=True)
def repository(monkeypatch, tmp_path):
    """No datasets in data/downloads and no cache of weights, whatever this machine has."""
    monkeypatch.setattr(doctor, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_embedded_part_is_enough(capsys):
    status, text = report(capsys)
    assert status == 0 and "The book can be made." in text
    assert line(text, "single objects").startswith("[OK]      single objects: 320 of 320")
    for part in ("ILSVRC2012 validation", "VOC2007 test", "COCO 2014 validation", "vgg19 for ImageNet"):
        assert line(text, part).startswith("[MISSING]")
        assert step(text, part).startswith("          next: ")
    assert re.search(r"^\[OK\]      torch \d", text, re.M)


def test_whole_datasets_are_ok(capsys, monkeypatch, tmp_path):
    """Told that they are of the tiny trees' sizes."""
    sizes = {"ILSVRC2012": 6, "VOC2007 test": 5, "VOC2007 trainval": 4, "COCO 2014 v": 3, "COCO 2014 t": 2}  # fmt: skip
    changed = [
        (name, next(n for key, n in sizes.items() if name.startswith(key)), *rest)
        for name, _, *rest in doctor.DATASETS
    ]
    monkeypatch.setattr(doctor, "DATASETS", changed)
    downloads = tmp_path / "downloads"
    trees.imagenet(downloads / "ILSVRC2012", 6, flat=True, ugly=False)
    trees.voc(tmp_path / "elsewhere", 5, ugly=False)
    trees.voc(tmp_path / "elsewhere", 4, "trainval", ugly=False)
    trees.coco(downloads / "COCO2014", 3, ugly=False)
    trees.coco(downloads / "COCO2014", 2, "train", ugly=False)
    status, text = report(capsys, "--data-root", str(tmp_path / "elsewhere"))
    assert status == 0
    for name, count, *_ in changed:
        assert line(text, name).startswith("[OK]")
        assert f"{count} of {count} pictures" in line(text, name)
    assert str(tmp_path / "elsewhere") in line(text, "VOC2007 test")
    shutil.rmtree(tmp_path / "elsewhere/VOCdevkit/VOC2007/Annotations")
    _, text = report(capsys, "--data-root", str(tmp_path / "elsewhere"))
    assert line(text, "VOC2007 test").startswith("[MISSING]")
    assert "Annotations is not there" in step(text, "VOC2007 test")


def test_incomplete_datasets_are_counted(capsys, tmp_path):
    flat = trees.imagenet(tmp_path / "flat", flat=True)  # .DS_Store and the like do not count
    voc = trees.voc(tmp_path / "voc", ugly=False)
    (voc.root / "VOCdevkit/VOC2007/JPEGImages/000002.jpg").unlink()
    roots = [str(flat.root), str(voc.root)]
    status, text = report(capsys, "--data-root", *roots)
    assert status == 0  # real datasets are optional
    found = f"{len(flat.ids)} of 50,000 pictures"
    assert line(text, "ILSVRC2012").startswith("[MISSING]") and found in line(text, "ILSVRC2012")
    assert f"{50_000 - len(flat.ids):,} pictures are not there" in step(text, "ILSVRC2012")
    assert "5 of 4,952 pictures" in line(text, "VOC2007 test")


def test_pictures_without_classes_are_seen(capsys, tmp_path):
    flat = trees.imagenet(tmp_path / "flat", flat=True, ugly=False)
    shutil.rmtree(flat.root / "ILSVRC2012_devkit_t12")
    _, text = report(capsys, "--data-root", str(flat.root))
    assert "ILSVRC2012_devkit_t12.tar.gz" in step(text, "ILSVRC2012")


def test_damaged_embedded_parts_are_an_error(capsys, monkeypatch, tmp_path):
    """A copy of the repository's data with one picture gone and one file of weights cut off."""
    shutil.copytree(REPOSITORY / "data", tmp_path / "data", ignore=shutil.ignore_patterns("downloads"))  # fmt: skip
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    assert report(capsys)[0] == 0
    weights = tmp_path / "data/weights/vit_glyphs.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    status, text = report(capsys)
    assert status == 1 and line(text, "/vit_glyphs.").startswith("[MISSING]")
    weights.write_bytes(whole)
    next((tmp_path / "data/glyphs/coco/val2014").iterdir()).unlink()
    status, text = report(capsys)
    assert status == 1 and "127 of 128" in line(text, "COCO2014's layout")
    shutil.rmtree(tmp_path / "data")
    assert report(capsys)[0] == 1


def test_weights_that_are_there_are_found(capsys, monkeypatch, tmp_path):
    (tmp_path / "cache/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "cache/hub/checkpoints/vgg19-dcbb9e9d.pth").touch()
    (tmp_path / "runs").mkdir()
    source = REPOSITORY / "data/weights/vit_glyphs.safetensors"
    shutil.copy(source, tmp_path / "runs/vgg19_voc2007.safetensors")
    (tmp_path / "runs/vgg19_coco2014.safetensors").write_bytes(b"")
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    _, text = report(capsys)
    assert line(text, "vgg19 for ImageNet").startswith("[OK]")
    assert line(text, "vit_b_16 for ImageNet").startswith("[MISSING]")
    assert "-p network vit_b_16 -p out runs/vit_b_16_voc2007.safetensors" in step(text, "vit_b_16_voc2007")
    assert line(text, "vgg19_voc2007").startswith("[OK]")
    assert line(text, "vgg19_coco2014").startswith("[MISSING]")


def test_half_an_environment_is_reported_not_a_crash(tmp_path):
    """In a process where PyTorch, kornia and safetensors cannot be imported."""
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'torchvision', 'kornia', 'safetensors', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['doctor']\n"
        "runpy.run_module('thesis_lib.pages.doctor', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and not done.stderr
    assert line(done.stdout, "kornia").startswith("[MISSING] kornia")
    assert "The embedded part is incomplete." in done.stdout
    assert line(done.stdout, "single objects").startswith("[OK]")  # the others are still checked


def test_a_package_that_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ["numpy", "no-such-package"])
    status, text = report(capsys)
    assert status == 1 and line(text, "no-such-package") == "[MISSING] no-such-package"
