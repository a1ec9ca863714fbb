"""What other tools and other people's disks put into files: each line of a table is a file as somebody
wrote it, and what is right for it.

Right is either the value that the file means, or one error that says what to do: a ValueError or
FileNotFoundError when the dataset is opened, an OSError with the file's name for one picture. In the
tables a text is the error's words, anything else the value.
"""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import trees
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, features
from pycocotools import mask as coco_mask

from thesis_lib.data import CUTOUTS, subsets
from thesis_lib.data.cutouts import categories
from thesis_lib.data.datasets import COCO2014, VOC2007, Folder, ImageNet, _runs
from thesis_lib.data.pictures import open_image, read_indices, read_picture

PICTURE = trees.encode(trees.picture([trees.BOXES["left"]]))
LEFT = trees.BOXES["left"]  # of the 96 x 64 pixels


def lay(root, *names, data=PICTURE):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def check(right, value):
    """`value()` is what the table says, or fails with its words."""
    if isinstance(right, str):
        with pytest.raises((OSError, ValueError), match=right) as error:
            value()
        assert "\n" not in str(error.value)
    else:
        assert value() == right


# ---- VOC2007's layout

OBJECT = """<object><name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>9</xmin><ymin>13</ymin><xmax>40</xmax><ymax>44</ymax></bndbox></object>"""
ANNOTATION = f"""<annotation><folder>x</folder><filename>a.jpg</filename>
<size><width>96</width><height>64</height><depth>3</depth></size><segmented>0</segmented>{OBJECT}</annotation>"""
DOG = {11: trees.BOXES["left"]}


def boxes_of(sample):
    """{class: x0, y0, x1, y1 of the pixels in its mask}, in the 96 x 64 pixels."""
    found = {}
    for c, mask in sample.masks.items():
        y, x = (side.numpy() for side in mask.nonzero(as_tuple=True))
        found[c] = tuple(round(float(v)) for v in (
            x.min() * 96 / 192, y.min() * 64 / 192, (x.max() + 1) * 96 / 192, (y.max() + 1) * 64 / 192,
        )) if len(x) else None  # fmt: skip
    return found


def voc(root, annotation=ANNOTATION, listed="a\n", picture="a.jpg"):
    base = root / "VOCdevkit/VOC2007"
    lay(base, f"JPEGImages/{picture}", data=trees.encode(trees.picture([LEFT]), Image.registered_extensions()[Path(picture).suffix.lower()]))  # fmt: skip
    lay(base, "ImageSets/Main/test.txt", data=listed if isinstance(listed, bytes) else listed.encode())
    lay(base, "Annotations/a.xml", data=annotation if isinstance(annotation, bytes) else annotation.encode())
    return root


def of(old, new, count=-1):
    assert old in ANNOTATION
    return ANNOTATION.replace(old, new, count)


def difficult(text):
    return of("<difficult>0</difficult>", text)


