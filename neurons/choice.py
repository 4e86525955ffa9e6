"""Sequences of steps, run by kernels if the device has any, otherwise by the definitions.

``backend`` is one of

=========  ====================================================================================
"auto"     the device's kernels; the definition if they are missing or do not apply.
           ``choose`` returns which, and why
"cpu"      the compiled kernels, for tensors on the CPU
"cupy"     the same sources compiled by CuPy, for tensors on a GPU
"torch"    the definition, step by step
=========  ====================================================================================

An explicit choice that is not available raises BackendUnavailable. Kernels keep float32 states and
agree with the definition to the bit if f consists of exactly rounded operations. If f needs exp,
erf, tanh or sqrt (which torch rounds in its own way on a CPU) the two differ by a few ulp, so a
spike differs only where v is that close to f(x). For functions without C code, torch computes f(x)
for all steps at once and passes it to the kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BackendUnavailable, InputError, KernelsWarning
from ..names import near
from .kernels import launch, operators
from .surrogate import Surrogate

BACKENDS = ("auto", "cpu", "cupy", "torch")
DEVICES = {"cpu": "cpu", "cupy": "cuda"}  # of the kernels of each backend
HALF = (torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """``backend`` "cpu", "cupy" or "torch", and why it is the definition that runs, if it is."""

    backend: str
    reason: str = ""


def _constant(function: Callable[..., str]) -> Callable[..., str]:
    """torch.compiler.assume_constant_result, which itself would import the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def choose(backend: str, device: str, against: str = "") -> Choice:
    """What runs for ``backend`` on a type of device. Raises BackendUnavailable, ValueError.

    ``against`` is why kernels do not apply, empty if they do.
    """
    if backend not in BACKENDS:
        known = f"backend is one of {', '.join(BACKENDS)}, but it is {backend!r}."
        raise ValueError(known + near(backend, BACKENDS))
    if backend == "torch":
        return Choice("torch", "it was asked for")
    name = next((name for name, home in DEVICES.items() if home == device), "")
    if backend not in ("auto", name):
        raise BackendUnavailable(
            f"backend={backend!r} runs on {DEVICES[backend]} tensors, but the input is on "
            f"{device}. Move it with .to({DEVICES[backend]!r}), or use backend='auto'."
        )
    if backend == "auto":
        against = against or (_told(name) if name else f"there are no kernels for {device}")
        return Choice("torch", against) if against else Choice(name)
    if against := against or _missing(name):
        raise BackendUnavailable(f"backend={backend!r}: {against}")
    return Choice(name)


class Backends(dict[str, str]):
    """Each backend, and the reason why it is not available, empty if it is."""

    def __repr__(self) -> str:
        lines = ['torch  the definitions; "auto" takes them where there is nothing better']
        for name, device in DEVICES.items():
            here = f'compiled kernels; "auto" takes them for {device} tensors'
            lines.append(f"{name:<7}{'missing: ' + self[name] if self[name] else here}")
        return "\n".join(lines)


def backends() -> Backends:
    """Each backend, and the reason why it is not available; empty if it is."""
    return Backends({"torch": "", **{name: _missing(name) for name in DEVICES}})


def runs(backend: str, device: str = "cpu") -> str:
    """What ``backend`` is on a type of device: of "auto" also what it takes, as in "auto (cpu)"."""
    if backend != "auto":
        return backend
    name = next((name for name, home in DEVICES.items() if home == device), "")
    return f"auto ({name if name and not _missing(name) else 'torch'})"


@_constant
def _missing(backend: str) -> str:
    return launch.PROVIDERS[DEVICES[backend]].missing(None)


@_constant
def _told(backend: str) -> str:
    """The same, and what is missing is said once in a process."""
    if reason := _missing(backend):
        _warn(backend, reason)
    return reason


@cache
def _warn(backend: str, reason: str) -> None:
    warnings.warn(
        f"the neurons run step by step in torch, which is slower: {reason}",
        KernelsWarning,
        stacklevel=2,
    )


@_constant
def uncompiled(function: str, backend: str) -> str:
    """Why the C code of a function cannot be run, empty if it can."""
    return launch.PROVIDERS[DEVICES[backend]].missing(launch.function_of(function))


def sum_choice(backend: str, like: Tensor) -> Choice:
    """What sums up inputs of the type and on the device of ``like``, as ``signgd_choice``."""
    return choose(backend, like.device.type, against_input(like.dtype))


def against_input(dtype: torch.dtype) -> str:
    if dtype not in (torch.float32, *HALF):
        return f"the kernels keep float32 states, but the input is {dtype}; pass x.float()."
    return ""


def against_types(states: Sequence[Tensor], output: torch.dtype) -> str:
    if any(a.dtype != torch.float32 for a in states):
        return "the kernels keep float32 states, but these are float64; reset the neuron."
    if output not in launch.TYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in launch.TYPES)
        return f"the kernels write {names}, but dtype is {output}."
    return ""


def against_gradient(
    surrogate: Callable[[Tensor], Tensor] | None,
    keeps: bool,
    **parameters: float | Tensor,
) -> str:
    """``parameters``: those that a kernel reads without a gradient of them."""
    if surrogate is None:
        return ""
    if not isinstance(surrogate, Surrogate):
        kind = type(surrogate).__name__
        return f"the kernels have the gradients of Surrogate, not of {kind}; use backend='torch'."
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.requires_grad:
            what = name.replace("_", " ")
            return f"the kernels have no gradient of the {what}; use backend='torch'."
    if keeps:
        return (
            "the kernels do not record v_seq or spikes when a gradient is required; use "
            "backend='torch', or do not record them."
        )
    return ""


def check_types(name: str, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    for a in inputs:
        if not a.is_floating_point():
            raise InputError(
                f"{name}: inputs are floating-point, but one is {a.dtype}; use x.float()."
            )
    for a in states:
        if a.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{name}: states are float32, or float64 for float64 inputs, but one is {a.dtype}. "
                "Convert it with .float(), or reset the neuron."
            )


def running_sum(x_seq: Tensor, start: Tensor, backend: str = "auto") -> Tensor:
    """y(t) = y(t - 1) + x(t), y(0) = start: [T, ...] in the type of start, step by step."""
    against = against_input(x_seq.dtype)
    if start.dtype != torch.float32 or x_seq.shape[1:] != start.shape:
        against = "the kernel sums into a float32 start of the shape of a step."
    if choose(backend, x_seq.device.type, against).backend != "torch":
        return operators.running_sum(x_seq, start)
    sums = []
    for x in x_seq:
        start = start + x
        sums.append(start)
    return torch.stack(sums)
