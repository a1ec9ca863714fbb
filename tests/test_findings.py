"""The findings in words, on made-up rows whose truth is known; and the pages say what the rows say now."""

import pandas as pd
import pytest
from test_evidence import NAME, SEVEN, made_up, use

from thesis_lib.data import REPOSITORY
from thesis_lib.pages import evidence, findings, ledger

__all__ = ["use"]  # the fixture
CLAIM, MEASURED = ("it leads", "它领先"), ("It scores {}", "为 {}")


def first_of(value="overall"):
    return findings.first_of(NAME, value, CLAIM, MEASURED)


@pytest.mark.parametrize(
    ("gain", "noise", "verdict", "en", "zh"),
    [
        ({"msg_cam": 0.1}, 0.02, "holds", "the rows agree", "数据与之一致"),
        ({"grad_cam": 0.1}, 0.02, "contradicted", "the rows contradict it", "数据与之相反"),
        ({}, 0.02, "open", "the rows cannot tell", "数据无法判定"),
        ({}, 0.003, "equivalent", "no difference is large enough to matter", "差异小到无关紧要"),
    ],
)
def test_each_verdict_in_words(use, gain, noise, verdict, en, zh):
    use(made_up(gain, noise=noise, seed=3))
    said = first_of()
    assert said.verdict == verdict
    assert said.en.startswith(f'**"it leads": {en}.** It scores ') and "(n = 40)" in said.en
    assert said.zh.startswith(f"**“它领先”：{zh}。** 为 ") and "（n = 40）" in said.zh


def test_the_lists_name_who_is_clearly_ahead_and_by_how_much(use):
    use(made_up({"msg_cam": 0.1}))
    said = first_of()
    names = "Grad-CAM, Grad-CAM++, XGrad-CAM, Score-CAM, Group-CAM, CAMERAS"
    assert f"Clearly ahead of it: none; clearly behind it: {names}; not" in said.en
    assert "not distinguishable from it: 0 of 6." in said.en and "与它无法区分：6 种中的 0 种。" in said.zh
    use(made_up({"grad_cam": 0.1}))
    said = first_of()
    assert "Clearly ahead of it: Grad-CAM (+" in said.en and "明显优于它：Grad-CAM (+" in said.zh
    use(made_up())
    said = first_of()
    assert (
        "Clearly ahead of it: none; clearly behind it: none; not distinguishable from it: 6 of 6." in said.en
    )


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "contradicted"), (-0.1, "holds")])
def test_where_less_is_better_the_words_fit(use, gain, verdict):
    """A deletion score that is 10 points higher is a worse one."""
    use(made_up({"msg_cam": gain}).rename(columns={"insertion_auc": "deletion_auc"}))
    said = first_of("deletion_auc")
    assert said.verdict == verdict and "; less is better)" in said.en and "；越低越好）" in said.zh
    side = "ahead of" if gain > 0 else "behind"
    assert f"learly {side} it: Grad-CAM, " in said.en and ("明显优于它：Grad-CAM、" in said.zh) == (gain > 0)
    use(made_up({"cameras": -gain}).rename(columns={"insertion_auc": "deletion_auc"}))
    side, sign = ("ahead of", "−") if gain > 0 else ("behind", "+")
    assert f"learly {side} it: CAMERAS ({sign}" in first_of("deletion_auc").en


def test_rows_that_are_missing_are_said(use):
    rows, plan = made_up({"msg_cam": 0.1}), {m: {f"{i:03d}" for i in range(858)} for m in SEVEN}
    plan["score_cam"] = {f"{i:03d}" for i in range(250)}
    rows = rows[(rows["method"] != "score_cam") | (rows["id"] < "030")]
    use(rows, plan)
    said = first_of()
    assert (
        "(so far n = 40 of 858, Score-CAM 30 of 250)" in said.en and ": so far the rows agree.**" in said.en
    )
    assert (
        "（目前 n = 40，共 858 幅；Score-CAM 30，共 250 幅）" in said.zh
        and "：目前数据与之一致。**" in said.zh
    )


@pytest.mark.parametrize(
    ("summed", "averaged", "verdict"),
    [(0.1, 0.0, "holds"), (-0.1, 0.1, "contradicted"), (0.0, 0.0, "open")],
)
def test_the_windows_in_each_direction(use, monkeypatch, summed, averaged, verdict):
    bases = ("grad_cam", "group_cam")
    gain = {f"{b} {v}": g for b in bases for v, g in (("enhanced", summed), ("mean", averaged))}
    gain |= dict.fromkeys(bases, 0.0)
    tables = {}
    for table, gains in (("ablation", {"default": summed, "cover = mean": averaged}), ("windows", gain)):
        use(made_up(gains, labels=list(gains), seed=3))
        tables[table] = evidence.load(table)
    monkeypatch.setattr(evidence, "load", lambda table: tables[table])
    said = findings.windows("windows", "ablation")
    assert said.verdict == verdict
    assert (
        f": {findings.AGREES[verdict][0]}.**" in said.en and f"：{findings.AGREES[verdict][1]}。**" in said.zh
    )
    words = {0.1: "2 clearly better, 0 clearly worse", -0.1: "0 clearly better, 2 clearly worse"}
    for gain, where in ((summed, "equation's sum: Grad-CAM "), (averaged, "mean over windows: Grad-CAM ")):
        change, _, counts = said.en.split(where)[1].partition(", of 2 methods ")
        assert counts.startswith(words.get(gain, "0 clearly better, 0 clearly worse"))
        assert change[0] == {0.1: "+", -0.1: "−"}.get(gain, change[0])
    assert ("], clear." in said.en) == ("，差异明显。" in said.zh) == (summed != averaged)


def test_claims_are_counted():
    said = findings.claims(pd.DataFrame({"status": ["open", "open", "reproduced"]}))
    assert said.en == "Of 3 claims in the ledger: 1 reproduced, 2 open."
    assert said.zh == "清单中 3 条论断：已复现 1，未定 2。"
    assert list(findings.STATUSES) == list(ledger.STATUSES)


def test_what_stands_between_the_marks_is_replaced():
    old = f"a\n{findings.BEGIN}\nold\n{findings.END}\nb\n"
    assert findings.rewritten(old, "new") == old.replace("old", "new")
    for text in ("a", old.replace(findings.END, ""), old + old):
        with pytest.raises(ValueError, match="two marks once"):
            findings.rewritten(text, "new")


def test_the_pages_say_what_the_rows_say():
    """After new rows: python -m thesis_lib.pages.ledger --update, then python -m thesis_lib.pages.findings --update."""
    blocks = {language: findings.block(language) for language in ("en", "zh")}
    for page, language in findings.PAGES.items():
        text = (REPOSITORY / page).read_text("utf-8")
        assert findings.rewritten(text, blocks[language]) == text, f"{page}: {findings.__doc__}"
