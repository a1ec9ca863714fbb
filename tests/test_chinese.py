"""Chinese passages in the book say that they are Chinese."""

import re
from pathlib import Path

import pytest
from sphinx.application import Sphinx

from thesis_lib.metrics import METRICS
from thesis_lib.pages.chinese import CHINESE, marked

ROOT = Path(__file__).resolve().parent.parent
OTHER_WORDS = {
    "指向游戏": "定点游戏",
    "掩码": "掩膜",
    "热力图": "显著图",
    "显著性图": "显著图",
    "消融研究": "消融实验",
}

PAGE = """# Pointing · 定点游戏

Of tokens (词元) and 在 VOC 测试集上 it says `词` only; ReLU 与零梯度, [a link to 图](other).

<p title="图">table 表</p>
"""


def outside(page):
    """Chinese in a page's text that no element with lang="zh" is around."""
    found, open_tags = [], []
    # The theme's title of a printed page, which no screen shows and nobody hears, is text alone.
    page = re.sub(r'id="jb-print-docs-body".*?</h1>', ">", page, flags=re.S)
    page = re.sub(r"<(script|style|head)\b.*?</\1>|<!--.*?-->", "", page, flags=re.S)
    for tag, text in re.findall(r"(<[^>]*>)|([^<>]+)", page):
        if text:
            if CHINESE.search(text) and not any('lang="zh"' in t for t in open_tags):
                found.append(text.strip())
        elif tag.startswith("</"):
            while open_tags and not open_tags.pop().startswith(f"<{tag[2:-1].strip()}"):
                pass
        elif not tag.startswith("<!") and not tag.endswith("/>"):
            open_tags.append(tag)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Three small pages, one of them in Chinese, as HTML by name."""
    source = tmp_path_factory.mktemp("pages")
    pages = {
        "index": "# Home\n\n```{toctree}\nother\nzh\n```",
        "other": PAGE,
        "zh": "# 中文\n\n显著图 MSG-CAM\n\n## 结果\n\n- 图 A",
    }
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, "utf-8")
    extensions = ["myst_parser", "thesis_lib.pages.chinese"]
    settings = {"extensions": extensions, "html_theme": "basic", "suppress_warnings": ["myst.xref_missing"]}
    app = Sphinx(source, None, source / "out", source / "trees", "html", settings, status=None, freshenv=True)
    app.build()
    return {name: (source / f"out/{name}.html").read_text("utf-8") for name in pages}


def test_words_names_between_them_titles_and_html_are_marked(built):
    page = built["other"]
    for words in ("定点游戏", "词元", "在 VOC 测试集上", "与零梯度", "图", "表"):
        assert f'<span lang="zh">{words}</span>' in page, words
    assert '<p title="图">' in page
    assert outside(page) == ["词"]  # code, which is no language of people
    assert '<span lang="zh">定点游戏</span>' in built["index"]  # the table of contents


def test_a_page_in_chinese_is_marked_as_a_whole(built):
    assert outside(built["zh"]) == []
    assert re.search('<section [^>]*lang="zh"', built["zh"]) and "<p>显著图 MSG-CAM</p>" in built["zh"]


def test_what_is_not_marked_is_found():
    assert outside("<p>图 <b>表</b> <i lang='en'>x</i></p>") == ["图", "表"]
    assert outside(marked("<p>图 <b>表</b></p>")) == []


def test_every_chinese_passage_of_the_book_says_so(site):
    assert not {
        path.name: found
        for path in site.rglob("*.html")
        if "_static" not in path.parts and (found := outside(path.read_text("utf-8")))
    }


def other_words(text):
    """Words for which the glossary, book/zh.md, has another one."""
    return [word for word in OTHER_WORDS if word in text]


def test_one_term_for_one_thing():
    glossary = (ROOT / "book/zh.md").read_text("utf-8")
    assert all(f"| {word} |" in glossary for word in OTHER_WORDS.values())
    assert METRICS["pointing_game"].chinese in glossary and METRICS["sanity"].chinese in glossary
    files = [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("thesis_lib/**/*.py")]
    texts = {path: path.read_text("utf-8") for path in [*files, ROOT / "README.md"]}
    assert not {str(path): found for path, text in texts.items() if (found := other_words(text))}
    assert other_words("指向游戏, 定点游戏") == ["指向游戏"]
