"""Build a spiking module from a description, run it, and measure how close it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .inputs import Batch, Inputs, batch_of, call, samples_of
from .metrics import METRICS, Choices, Comparison, paired, squared_distance, squared_norm
from .modes import eval_mode
from .module import NetworkModule, NetworkState
from .network import SpikingNetwork, each_leaf
from .progress import progress
from .registry import SIMULATORS
from .sizing import at_its_size
from .streams import check_stream, completed, over_frames, run_frames
from .structures import plain

# the largest value of a block of time steps: on CPUs what caches and the allocator serve best
BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


def build(
    network: SpikingNetwork, simulator: str = "spikingjelly", **options: Any
) -> NetworkModule:
    """The network as a module of a simulator's own nodes.

    ``simulator`` is "spikingjelly", "norse" or that of an installed package. ``options`` are its
    own, of ours ``spikes="decoded"`` (default: what passes is what a receiver has decoded) or
    ``"signed"`` (weighted spikes pass, each node integrates), and ``kernels="auto"``, what runs the
    neurons (``backends``). Raises BackendUnavailable where the simulator is unknown or not
    installed.
    """
    if "backend" in options:
        warnings.warn(
            'build(network, backend=...) is now build(network, simulator=...); "backend" goes with '
            "the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        simulator = options.pop("backend")
    module: NetworkModule = SIMULATORS.find(simulator).build(network, **options)
    return module


def check_steps(time_steps: int | Sequence[int]) -> tuple[int, ...]:
    several = isinstance(time_steps, Iterable)
    steps: tuple[Any, ...] = tuple(time_steps) if several else (time_steps,)  # type: ignore[arg-type]
    if not steps or any(not isinstance(t, int) or isinstance(t, bool) or t < 1 for t in steps):
        raise InputError(
            f"time_steps is an integer of at least 1 or several of them, but it is {time_steps!r}."
        )
    return steps


def planned_steps(snn: Any) -> int:
    """The T that a network was planned for; 1 for what is none, which ``check_run`` refuses."""
    return snn.network.time_steps if isinstance(snn, NetworkModule) else 1


@torch.no_grad()
@at_its_size(lambda *_, sequence=False, **__: bool(sequence))
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

    x is [B, ...], one static input, or [T, B, ...] with ``sequence=True``; of a network with
    several inputs a dict of such tensors by the names of the model's arguments, of which whole
    numbers and truth values (token ids, masks) are the same at every step. Unless given,
    ``time_steps`` are the T that the network was planned for, of a sequence all its steps. Time
    passes in chunks of ``chunk`` steps (by default as many as keep one value of a block within 16
    MiB, or 512 MiB on a GPU), so memory follows the chunk and not T. States are reset before and
    after. Raises InputError.

    With ``keep_state=True`` x is a stream, frames [F, B, ...] of B streams side by side, each shown
    for max(time_steps) steps, those of the plan unless given: {t: outputs [F, B, ...]} after t
    steps of each frame. The state is kept from frame to frame and from call to call, until
    ``snn.reset()`` or a run without it (``docs/streams.md``).
    """
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
    """T of a sequence [T, B, ...], 0 of what is none."""
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


