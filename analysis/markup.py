"""HTML that is escaped unless marked as markup, and a self-contained page.

The page forbids scripts and all requests (Content-Security-Policy): everything it shows is in the
file. Pictures are inline SVG in the colour of the text, so they follow light, dark and print.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# stand for the colours of the text and behind it until the picture is in the page
INK, PAPER = "#010203", "#fdfcfb"
SHRUNK = 0.82  # of its size a picture keeps, so that its small text has 9 pixels; then it scrolls
VARIED = {  # colours that are others on a dark page
    "#0072b2": "var(--blue)",
    "#00507f": "var(--deep)",
    "#e6e6e6": "var(--silent)",
}
SHORT = 24  # letters of a cell that stay on one line
VOID = ("meta", "br", "hr", "img", "col")


class Html(str):
    """Text that is markup already."""


def markup(child: Any) -> Html:
    """The child itself where it is Html, else its text, escaped."""
    return child if isinstance(child, Html) else Html(html.escape(str(child)))


def join(children: Iterable[Any], between: Any = "") -> Html:
    return Html(markup(between).join(markup(child) for child in children))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """``tag("td", text, class_="number")``; None among children and attributes is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{join(c for c in children if c is not None)}</{name}>")


def table(
    header: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    text: Iterable[int] = (0,),
    caption: Any = None,
    marked: Iterable[int] = (),
) -> Html:
    """Columns in ``text`` are words, the others numbers; rows in ``marked`` stand out."""
    words, bold = set(text), set(marked)

    def cells(kind: str, row: Sequence[Any]) -> Html:
        scope = "col" if kind == "th" else None
        fits = ["short" if len(str(cell)) <= SHORT else "long" for cell in row]
        return join(
            tag(kind, cell, class_=fits[i] if i in words else "number", scope=scope)
            for i, cell in enumerate(row)
        )

    body = [tag("tr", cells("td", row), class_="marked" if i in bold else None)
            for i, row in enumerate(rows)]  # fmt: skip
    inner = tag("table", tag("thead", tag("tr", cells("th", header))), tag("tbody", join(body)))
    wide = tag("div", inner, class_="wide", tabindex="0")
    # not <caption>, which would be scrolled with a wide table
    return wide if caption is None else join([tag("p", caption, class_="caption"), wide])


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """A list of terms and what they are."""
    return tag("dl", join(join((tag("dt", term), tag("dd", value))) for term, value in pairs))


def picture(figure: Any, name: str, caption: Any) -> Html:
    """A matplotlib figure, drawn with INK, as inline SVG; ``name`` is its own in the page."""
    image = io.BytesIO()
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
    drawn = tag("div", inline(image.getvalue().decode(), name, str(caption)), class_="drawn")
    return tag("figure", drawn, tag("figcaption", caption))


def inline(svg: str, name: str, label: str) -> Html:
    """The <svg> of a file as a part of a page: no prologue, no comments, names of its own."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"(data:image/png;base64,)([^\"]*)", lambda m: m[1] + "".join(m[2].split()), svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    width = re.findall(r' width="([\d.]+)pt"', svg[: svg.index(">")])[0]
    svg = re.sub(r'(width|height)="[\d.]+pt" ?', "", svg, count=2)
    pixels = float(width) / 72 * 96
    for color, variable in VARIED.items():
        svg = svg.replace(color, variable)
    style = f"max-width:{pixels:.0f}px;min-width:{SHRUNK * pixels:.0f}px"
    opening = f'<svg role="img" aria-label="{html.escape(label)}" style="{style}" '
    return Html(svg.replace("<svg ", opening, 1).strip())


def section(anchor: str, title: str, *children: Any) -> Html:
    return tag("section", tag("h2", title), *children, id=anchor)


def paragraphs(*texts: str) -> Html:
    return join(tag("p", kept(text)) for text in texts)


def kept(text: str) -> str:
    """With T = 16 on one line."""
    return re.sub(r"\b(\w) = (?=\d)", "\\1\u00a0=\u00a0", text)


def page(title: str, *children: Any) -> str:
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{tag("body", *children)}</html>\n'
