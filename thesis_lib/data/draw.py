"""Draw an index list: which pictures of a dataset a run is to take, in which order.

`python -m thesis_lib.data.draw imagenet 2000 --seed 0 --out data/subsets/imagenet_2000.csv`
"""

import argparse
import hashlib
from collections.abc import Sequence

from thesis_lib.data.registry import DATASETS, open_dataset
from thesis_lib.data.subsets import write


def draw(ids: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """`count` of the ids, without replacement: those of the smallest SHA-256 of "seed id", in its
    order. So a draw depends neither on the order of `ids` nor on a library's random numbers, and
    the first n of a list are what a draw of n gives.

    >>> draw(["a", "b", "c"], 3)[:2] == draw(["c", "b", "a"], 2)
    True
    """
    if not 0 < count <= len(ids):
        raise ValueError(f"cannot draw {count:,} of {len(ids):,} pictures")
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thesis_lib.data.draw", description="Draw an index list.")
    parser.add_argument("dataset", help="a name that open_dataset knows, such as imagenet")
    parser.add_argument("count", type=int, help="number of pictures")
    parser.add_argument(
        "--root", default="",
        help="as open_dataset has it; without it, imagenet means all 50,000 names, on disk or not",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="the CSV file to write")
    given = parser.parse_args(arguments)
    try:
        if given.dataset == "imagenet" and not given.root:  # its names are systematic
            ids = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 50_001)]
        else:
            ids = open_dataset(given.dataset, given.root).ids
        chosen = draw(ids, given.count, given.seed)
        write(given.out, DATASETS[given.dataset].title, chosen, len(ids), given.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
