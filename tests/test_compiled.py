"""Scoring passes by a compiled copy: where they run it, that it is equal, and never stale.

What decides is tried with a stand-in that compiles nothing; the few networks that are compiled are small.
"""

import copy
import json
import os
import pickle
import warnings
from types import SimpleNamespace

import networks
import pytest
import torch
from networks import images, random_network
from torch import nn

import thesis_lib as tl
from thesis_lib import compiled
from thesis_lib.runs import files, key

SIZE = (32, 32)


@pytest.fixture
def made(monkeypatch):
    """The copies that are made, each a list of the batches that it ran; weights as they were then."""
    copies = []

    def stand_in(network):
        frozen, ran = copy.deepcopy(network), []
        copies.append(ran)

        def run(images):
            ran.append(len(images))
            return frozen(images) * (1 + 1e-6)  # rounds, so that its rows can be told from eager ones

        return run

    monkeypatch.setattr(compiled, "compile_copy", stand_in)
    return copies


def classifier(family=networks.Plain, compile="always", batch=4, **settings):
    return tl.Classifier(random_network(family), family.layer, batch=batch, compile=compile, **settings)


def score(clf, n=20, x=None):
    """Scores of n images as an inner loop has them."""
    x = images(n, *SIZE, dtype=clf.dtype) if x is None else x
    with clf.compiled(len(x), SIZE):
        return clf.scores(x, torch.zeros(len(x), dtype=torch.long, device=clf.device))


def eager(clf, n=20):
    return score(clf.with_compile(False), n)


def is_eager(clf, n=20):
    return torch.equal(score(clf, n), eager(clf, n))


# Where


def test_full_batches_run_the_copy_and_the_last_one_the_network(made):
    clf = classifier()
    ours, plain = score(clf, 22), eager(clf, 22)
    assert not torch.equal(ours[:20], plain[:20]) and torch.equal(ours[20:], plain[20:])
    torch.testing.assert_close(ours, plain)
    assert made == [[4, 4, 4, 4, 4, 4]]  # the first of them checks


def test_made_once_for_a_network_and_a_shape(made):
    clf = classifier()
    for c in (clf, copy.copy(clf), clf.with_batch(4), tl.Classifier(clf.network, batch=4, compile="always")):
        score(c)
    assert len(made) == 1 and len(made[0]) == 1 + 4 * 5
    score(clf.with_batch(5))
    assert [len(ran) for ran in made] == [21, 5]


@pytest.mark.parametrize("switched", ["compile=False", "THESIS_COMPILE=0", "few batches", "no announcement"])
def test_switched_off(made, monkeypatch, switched):
    clf, n = classifier(compile=switched != "compile=False" and "always"), 20
    if switched == "THESIS_COMPILE=0":
        monkeypatch.setenv("THESIS_COMPILE", "0")
    if switched == "no announcement":
        clf.scores(images(n, *SIZE), torch.zeros(n).long())
    else:
        assert is_eager(clf, 15 if switched == "few batches" else n)
    assert not made


def test_another_word_is_refused():
    with pytest.raises(ValueError, match='compile, unless True or False, is "always"'):
        classifier(compile="sometimes")


@pytest.fixture
def clock(monkeypatch):
    """What passes take: seconds of the network and of its copy."""
    takes = SimpleNamespace(network=1.0, copy=0.7)

    def seconds(work, device):
        work()
        behind = [cell.cell_contents for cell in work.__closure__ or ()] + list(work.__defaults__ or ())
        return takes.network if any(isinstance(x, nn.Module) for x in behind) else takes.copy

    monkeypatch.setattr(compiled, "_seconds", seconds)
    return takes


@pytest.mark.parametrize("batches, pays", [(60, False), (150, True)])
def test_it_pays_where_what_it_saves_is_more_than_what_it_takes(made, clock, batches, pays):
    """A quarter of a second each: 25 s are made up for by 100 batches."""
    clf = classifier(compile=True)
    with clf.compiled(4 * batches, SIZE) as plan:
        for _ in range(4):
            clf.scores(images(4, *SIZE), torch.zeros(4).long())
        assert plan.left == batches - 4
    assert len(made) == pays and (plan.run is clf.network) == (not pays)
    assert is_eager(clf) == (not pays)  # a copy that is there runs in short loops too


def test_a_copy_that_is_no_faster_is_dropped_without_a_word(made, clock):
    clf, clock.copy = classifier(compile=True), 1.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with clf.compiled(1000, SIZE):
                ours = clf.scores(images(12, *SIZE), torch.zeros(12).long())
            assert torch.equal(ours, eager(clf, 12))
    assert len(made) == 1


def test_of_loops_within_one_another_the_outermost_decides(made):
    clf = classifier(compile=True)
    with clf.with_compile("always").compiled(80, SIZE):
        score(clf)
        score(clf)
    assert [len(ran) for ran in made] == [11]  # checked once
    with classifier().compiled(80, SIZE):  # another network's loop is not ours
        assert is_eager(clf)


