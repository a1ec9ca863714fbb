"""From a shell: `python -m thesis_lib explain cat.jpg`, `compare FOLDER`, `doctor`."""

import argparse
import sys
from collections.abc import Sequence

NETWORK = "efficientnet_lite0"  # a real one, whose weights come with the library


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 2 where what was given cannot be used, which a sentence says.

    >>> from thesis_lib.__main__ import main
    >>> main(["explain", "no/cat.jpg"])
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m thesis_lib", description="Saliency maps of image classifiers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument(
        "--network", default=NETWORK, help="of torchvision, timm/NAME, or ours (default: %(default)s)"
    )
    explain = commands.add_parser("explain", parents=[network], help="save a picture with its saliency map")
    explain.add_argument("picture")
    explain.add_argument(
        "--method", help="such as grad_cam (default: msg_cam; transformer_attribution for a ViT)"
    )
    explain.add_argument("--out", help="the file to write; one that is there is kept, and a number added")
    compare = commands.add_parser(
        "compare", parents=[network], help="which method to use, measured on pictures"
    )
    compare.add_argument("pictures", nargs="+", help="a folder, files, or the name of a dataset")
    commands.add_parser("doctor", add_help=False, help="what is installed, and what is missing")
    given, rest = parser.parse_known_args(arguments)
    if given.command == "doctor":
        from thesis_lib.pages import doctor

        return doctor.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _explain(given) if given.command == "explain" else _compare(given)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _explain(given):
    from thesis_lib.pages.explain import explain

    print(explain(given.picture, given.network, given.method, given.out))
    return 0


def _compare(given):
    from thesis_lib.pages.compare import compare

    found = compare(given.network, given.pictures if len(given.pictures) > 1 else given.pictures[0])
    print(f"{found.table.T.to_string()}\n\n{found.verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
