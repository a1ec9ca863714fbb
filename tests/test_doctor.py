"""The doctor, on tiny trees and on environments with parts missing."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import trees

from thesis_lib.data import DOWNLOADS, REPOSITORY
from thesis_lib.data.models import NETWORKS
from thesis_lib.data.registry import DATASETS
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
def downloads(monkeypatch, tmp_path):
    """No datasets in data/downloads and no cache of weights, whatever this machine has."""
    for name, entry in DATASETS.items():
        if entry.folder and entry.folder.is_relative_to(DOWNLOADS):
            folder = tmp_path / "downloads" / entry.folder.relative_to(DOWNLOADS)
            monkeypatch.setitem(DATASETS, name, replace(entry, folder=folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "downloads"


def test_the_embedded_part_is_enough(capsys):
    status, text = report(capsys)
    assert status == 0 and "The book can be made." in text
    assert "204 of 204 pictures" in line(text, "[OK]      single cut-out things")
    for part in ("ILSVRC2012 validation", "VOC2007 test", "COCO 2014 validation", "vgg19 for ImageNet"):
        assert line(text, part).startswith("[MISSING]")
        assert step(text, part).startswith("          next: ")
    assert re.search(r"^\[OK\]      torch \d", text, re.M)
    assert "858 of 858 pictures" in line(text, "[OK]      photographs of 399 ImageNet classes")
    assert line(text, "EfficientNet-Lite0's weights").startswith("[OK]")
    assert line(text, "NIPS 2017").startswith("[MISSING]")


@pytest.mark.parametrize("table, folder", [("images.csv", "images"), ("dev_dataset.csv", ".")])
def test_the_published_photographs_in_both_layouts(capsys, monkeypatch, tmp_path, table, folder):
    sizes(monkeypatch, nips17=2)
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "notes.txt"):
        (tmp_path / folder / name).touch()
    assert line(report(capsys, "--data-root", str(tmp_path))[1], "NIPS 2017").startswith("[MISSING]")
    (tmp_path / table).touch()
    found = line(report(capsys, "--data-root", str(tmp_path))[1], "NIPS 2017")
    assert found.startswith("[OK]") and "2 of 2 pictures" in found


def test_a_network_without_its_package_is_an_error(capsys, monkeypatch):
    monkeypatch.setitem(
        NETWORKS, "efficientnet_lite0", replace(NETWORKS["efficientnet_lite0"], package="not-installed")
    )
    status, text = report(capsys)
    assert status == 1 and line(text, "EfficientNet-Lite0's weights").startswith("[MISSING]")


def sizes(monkeypatch, **pictures):
    """Tell the doctor that these datasets have so many pictures."""
    for name, size in pictures.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], size=size))


def test_whole_datasets_are_ok(capsys, monkeypatch, tmp_path, downloads):
    """Told that they are of the tiny trees' sizes."""
    counts = dict(imagenet=6, voc2007=5, voc2007_trainval=4, coco2014=3, coco2014_train=2)
    sizes(monkeypatch, **counts)
    trees.imagenet(downloads / "ILSVRC2012", 6, flat=True, ugly=False)
    trees.voc(tmp_path / "elsewhere", 5, ugly=False)
    trees.voc(tmp_path / "elsewhere", 4, "trainval", ugly=False)
    trees.coco(downloads / "COCO2014", 3, ugly=False)
    trees.coco(downloads / "COCO2014", 2, "train", ugly=False)
    status, text = report(capsys, "--data-root", str(tmp_path / "elsewhere"))
    assert status == 0
    for name, count in counts.items():
        found = line(text, DATASETS[name].title)
        assert found.startswith("[OK]") and f"{count} of {count} pictures" in found
    assert str(tmp_path / "elsewhere") in line(text, "VOC2007 test")
    shutil.rmtree(tmp_path / "elsewhere/VOCdevkit/VOC2007/Annotations")
    _, text = report(capsys, "--data-root", str(tmp_path / "elsewhere"))
    assert line(text, "VOC2007 test").startswith("[MISSING]")
    assert "Annotations is not there" in step(text, "VOC2007 test")


def test_pictures_too_many_are_told(capsys, monkeypatch, downloads):
    """The same pictures twice, flat and in folders, are such a case: names alone do not tell."""
    sizes(monkeypatch, imagenet=6)
    tree = trees.imagenet(downloads / "ILSVRC2012", 6, flat=True, ugly=False)
    copies = downloads / "ILSVRC2012/val/n01440764"
    copies.mkdir()
    for name in tree.ids[:2]:
        shutil.copy(downloads / f"ILSVRC2012/val/{name}.JPEG", copies)
    _, text = report(capsys)
    assert "8 of 6 pictures" in line(text, "ILSVRC2012") and line(text, "ILSVRC2012").startswith("[MISSING]")
    assert "there are 2 pictures too many" in step(text, "ILSVRC2012")


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


