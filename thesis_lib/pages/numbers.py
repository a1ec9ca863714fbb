"""Numbers in the text of the book's pages as print has them, see `report.typeset`. An extension of Sphinx."""

from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform

from thesis_lib.pages.report import typeset


class Numbers(SphinxTransform):
    """Does so in a page's text: not in code, nor in formulas, nor in tables of data, which come so already."""

    default_priority = 860

    def apply(self, **kwargs: Any) -> None:
        for text in [*self.document.findall(nodes.Text)]:
            code = isinstance(text.parent, nodes.FixedTextElement | nodes.raw | nodes.literal | nodes.math)
            if not code and (better := typeset(text)) != text:
                text.parent.replace(text, nodes.Text(better))


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_transform(Numbers)
    return {"parallel_read_safe": True}
