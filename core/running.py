"""Build a spiking module from a description, and run it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..names import check_options, named_arguments
from .given import one_batch
from .inputs import Batch, Inputs, batch_of, samples_of
from .module import NetworkModule, NetworkState
from .network import SpikingNetwork, each_leaf, leaves
from .progress import progress
from .registry import SIMULATORS
from .samples import inputs_of, is_whole
from .sizing import at_its_size
from .streams import check_stream, completed, run_frames

# the largest value of a block of time steps: on CPUs what caches and the allocator serve best
BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


def build(
    network: SpikingNetwork, simulator: str = "spikingjelly", **options: Any
) -> NetworkModule:
    """The network as a module of a simulator's own nodes.

    ``simulator`` is "spikingjelly", "norse" or that of an installed package. ``options`` are those
    of the simulator; for the built-in ones ``spikes="decoded"`` (default: decoded values pass
    between layers) or ``"signed"`` (weighted spikes pass, each node integrates), and
    ``kernels="auto"``, what runs the neurons (``backends``). Raises BackendUnavailable if the
    simulator is unknown or not installed.
    """
    if "backend" in options:
        warnings.warn(
            'build(network, backend=...) is now build(network, simulator=...); "backend" will be '
            "removed in the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        simulator = options.pop("backend")
    found = SIMULATORS.find(simulator).build
    if not isinstance(network, SpikingNetwork):
        raise InputError(
            f"build takes the SpikingNetwork that convert returned, not {type(network).__name__}; "
            "convert the model first: build(convert(model, data))."
        )
    check_options(f"build(network, {simulator!r})", found, options)
    module: NetworkModule = found(network, **options)
    return module


def check_steps(time_steps: int | Sequence[int]) -> tuple[int, ...]:
    several = isinstance(time_steps, Iterable)
    steps: tuple[Any, ...] = tuple(time_steps) if several else (time_steps,)  # type: ignore[arg-type]
    if not steps or any(not isinstance(t, int) or isinstance(t, bool) or t < 1 for t in steps):
        array = hasattr(time_steps, "shape")  # labels, as other libraries take them
        shown = f"a {type(time_steps).__name__}" if array else repr(time_steps)
        fix = " Labels come with the samples: pass the pair (x, y)." if array else ""
        raise InputError(
            f"time_steps is an integer of at least 1 or several of them, but it is {shown}.{fix}"
        )
    return steps


def planned_steps(snn: Any) -> int:
    """The T that a network was planned for; 1 for other modules, which ``check_run`` refuses."""
    return snn.network.time_steps if isinstance(snn, NetworkModule) else 1


@named_arguments
@torch.no_grad()
def run(
    snn: NetworkModule,
    x: Any,
    time_steps: int | Sequence[int] | None = None,
    *,
    sequence: bool = False,
    keep_state: bool = False,
    chunk: int | None = None,
) -> dict[int, Any]:
    """The decoded output after each of ``time_steps``, from one run: {T: output}.

    x is [B, ...], one static input, or [T, B, ...] with ``sequence=True``; for a network with
    several inputs a dict of such tensors by the names of the model's arguments, where integers and
    booleans (token ids, masks) are the same at every step. Unless given, ``time_steps`` is the T
    that the network was planned for, for a sequence its number of steps. Steps run in chunks of
    ``chunk`` (by default as many as keep one value of a block within 16 MiB, or 512 MiB on a GPU),
    so memory depends on the chunk and not on T. States are reset before and after. Of a pair (x, y)
    x is run; a ``Dataset``, a DataLoader and a list of batches are run batch by batch, and the
    outputs are concatenated. Raises InputError.

    With ``keep_state=True`` x is a stream, frames [F, B, ...] of B streams side by side, each shown
    for max(time_steps) steps, those of the plan unless given: {t: outputs [F, B, ...]} after t
    steps of each frame. The state is kept from frame to frame and from call to call, until
    ``snn.reset()`` or a run without it (``docs/streams.md``).
    """
    x = one_batch(x)
    options: dict[str, Any] = {"sequence": sequence, "keep_state": keep_state, "chunk": chunk}
    if is_whole(x) or isinstance(x, Inputs):
        return _run(snn, x, time_steps, **options)
    if sequence or keep_state:
        raise InputError(
            "a sequence [T, B, ...], or a stream [F, B, ...], is one tensor, or a dict of such by "
            f"input, not {type(x).__name__}; run one after the other."
        )
    found = [_run(snn, batch, time_steps, **options) for batch in inputs_of(x)]
    if not found:
        raise InputError("the data hold no samples; nothing can be run.")
    return {t: _joined([each[t] for each in found]) for t in found[0]}


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs [B, ...] of several batches as those of one."""
    parts = [leaves(output) for output in outputs]
    together = iter([torch.cat(each) for each in zip(*parts, strict=True)])
    return each_leaf(outputs[0], lambda _: next(together))