def moved(monkeypatch, root):
    """Tell the doctor that the repository is at `root`."""
    for name, entry in DATASETS.items():
        if entry.embedded:
            folder = root / entry.folder.relative_to(REPOSITORY)
            monkeypatch.setitem(DATASETS, name, replace(entry, folder=folder))
    for name, entry in NETWORKS.items():
        if entry.weights:
            file = root / entry.weights.relative_to(REPOSITORY)
            monkeypatch.setitem(NETWORKS, name, replace(entry, weights=file))
    monkeypatch.setattr(doctor, "REPOSITORY", root)


def test_damaged_embedded_parts_are_an_error(capsys, monkeypatch, tmp_path):
    """A copy of the repository's data with one picture gone and one file of weights cut off."""
    shutil.copytree(REPOSITORY / "data", tmp_path / "data", ignore=shutil.ignore_patterns("downloads"))  # fmt: skip
    moved(monkeypatch, tmp_path)
    assert report(capsys)[0] == 0
    weights = tmp_path / "data/weights/vit_cutouts.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    status, text = report(capsys)
    assert status == 1 and line(text, "/vit_cutouts.").startswith("[MISSING]")
    weights.write_bytes(whole)
    next((tmp_path / "data/cutouts/coco/val2014").iterdir()).unlink()
    status, text = report(capsys)
    assert status == 1 and "33 of 34" in line(text, "scenes of cut-out things, COCO2014's layout")
    shutil.rmtree(tmp_path / "data")
    assert report(capsys)[0] == 1


def test_weights_that_are_there_are_found(capsys, monkeypatch, tmp_path):
    (tmp_path / "cache/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "cache/hub/checkpoints/vgg19-dcbb9e9d.pth").touch()
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "runs").mkdir()
    source = REPOSITORY / "data/weights/vit_cutouts.safetensors"
    shutil.copy(source, tmp_path / "runs/vgg19_voc2007.safetensors")
    (tmp_path / "runs/vgg19_coco2014.safetensors").write_bytes(b"")
    moved(monkeypatch, tmp_path)
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
    assert line(done.stdout, "single cut-out things").startswith("[OK]")  # the others are still checked


def declared(monkeypatch, *lines):
    monkeypatch.setattr(doctor, "requires", lambda name: list(lines))


def test_the_packages_are_those_that_the_library_declares(capsys):
    _, text = report(capsys)
    parts = re.split(r"\n\n(?=\w)", text)
    (needed,) = [part for part in parts if part.strip().startswith("Packages\n")]
    (optional,) = [part for part in parts if part.startswith("Packages for single purposes")]
    for requirement in importlib.metadata.requires("thesis-lib"):
        name = re.match(r"[\w.-]+", requirement)[0]
        single = "extra" in requirement and "book" not in requirement.partition(";")[2]
        assert line(optional if single else needed, f" {name} ")


def test_a_library_without_its_repository_needs_no_book(capsys, monkeypatch, tmp_path):
    moved(monkeypatch, tmp_path)
    declared(monkeypatch, "numpy", 'no-such-package; extra == "book"')
    assert report(capsys)[0] == 1
    monkeypatch.setattr(doctor, "BOOK", False)
    status, text = report(capsys)
    assert status == 0 and "The library can be used." in text
    assert line(text, "no-such-package") == "[MISSING] no-such-package, one of the book packages"
    assert "clone the repository" in step(text, "pictures, networks and rows of the book")


def test_a_package_that_is_not_installed(capsys, monkeypatch):
    declared(monkeypatch, "numpy", "no-such-package>=2")
    status, text = report(capsys)
    assert status == 1 and line(text, "no-such-package") == "[MISSING] no-such-package"


def test_a_package_of_another_version(capsys, monkeypatch):
    declared(monkeypatch, "numpy>=1", "pandas<1")
    status, text = report(capsys)
    assert status == 1 and line(text, "pandas").startswith("[MISSING]") and "<1" in line(text, "pandas")
    assert line(text, "numpy").startswith("[OK]")


def test_a_package_for_another_system_or_a_single_purpose(capsys, monkeypatch):
    declared(
        monkeypatch, "numpy", "not-here; sys_platform == 'never'", 'rare>2; extra == "cluster"',
        'nowhere; sys_platform == "never" and extra == "cluster"',
    )  # fmt: skip
    status, text = report(capsys)
    assert status == 0 and "not-here" not in text and "nowhere" not in text
    assert line(text, "rare") == "[MISSING] rare, one of the cluster packages"
    assert ".[cluster]" in step(text, "rare")


def test_packages_without_a_reader_of_their_conditions(capsys, monkeypatch):
    """packaging is a package, too."""
    monkeypatch.setitem(sys.modules, "packaging", None)
    for part in ("requirements", "specifiers"):
        monkeypatch.setitem(sys.modules, f"packaging.{part}", None)
    declared(monkeypatch, "pandas<1", "no-such[fast]>=2", 'rare>2; extra == "cluster"')
    _, text = report(capsys)
    assert line(text, "pandas").startswith("[OK]")
    assert line(text, "no-such") == "[MISSING] no-such"
    assert line(text, "rare") == "[MISSING] rare, one of the cluster packages"
