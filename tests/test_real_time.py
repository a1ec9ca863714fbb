"""Real-time saliency: its loss and its filter against their equations, its training, and what the trained one draws."""

import math

import networks
import pytest
import torch
from safetensors import safe_open
from test_classifier import assert_same_state, state
from test_peers import classifier

import thesis_lib as tl
from thesis_lib import peers
from thesis_lib.data import cutouts
from thesis_lib.data.match import match
from thesis_lib.data.models import vgg19_cutouts
from thesis_lib.kernels import blur, min_max, resize
from thesis_lib.peers import real_time
from thesis_lib.peers.real_time import FILE, Masking, feature_filter, stages
from thesis_lib.training import masking

METHOD = peers.METHODS["real_time"]


@pytest.fixture(scope="module")
def vgg():
    return tl.load_classifier("vgg19_cutouts", device="cpu")


@pytest.fixture(scope="module")
def unseen(vgg):
    """Test pictures on backgrounds of which no training picture is made: images, classes, masks of the things."""
    data = match(tl.open_dataset("cutouts"), vgg)
    samples = [data[i] for i in range(0, len(data), len(data) // 12)][:12]
    images = vgg.normalise(torch.stack([sample.pixels for sample in samples]))
    classes = [sample.classes[0] for sample in samples]
    things = torch.stack([s.pixel_masks[c] for s, c in zip(samples, classes, strict=True)])
    return images, torch.tensor(classes), things


# The equations


def test_the_four_terms_are_their_equations():
    clf = classifier(dtype=torch.float64)
    images, others = networks.images(4, 24, 20, dtype=torch.float64).chunk(2)
    masks = torch.rand(2, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([3, 5])
    found = [term.detach() for term in masking.terms(clf, images, classes, masks, others)]
    for n, c in enumerate([3, 5]):
        uneven = mean = 0.0
        kept, hidden = torch.empty(1, 3, 24, 20).double(), torch.empty(1, 3, 24, 20).double()
        for i in range(24):
            for j in range(20):
                m = float(masks[n, i, j])
                mean += m / (24 * 20)
                if i + 1 < 24:
                    uneven += (m - float(masks[n, i + 1, j])) ** 2
                if j + 1 < 20:
                    uneven += (m - float(masks[n, i, j + 1])) ** 2
                kept[0, :, i, j] = m * images[n, :, i, j] + (1 - m) * others[n, :, i, j]
                hidden[0, :, i, j] = (1 - m) * images[n, :, i, j] + m * others[n, :, i, j]
        seen, left = (float(clf.probabilities(x)[0, c]) for x in (kept, hidden))
        expected = uneven, mean, -math.log(seen), left**masking.POWER
        assert [float(term[n]) for term in found] == pytest.approx(expected, rel=1e-9)
    both = [sum(w * float(t[n]) for w, t in zip((1e-3, 10, 1, 5), found, strict=True)) for n in (0, 1)]
    assert (masking.EVEN, masking.SMALL, masking.GONE) == (1e-3, 10, 5)
    assert float(masking.loss_of(found, torch.tensor([True, True]))) == pytest.approx(sum(both) / 2)
    # A class that a picture does not show is to get an empty mask, whatever the network says.
    area = 1e-3 * float(found[0][1]) + 10 * float(found[1][1])
    assert float(masking.loss_of(found, torch.tensor([True, False]))) == pytest.approx((both[0] + area) / 2)


def test_a_small_probability_still_has_a_gradient():
    """p^0.3 has an infinite slope at 0; by logarithms it stays finite."""
    clf = classifier()
    masks = torch.full((1, 24, 20), 0.5, requires_grad=True)
    images = 50 * networks.images(1, 24, 20)
    for c in range(7):
        gone = masking.terms(clf, images, torch.tensor([c]), masks, torch.zeros_like(images))[3]
        assert torch.autograd.grad(gone.sum(), masks)[0].isfinite().all()


def test_the_feature_filter_is_its_equation():
    features, embeddings = networks.images(2, 4, 5), torch.randn(2, 3)
    found = feature_filter(features, embeddings)
    for n in range(2):
        for i in range(4):
            for j in range(5):
                x = features[n, :, i, j]
                gate = 1 / (1 + math.exp(-sum(float(x[k] * embeddings[n, k]) for k in range(3))))
                torch.testing.assert_close(found[n, :, i, j], x * gate)


def test_alternatives_are_blurred_copies_or_plain_colours_with_noise():
    images = networks.images(40, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = masking.alternatives(images)
    copies = (found == blur(images)).all(1).all(1).all(1)
    assert 10 <= copies.sum() <= 30
    plain = found[~copies].flatten(2)
    assert plain.mean(2).abs().max() < masking.COLOUR + 0.1 and plain.mean(2).std() > masking.COLOUR / 2
    assert plain.std(2).mean() == pytest.approx(masking.NOISE, rel=0.1)


def test_a_mask_of_one_is_the_picture_and_of_zero_the_other():
    images, others = networks.images(2, 8, 8).chunk(2)
    assert torch.equal(masking.mixed(images, torch.ones(1, 8, 8), others), images)
    assert torch.equal(masking.mixed(images, torch.zeros(1, 8, 8), others), others)


# The network and its training


@pytest.mark.parametrize("side, height", [(224, 56), (96, 24), (50, 12)])
def test_shapes_and_ranges(vgg, side, height):
    features, logits = stages(vgg, networks.images(2, side, side + 16))
    assert [f.shape[:2] for f in features] == [(2, 32), (2, 64), (2, 64)] and logits.shape == (2, 51)
    torch.testing.assert_close(features[-1], vgg.features(networks.images(2, side, side + 16))[0])
    masks = Masking(51)(features, torch.tensor([0, 50]))
    assert masks.shape == (2, height, (side + 16) // 4) and masks.min() >= 0 and masks.max() <= 1


def test_training_goes_on_from_a_checkpoint_and_leaves_the_classifier_alone(vgg, tmp_path):
    pixels, labels = cutouts.training_arrays(24, progress=False)
    given = dict(batch=8, checkpoint=tmp_path / "c")
    before = state(vgg.network)
    whole, curve = masking.train_masking(vgg, pixels, labels, schedule=((32, 3),), batch=8)
    real, done = masking.batches, []

    def stop_in_third(*arguments):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(masking, "batches", stop_in_third)
        masking.train_masking(vgg, pixels, labels, schedule=((32, 3),), **given)
    resumed, again = masking.train_masking(vgg, pixels, labels, schedule=((32, 3),), **given)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in curve] == [row["loss"] for row in again]
    assert_same_state(vgg.network, before)
    with pytest.raises(ValueError, match="belongs to another training"):
        masking.train_masking(vgg, pixels, labels, schedule=((32, 2),), **given)


def test_it_learns_by_heart(vgg):
    pixels, labels = cutouts.training_arrays(8, progress=False)
    _, curve = masking.train_masking(vgg, pixels, labels, schedule=((64, 30),), batch=8)
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]


# The method


def test_its_maps(vgg, unseen):
    images, classes, _ = unseen
    before = state(vgg.network)
    with peers.passes(vgg) as counts, tl.counting() as ours:
        maps = METHOD(vgg, images[:3], classes[:3].tolist())
    assert (counts["forward"], counts["backward"], ours["forward images"]) == (3, 0, 3)
    assert maps.shape == (3, 224, 224) and maps.dtype == torch.float32 and not maps.requires_grad
    assert (
        maps.isfinite().all()
        and maps.amin((1, 2)).tolist() == [0] * 3
        and maps.amax((1, 2)).tolist() == [1] * 3
    )
    assert_same_state(vgg.network, before)
    torch.testing.assert_close(METHOD(vgg, images[1:2], int(classes[1])), maps[1:2], rtol=0, atol=1e-4)
    torch.testing.assert_close(METHOD(vgg, images[:3], classes[:3], batch=2), maps, rtol=0, atol=1e-4)
    predicted = vgg.predict(images[:3])
    torch.testing.assert_close(METHOD(vgg, images[:3]), METHOD(vgg, images[:3], predicted), rtol=0, atol=1e-6)
    assert not torch.equal(METHOD(vgg, images[:1], 0), METHOD(vgg, images[:1], 1))
    with pytest.raises(IndexError, match="51 classes"):
        METHOD(vgg, images[:1], 51)


def test_other_classifiers_are_refused_in_a_sentence(monkeypatch, tmp_path):
    images = networks.images(1, 64, 64)
    seven = tl.Classifier(vgg19_cutouts(classes=7), name="vgg19_cutouts")
    for clf in (tl.load_classifier("vgg19_cutouts_scenes"), classifier(), seven):
        with pytest.raises(ValueError, match="`python -m thesis_lib.training.masking`") as raised:
            METHOD(clf, images, 0)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(real_time, "FILE", tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="needs a masking network trained"):
        METHOD(tl.load_classifier("vgg19_cutouts"), images, 0)


def test_the_weights_are_small_and_what_the_command_wrote():
    assert FILE.stat().st_size < 250_000
    with safe_open(FILE, "pt") as file:
        assert file.metadata()["classifier"] == real_time.CLASSIFIER
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert (FILE.parent / f"training_{FILE.stem}.json").exists()


def test_the_trained_network_beats_its_untrained_self_and_the_centre(vgg, unseen):
    """On compositions and backgrounds that it has not seen, by where its map lies and by what the classifier says."""
    images, classes, things = unseen
    with torch.no_grad():
        torch.manual_seed(0)
        untrained = Masking(51)(stages(vgg, images)[0], classes)
    maps = {
        "trained": METHOD(vgg, images, classes),
        "untrained": min_max(resize(untrained[:, None], (224, 224)))[:, 0],
        "centre": tl.METHODS["centre"](vgg, images, classes),
    }
    energy = {name: float(((m * things).sum((1, 2)) / m.sum((1, 2))).mean()) for name, m in maps.items()}
    overall = {
        name: float(tl.insertion_deletion(vgg, images[:6], m[:6], classes[:6], step=3584).overall.mean())
        for name, m in maps.items()
    }
    for found, lead in ((energy, 0.15), (overall, 0.05)):
        assert found["trained"] > max(found["untrained"], found["centre"]) + lead, found
