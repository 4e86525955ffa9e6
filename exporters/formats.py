"""The file formats that a network can be written to and read from: ``export`` and ``load``.

Each is a folder here, or comes from another package (``core/registry.py``). It has

suffixes   those of its files, lower case
write      (network, path, **options) -> a report, or None
read       (path, **options) -> SpikingNetwork; absent where files do not hold all of one
verify     (request) -> Certificate (``verification.Request``); absent where nothing replays them
embed      (data, certificate) -> the bytes of a file with a text in it; absent where there is no
           place for one
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..core.network import SpikingNetwork
from ..core.progress import working
from ..core.registry import FORMATS
from ..errors import FormatError
from ..names import check_options, near, spelled

ALIASES = {"h5": "hdf5", "netx": "lava", "net": "lava"}
# suffixes of files of another kind, and what makes or reads those
OTHERS = {
    ".onnx": " ONNX has no spiking neurons; torch.onnx.export writes the source model.",
    ".pt": " The weights of the source model are saved by torch.save(model.state_dict(), path).",
}
OTHERS[".pth"] = OTHERS[".pt"]
# and what they hold, where a network is to be read
WEIGHTS = (
    "a model of PyTorch or its weights, not a spiking network. Load it as it was saved, and "
    "convert the model: convert(model, data)."
)
MODELS = dict.fromkeys((".pt", ".pth", ".safetensors"), WEIGHTS)
MODELS[".onnx"] = "no spiking network. Convert the PyTorch model that it was made from."


def suffixes() -> dict[str, str]:
    """The format of each suffix; of two that claim one, the first."""
    found: dict[str, str] = {}
    for name in FORMATS.names():
        for suffix in FORMATS.find(name).suffixes:
            found.setdefault(suffix, name)
    return found


def by_suffix(path: str | os.PathLike[str]) -> str | None:
    """The name of the format that ``path`` ends in."""
    suffix = Path(path).suffix.lower()
    return next((name for name in FORMATS.names() if suffix in FORMATS.find(name).suffixes), None)


def find_format(doing: str, path: str | os.PathLike[str], name: str | None) -> tuple[str, Any]:
    """The format called ``name``, by default that of the suffix; FormatError says what is known."""
    found = by_suffix(path) if name is None else spelled(ALIASES.get(name, name), FORMATS.names())
    if found is None:
        suffix = Path(path).suffix
        what = f"{suffix!r} is not the suffix of a format" if suffix else "it has no suffix"
        raise FormatError(
            f"cannot {doing} '{path}': {what}. End the file in {_listed()}, or pass "
            f"format=...{OTHERS.get(suffix, '')}"
        )
    if found not in FORMATS.names():
        raise FormatError(
            f"cannot {doing} '{path}': format is one of {', '.join(FORMATS.names())}, not "
            f"{found!r}.{near(found, FORMATS.names())} Name one, or end the file in "
            f"{', '.join(suffixes())}."
        )
    return found, FORMATS.find(found)


def _listed() -> str:
    return ", ".join(f"{suffix} ({name})" for suffix, name in suffixes().items())


def export(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    format: str | None = None,
    **options: Any,
) -> Any:
    """Write ``network`` for another tool; returns the writer's report, None for "hdf5".

    ``format`` is "hdf5" (``save``), "nir" (``write_nir``), "lava" (``write_netx``) or that of an
    installed package, by default what the suffix says; ``options`` are the writer's. Raises
    FormatError for what the format cannot express, before anything is written.
    """
    name, writer = find_format("export", path, format)
    check_options(f"the writer of {name} files", writer.write, options)
    with working(f"writing {Path(path).name}"):
        return writer.write(network, path, **options)


def load(
    path: str | os.PathLike[str], *, format: str | None = None, **options: Any
) -> SpikingNetwork:
    """Read a network; the source model's code is not needed.

    ``format`` is by default what the suffix says, and "hdf5" where it says nothing. ``options`` are
    the reader's: of "hdf5" ``functions``, the caller's own nonlinearities by name, each a row or a
    callable; of "nir" ``time_steps``. Raises FormatError for a file that holds no network, is
    damaged, or is of a newer format.
    """
    name, found = find_format("load", path, format or by_suffix(path) or "hdf5")
    if getattr(found, "read", None) is None:
        raise FormatError(
            f"cannot load '{path}': files of the format {name} do not hold all of a network. "
            "Save it with save(network, path), too."
        )
    check_options(f"the reader of {name} files", found.read, options)
    try:
        network: SpikingNetwork = found.read(path, **options)
    except FormatError as error:
        held = MODELS.get(Path(path).suffix.lower()) if format is None else None
        if held is None:
            raise
        raise FormatError(f"cannot load '{path}': it holds {held}") from error
    return network