def test_without_a_compiler_nothing_is_said(made, monkeypatch, recwarn):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert is_eager(classifier()) and not made and not recwarn


def test_a_few_pictures_stay_eager(made):
    clf, x = tl.load_classifier("vgg19_cutouts", device="cpu"), images(2, 224, 224)
    maps = tl.METHODS["group_cam"](clf, x, 3, groups=8)
    tl.insertion_deletion(clf, x, maps, step=896)
    assert clf.compile is True and not made


# Never stale, never seen


def replaced(network):
    network.features[1] = nn.Hardtanh()


def loaded(network):
    network.load_state_dict(random_network(networks.Plain, 1).state_dict())


def parameter(network):
    network.features[0].weight = nn.Parameter(network.features[0].weight * 2)


def in_place(network):
    with torch.no_grad():
        network.features[0].weight.mul_(2)


def behind_its_back(network):
    network.features[0].weight.data.mul_(2)


def other_data(network):
    network.features[0].weight.data = network.features[0].weight.data * 2


def setting(network):
    network.features[3].stride = (2, 2)


def hooked(network):
    network.head.register_forward_hook(lambda module, args, out: out + 1)


def hooked_before(network):
    network.head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def own_forward(network):
    forward = network.head.forward
    network.head.forward = lambda x: forward(x) + 1


CHANGES = [replaced, loaded, parameter, in_place, behind_its_back, other_data, setting, hooked, hooked_before,
           own_forward]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_changed(made, recwarn, change):
    clf = classifier()
    before = score(clf)
    change(clf.network)
    ours, plain = score(clf), eager(clf)
    torch.testing.assert_close(ours, plain)
    assert not torch.allclose(ours, before, atol=1e-3) and not recwarn
    again = change not in (hooked, hooked_before, own_forward)
    assert len(made) == 1 + again and torch.equal(ours, plain) == (not again)


def test_a_change_of_buffers(made):
    clf = classifier(networks.Residual)
    before = score(clf)
    clf.network.block.bn1.running_mean.add_(1)
    torch.testing.assert_close(score(clf), eager(clf))
    assert len(made) == 2 and not torch.allclose(score(clf), before)


def test_nothing_is_seen_of_it(made):
    clf = classifier(networks.Residual)
    clf.network.train()
    keys = sorted(vars(clf))
    before = json.dumps(key.describe_classifier(clf)), [sorted(vars(m)) for m in clf.network.modules()]
    tensors = {n: (t.data_ptr(), t._version, t.requires_grad) for n, t in clf.network.named_parameters()}
    score(clf)
    assert len(made) == 1 and sorted(vars(clf)) == keys and all(m.training for m in clf.network.modules())
    assert before == (
        json.dumps(key.describe_classifier(clf)),
        [sorted(vars(m)) for m in clf.network.modules()],
    )
    assert tensors == {
        n: (t.data_ptr(), t._version, t.requires_grad) for n, t in clf.network.named_parameters()
    }
    for other in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        assert other.compile == "always" and other.network not in compiled._known
    name, randomized = next(tl.randomize(clf))
    torch.testing.assert_close(score(randomized), eager(randomized))
    assert len(made) == 2


def test_it_goes_with_the_network(made):
    clf = classifier()
    score(clf)
    there = len(compiled._known)
    del clf
    assert len(compiled._known) == there - 1


def test_a_copy_that_differs_is_dropped_with_one_warning(monkeypatch):
    monkeypatch.setattr(compiled, "compile_copy", lambda network: lambda x: network(x) * 1.01)
    clf = classifier()
    with pytest.warns(UserWarning, match="of Plain gives other logits than the network") as said:
        assert is_eager(clf) and is_eager(clf) and is_eager(clf.with_batch(5))
    assert len(said) == 1


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def fails(network):
        raise RuntimeError("no graph\nof that")

    monkeypatch.setattr(compiled, "compile_copy", fails)
    clf = classifier()
    with pytest.warns(UserWarning, match=r"cannot be made \(RuntimeError: no graph\): it runs") as said:
        assert is_eager(clf) and is_eager(clf)
    assert len(said) == 1


class Random(networks.Plain):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1)


def test_a_network_that_draws_numbers_draws_those_that_it_would(made):
    clf = classifier(Random)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="gives other logits"):
        ours = score(clf)
    torch.manual_seed(0)
    assert torch.equal(ours, eager(clf))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: torch.compile(n, backend="eager")])
def test_wrapped_networks_run_as_they_are(made, wrap):
    clf = tl.Classifier(wrap(random_network(networks.Plain)), batch=4, compile="always")
    assert is_eager(clf) and not made


@pytest.mark.parametrize("kind, digits", [(torch.float32, 3.4), (torch.float64, 7.8), (torch.bfloat16, 1)])
def test_half_of_the_digits_are_the_same(kind, digits):
    logits = torch.linspace(-1, 1, 14).view(2, 7).to(kind)
    assert compiled._same(logits, logits) and compiled._same(logits / 0, logits / 0)
    assert compiled._same(logits * (1 + 10 ** -(digits + 0.5)), logits)
    assert not compiled._same(logits + 2 * 10 ** -(digits - 0.5), logits)
    assert not compiled._same(logits * torch.nan, logits)


