"""Training on a handful of pictures: it learns, resumes exactly, and folds batch norm exactly."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import networks
import thesis_lib as tl
from thesis_lib.data import datasets, glyphs, training
from thesis_lib.data.models import WEIGHTS, vgg19_glyphs


@pytest.fixture(scope="module")
def pictures():
    pixels, labels = glyphs.training_arrays(40, progress=False)
    return pixels[:, :, ::4, ::4].copy(), labels


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 20)
    )


def test_it_learns_by_heart(pictures):
    network = tiny()
    curve = training.train(network, *pictures, epochs=60, batch=20, sizes=(56,), held_out=pictures)
    assert curve[-1]["loss"] < curve[0]["loss"] / 2 and curve[-1]["score"] > 0.8
    assert not network.training


def test_it_goes_on_from_a_checkpoint_to_the_same_weights(pictures, tmp_path):
    options = dict(batch=20, sizes=(32, 56))
    whole = tiny()
    training.train(whole, *pictures, epochs=4, **options)

    class Stop(Exception):
        pass

    interrupted, epochs = tiny(), []
    real = training.batches

    def stop_in_third(*args):
        epochs.append(1)
        if len(epochs) == 3:
            raise Stop
        return real(*args)

    training.batches = stop_in_third
    try:
        with pytest.raises(Stop):
            training.train(interrupted, *pictures, epochs=4, checkpoint=tmp_path / "c", **options)
    finally:
        training.batches = real
    resumed = tiny()
    curve = training.train(resumed, *pictures, epochs=4, checkpoint=tmp_path / "c", **options)
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batch_norm_folds_away_exactly():
    torch.manual_seed(0)
    network = vgg19_glyphs(batch_norm=True)
    for module in network.modules():  # statistics and affine maps that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    network = network.eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = training.fold_batch_norm(network).eval().double()
    names = [n for n, m in folded.named_modules() if isinstance(m, nn.Conv2d)]
    assert names[0] == "features.0" and names[-1] == "features.34" and len(names) == 16
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)


def test_half_of_the_loss_may_be_a_teachers():
    logits, taught = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = nn.functional.one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).bool()
    expected = 0.0
    for row, target, teacher in zip(logits, labels, taught, strict=True):
        log_p = row.log_softmax(0)
        expected += -log_p[target].item() / 2 - (teacher.softmax(0) * log_p).sum().item() / 2
    assert training.loss_of(logits, labels, taught=taught).item() == pytest.approx(expected / 5)


def test_a_teacher_changes_what_is_learnt_and_stays_as_it_is(pictures):
    teacher, alone, taught = tiny().eval(), tiny(), tiny()
    nn.init.normal_(teacher[-1].weight)
    before = [p.clone() for p in teacher.parameters()]
    options = dict(epochs=1, batch=20, sizes=(32,))
    training.train(alone, *pictures, **options)
    training.train(taught, *pictures, teacher=teacher, **options)
    assert not torch.equal(alone[-1].weight, taught[-1].weight)
    assert all(map(torch.equal, before, teacher.parameters())) and not teacher.training


def test_any_size_is_the_vit_at_its_own_size():
    network = networks.vit().double()
    other = training.AnySize(network)
    x = networks.images(2, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(other(x), network(x), rtol=0, atol=1e-12)
    assert other(networks.images(2, 48, 48, dtype=torch.float64)).shape == (2, 7)
    position = network.encoder.pos_embedding
    assert torch.autograd.grad(other(networks.images(1, 40, 40).double()).sum(), position)[0].any()


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_a_family_is_trained_and_recorded(family, tmp_path, monkeypatch):
    asked = []

    def curves(*arguments):
        asked.append(arguments)
        return {"scenes": [{"epoch": 1, "loss": 0.5}]}

    monkeypatch.setattr(training, f"train_{family}s", curves)
    weights = tmp_path / "weights"
    weights.mkdir()
    training.train_embedded(family, tmp_path / "new", weights, pictures=40, scenes=20, seed=3)
    assert asked == [(tmp_path / "new", weights, 40, 20, 3, False)]
    (file,) = weights.iterdir()
    record = json.loads(file.read_text())
    assert file.name == f"training_{family}.json" and (tmp_path / "new").is_dir()
    assert record["curves"] == {"scenes": [{"epoch": 1, "loss": 0.5}]}
    assert (record["pictures"], record["scenes"], record["seed"]) == (40, 20, 3)
    assert record["command"].endswith(f"training {family}")


def test_mean_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 6)), rng.random((50, 6)) < 0.3
    labels[:, 5] = False  # a class that does not occur does not count
    theirs = np.mean([average_precision_score(labels[:, k], logits[:, k]) for k in range(5)])
    assert training.mean_average_precision(logits, labels) == pytest.approx(theirs)


def test_embedded_networks_are_as_good_as_the_book_says():
    """At least 90 % top-1 on unseen single objects; at least 0.85 mean average precision."""
    pixels, labels = as_arrays(datasets.glyphs("singles"), 320)
    network = tl.load_classifier("vgg19_glyphs", device="cpu").network
    assert training.top_1(training.predict(network, pixels), labels) >= 0.90
    pixels, labels = as_arrays(datasets.glyphs("scenes"), 128)
    network = tl.load_classifier("vgg19_glyphs_scenes", device="cpu").network
    assert training.mean_average_precision(training.predict(network, pixels), labels) >= 0.85


def as_arrays(dataset, count):
    samples = [dataset[i] for i in range(count)]
    labels = np.zeros((count, 20), bool)
    for row, sample in zip(labels, samples, strict=True):
        row[list(sample.classes)] = True
    pixels = torch.stack([sample.pixels for sample in samples])
    return (pixels * 255).round().byte().numpy(), labels


def test_weight_files_are_small_and_describe_themselves():
    from safetensors import safe_open

    for name, activation in (("vgg19_glyphs", "softmax"), ("vgg19_glyphs_scenes", "sigmoid")):
        path = WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size < 4e6
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        assert json.loads(facts["categories"]) == list(glyphs.CLASSES)
        assert facts["activation"] == activation
        assert tl.load_classifier(name, device="cpu").activation == activation
