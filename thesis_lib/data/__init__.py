"""What an experiment runs on: the embedded benchmark, the real datasets, and the networks."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
if not (REPOSITORY / "pyproject.toml").is_file():  # installed without it: the current folder stands for it
    REPOSITORY = Path.cwd()
PHOTOGRAPHS = REPOSITORY / "data" / "photographs"
CUTOUTS = REPOSITORY / "data" / "cutouts"
DOWNLOADS = REPOSITORY / "data" / "downloads"  # where the real datasets are looked for
PICTURES = set(".jpg .jpeg .png .webp .bmp .tif .tiff .gif .avif .heic .heif".split())  # read or refused


def is_picture(name: str) -> bool:
    """By the file's name; macOS leaves files such as ._0001.jpg behind that are none."""
    return Path(name).suffix.lower() in PICTURES and not name.startswith(".")


def missing(what: str) -> str:
    """The sentence for what comes with the repository, and is not there.

    >>> missing("photographs").partition(":")[0].startswith("photographs is not in ")
    True
    """
    return (
        f"{what} is not in {REPOSITORY}: it comes with the repository, so clone that and run from its folder"
    )


def from_repository(path: str | Path) -> Path:
    """An absolute path as it is; a relative one counted from the repository's root, because
    notebooks are executed in folders of their own."""
    return REPOSITORY / Path(path).expanduser()
