"""How fast: each method beside its peers, and beside the bare forward passes that it needs.

    make bench                                            # all of it on this machine's processor
    python benchmarks/bench.py --only cam curves          # some of the cases
    python benchmarks/bench.py --device cuda [--bf16]     # the whole table of a GPU

Writes `data/results/speed-DEVICE.csv`, one row for each measurement, and a JSON that says where they were
made; `--only` leaves the rows of other cases there as they are. A case is some contestants that do the
same work, the first of them the bare passes: the network alone, on as many pictures of the same sizes in
the same batches. In each round all contestants run once, in turn, so that whatever slows the machine
slows all of them; what counts is the ratio within a round. Before anything is timed, a case checks that
the contestants agree.

Networks with random weights take as long as trained ones. Pictures are random.
"""

import argparse
import copy
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import thesis_lib as tl
from thesis_lib.kernels import blur, min_max, resize, window_corners
from thesis_lib.methods.multiscale import scaled_inputs
from thesis_lib.metrics import similarity
from thesis_lib.runs.files import commit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the literal transcriptions, which the tests compare with

import oracle  # noqa: E402
import oracle_attention  # noqa: E402
from other_libraries import captum_grad_cam, pytorch_grad_cam, torchcam  # noqa: E402

CASES = {}
LITE0 = "timm/tf_efficientnet_lite0"
LARGE = "vgg19", "resnet50", LITE0, "vit_b_16"  # a CPU takes long for them


def case(function):
    """Register a case. It yields (facts, {contestant: function}), and is gone on with only after
    these were timed: contestants may look at its variables."""
    CASES[function.__name__] = function
    return function


@contextmanager
def tf32(on):
    """Whether a GPU may round the factors of float32 to 10 bits. Time is taken with it, as convolutions have
    it anyway; numbers that are compared or recorded are computed without."""
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = on
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.allow_tf32 = value


class Bench:
    """Networks and pictures on one device, and the clock."""

    def __init__(self, device, bf16, quick=False):
        self.device, self.bf16, self.quick, self.networks = device, bf16, quick, {}

    def sizes(self, *several):
        """(network, number of pictures); quickly: the first, a small one, alone."""
        return several[:1] if self.quick else several

    def network(self, name, bf16=None):
        key = name, self.bf16 if bf16 is None else bf16
        if key not in self.networks:
            weights = None if name.endswith("_cutouts") else "random"
            clf = tl.load_classifier(name, weights, device=self.device, bf16=key[1]).with_compile(False)
            if name == "vgg19":  # as trained weights do, keep activations in range and units alive
                gain = {"nonlinearity": "relu"}
                for m in clf.network.modules():
                    if isinstance(m, torch.nn.Conv2d):
                        torch.nn.init.kaiming_normal_(m.weight, **gain)
            for m in clf.network.modules():  # torchvision's ViT begins with a head of zeros
                if isinstance(m, torch.nn.Linear) and not m.weight.any():
                    torch.nn.init.normal_(m.weight, std=0.02)
            clf.network.requires_grad_(True)  # as networks come; some peers need it
            self.networks[key] = clf
        return self.networks[key]

    def pictures(self, n, size=224):
        generator = torch.Generator().manual_seed(0)
        small = torch.randn(n, 3, 14, 14, generator=generator)
        fine = 0.3 * torch.randn(n, 3, size, size, generator=generator)
        return (resize(small, (size, size)) + fine).to(self.device)

    def seconds(self, work):
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    @property
    def gpu(self):
        return self.device.startswith("cuda")

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize(self.device)


@torch.inference_mode()
def bare(clf, batches):
    """The network alone: batches are (number, images (n, 3, H, W)), each shown `number` times."""
    for number, images in batches:
        images = images.to(next(clf.network.parameters()).dtype, memory_format=torch.channels_last)
        for _ in range(number):
            clf.network(images)


