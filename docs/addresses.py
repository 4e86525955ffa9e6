"""Whether the site still has the addresses that others have linked to, docs/addresses.txt.

    python docs/addresses.py site

A page or name that moves keeps its line there, and an anchor at its old place: ``(name)=`` above a
heading. Exit code 1 where one is missing.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

LIST = Path(__file__).parent / "addresses.txt"


@cache
def anchors(page: Path) -> frozenset[str]:
    return (
        frozenset(re.findall(r'\bid="([^"]+)"', page.read_text()))
        if page.is_file()
        else frozenset()
    )


def missing(site: Path) -> list[str]:
    rows = [row.partition("#") for row in LIST.read_text().split()]
    return [
        f"{page}{mark}{anchor}"
        for page, mark, anchor in rows
        if not (anchor in anchors(site / page) if mark else (site / page).is_file())
    ]


if __name__ == "__main__":
    gone = missing(Path(sys.argv[1]))
    sys.exit("docs/addresses.txt: the site has no longer\n" + "\n".join(gone) if gone else 0)
