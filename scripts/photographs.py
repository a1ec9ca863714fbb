"""data/photographs from the development set of the NIPS 2017 adversarial competition.

    python scripts/photographs.py SOURCE                  into data/photographs
    python scripts/photographs.py SOURCE --out FOLDER     elsewhere

SOURCE holds images.csv or dev_dataset.csv as published, and the pictures, PNG or JPEG, in images/ or beside
it. All pictures are taken but those in data/photographs/left_out.csv, on which a face detector (MTCNN, pictures
enlarged to 598 pixels, faces of 16 pixels or more) saw a face with a probability of 0.85 or more. Each becomes
224 x 224 pixels (bicubic), a JPEG of quality 90, 4:2:0, and a line of photographs.csv with author, address and licence.
"""

import argparse
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torchvision.models import VGG19_Weights

from thesis_lib.data import PHOTOGRAPHS
from thesis_lib.data.datasets import Photographs
from thesis_lib.data.pictures import read_picture
from thesis_lib.data.registry import PUBLISHED
from thesis_lib.data.subsets import read

LEFT_OUT = PHOTOGRAPHS / "left_out.csv"
SIZE = 224
# Optimised and progressive files have the same pixels and are 7 % smaller.
ENCODING = {"quality": 90, "subsampling": "4:2:0", "optimize": True, "progressive": True}


def unescaped(text: str) -> str:
    r"""A name whose bytes outside ASCII are published as octal numbers.

    >>> unescaped(r"Th\303\251o Paul")
    'Théo Paul'
    """
    return re.sub(
        r"(?:\\[0-7]{3})+",
        lambda found: bytes(int(o, 8) for o in found[0].split("\\")[1:]).decode("utf-8"),
        text,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures and their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of the published set")
    parser.add_argument("--out", type=Path, default=PHOTOGRAPHS, help="folder to write to")
    parser.add_argument("--left-out", type=Path, default=LEFT_OUT, help="list of the ids to leave out")
    given = parser.parse_args(arguments)
    try:
        count = write(given.source, given.out, set(read(given.left_out)[0]))
    except KeyError as error:
        raise SystemExit(f"the published table has no column {error}") from error
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"{count:,} photographs in {given.out}")


def write(source: Path, out: Path, left_out: set[str]) -> int:
    """The photographs of `source` but those left out, in `out`; how many there are.

    Raises:
        OSError, ValueError, KeyError: a picture, the table or a column of it is missing or cannot be used.
    """
    published = Photographs(source, tables=PUBLISHED)
    names = VGG19_Weights.DEFAULT.meta["categories"]
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["id", "class", "wnid", "name", "author", "address", "licence"])
    chosen = [i for i in range(len(published)) if published.ids[i] not in left_out]
    out.mkdir(parents=True, exist_ok=True)
    for i in sorted(chosen, key=lambda i: published.ids[i]):
        name, label, row = published.ids[i], published.labels[i], published.rows[i]
        credit = [unescaped(row["Author"]), row["OriginalLandingURL"], row["License"]]
        picture = read_picture(published.paths[i]).convert("RGB")
        picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out / f"{name}.jpg", "JPEG", **ENCODING)
        lines.writerow([name, label, published.categories[label], names[label], *credit])
    (out / "photographs.csv").write_text(table.getvalue(), "utf-8", newline="\n")
    return len(chosen)


if __name__ == "__main__":
    main()