def passes(clf, images, n):
    """n passes of pictures like these, in the classifier's batches."""
    batch = images[:1].expand(clf.full_batch(images.shape[-2:]), -1, -1, -1).contiguous()
    full, rest = divmod(n, len(batch))
    return [(full, batch)] + ([(1, batch[:rest])] if rest else [])


def same(ours, theirs, tolerance, what):
    difference = float((ours - theirs).abs().max())
    if not difference < tolerance:
        raise SystemExit(f"{what}: results differ by {difference:.2g}, so their times say nothing")


# One map


@case
def cam(bench):
    """Grad-CAM, Grad-CAM++ and XGrad-CAM, eight pictures: about one pass each."""
    own = {"grad_cam": "GradCAM", "grad_cam_plus_plus": "GradCAMpp", "xgrad_cam": "XGradCAM"}
    for (name,) in bench.sizes(("vgg19",), ("resnet50",)):
        clf, x = bench.network(name, bf16=False), bench.pictures(8)
        classes = clf.predict(x).tolist()
        ours = {m: partial(tl.METHODS[m], clf, x, classes) for m in own}
        theirs = {"grad_cam, captum": partial(captum_grad_cam, clf, x, classes)}
        for m, peer in own.items():
            theirs[f"{m}, torchcam"] = partial(torchcam, peer, clf, x, classes)
            peer = peer.replace("pp", "PlusPlus")
            theirs[f"{m}, pytorch-grad-cam"] = partial(pytorch_grad_cam, peer, clf, x, classes)
        with tf32(False):
            for who, work in theirs.items():
                if who.startswith("grad_cam,"):  # of the others there are several versions
                    same(ours["grad_cam"]().cpu(), min_max(work()).cpu(), 1e-3, f"{name}, {who}")
        yield (
            {"network": name, "pictures": 8, "passes": 8},
            {"bare passes": lambda: bare(clf, [(1, x)])} | ours | theirs,
        )


@case
def score_cam(bench):
    """Score-CAM: a pass for every channel."""
    import torchcam.methods
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    for name, n in bench.sizes(("vgg19_cutouts", 8), ("vgg19", 1), ("resnet50", 1), (LITE0, 1)):
        clf, x = bench.network(name, bf16=False), bench.pictures(n)
        c = clf.predict(x)
        layer = clf.network.get_submodule(clf.layer)
        with tl.counting() as counts:
            tl.METHODS["score_cam"](clf, x, c)
        needed = counts["forward images"]

        def torchcam_map():
            with torchcam.methods.ScoreCAM(clf.network, layer, batch_size=clf.batch) as extract:
                for image, k in zip(x.split(1), c.tolist(), strict=True):
                    extract(k, clf.network(image))

        def jacobgil_map():
            with ScoreCAM(clf.network, [layer]) as extract:
                extract.batch_size = clf.batch
                extract(x, [ClassifierOutputTarget(k) for k in c.tolist()])

        work = passes(clf, x, needed)
        contestants = {
            "bare passes": lambda: bare(clf, work),
            "score_cam": lambda: tl.METHODS["score_cam"](clf, x, c),
            "score_cam, compiled": lambda: tl.METHODS["score_cam"](clf.with_compile("always"), x, c),
        }
        if name == "vgg19_cutouts" or bench.gpu:  # there, each of them would take minutes
            contestants["score_cam, torchcam"] = torchcam_map
            contestants["score_cam, pytorch-grad-cam"] = jacobgil_map
        yield (
            {"network": name, "pictures": n, "passes": needed, "long": name in ("vgg19", "resnet50")},
            contestants,
        )