PART = (
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
)
BOX = re.search("<bndbox>.*</bndbox>", OBJECT, re.S)[0]
SIZE = re.search("<size>.*</size>", ANNOTATION)[0]
ANNOTATIONS = {
    "as VOC2007 has it": (ANNOTATION, DOG),
    # difficult
    "difficult: 1": (difficult("<difficult>1</difficult>"), {}),
    "difficult: spaces": (difficult("<difficult> 1\n </difficult>"), {}),
    "difficult: 0 in spaces": (difficult("<difficult> 0 </difficult>"), DOG),
    "difficult: empty": (difficult("<difficult></difficult>"), DOG),
    "difficult: empty element": (difficult("<difficult/>"), DOG),
    "difficult: absent": (difficult(""), DOG),
    "difficult: False": (difficult("<difficult>False</difficult>"), DOG),
    "difficult: True": (difficult("<difficult>True</difficult>"), {}),
    "difficult: in capitals": (difficult("<Difficult>1</Difficult>"), {}),
    "difficult: Unspecified": (difficult("<difficult>Unspecified</difficult>"), "a.xml.*difficult is 'unspecified'.*write 1"),
    "difficult: maybe": (difficult("<difficult>maybe</difficult>"), "a.xml.*difficult is 'maybe'"),
    "difficult: 2": (difficult("<difficult>2</difficult>"), "a.xml.*difficult is '2'"),
    # how the XML is written
    "namespace": (of("<annotation>", '<annotation xmlns="http://example.org/voc">'), DOG),
    "prefix": (re.sub(r"<(/?)", r"<\1v:", ANNOTATION).replace("<v:annotation>", '<v:annotation xmlns:v="u">'), DOG),
    "capitals": (of("object>", "Object>"), DOG),
    "declared, UTF-16": (("<?xml version='1.0' encoding='utf-16'?>" + ANNOTATION).encode("utf-16"), DOG),
    "BOM, CRLF": (b"\xef\xbb\xbf" + ANNOTATION.replace("\n", "\r\n").encode(), DOG),
    "a comment": (of("<object>", "<!-- <object/> --><object>"), DOG),
    "encoding unknown": ("<?xml version='1.0' encoding='klingon'?>" + ANNOTATION, "a.xml cannot be used"),
    "two roots": (ANNOTATION * 2, "a.xml cannot be used"),
    "another kind of file": ("<annotations><image/></annotations>", "a.xml.*<size/width> is missing"),
    # names
    "name in spaces": (of("<name>dog</name>", "<name>\n dog </name>"), DOG),
    "name in capitals": (of("<name>dog", "<name>Dog"), "a.xml.*category Dog is unknown"),
    "no name": (of("<name>dog</name>", ""), "a.xml.*<name> is missing"),
    # parts have names and boxes of their own
    "parts": (of("</object>", PART + "</object>"), DOG),
    "parts first": (of("<object>", "<object>" + PART), DOG),
    # sizes
    "size 0": (of(">96<", ">0<"), "a.xml.*width is '0'.*write the picture's width"),
    "no size": (of(SIZE, ""), "a.xml.*<size/width> is missing"),
    "depth only": (of(SIZE, "<size><depth>3</depth></size>"), "a.xml.*<size/width> is missing"),
    "sides exchanged": (of(">96<", ">x<").replace(">64<", ">96<").replace(">x<", ">64<"), "annotated at 64 x 96"),
    "sides as floats": (of(">96<", ">96.0<"), DOG),
    "sides empty": (of(">96<", "><"), "a.xml.*width is ''"),
    # boxes
    "corners as floats": (of(">9<", ">9.0<"), DOG),
    "corners in another order": (of("<xmin>9</xmin><ymin>13</ymin><xmax>40</xmax>", "<xmax>40</xmax><ymin>13</ymin><xmin>9</xmin>"), DOG),
    "corners exchanged": (of(">9<", ">40<", 1).replace(">40</xmax>", ">9</xmax>"), "a.xml.*ends before it begins"),
    "a side for a corner": (of(">44</ymax>", ">5</ymax>"), "a.xml.*ends before it begins"),
    "partly outside": (of(">9<", ">-9<"), {11: (0, 12, 40, 44)}),
    "wholly outside": (of(">9<", ">900<").replace(">40<", ">940<"), {11: None}),
    "one pixel": (of(">40<", ">9<").replace(">44<", ">13<"), {11: (8, 12, 9, 13)}),
    "no area": (of(">40<", ">8<"), {11: None}),
    "not a number": (of(">9<", ">nan<"), "a.xml.*xmin is 'nan', not a number"),
    "endless": (of(">40<", ">inf<"), "a.xml.*xmax is 'inf', not a number"),
    "decimal comma": (of(">9<", ">9,5<"), "a.xml.*xmin is '9,5'"),
    "no box": (of(BOX, ""), "a.xml.*<bndbox/xmin> is missing"),
    "turned box": (of("bndbox>", "robndbox>"), "a.xml.*<bndbox/xmin> is missing"),
    "two boxes in an object": (of(BOX, BOX + BOX), "a.xml.*more than one bndbox"),
    "no object": (of(OBJECT, ""), {}),
    "two objects": (of(OBJECT, OBJECT * 2), DOG),
}  # fmt: skip


