"""The findings in words, on made-up rows whose truth is known; and the pages say what the rows say now."""

import pandas as pd
import pytest
from test_evidence import NAME, SEVEN, made_up, use

from thesis_lib.data import REPOSITORY
from thesis_lib.pages import evidence, findings, ledger
from thesis_lib.pages.plots import name

__all__ = ["use"]  # the fixture
OTHERS = ", ".join(name(m) for m in SEVEN if m != "msg_cam")
WORDS = ("A", "scores {}", "it leads"), ("甲", "为 {}", "它领先")


@pytest.mark.parametrize(
    ("gain", "noise", "verdict", "en", "zh"),
    [
        ({"msg_cam": 0.1}, 0.02, "holds", "this agrees", "与论文一致"),
        ({"grad_cam": 0.1}, 0.02, "contradicted", "this contradicts it", "与论文相反"),
        ({}, 0.02, "open", "this neither confirms nor contradicts it", "既不能证实也不能否定论文"),
        (
            {},
            0.003,
            "equivalent",
            "no difference here is large enough to matter",
            "差异小到无关紧要，与论文不符",
        ),
    ],
)
def test_each_verdict_in_words(use, gain, noise, verdict, en, zh):
    use(made_up(gain, noise=noise, seed=3))
    said = findings.first_of(NAME, "overall", *WORDS)
    assert said.verdict == verdict
    assert said.en.endswith(f"The thesis says that it leads; **{en}**.")
    assert said.zh.endswith(f"论文称它领先；**{zh}**。")
    assert "(more is better; n = 40)" in said.en and "（越高越好；n = 40）" in said.zh
    assert "so far" not in said.en and "目前" not in said.zh


def test_the_lists_name_who_is_clearly_ahead_and_by_how_much(use):
    use(made_up({"msg_cam": 0.1}))
    said = findings.first_of(NAME, "overall", *WORDS)
    assert "Clearly ahead of it: none; clearly behind it: Grad-CAM (−" in said.en
    assert "not distinguishable from it: none." in said.en and "与它无法区分：无。" in said.zh
    use(made_up({"grad_cam": 0.1}))
    said = findings.first_of(NAME, "overall", *WORDS)
    assert "Clearly ahead of it: Grad-CAM (+" in said.en and "明显优于它：Grad-CAM (+" in said.zh
    use(made_up())
    said = findings.first_of(NAME, "overall", *WORDS)
    assert (
        f"Clearly ahead of it: none; clearly behind it: none; not distinguishable from it: {OTHERS}."
        in said.en
    )


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "contradicted"), (-0.1, "holds")])
def test_where_less_is_better_the_words_fit(use, gain, verdict):
    """A deletion score that is 10 points higher is a worse one."""
    use(made_up({"msg_cam": gain}).rename(columns={"insertion_auc": "deletion_auc"}))
    said = findings.first_of(NAME, "deletion_auc", *WORDS)
    assert said.verdict == verdict and "less is better" in said.en and "越低越好" in said.zh
    side, sign = ("ahead of", "−") if gain > 0 else ("behind", "+")
    assert f"learly {side} it: Grad-CAM ({sign}" in said.en


def test_rows_that_are_missing_are_said(use):
    rows, plan = made_up({"msg_cam": 0.1}), {m: {f"{i:03d}" for i in range(858)} for m in SEVEN}
    plan["score_cam"] = {f"{i:03d}" for i in range(250)}
    rows = rows[(rows["method"] != "score_cam") | (rows["id"] < "030")]
    use(rows, plan)
    said = findings.first_of(NAME, "overall", *WORDS)
    assert "so far n = 40 of 858, Score-CAM 30 of 250)" in said.en and "**so far this agrees**" in said.en
    assert "目前 n = 40，共 858 幅；Score-CAM 30，共 250 幅）" in said.zh and "**目前与论文一致**" in said.zh


@pytest.mark.parametrize(
    ("summed", "averaged", "verdict", "agrees"),
    [
        (0.1, 0.0, "holds", "this agrees"),
        (-0.1, 0.1, "contradicted", "this contradicts it"),
        (0, 0, "open", "neither"),
    ],
)
def test_the_windows_in_each_direction(use, monkeypatch, summed, averaged, verdict, agrees):
    bases = ("grad_cam", "group_cam")
    gain = {f"{b} {v}": g for b in bases for v, g in (("enhanced", summed), ("mean", averaged))}
    gain |= dict.fromkeys(bases, 0.0)
    tables = {}
    for table, gains in (("ablation", {"default": summed, "cover = mean": averaged}), ("windows", gain)):
        use(made_up(gains, labels=list(gains)))
        tables[table] = evidence.load(table)
    monkeypatch.setattr(evidence, "load", lambda table: tables[table])
    said = findings.windows("windows", "ablation")
    assert said.verdict == verdict and agrees in said.en.rpartition("**")[0].rpartition("**")[2]
    words = {
        0.1: "clearly better for Grad-CAM (+",
        -0.1: "clearly worse for Grad-CAM (−",
        0: "not distinguishable for G",
    }
    zh = {0.1: "明显更好", -0.1: "明显更差", 0: "无法区分"}
    assert f"by the equation's sum {words[summed]}" in said.en
    assert f"by the mean over windows {words[averaged]}" in said.en
    assert (
        zh[summed] in said.zh.split("按窗口求平均")[0] and zh[averaged] in said.zh.split("按窗口求平均时")[1]
    )
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
