"""The HDF5 description: writer, reader, verifier, and a runner that needs NumPy alone."""

from typing import TYPE_CHECKING

from ...core.lazy import lazy

if TYPE_CHECKING:
    from .definition import run_definition
    from .description import load, save
    from .description import load as read
    from .description import save as write
    from .layout import embed, seal
    from .runner import Runner
    from .verifier import verify

__all__ = [
    "Runner",
    "embed",
    "load",
    "read",
    "run_definition",
    "save",
    "seal",
    "suffixes",
    "verify",
    "write",
]

suffixes = (".h5", ".hdf5")
_HOME = {
    "Runner": "runner",
    "embed": "layout",
    "load": "description",
    "read": "description:load",
    "run_definition": "definition",
    "save": "description",
    "seal": "layout",
    "verify": "verifier",
    "write": "description:save",
}
__getattr__, __dir__ = lazy(__name__, _HOME)
