"""The neurons as node types of each simulator, and adapters to counters of operations.

A simulator or counter is imported on first use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import BackendUnavailable

if TYPE_CHECKING:
    from . import forms, lava, lava_remote, neurobench, norse, op_counter, spikingjelly

# to be imported; "lava" is the name of many a folder
NEEDS = {name: name for name in ("neurobench", "norse", "spikingjelly")} | {"lava": "lava.magma"}
__all__ = ["forms", "lava", "lava_remote", "neurobench", "norse", "op_counter", "spikingjelly"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    """Those that can be imported here: ``help`` looks at all that is listed."""
    return [name for name in __all__ if _is_there(NEEDS.get(name, "torch"))]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


@contextmanager
def simulator(name: str) -> Iterator[None]:
    """Around a plugin's imports: if the simulator is missing, the error says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        # plugin, simulator and extra share one name; a sub-module is missing where it is too old
        if (error.name or "").partition(".")[0] != name:
            raise
        from torch import __version__ as torch_version

        raise BackendUnavailable(
            f"{__name__}.{name} needs the simulator {name!r}: {error}. Install it with: "
            f"pip install 'spikingjelly-signgd[{name}]' torch=={torch_version.partition('+')[0]} "
            "(torch is pinned on the same line, or pip may replace it)"
        ) from error
