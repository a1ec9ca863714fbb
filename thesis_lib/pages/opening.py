"""What a reader of a page meets first: its question, its answer, what the rows say, a figure; then any code.

An extension of Sphinx. In a notebook things stand in the order in which they are computed; on its page

- cells tagged `opening` show their outputs right behind the answer, wherever they are computed;
- folded cells without an output are not a bar each: their code joins the next folded cell's.
"""

from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform

TAG = "tag_opening"


def is_folded(node: nodes.Node) -> bool:
    """Whether it is a cell whose code is hidden until asked for."""
    return isinstance(node, nodes.container) and node.get("hide_mode") == "input"


def part(cell: nodes.Element, element: str) -> nodes.Element | None:
    """A cell's code ("cell_code_source") or what came of it ("cell_code_output"), None where it has none."""
    return next((child for child in cell.children if child.get("nb_element") == element), None)


def join(parent: nodes.Element) -> None:
    """Let neighbouring folded cells share a fold: the code of those without an output joins the next one's."""
    kept: list[nodes.Node] = []
    for node in parent.children:
        before = kept[-1] if kept else None
        if (
            before is not None
            and is_folded(node)
            and is_folded(before)
            and not part(before, "cell_code_output")
        ):
            above, code = part(before, "cell_code_source"), part(node, "cell_code_source")
            if above is not None and code is not None:
                code[:] = [*above.children, *code.children]
            node["classes"] += [name for name in before["classes"] if name not in node["classes"]]
            kept.pop()
        kept.append(node)
    parent[:] = kept


class Opening(SphinxTransform):
    """Does so in a page's tree, before anything is numbered."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        first = next(iter(self.document.findall(nodes.section)), None)
        if first is None:
            return
        shown = []
        for number, cell in enumerate(
            [*self.document.findall(lambda n: is_folded(n) and TAG in n["classes"])]
        ):
            output = part(cell, "cell_code_output")
            if output is None:
                continue
            cell.remove(output)
            name = f"opening-{number}"  # by which a figure finds its code, see figure_source.js
            cell["classes"].append(name)
            shown.append(nodes.container("", output, classes=["cell", name], nb_element="cell_code"))
        first[:] = self._behind_the_answer(first.children, shown)
        for section in self.document.findall(nodes.section):
            join(section)

    @staticmethod
    def _behind_the_answer(children, shown):
        """The first section's parts, with these in the middle."""
        for k, node in enumerate(children):
            if isinstance(node, nodes.paragraph) and node.astext().startswith("Answer."):
                return [*children[: k + 1], *shown, *children[k + 1 :]]
            if isinstance(node, nodes.section) or is_folded(node):
                return [*children[:k], *shown, *children[k:]]
        return [*children, *shown]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_transform(Opening)
    return {"parallel_read_safe": True}
