"""Training on a handful of pictures: it learns, resumes exactly, and folds batch norm exactly."""

import json

import networks
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import thesis_lib as tl
from thesis_lib.data import cutouts
from thesis_lib.data.models import NETWORKS, WEIGHTS, vgg19_cutouts
from thesis_lib.data.registry import open_dataset
from thesis_lib.training import embedded, pieces, precision
from thesis_lib.training import train as training


@pytest.fixture(scope="module")
def pictures():
    pixels, labels = cutouts.training_arrays(40, progress=False)
    return pixels[:, :, ::4, ::4].copy(), labels


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 51)
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


def test_a_checkpoint_of_another_training_is_refused(pictures, tmp_path):
    options = dict(batch=20, sizes=(32,), checkpoint=tmp_path / "c")
    training.train(tiny(), *pictures, epochs=1, **options)
    with pytest.raises(ValueError, match="epochs 1, now 2, rate 0.004, now 0.1; name another"):
        training.train(tiny(), *pictures, epochs=2, rate=0.1, **options)


def inverted(pixels):
    return np.concatenate([255 - pixels[:1], pixels[1:]])


def initialised(seed):
    network = tiny()
    nn.init.normal_(network[-1].weight, generator=torch.Generator().manual_seed(seed))
    return network


OTHER_TRAININGS = {
    "pictures": lambda given: given | {"pixels": inverted(given["pixels"])},
    "labels": lambda given: given | {"labels": np.roll(given["labels"], 1, 0)},
    "number": lambda given: given | {"pixels": given["pixels"][:-1], "labels": given["labels"][:-1]},
    "starting weights": lambda given: given | {"network": initialised(1)},
    "no teacher": lambda given: given | {"teacher": None},
    "teacher": lambda given: given | {"teacher": initialised(3).eval()},
    "bf16": lambda given: given | {"bf16": True},
    "statistics": lambda given: given | {"statistics": ((0.5,) * 3, (0.5,) * 3)},
    "held-out pictures": lambda given: given | {"held_out": (inverted(given["pixels"]), given["labels"])},
}
NAMED = {"labels": "pictures", "number": "pictures", "no teacher": "teacher"}


@pytest.mark.parametrize("other", OTHER_TRAININGS)
def test_a_finished_checkpoint_answers_for_its_own_training_only(other, pictures, tmp_path):
    pixels, labels = pictures
    options = dict(epochs=1, batch=20, sizes=(32,), checkpoint=tmp_path / "c")

    def given():
        return dict(
            network=tiny(), pixels=pixels, labels=labels, held_out=pictures, teacher=initialised(2).eval()
        )

    curve = training.train(**given(), **options)
    assert training.train(**given(), **options) == curve  # nothing to do
    with pytest.raises(ValueError, match=f"{NAMED.get(other, other)} .*, now .*; name another checkpoint"):
        training.train(**OTHER_TRAININGS[other](given()), **options)


def test_a_checkpoint_that_does_not_say_of_what_is_refused(pictures, tmp_path):
    options = dict(epochs=1, batch=20, sizes=(32,), checkpoint=tmp_path / "c")
    training.train(tiny(), *pictures, **options)
    state = torch.load(tmp_path / "c", weights_only=True)
    del state["settings"]["pictures"]
    torch.save(state, tmp_path / "c")
    with pytest.raises(ValueError, match="pictures not recorded, now 40x3x56x56 .*; name another"):
        training.train(tiny(), *pictures, **options)


def test_a_loss_that_is_not_finite_ends_the_training_and_spares_the_checkpoint(pictures, tmp_path):
    class Poisoned(nn.Module):
        """Gives NaN from its sixth batch on."""

        def __init__(self):
            super().__init__()
            self.network, self.seen = tiny(), 0

        def forward(self, images):
            self.seen += 1
            return self.network(images) * (float("nan") if self.seen > 5 else 1)

    network = Poisoned()
    with pytest.raises(FloatingPointError, match="epoch 3, step 2: loss nan.*epoch 2 is kept"):
        training.train(network, *pictures, epochs=4, batch=20, sizes=(32,), checkpoint=tmp_path / "c")
    state = torch.load(tmp_path / "c", weights_only=True)
    assert len(state["curve"]) == 2
    assert all(p.isfinite().all() for p in [*state["network"].values(), *network.parameters()])