@pytest.mark.parametrize("text, right", ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_an_annotation_of_voc_means_what_it_says_or_is_refused(tmp_path, text, right):
    dataset = VOC2007(voc(tmp_path, text), size=192)
    check(right, lambda: boxes_of(dataset[0]))


@pytest.mark.parametrize("text, right", [("0", (0, 42)), (" 0 ", (0, 42)), ("", (0, 42)), ("False", (0, 42)),
                                         ("1", (42,)), ("Unspecified", "000001.xml.*difficult")])  # fmt: skip
def test_difficult_in_a_scene_of_cut_outs(tmp_path, text, right):
    base = CUTOUTS / "VOCdevkit/VOC2007"
    file = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    lay(file.parents[1], "ImageSets/Main/test.txt", data=b"000001\n")
    for part in ("Annotations/000001.xml", "JPEGImages/000001.jpg", "SegmentationClass/000001.png"):
        lay(file.parents[1], part, data=(base / part).read_bytes())
    before = file.read_text()
    # of the first class only: each has one object in this scene
    changed = re.sub("<difficult>.*?</difficult>", f"<difficult>{text}</difficult>", before, count=1)
    whole = VOC2007(tmp_path, categories=categories())[0].classes
    assert whole == (0, 42)
    first = categories().index(re.search("<name>(.*?)</name>", before)[1])
    file.write_text(changed)
    right = tuple(c for c in whole if c != first) if text == "1" else right
    check(right, lambda: VOC2007(tmp_path, categories=categories())[0].classes)


LISTS = {
    "LF": ("a\n", ["a"]),
    "no end of line": ("a", ["a"]),
    "blank lines": ("\na\n\n  \n", ["a"]),
    "CRLF": ("a\r\n\r\n", ["a"]),
    "BOM": (b"\xef\xbb\xbfa\n", ["a"]),
    "spaces": ("  a \n", ["a"]),
    "of one class, without": ("a -1\n", ["a"]),
    "of one class, with": ("a  1\n", ["a"]),
    "of one class, difficult": ("a\t0\r\n", ["a"]),
    "with the ending": ("a.jpg\n", ["a"]),
    "twice": ("a\na\n", "test.txt.*'a' is there twice"),
    "twice, by flags": ("a -1\na  1\n", "test.txt.*'a' is there twice"),
    "empty": ("", "test.txt names no picture"),
    "blank": ("\n\r\n", "test.txt names no picture"),
}


@pytest.mark.parametrize("text, right", LISTS.values(), ids=LISTS)
def test_a_list_of_voc_names_its_pictures_once_however_it_is_written(tmp_path, text, right):
    check(right, lambda: VOC2007(voc(tmp_path, listed=text)).ids)
    if not isinstance(right, str):
        assert VOC2007(tmp_path)[0].classes == (11,)


def test_a_name_that_looks_like_a_flag_stays_a_name(tmp_path):
    voc(tmp_path, listed="photo 1\nsub/b\n", picture="photo 1.jpg")
    base = lay(tmp_path / "VOCdevkit/VOC2007", "JPEGImages/sub/b.jpg")
    lay(base, "Annotations/photo 1.xml", "Annotations/sub/b.xml", data=ANNOTATION.encode())
    dataset = VOC2007(tmp_path)
    assert dataset.ids == ["photo 1", "sub/b"] and [dataset[i].id for i in range(2)] == dataset.ids


@pytest.mark.parametrize("name", ["a.png", "a.jpeg", "a.JPG", "a.JPEG", "a.bmp"])
def test_a_picture_of_voc_is_found_with_any_ending(tmp_path, name):
    assert boxes_of(VOC2007(voc(tmp_path, picture=name), size=192)[0]) == DOG


MASKS = {
    "numbers": (np.full((64, 96), 12, np.uint8), {11}),
    "colours": (np.zeros((64, 96, 3), np.uint8), "a.png is not a readable mask.*RGB"),
    "another size": (np.zeros((32, 48), np.uint8), "a.png is not of the size 96 x 64"),
}


@pytest.mark.parametrize("pixels, right", MASKS.values(), ids=MASKS)
def test_a_mask_fits_its_picture_and_has_one_number_a_pixel(tmp_path, pixels, right):
    folder = voc(tmp_path) / "VOCdevkit/VOC2007/SegmentationClass"
    lay(folder, "a.png", data=trees.encode(Image.fromarray(pixels), "PNG"))
    check(right, lambda: {c for c, mask in VOC2007(tmp_path)[0].pixel_masks.items() if mask.all()})


# ---- COCO2014's layout

RUNS = [8 * 64 + 12]
for _ in range(8, 40):
    RUNS += [32, 32]
RUNS[-1] = 96 * 64 - sum(RUNS[:-1])
TEXT = coco_mask.encode(np.asfortranarray(np.pad(np.ones((32, 32), np.uint8), ((12, 20), (8, 56)))))
TEXT = TEXT["counts"].decode()
NEAR = [[8, 12, 40, 12, 40, 44, 8, 44], [-9, 12, -1, 12, -1, 44, -9, 44]]
POLYGON = [[8, 12, 40, 12, 40, 44, 8, 44]]
IMAGE = {"id": 42, "file_name": "a.jpg", "width": 96, "height": 64}
ITEM = {"id": 7, "image_id": 42, "category_id": 18, "bbox": [8, 12, 32, 32], "segmentation": POLYGON}
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
EXACT, BOXED = (1, True), (1, False)  # class, whether its pixels are known


def coco(root, image=None, item=None, **changes):
    content = {
        "images": [IMAGE | (image or {})],
        "annotations": [ITEM | (item or {})],
        "categories": CATEGORIES,
    }
    content = {k: v for k, v in (content | changes).items() if v is not None}
    for part in ("images", "annotations"):
        content[part] = [{k: v for k, v in entry.items() if v != "absent"} for entry in content.get(part, ())]
    lay(root, "val2014/a.jpg")
    lay(root, "annotations/instances_val2014.json", data=json.dumps(content).encode())
    return root


ITEMS = {
    "as COCO has it": ({}, EXACT),
    "bbox: floats": ({"bbox": [8.0, 12.0, 32.0, 32.0]}, EXACT),
    "bbox: texts": ({"bbox": ["8", "12.0", "32", "32"]}, EXACT),
    "bbox: negative": ({"bbox": [40, 12, -32, 32]}, "annotation 7 of a.jpg.*ends before it begins"),
    "bbox: NaN": ({"bbox": [float("nan"), 12, 32, 32]}, "annotation 7 of a.jpg.*not a number"),
    "bbox: infinite": ({"bbox": [8, 12, float("inf"), 32]}, "annotation 7 of a.jpg.*not a number"),
    "bbox: words": ({"bbox": ["a", 12, 32, 32]}, "annotation 7 of a.jpg.*'a', not a number"),
    "bbox: absent": ({"bbox": "absent"}, "annotation 7 of a.jpg.*bbox is None"),
    "bbox: null": ({"bbox": None}, "annotation 7 of a.jpg.*bbox is None"),
    "bbox: empty": ({"bbox": []}, r"annotation 7 of a.jpg.*bbox is \[\]"),
    "bbox: five": ({"bbox": [1, 2, 3, 4, 5]}, "annotation 7 of a.jpg.*not x, y, width, height"),
    "outline: none": ({"segmentation": []}, BOXED),
    "outline: null": ({"segmentation": None}, BOXED),
    "outline: absent": ({"segmentation": "absent"}, BOXED),
    "outline: texts": ({"segmentation": [[str(v) for v in POLYGON[0]]]}, EXACT),
    "outline: run lengths": ({"segmentation": {"size": [64, 96], "counts": RUNS}}, EXACT),
    "outline: crowd": ({"segmentation": {"size": [64, 96], "counts": RUNS}, "iscrowd": 1}, EXACT),
    "outline: text of run lengths": ({"segmentation": {"size": [64, 96], "counts": TEXT}}, EXACT),
    "outline: two polygons": ({"segmentation": [[8, 12, 24, 12, 24, 44, 8, 44], [24, 12, 40, 12, 40, 44, 24, 44]]}, EXACT),
    "outline: two corners": ({"segmentation": [[8, 12, 40, 44]]}, "annotation 7 of a.jpg.*three corners"),
    "outline: one polygon of two corners": ({"segmentation": [*POLYGON, [8, 12, 40, 44]]}, "annotation 7.*three corners"),
    "outline: an empty polygon": ({"segmentation": [[]]}, "annotation 7 of a.jpg.*three corners"),
    "outline: an odd number": ({"segmentation": [[8, 12, 40, 12, 40, 44, 8]]}, "annotation 7.*two numbers each"),
    "outline: flat": ({"segmentation": POLYGON[0]}, "annotation 7 of a.jpg cannot be used"),
    "outline: pairs": ({"segmentation": [[[8, 12], [40, 12], [40, 44]]]}, "annotation 7.*not a number"),
    "outline: NaN": ({"segmentation": [[8, 12, 40, float("nan"), 40, 44]]}, "annotation 7.*not a number"),
    "outline: a polygon beside the picture": ({"segmentation": NEAR}, EXACT),
    "outline: far outside": ({"segmentation": [[8, 12, 1e12, 12, 40, 44]]}, "annotation 7.*far outside"),
    "outline: a text": ({"segmentation": "mask.png"}, "annotation 7 of a.jpg cannot be used"),
    "runs: too few": ({"segmentation": {"size": [64, 96], "counts": [3, 4]}}, "annotation 7.*do not make up 64 x 96"),
    "runs: too many": ({"segmentation": {"size": [64, 96], "counts": [*RUNS, 9]}}, "annotation 7.*do not make up"),
    "runs: negative": ({"segmentation": {"size": [64, 96], "counts": [-6, 6, 6144]}}, "annotation 7.*do not make up"),
    "runs: none": ({"segmentation": {"size": [64, 96], "counts": ""}}, "annotation 7.*do not make up"),
    "runs: cut off": ({"segmentation": {"size": [64, 96], "counts": TEXT[:-4]}}, "annotation 7.*do not make up"),
    "runs: sides exchanged": ({"segmentation": {"size": [96, 64], "counts": RUNS}}, "annotation 7.*do not make up"),
    "runs: of one pixel": ({"segmentation": {"size": [1, 1], "counts": [0, 1]}}, "annotation 7.*do not make up"),
    "runs: no size": ({"segmentation": {"counts": RUNS}}, "annotation 7 of a.jpg cannot be used"),
    "category: a text": ({"category_id": "18"}, EXACT),
    "category: a float": ({"category_id": 18.0}, EXACT),
    "category: unknown": ({"category_id": 2}, "annotation 7 of a.jpg.*category 2 is unknown"),
    "category: absent": ({"category_id": "absent"}, "annotation 7 of a.jpg.*category None is unknown"),
    "image: a text": ({"image_id": "42"}, EXACT),
    "image: a float": ({"image_id": 42.0}, EXACT),
    "no id": ({"id": "absent"}, EXACT),
    "iscrowd: absent": ({"iscrowd": "absent"}, EXACT),
}  # fmt: skip


@pytest.mark.parametrize("item, right", ITEMS.values(), ids=ITEMS)
def test_an_annotation_of_coco_means_what_it_says_or_is_refused(tmp_path, item, right):
    dataset = COCO2014(coco(tmp_path, item=item), size=192)

    def read():
        sample = dataset[0]
        assert boxes_of(sample) == {1: LEFT}
        for mask in sample.pixel_masks.values():
            assert torch.equal(mask, sample.masks[1])
        return (*sample.classes, 1 in sample.pixel_masks)

    check(right, read)


@pytest.mark.parametrize(
    "box, covers", [([8, 12, 0, 32], 0), ([300, 12, 9, 9], 0), ([-8, 12, 16, 32], 8 * 32)]
)
def test_a_box_of_coco_without_area_or_outside_covers_no_pixel(tmp_path, box, covers):
    sample = COCO2014(coco(tmp_path, item={"bbox": box}), size=192)[0]
    assert sample.masks[1].sum() == covers * 2 * 3  # 192 x 192 pixels of 96 x 64


def other(**changes):
    return {"images": [IMAGE, IMAGE | {"id": 43, "file_name": "b.jpg"} | changes]}


FILES = {
    "as COCO has it": ({}, ["a"]),
    "no annotations": ({"annotations": None}, ["a"]),
    "picture's id a text": ({"image": {"id": "42"}}, ["a"]),
    "annotations twice under one id": ({"annotations": [ITEM, ITEM]}, ["a"]),
    "annotations of other pictures, too": ({"annotations": [ITEM, ITEM | {"image_id": 99}]}, ["a"]),
    "annotations of other pictures only": ({"item": {"image_id": 99}}, "no image_id of its annotations"),
    "texts beside numbers": ({"images": [IMAGE, IMAGE | {"id": "9", "file_name": "b.jpg"}]}, ["b", "a"]),
    "one id, two pictures": (other(id=42), "two images.*'42' is there twice"),
    "one id, as a text": (other(id="42"), "two images.*'42' is there twice"),
    "one name, two folders": (other(file_name="x/a.jpg"), ["a", "x/a"]),
    "one name, two endings": (other(file_name="a.png"), ["a.jpg", "a.png"]),
    "one file twice": (other(file_name="a.jpg"), "the picture 'a.jpg' is there twice"),
    "in a folder": ({"image": {"file_name": "x/c.jpg"}}, ["c"]),
    "Windows' folder": ({"image": {"file_name": "x\\c.jpg"}}, ["c"]),
    "an address": ({"image": {"file_name": "http://images.cocodataset.org/val2014/a.jpg"}}, ["a"]),
    "no name": ({"image": {"file_name": "absent"}}, "instances_val2014.json.*lacks 'file_name'"),
    "no image_id": ({"item": {"image_id": "absent"}}, "instances_val2014.json.*lacks 'image_id'"),
    "no pictures": ({"images": []}, "it lists no picture"),
    "no categories": ({"categories": None}, "lacks 'categories'"),
    "a category's id twice": ({"categories": [*CATEGORIES, {"id": 18, "name": "cat"}]}, "'18' is there twice"),
    "a category's name twice": ({"categories": [*CATEGORIES, {"id": 2, "name": "dog"}]}, "'dog' is there twice"),
}  # fmt: skip


@pytest.mark.parametrize("changes, right", FILES.values(), ids=FILES)
def test_a_file_of_coco_lists_each_picture_once_or_says_what_is_wrong(tmp_path, changes, right):
    coco(tmp_path, **changes)
    lay(tmp_path / "val2014", "b.jpg", "a.png", "x/a.jpg", "x/c.jpg")
    check(right, lambda: COCO2014(tmp_path).ids)
    if not isinstance(right, str):
        dataset = COCO2014(tmp_path)
        assert [dataset[i].id for i in range(len(dataset))] == right
        annotated = "annotations" not in changes or changes["annotations"]
        where = [i for i, image in enumerate(dataset.images) if str(image["id"]) == "42"]
        assert [dataset[i].classes for i in where] == [(1,) if annotated else ()]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"<html>", b'{"images": 3, "categories": []}', b"\xff\xfe\x00"]
)
def test_a_damaged_file_of_coco_is_named(tmp_path, data):
    lay(tmp_path, "annotations/instances_val2014.json", data=data)
    with pytest.raises(ValueError, match="instances_val2014.json cannot be used"):
        COCO2014(tmp_path)


