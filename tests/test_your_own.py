"""The page for a reader's own network and picture, with pictures and networks of many kinds.

Its code cells are run in this process, which is faster, and once by papermill, as a reader does.
"""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

import book
from thesis_lib.data.models import load_classifier
from thesis_lib.pages.parameters import declared

pytestmark = pytest.mark.minutes

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks/A_4_your_own.ipynb"
CELLS = book.code_cells(nbformat.read(NOTEBOOK, as_version=4))
(DEFAULTS,) = (c.source for c in CELLS if "parameters" in c.metadata.get("tags", []))
BENCHMARK = ROOT / "data/cutouts/ILSVRC2012/val/n01843383/ILSVRC2012_val_00000005.JPEG"
TOUCAN, LEMON = "n01843383-toucan", "n07749582-lemon"


def run(out, until=None, **parameters):
    """Run the code cells up to and including the one called `until`; returns what they defined."""
    assert set(parameters) <= set(declared(DEFAULTS))
    names = {}
    matplotlib.use("Agg")
    with matplotlib.rc_context():
        for cell in CELLS:
            exec(compile(cell.source, cell.id, "exec"), names)
            if cell.source == DEFAULTS:
                ours = {"out": str(out), "device": "cpu", "network": "vgg19_cutouts", "methods": ["grad_cam"]}
                names |= ours | {"compared": [str(BENCHMARK)]} | parameters
            if cell.id == until:
                break
    plt.close("all")
    return names


