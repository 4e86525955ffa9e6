"""The pages that Sphinx reads: those of docs/, and a few that lie elsewhere in the repository.

They are copied into one folder, since Sphinx knows no page outside its own. Links are written for
the repository, where pages are read, too; in the copies they lead to the same files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = ("CHANGELOG.md", "benchmarks/RESULTS.md", "examples/imagenet/README.md")
LINK = re.compile(r"(?<!\\)\]\((?!\w+:|#|/)([^)#\s]+)((?:#[^)\s]*)?)\)")
FENCE = re.compile(r"^(```.*?^```|<!--.*?-->)", re.DOTALL | re.MULTILINE)


def version() -> str:
    found = re.search(r'^__version__ = "(.*)"', (ROOT / "__init__.py").read_text(), re.M)
    assert found is not None
    return found[1]


def stage(folder: Path) -> None:
    """Copies of the pages in ``folder``/pages, a link to the package in ``folder``/package."""
    sources = {place(path): path for path in [*_files(), *(ROOT / name for name in ELSEWHERE)]}
    for name, path in sources.items():
        _write(folder / "pages" / name, _content(path, folder / "pages" / name))
    for old in (folder / "pages").rglob("*"):
        if old.is_file() and old.relative_to(folder / "pages").as_posix() not in sources:
            old.unlink()
    (folder / "package").mkdir(exist_ok=True)
    if not (link := folder / "package" / "spikingjelly_signgd").is_symlink():
        link.symlink_to(ROOT)


def place(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    inside = path.relative_to(ROOT).as_posix().removeprefix("docs/")
    return re.sub(r"(^|/)README\.md$", r"\1index.md", inside)


def _files() -> list[Path]:
    return [p for p in DOCS.rglob("*") if p.suffix in (".md", ".png", ".svg")]


def _content(source: Path, copy: Path) -> bytes:
    return (
        moved(source.read_text(), source, copy).encode()
        if source.suffix == ".md"
        else source.read_bytes()
    )


def moved(text: str, source: Path, copy: Path) -> str:
    """The text of a page with links for the place of its copy."""
    parts = FENCE.split(text)  # every second one is code or a comment
    parts[::2] = [LINK.sub(lambda link: _link(link, source, copy), part) for part in parts[::2]]
    return "".join(parts)


def _link(link: re.Match[str], source: Path, copy: Path) -> str:
    """One that leads nowhere stays as it is, for Sphinx to report."""
    target = (source.parent / unquote(link[1])).resolve()
    if not target.is_file():
        return link[0]
    here = Path(place(source)).parent
    if target.suffix in (".md", ".png", ".svg") and target.is_relative_to(ROOT):
        return f"]({Path(os.path.relpath(place(target), here)).as_posix()}{link[2]})"
    return f"]({Path(os.path.relpath(target, copy.parent)).as_posix()}{link[2]})"


def _write(path: Path, content: bytes) -> None:
    """Sphinx reads again what is newer: what has not changed keeps its time."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