def test_a_byte_order_mark_and_holes_in_the_categories(tmp_path):
    file = coco(tmp_path) / "annotations/instances_val2014.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": k, "name": f"c{k}"} for k in ("100", 18, 9, 2)]
    file.write_text(json.dumps(content), "utf-8-sig")
    dataset = COCO2014(tmp_path)
    assert dataset.categories == ["c2", "c9", "c18", "c100"] and dataset[0].classes == (2,)


@pytest.mark.parametrize(
    "image, words",
    [
        ({"width": "absent"}, "size of a.jpg.*width is None: write the picture's width"),
        ({"height": 0}, "size of a.jpg.*height is 0"),
        ({"width": 64, "height": 96}, "a.jpg has 96 x 64 pixels, but was annotated at 64 x 96"),
        ({"width": "96", "height": 64.0}, None),
    ],
)
def test_the_size_of_a_picture_of_coco(tmp_path, image, words):
    dataset = COCO2014(coco(tmp_path, image, {"segmentation": []}), size=192)
    check(words or {1: LEFT}, lambda: boxes_of(dataset[0]))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.booleans())
def test_run_lengths_come_out_of_cocos_text_as_pycocotools_put_them_in(runs, starts):
    runs = [0, *runs] if starts else runs
    text = coco_mask.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)["counts"]
    assert _runs(text.decode()) == runs


