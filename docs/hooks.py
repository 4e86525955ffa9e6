"""What mkdocs is told besides mkdocs.yml: mathematics as MathML, files outside docs/, the package.

Formulas become MathML while the site is built, so pages need no script and no network to show them.
Pages may link to files outside docs/ by their place in the repository, as they do when they are
read there; Markdown becomes a page of the site, anything else is copied beside it.
"""

from __future__ import annotations

import html
import os
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import griffe
from latex2mathml.converter import convert as mathml
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!\\)\]\((?!\w+:|#|/)([^)#\s]+)((?:#[^)\s]*)?)\)")
FENCE = re.compile(r"^(```.*?^```|<!--.*?-->)", re.DOTALL | re.MULTILINE)


def on_startup(**_: Any) -> None:
    """Lay links to the package's folders where griffe finds the package by its name.

    The repository root is the package, but griffe would also read all that lies beside it there.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (name,) = project["tool"]["setuptools"]["package-dir"]
    place = ROOT / ".cache" / "docs" / name
    place.mkdir(parents=True, exist_ok=True)
    parts = {p.split(".")[1] for p in project["tool"]["setuptools"]["packages"] if "." in p}
    wanted = {path.name for path in ROOT.glob("*.py") if path.name != "setup.py"} | parts
    for link in place.iterdir():
        if link.name not in wanted:
            link.unlink()
    for part in wanted - {link.name for link in place.iterdir()}:
        (place / part).symlink_to(ROOT / part)


def site_path(path: Path) -> str:
    """The place in the site of a file of the repository."""
    inside = path.relative_to(ROOT).as_posix()
    return "index.md" if inside == "README.md" else inside.removeprefix("docs/")


def links(text: str, page: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    found = [page.parent / unquote(target) for target, _ in LINK.findall(FENCE.sub("", text))]
    return [path.resolve() for path in found if path.is_file() and path.resolve() != page]


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/."""
    queue = [Path(f.abs_src_path) for f in files.documentation_pages() if f.abs_src_path]
    while queue:
        page = queue.pop()
        for target in links(page.read_text(), page):
            where = site_path(target)
            if target.is_relative_to(ROOT) and where not in files.src_uris:
                files.append(File.generated(config, where, abs_src_path=str(target)))
                if target.suffix == ".md":
                    queue.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links at the places of their files in the site."""
    source = Path(page.file.abs_src_path or "").resolve()
    here = Path(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / unquote(match[1])).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]  # which mkdocs reports
        return f"]({Path(os.path.relpath(site_path(target), here)).as_posix()}{match[2]})"

    parts = FENCE.split(markdown)  # every second one is code or a comment
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    # GitHub takes a table for one right behind a line of text
    return re.sub(
        r"^([^|\n].*\n)(?=\|.*\n\|[ :|-]+\n)", r"\1\n", "".join(parts), flags=re.MULTILINE
    )


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:
    """Formulas to MathML."""

    def block(match: re.Match[str]) -> str:
        return f'<div class="formula">{formula(match[1], "block", page)}</div>'

    def inline(match: re.Match[str]) -> str:
        return formula(match[1], "inline", page)

    content = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, content, flags=re.S)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, content, flags=re.S)


def formula(text: str, display: str, page: Page) -> str:
    """LaTeX, as it stands in the page, to MathML. Raises where a command is not known."""
    text = html.unescape(text).replace("{aligned}", "{align*}")  # latex2mathml knows this one
    found: str = mathml(text, display=display)
    if "\\" in found or "<mi>&</mi>" in found:  # what it does not know stays as it is
        raise PluginError(f"{page.file.src_uri}: cannot be written as MathML: {text.strip()}")
    return found


class Docstrings(griffe.Extension):  # type: ignore[misc]
    """Docstrings as the pages' Markdown and as griffe reads them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = parameters_last(from_sphinx(obj.docstring.value))


def parameters_last(text: str) -> str:
    """What follows the list of parameters before it: griffe takes all after it for parameters."""
    before, head, after = text.partition("\nParameters\n----------\n")
    if not head:
        return text
    paragraphs = re.split(r"\n\s*\n", after.strip("\n"))
    items = [p for p in paragraphs if re.search(r"^\S.*\n +\S", p)]
    rest = [p for p in paragraphs if p not in items]
    return "\n\n".join([before.rstrip(), *rest]) + "\n" + head + "\n".join(items)


def from_sphinx(text: str) -> str:
    r"""``.. math::`` and ``:math:`` to ``$$`` and ``$``."""

    def block(match: re.Match[str]) -> str:
        formula = f"\n{match[1]}".join(line.strip() for line in match[2].strip().splitlines())
        if "&" in formula:
            formula = rf"\begin{{aligned}} {formula} \end{{aligned}}"
        return f"\n{match[1]}$$\n{match[1]}{formula}\n{match[1]}$$\n\n"

    text = re.sub(
        r"^( *)\.\. math::\n((?:\1 +\S.*\n|\s*\n)+)", block, text + "\n", flags=re.MULTILINE
    )
    return re.sub(r":math:`([^`]+)`", lambda m: f"${' '.join(m[1].split())}$", text).rstrip()
