"""The line under a table of recorded rows."""

from dataclasses import replace

import pytest

import thesis_lib as tl
from thesis_lib.pages import rows as page
from thesis_lib.runs.record import PLAN


@pytest.mark.parametrize("more", [0, 1])
def test_a_table_that_is_not_whole_says_what_goes_on(monkeypatch, more):
    part = next(part for part in PLAN if part.name == "photographs")
    table = tl.recorded(part.dataset, part.network, part.table)
    table = table[table["method"].isin(list(part.methods()))]
    n = table["id"].nunique()
    monkeypatch.setattr(page, "parts_of", lambda *names: [replace(part, pictures=n + more)])
    line = page.source(table)
    assert f"n = {n} pictures; recorded by `make record PART=photographs`" in line
    said = f"So far {n} of {n + 1} planned pictures; `make record PART=photographs` goes on."
    assert line.endswith(said) if more else "So far" not in line
