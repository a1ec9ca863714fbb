"""Sharp borders: the frames written out, and networks of which it is known whether they see an edge."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_insertion_deletion import classifier
from torch import nn

from thesis_lib.classifier import Classifier
from thesis_lib.kernels import blur
from thesis_lib.metrics import METRICS, borders
from thesis_lib.metrics.base import Rounds


def data(n=2, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, side, side, generator=generator, dtype=torch.float64)
    return images, torch.rand(n, side, side, generator=generator)


@torch.no_grad()
def literal(clf, image, saliency, share, feather):
    """Masks pixel by pixel, SciPy's Gaussian, one frame at a time."""
    height, width = saliency.shape
    order = sorted(range(height * width), key=lambda p: -float(saliency.flatten()[p]))
    hard = np.zeros(height * width)
    hard[order[round((1 - share) * height * width) :]] = 1
    hard = hard.reshape(height, width)
    soft = gaussian_filter(hard, feather, mode="mirror", radius=int(3 * feather))
    intact = clf.network(image[None]).softmax(1)[0]
    found = {}
    for name, canvas in (("blurred", blur(image[None])[0]), ("mean", torch.zeros_like(image))):
        for edge, mask in (("hard", hard), ("soft", soft)):
            mask = torch.from_numpy(mask)
            seen = clf.network(((1 - mask) * image + mask * canvas)[None]).softmax(1)[0]
            found[f"moved_{name}_{edge}"] = (
                sum(abs(float(p - q)) for p, q in zip(seen, intact, strict=True)) / 2
            )
        found[f"border_{name}"] = found[f"moved_{name}_hard"] - found[f"moved_{name}_soft"]
    return found


@pytest.mark.parametrize(("share", "feather"), [(0.3, 8.0), (0.5, 2.0)])
def test_equals_the_frames_written_out(share, feather):
    clf, (images, maps) = classifier(), data()
    found = borders(clf, images, maps, share, feather)
    for i in range(2):
        expected = literal(clf, images[i], maps[i], share, feather)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key][i].item() == pytest.approx(value, abs=1e-9), key


class Eye(nn.Module):
    """Two classes; the score of the first is how much neighbours differ (`edges`), or the mean."""

    def __init__(self, edges):
        super().__init__()
        self.layer, self.edges = nn.Conv2d(3, 1, 1), edges

    def forward(self, images):
        grey = images.mean(1)
        seen = (grey.diff(dim=1) ** 2).mean((1, 2)) * 100 if self.edges else grey.mean((1, 2))
        return torch.stack([seen, torch.zeros_like(seen)], 1) + 0 * self.layer(images).mean()


def half(side=64):
    """Grey pictures, and a map that is least in the lower half."""
    images = torch.ones(1, 3, side, side, dtype=torch.float64)
    return images, (torch.arange(side) < side / 2).double()[None, :, None].expand(1, side, side)


def test_only_what_sees_edges_is_moved_by_one():
    images, maps = half()
    found = borders(Classifier(Eye(True), layer="layer"), images, maps, share=0.5)
    assert found["border_mean"].item() > 0.1
    assert found["border_blurred"].item() == pytest.approx(0, abs=1e-9)  # a grey picture's blur is itself
    found = borders(Classifier(Eye(False), layer="layer"), images, maps, share=0.5)
    assert found["moved_mean_hard"].item() > 0.05
    assert found["border_mean"].item() == pytest.approx(0, abs=1e-3)  # both masks cover as much


def test_bad_input():
    clf, (images, maps) = classifier(), data()
    for settings, sentence in (
        ({"share": 0}, "share"), ({"share": 1.5}, "share"), ({"feather": 0}, "feather"), ({"feather": 30}, "too wide"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            borders(clf, images, maps, **settings)
    with pytest.raises(ValueError, match="maps must be"):
        borders(clf, images, maps[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        borders(clf, images * torch.nan, maps)


def test_rows_are_the_functions():
    clf, (images, maps) = classifier(), data()
    found = METRICS["sharp_borders"].function(Rounds(clf, images, None, [], None), None, maps)
    assert list(found) and set(found) == set(METRICS["sharp_borders"].columns)
    for key, values in borders(clf, images, maps).items():
        assert found[key].tolist() == values.tolist()
