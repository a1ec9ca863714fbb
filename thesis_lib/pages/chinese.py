"""Chinese words among English ones say so (`lang="zh"`), in the pages of the book: a screen reader reads them in
Chinese, and a browser takes a Chinese font. An extension of Sphinx. A page named `zh` is Chinese as a whole.
"""

import re
from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform

OWN = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"  # characters, and punctuation that is as wide as they
CHINESE = re.compile(f"{OWN}+(?:[ \\w.-]+{OWN}+)*")  # with the Latin names between them
LANGUAGE = "language-zh"  # a class that docutils writes as lang="zh"


def marked(page: str) -> str:
    """HTML with the Chinese of its text in spans that say so.

    >>> from thesis_lib.pages.chinese import marked
    >>> marked('<td title="摘要">the abstract, 摘要</td>')
    '<td title="摘要">the abstract, <span lang="zh">摘要</span></td>'
    """

    def in_text(text):
        return CHINESE.sub(lambda found: f'<span lang="zh">{found[0]}</span>', text[0])

    return re.sub("(?:^|(?<=>))[^<>]+", in_text, page)


class MarkChinese(SphinxTransform):
    """Does so in a page's tree, titles included, which the table of contents takes over."""

    default_priority = 870  # before Sphinx collects titles, at 880

    def apply(self, **kwargs: Any) -> None:
        whole = self.env.docname.split("/")[-1] == "zh"
        for node in [*self.document.findall(nodes.raw)]:
            if "html" in node.get("format", "") and CHINESE.search(node.astext()):
                node[:] = [nodes.Text(marked(node.astext()))]
        for text in [*self.document.findall(nodes.Text)]:
            title = isinstance(text.parent, nodes.title)
            literal = isinstance(text.parent, nodes.FixedTextElement | nodes.raw | nodes.literal | nodes.math)
            if literal or (whole and not title):
                continue
            parts, end = [], 0
            for found in CHINESE.finditer(text):
                parts += [
                    nodes.Text(text[end : found.start()]),
                    nodes.inline("", found[0], classes=[LANGUAGE]),
                ]
                end = found.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(text[end:])])
        if whole:
            for section in self.document.findall(nodes.section):
                section["classes"].append(LANGUAGE)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_transform(MarkChinese)
    return {"parallel_read_safe": True}