# Compiled indeed


def tiny(family, kind):
    clf = tl.Classifier(networks.vit() if family == "vit" else random_network(networks.Residual), batch=4)
    clf.network.to(kind)
    return clf, images(2, *SIZE, dtype=kind)


@pytest.mark.parametrize("kind, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_compiled_rows_are_those_of_the_network(family, kind, tolerance, monkeypatch, recwarn):
    clf, x = tiny(family, kind)
    torch._dynamo.utils.counters.clear()
    always = clf.with_compile("always")
    maps = tl.METHODS["grad_cam"](clf, x, 3)
    made, make = [], compiled.compile_copy
    monkeypatch.setattr(compiled, "compile_copy", lambda network: made.append(make(network)) or made[-1])

    def everything(c):
        curves = tl.insertion_deletion(c, x, maps, 3, step=64)
        found = [curves.insertion, curves.deletion, curves.overall]
        found += [tl.METHODS["score_cam"](c, x, 3)] if family == "cnn" else []
        return [*found, tl.METHODS["group_cam"](c, x, 3, groups=12)]

    expected = everything(clf)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        clf.network.train()
        within = everything(always)
        clf.network.eval()
    for found in (within, everything(always)):
        for ours, right in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, right, atol=tolerance, rtol=0)
    assert not [w for w in recwarn if "copy" in str(w.message)]
    assert len(made) == 1 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert all(known.copy for known in compiled._known[clf.network].values())
    assert (clf.network.training, next(clf.network.parameters()).requires_grad) == (False, True)


class Branching(networks.Plain):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def test_a_network_that_looks_at_its_numbers_cannot_be_compiled():
    with pytest.warns(UserWarning, match="cannot be made"):
        assert is_eager(classifier(Branching))


def test_bfloat16_compiled():
    clf = classifier(networks.Residual)
    clf.network.to(torch.bfloat16)
    ours = score(clf)
    assert ours.dtype == torch.float32 and all(k.copy for k in compiled._known[clf.network].values())
    torch.testing.assert_close(ours, eager(clf), atol=0.05, rtol=0.05)


# Runs


class Pictures:
    ids = [f"picture-{i}" for i in range(40)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        pixels = torch.rand(3, *SIZE, generator=generator)
        return SimpleNamespace(id=self.ids[i], pixels=pixels, classes=(0,), masks={}, pixel_masks={})


def rows(out, clf, **settings):
    found = tl.evaluate(
        Pictures(), clf, ["grad_cam", "group_cam"], out, step=64, chunk=8, progress=False, **settings
    )
    run = out / found.attrs["run"].rpartition("/")[2]
    return found.sort_values(["id", "method"], ignore_index=True), files.manifest(run)


def same(a, b):
    return all(
        (x == y).all() for name in a for x, y in [(a[name].map(str).to_numpy(), b[name].map(str).to_numpy())]
    )


def test_a_run_that_goes_on_is_compiled_as_it_began(tmp_path, made, monkeypatch):
    """Also where it would decide otherwise by now. Its name does not depend on it."""
    # Of what is patched a run's name knows the code: it stays, and what it says lies outside.
    monkeypatch.setenv("PAYS", "yes")
    monkeypatch.setattr(
        compiled, "_pays", lambda seconds, *_: len(seconds) > 1 and os.environ["PAYS"] == "yes"
    )
    monkeypatch.setattr(compiled, "_faster", lambda *_: True)
    whole, manifest = rows(tmp_path / "whole", classifier(compile=True, name="small"))
    assert manifest["compiled"] is True and len(made) == 1 and len(made[0]) > 100
    write = files.write

    def stop(shard, *rest):
        if len(list(shard.parent.glob("chunk-*"))) == 2:
            raise KeyboardInterrupt
        write(shard, *rest)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            rows(out, classifier(compile="always", name="small"))
    monkeypatch.setenv("PAYS", "no")
    continued, later = rows(out, classifier(compile=True, name="small"))
    assert same(continued, whole) and later["compiled"] is True
    assert [p.name for p in out.iterdir()] == [p.name for p in (tmp_path / "whole").iterdir()]
    plain, manifest = rows(tmp_path / "plain", classifier(compile=True, name="small"))
    assert manifest["compiled"] is False and not same(plain, whole)
    gap = (plain["overall"] - whole["overall"]).abs()
    # In a few rows rounding moves a pixel across Group-CAM's percentile, on some processors.
    assert (gap < 1e-4).mean() >= 0.95 and gap.max() < tl.METRICS.columns["overall"].tolerance


def test_a_small_run_is_not_compiled(tmp_path, made):
    _, manifest = rows(tmp_path, classifier(compile=True), limit=4)
    assert manifest["compiled"] is False and not made