@dataclass(frozen=True)
class Evaluation:
    """One row for each T: what ``evaluate`` measured on ``samples`` samples.

    ``accuracy`` and ``agreement`` (equal predictions) are fractions, None where labels or a
    reference are absent, or the output is no classifier's: one tensor [B, classes] of two or more;
    ``error`` is the relative output error, the norm of the difference over the norm of the
    reference's outputs. ``outputs`` holds, for each output, each metric's values: where metrics
    were asked for, or the output is no classifier's.
    """

    time_steps: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    agreement: tuple[float | None, ...]
    error: tuple[float | None, ...]
    reference_accuracy: float | None
    samples: int
    outputs: Mapping[str, Mapping[str, tuple[float | None, ...]]] = field(default_factory=dict)

    def __add__(self, other: Evaluation) -> Evaluation:
        """The rows of both, for networks planned for different T on the same samples."""
        return Evaluation(
            self.time_steps + other.time_steps,
            self.accuracy + other.accuracy,
            self.agreement + other.agreement,
            self.error + other.error,
            self.reference_accuracy,
            self.samples,
            {
                output: {name: values + other.outputs[output][name] for name, values in own.items()}
                for output, own in self.outputs.items()
            },
        )

    def to_dict(self) -> dict[str, Any]:
        found = self._totals()
        if self.outputs:
            found["outputs"] = self._by_output()
        return found

    def _by_output(self) -> list[dict[str, Any]]:
        """A row for each output at each T."""
        return [
            {"T": t, "output": output, **{name: values[i] for name, values in own.items()}}
            for i, t in enumerate(self.time_steps)
            for output, own in self.outputs.items()
        ]

    def _totals(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "reference_accuracy": self.reference_accuracy,
            "rows": [
                {"T": t, "accuracy": a, "agreement": g, "error": e}
                for t, a, g, e in zip(
                    self.time_steps, self.accuracy, self.agreement, self.error, strict=True
                )
            ],
        }

    def __str__(self) -> str:
        if not self.outputs:
            return self._table()
        labelled = any(value is not None for value in self.accuracy)
        return "\n".join([*([self._table(), ""] if labelled else []), self._table_by_output()])

    def _table_by_output(self) -> str:
        names = list(dict.fromkeys(name for own in self.outputs.values() for name in own))
        rows = [
            [str(row["T"]), row["output"], *(_shown(name, row.get(name)) for name in names)]
            for row in self._by_output()
        ]
        return _aligned([["T", "output", *names], *rows])

    def _table(self) -> str:
        lines = ["     T  accuracy  agreement  output error"]
        for row in self.to_dict()["rows"]:
            lines.append(
                f"{row['T']:>6}  {_percent(row['accuracy']):>8}  {_percent(row['agreement']):>9}"
                f"  {'-' if row['error'] is None else format(row['error'], '.4f'):>12}"
            )
        if self.reference_accuracy is not None:
            lines.append(f"source  {_percent(self.reference_accuracy):>8}")
        return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _shown(metric: str, value: float | None) -> str:
    if metric in METRICS and METRICS[metric].percent:
        return _percent(value)
    return "-" if value is None else f"{value:.5g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns to the right; what an output is called to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(widths[0], 6)
    return "\n".join(
        "  ".join(f"{text:{'<' if i == 1 else '>'}{widths[i]}}" for i, text in enumerate(row))
        for row in rows
    )


