"""`python -m thesis_lib.compare FOLDER --network NAME`: the same as `python -m thesis_lib compare`."""

import sys

from thesis_lib.__main__ import main
from thesis_lib.pages.compare import compare

if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))

# Whoever imports this file gets the function: a module of that name would hide `tl.compare`.
sys.modules[__name__] = compare  # type: ignore[assignment]