# ---- ILSVRC2012's layout, and folders

TREES = {
    "as it unpacks": (["n1/a.JPEG", "n2/b.JPEG"], {"a": "n1", "b": "n2"}),
    "other endings": (["n1/a.jpeg", "n2/b.jpg", "n2/c.PNG"], {"a": "n1", "b": "n2", "c": "n2"}),
    "one name in two folders": (["cat/001.jpg", "dog/001.jpg"], {"cat/001": "cat", "dog/001": "dog"}),
    "one name, two endings": (["cat/1.jpg", "cat/1.png"], {"cat/1.jpg": "cat", "cat/1.png": "cat"}),
    "deeper": (["n1/x/a.JPEG", "n1/x/y/b.JPEG", "n2/c.JPEG"], {"a": "n1", "b": "n1", "c": "n2"}),
    "deeper, one name": (["n1/x/a.jpg", "n1/y/a.jpg"], {"n1/x/a": "n1", "n1/y/a": "n1"}),
    "empty folders": (["n1/a.JPEG", "00_readme/", "z/y/"], {"a": "n1"}),
    "folders of texts": (["n1/a.JPEG", "00_readme/readme.txt"], {"a": "n1"}),
    "hidden": (["n1/a.JPEG", ".ipynb_checkpoints/b.jpg", "n1/.x/c.jpg", "__MACOSX/n1/a.JPEG"], {"a": "n1"}),
    "a folder called as a picture": (["n1/a.JPEG", "b.jpg/c.JPEG"], {"a": "n1", "c": "b.jpg"}),
    "no picture": (["n1/", "n2/readme.txt"], "no picture under"),
    "a picture beside the folders": (["n1/a.JPEG", "b.JPEG"], "development kit not found"),
}


