"""The kernels on a GPU through CuPy: compiled by NVRTC at the first use, kept by CuPy on disk.

They are launched on torch's current stream with the tensors' own memory; nothing is copied and
nothing waits.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from ...errors import BackendUnavailable
from .build import HERE, Function

# no contraction, as for the CPU; division and roots are rounded exactly by default
OPTIONS = ("-std=c++17", "--fmad=false")
BLOCK = 256
INSTALL = "pip install 'spikingjelly-signgd[cupy]', or cupy-cuda12x or cupy-cuda13x as your CUDA is"
_KERNELS = {
    "group": ("group.cuh", "Group", "group_block(a, n, 1)"),
    "group_gradient": ("group.cuh", "GroupGradient", "group_gradient_block(a, n, 1)"),
    "tracking_gradient": ("tracking.cuh", "TrackingGradient", "tracking_gradient_block(a, n, 1)"),
    "sum": ("sum.cuh", "Sum", "sum_block(a, n, 1)"),
}


def source(name: str | Function, input_type: int, output_type: int) -> str:
    """CUDA C of the kernel ``run(arguments)``, everything it includes in it.

    The types are numbers of ``arguments.TYPES``; they are constants of the kernel.
    """
    if isinstance(name, Function):
        file, arguments, call = "signgd.cuh", "SignGD", "signgd_block(a, Step{a.fires_at_tie}, n, 1)"
        step = name.struct("Chosen") + _STEP
    else:
        (file, arguments, call), step = _KERNELS[name], ""
    return (
        f"#define INPUT_TYPE {input_type}\n#define OUTPUT_TYPE {output_type}\n"
        f"{_included(file)}\n{step}\n"
        f'extern "C" __global__ void __launch_bounds__({BLOCK}) run(const {arguments} a) {{\n'
        "  const index_t n = (index_t)blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"  if (n < a.space.neurons) {call};\n"
        "}\n"
    )


_STEP = """
struct Step {
  enum { arguments = Chosen::arguments };
  int tie;
  __device__ __forceinline__ void of(const float *const *in, const float *parameters, float eta,
                                     const float *sizes, int lanes, const float *v, float *after,
                                     float *sigma) const {
    if (tie)
      signgd_step<Chosen, true>(in, parameters, eta, sizes, lanes, v, after, sigma);
    else
      signgd_step<Chosen, false>(in, parameters, eta, sizes, lanes, v, after, sigma);
  }
};
"""


def _included(file: str, seen: set[str] | None = None) -> str:
    """The text of a source with the files that it includes, each once."""
    seen = set() if seen is None else seen
    if file in seen:
        return ""
    seen.add(file)
    lines = []
    for line in (HERE / file).read_text().splitlines():
        if line.startswith('#include "'):
            lines.append(_included(line.split('"')[1], seen))
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


@cache
def _kernel(name: str | Function, input_type: int, output_type: int) -> Any:
    import cupy

    return cupy.RawKernel(source(name, input_type, output_type), "run", OPTIONS)


def run(name: str | Function, structure: ctypes.Structure, device: torch.device) -> None:
    """Launches the kernel on torch's current stream. Raises BackendUnavailable with its log where
    the source does not compile."""
    import cupy
    import numpy

    a: Any = structure
    kernel = _kernel(name, a.input_type, getattr(a, "output_type", 0))
    by_value = numpy.frombuffer(bytes(structure), dtype=f"V{ctypes.sizeof(structure)}")
    blocks = -(-a.space.neurons // BLOCK)
    with cupy.cuda.Device(device.index):
        pointer = torch.cuda.current_stream(device).cuda_stream
        with cupy.cuda.ExternalStream(pointer, device.index):
            try:
                kernel((blocks,), (BLOCK,), (by_value,))
            except cupy.cuda.compiler.CompileException as error:
                raise BackendUnavailable(
                    f"NVRTC does not compile the kernel of {_name(name)}; use backend='torch', or "
                    f"mend the row's C expression. Its log:\n{error}"
                ) from None


def missing(function: Function | None) -> str:
    """Why the kernels cannot run, empty where they can. Nothing is compiled to find out."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install it with {INSTALL}."
    if not cupy.is_available():
        return f"CuPy {cupy.__version__} finds no GPU that it can use; check its CUDA version."
    return ""


def _name(name: str | Function) -> str:
    return repr(name if isinstance(name, str) else name.code)
