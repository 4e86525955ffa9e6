"""Mathematics as MathML, which browsers show without a script and without network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def formula(text: str, display: str, where: str) -> str:
    """LaTeX to MathML. Raises where a command is not known, naming the page and the formula."""
    text = text.strip().replace("{aligned}", "{align*}")  # which latex2mathml knows
    if display == "block" and "&" in text and r"\begin" not in text:
        text = rf"\begin{{align*}} {text} \end{{align*}}"
    found: str = convert(text, display=display)
    if "\\" in found or "<mi>&</mi>" in found:  # what it does not know stays as it is
        raise ExtensionError(f"{where}: cannot be written as MathML: {text}")
    return found


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(formula(node.astext(), "inline", translator.builder.current_docname))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    found = formula(node.astext(), "block", translator.builder.current_docname)
    translator.body.append(f'<div class="formula">{found}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