@pytest.mark.parametrize("names, right", TREES.values(), ids=TREES)
def test_a_folder_with_pictures_is_a_class_and_nothing_else_is(tmp_path, names, right):
    for name in names:
        if name.endswith("/"):
            (tmp_path / "val" / name).mkdir(parents=True)
        else:
            lay(tmp_path / "val", name)

    def read():
        dataset = ImageNet(tmp_path, size=8)
        assert len(dataset.ids) == len(dataset)
        samples = [dataset[i] for i in range(len(dataset))]
        assert [sample.id for sample in samples] == dataset.ids
        assert dataset.categories == sorted(set(right.values()))
        return {sample.id: dataset.categories[sample.classes[0]] for sample in samples}

    check(right, read)


LINKS = {  # link: what it leads to
    "a folder elsewhere": ({"root/more": "real"}, ["more/a", "n/b"]),
    "a file elsewhere": ({"root/n/c.png": "real/a.png"}, ["n/b", "n/c"]),
    "a link to a link": ({"root/more": "via", "via": "real"}, ["more/a", "n/b"]),
    "a loop": ({"root/n/up": "root"}, ["n/b"]),
    "a loop around": ({"root/n/up": "."}, ["n/b", "n/up/real/a"]),
    "itself": ({"root/self": "root/self"}, ["n/b"]),
    "one to another and back": ({"root/more": "real", "real/back": "root/n"}, ["more/a", "n/b"]),
    "reached twice": ({"root/more": "real", "root/again": "real"}, ["again/a", "n/b"]),
    "where it really is comes first": ({"root/a_link": "root/n"}, ["n/b"]),
    "to nothing": ({"root/none": "nowhere"}, ["n/b"]),
    "hidden": ({"root/.more": "real"}, ["n/b"]),
    "the folder itself": ({"renamed": "root"}, ["n/b"]),
}


@pytest.mark.parametrize("links, right", LINKS.values(), ids=LINKS)
def test_links_to_folders_are_followed_once(tmp_path, links, right):
    lay(tmp_path, "root/n/b.png", "real/a.png")
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    root = tmp_path / ("renamed" if "renamed" in links else "root")
    assert Folder(root).ids == right
    (tmp_path / "val").symlink_to(root)
    dataset = ImageNet(tmp_path)
    assert [place.with_suffix("").as_posix() for place, _ in sorted(dataset.items)] == right


def test_a_class_folder_that_is_a_link_is_a_class_with_its_masks(tmp_path):
    lay(tmp_path, "elsewhere/a.JPEG", "val/n2/b.JPEG")
    (tmp_path / "val/n1").symlink_to(tmp_path / "elsewhere")
    lay(tmp_path, "masks/n1/a.png", data=trees.encode(Image.new("L", (96, 64), 1), "PNG"))
    sample = ImageNet(tmp_path)[0]
    assert sample.classes == (0,) and sample.pixel_masks[0].all()


