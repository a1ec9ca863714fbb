"""The findings of the first page, of the page in Chinese and of the README, computed from recorded rows.

    python -m thesis_lib.pages.findings             say which of these pages say something else than the rows
    python -m thesis_lib.pages.findings --update    write what the rows say between the marks in them

Run the second after new rows in data/results, behind `python -m thesis_lib.pages.ledger --update`. A test compares.
Verdicts are those of `evidence`; here they are put into sentences, in English and in Chinese. While rows of the plan
are missing, a sentence says "so far n of N" and stays open, whatever these rows say.
"""

import sys
from typing import NamedTuple

import pandas as pd

from thesis_lib.data import REPOSITORY
from thesis_lib.methods import METHODS
from thesis_lib.metrics import METRICS
from thesis_lib.pages import evidence, ledger, report
from thesis_lib.pages.evidence import SO_FAR, Incomplete
from thesis_lib.pages.plots import name

PAGES = {"book/intro.md": "en", "book/zh.md": "zh", "README.md": "en"}
BEGIN = "<!-- findings: written by `python -m thesis_lib.pages.findings --update` -->"
END = "<!-- end of the findings -->"
PHOTOGRAPHS = "photographs/efficientnet_lite0/"
GAME = "cutouts_scenes/vgg19_cutouts_scenes/pointing_game"
# What a verdict on the rows says of the thesis's claim.
AGREES = {
    "holds": ("the rows agree", "数据与之一致"),
    "contradicted": ("the rows contradict it", "数据与之相反"),
    "equivalent": ("no difference is large enough to matter", "差异小到无关紧要"),
    "open": ("the rows cannot tell", "数据无法判定"),
}
STATUSES = {  # of the ledger, in Chinese
    "implemented": "已实现", "reproduced": "已复现", "corrected": "更正后成立", "contradicted": "与论文相反",
    "equivalent": "没有要紧的差异", "depends on the network": "因网络而异", "open": "未定", "not checkable here": "此处无法检验",
}  # fmt: skip


class Said(NamedTuple):
    """A finding in two languages, with the verdict of the rows that are there; "" where there is none."""

    verdict: str
    en: str
    zh: str


def _there(compare, table, *given):
    """(what the comparison returns, whether the table is whole); of the rows so far where some are missing."""
    try:
        return compare(table, *given), True
    except Incomplete:
        return compare(table + SO_FAR, *given), False


def _counts(table, n, whole):
    """n of N pictures in both languages, and of those labels that have fewer; n: a Series by label."""
    plan, most = evidence.planned(table), n.idxmax()
    few = [label for label in n.index if n[label] < n[most]]
    en, zh = [], []
    for label in (most, *few):
        k, title = int(n[label]), "n =" if label == most else name(label)
        planned = len(plan.get(label, ()))
        missing = not whole and planned > k
        en.append(f"{title} {k}" + f" of {planned}" * missing)
        zh.append(f"{title} {k}" + f"，共 {planned} 幅" * missing)
    return "so far " * (not whole) + ", ".join(en), "目前 " * (not whole) + "；".join(zh)


def _interval(row, scale, key="difference", signed=True):
    """mean [low, high] in print."""
    columns = (key, f"{key}_low", f"{key}_high") if key == "difference" else (key, "low", "high")
    mean, low, high = (f"{round(scale * row[c], 1) + 0.0:{'+' * signed}.1f}" for c in columns)
    return f"{mean} [{low}, {high}]".replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")  # one word


def _sides(table, sign):
    """Labels in three lists: clearly better than the reference, clearly worse, not distinguishable."""
    clear, gain = report.is_clear(table), sign * table["difference"]
    return [list(table.index[chosen]) for chosen in (clear & (gain > 0), clear & (gain < 0), ~clear)]


def _headline(verdict, whole, claim):
    """What the thesis says and whether the rows agree, in both languages."""
    en, zh = AGREES[verdict]
    return (
        f'**"{claim[0]}": {"" if whole else "so far "}{en}.** ',
        f"**“{claim[1]}”：{'' if whole else '目前'}{zh}。** ",
    )


def first_of(table: str, value: str, claim: tuple[str, str], measured: tuple[str, str]) -> Said:
    """Whether MSG-CAM is the first of the thesis's seven by a measure, in sentences.

    Args:
        table: "dataset/network/table"; value: a column of METRICS, of which more or less is better.
        claim: what the thesis says of it; measured: what was measured on what, with {} for the number; each in
            English and in Chinese.

    >>> from thesis_lib.pages import findings
    >>> findings.first_of(findings.GAME, "hits", ("it leads", ""), ("hits {}", "")).en.startswith('**"it leads": ')
    True
    """
    column = METRICS.columns[value]
    (compared, _), whole = _there(evidence.against, table, value, "msg_cam", tuple(METHODS.convolutional))
    others = compared.drop(index="msg_cam")
    verdict = evidence.decide(others, -column.better, evidence.MARGINS.get(value))
    own = _interval(compared.loc["msg_cam"], column.scale, "mean", signed=False)
    head, counts = _headline(verdict, whole, claim), _counts(table, compared["n"], whole)
    less = ("; less is better", "；越低越好") if column.better < 0 else ("", "")
    ahead, behind, rest = _sides(others, column.better)

    def listed(labels, separator, none):
        with_numbers = len(labels) < 3  # more would be no sentence; the pages have them all
        each = (name(m) + f" ({_interval(others.loc[m], column.scale)})" * with_numbers for m in labels)
        return separator.join(each) or none

    return Said(
        verdict,
        f"{head[0]}{measured[0].format(own)} ({counts[0]}{less[0]}). Clearly ahead of it: {listed(ahead, ', ', 'none')}; "
        f"clearly behind it: {listed(behind, ', ', 'none')}; not distinguishable from it: {len(rest)} of {len(others)}.",
        f"{head[1]}{measured[1].format(own)}（{counts[1]}{less[1]}）。明显优于它：{listed(ahead, '、', '无')}；"
        f"明显不如它：{listed(behind, '、', '无')}；与它无法区分：{len(others)} 种中的 {len(rest)} 种。",
    )


