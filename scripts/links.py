"""External addresses in prose, notebooks, the library's docstrings and references, and whether each still answers: `make links`.

    python scripts/links.py            # list and try them; the exit status is 1 if any is gone, 2 without a network
    python scripts/links.py --list     # only list them, with the files that name them

Links inside the book are tested with its pages (tests/test_browser.py). The photographs' own pages, 858 at one host,
are in data/photographs/photographs.csv and not tried.
"""

import argparse
import ast
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHERE = "*.md LICENSE CITATION.cff codecheck.yml book/*.md book/*.bib notebooks/*.ipynb data/**/*.md".split()
WHERE += ["thesis_lib/**/*.py", "benchmarks/*.py"]
ADDRESS = re.compile(r"https?://[^\s\"'`<>|\\{}\[\]]+")
REFUSED = {401, 403, 405, 418, 429, 503, 999}  # there, and not for programs
SECONDS = 20


def addresses(root: Path = ROOT) -> dict[str, list[str]]:
    """Address -> the files that name it, in order. Placeholders (OWNER/NAME) are none."""
    found: dict[str, list[str]] = {}
    for path in sorted({path for pattern in WHERE for path in root.glob(pattern)}):
        for address in sorted({*_in_file(path)}):
            if "OWNER" not in address:
                found.setdefault(address, []).append(path.relative_to(root).as_posix())
    return found


def _in_file(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":  # what people wrote; outputs come from it
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    if path.suffix == ".py":  # docstrings and whole strings, not the beginnings of addresses in f-strings
        tree = ast.parse(text)
        part = {
            id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values
        }
        whole = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in part)
        text = "\n".join(n.value for n in whole if isinstance(n.value, str))
    for address in ADDRESS.findall(text):
        address = address.rstrip(".,;:!?*_")
        while address.count(")") > address.count("("):  # the bracket around it in Markdown
            address = address[: address.rindex(")")]
        yield address
    if path.suffix in (".bib", ".cff"):
        yield from (f"https://doi.org/{doi}" for doi in re.findall(r"^\s*doi\W+(10\.[^\s}\"]+)", text, re.M))
        yield from (
            f"https://arxiv.org/abs/{number}" for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)
        )


def answer(address: str) -> int | str:
    """The status with which an address answers, or why it does not."""
    status: int | str = 0
    for method in ("HEAD", "GET"):  # some hosts know only the second
        request = urllib.request.Request(
            address, method=method, headers={"User-Agent": "Mozilla/5.0 (links.py)"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            status = error.code
        except (OSError, ValueError) as error:
            return str(getattr(error, "reason", error))
    return status


def main(arguments: list[str] | None = None) -> int:
    """Print what was found; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="try none")
    given, found = parser.parse_args(arguments), addresses()
    if given.list:
        print("\n".join(f"{address}  {' '.join(files)}" for address, files in found.items()))
        return 0
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(found, pool.map(answer, found), strict=True))
    if found and all(isinstance(status, str) for status in answers.values()):
        print(f"none of {len(found)} addresses could be reached: no network here, so nothing was checked")
        return 2
    gone = {a: s for a, s in answers.items() if isinstance(s, str) or (s >= 400 and s not in REFUSED)}
    for address, status in answers.items():
        if status in REFUSED:
            print(f"refuses programs ({status}), look yourself: {address}")
    for address, why in gone.items():
        print(f"GONE ({why}): {address}, in {' '.join(found[address])}")
    print(f"{len(found)} addresses, {len(gone)} gone")
    return 1 if gone else 0


if __name__ == "__main__":
    raise SystemExit(main())
