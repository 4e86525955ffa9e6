"""Makes lava-nc 0.10.0 and lava-dl 0.6.0 importable on Python 3.11 and NumPy 2.

Both were released for Python 3.10 and NumPy 1, and are no longer maintained. ``prepare()``, called
before the first import of ``lava``, fixes what stands in the way, in memory alone:

- dataclasses of Lava's compiler have a default object that Python 3.11 takes for mutable;
- lava-dl imports an object detection package whose dependencies (OpenCV, torchvision) nothing here
  needs;
- Lava sets multiprocessing's start method, which fails if it was set before;
- its reshaping ports and lava-dl's input layer use calls that NumPy 2.4 no longer has.

``end_with_workers()`` is for a process that runs Lava and nothing else: an error in one of Lava's
workers otherwise leaves the others waiting for ever.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import numpy as np

_COMPILER = "lava.magma.compiler.var_model"
_DETECTION = "lava.lib.dl.slayer.object_detection"


def prepare() -> None:
    """Idempotent. Raises ModuleNotFoundError where Lava is not installed."""
    if _COMPILER not in sys.modules:
        _import_compiler()
        _import_messages()
        _fix_ports()
    if _DETECTION not in sys.modules and importlib.util.find_spec("lava.lib.dl"):
        stand_in = types.ModuleType(_DETECTION)
        stand_in.__path__ = []
        sys.modules[_DETECTION] = stand_in
        reader = importlib.import_module("lava.lib.dl.netx.hdf5")
        # the module's own int(...), of arrays of one element
        reader.int = lambda value: int(np.asarray(value).item())  # type: ignore[attr-defined]


def _import_compiler() -> None:
    """With dataclasses that let the encoder's object be a default."""
    original = dataclasses.dataclass

    def dataclass(cls: Any = None, /, **options: Any) -> Any:
        # an object with a hash counts as immutable
        if getattr(cls, "__name__", "") == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    dataclasses.dataclass = dataclass
    try:
        importlib.import_module(_COMPILER)
    finally:
        dataclasses.dataclass = original


def _import_messages() -> None:
    """With a start method that is set whatever was set before."""
    original = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda method, force=True: original(method, True)
    try:
        importlib.import_module("lava.magma.runtime.message_infrastructure.multiprocessing")
    finally:
        multiprocessing.set_start_method = original


def _fix_ports() -> None:
    ports = importlib.import_module("lava.magma.core.process.ports.ports")

    def reshape(shape: Any) -> Callable[[Any], Any]:
        return lambda data: np.reshape(data, shape)

    port = ports.ReshapePort
    port.get_transform_func_fwd = lambda self: reshape(self.shape)
    port.get_transform_func_bwd = lambda self: reshape(self.old_shape)


def end_with_workers() -> None:
    """An error in a worker of Lava is printed, and ends the whole process group."""
    messages = importlib.import_module("lava.magma.runtime.message_infrastructure.multiprocessing")
    original = messages.SystemProcess.run

    def run(process: Any) -> None:
        target = process._target

        def watched(*args: Any, **options: Any) -> Any:
            try:
                return target(*args, **options)
            except Exception:
                traceback.print_exc()
                sys.stderr.flush()
                os.killpg(0, signal.SIGTERM)
                raise

        process._target = watched
        original(process)

    messages.SystemProcess.run = run
