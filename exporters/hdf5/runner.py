"""Runs a description with only NumPy and h5py: the independent check of every export.

Step by step and node by node, by the equations of ``docs/format.md``. Two views:

"spike"     signGD networks: what passes is the weighted spikes -eta(t) scale sigma(t) of one step,
            through the linear part of every operation; a neuron integrates them to its input x,
            which begins with what the resting values and the biases make of it
"decoded"   every other network: signGD and subgradient neurons pass what a receiver has decoded,
            group neurons the output of the step, and linear operations keep their bias

``delay`` is that of a chip: a spike reaches the next layer one step later. ``lags`` says for each
node by how many steps it runs behind the input: the neurons on the longest path to it. A value on
a shorter path is held back by the difference, so that what meets at a node is of the same step.

``keep_state`` is a stream's: each frame of a clip is shown for T steps, which are counted from 1
again, while v and x are kept from frame to frame and from call to call (``runner_streams.py``). In
the spike view of a plan for streams v(t) - v(t - 1) passes, and its sums are float64 whatever the
type of v, so that x stays W v + b.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...core.checks import is_array
from ...core.structures import fill, leaves
from ...errors import FormatError, InputError, SignGDError
from .content import Content, Record
from .kinds import ANEW, KINDS, sparse
from .layout import read
from .resizing import at_size
from .runner_functions import Array, Function, find_function, step_size
from .runner_operations import apply, apply_linear, resolve
from .runner_signs import dense_step, levels, mixed_step, sparse_step
from .runner_statics import compute
from .runner_streams import (
    Kept,
    by_frame,
    check_begin,
    check_clip,
    check_kinds,
    check_next,
    check_view,
    with_fed,
)

__all__ = ["Result", "Runner"]

VIEWS = ("spike", "decoded")


@dataclass(frozen=True)
class Result:
    """The result of a run of ``steps`` time steps.

    ``outputs``: {T: decoded output after T steps of the network}, in the source network's
    structure. ``spikes``: for each neuron [steps, B, ...], bool where sigma is +1 (signGD) or s is
    1 (subgradient); of m > 1 signs in a step a uint8, whose bits they are, the first sign's the
    highest; with a dead zone an int32, the bits of the members that fired +1 in its low half, of
    those that fired -1 in its high one, 0 in silence (``runner_signs.py``); counts of the members
    that fire (group, negative for negative spikes); the output itself (growth).
    ``values``, if they were asked for: v(t) of signGD and subgradient
    neurons, the membrane potential of group neurons, f of the sums so far (growth), likewise.

    With ``delay`` the row t of a neuron is its step t - ``lags[name]``; before its first step and
    after its last nothing fires. Outputs are there ``output_lag`` steps later.

    With ``keep_state`` outputs are [F, B, ...], those after T steps of each frame, and the steps of
    spikes and values those of all frames, one after the other.
    """

    outputs: dict[int, Any]
    spikes: dict[str, Array]
    values: dict[str, Array]
    lags: dict[str, int]
    output_lag: int
    steps: int


@dataclass
class _State:
    """Of one neuron, encoder or average; ``t`` steps are done."""

    v: Array
    x: list[Array] = field(default_factory=list)  # sums of inputs: spike view, growth
    t: int = 0
    buffer: Array | None = None  # the momentum's memory, or the spikes a signed group has sent


class Runner:
    """A description and the precision it is run in.

    ``path`` is a file, or a ``Content`` read before. ``functions`` gives the caller's own
    nonlinearities, as functions of arrays, by name. Raises FormatError as ``load`` does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Content,
        dtype: DTypeLike = np.float64,
        functions: Mapping[str, Function] | None = None,
    ) -> None:
        self.content = path if isinstance(path, Content) else read(path)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise InputError(f"a runner computes in float32 or float64, not in {self.dtype}.")
        self.nodes = tuple(self._typed(node) for node in self.content.nodes)
        self.functions = {
            node.name: find_function(node["function"], functions or {}, node.name)
            for node in self.nodes
            if KINDS[node.kind].computes
        }
        self._own = functions
        self.neurons = tuple(node.name for node in self.nodes if KINDS[node.kind].neuron)
        self.output_names = leaves(self.content.outputs)
        self.lags, self.output_lag = _lags(self.nodes, self.output_names)
        self._stream: tuple[Runner, Kept] | None = None

    @property
    def view(self) -> str:
        """The spike view where all neurons are signGD, else the decoded one."""
        return "decoded" if self._decoded_alone() else "spike"

    def _decoded_alone(self) -> list[str]:
        """Nodes that weighted spikes cannot pass."""
        return [node.name for node in self.nodes if not KINDS[node.kind].spike_view(node)]

    def run(
        self,
        x: Any,
        time_steps: int | Iterable[int] | None = None,
        *,
        delay: bool = False,
        sequence: bool = False,
        keep_state: bool = False,
        view: str | None = None,
        record: bool = True,
        values: bool = False,
        input_spikes: Any = None,
    ) -> Result:
        """The decoded outputs after each of ``time_steps``, and all spikes on the way there.

        ``time_steps`` are the T in the file unless given, of a sequence all its steps.

        x is [B, ...], one static input, or [T, B, ...] with ``sequence``; of several inputs a dict
        of such arrays by name, whole numbers the same at every step. ``record`` and ``values`` say
        what is kept of every step. ``input_spikes`` [T, B, ...] are those of a Poisson encoder,
        in {-scale, 0, scale}: its random numbers are torch's.

        With ``keep_state`` a sequence is a clip [F, B, ...]: each frame is shown for the largest of
        ``time_steps``, by default the T in the file, and the state is kept from frame to frame and
        for the next such call, until ``reset()``. Inputs that the network feeds itself are not
        given, but for a value to begin with, in a call with the first frame alone. Raises
        InputError, FormatError.
        """
        if keep_state:
            return self._run_clip(
                x, time_steps, delay, sequence, view, record, values, input_spikes
            )
        given = self._given(x)
        sized = self._at_size_of(given, sequence)
        if sized is not self:
            return sized.run(
                x,
                time_steps,
                delay=delay,
                sequence=sequence,
                view=view,
                record=record,
                values=values,
                input_spikes=input_spikes,
            )
        if time_steps is None:
            time_steps = len(next(iter(given.values()))) if sequence else self.content.time_steps
        steps = _checked_steps(time_steps)
        view = self._checked_view(view)
        inputs = {
            node.name: self._checked_input(node, given[node.name], sequence, max(steps))
            for node in self.content.of("input")
        }
        if len({x.shape[: 1 + sequence] for x in inputs.values()}) > 1:
            shapes = {name: list(x.shape) for name, x in inputs.items()}
            raise InputError(f"the inputs differ in their number of samples: {shapes}.")
        coded = self._checked_spikes(input_spikes, inputs, sequence, max(steps))
        # an overflow of exp, or a root that is no number, is the function's value and no event
        with np.errstate(all="ignore"):
            run = _Run(self, inputs, int(sequence), view, coded, delay, max(steps))
            return run.result(run.all_steps(steps, record, values))

    def reset(self) -> None:
        """Resets the stream: the next clip starts from the initial state."""
        self._stream = None

    def _run_clip(
        self,
        x: Any,
        time_steps: int | Iterable[int] | None,
        delay: bool,
        sequence: bool,
        view: str | None,
        record: bool,
        values: bool,
        input_spikes: Any,
    ) -> Result:
        check_kinds(self.content, sequence, delay)
        self._checked_spikes(input_spikes, {}, sequence, 0)  # Poisson coding runs on no streams
        steps = _checked_steps(self.content.time_steps if time_steps is None else time_steps)
        view = self._checked_view(check_view(self.content, view, self.view))
        shown = max(steps)
        given = self._given(x, self.content.carries)
        check_begin(self.content, given, self._stream is None)
        if self._stream is not None:
            check_next(given, self._stream[1], view)
        runner, kept = self._stream or (self._at_size_of(given, True), None)
        inputs = {
            node.name: runner._checked_input(node, given[node.name], True, 0)
            for node in runner.content.of("input")
            if node.name in given
        }
        frames, _ = check_clip(inputs)
        inputs = with_fed(runner.content, inputs, kept, self.dtype)
        with np.errstate(all="ignore"):
            run = _Run(runner, inputs, shown, view, None, delay, frames * shown, True, kept)
            asked = [frame * shown + t for frame in range(frames) for t in steps]
            outputs = by_frame(run.all_steps(asked, record, values), steps, frames)
        self._stream = runner, run.kept()
        return run.result(outputs)

    def _at_size_of(self, given: Mapping[str, Array], sequence: bool) -> Runner:
        """A runner of samples of these shapes, where other sizes were checked."""
        sizes = self.content.provenance.get("sizes")
        own = {node.name: tuple(node["shape"][1:]) for node in self.content.of("input")}
        shapes = own | {name: x.shape[1 + sequence :] for name, x in given.items()}
        ranks = all(len(shapes[name]) == len(shape) for name, shape in own.items())
        if sizes is None or shapes == own or not ranks:
            return self
        with np.errstate(all="ignore"):
            content = at_size(self.content, shapes, self.functions, self.dtype)
        return Runner(content, self.dtype, self._own)

    def _typed(self, node: Record) -> Record:
        """Floating-point tensors in the runner's precision."""

        def typed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: typed(item) for key, item in value.items()}
            floating = isinstance(value, np.ndarray) and value.dtype.kind == "f"
            return value.astype(self.dtype) if floating else value

        return Record(node.kind, {name: typed(value) for name, value in node.fields.items()})

    def _checked_view(self, view: str | None) -> str:
        if view is None:
            return self.view
        if view not in VIEWS:
            raise InputError(f"view is one of {', '.join(VIEWS)}, but it is {view!r}.")
        if view == "spike" and self.view != "spike":
            raise InputError(
                "the spike view requires signGD neurons only, but there are "
                f'{", ".join(self._decoded_alone()[:5])}. Take view="decoded".'
            )
        return view

    def _given(self, x: Any, fed: Iterable[str] = ()) -> dict[str, Array]:
        """The values passed in, by the names of the inputs except those that are ``fed``."""
        names = [node.name for node in self.content.of("input") if node.name not in fed]
        if not isinstance(x, Mapping):
            x = {names[0]: x}
        if set(x) - set(fed) != set(names):
            lacking = set(names) - set(x)
            feeds = lacking and lacking <= set(self.content.carries)
            hint = " With sequence=True, keep_state=True it feeds the rest itself." if feeds else ""
            raise InputError(
                f"the network takes {', '.join(names)}, but x holds {', '.join(x)}; pass a dict of "
                f"these.{hint}"
            )
        return {name: np.asarray(value) for name, value in x.items()}

    def _checked_input(self, node: Record, x: Array, sequence: bool, last: int) -> Array:
        expected, leading, dtype = list(node["shape"][1:]), int(sequence), node["dtype"]
        what = "the input" if self.content.plain else f"the input {node.name!r}"
        if dtype == "float" and x.dtype.kind != "f":
            raise InputError(f"{what} is floating-point, but it is {x.dtype}; use x / 255.0.")
        if dtype != "float" and x.dtype.kind not in ("b" if dtype == "boolean" else "biu"):
            raise InputError(f"{what} holds {dtype} values, but it is {x.dtype}.")
        if x.ndim < 1 + leading or list(x.shape[1 + leading :]) != expected:
            time = "T, " * leading
            raise InputError(
                f"{what} is [{time}B, {', '.join(map(str, expected))}], but x is {list(x.shape)}."
            )
        if not np.isfinite(x).all():
            raise InputError(f"{what} holds NaN or infinity; remove or fix those samples first.")
        if sequence and len(x) < last:
            raise InputError(f"the sequence has {len(x)} steps, but time_steps asks for {last}.")
        if sequence and dtype != "float" and (x != x[:1]).any():
            raise InputError(f"{what} holds {dtype} values, which are the same at every step.")
        kinds = {"float": self.dtype, "integer": np.dtype(np.int64), "boolean": np.dtype(bool)}
        return x.astype(kinds[dtype])

    def _checked_spikes(
        self, spikes: Any, inputs: Mapping[str, Array], sequence: bool, last: int
    ) -> Array | None:
        poisson = [n for n in self.content.of("encoder") if n["coding"] == "poisson"]
        if not poisson:
            if spikes is not None:
                raise InputError(
                    "input_spikes are those of a Poisson encoder, but the network has none."
                )
            return None
        if spikes is None:
            raise FormatError(
                f"'{poisson[0].name}' codes the input as Poisson spikes drawn with torch's "
                "generator, which NumPy does not have; pass run(..., input_spikes=[T, B, ...]), "
                "from neurons.poisson_spikes or your own."
            )
        if len(poisson) > 1:
            raise FormatError(
                "several Poisson-coded inputs cannot be replayed; use Poisson coding for one of "
                "them."
            )
        x = inputs[poisson[0]["inputs"][0]]
        x = x[0] if sequence else x
        spikes = np.asarray(spikes, self.dtype)
        if spikes.shape[1:] != x.shape or len(spikes) < last:
            raise InputError(
                f"input_spikes are [T, B, ...] with T >= {last} and steps of {list(x.shape)}, but "
                f"they are {list(spikes.shape)}."
            )
        return spikes


