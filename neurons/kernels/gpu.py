"""The kernels on a GPU through CuPy, compiled by NVRTC at the first use: about 0.1 s for each.

They are launched on torch's current stream with the tensors' own memory. Nothing is copied and
nothing waits, so a CUDA graph can record them once they have run.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch

from .build import HERE, Function
from .cpu import InvalidCode

# no contraction, as for the CPU; without more, subnormals are kept and divisions and roots rounded
OPTIONS = ("-std=c++17", "--fmad=false")
BLOCK = 256
INSTALL = "pip install cupy-cuda12x or cupy-cuda13x, as torch.version.cuda begins with 12 or 13"
_KERNELS = {
    "group": ("group.cuh", "Group", "group_block(a, n, 1)"),
    "group_gradient": ("group.cuh", "GroupGradient", "group_gradient_block(a, n, 1)"),
    "tracking_gradient": ("tracking.cuh", "TrackingGradient", "tracking_gradient_block(a, n, 1)"),
    "sum": ("sum.cuh", "Sum", "sum_block(a, n, 1)"),
}
_SIGNGD = ("signgd.cuh", "SignGD", "signgd_block(a, Step(), n, 1)")
_STEP = """
struct Step {
  enum { arguments = Chosen::arguments };
  DEVICE void of(const float *const *in, const float *parameters, float eta, const float *sizes,
                 int lanes, const float *v, float *after, float *sigma) {
    signgd_step<Chosen, TIE>(in, parameters, eta, sizes, lanes, v, after, sigma);
  }
  DEVICE void target(const float *const *in, const float *parameters, int lanes, float *f) {
    signgd_target<Chosen>(in, parameters, lanes, f);
  }
};
"""
# what a kernel is compiled for, by the fields of its arguments: numbers, and pointers if given
_NUMBERS = {
    "INPUT_TYPE": "input_type",
    "OUTPUT_TYPE": "output_type",
    "OUTPUT": "output",
    "TIE": "fires_at_tie",
    "MEMBERS": "signs",
    "SPARSE": "sparse",
    "COUNTS": "counts",
    "SURROGATE": "surrogate",
    "DETACH_RESET": "detach_reset",
    "SIGNED_OUTPUT": "signed_output",
}
_POINTERS = {
    "KEEP_H": "h_seq",
    "KEEP_V": "v_seq",
    "KEEP_SPIKES": "spikes",
    "TAKES_BACK": "sent_last",
}
_TENSORS = {"SCALED": "scale", "BY_CHANNEL": "thetas"}


def constants(structure: ctypes.Structure) -> dict[str, int]:
    """The constants that values.cuh speaks of, 0 where the kernel has no use for one."""
    a: Any = structure
    found = {name: getattr(a, field, 0) for name, field in _NUMBERS.items()}
    found |= {name: int(bool(getattr(a, field, 0))) for name, field in _POINTERS.items()}
    for name, field in _TENSORS.items():
        found[name] = int(hasattr(a, field) and getattr(a, field).data is not None)
    found["INTEGRATED"] = sum(x is not None for x in getattr(a, "x_last", ()))
    return found


def source(name: str | Function, constants: dict[str, int]) -> str:
    """CUDA C of the kernel ``run(arguments)``, everything it includes in it."""
    if isinstance(name, Function):
        (file, structure, call), step = _SIGNGD, name.struct("Chosen") + _STEP
    else:
        (file, structure, call), step = _KERNELS[name], ""
    defined = "".join(f"#define {constant} {value}\n" for constant, value in constants.items())
    return (
        f"{defined}{_included(file)}\n{step}\n"
        f'extern "C" __global__ void __launch_bounds__({BLOCK}) run(const {structure} a) {{\n'
        "  const index_t n = (index_t)blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"  if (n < a.space.neurons) {call};\n"
        "}\n"
    )


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


class _Stream(NamedTuple):
    ptr: int


def run(name: str | Function, structure: ctypes.Structure, device: torch.device) -> None:
    """Launches the kernel on torch's current stream of the device.

    Raises InvalidCode with NVRTC's log where a row's C code does not compile.
    """
    import cupy
    import numpy

    blocks = -(-structure.space.neurons // BLOCK)  # type: ignore[attr-defined]
    by_value = numpy.frombuffer(bytes(structure), dtype=f"V{ctypes.sizeof(structure)}")
    stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
    with cupy.cuda.Device(device.index):
        kernel = _kernel(name, tuple(constants(structure).items()), device.index)
        kernel((blocks,), (BLOCK,), (by_value,), stream=stream)


@cache
def _kernel(name: str | Function, constants: tuple[tuple[str, int], ...], device: int) -> Any:
    """The kernel, loaded on the device, which is CuPy's current one.

    Not by cupy.RawKernel: that adds -ftz=true, which flushes subnormals to zero.
    """
    from cupy.cuda import compiler, function

    try:
        code, _ = compiler.compile_using_nvrtc(source(name, dict(constants)), OPTIONS)
    except compiler.CompileException as error:
        expression = name.code if isinstance(name, Function) else name
        raise InvalidCode(
            f"the C expression {expression!r} does not compile. Fix the row's code, or leave it "
            f"out and f is computed by torch. NVRTC says:\n{error}"
        ) from None
    module = function.Module()
    module.load(code)
    return module.get_function("run")


def missing(function: Function | None) -> str:
    """Why the kernels cannot run, empty where they can. Nothing is compiled to find out."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install it with {INSTALL}."
    if not cupy.is_available():
        return f"CuPy {cupy.__version__} finds no GPU that it can use; check its CUDA version."
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        return f"CuPy finds no NVRTC to compile with ({error}); pip install nvidia-cuda-nvrtc."
    return ""
