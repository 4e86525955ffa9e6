"""NIR files: writer, reader, verifier, and a runner that needs NumPy alone."""

from typing import TYPE_CHECKING

from ...core.lazy import lazy

if TYPE_CHECKING:
    from .graph import NirReport
    from .reader import embed, read_graph
    from .runner import NirRunner
    from .verifier import verify
    from .writer import read_nir, to_graph, write_nir
    from .writer import read_nir as read
    from .writer import write_nir as write

__all__ = [
    "NirReport",
    "NirRunner",
    "embed",
    "read",
    "read_graph",
    "read_nir",
    "suffixes",
    "to_graph",
    "verify",
    "write",
    "write_nir",
]

suffixes = (".nir",)
_HOME = {
    "NirReport": "graph",
    "NirRunner": "runner",
    "embed": "reader",
    "read": "writer:read_nir",
    "read_graph": "reader",
    "read_nir": "writer",
    "to_graph": "writer",
    "verify": "verifier",
    "write": "writer:write_nir",
    "write_nir": "writer",
}
__getattr__, __dir__ = lazy(__name__, _HOME)
