"""Docstrings as Sphinx reads them; the comments of a dataclass's fields are part of its entry."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext import napoleon
from sphinx.ext.napoleon import GoogleDocstring, NumpyDocstring
from sphinx.util import inspect as sphinx_inspect

# napoleon is asked where there is a list of parameters: elsewhere it takes what stands before a
# colon for a type
SECTIONS = napoleon.Config(napoleon_use_ivar=True)
PACKAGE = "spikingjelly_signgd"
FIELD = re.compile(r"^    (\w+): [^#]*(?:# (.*))?$")
COMMENT = re.compile(r"^    # (.*)$")


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if "\n".join(lines).strip() == inspect.cleandoc(type(obj).__doc__ or "").strip():
        lines.clear()  # of a dict or a number: what dicts and numbers are
    if what == "class" and lines and lines[0].startswith(f"{obj.__name__}("):
        lines.clear()  # written by @dataclass or NamedTuple: the signature once more
    text = "\n".join(map(escaped, lines))
    if "\nParameters\n---" in text:
        lines[:] = NumpyDocstring(parameters_last(text), SECTIONS).lines()
    elif "\nParameters:\n" in text:
        lines[:] = GoogleDocstring(text, SECTIONS).lines()
    else:
        lines[:] = text.split("\n") + (described(obj) if what == "class" else [])


def escaped(line: str) -> str:
    """The stars of shapes, [T, N, *]: nothing is emphasised."""
    parts = re.split("(``.*?``|:math:`.*?`)", line)
    parts[::2] = [
        re.sub(r"[\[(][^][()]*[\])]", lambda m: m[0].replace("*", r"\*"), p) for p in parts[::2]
    ]
    return "".join(parts)


def parameters_last(text: str) -> str:
    """What follows the list of parameters before it: napoleon takes all after it for parameters."""
    before, head, after = text.partition("\nParameters\n----------\n")
    if not head:
        return text
    paragraphs = re.split(r"\n\s*\n", after.strip("\n"))
    items = [p for p in paragraphs if re.search(r"^\S.*\n +\S", p)]
    rest = [p for p in paragraphs if p not in items]
    return "\n\n".join([before.rstrip(), *rest]) + "\n" + head + "\n".join(items) + "\n"


def described(cls: type) -> list[str]:
    """The fields of a dataclass or NamedTuple, with the comments beside or above them."""
    if not (dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")):
        return []
    given = inspect.signature(cls).parameters
    found = {name: escaped(text) for name, text in comments(cls).items() if name in given}
    return ["", *(f":param {name}: {text}" for name, text in found.items())]


def comments(cls: type) -> dict[str, str]:
    """By field, in the order of the source."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if match := COMMENT.match(line):
            above.append(match[1])
            continue
        if (match := FIELD.match(line)) and (above or match[2]):
            found[match[1]] = " ".join([*above, match[2] or ""]).strip()
        above = []
    return found


def signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    given: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Defaults that are not Python, ``<factory>``, as ``...``; behind a mocked base our own."""
    if what == "class" and given and given.startswith("(*args"):
        given = own(obj) or given
    return given and re.sub(r"= ?<[^<>]+>", "= ...", given), returns


def own(cls: type) -> str | None:
    ours = [c for c in cls.__mro__ if "__init__" in vars(c) and c.__module__.startswith(PACKAGE)]
    if not ours:
        return None
    found = sphinx_inspect.signature(vars(ours[0])["__init__"], bound_method=True)
    return sphinx_inspect.stringify_signature(
        found, show_return_annotation=False, unqualified_typehints=True
    )


def modules(app: Sphinx, document: nodes.document) -> None:
    """A module's own name as an anchor beside ``module-`` and its name."""
    for node in document.findall(nodes.Element):
        for name in [i for i in node.get("ids", ()) if i.startswith("module-")]:
            node["ids"].append(name.removeprefix("module-"))


def breakable(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Lines may break behind the dots of a module's name."""
    if "body" in context:
        context["body"] = re.sub(
            r'(?<=descclassname"><span class="pre">)[\w.]+',
            lambda name: name[0].replace(".", ".<wbr>"),
            context["body"],
        )


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out a tuple's items without a text of their own, and aliases of private classes."""
    if inspect.isclass(obj):
        return True if obj.__name__.startswith("_") else None
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", modules)
    app.connect("html-page-context", breakable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