@case
def multiscale(bench):
    """CAMERAS and MSG-CAM at eight sizes, beside their equations with back-propagation throughout.

    All sizes count: a network with random weights predicts another class at each, and line 6 of
    Algorithm 1 would spare the literal version all but one of its backward passes.
    """
    for name, n in bench.sizes(("vgg19_cutouts", 2), ("vgg19", 1)):
        clf, x = bench.network(name, bf16=False), bench.pictures(n)
        c = clf.predict(x)
        forward = oracle.Forward(clf.network, clf.layer, torch.float32, device=bench.device)
        scaled = list(scaled_inputs(x))
        cameras, msg_cam = (partial(tl.METHODS[m], gate="always") for m in ("cameras", "msg_cam"))
        literally = partial(oracle.maps, forward, images=x, classes=c, gate="always")
        with tl.counting() as counts:
            msg_cam(clf, x, c)
        masks = counts["forward images"] - n * len(scaled)
        scales = [(1, part) for s in scaled for part, _ in clf.passes(s)]
        area = sum(s[0, 0].numel() for s in scaled) / x[0, 0].numel()
        # Equation 3-8 is a jump: in float32 a pixel of each mask may fall on its other side.
        with tf32(False):
            pair = msg_cam(clf, x, c), literally(name="msg_cam")
        error = oracle.relative_error(*(maps.cpu() for maps in pair), spared=64).max()
        same(error, torch.zeros(()), 1e-2, f"{name}, MSG-CAM")
        both = scales + passes(clf, x, masks)
        yield (
            {"network": name, "pictures": n, "passes": n * area, "long": name == "vgg19"},
            {
                "bare passes": lambda: bare(clf, scales),
                "cameras": lambda: cameras(clf, x, c),
                "cameras, literally": lambda: literally(name="cameras"),
            },
        )
        yield (
            {"network": name, "pictures": n, "passes": n * area + masks, "long": name == "vgg19"},
            {
                "bare passes": lambda: bare(clf, both),
                "msg_cam": lambda: msg_cam(clf, x, c),
                "msg_cam, literally": lambda: literally(name="msg_cam"),
            },
        )


@case
def enhancer(bench):
    """Grad-CAM in nine windows: one map and one score for each, and a map of the whole."""
    for name, n in bench.sizes(("vgg19_cutouts", 8), ("vgg19", 2)):
        clf, x = bench.network(name, bf16=False), bench.pictures(n)
        c = clf.predict(x)
        enhanced = tl.enhance("grad_cam")
        with tl.counting() as counts:
            enhanced(clf, x, c)
        needed = counts["forward images"]
        maps, scores = 10 * n, needed - 10 * n
        batches = x[:1].expand(maps, -1, -1, -1).contiguous()
        work = passes(clf, x, scores)

        def plain():
            tl.METHODS["grad_cam"](clf, batches, int(c[0]))
            bare(clf, work)

        everything = passes(clf, x, needed)
        yield (
            {"network": name, "pictures": n, "passes": needed},
            {
                "bare passes": lambda: bare(clf, everything),
                "grad_cam enhanced": lambda: enhanced(clf, x, c),
                "its windows as plain batches": plain,
            },
        )


@case
def attention(bench):
    """Transformer attribution, per picture: one at a time, and eight together.

    The authors' code works out the negative parts of linear layers as well, and multiplies them by 0.
    """
    clf, x = bench.network("vit_b_16", bf16=False), bench.pictures(8)
    clf.network.requires_grad_(False)  # else the literal versions would keep more than they need
    c = clf.predict(x)
    method = tl.METHODS["transformer_attribution"]
    # With random weights, sums that are near 0 are divided by: only float64 has the digits to compare.
    exact = copy.deepcopy(clf.network).double()
    literal = oracle_attention.maps("transformer_attribution", exact, x[:1].double(), c[:1].tolist())
    same(method(tl.Classifier(exact), x[:1], c[:1]), literal, 1e-6, "Transformer attribution")
    ones = list(zip(x.split(1), c.split(1), strict=True))[:2]

    def both_signs(r, given, weight):
        opposite = oracle_attention.through(
            lambda p, n: p @ weight.clamp(max=0).T + n @ weight.clamp(min=0).T,
            r, given.clamp(min=0), given.clamp(max=0),
        )  # fmt: skip
        return oracle_attention.linear(r, given, weight) - 0 * sum(opposite)

    literally = partial(
        oracle_attention.maps, "transformer_attribution", clf.network, x[:2], c[:2].tolist(), dtype=x.dtype
    )
    yield (
        {"network": "vit_b_16", "pictures": 2, "passes": 2},
        {
            "bare passes": lambda: bare(clf, [(2, x[:1])]),
            "transformer_attribution": lambda: [method(clf, *one) for one in ones],
            "transformer_attribution, literally": literally,
            "transformer_attribution, as its authors": partial(literally, linear=both_signs),
        },
    )
    yield (
        {"network": "vit_b_16", "pictures": 8, "passes": 8},
        {
            "bare passes": lambda: bare(clf, [(1, x)]),
            "transformer_attribution": lambda: method(clf, x, c),
        },
    )