def windows(table: str = f"{PHOTOGRAPHS}windows", ablation: str = f"{PHOTOGRAPHS}window_ablation") -> Said:
    """Whether the window enhancer improves over-all, by equation 4-8's sum and by the mean, in sentences.

    The verdict is on the equation as it stands; the numbers are Grad-CAM's.

    >>> from thesis_lib.pages import findings
    >>> findings.windows().verdict in findings.AGREES
    True
    """
    (summed, _, family), whole = _there(evidence.varied, table, "overall", "enhanced")
    (averaged, _, _), _ = _there(evidence.varied, table, "overall", "mean")
    labels = tuple(evidence.labels_of(ablation))
    (settings, _), all_there = _there(evidence.against, ablation, "overall", "default", labels)
    verdict = evidence.decide(summed, 1, evidence.MARGINS["overall"], family)
    claim = (
        "The window enhancer clearly improves methods of different kinds",
        "窗口增强明显改进不同类型的方法",
    )
    head, counts = _headline(verdict, whole, claim), _counts(table, summed["n"], whole)
    few = _counts(ablation, settings.loc[["cover = mean"], "n"], all_there)
    gap = _interval(settings.loc["cover = mean"], 100)
    clear = report.is_clear(settings)["cover = mean"]
    apart = ("clear", "差异明显") if clear else ("not distinguishable", "无法区分")

    def said(part):
        own, (better, worse, _) = _interval(part.loc["grad_cam"], 100), map(len, _sides(part, 1))
        return (
            f"Grad-CAM {own}, of {len(part)} methods {better} clearly better, {worse} clearly worse",
            f"Grad-CAM {own}，{len(part)} 种方法中 {better} 种明显更好，{worse} 种明显更差",
        )

    total, mean = said(summed), said(averaged)
    return Said(
        verdict,
        f"{head[0]}Change of over-all in points, photographs with EfficientNet-Lite0 ({counts[0]}), by the equation's sum: "
        f"{total[0]}; by the mean over windows: {mean[0]}. Mean minus sum, other photographs ({few[0]}): {gap}, {apart[0]}.",
        f"{head[1]}照片，EfficientNet-Lite0，总体分数变化的百分点（{counts[1]}）。按公式求和：{total[1]}；"
        f"按窗口求平均：{mean[1]}。平均减求和，另一些照片（{few[1]}）：{gap}，{apart[1]}。",
    )


def claims(table: pd.DataFrame) -> Said:
    """How many claims of a ledger have which status.

    >>> from thesis_lib.pages import findings
    >>> findings.claims(pd.DataFrame({"status": ["open", "open", "contradicted"]})).en
    'Of 3 claims in the ledger: 1 contradicted, 2 open.'
    """
    found = table["status"].value_counts()
    counts = {s: found[s] for s in STATUSES if s in found}
    each_en = ", ".join(f"{k} {status}" for status, k in counts.items())
    each_zh = "，".join(f"{STATUSES[status]} {k}" for status, k in counts.items())
    return Said(
        "", f"Of {len(table)} claims in the ledger: {each_en}.", f"清单中 {len(table)} 条论断：{each_zh}。"
    )


def findings() -> list[Said]:
    """The three findings, and how many claims of the ledger have which status, as the recorded rows have them now.

    >>> from thesis_lib.pages import findings
    >>> [bool(said.verdict) for said in findings.findings()]
    [True, True, True, False]
    """
    return [
        first_of(
            f"{PHOTOGRAPHS}insertion_deletion",
            "overall",
            ("MSG-CAM has the highest over-all score of seven methods", "MSG-CAM 的总体分数在七种方法中最高"),
            (
                "MSG-CAM has {} points on photographs with EfficientNet-Lite0",
                "MSG-CAM 在照片上（EfficientNet-Lite0）为 {} 个百分点",
            ),
        ),
        windows(),
        first_of(
            GAME,
            "hits",
            ("MSG-CAM leads the pointing game", "MSG-CAM 在定点游戏中领先"),
            (
                "It hits with {} of 100 points, in composed scenes with a small VGG19",
                "在合成场景上（小型 VGG19）100 个点中命中 {} 个",
            ),
        ),
        claims(ledger.read()),
    ]


def block(language: str) -> str:
    """What stands between the marks of a page: a list in Markdown.

    >>> from thesis_lib.pages import findings
    >>> findings.block("en").startswith('- **"MSG-CAM has the highest')
    True
    """
    return "\n".join(f"- {getattr(said, language)}" for said in findings())


def rewritten(text: str, new: str) -> str:
    """A page's text with `new` between the marks.

    Raises ValueError without one pair of marks.

    >>> from thesis_lib.pages import findings
    >>> marks = findings.BEGIN, findings.END
    >>> findings.rewritten("a\\n{}\\nold\\n{}\\nb".format(*marks), "new").splitlines()[2]
    'new'
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"a page of findings needs the two marks once: {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> None:
    stale, update = 0, "--update" in sys.argv[1:]
    for page, language in PAGES.items():
        path = REPOSITORY / page
        text = path.read_text("utf-8")
        new = rewritten(text, block(language))
        if new != text:
            stale += 1
            print(f"{page}: {'written' if update else 'says something else than the rows'}")
            if update:
                path.write_text(new, "utf-8")
    if stale and not update:
        sys.exit(1)
    print(f"{len(PAGES)} pages, {stale} changed")


if __name__ == "__main__":
    main()