@torch.no_grad()
def evaluate(
    snn: NetworkModule,
    loader: Iterable[Any],
    time_steps: int | Sequence[int] | None = None,
    *,
    reference: nn.Module | None = None,
    metric: Choices = None,
    chunk: int | None = None,
    keep_state: bool = False,
) -> Evaluation:
    """Accuracy, agreement with ``reference`` and relative output error at each T.

    ``time_steps`` are the T that the network was planned for unless given. ``loader`` yields
    batches (x, y) or x: x [B, ...], y [B] class indices, which count where the output is one tensor
    [B, classes]. The reference is evaluated in eval mode, its mode comes back.

    ``metric`` compares outputs of any task with the reference's, each output of tuples and dicts by
    itself: names of ``METRICS`` (``core/metrics.py``), functions ``(have, want) -> float`` of all
    samples, one or several, or a dict of these by output. Where the output is no classifier's the
    usual ones of its shape are measured unless given. With ``keep_state`` the loader yields one
    frame [B, ...] after another of B streams, and the state goes on from each to the next; it is
    forgotten before and after. A network that feeds itself (``carries``) is then compared with
    ``snn.source`` alone, which is run over the frames with its own memory. Raises InputError for an
    empty loader, a metric that does not fit an output, and another reference of such a network.
    """
    if metric is not None and reference is None:
        raise InputError(
            "a metric compares with the source network; pass reference=model, or "
            "reference=snn.source for the one that the description holds."
        )
    steps = check_steps(planned_steps(snn) if time_steps is None else time_steps)
    comparison = Comparison(steps, metric)
    correct = dict.fromkeys(steps, 0)
    same = dict.fromkeys(steps, 0)
    squared = dict.fromkeys(steps, 0.0)
    norm, samples, labelled, right, classes = 0.0, 0, 0, 0, 0
    one = partial(run, chunk=chunk)
    if keep_state:
        snn.reset()
        reference = over_frames(reference, snn)
        one = partial(_next_frame, chunk=chunk)
    try:
        for batch in progress(loader, "evaluating", _length(loader)):
            x, y = _pair(batch)
            outputs = one(snn, x, steps)
            classes = _classes(outputs[steps[0]])
            y = _labels(x, y, classes, metric)
            samples += len(x)
            target: Any = None
            if reference is not None:
                with eval_mode(reference):
                    # which may work in place on its input
                    target = plain(call(reference, x.clone()))
                paired(outputs[steps[0]], target)
                norm += squared_norm(target)
            if y is not None:
                labelled += len(x)
                right += 0 if target is None else int((target.argmax(1) == y).sum())
            for t in steps:
                if y is not None:
                    correct[t] += int((outputs[t].argmax(1) == y).sum())
                if target is not None:
                    squared[t] += squared_distance(outputs[t], target)
                if target is not None and classes:
                    same[t] += int((outputs[t].argmax(1) == target.argmax(1)).sum())
            if target is not None and not (classes and metric is None):
                comparison.add(outputs, target)
    finally:
        if keep_state:
            snn.reset()
    if samples == 0:
        raise InputError("the loader is empty; nothing can be evaluated.")
    has_reference = reference is not None
    return Evaluation(
        steps,
        tuple(correct[t] / labelled if labelled else None for t in steps),
        tuple(same[t] / samples if has_reference and classes else None for t in steps),
        tuple((squared[t] / norm) ** 0.5 if has_reference and norm else None for t in steps),
        right / labelled if labelled and has_reference else None,
        samples,
        comparison.result(),
    )


def _next_frame(
    snn: NetworkModule, x: Any, steps: Sequence[int], chunk: int | None
) -> dict[int, Any]:
    """The outputs [B, ...] of the next frame [B, ...] of streams, after each of ``steps``."""
    tensors = x.tensors if isinstance(x, Inputs) else None
    frame = x[None] if tensors is None else {k: v.unsqueeze(0) for k, v in tensors.items()}
    found = run(snn, frame, steps, sequence=True, keep_state=True, chunk=chunk)
    return {t: each_leaf(y, lambda leaf: leaf[0]) for t, y in found.items()}


def _classes(output: Any) -> int:
    """How many classes a classifier's output [B, classes] has; 0 where it is none."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return 0
    return output.shape[1]


def _labels(x: Batch, y: Any, classes: int, metric: Choices) -> Tensor | None:
    """y where it is labels: of a classifier, and not what a metric's output is trained for."""
    if y is None or not classes or (metric is not None and y.is_floating_point()):
        return None
    if tuple(y.shape) != (len(x),):
        shown = x if isinstance(x, Inputs) else list(x.shape)
        raise InputError(
            f"labels are class indices [B], one for each sample, but x is {shown} and "
            f"y is {list(y.shape)}. Targets of other tasks are left aside where metric= is given."
        )
    return y  # type: ignore[no-any-return]


def _pair(batch: Any) -> tuple[Any, Tensor | None]:
    """(x, y) of a loader's batch: x, (x,) or (x, y); x a tensor or a dict of tensors."""
    if not isinstance(batch, (tuple, list)):
        return batch_of(batch), None
    if len(batch) not in (1, 2):
        raise InputError(f"a batch is x or (x, y), but the loader gives {len(batch)} values.")
    return batch_of(batch[0]), batch[1] if len(batch) == 2 else None


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None
