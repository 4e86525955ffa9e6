"""Launches on the CPU whose arguments lie ready, for tensors that lie in memory as before.

To lay out a kernel's arguments and to pass a torch operator takes longer than the kernel does for
a few thousand neurons. Both depend on the tensors' layouts alone, not on where they lie, so what
was laid out once is kept and given new addresses. A caller looks it up by ``layout``, and goes
through the operator unless ``unwatched`` says that operators are not observed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = (Tensor, nn.Parameter)
_pack = Struct("P").pack_into
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_trace = torch._C._get_tracing_state
_transforms = torch._C._functorch.peek_interpreter_stack
_profiled = torch.autograd._profiler_enabled
MOST = 512  # launches kept of one owner


def unwatched() -> bool:
    """Whether no compiler, tracer, profiler, mode or transform observes operators."""
    if torch.compiler.is_compiling():
        return False
    return not (
        _dispatch_modes()
        or _function_modes()
        or _trace()
        or _transforms()
        or _profiled()
        or forward_ad._current_level >= 0
    )


def layout(tensors: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """What a launch depends on of each tensor; None unless all are plain tensors on the CPU."""
    found: list[Any] = []
    for x in tensors:
        if type(x) not in _PLAIN or x.layout is not torch.strided or not x.is_cpu or x.is_neg():
            return None
        found += (x.shape, x.stride(), x.dtype)
    return tuple(found)


class Output(NamedTuple):
    """An output to be made, and where in the arguments its address is."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    place: int


class Prepared(NamedTuple):
    """A kernel's arguments without addresses, and where these are to be written."""

    arguments: ctypes.Structure
    run: Any  # of a library
    kernel: int
    neurons: int
    most_threads: int
    inputs: tuple[int, ...]
    outputs: tuple[Output, ...]
    sizes: int = 0  # where the step sizes are

    def __call__(self, inputs: Sequence[Tensor], sizes: bytes = b"") -> list[Tensor]:
        """The outputs, filled; ``sizes`` are the step sizes as the arguments hold them."""
        a = type(self.arguments).from_buffer_copy(self.arguments)
        for place, x in zip(self.inputs, inputs, strict=True):
            _pack(a, place, x.data_ptr())
        made = []
        for size, stride, dtype, place in self.outputs:
            y = torch.empty_strided(size, stride, dtype=dtype)
            _pack(a, place, y.data_ptr())
            made.append(y)
        if sizes:
            ctypes.memmove(ctypes.addressof(a) + self.sizes, sizes, len(sizes))
        threads = 1 if self.most_threads < 2 else min(torch.get_num_threads(), self.most_threads)
        self.run(self.kernel, ctypes.byref(a), self.neurons, threads)
        return made


def keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Remembers a value, and forgets all where there are too many."""
    if len(known) >= MOST:
        known.clear()
    known[key] = value