def test_a_disk_that_fails_while_folders_are_listed_is_not_passed_over(tmp_path, monkeypatch):
    lay(tmp_path, "a.png", "sick/b.png")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("sick"):
            raise OSError(5, "Input/output error", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for reader in (lambda: Folder(tmp_path), lambda: ImageNet(lay(tmp_path, "val/n/sick/c.png"))):
        with pytest.raises(OSError, match="Input/output error.*sick"):
            reader()


# ---- greys and colours

RAMP = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
DEEP = RAMP.astype(np.uint16) * 257


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def saved(mode, kind, **options):
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (64, 64), DEEP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    elif mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        image = ImageCms.applyTransform(
            Image.fromarray(RAMP).convert("RGB"), ImageCms.buildTransform(*profiles, "RGB", "LAB")
        )
    else:
        image = (
            Image.fromarray(RAMP)
            .convert("LA" if mode == "PA" else "L" if mode == "P" else "RGB")
            .convert(mode)
        )
    return trees.encode(image, kind, **options)


def frames(kind, **options):
    """The ramp, a white picture and a black one."""
    rest = [Image.new("L", (64, 64), k) for k in (255, 0)]
    return trees.encode(Image.fromarray(RAMP), kind, save_all=True, append_images=rest, **options)


def see_through(mode):
    """A palette, or greys, of which one value is see-through."""
    return trees.encode(Image.fromarray(RAMP).convert(mode), "PNG", transparency=0)


UNSAID = "a is not a readable picture: its values go from .* save it with 8 bits"
GREYS = {  # file: how far the brightest error may be, of 255
    **{f"{mode} {kind}": (saved(mode, kind), 2) for mode, kind in [
        ("L", "PNG"), ("LA", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("PA", "TIFF"), ("I;16", "PNG"),
        ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16B", "PNG"), ("I;16L", "TIFF"), ("I;16", "JPEG2000"), ("RGB", "BMP"),
    ]},
    "WebP": (saved("RGB", "WEBP", lossless=True), 0),
    **({"AVIF": (saved("RGB", "AVIF", quality=100), 2)} if features.check("avif") else {}),
    "animated GIF": (frames("GIF"), 0),
    "animated WebP": (frames("WEBP", lossless=True), 0),
    "animated PNG": (frames("PNG"), 0),
    "pages of a TIFF": (frames("TIFF"), 0),
    "two pictures in one JPEG": (frames("MPO"), 1),
    "palette, one value see-through": (see_through("P"), 0),
    "greys, one value see-through": (see_through("L"), 0),
    "colours of 16 bits": (tiff(np.stack([DEEP] * 3, -1)), 0),
    "colours of 16 bits, alpha": (tiff(np.stack([DEEP] * 4, -1), photometric="rgb", extrasamples=["unassalpha"]), 0),
    "planes": (tiff(np.stack([RAMP] * 3), photometric="rgb", planarconfig="separate"), 0),
    "0 is white, 8 bits": (tiff(255 - RAMP, photometric="miniswhite"), 0),
    "0 is white, 16 bits": (tiff(65535 - DEEP, photometric="miniswhite"), 0),
    "0 is white, floats": (tiff((1 - RAMP / 255).astype("f4"), photometric="miniswhite"), 0),
    "16 bits, big-endian": (tiff(DEEP, byteorder=">"), 0),
    "16 bits, to 255": (tiff(RAMP.astype("u2")), 0),
    "16 bits, to 4095": (tiff(RAMP.astype("u2") * 16 + 15), UNSAID),
    "16 bits, to 1023": (tiff(RAMP.astype("u2") * 4), UNSAID),
    "16 bits, to 3": (tiff(RAMP.astype("u2") // 64), UNSAID),
    "16 bits, black": (tiff(DEEP * 0), 255),
    "32 bits, to 255": (tiff(RAMP.astype("i4")), 0),
    "32 bits, to 65535": (tiff(DEEP.astype("i4")), 0),
    "32 bits, unsigned": (tiff(DEEP.astype("u4")), 0),
    "32 bits, to 65536": (tiff(DEEP.astype("i4") + 1), UNSAID),
    "32 bits, negative": (tiff(RAMP.astype("i4") - 1), UNSAID),
    "signed 16 bits": (tiff(RAMP.astype("i2")), 0),
    "floats to 1": (tiff((RAMP / 255).astype("f4")), 0),
    "floats to 255": (tiff(RAMP.astype("f4")), 0),
    "floats to 65535": (tiff(DEEP.astype("f4")), UNSAID),
    "floats a little over 1": (tiff((RAMP / 250).astype("f4")), UNSAID),
    "floats a little below 0": (tiff((RAMP / 255 - 0.01).astype("f4")), UNSAID),
    "floats with NaN": (tiff(np.where(RAMP > 250, np.nan, RAMP / 255).astype("f4")), UNSAID),
    "floats with inf": (tiff(np.where(RAMP > 250, np.inf, RAMP / 255).astype("f4")), UNSAID),
    "PGM of 16 bits": (b"P5 64 64 65535\n" + DEEP.astype(">u2").tobytes(), 0),
    "PGM of 12 bits": (b"P5 64 64 4095\n" + (RAMP / 255 * 4095).astype(">u2").tobytes(), 1),
    "PFM": (b"Pf\n64 64\n-1.0\n" + (RAMP / 255).astype("<f4").tobytes(), 0),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a is not a readable picture.*HEIC.*convert it"),
    "nothing": (b"", "a is not a readable picture"),
    "cut off": (saved("I;16", "PNG")[:60], "a is not a readable picture"),
    "half a TIFF": (tiff(DEEP)[:3000], "a is not a readable picture"),
}  # fmt: skip


@pytest.mark.parametrize("data, right", GREYS.values(), ids=GREYS)
def test_a_ramp_has_its_brightness_in_every_kind_of_file_or_is_refused(tmp_path, data, right):
    lay(tmp_path, "a", data=data)
    if isinstance(right, str):
        check(right, lambda: read_picture(tmp_path / "a"))
        return
    picture = read_picture(tmp_path / "a")
    assert picture.mode in ("RGB", "RGBA") and picture.size == (64, 64)
    error = np.abs(np.asarray(picture.convert("RGB")).astype(int) - RAMP[..., None]).max()
    assert error <= right and (right < 255 or error == 255)  # black is black


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(RAMP > 127).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png"))[..., 0], 255 * (RAMP > 127))


def test_deep_greys_are_turned_as_their_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(DEEP).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png"))[..., 0], RAMP)
    assert np.asarray(read_picture(tmp_path / "a.png", (64, 64)))[0, 0, 0] == 255  # annotated as stored


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_pictures_of_odd_shapes_keep_their_colour(tmp_path, size):
    Image.new("RGB", size, (10, 20, 250)).save(tmp_path / "a.png")
    pixels = open_image(tmp_path / "a.png", 32)
    assert torch.allclose(pixels, torch.tensor([10, 20, 250.0])[:, None, None].expand(3, 32, 32) / 255)


def test_every_kind_of_picture_in_a_folder_is_listed_though_it_be_refused(tmp_path):
    lay(tmp_path, *(f"{k}.{ending}" for k, ending in enumerate("jpg tif TIFF gif webp avif heic".split())))
    lay(tmp_path, "6.heic", "notes.txt", "7.xml", data=b"no picture")
    dataset = Folder(tmp_path)
    assert dataset.ids == list("0123456")
    with pytest.raises(OSError, match="6.heic.*HEIC"):
        dataset[6]


def test_a_mask_in_colours_is_no_mask(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(OSError, match="a.png is not a readable mask.*one number a pixel"):
        read_indices(tmp_path / "a.png")


# ---- index lists

# What a file's name may hold on any system, and the characters that CSV and the comment use.
NAME = st.text(
    st.one_of(st.sampled_from("#,;\"'\n\r\t \ufeff\u2028\x0b\x85"), st.characters(exclude_categories=["Cs"]))
)


@given(st.lists(NAME, min_size=1, unique=True), NAME, st.integers(-9, 9), st.integers(0, 9))
def test_ids_come_back_from_an_index_list_whatever_they_hold(tmp_path_factory, ids, title, seed, more):
    file = tmp_path_factory.getbasetemp() / "list.csv"
    subsets.write(file, title, ids, len(ids) + more, seed)
    assert subsets.read(file) == (ids, seed)


@pytest.mark.parametrize(
    "title", ["", "mine", "of 3 of 9 pictures, drawn with seed 7", "two\nlines", "id", '"quoted, with comma"']
)
def test_a_title_is_not_read_as_what_follows_it(tmp_path, title):
    subsets.write(tmp_path / "a.csv", title, ["#1", "id"], 3, 5)
    assert subsets.read(tmp_path / "a.csv") == (["#1", "id"], 5)


WRITTEN = {
    "leading #": (b"# mine\nid\na\n#1\nb\n", ["a", "#1", "b"]),
    "# first": (b"id\n#1\n", ["#1"]),
    "BOM": (b"\xef\xbb\xbfid\na\n", ["a"]),
    "BOM and comment": (b"\xef\xbb\xbf# mine, 1 of 3 pictures, drawn with seed 0\r\nid\r\na\r\n", ["a"]),
    "CRLF": (b"# mine\r\n\r\nid\r\na\r\nb\r\n", ["a", "b"]),
    "CR": (b"# mine\rid\ra\rb\r", ["a", "b"]),
    "blank lines": (b"\n# mine\n\nid\n\na\n\n\nb", ["a", "b"]),
    "no end of line": (b"id\na", ["a"]),
    "spaces at the ends": (b"id\n a \n", [" a "]),
    "line separator": ("id\na\u2028b\n".encode(), ["a\u2028b"]),
    "a column beside it": (b"note,id,\nx,a,\ny,b,\n", ["a", "b"]),
    "Excel's comment": (b"# mine, 2 of 3 pictures, drawn with seed 0,,\nid,note\na,x\nb,y\n", ["a", "b"]),
    "Excel's semicolons": (b"id;note\na;x\n", "no column id, but 'id;note'.*with commas"),
    "Excel's UTF-16": ("id\na\n".encode("utf-16"), "is no index list.*UTF-8"),
    "Latin-1": ("id\nM\u00fcller\n".encode("latin-1"), "is no index list.*UTF-8"),
    "tabs": (b"id\tnote\na\tx\n", "no column id.*with commas"),
    "a comma without quotes": (b"id\na,b\n", "line of 'a' has more or fewer fields.*in quotes"),
    "a field too few": (b"note,id\nx\n", "more or fewer fields"),
    "a quote that never ends": (b'id\n"a\nb\n', "is no index list.*in quotes"),
    "a quote in the midst": (b'id\n"a"b\n', "is no index list.*in quotes"),
}


@pytest.mark.parametrize("data, right", WRITTEN.values(), ids=WRITTEN)
def test_an_index_list_is_read_as_it_was_meant_whoever_saved_it(tmp_path, data, right):
    lay(tmp_path, "a.csv", data=data)
    check(right, lambda: subsets.read(tmp_path / "a.csv")[0])


def test_a_list_that_cannot_be_written_leaves_the_old_one(tmp_path):
    subsets.write(tmp_path / "a.csv", "mine", ["a"], 1, 0)
    with pytest.raises(ValueError):
        subsets.write(tmp_path / "a.csv", "mine", ["b", "\udcff"], 2, 0)  # a name that is not UTF-8
    assert subsets.read(tmp_path / "a.csv")[0] == ["a"]


def test_a_subset_of_pictures_of_one_name(tmp_path):
    lay(tmp_path, "val/cat/1.jpg")
    lay(tmp_path, "val/dog/1.jpg", data=trees.encode(trees.picture([trees.BOXES["right"]])))
    whole = ImageNet(tmp_path)
    part = subsets.Subset(whole, ["dog/1"])
    assert part[0].classes == (1,) and not torch.equal(part[0].pixels, whole[0].pixels)
    shutil.rmtree(tmp_path / "val/cat")
    assert ImageNet(tmp_path).ids == ["1"]
