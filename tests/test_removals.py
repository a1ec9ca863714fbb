"""Imputed, deleted and strewn pixels: against the equations read aloud, pytorch-grad-cam and captum."""

import networks
import numpy as np
import pytest
import torch
from scipy import stats

import thesis_lib as tl
from thesis_lib.metrics import (
    METRICS,
    f_fidelity,
    infidelity,
    judged,
    linear_imputation,
    pieces,
    road,
    single_deletion,
)

SIDE = 32


def small(batch=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tl.Classifier(networks.Plain(), networks.Plain.layer, batch=batch)


def some(n=2, ties=False):
    """Images, maps without (or full of) equal pixels, and classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    maps = torch.stack([torch.randperm(SIDE * SIDE, generator=generator) for _ in range(n)])
    maps = maps.view(n, SIDE, SIDE).float() / (SIDE * SIDE)
    return images, (maps > 0.8).float() if ties else maps, torch.tensor([1, 4, 0][:n])


# ROAD


def imputed_by_hand(image, missing):
    """An equation for each missing pixel, solved as a dense system."""
    holes = missing.nonzero().tolist()
    a, b = np.zeros((len(holes),) * 2), np.zeros((len(holes), len(image)))
    for k, (y, x) in enumerate(holes):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                q = [y + dy, x + dx]
                if (dy, dx) == (0, 0) or not (0 <= q[0] < missing.shape[0] and 0 <= q[1] < missing.shape[1]):
                    continue
                weight = 1 / 12 if dy and dx else 1 / 6
                a[k, k] += weight
                if missing[q[0], q[1]]:
                    a[k, holes.index(q)] -= weight
                else:
                    b[k] += weight * image[:, q[0], q[1]].numpy()
    found = image.clone()
    for (y, x), values in zip(holes, np.linalg.solve(a, b), strict=True):
        found[:, y, x] = torch.from_numpy(values)
    return found


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_imputation_is_the_system_of_its_equations(share):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(3, 13, 17, generator=generator, dtype=torch.float64)
    missing = torch.rand(13, 17, generator=generator) < share
    missing[0, :9] = True  # a corner of the picture, and its edge
    missing[6, 6] = False
    found = linear_imputation(image, missing)
    assert found.allclose(imputed_by_hand(image, missing), atol=1e-9)
    assert found[:, ~missing].equal(image[:, ~missing])


def test_noise_is_on_the_missing_pixels_and_the_same_in_every_picture():
    image, other = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    missing = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.5
    added = [linear_imputation(x, missing, 0.1) - linear_imputation(x, missing) for x in (image, other)]
    assert not added[0][:, ~missing].any()
    assert float(added[0][:, missing].std()) == pytest.approx(0.1, abs=0.01)
    assert added[0].allclose(added[1], atol=1e-5)


def test_nothing_and_everything_missing():
    image = torch.rand(3, 8, 8)
    assert linear_imputation(image, torch.zeros(8, 8, dtype=torch.bool)).equal(image)
    with pytest.raises(ValueError, match="every pixel"):
        linear_imputation(image, torch.ones(8, 8, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # theirs
def test_road_is_pytorch_grad_cams(monkeypatch):
    """To 1e-5 of a probability, without its random noise, on maps without equal pixels (elsewhere a threshold takes
    all of them, or none)."""
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road")
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    clf, (images, maps, classes) = small(), some(3)
    targets = [lambda logits, c=c: logits.softmax(-1)[c] for c in classes.tolist()]
    given = images, maps.numpy(), targets, clf.network.eval()
    percentiles = [20, 40, 60, 80]
    least, most = road(clf, images, maps, classes, percentiles, noise=0)
    combined = theirs.ROADCombined(percentiles)(*given)
    assert ((least - most) / 2).numpy() == pytest.approx(combined, abs=1e-5)
    intact = clf.probabilities(images).gather(1, classes[:, None])[:, 0]
    assert (most - intact).numpy() == pytest.approx(
        theirs.ROADMostRelevantFirstAverage(percentiles)(*given), abs=1e-5
    )
    assert (least - intact).numpy() == pytest.approx(
        theirs.ROADLeastRelevantFirstAverage(percentiles)(*given), abs=1e-5
    )


def test_road_step_by_step_where_pixels_are_equal():
    clf, (images, maps, classes) = small(), some(2, ties=True)
    least, most = road(clf, images, maps, classes, [30, 90], noise=0.02)
    ranks, pixels = judged.orders(maps), SIDE * SIDE
    for i in range(2):
        for found, weakest in ((least, True), (most, False)):
            values = []
            for turn, percentile in enumerate([30, 90]):
                count = int((np.arange(pixels) >= np.percentile(np.arange(pixels), percentile)).sum())
                rank = ranks[turn, i]
                gone = rank >= pixels - count if weakest else rank < count
                frame = linear_imputation(images[i], gone, 0.02)
                values.append(float(clf.probabilities(frame[None])[0, classes[i]]))
            assert float(found[i]) == pytest.approx(np.mean(values), abs=1e-5)


# Pieces


def test_a_cell_alone_is_missing():
    clf, (images, maps, classes) = small(batch=5), some(3)
    found = single_deletion(clf, images, maps, classes, grid=4)
    for i in range(3):
        sums, drops = [], []
        for top in range(0, SIDE, 8):
            for left in range(0, SIDE, 8):
                frame = images[i].clone()
                frame[:, top : top + 8, left : left + 8] = 0
                pair = clf.logits(torch.stack([images[i], frame]))[:, classes[i]]
                drops.append(float(pair[0] - pair[1]))
                sums.append(float(maps[i, top : top + 8, left : left + 8].double().sum()))
        assert float(found[i]) == pytest.approx(stats.spearmanr(sums, drops).statistic)


def test_cells_cover_pictures_that_no_grid_divides():
    found = pieces.cells(33, 50, 4)
    assert (found.sum(0) == 1).all() and found.flatten(1).any(1).all()


def test_a_map_of_the_drops_ranks_them_and_a_flat_one_ranks_nothing():
    clf, (images, _, classes) = small(), some()
    cells = pieces.cells(SIDE, SIDE, 4)
    lost = torch.stack(
        [
            clf.logits(x[None])[0, c] - clf.logits(x * ~cells[:, None])[:, c]
            for x, c in zip(images, classes, strict=True)
        ]
    )
    maps = (lost[:, :, None, None] * cells).sum(1)
    assert single_deletion(clf, images, maps, classes).tolist() == pytest.approx([1, 1])
    assert single_deletion(clf, images, -maps, classes).tolist() == pytest.approx([-1, -1])
    assert single_deletion(clf, images, maps * 0, classes).tolist() == [0, 0]


def test_infidelity_square_by_square():
    clf, (images, maps, classes) = small(batch=7), some()
    found = infidelity(clf, images, maps, classes, count=20)
    for i in range(2):
        a, b = [], []
        for square in pieces.squares(SIDE, SIDE, 20):
            pair = clf.probabilities(torch.stack([images[i], torch.where(square, 0, images[i])]))
            a.append(float(maps[i][square].double().sum()))
            b.append(float(pair[0, classes[i]] - pair[1, classes[i]]))
        a, b = np.array(a), np.array(b)
        tried = [np.mean((beta * a - b) ** 2) for beta in np.linspace(-2, 2, 4001) * (b @ a) / (a @ a)]
        assert float(found[i]) == pytest.approx(min(tried), rel=1e-4)
        assert float(infidelity(clf, images, maps * 0, classes, count=20)[i]) == pytest.approx(np.mean(b**2))


def test_infidelity_is_captums():
    """To a thousandth, whatever the map's scale."""
    metrics = pytest.importorskip("captum.metrics")
    clf, (images, maps, classes) = small(), some()
    squares = pieces.squares(SIDE, SIDE, 64)[:, None].expand(-1, 3, -1, -1)

    def without(inputs):
        gone = squares.repeat(len(inputs) // len(squares), 1, 1, 1)
        return gone.float(), inputs * ~gone

    theirs = metrics.infidelity(
        lambda x: clf.network.eval()(x).softmax(1), without, images, maps[:, None].expand(-1, 3, -1, -1),
        target=classes, n_perturb_samples=64, normalize=True,
    )  # fmt: skip
    for scale in (1, 7):
        found = infidelity(clf, images, scale * maps, classes, count=64)
        assert found.tolist() == pytest.approx(theirs.tolist(), rel=1e-3)


def test_squares_lie_within_the_picture_and_are_square():
    found = pieces.squares(20, 44, 200)
    heights, widths = found.any(2).sum(1), found.any(1).sum(1)
    assert heights.equal(widths) and (found.flatten(1).sum(1) == heights * widths).all()
    assert heights.min() == 2 and heights.max() == 10
    assert found.any(0).float().mean() > 0.95
    assert found.equal(pieces.squares(20, 44, 200))


@pytest.mark.parametrize("ties", [False, True])
def test_bounded_removal_sample_by_sample(ties):
    clf, (images, maps, classes) = small(batch=6), some(2, ties)
    shares, samples, side = [0.1, 0.5], 3, 5
    plus, minus = f_fidelity(clf, images, maps, classes, shares, samples, alpha=0.5, beta=0.2, side=side)
    drawn, ranks, pixels = pieces.blocks(SIDE, SIDE, samples, side), judged.orders(maps), SIDE * SIDE
    for i in range(2):
        intact = float(clf.probabilities(images[i : i + 1])[0, classes[i]])
        for found, weakest in ((plus, False), (minus, True)):
            lost = []
            for share, ratio in ((0.1, 0.5), (0.5, 0.4)):  # half of a tenth is no fifth; 0.2 / 0.5
                for k in range(samples):
                    frame, rank = images[i].clone(), ranks[k, i]
                    among = (
                        rank >= pixels - round(share * pixels) if weakest else rank < round(share * pixels)
                    )
                    frame[:, among & (drawn[k] < ratio)] = 0
                    lost.append(intact - float(clf.probabilities(frame[None])[0, classes[i]]))
            assert float(found[i]) == pytest.approx(np.mean(lost), abs=1e-5)


def test_no_more_than_beta_is_missing(monkeypatch):
    clf, (images, maps, classes) = small(), some(1)
    missing = []

    def seen(clf, images, classes, gone, score="probability"):
        missing.extend(gone[0].float().mean((1, 2)).view(2, 3, 40).mean(2).flatten().tolist())
        return torch.zeros(len(images), len(gone[0]))

    monkeypatch.setattr(pieces, "scores_without", seen)
    f_fidelity(clf, images, maps, classes, shares=[0.1, 0.5, 1.0], samples=40, beta=0.1, side=1)
    assert missing == pytest.approx(2 * [0.05, 0.1, 0.1], abs=0.01)


def test_blocks_are_blocks():
    found = pieces.blocks(14, 21, 3, side=7)
    assert found.shape == (3, 14, 21) and found[0].unique().numel() == 6
    assert (found[:, :7, :7] == found[:, :1, :1]).all()


@pytest.mark.parametrize(
    "call, wrong",
    [
        (lambda *given: road(*given, percentiles=[100]), "percentile"),
        (lambda *given: single_deletion(*given, grid=1), "grid"),
        (lambda *given: infidelity(*given, count=0), "count"),
        (lambda *given: f_fidelity(*given, beta=2), "beta"),
        (lambda *given: f_fidelity(*given, shares=[0]), "share"),
        (lambda *given: f_fidelity(*given, samples=0), "samples"),
    ],
)
def test_settings_out_of_range(call, wrong):
    clf, (images, maps, classes) = small(), some()
    with pytest.raises(ValueError, match=wrong):
        call(clf, images, maps, classes)
    with pytest.raises(IndexError):
        road(clf, images, maps, [99, 0])
    with pytest.raises(ValueError, match="NaN"):
        infidelity(clf, images, maps.log() * 0, classes)


# On a thing of which one knows where it is


def test_the_exact_mask_is_better_than_the_complement():
    from thesis_lib.metrics.known import known_maps
    from thesis_lib.metrics.measure import measure

    data, clf = tl.open_dataset("cutouts"), tl.load_classifier("vgg19_cutouts", device="cpu")
    rows, _ = measure([data[3]], clf, known_maps(["elsewhere"]), ["removals"], 784)
    rows = rows.set_index("method")
    for column, facts in METRICS["removals"].columns.items():
        assert facts.better * (rows.loc["exact", column] - rows.loc["complement", column]) > 0, column
    assert rows["spent"].iloc[0] == pytest.approx(8 + 65 + 17 + 101 + 3, abs=1)
