"""Pictures to choose settings on, and pictures to look at."""

import pytest
import torch
import trees

import thesis_lib as tl
from thesis_lib.data import choose
from thesis_lib.methods import variants


class Numbers:
    """A dataset whose pictures are their positions; `broken` ones cannot be read."""

    categories, ids = ["a"], list("abcdef")

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError(f"picture {i}")
        return i


@pytest.mark.parametrize(
    ("positions", "broken", "found"),
    [
        ([4, 1], (), [4, 1]),
        ([4, 1], (1, 2), [4, 3]),
        ([9], (), [3]),  # beyond the end: round again
        ([5], (5,), [0]),
        ([0, 0, 1], (), [0, 1, 2]),
        (range(9), (0, 3), [1, 2, 4, 5]),
    ],
)
def test_examples_can_be_read(positions, broken, found):
    assert choose.examples(Numbers(broken), positions) == {i: i for i in found}
    assert list(choose.examples(Numbers(broken), positions)) == found


def test_no_example_at_all():
    with pytest.raises(OSError, match="none of 6 pictures can be read: picture"):
        choose.examples(Numbers(range(6)), [0])


def test_validation_takes_the_last_pictures(tmp_path):
    tree = trees.imagenet(tmp_path, pictures=5, ugly=False)
    last = choose.validation("imagenet", tmp_path, 2)
    assert last.ids == tree.ids[-2:] and len(last) == 2
    assert [last[i].id for i in range(2)] == tree.ids[-2:]
    assert choose.validation("imagenet", tmp_path, 99).ids == tree.ids


def test_variants_share_their_base_and_its_settings():
    methods = variants(["grad_cam", "msg_cam"], 24, 8, None, [32], {"msg_cam": {"sizes": [224]}})
    assert list(methods) == [
        "grad_cam", "grad_cam enhanced", "grad_cam mean", "grad_cam SESS",
        "msg_cam", "msg_cam enhanced", "msg_cam mean", "msg_cam SESS",
    ]  # fmt: skip
    assert methods["msg_cam"].func is tl.METHODS["msg_cam"]
    assert methods["msg_cam"].keywords == {"sizes": [224]} and not methods["grad_cam"].keywords
    clf = tl.load_classifier("vgg19_cutouts", device="cpu")
    images = torch.rand(1, 3, 32, 32, generator=torch.manual_seed(0))
    enhanced = tl.enhance("grad_cam", 24, 8, None)(clf, images, 3)
    assert torch.equal(methods["grad_cam enhanced"](clf, images, 3), enhanced)
    assert torch.equal(methods["grad_cam SESS"](clf, images, 3), tl.sess("grad_cam", [32])(clf, images, 3))  # fmt: skip