# Curves


def one_frame_at_a_time(clf, x, maps, classes, step=448):
    """Insertion and deletion as RISE's authors measure them: frames of one picture, one by one."""
    canvas, areas = blur(x), []
    for image, base, ranking, c in zip(x, canvas, maps, classes.tolist(), strict=True):
        order = np.argsort(-ranking.flatten().cpu().numpy(), kind="stable")
        for start, finish in ((base, image), (image, base)):
            frame, end = start.cpu().numpy().reshape(3, -1).copy(), finish.cpu().numpy()
            end, curve = end.reshape(3, -1), []
            for k in range(0, len(order) + step, step):
                frame[:, order[max(k - step, 0) : k]] = end[:, order[max(k - step, 0) : k]]
                shown = torch.from_numpy(frame.reshape(image.shape)[None]).to(x.device)
                with torch.no_grad():
                    curve.append(clf.network(shown).softmax(1)[0, c].item())
            areas.append(float(np.trapezoid(curve, dx=1 / (len(curve) - 1))))
    return torch.tensor(areas).view(-1, 2)  # insertion, deletion


def torchcam_curves(clf, x, maps, classes, batch=None):
    from torchcam.metrics import DeletionInsertionMetric

    class Given:
        """The maps that are there already, in the place of a method of torchcam."""

        model = clf.network

        def __call__(self, class_idx=None, scores=None, normalized=True, **_):
            return [maps]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return nullcontext()

    metric = DeletionInsertionMetric(
        Given(), lambda z: z.softmax(1), steps=112, baseline=blur, batch_size=batch or clf.batch
    )
    metric.update(x, classes.tolist())
    return metric.summary()


def quantus_curve(clf, x, maps, classes):
    """Deletion alone: half of the work, black in the place of the blurred picture."""
    import quantus

    metric = quantus.PixelFlipping(features_in_step=448, disable_warnings=True, normalise=False)
    return metric(
        clf.network, x.cpu().numpy(), classes.cpu().numpy(),
        a_batch=maps[:, None].expand(-1, 3, -1, -1).cpu().numpy(), device=str(x.device),
        channel_first=True, batch_size=clf.batch,
    )  # fmt: skip