def _checked_steps(time_steps: int | Iterable[int]) -> tuple[int, ...]:
    steps = tuple(time_steps) if isinstance(time_steps, Iterable) else (time_steps,)
    whole = [isinstance(t, (int, np.integer)) and not isinstance(t, bool) for t in steps]
    if not steps or not all(whole) or min(steps) < 1:
        raise InputError(f"time_steps are integers >= 1, but they are {time_steps!r}.")
    return tuple(int(t) for t in steps)


def _lags(nodes: Sequence[Record], outputs: Sequence[str]) -> tuple[dict[str, int], int]:
    """By how many steps each node, and the read-out, runs behind the input under ``delay``."""
    lags: dict[str, int] = {}
    arrives: dict[str, int] = {}  # what a neuron sends is with its receivers one step later
    for node in nodes:
        lags[node.name] = max((arrives[name] for name in node["inputs"]), default=0)
        arrives[node.name] = lags[node.name] + KINDS[node.kind].neuron
    return lags, max(arrives[name] for name in outputs)


class _Run:
    """One run: the state of every node, and the values that are on their way.

    ``shown``: for how many steps each frame of a sequence is there; 0 says that x is not a
    sequence. ``keeps``: at each frame steps are counted from 1 again; ``before`` is the state after
    the frames so far.
    """

    def __init__(
        self,
        runner: Runner,
        x: Mapping[str, Array],
        shown: int,
        view: str,
        coded: Array | None,
        delay: bool,
        last: int,
        keeps: bool = False,
        before: Kept | None = None,
    ) -> None:
        self.runner, self.last, self.spike_view, self.coded = runner, last, view == "spike", coded
        self.x, self.shown, self.keeps, self.before = x, shown, keeps, before
        self.batch = next(iter(x.values())).shape[int(shown > 0)]
        self.wide = self.spike_view and runner.content.stream
        self.records = {node.name: node for node in runner.nodes}
        self.exact: dict[str, Array] = {}  # what static nodes make
        self.carries = runner.content.carries if keeps else {}
        self.followed = dict.fromkeys([*runner.output_names, *self.carries.values()])
        self.lags = runner.lags if delay else dict.fromkeys(runner.lags, 0)
        self.output_lag = runner.output_lag if delay else 0
        self.duration = last + self.output_lag
        self.sent: dict[str, dict[int, Array]] = {node.name: {} for node in runner.nodes}
        self.held = self._longest_waits()
        self.states: dict[str, _State] = {}
        self.spikes: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.readouts: dict[str, Array] = {}
        if before is not None:
            self.states = {name: replace(state) for name, state in before.states.items()}
            self.readouts = dict(before.readouts)
        elif self.spike_view:
            self._start()

    def _longest_waits(self) -> dict[str, int]:
        """For how many steps a node's value is still asked for."""
        waits = dict.fromkeys(self.lags, 0)
        for node in self.runner.nodes:
            for name in node["inputs"]:
                waits[name] = max(waits[name], self.lags[node.name] - self.lags[name])
        for name in self.runner.output_names:
            waits[name] = max(waits[name], self.output_lag - self.lags[name])
        return waits

    def result(self, outputs: Mapping[int, Mapping[str, Array]]) -> Result:
        structure = self.runner.content.outputs
        return Result(
            {t: fill(structure, found) for t, found in outputs.items()},
            self.spikes,
            self.values,
            {name: self.lags[name] for name in self.runner.neurons},
            self.output_lag,
            self.duration,
        )

    def kept(self) -> Kept:
        """The state that the next frames continue from."""
        inputs = {name: x[-1] for name, x in self.x.items()}
        fed = {name: self._decoded(of) for name, of in self.carries.items()}
        view = "spike" if self.spike_view else "decoded"
        return Kept(view, self.states, self.readouts, inputs, fed)

    def all_steps(
        self, wanted: Sequence[int], record: bool, values: bool
    ) -> dict[int, dict[str, Array]]:
        """The decoded outputs by name after each of the steps wanted."""
        outputs: dict[int, dict[str, Array]] = {}
        asked = set(wanted)
        for now in range(1, self.duration + 1):
            for node in self.runner.nodes:
                step = now - self.lags[node.name]  # the node's own step
                if 1 <= step <= self.last:
                    inputs = [
                        self.sent[name][now - (self.lags[node.name] - self.lags[name])]
                        for name in node["inputs"]
                    ]
                    if self.keeps and (step - 1) % self.shown == 0:
                        self._new_frame(node)
                    with _named(node):
                        value, fired = self._value(node, inputs, step)
                    self.sent[node.name][now] = value
                    if fired is not None and record:
                        self._keep(self.spikes, node.name, now, fired)
                    if fired is not None and values:
                        self._keep(self.values, node.name, now, self.states[node.name].v)
            step = now - self.output_lag
            if step >= 1:
                self._read_out(now)
                if step in asked:
                    names = self.runner.output_names
                    outputs[step] = {name: self._decoded(name) for name in names}
                if self.carries and step % self.shown == 0:
                    self._feed(step)
            for name, wait in self.held.items():
                self.sent[name].pop(now - wait, None)
        return {t: outputs[t] for t in wanted}

    def _keep(self, kept: dict[str, Array], name: str, now: int, value: Array) -> None:
        if name not in kept:
            kept[name] = np.zeros((self.duration, *value.shape), value.dtype)
        kept[name][now - 1] = value

    def _start(self) -> None:
        """Spike view: x(0) of every neuron and the read-outs before the first step."""
        values: dict[str, Array] = {}
        for node in self.runner.nodes:
            with _named(node):
                values[node.name] = self._at_start(node, [values[name] for name in node["inputs"]])
        self.readouts = {name: values[name] for name in self.followed}

    def _new_frame(self, node: Record) -> None:
        """The state of a node before the first step of a frame."""
        if KINDS[node.kind].frame(node) == ANEW:
            self.states.pop(node.name, None)
        elif node.name in self.states:
            self.states[node.name].t = 0

    def _wide(self, x: Array) -> Array:
        """What passes in the spike view of streams."""
        return x.astype(np.float64) if self.wide and x.dtype.kind == "f" else x

    def _summed(self, x: Array) -> Array:
        """The sum of what passed, as f takes it."""
        return x.astype(self.runner.dtype) if self.wide and x.dtype.kind == "f" else x

    def _decoded(self, name: str) -> Array:
        return np.array(self._summed(self.readouts[name]))

    def _feed(self, step: int) -> None:
        """What the network feeds itself in the frame after this step, its last."""
        frame = step // self.shown
        for name, of in self.carries.items():
            if frame < len(self.x[name]):
                self.x[name][frame] = self._decoded(of)

    def _at_start(self, node: Record, inputs: list[Array]) -> Array:
        if KINDS[node.kind].neuron:
            v = self._resting(node, resolve(node["shape"], self.batch))
            self.states[node.name] = _State(v, inputs)
            return self._wide(v)
        return _AT_START[node.kind](self, node, inputs)

    def _resting(self, node: Record, shape: Sequence[int]) -> Array:
        return np.broadcast_to(np.asarray(node["resting"], self.runner.dtype), shape)

    def _value(self, node: Record, inputs: list[Array], step: int) -> tuple[Array, Array | None]:
        """What a node sends at its step, and where its neurons fire."""
        if node.kind in _NEURONS:
            return _NEURONS[node.kind](self, node, inputs)
        if node.kind in _OTHERS:
            return _OTHERS[node.kind](self, node, inputs, step), None
        return self._by_its_row(node, inputs)

    def _by_its_row(self, node: Record, inputs: list[Array]) -> tuple[Array, Array]:
        """A kind from elsewhere."""
        form = KINDS[node.kind].numpy
        if form is None:
            raise FormatError(
                f"'{node.name}' is of kind {node.kind!r}, which has no NumPy form; give its row in "
                "KINDS one, numpy=."
            )
        before = self.states.get(node.name)
        state = None if before is None else before.v
        value, fires, state = form(node, inputs, state, self.runner.dtype)
        self.states[node.name] = _State(state)
        return value, fires

    def _input(self, name: str, step: int) -> Array:
        return self.x[name][(step - 1) // self.shown] if self.shown else self.x[name]

    def _input_or_increment(self, node: Record, inputs: list[Array], step: int) -> Array:
        now = self._wide(self._input(node.name, step))
        if not self.spike_view or node["dtype"] != "float":
            return now
        if step > 1:
            return now - self._wide(self._input(node.name, step - 1))
        return now if self.before is None else now - self._wide(self.before.inputs[node.name])

    def _static(self, node: Record, inputs: list[Array], step: int) -> Array:
        """The same at every step, in the spike view sent with the first."""
        value = self._wide(self._exact(node.name))
        sent = step > 1 or self.before is not None
        later = self.spike_view and sent and node["dtype"] == "float"
        return np.zeros_like(value) if later else value

    def _exact(self, name: str) -> Array:
        """Of whole numbers alone, of their values and not of increments."""
        node = self.records[name]
        if "op" not in node.fields:
            return self._input(name, 1) if name in self.x else node["value"]
        if name not in self.exact:
            inputs = [self._exact(each) for each in node["inputs"]]
            self.exact[name] = compute(node, inputs, self.batch, self.runner.dtype)
        return self.exact[name]

    def _constant(self, node: Record, inputs: list[Array], step: int) -> Array:
        value = self._wide(node["value"])
        return np.zeros_like(value) if self.spike_view and step else value

    def _linear(self, node: Record, inputs: list[Array], step: int) -> Array:
        run = apply_linear if self.spike_view and step else apply
        tensors = {name: self._wide(value) for name, value in node["tensors"].items()}
        out = run(node["op"], inputs, node["attributes"], tensors, self.batch)
        return np.asarray(out, np.float64 if self.wide else self.runner.dtype)

    def _function(self, node: Record, x: list[Array], step: int = 0) -> Array:
        f = self.runner.functions[node.name]
        return np.asarray(f(*x, **node["arguments"]), self.runner.dtype)

    def _size(self, node: Record, t: int) -> Array:
        """eta(t) scale."""
        return np.asarray(step_size(node["schedule"], t) * node["scale"], self.runner.dtype)

    def _signgd(self, node: Record, inputs: list[Array]) -> tuple[Array, Array]:
        if node.name not in self.states:  # decoded view, first step
            shape = self._function(node, inputs).shape
            self.states[node.name] = _State(self._resting(node, shape))
        state = self.states[node.name]
        if self.spike_view:
            state.x = [x + increment for x, increment in zip(state.x, inputs, strict=True)]
            inputs = [self._summed(x) for x in state.x]
        target = self._function(node, inputs)
        if sparse(node):
            return self._sparse(node, state, target)
        if node["members"] > 1:
            return self._signs(node, state, target)
        fires = state.v >= target if node["function"]["fires_at_tie"] else state.v > target
        sigma = np.where(fires, 1, -1).astype(self.runner.dtype)
        if node["momentum"]:
            if state.buffer is not None:
                sigma = node["momentum"] * state.buffer + sigma
            state.buffer = sigma
        state.t += 1
        change, before = self._size(node, state.t) * sigma, state.v
        state.v = before - change
        return self._passing(state, before, -change), fires

    def _signs(self, node: Record, state: _State, target: Array) -> tuple[Array, Array]:
        """Several signs in one step, of sizes halved from one to the next."""
        m, ties = node["members"], node["function"]["fires_at_tie"]
        state.t += 1
        size, before = self._size(node, state.t), state.v
        bits, state.v = dense_step(before, target, size, m, ties)
        sent = self._weighted(size, m, 2 * bits - (2**m - 1))
        return self._passing(state, before, sent), bits.astype(np.uint8)

    def _sparse(self, node: Record, state: _State, target: Array) -> tuple[Array, Array]:
        """One sign or several, with a dead zone."""
        m, ties, theta = node["members"], node["function"]["fires_at_tie"], node["dead_zone"]
        within = np.asarray(theta, np.float32).astype(self.runner.dtype)
        state.t += 1
        size, before = self._size(node, state.t), state.v
        if is_array(theta):
            code, state.v = mixed_step(before, target, size, within, m, ties)
        else:
            code, state.v = sparse_step(before, target, size, within, m)
        sent = self._weighted(size, m, levels(code, self.runner.dtype))
        return self._passing(state, before, sent), code

    def _weighted(self, size: Array, members: int, level: Array) -> Array:
        """The weighted spike of a step whose signs make ``level``, d."""
        dtype = self.runner.dtype
        return -np.asarray(size * 2.0 ** (1 - members), dtype) * level.astype(dtype)

    def _passing(self, state: _State, before: Array, sent: Array) -> Array:
        """What passes after a step from v = ``before``: v, the weighted spike, or of streams the
        difference that it made, which differs from it where v is rounded."""
        if self.wide:
            return self._wide(state.v) - self._wide(before)
        return sent if self.spike_view else state.v

    def _group(self, node: Record, inputs: list[Array]) -> tuple[Array, Array]:
        (x,) = inputs
        theta = node["v_threshold"] / node["members"]
        if node.name not in self.states:
            charge = np.asarray(node["initial_charge"] * theta, self.runner.dtype)
            sent = np.zeros(x.shape, np.int32) if node["signed"] else None
            self.states[node.name] = _State(np.broadcast_to(charge, x.shape), buffer=sent)
        state = self.states[node.name]
        theta = np.asarray(theta, self.runner.dtype)
        h = state.v + x
        count = _reached(h, theta, node["members"])
        if state.buffer is not None:
            back = (h < 0) + _reached(-h, theta, node["members"] - 1, strictly=True)
            count = count - np.minimum(back, state.buffer)
            state.buffer = state.buffer + count
        out = count.astype(self.runner.dtype) * theta
        state.v = h - out
        return out, count

    def _growth(self, node: Record, inputs: list[Array]) -> tuple[Array, Array]:
        if node.name not in self.states:
            nothing = [np.zeros_like(x) for x in inputs]
            self.states[node.name] = _State(self._function(node, nothing), nothing)
        state = self.states[node.name]
        state.x = [total + x for total, x in zip(state.x, inputs, strict=True)]
        before, state.v = state.v, self._function(node, state.x)
        return state.v - before, state.v - before

    def _subgradient(self, node: Record, inputs: list[Array]) -> tuple[Array, Array]:
        state = self.states.setdefault(node.name, _State(np.zeros_like(inputs[0])))
        fires = inputs[0] > state.v
        output = np.asarray(node["scale"], self.runner.dtype) * fires
        state.t += 1
        state.v = state.v - step_size(node["schedule"], state.t) * (state.v - output)
        return state.v, fires

    def _encoder(self, node: Record, inputs: list[Array], step: int) -> Array:
        x = self._input(node["inputs"][0], step)
        state = self.states.setdefault(node.name, _State(np.zeros_like(x)))
        state.t += 1
        before = state.v
        if node["coding"] == "poisson":
            assert self.coded is not None
            spikes = self.coded[step - 1]
            state.v = before + (spikes - before) / state.t
            return spikes if node["per_step"] else state.v
        gradient = before - x
        if node["momentum"]:
            if state.buffer is not None:
                gradient = node["momentum"] * state.buffer + gradient
            state.buffer = gradient
        state.v = before - step_size(node["schedule"], state.t) * gradient
        if self.spike_view:
            return self._wide(state.v) - self._wide(before)
        return state.v

    def _average(self, node: Record, inputs: list[Array], step: int) -> Array:
        (x,) = inputs
        state = self.states.setdefault(node.name, _State(np.zeros_like(x)))
        state.t += 1
        state.v = state.v + x  # the sum
        return np.asarray(state.v / self.runner.dtype.type(state.t))

    def _read_out(self, now: int) -> None:
        for name in self.followed:
            value = self.sent[name][now - (self.output_lag - self.lags[name])]
            self.readouts[name] = self.readouts[name] + value if self.spike_view else value


# what a node sends, of its inputs at its step; a step of 0 is before the first
_OTHERS: dict[str, Callable[[_Run, Record, list[Array], int], Array]] = {
    "input": _Run._input_or_increment,
    "static": _Run._static,
    "constant": _Run._constant,
    "linear": _Run._linear,
    "function": _Run._function,
    "encoder": _Run._encoder,
    "average": _Run._average,
}
_NEURONS: dict[str, Callable[[_Run, Record, list[Array]], tuple[Array, Array]]] = {
    "signgd": _Run._signgd,
    "group": _Run._group,
    "growth": _Run._growth,
    "subgradient": _Run._subgradient,
}
# the same before the first step of the spike view
_AT_START: dict[str, Callable[[_Run, Record, list[Array]], Array]] = {
    "input": lambda run, node, inputs: np.zeros_like(run._wide(run._input(node.name, 1))),
    "static": lambda run, node, inputs: np.zeros_like(run._wide(run._exact(node.name))),
    "constant": lambda run, node, inputs: run._constant(node, inputs, 0),
    "linear": lambda run, node, inputs: run._linear(node, inputs, 0),
    "encoder": lambda run, node, inputs: inputs[0],
}


def _reached(h: Array, theta: Array, members: int, strictly: bool = False) -> Array:
    """How many of theta, 2 theta, ... h has reached, or is above."""
    levels = np.arange(1, members + 1, dtype=h.dtype)
    if theta.ndim == 0:  # one threshold for all
        found = np.searchsorted(levels * theta, h, side="left" if strictly else "right")
        return found.astype(np.int32)
    count = np.zeros(h.shape, np.int32)
    for k in levels:
        count += h > k * theta if strictly else h >= k * theta
    return count


@contextmanager
def _named(node: Record) -> Iterator[None]:
    """What NumPy does not compute is the description's fault, or that of the user's function."""
    try:
        yield
    except SignGDError:
        raise
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise FormatError(
            f"node {node.name!r} cannot be computed ({error}): its fields contradict each other "
            "or its input, or it calls a function of yours that fails."
        ) from error
