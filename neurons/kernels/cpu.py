"""The kernels on the CPU: the library built with the package, and one for each user's function."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...errors import BackendUnavailable
from . import arguments
from .build import LIBRARY, Function, NoCompiler, build, compiler, sources
from .prepared import Output, Prepared

FIX = "python -m spikingjelly_signgd.neurons.kernels"  # builds LIBRARY
_STRUCTURES = {
    "group": arguments.Group,
    "group_gradient": arguments.GroupGradient,
    "tracking_gradient": arguments.TrackingGradient,
    "sum": arguments.Sum,
}


class InvalidCode(BackendUnavailable):
    """The C expression of a row does not compile: the row is wrong, so nothing falls back."""


class Library:
    """A compiled library: ``kernels`` are the names of those in it."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendUnavailable(
                f"the library of CPU kernels {path} cannot be loaded: {error}. Build it again with "
                f"`{FIX}`."
            ) from error
        _check_sources(library, path)
        library.kernel_name.restype = ctypes.c_char_p
        library.kernel_size.restype = ctypes.c_ulong
        library.kernel_run.restype = None
        library.kernel_run.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int),
        )
        self.face, self._run = library, library.kernel_run
        self.kernels: dict[str, int] = {}
        for i in range(library.kernel_count()):
            name = library.kernel_name(i).decode()
            structure = _STRUCTURES.get(name, arguments.SignGD)
            if library.kernel_size(i) != ctypes.sizeof(structure):
                raise BackendUnavailable(
                    f"{path} was built from other sources than this package's: its arguments of "
                    f"{name!r} have {library.kernel_size(i)} bytes, not {ctypes.sizeof(structure)}."
                    f" Build it again with `{FIX}`."
                )
            self.kernels[name] = i

    def run(self, name: str, structure: ctypes.Structure, threads: int) -> None:
        neurons = structure.space.neurons  # type: ignore[attr-defined]
        self._run(self.kernels[name], ctypes.byref(structure), neurons, threads)

    def address_of(self, name: str) -> tuple[Any, int]:
        """What runs a kernel, and the number that it knows it by."""
        return self._run, self.kernels[name]


def _check_sources(library: ctypes.CDLL, path: Path) -> None:
    """Raises BackendUnavailable where the library is not of this package's sources."""
    carried = "none"
    if hasattr(library, "kernel_sources"):
        library.kernel_sources.restype = ctypes.c_char_p
        carried = library.kernel_sources().decode()
    if carried != sources():
        raise BackendUnavailable(
            f"{path} was built from other sources than this package's: it carries their digest "
            f"{carried[:8]}, not {sources()[:8]}. Build it again with `{FIX}`."
        )


@cache
def library() -> Library:
    """The library of the package. Raises BackendUnavailable."""
    if not LIBRARY.exists():
        raise BackendUnavailable(
            "the CPU kernels are not built: when the package was installed there was no C++ "
            "compiler, or it failed (pip install -v shows how). Install g++ or clang++ and run "
            f"`{FIX}`, or use backend='torch'."
        )
    return Library(LIBRARY)


@cache
def library_for(function: Function) -> Library:
    """A library with the kernel of ``function``, compiled now unless it is the package's own.

    Kept in the user's cache folder. Raises BackendUnavailable where nothing can be compiled,
    InvalidCode with the compiler's words.
    """
    if function.key in library().kernels:
        return library()
    path = _cache_folder() / f"{_digest(function)}.so"
    if not path.exists():
        try:
            build(path, [function], native=True)
        except (NoCompiler, OSError) as error:
            raise BackendUnavailable(
                f"the C expression {function.code!r} is not compiled: {error}"
            ) from error
        except RuntimeError as error:
            raise InvalidCode(
                f"the C expression {function.code!r} does not compile. Fix the row's code, or "
                f"leave it out and f is computed by torch. The compiler says:\n{error}"
            ) from error
    return Library(path)


def run(name: str | Function, structure: ctypes.Structure, device: torch.device) -> None:
    found, key = _found(name)
    found.run(key, structure, max(1, min(torch.get_num_threads(), most_threads(structure))))


def prepared(
    name: str | Function,
    structure: ctypes.Structure,
    inputs: tuple[int, ...],
    outputs: tuple[Output, ...],
    sizes: int,
) -> Prepared:
    """The launch of ``structure`` for other addresses, which are at these places in it."""
    found, key = _found(name)
    neurons, most = structure.space.neurons, most_threads(structure)  # type: ignore[attr-defined]
    run, kernel = found.address_of(key)
    return Prepared(structure, run, kernel, neurons, most, inputs, outputs, sizes)


def _found(name: str | Function) -> tuple[Library, str]:
    if isinstance(name, Function):
        return library_for(name), name.key
    return library(), name


def missing(function: Function | None) -> str:
    """Why the kernels cannot run, empty where they can. Raises InvalidCode."""
    try:
        library() if function is None else library_for(function)
    except InvalidCode:
        raise
    except BackendUnavailable as error:
        return str(error)
    return ""


def most_threads(structure: ctypes.Structure) -> int:
    """Of torch's threads, fewer for little work."""
    work: int = structure.space.neurons * structure.steps  # type: ignore[attr-defined]
    return work // 32768


def _cache_folder() -> Path:
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "spikingjelly_signgd"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass  # no home to write to
    return Path(tempfile.mkdtemp(prefix="spikingjelly_signgd-"))


def _digest(function: Function) -> str:
    """Of the function, the sources, the compiler and the processor it is compiled for."""
    text = f"{function.key} {compiler()} {_processor()} {sources()}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return str(torch.backends.cpu.get_cpu_capability())
    return next((line for line in lines if line.startswith("flags")), "")
