"""Does a run's memory grow with the number of pictures? 50,000 small synthetic ones, measured;
and 5,000 whose passes are compiled.

    python benchmarks/memory.py          # writes data/results/memory.csv, in a few minutes

Random pictures of 32 pixels and a tiny random network: what they show means nothing, how many there
are is what counts. The resident memory of the process is noted at every 500th picture.
"""

import argparse
import platform
import resource
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import thesis_lib as tl
from thesis_lib import compiled
from thesis_lib.data.datasets import Sample

OUT = Path(__file__).resolve().parent.parent / "data/results/memory.csv"


def resident():
    """Megabytes of this process in memory now (Linux), or the most there have been (elsewhere)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Noise:
    """`count` random pictures, each made anew when it is asked for; notes the memory."""

    def __init__(self, count, every=500):
        self.ids = [f"{i:06d}" for i in range(count)]
        self.every, self.notes, self.read = every, [], 0

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        if self.read % self.every == 0:
            self.notes.append((self.read, resident()))
        self.read += 1
        generator = torch.Generator().manual_seed(i)
        return Sample(self.ids[i], torch.rand(3, 32, 32, generator=generator))


def measure(count, compile=False, chunk=100):
    """Pictures read so far, megabytes, and whether passes were compiled, as three columns."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    classifier = tl.Classifier(network, layer="3", name="tiny", compile=compile and "always")
    data = Noise(count)
    with tempfile.TemporaryDirectory() as folder:
        rows = tl.evaluate(data, classifier, ["grad_cam"], folder, step=256, chunk=chunk)
    assert len(rows) == count
    assert any(known.copy for known in compiled._known.get(network, {}).values()) == compile
    data.notes.append((count, resident()))  # the rows of all pictures are in memory now
    return pd.DataFrame(data.notes, columns=["pictures", "megabytes"]).assign(compiled=compile)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=50_000, help="a tenth of them compiled")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    table = pd.concat([measure(arguments.pictures), measure(arguments.pictures // 10, compile=True)])
    facts = f"# {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    text = table.to_csv(index=False, float_format="%.1f")
    arguments.out.write_text(
        f"{facts}; python benchmarks/memory.py --pictures {arguments.pictures}\n{text}", "utf-8"
    )
    print(table.to_string())