@case
def curves(bench):
    """Insertion and deletion, 113 points each: 224 passes a picture."""
    for name, n in bench.sizes(("vgg19_cutouts", 4), ("vgg19", 1), ("resnet50", 1), (LITE0, 1)):
        clf, x = bench.network(name), bench.pictures(n)
        c = clf.predict(x)
        maps = tl.METHODS["grad_cam"](clf, x, c)
        needed = 224 * n
        facts = {"network": name, "pictures": n, "passes": needed, "long": name == "vgg19"}
        work = passes(clf, x, needed)
        contestants = {
            "bare passes": lambda: bare(clf, work),
            "insertion_deletion": lambda: tl.insertion_deletion(clf, x, maps, c),
            "insertion_deletion, compiled": lambda: tl.insertion_deletion(
                clf.with_compile("always"), x, maps, c
            ),
        }
        if not bench.bf16:  # peers know float32 only
            with tf32(False):
                ours = tl.insertion_deletion(clf, x, maps, c)
                both = torch.stack([ours.insertion_auc, ours.deletion_auc], 1).cpu()
                if name != "vgg19":
                    same(both, one_frame_at_a_time(clf, x, maps, c), 2e-3, "RISE's loop")
                    theirs = torchcam_curves(clf, x, maps, c)
                    means = torch.tensor([theirs["insertion_auc"], theirs["deletion_auc"]])
                    same(both.mean(0), means, 2e-3, "torchcam's curves")
            contestants["curves, torchcam"] = lambda: torchcam_curves(clf, x, maps, c)
            if name != "vgg19" or bench.gpu:  # there, each of them would take minutes
                contestants["curves, torchcam, one frame at a time"] = lambda: torchcam_curves(
                    clf, x, maps, c, 1
                )
                contestants["one frame at a time, as RISE"] = lambda: one_frame_at_a_time(clf, x, maps, c)
                contestants["deletion alone, Quantus"] = lambda: quantus_curve(clf, x, maps, c)
        yield facts, contestants


# How it scales


def of_width(bench, channels):
    """A network of cheap passes, with so many channels in its explained layer: there an overhead shows."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 7, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, channels, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 20),
    )  # fmt: skip
    return tl.Classifier(network.to(bench.device), layer="5", compile=False)


def growing(clf, x):
    """Both curves of 15 points, CAMERAS at three sizes, the enhancer in nine windows: {name: (passes, bare, work)}."""
    side = x.shape[-1]
    maps = torch.rand(x[:, 0].shape, generator=torch.Generator().manual_seed(1))
    sizes = [side, side * 3 // 2, side * 2]
    scales = [(1, part) for scaled in scaled_inputs(x, sizes) for part, _ in clf.passes(scaled)]
    enhanced = tl.enhance("grad_cam", window=side * 5 // 7, stride=side // 7, cutoff=side // 8)
    with tl.counting() as counts:
        enhanced(clf, x, 0)
    curves, windows = 28 * len(x), counts["forward images"]
    return {
        "insertion_deletion": (curves, passes(clf, x, curves), partial(tl.insertion_deletion, clf, x, maps, 0, side**2 // 14)),
        "cameras": (len(x) * 7.25, scales, partial(tl.METHODS["cameras"], clf, x, 0, sizes=sizes, gate="always")),
        "grad_cam enhanced": (windows, passes(clf, x, windows), partial(enhanced, clf, x, 0)),
    }  # fmt: skip


@case
def scaling(bench):
    """How cost grows: over batch, size, pictures and channels, and over MSG-CAM's groups and the windows."""
    clf = bench.network("vgg19_cutouts")
    points = [("batch", n, clf.with_batch(n), bench.pictures(8)) for n in (1, 2, 4, 8, 16, 32)]
    points += [("size", side, clf, bench.pictures(4, side)) for side in (112, 168, 224, 336, 448)]
    points += [("pictures", n, clf, bench.pictures(n)) for n in (1, 4, 16, 32)]
    points += [("channels", n, of_width(bench, n), bench.pictures(8)) for n in (64, 256, 512, 1024, 2048)]
    points = points[::5] if bench.quick else points
    for axis, at, some, x in points:
        facts = {
            "network": "vgg19_cutouts" if axis != "channels" else "three convolutions",
            "pictures": len(x),
        }
        for who, (needed, work, method) in growing(some, x).items():
            yield (
                facts | {"passes": needed, "axis": axis, "at": at, "work": who},
                {"bare passes": partial(bare, some, work), who: method},
            )
    x = bench.pictures(4)
    more = {  # what is varied, how many, and what the larger images of two sizes add to the passes
        ("groups", n): (partial(tl.METHODS["msg_cam"], clf, x, 0, groups=n, sizes=[224, 324]), 4 * ((324 / 224) ** 2 - 1))
        for n in (4, 8, 16, 32, 64)
    } | {
        ("windows", len(window_corners((224, 224), (160, 160), (stride, stride)))): (
            partial(tl.enhance("grad_cam", stride=stride), clf, x, 0), 0
        )
        for stride in (64, 32, 16)
    }  # fmt: skip
    for (axis, at), (method, larger) in more.items():
        with tl.counting() as counts:
            method()
        needed = counts["forward images"] + larger
        who = "msg_cam" if axis == "groups" else "grad_cam enhanced"
        yield (
            {
                "network": "vgg19_cutouts",
                "pictures": 4,
                "passes": needed,
                "axis": axis,
                "at": at,
                "work": who,
            },
            {"bare passes": partial(bare, clf, passes(clf, x, round(needed))), who: method},
        )


