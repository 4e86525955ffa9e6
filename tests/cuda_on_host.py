"""The GPU path on a CPU: a CuPy whose NVRTC is g++ and whose threads run one after the other.

What gpu.py compiles and launches is the text it would hand to NVRTC; cuda_on_host.h supplies what
C++ lacks. It checks the sources' logic and rounding, not memory races or speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from spikingjelly_signgd.neurons.kernels import build, cpu, gpu, launch

HEADER = Path(__file__).with_name("cuda_on_host.h")
LAUNCH = """
extern "C" void launch(unsigned blocks, unsigned threads, const void *arguments) {
  launch_on_host(run, blocks, threads, arguments);
}
"""
# CUDA_ON_HOST_FLAGS adds flags such as a sanitizer's, CUDA_ON_HOST_CACHE keeps what was compiled
FLAGS = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off"]
launched: list[tuple[int, int, int]] = []  # blocks, threads and the stream of each launch


class CompileException(Exception):
    pass


def compile_using_nvrtc(source: str, options: tuple[str, ...]) -> tuple[bytes, None]:
    """The path of a library, in place of machine code."""
    assert "--fmad=false" in options and not any("ftz" in option for option in options)
    flags = [*FLAGS, *os.environ.get("CUDA_ON_HOST_FLAGS", "").split()]
    text = f'#include "{HEADER}"\n{source}{LAUNCH}'
    name = hashlib.sha256(f"{HEADER.read_text()}{flags}{text}".encode()).hexdigest()
    library = Path(os.environ["CUDA_ON_HOST_CACHE"]) / f"{name[:24]}.so"
    if not library.exists():
        command = build.compiler()
        assert command is not None, "a C++ compiler is needed"
        made = subprocess.run(
            [*command, *flags, "-x", "c++", "-", "-o", f"{library}.{os.getpid()}"],
            input=text,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise CompileException(made.stderr)
        os.replace(f"{library}.{os.getpid()}", library)
    return str(library).encode(), None


class Module:
    def load(self, code: bytes) -> None:
        self.library = ctypes.CDLL(code.decode())

    def get_function(self, name: str) -> Any:
        assert name == "run"
        launch = self.library.launch
        launch.restype = None
        launch.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)

        def kernel(grid: tuple[int], block: tuple[int], args: tuple[Any], *, stream: Any) -> None:
            (by_value,) = args
            assert by_value.size == 1  # of anything else CuPy would pass the address
            launched.append((*grid, *block, stream.ptr))
            launch(*grid, *block, by_value.ctypes.data)

        return kernel


@contextmanager
def device(index: int | None) -> Iterator[None]:
    yield


def modules() -> dict[str, ModuleType]:
    """CuPy as far as gpu.py knows it."""
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    compiler, function = ModuleType("cupy.cuda.compiler"), ModuleType("cupy.cuda.function")
    compiler.__dict__.update(
        compile_using_nvrtc=compile_using_nvrtc, CompileException=CompileException
    )
    function.__dict__.update(Module=Module)
    nvrtc = SimpleNamespace(getVersion=lambda: (13, 0))
    cuda.__dict__.update(compiler=compiler, function=function, nvrtc=nvrtc, Device=device)
    cupy.__dict__.update(cuda=cuda, is_available=lambda: True, __version__="on the host")
    return {m.__name__: m for m in (cupy, cuda, compiler, function)}


@contextmanager
def in_place_of_cupy() -> Iterator[None]:
    """The modules in sys.modules; what else is imported meanwhile stays, unlike with patch.dict."""
    before = {name: sys.modules.get(name) for name in modules()}
    sys.modules.update(modules())
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def gpu_on_host(stream: int = 0) -> Iterator[None]:
    """Kernels for CPU tensors are those of gpu.py, launched on torch's "current stream"."""
    current = SimpleNamespace(cuda_stream=stream)
    with tempfile.TemporaryDirectory() as folder:
        kept = {"CUDA_ON_HOST_CACHE": os.environ.get("CUDA_ON_HOST_CACHE", folder)}
        with (
            in_place_of_cupy(),
            patch.dict(os.environ, kept),
            patch.dict(launch.PROVIDERS, {"cpu": gpu}),
            patch.object(torch.cuda, "current_stream", lambda device: current),
        ):
            gpu._kernel.cache_clear()
            launched.clear()
            try:
                yield
            finally:
                gpu._kernel.cache_clear()


@contextmanager
def cpu_kernels() -> Iterator[None]:
    """The kernels of cpu.py again, within ``gpu_on_host``."""
    with patch.dict(launch.PROVIDERS, {"cpu": cpu}):
        yield
