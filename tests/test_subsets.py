"""Index lists: drawn, written, read, and a dataset restricted to one."""

import pickle

import pytest
import torch
import trees

from thesis_lib.data import REPOSITORY, draw, subsets
from thesis_lib.data.registry import open_dataset

IDS = [f"{n:06d}" for n in range(100)]


def test_a_draw_depends_on_its_seed_only():
    one = draw.draw(IDS, 10, seed=0)
    assert len(set(one)) == 10 and set(one) < set(IDS)
    assert draw.draw(IDS[::-1], 10, seed=0) == one  # not on the order of the ids
    assert draw.draw(IDS, 4, seed=0) == one[:4]  # short ones start long ones
    assert draw.draw(IDS, 10, seed=1) != one != sorted(one)
    assert sorted(draw.draw(IDS, 100, seed=0)) == IDS


def test_a_draw_is_even():
    """Ids by thousands of 50,000, about 40 each: as a fair draw has it, within five deviations."""
    counts = torch.zeros(50)
    for name in draw.draw([f"{n:08d}" for n in range(50_000)], 2000):
        counts[int(name) // 1000] += 1
    assert counts.sum() == 2000 and (counts - 40).abs().max() < 5 * 40**0.5


@pytest.mark.parametrize("count", [0, -1, 101])
def test_more_than_there_are_cannot_be_drawn(count):
    with pytest.raises(ValueError, match="of 100 pictures"):
        draw.draw(IDS, count)


def test_the_committed_list_is_what_its_command_draws(tmp_path):
    draw.main(["imagenet", "2000", "--seed", "0", "--out", str(tmp_path / "again.csv")])
    committed = REPOSITORY / "data/subsets/imagenet_2000.csv"
    assert committed.read_bytes() == (tmp_path / "again.csv").read_bytes()
    ids, seed = subsets.read(committed)
    assert seed == 0 and len(set(ids)) == 2000
    draw.main(["imagenet", "50000", "--out", str(tmp_path / "all.csv")])
    everything, _ = subsets.read(tmp_path / "all.csv")
    assert everything[:2000] == ids
    assert sorted(everything) == [f"ILSVRC2012_val_{n:08d}" for n in range(1, 50_001)]


def test_a_dataset_of_the_listed_pictures_in_their_order(tmp_path):
    tree = trees.voc(tmp_path)
    file = tmp_path / "lists/two.csv"
    draw.main(["voc2007", "5", "--root", str(tree.root), "--seed", "3", "--out", str(file)])
    first = f"# VOC2007 test, 5 of {len(tree.ids)} pictures, drawn with seed 3"
    assert file.read_text().splitlines()[0] == first
    whole, part = (open_dataset("voc2007", tree.root, s) for s in ("", file))
    assert part.ids == draw.draw(tree.ids, 5, seed=3) and len(part) == 5 and part.seed == 3
    assert part.categories == whole.categories
    for i, name in enumerate(part.ids):
        if name in tree.skipped:
            with pytest.raises(OSError, match=name):
                part[i]
        else:
            sample, same = part[i], whole[whole.ids.index(name)]
            assert sample.id == name and torch.equal(sample.pixels, same.pixels)
    again = pickle.loads(pickle.dumps(part))
    assert again.ids == part.ids and again.seed == 3


def test_ids_that_the_dataset_lacks_are_named_and_counted(tmp_path):
    tree = trees.voc(tmp_path, ugly=False)
    (tmp_path / "a.csv").write_text("id\n000002\n009999\n008888\n")
    with pytest.raises(ValueError, match="lacks 2 of the 3 pictures of a.csv, first 009999"):
        open_dataset("voc2007", tree.root, tmp_path / "a.csv")


def test_a_list_of_ones_own_needs_no_comment(tmp_path):
    (tmp_path / "a.csv").write_text('note,id\nx,"b, c"\ny,a\n')
    assert subsets.read(tmp_path / "a.csv") == (["b, c", "a"], None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("# VOC2007 test, 3 of 9 pictures, drawn with seed 0\nid\n1\n2\n", "cut off"),
        ("# nothing\nid\n", "cut off"),
        ("1\n2\n", "no column id"),
        ("", "no column id"),
        ("id\n1\n2\n1\n", "twice"),
    ],
)
def test_damaged_lists_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        subsets.read(tmp_path / "a.csv")


def test_a_missing_list_and_a_wrong_name_say_so(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no index list"):
        open_dataset("cutouts", subset=tmp_path / "none.csv")
    with pytest.raises(SystemExit):
        draw.main(["imagenette", "3", "--out", str(tmp_path / "a.csv")])
    assert "no dataset is called 'imagenette'" in capsys.readouterr().err