# What lowers the floor


def compiled(clf, x, n):
    """What torch.compile makes of the network, with the time that it takes to make it."""
    network = torch.compile(clf.network)
    batch = x[:1].expand(clf.batch, -1, -1, -1)
    batch = batch.to(next(network.parameters()).dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(times=n // clf.batch):
        for _ in range(times):
            network(batch)

    start = time.perf_counter()
    run(1)
    return f"torch.compile (after {time.perf_counter() - start:.1f} s)", run


@case
def floor(bench):
    """The bare passes themselves, as they could be run."""
    for name, n in bench.sizes(("vgg19_cutouts", 64), ("vgg19", 16), (LITE0, 64)):
        n = 512 if bench.gpu else n
        clf, x = bench.network(name, bf16=False), bench.pictures(n)
        low = bench.network(name, bf16=True)
        contestants = {"bare passes": partial(bare, clf, passes(clf, x, n))}
        ordered = copy.deepcopy(clf.network).to(memory_format=torch.contiguous_format)

        @torch.inference_mode()
        def plain():
            for part in x.split(clf.batch):
                ordered(part)

        contestants["plain memory order"] = plain
        if not bench.gpu:  # convolutions of 3 x 3 with fewer multiplications

            def winograd():
                with torch.backends.mkldnn.flags(enabled=False):
                    plain()

            contestants["Winograd's algorithm (NNPACK)"] = winograd
        for batch in (1, 4, 16, 64) if not bench.gpu else (1, 16, 64, 256):
            other = clf.with_batch(min(batch, n))
            contestants[f"batch {min(batch, n)}"] = partial(bare, other, passes(other, x, n))
        contestants["bfloat16"] = partial(bare, low, passes(low, x, n))
        if bench.gpu:

            def chosen():
                with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
                    bare(low, passes(low, x, n))

            contestants["bfloat16, algorithms chosen by trial"] = chosen
        if name == "vgg19_cutouts" or bench.gpu:
            what, run = compiled(clf, x, n)
            contestants[what] = run
        if bench.gpu:
            what, run = compiled(low, x, n)
            contestants[f"bfloat16, {what}"] = run
        yield {"network": name, "pictures": n, "passes": n}, contestants


@case
def peak(bench):
    """Bare passes beside a large matrix product: how much of the processor the network can use."""
    n = 8192 if bench.gpu else 2048

    def product(a, b):
        for _ in range(4):
            torch.mm(a, b)

    for bf16 in (False, True):
        kind = torch.bfloat16 if bf16 else torch.float32
        a, b = (torch.randn(n, n, device=bench.device, dtype=kind) for _ in range(2))
        for (name,) in bench.sizes(("vgg19_cutouts",), ("vgg19",)):
            clf, x = bench.network(name, bf16=bf16), bench.pictures(1)
            with FlopCounterMode(display=False) as count:
                bare(clf, [(1, x)])
            gflop = count.get_total_flops() / 1e9
            several = 4 * clf.batch
            work = passes(clf, x, several)
            yield (
                {"network": name, "pictures": several, "passes": several, "type": str(kind)[6:],
                 "gflop": gflop * several, "gflop_product": 4 * 2 * n**3 / 1e9},
                {"bare passes": lambda: bare(clf, work), "matrix product": lambda: product(a, b)},
            )  # fmt: skip


@case
def all_methods(bench):
    """The thesis's methods and both curves for one picture: what table 3-2 costs."""
    names = tl.METHODS.convolutional
    for name, n in (("vgg19", 8),) if bench.gpu else (("vgg19_cutouts", 1),):
        clf, x = bench.network(name), bench.pictures(n)
        c = clf.predict(x)
        contestants = {}
        area = 0
        for method in names:
            with tl.counting() as counts:
                maps = tl.METHODS[method](clf, x, c)
            area += counts["forward pixels"] / (224 * 224)
            contestants[method] = partial(tl.METHODS[method], clf, x, c)
        contestants["insertion_deletion"] = lambda: tl.insertion_deletion(clf, x, maps, c)
        area = round(area + len(names) * 224 * n)
        work = passes(clf, x, area)
        bare_first = {"bare passes": lambda: bare(clf, work)}
        yield {"network": name, "pictures": n, "passes": area}, bare_first | contestants


@tf32(False)
def precision(device="cpu", pictures=64, step=1792):
    """What bfloat16 changes: rows of over-all scores in both types, and rank correlations of maps."""
    from thesis_lib.data.registry import open_dataset

    clf, low = (tl.load_classifier("vgg19_cutouts", device=device, bf16=b) for b in (False, True))
    data, rows = open_dataset("cutouts"), []
    for start in range(0, pictures, 8):
        samples = [data[i] for i in range(start, min(start + 8, pictures))]
        x = clf.normalise(torch.stack([s.pixels for s in samples]).to(clf.device))
        c = clf.predict(x)
        for name in ("grad_cam", "group_cam", "msg_cam"):
            exact, rough = (tl.METHODS[name](network, x, c) for network in (clf, low))
            scores = [
                tl.insertion_deletion(network, x, maps, c, step).overall.tolist()
                for network, maps in ((clf, exact), (low, rough))
            ]
            ranks = similarity(exact, rough)[0].tolist()
            for sample, a, b, r in zip(samples, *scores, ranks, strict=True):
                rows.append({"case": "precision", "network": "vgg19_cutouts", "contestant": name,
                             "picture": sample.id, "overall": a, "overall_bf16": b, "spearman": r})  # fmt: skip
    return rows


def explain(bench, network, what):
    """One picture: the work whose memory is measured; the floor is the bare multi-scale passes."""
    clf, x = bench.network(network), bench.pictures(1)
    if what == "bare passes":
        for scaled in scaled_inputs(x):
            bare(clf, [(1, scaled)])
        bare(clf, [(2, x.expand(16, -1, -1, -1))])
    else:
        settings = {"gate": "always"} if what in ("cameras", "msg_cam") else {}
        tl.METHODS[what](clf, x, 0, **settings)


def peak_memory(bench, network, what):
    """Most memory, in MB: of the GPU; else of a process of its own, with all that is in it."""
    if bench.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
        explain(bench, network, what)
        return torch.cuda.max_memory_allocated(bench.device) / 2**20
    code = (
        'import sys; sys.path.insert(0, "benchmarks"); import bench\n'
        f'bench.explain(bench.Bench("cpu", False), {network!r}, {what!r}); print(bench.most_memory())'
    )
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def most_memory():
    """Most memory that this process ever held, in MB."""
    try:  # what getrusage says on Linux is at least what the parent held when it started the process
        status = Path("/proc/self/status").read_text()
        return int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Recording:
    """The CSV of rows and the JSON of where they were measured, written anew after each case."""

    def __init__(self, out, device, wanted):
        self.out, self.provenance, self.begin = out, out.with_suffix(".json"), time.monotonic()
        there = out.exists() and self.provenance.exists()
        self.rows = pd.read_csv(out) if there else pd.DataFrame(columns=["case"])
        self.rows = self.rows[~self.rows["case"].isin(wanted)]
        self.runs = json.loads(self.provenance.read_text("utf-8")) if there else []
        for run in self.runs:
            run["cases"] = [case for case in run["cases"] if case not in wanted]
        self.runs = [run for run in self.runs if run["cases"]]
        packages = ("torch", "torchvision", "kornia", "grad-cam", "torchcam", "captum", "quantus")
        self.facts = {
            "command": " ".join(["python benchmarks/bench.py", *sys.argv[1:]]),
            "cases": [],
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "commit": commit(),
            "python": platform.python_version(),
            "versions": {package: version(package) for package in packages},
        }

    def minutes(self):
        return (time.monotonic() - self.begin) / 60

    def add(self, rows):
        self.rows = pd.concat([self.rows, pd.DataFrame(rows)])
        self.rows.to_csv(self.out, index=False, float_format="%.6g")
        self.facts["cases"] = list(dict.fromkeys([*self.facts["cases"], rows[0]["case"]]))
        self.facts["minutes"] = round(self.minutes(), 1)
        self.provenance.write_text(json.dumps([*self.runs, self.facts], indent=1) + "\n", "utf-8")


@tf32(True)
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="curves and all methods in bfloat16")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "precision", "memory"], help="these cases")
    parser.add_argument("--quick", action="store_true", help="small networks alone, but for Grad-CAM")
    parser.add_argument("--rounds", type=int, default=7, help="on a CPU at most 3 of large networks")
    parser.add_argument("--long-rounds", type=int, default=1, help="of cases that take minutes")
    parser.add_argument("--out", type=Path, help="a CSV; the JSON lies beside it")
    arguments = parser.parse_args()
    bench = Bench(arguments.device, arguments.bf16, arguments.quick)
    name = "speed-" + arguments.device.split(":")[0] + ("-bf16" if arguments.bf16 else "")
    out = arguments.out or ROOT / "data/results" / f"{name}.csv"
    wanted = arguments.only or [*CASES, "precision", "memory"]
    place = Recording(out, arguments.device, wanted)
    for key in (k for k in CASES if k in wanted):
        for facts, contestants in CASES[key](bench):
            long, large = facts.pop("long", False), facts["network"] in LARGE
            rounds = arguments.rounds
            if not bench.gpu:
                rounds = arguments.long_rounds if long else min(rounds, 3) if large else rounds
            for who, work in contestants.items():  # the first time is for caches, and for what is compiled
                if rounds > 1 or who.endswith("compiled"):
                    work()
            rows = []
            for number in range(rounds):
                for who, work in contestants.items():
                    seconds = bench.seconds(work)
                    rows.append(
                        {"case": key, **facts, "contestant": who, "round": number, "seconds": seconds}
                    )
            last = pd.DataFrame(rows).groupby("contestant", sort=False)["seconds"].median()
            shown = ", ".join(f"{who} {s / last['bare passes']:.2f}" for who, s in last.items())
            print(f"{place.minutes():5.1f} min  {key} {facts}: {shown}", flush=True)
            place.add(rows)
    if "precision" in wanted:
        place.add(precision(arguments.device))
    if "memory" in wanted:
        for (network,) in bench.sizes(("vgg19_cutouts",), ("vgg19",)):
            for who in ("bare passes", "grad_cam", "cameras", "msg_cam"):
                row = {"case": "memory", "network": network, "pictures": 1, "contestant": who, "round": 0}
                place.add([row | {"megabytes": peak_memory(bench, network, who)}])


if __name__ == "__main__":
    main()