@at_its_size(lambda *_, sequence=False, **__: bool(sequence))
def _run(
    snn: NetworkModule,
    x: Any,
    time_steps: int | Sequence[int] | None,
    sequence: bool,
    keep_state: bool,
    chunk: int | None,
) -> dict[int, Any]:
    if keep_state:
        return _run_kept(snn, x, time_steps, sequence, chunk)
    if time_steps is None:
        time_steps = length_of(x) if sequence else 0
        time_steps = time_steps or planned_steps(snn)
    steps = check_steps(time_steps)
    last = max(steps)
    _check_chunk(chunk)
    x = check_run("run", snn, x, last, sequence)
    if chunk is None:
        batch = samples_of(x, int(sequence))
        chunk = default_chunk(snn.network, batch, x.device.type)
        chunk = -(-last // -(-last // chunk))  # as many chunks, of about the same size
    wanted = set(steps)
    found: dict[int, Any] = {}
    static: dict[str, Tensor] = {}
    state: NetworkState | None = None
    snn.reset()
    try:
        with snn.for_sequences():
            for start in progress(range(0, last, chunk), "simulating", -(-last // chunk)):
                size = min(chunk, last - start)
                if sequence:
                    block, state = snn.advance(steps_of(x, start, start + size), state=state)
                else:
                    block, state = snn.advance(x, size, static, state)
                for t in wanted & set(range(start + 1, start + size + 1)):
                    found[t] = each_leaf(block, partial(_at, step=t - start - 1))
    finally:
        snn.reset()
    return {t: found[t] for t in steps}


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise InputError(f"chunk is a number of steps, at least 1, but it is {chunk!r}.")


def _run_kept(
    snn: NetworkModule,
    x: Any,
    time_steps: int | Sequence[int] | None,
    sequence: bool,
    chunk: int | None,
) -> dict[int, Any]:
    if not sequence:
        raise InputError(
            "keep_state=True is for frames x [F, B, ...]; pass sequence=True with it, and a single "
            "frame as x.unsqueeze(0), or to sg.watch(snn)."
        )
    steps = check_steps(planned_steps(snn) if time_steps is None else time_steps)
    _check_chunk(chunk)
    if isinstance(snn, NetworkModule):
        check_stream("run", snn)
        x = completed(snn, x, 1)
    x = check_run("run", snn, x, 1, True)
    chunk = chunk or default_chunk(snn.network, samples_of(x, 1), x.device.type)
    return run_frames(snn, x, steps, chunk)


def length_of(x: Any) -> int:
    """T of a sequence [T, B, ...], 0 for anything else."""
    x = batch_of(x)
    tensors = list(x.tensors.values()) if isinstance(x, Inputs) else [x]
    first = tensors[0] if tensors else None
    return len(first) if isinstance(first, Tensor) and first.dim() else 0


def steps_of(x: Batch, start: int, stop: int) -> Batch:
    """Some steps of a sequence."""
    return x.steps(start, stop) if isinstance(x, Inputs) else x[start:stop]


def check_run(name: str, snn: NetworkModule, x: Any, last: int, sequence: bool) -> Any:
    """x as the network takes it for ``last`` steps; raises InputError, naming the function."""
    if not isinstance(snn, NetworkModule):
        raise InputError(
            f"{name} takes the module that build(network) returns, not {type(snn).__name__}."
        )
    if snn.mode != "snn":
        raise InputError(
            f'{name} simulates spikes, but mode is {snn.mode!r}; set mode = "snn", or call '
            "module.ann(x) for the source network."
        )
    x = one_batch(x)
    if not isinstance(x, (Tensor, Inputs)) and not is_whole(x):
        raise InputError(
            f"{name} takes one batch x [B, ...], not {type(x).__name__}; pass one of its batches, "
            "such as next(iter(loader))."
        )
    x = snn.check_input(x, leading=int(sequence))
    # a sum is finite only where all of it is; the other way round it may overflow
    for value in x.floats if isinstance(x, Inputs) else [x]:
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            raise InputError("the input holds NaN or infinity; remove or fix those samples first.")
    if sequence and samples_of(x) < last:
        raise InputError(f"the sequence has {samples_of(x)} steps, but time_steps asks for {last}.")
    return x


def _at(values: Tensor, step: int) -> Tensor:
    return values[step].clone()


def default_chunk(network: SpikingNetwork, batch: int, device: str = "cpu") -> int:
    """Steps in a block such that the largest value of one stays within the limit."""
    largest = max(1, 4 * max(batch, 1) * network.most_values)
    return max(1, BLOCK_BYTES.get(device, BLOCK_BYTES["cpu"]) // largest)