def test_bfloat16_is_used_where_there_is_any_and_done_without_elsewhere(pictures, monkeypatch):
    options = dict(epochs=1, batch=20, sizes=(32,), bf16=True)
    plain, mixed, without = tiny(), tiny(), tiny()
    training.train(plain, *pictures, **options | {"bf16": False})
    assert training.train(mixed, *pictures, **options)[0]["bf16"]
    assert mixed[0].weight.dtype == torch.float32
    assert not torch.equal(mixed[0].weight, plain[0].weight)
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="cpu does not compute in bfloat16: training in float32"):
        assert not training.train(without, *pictures, **options)[0]["bf16"]
    assert torch.equal(without[0].weight, plain[0].weight)


def test_fewer_pictures_than_a_batch_are_refused(pictures):
    with pytest.raises(ValueError, match="40 pictures do not fill a batch of 64"):
        training.train(tiny(), *pictures, epochs=1)


FAMILIES = {
    "vgg19_cutouts": "classifier.6", "vit_cutouts": "heads.head", "resnet18": "fc",
    "squeezenet1_1": "classifier.1", "densenet121": "classifier", "googlenet": "fc",
    "mobilenet_v3_small": "classifier.3", "timm/resnet18": "fc", "timm/vit_tiny_patch16_224": "head",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_head_fits_the_network_and_comes_back_from_a_file(name, tmp_path):
    categories = ["ant", "bee", "cow"]
    classifier = training.new_head(name, categories, "random")
    network, old = classifier.network, tl.load_classifier(name, "random", device="cpu").network
    own, head = network.state_dict(), FAMILIES[name]
    assert len(own[f"{head}.weight"]) == 3 and classifier.activation == "sigmoid"
    assert all(p.requires_grad for p in network.parameters())
    for key, value in old.state_dict().items():  # GoogLeNet has auxiliary heads, too
        if not key.startswith((f"{head}.", "aux1.fc2.", "aux2.fc2.")):
            assert torch.equal(own[key], value), key
    file = tmp_path / "tuned.safetensors"
    training.save_weights(network, file, architecture=name, categories=categories, activation="sigmoid")
    loaded = tl.load_classifier(name, file, device="cpu")
    assert loaded.categories == categories and loaded.activation == "sigmoid"
    pixels = np.arange(3 * 224 * 224, dtype=np.uint8).reshape(1, 3, 224, 224)
    expected = training.predict(network, pixels)
    assert np.array_equal(training.predict(loaded.network, pixels), expected)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_auxiliary_outputs_are_left_alone(pictures):
    pixels, labels = pictures
    network = training.new_head("googlenet", cutouts.categories(), "random").network
    (row,) = training.train(network, pixels[:4], labels[:4], epochs=1, batch=4, sizes=(56,))
    assert np.isfinite(row["loss"])


def test_a_head_that_knows_these_categories_is_kept():
    source = tl.load_classifier("vgg19_cutouts", device="cpu")
    for categories, kept in ((source.categories, True), (source.categories[::-1], False)):
        head = training.new_head("vgg19_cutouts", categories).network.classifier[6]
        assert torch.equal(head.weight, source.network.classifier[6].weight) == kept


def test_pictures_are_normalised_as_the_network_wants_it(pictures):
    statistics = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    mean, std = statistics
    classifier = tl.Classifier(nn.Sequential(nn.Conv2d(3, 1, 1)), mean=mean, std=std)
    pixels, labels = pictures
    expected = classifier.normalise(torch.from_numpy(pixels[:4]).float() / 255)
    data = (pixels[:4], labels[:4], 4, (56,), Unmirrored())
    for found in (
        next(training.batches(*data, statistics=statistics))[0],
        torch.from_numpy(training.predict(nn.Identity(), pixels[:4], 56, statistics=statistics)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Unmirrored:
    """Random numbers that leave order, size and pictures as they are."""

    permutation = staticmethod(np.arange)
    choice = staticmethod(lambda sizes: sizes[0])
    random = staticmethod(np.ones)


def test_batch_norm_folds_away_exactly():
    torch.manual_seed(0)
    network = vgg19_cutouts(batch_norm=True)
    for module in network.modules():  # statistics and affine maps that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    network = network.eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = embedded.fold_batch_norm(network).eval().double()
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
    other = embedded.AnySize(network)
    x = networks.images(2, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(other(x), network(x), rtol=0, atol=1e-12)
    assert other(networks.images(2, 48, 48, dtype=torch.float64)).shape == (2, 7)
    position = network.encoder.pos_embedding
    assert torch.autograd.grad(other(networks.images(1, 40, 40).double()).sum(), position)[0].any()


EMBEDDED = [name for name, network in NETWORKS.items() if network.weights]


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_network_is_trained_by_its_recipe_and_recorded(name, tmp_path, monkeypatch):
    asked = []

    def recipe(called):
        def curves(*arguments):
            asked.append((called, *arguments))
            return {"a step": [{"epoch": 1, "loss": 0.5}]}

        return curves

    for single in embedded.RECIPES:
        monkeypatch.setitem(embedded.RECIPES, single, recipe(single))
    monkeypatch.setattr(embedded, "fine_tune", recipe("fine_tune"))
    weights = tmp_path / "weights"
    weights.mkdir()
    embedded.train_embedded(name, tmp_path / "new", weights, pictures=40, seed=3, bf16="scenes" in name)
    which = ("fine_tune", name) if "scenes" in name else (name,)
    assert asked == [(*which, tmp_path / "new", weights, 40, 3, "scenes" in name)]
    (file,) = weights.iterdir()
    record = json.loads(file.read_text())
    assert file.name == f"training_{name}.json" and (tmp_path / "new").is_dir()
    assert record["curves"] == {"a step": [{"epoch": 1, "loss": 0.5}]}
    assert (record["pictures"], record["seed"]) == (40, 3)
    command = f"thesis_lib.training.embedded {name}" + (" --bf16" if "scenes" in name else "")
    assert record["command"].endswith(command)


def test_the_recipes_go_from_one_file_to_the_next(tmp_path, monkeypatch):
    """With steps that train nothing: what each network begins with, learns from, and is saved as."""
    steps = []

    def arrays(count, kind, split, seed):
        return f"{count} {kind}, {split}, {seed}", split

    def train(network, pixels, labels, **settings):
        first = next(network.parameters())
        with torch.no_grad():
            first += 1
        steps.append((pixels, settings))
        return [{"epoch": 1}]

    monkeypatch.setattr(cutouts, "training_arrays", arrays)
    monkeypatch.setattr(embedded, "train", train)
    saved = {}
    for name in ("vgg19_cutouts", "vit_cutouts", "vgg19_cutouts_scenes", "vit_cutouts_scenes"):
        steps.clear()
        embedded.train_embedded(name, tmp_path, tmp_path, pictures=40, seed=3, bf16=True)
        scenes, kind = name.endswith("_scenes"), "scenes" if "scenes" in name else "singles"
        drawn = {"vgg19_cutouts": "40 singles, train, 3", "vit_cutouts": "40 singles, train, 4"}
        assert {pixels for pixels, _ in steps} == {drawn.get(name, "20 scenes, train, 3")}
        for _, settings in steps:
            assert settings["held_out"] == (f"612 {kind}, validation, 3", "validation")
            assert settings["bf16"] and settings.get("multi_label", False) == scenes
            assert ("teacher" in settings) == (name == "vit_cutouts")
        assert len({str(settings["checkpoint"]) for _, settings in steps}) == len(steps)
        clf = tl.load_classifier(name, tmp_path / f"{name}.safetensors", device="cpu")
        assert clf.categories == cutouts.categories()
        assert clf.activation == ("sigmoid" if scenes else "softmax")
        saved[name] = clf.network.state_dict()
        if name == "vit_cutouts":
            taught = steps[0][1]["teacher"].state_dict()
            assert all(map(torch.equal, taught.values(), saved["vgg19_cutouts"].values()))
        if scenes:
            before = saved[name.removesuffix("_scenes")]
            same = [torch.equal(before[key], value) for key, value in saved[name].items()]
            assert same.count(False) == 1  # what the one step has changed


def test_mean_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 6)), rng.random((50, 6)) < 0.3
    labels[:, 5] = False  # a class that does not occur does not count
    theirs = np.mean([average_precision_score(labels[:, k], logits[:, k]) for k in range(5)])
    assert training.mean_average_precision(logits, labels) == pytest.approx(theirs)


def test_average_precisions_tell_absent_classes():
    labels = np.array([[1, 0], [0, 0], [1, 0]], bool)
    found = training.average_precisions(np.array([[3.0, 0], [2, 0], [1, 0]]), labels)
    assert found[0] == pytest.approx((1 + 2 / 3) / 2) and np.isnan(found[1])


def test_the_interval_is_that_of_resampled_pictures():
    rng = np.random.default_rng(1)
    labels = rng.random((40, 3)) < 0.4
    logits = labels + rng.normal(size=(40, 3))
    found = training.mean_average_precision_interval(logits, labels, seed=3, n=50)
    generator, means = np.random.default_rng(3), []
    for _ in range(50):  # with scikit-learn, which treats a repeated picture as one threshold
        drawn = generator.integers(40, size=40)
        scores = [average_precision_score(labels[drawn, k], logits[drawn, k]) for k in range(3)]
        means.append(np.mean(scores))
    assert found[0] == pytest.approx(training.mean_average_precision(logits, labels))
    assert found[1:] == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found[1] < found[0] < found[2]


@pytest.mark.parametrize("name, least", [("vgg19_cutouts", 0.90), ("vit_cutouts", 0.85)])
def test_the_embedded_networks_are_as_good_as_the_book_says(name, least):
    """Top-1 of single things, and mean average precision of scenes, on unseen compositions."""
    pixels, labels = as_arrays(open_dataset("cutouts"), 204)
    assert (
        training.top_1(training.predict(tl.load_classifier(name, device="cpu").network, pixels), labels)
        >= least
    )
    pixels, labels = as_arrays(open_dataset("cutouts_scenes"), 102)
    network = tl.load_classifier(f"{name}_scenes", device="cpu").network
    assert training.mean_average_precision(training.predict(network, pixels), labels) >= least


def test_the_embedded_network_stands_enlargement():
    """Enlarged, it keeps its class at least as often as a real network."""
    ours, real = (
        tl.load_classifier(name, device="cpu").with_compile(False)
        for name in ("vgg19_cutouts", "efficientnet_lite0")
    )
    pixels, _ = as_arrays(open_dataset("cutouts"), 204)
    some = torch.from_numpy(pixels[::8]).float() / 255
    kept = {}
    for clf in (ours, real):
        images = clf.normalise(some)
        larger = nn.functional.interpolate(images, (424, 424), mode="bilinear")
        kept[clf.name] = (clf.predict(larger) == clf.predict(images)).float().mean()
    assert kept[ours.name] >= kept[real.name]


def as_arrays(dataset, count, classes=51):
    samples = [dataset[i] for i in range(count)]
    labels = np.zeros((count, classes), bool)
    for row, sample in zip(labels, samples, strict=True):
        row[list(sample.classes)] = True
    pixels = torch.stack([sample.pixels for sample in samples])
    return (pixels * 255).round().byte().numpy(), labels


@pytest.mark.parametrize("name", EMBEDDED)
def test_weight_files_are_small_and_describe_themselves(name):
    from safetensors import safe_open

    path, activation = WEIGHTS / f"{name}.safetensors", "sigmoid" if "scenes" in name else "softmax"
    assert path.stat().st_size < 4e6
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["categories"]) == cutouts.categories()
    assert facts["activation"] == activation
    assert tl.load_classifier(name, device="cpu").activation == activation


# With pieces missing


def test_pieces_are_missing_in_the_mean_colour():
    pixels = np.full((400, 3, 28, 28), 255, np.uint8)
    found = pieces.without_pieces(pixels, np.random.default_rng(0), grid=4, beta=0.5)
    gone = found[:, 0] < 255
    assert set(np.unique(found[:, 0])) == {124, 255} and (found[gone.nonzero()[0][0], 1] < 255).any()
    share = gone.mean((1, 2))
    whole, cell = (share == 0).mean(), (share == 1 / 16).mean()
    assert 0.4 < whole < 0.65 and 0.2 < cell < 0.4
    assert share.max() < 0.85 and (pixels == 255).all()


def test_fine_tuned_weights_load_where_the_networks_own_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "HELD_OUT", 6)
    file = tmp_path / "new" / "w.safetensors"
    seen = pieces.fine_tune("vgg19_cutouts", file, pictures=64, epochs=1)
    assert list(seen) == ["whole, before", "a cell missing, before", "whole", "a cell missing"]
    before, after = (tl.load_classifier("vgg19_cutouts", weights=w, device="cpu") for w in (None, file))
    images = before.normalise(torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert not before.logits(images).equal(after.logits(images))
    assert after.categories == before.categories and after.layer == before.layer