def scene(size, folder, name="scene.png", **options):
    """A toucan of the benchmark in the middle of a grey picture of another size."""
    picture = Image.new("RGB", size, (90, 90, 90))
    side = min(size)
    corner = ((size[0] - side) // 2, (size[1] - side) // 2)
    picture.paste(Image.open(BENCHMARK).resize((side, side)), corner)
    picture.save(folder / name, **options)
    return folder / name


def test_the_methods_are_compared_on_the_pictures_that_are_named(tmp_path):
    for compared, n in [
        (str(BENCHMARK.parent), len(list(BENCHMARK.parent.iterdir()))),
        ([str(BENCHMARK)] * 2, 1),
    ]:
        found = run(
            tmp_path / "out", picture=str(BENCHMARK), methods=["grad_cam", "xgrad_cam"], compared=compared
        )
        comparison = found["comparison"]
        assert comparison["id"].nunique() == n and list(comparison.table.index) == ["Grad-CAM", "XGrad-CAM"]
        assert re.search(rf"\bn = {n}\b", comparison.verdict)


def of_kind(saved, kind):
    return [file for file in saved if file.suffix == kind]


def test_a_wide_picture_is_mapped_back_to_its_own_pixels(tmp_path):
    path = scene((500, 280), tmp_path)
    found = run(tmp_path / "out", picture=str(path), enhance=True, target=LEMON)
    assert found["square"] == (110, 0, 390, 280) and found["seen"].size == (224, 224)
    assert found["called"](found["predicted"]) == TOUCAN != found["called"](found["c"])
    assert f"was asked for; the network predicts {TOUCAN}" in found["words"]
    assert f"{100 * 280 / 500:.0f} %" in found["words"]
    assert list(found["maps"]) == ["grad_cam", "grad_cam enhanced"] and not found["left_out"]
    assert all(int(r.classes) == found["c"] for r in found["results"].values())

    (values, enhanced), before = map(np.load, of_kind(found["saved"], ".npy")), Image.open(path)
    assert values.shape == (280, 500) and values.dtype == np.float32
    inside = np.zeros((280, 500), bool)
    inside[:, 110:390] = True
    assert (np.isfinite(values) == inside).all() and 0.9 < np.nanmax(values) <= 1
    assert np.nanmin(values) >= 0 and np.nanmax(abs(values - enhanced)) > 0.05
    after = Image.open(of_kind(found["saved"], ".png")[0])
    changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert after.size == before.size and not changed[~inside].any() and changed[inside].mean() > 0.9

    bare, better = (json.loads(file.read_text("utf-8")) for file in of_kind(found["saved"], ".json"))
    assert bare["settings"] == {} and better["settings"] == {"window": 160, "stride": 32}
    digest = bare["picture"].pop("sha256")
    assert digest == hashlib.sha256(np.asarray(before.convert("RGB")).tobytes()).hexdigest()
    assert bare["picture"] == {"file": "scene.png", "width": 500, "height": 280, "seen": [110, 0, 390, 280]}
    assert bare["class"]["name"] == LEMON and bare["class"]["predicted"] == TOUCAN
    assert bare["scores"]["over-all"] == pytest.approx(
        bare["scores"]["insertion"] - bare["scores"]["deletion"], abs=1e-6
    )
    assert len(bare["network"]["weights"]) == 64 and str(tmp_path) not in json.dumps(bare)


@pytest.mark.parametrize("kind", ["exif", "cmyk", "alpha", "grey", "16 bits", "tiny"])
def test_pictures_of_many_kinds(tmp_path, kind):
    upright = Image.open(scene((200, 300), tmp_path) if kind == "exif" else BENCHMARK)
    path = tmp_path / ("picture.jpg" if kind in ("exif", "cmyk") else "picture.png")
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # the viewer is to turn it to the right
        upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    elif kind == "cmyk":
        upright.convert("CMYK").save(path, quality=95)
    elif kind == "alpha":
        picture = upright.convert("RGBA")
        picture.paste((255, 0, 0, 0), (0, 0, 60, 60))  # red, and fully transparent
        picture.save(path)
    elif kind == "grey":
        upright.convert("L").save(path)
    elif kind == "16 bits":
        Image.fromarray(np.asarray(upright.convert("L")).astype(np.uint16) << 8).save(path)
    else:
        upright.resize((7, 5)).save(path)
    found = run(tmp_path / "out", "class", picture=str(path))
    whole = found["whole"]
    assert whole.mode == "RGB"
    assert whole.size == {"exif": (200, 300), "tiny": (7, 5)}.get(kind, (224, 224))
    if kind == "alpha":
        assert whole.getpixel((30, 30)) == (255, 255, 255)
        assert whole.getpixel((150, 150)) == upright.getpixel((150, 150))
    elif kind in ("exif", "cmyk"):
        assert abs(np.asarray(whole, float) - np.asarray(upright, float)).mean() < 4
    elif kind in ("grey", "16 bits"):
        assert (np.asarray(whole)[..., 0] == np.asarray(upright.convert("L"))).all()
    if kind in ("exif", "cmyk", "alpha"):
        assert found["called"](found["predicted"]) == TOUCAN


def test_a_transformer_leaves_out_what_does_not_fit(tmp_path):
    methods = ["transformer_attribution", "cameras"]
    found = run(tmp_path / "out", picture=str(BENCHMARK), network="vit_cutouts", methods=methods, target=7)
    assert list(found["maps"]) == ["transformer_attribution"]
    assert "refuses images" in found["left_out"]["cameras"]
    assert "CAMERAS is left out: the network refuses" in "\n".join(found["lines"])
    (name, *_) = (file.name for file in found["saved"])
    assert name == "ILSVRC2012_val_00000005-vit_cutouts-transformer_attribution-7.png"


@pytest.mark.parametrize("network", ["maxvit_t", "vit_cutouts"])
def test_a_method_whose_sizes_the_network_refuses_is_left_out_and_the_other_is_saved(tmp_path, network):
    weights = "random" if network == "maxvit_t" else ""
    methods = ["grad_cam", "msg_cam"]
    found = run(tmp_path / "out", picture=str(BENCHMARK), network=network, weights=weights, methods=methods)
    assert list(found["maps"]) == ["grad_cam"] and list(found["left_out"]) == ["msg_cam"]
    assert "MSG-CAM is left out: the network refuses images of" in "\n".join(found["lines"])
    assert len(list((tmp_path / "out").iterdir())) == 3


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


# One call after the other into one folder: what is other than before, and the map's name.
CALLS = [
    ({}, "cat-vgg19_cutouts-grad_cam-3"),
    ({"network": "vit_cutouts"}, "cat-vit_cutouts-grad_cam-3"),
    ({"picture": "b/cat.png"}, "cat-vgg19_cutouts-grad_cam-3-2"),
    ({"picture": "a/cat.tiff"}, "cat-vgg19_cutouts-grad_cam-3-3"),
    ({"weights": "random"}, "cat-vgg19_cutouts-grad_cam-3-4"),
    ({"layer": "features.34"}, "cat-vgg19_cutouts-grad_cam-3-5"),
    ({"target": 4}, "cat-vgg19_cutouts-grad_cam-4"),
    ({"methods": ["xgrad_cam"]}, "cat-vgg19_cutouts-xgrad_cam-3"),
    # The same question again, of which one names the file of the network's own weights:
    ({"picture": "b/cat.png"}, "cat-vgg19_cutouts-grad_cam-3-2"),
    ({"weights": "data/weights/vgg19_cutouts.safetensors"}, "cat-vgg19_cutouts-grad_cam-3"),
]


def test_no_result_is_written_over_another_and_the_same_question_has_the_same_files(tmp_path):
    for folder, left in (("a", 0), ("b", 60)):
        (tmp_path / folder).mkdir()
        picture = Image.open(BENCHMARK).convert("RGB")
        picture.paste((0, 90, 0), (left, 0, left + 50, 50))
        picture.save(tmp_path / folder / "cat.png")
    picture.save(tmp_path / "a/cat.tiff")  # the name without its kind is the same again
    out, seen = tmp_path / "out", set()
    for parameters, name in CALLS:
        given = {"picture": "a/cat.png", "target": 3} | parameters
        before, found = contents(out), run(out, **given | {"picture": str(tmp_path / given["picture"])})
        after = contents(out)
        assert [file.name for file in found["saved"]] == [f"{name}.{kind}" for kind in ("png", "npy", "json")]
        assert all(after[file] == before[file] for file in before if not file.endswith(".json"))
        assert (after.keys() == before.keys()) is (name in seen)
        seen.add(name)
        stem = re.sub(r"(-\d)-\d$", r"\1", name)
        assert found["stems"] == [stem]
        said = f"- `{stem}` holds another result, so this one is `{name}`."
        assert found["numbered"] == ([] if stem == name else [said])
    assert len(after) == 3 * 8
    assert len({after[f"{name}.npy"] for name in seen}) == 7  # the .tiff has the pixels of b/cat.png


def test_files_that_are_not_this_pages_are_kept(tmp_path):
    out, name = tmp_path / "out", "ILSVRC2012_val_00000005-vgg19_cutouts-grad_cam-3"
    out.mkdir()
    for file, content in {
        f"{name}.png": "mine", f"{name}-2.json": "", f"{name}-3.json": "[1, 2]",
        f"{name}-4.json": '{"picture": 3}', f"{name}-5.json": "{}",
    }.items():  # fmt: skip
        (out / file).write_text(content)
    before = contents(out)
    found = run(out, picture=str(BENCHMARK), target=3)
    assert {file.stem for file in found["saved"]} == {f"{name}-6"}
    assert before.items() <= contents(out).items()


def test_other_classes_count_all_scales(tmp_path):
    for target, own in [(-1, {}), (7, {"gate": "always"})]:
        found = run(tmp_path / "out", "maps", picture=str(BENCHMARK), methods=["cameras"], target=target)
        assert found["settings"]["cameras"] == own


def test_sizes_are_those_that_the_network_names(tmp_path):
    found = run(
        tmp_path, "read", network="timm/vit_tiny_patch16_384", weights="random", picture=str(BENCHMARK)
    )
    assert found["side"] == 384 and found["image"].shape == (1, 3, 384, 384)


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text(
        "\ufeff" + "\n".join(["crane", "tabby cat", "crane", *map("n{}".format, range(48))]) + "\n", "utf-8"
    )
    return str(file)


def test_a_class_by_name_or_index(tmp_path, names):
    for target, index in [("tabby cat", 1), (1, 1), ("1", 1), ("n16", 19), (-1, 4), ("-1", 4)]:
        found = run(tmp_path, "class", picture=str(BENCHMARK), categories=names, target=target)
        assert found["c"] == index, target


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"picture": "no/cat.jpg"}, FileNotFoundError, "no picture at no/cat.jpg: give its path"),
        ({"compared": "no/folder"}, FileNotFoundError, "no folder at no/folder: give its path"),
        ({"compared": ["no/cat.jpg"]}, FileNotFoundError, "no picture at no/cat.jpg: give its path"),
        ({"picture": "README.md"}, OSError, "README.md is not a readable picture"),
        ({"network": "resnet51"}, ValueError, "did you mean .*resnet50"),
        ({"network": "resnet18", "weights": "no.pt"}, FileNotFoundError, "no weights at no.pt"),
        ({"layer": "features.99"}, ValueError, "no layer 'features.99'; its last ones are"),
        ({"methods": []}, ValueError, "methods is empty: name some of grad_cam"),
        ({"methods": ["gradcam"]}, KeyError, "no method is called 'gradcam'; did you mean 'grad_cam'"),
        ({"methods": ["attention_rollout"]}, ValueError, "none of the methods fits, name others:\n- attention_rollout: "),
        ({"target": "n01843383-tucan"}, ValueError, "no class is called 'n01843383-tucan'; there are n01843383-toucan, .*give a name or an index"),
        ({"target": "Toucan"}, ValueError, "there are n01843383-toucan, "),
        ({"target": 51}, IndexError, "class 51 is out of range: 0 to 50, or -1"),
        ({"target": -2}, IndexError, "out of range"),
        ({"target": True}, TypeError, "a class's name or index, not True"),
        ({"target": "crane", "categories": "NAMES"}, ValueError, r"give one of the indices \[0, 2\]"),
        ({"categories": "pyproject.toml"}, ValueError, "class names, and vgg19_cutouts has 51 classes: .*one name a line"),
        ({"categories": "names.csv"}, FileNotFoundError, "no file of categories at names.csv"),
        ({"network": "resnet18", "weights": "SEVEN", "target": "cat"}, ValueError, "no class names: give an index, or name a file"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_errors_say_what_to_do(tmp_path, names, parameters, error, message):
    if parameters.get("weights") == "SEVEN":
        from torch import save
        from torchvision.models import resnet18

        save(resnet18(num_classes=7).state_dict(), tmp_path / "seven.pt")
    real = {"NAMES": names, "SEVEN": str(tmp_path / "seven.pt")}
    parameters = {k: real.get(v, v) if isinstance(v, str) else v for k, v in parameters.items()}
    with pytest.raises(error, match=f"(?s){message}"), contextlib.redirect_stdout(None):
        run(tmp_path / "out", "maps", **{"picture": str(BENCHMARK)} | parameters)
    assert not (tmp_path / "out").exists()


def test_from_the_shell(tmp_path, monkeypatch):
    """The line of the page, from another folder than the repository's."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # else the comparison says on stderr how long it takes
    exif = Image.Exif()
    exif[0x0112] = 6
    scene((320, 200), tmp_path, "cat.jpg", exif=exif)
    (tmp_path / "names.txt").write_text("\n".join(f"name {k}" for k in range(1000)), "utf-8")
    command = [
        Path(sys.executable).with_name("papermill"), NOTEBOOK, "mine.ipynb", "-p", "picture", "cat.jpg", "-p", "network", "resnet18", "-p", "weights", "random",
        "-p", "categories", "names.txt", "-p", "target", "281", "-y", "methods: [xgrad_cam]",
        "-p", "out", str(tmp_path / "maps"), "-p", "compared", str(BENCHMARK.parent), "--no-progress-bar",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    mine = nbformat.read(tmp_path / "mine.ipynb", as_version=4)
    shown = "".join(
        o.get("text", "") + o.get("data", {}).get("text/markdown", "")
        for c in book.code_cells(mine)
        for o in c.outputs
    )
    assert "Explained is **name 281**" in shown and "central square of the picture's 200 x 320" in shown
    assert not [o for c in book.code_cells(mine) for o in c.outputs if o.get("name") == "stderr"]
    files = contents(tmp_path / "maps")
    assert sorted(files) == [f"cat-resnet18-xgrad_cam-281.{kind}" for kind in ("json", "npy", "png")]
    assert np.load(tmp_path / "maps/cat-resnet18-xgrad_cam-281.npy").shape == (320, 200)

    (tmp_path / "b").mkdir()
    scene((320, 300), tmp_path / "b", "cat.jpg")
    command = ["b/cat.jpg" if word == "cat.jpg" else word for word in command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    after = contents(tmp_path / "maps")
    assert files.items() <= after.items() and len(after) == 6 and "cat-resnet18-xgrad_cam-281-2.npy" in after
    assert (
        "holds another result, so this one is `cat-resnet18-xgrad_cam-281-2`"
        in (tmp_path / "mine.ipynb").read_text()
    )


def test_the_lines_of_the_page_name_what_exists():
    text = nbformat.read(NOTEBOOK, as_version=4).cells[0].source
    given = re.findall(r"(?:-p (\w+) |-y \"(\w+):)", text)
    assert len(given) > 8 and {a or b for a, b in given} <= {"NAME", *declared(DEFAULTS)}
    for name in re.findall(r"-p network ([\w/]+)", text):
        if name != "resnet50":  # its weights are large
            assert load_classifier(name, weights="random", device="cpu").layer
