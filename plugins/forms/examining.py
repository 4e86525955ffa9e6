"""Faults of a network built by hand, by name: forms that do not fit each other.

A wrong network built by hand runs and gives wrong numbers: a neuron cannot see the bias of the
layer before it, nor the form of the spikes that it receives. So the form of each value is
propagated through the graph, decoded or increments of a form, and each call is tested.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...converters import CheckReport, Coverage
from .hand import Hand, before
from .linear import LINEAR, MOVES, NONLINEAR, STATEFUL, STEPS, Trials, floats, unlike_eval
from .parts import Part
from .resting import Run, check_example, close, one_unit

DECODED = "decoded"
_COMMON = ("ternary", "binary")  # forms with one schedule and one m in a network
_TO_SPIKES = "sg.to_spikes(net, example) does it for a network in the decoded form"


class HandReport(CheckReport):
    """The report on a network built by hand: a row for each neuron layer of this package, and for
    each call with a fault.

    In a row ``operation`` says what the module is, ``becomes`` is "unsupported" for a fault,
    ``detail`` gives the reason and ``fix`` the solution. ``blockers`` are those rows;
    ``print(report)`` shows all.
    """

    def faults_text(self) -> str:
        """The faults, one a line, with what fixes each."""
        lines = [f"{self.model} has {len(self.blockers)} fault(s):"]
        lines += [f"  '{row.path}' ({row.module}) {row.detail}; {row.fix}" for row in self.blockers]
        return "\n".join(lines)

    def __str__(self) -> str:
        width = max([len(row.path) for row in self.rows] + [6])
        kind = max([len(row.module) for row in self.rows] + [4])
        lines = [f"{'module':<{width}}  {'type':<{kind}}  is"]
        lines += [f"{r.path:<{width}}  {r.module:<{kind}}  {r.operation}" for r in self.rows]
        return "\n".join(
            [*dict.fromkeys(lines), f"{self.model} is sound." if self.ok else self.faults_text()]
        )


def examine(net: Any, example: Any) -> HandReport:
    """What ``check`` says of a network by hand. Raises InputError for what cannot be followed."""
    return _Examined(Hand(net), example).report()


@dataclass(frozen=True)
class _Signal:
    """What a value is: decoded, or increments of a form; and where it comes from."""

    form: str
    source: str  # a module's path; "" for the network's input


class _Examined:
    def __init__(self, hand: Hand, example: Any) -> None:
        self.hand, self.example = hand, example
        self.faults: dict[str, list[Coverage]] = {}  # by path
        self._training()
        self.over_time = any(part.over_time for _, part in hand.parts())
        check_example(hand, example, self.over_time)
        self.run = Run(hand, example)
        self.trials = Trials(hand, self.run, self.over_time)
        self.signals: dict[fx.Node, _Signal] = {}
        self.spiking = any(part.spikes != DECODED for _, part in hand.parts())

    def report(self) -> HandReport:
        for call in self.hand.graph.nodes:
            self._visit(call)
        self._calls()
        self._common()
        if self.spiking and not self.faults:
            self._starts()
        known = {str(call.target): part for call, part in self.hand.parts()}
        order = dict.fromkeys([*map(self._path, self.hand.graph.nodes), *self.faults])
        rows: list[Coverage] = []
        for path in order:
            sound = [self._row(path, known[path])] if path in known else []
            rows += self.faults.get(path, sound)
        return HandReport(self.hand.name, tuple(rows))

    def _path(self, call: fx.Node) -> str:
        """A module's, or that of the module in whose forward an operation stands."""
        path = call.target if call.op == "call_module" else call.meta.get("path")
        return str(path or call.name)

    def _row(self, path: str, part: Part) -> Coverage:
        module = type(self.hand.root.get_submodule(path)).__name__
        becomes = "neuron" if part.role == "neuron" else "linear"
        return Coverage(path, _describe(part), module, becomes)

    def _fault(self, call: fx.Node, fault: str, fix: str) -> None:
        module, part = self.hand.module(call), self.hand.part(call)
        name = type(module).__name__ if module is not None else call.name
        path, what = self._path(call), "at fault" if part is None else _describe(part)
        found = self.faults.setdefault(path, [])
        if fault not in [row.detail for row in found]:
            found.append(Coverage(path, what, name, "unsupported", fault, fix))

    def _training(self) -> None:
        for path, module in unlike_eval(self.hand.root):
            fault = "is in training mode, in which its outputs depend on the batch or are random"
            row = (path, "at fault", type(module).__name__, "unsupported", fault, "call net.eval()")
            self.faults[path] = [Coverage(*row)]
        self.hand.root.eval()

    # -- each call --------------------------------------------------------------------------------

    def _visit(self, call: fx.Node) -> None:
        inputs = [n for n in call.all_input_nodes if n in self.signals]
        part = self.hand.part(call)
        if call.op == "placeholder":
            if isinstance(self.run.env[call], Tensor):
                self.signals[call] = _Signal(DECODED, "")
        elif call.op == "output":
            self._at_output(inputs)
        elif part is not None:
            for value in inputs:
                self._at_part(call, part, self.signals[value])
            self.signals[call] = _Signal(self._sends(call, part), str(call.target))
        elif inputs:
            self._at_call(call, inputs)

    def _sends(self, call: fx.Node, part: Part) -> str:
        """The form that a module of this package sends; for an Encode the form required of it."""
        if part.role != "encode":
            return DECODED if part.role == "readout" else part.spikes
        behind = [other for n in self._behind(call) if (other := self.hand.part(n)) is not None]
        takes = {DECODED if other.role == "encode" else other.spikes for other in behind}
        if part.spikes in takes or len(takes) != 1:
            return part.spikes
        (form,) = takes
        names = ", ".join(map(self.hand.where, self._behind(call)))
        fix = f'make it Encode(schedule, spikes="{form}")'
        self._fault(
            call,
            f"sends {_sent(part.spikes)} to {names}, which takes {_sent(form)}",
            f"{fix}, or leave it out" if form == DECODED else fix,
        )
        return form

    def _at_output(self, inputs: list[fx.Node]) -> None:
        for value in inputs:
            signal = self.signals[value]
            if signal.form != DECODED:
                self._fault(
                    value,
                    f"is an output of {signal.form} spikes, which no Readout decodes",
                    f'put Readout(initial, spikes="{signal.form}") after it; {_TO_SPIKES}',
                )

    def _at_part(self, call: fx.Node, part: Part, signal: _Signal) -> None:
        takes = DECODED if part.role == "encode" else part.spikes
        if signal.form == takes:
            return
        source = self._source(signal.source)
        if takes != DECODED and signal.form == DECODED and not signal.source:
            self._uncoded(call, takes)
        else:
            self._fault(
                call,
                f"takes {_sent(takes)}, and {self.hand.where(source)} sends {_sent(signal.form)}",
                f"use one form for all modules of a network; {_TO_SPIKES}",
            )

    def _uncoded(self, call: fx.Node, takes: str) -> None:
        """No Encode: named with the biases between the input and the neurons."""
        self._fault(
            call,
            f"takes {takes} spikes, and no Encode before it codes the input as such spikes",
            f'put Encode(schedule, spikes="{takes}") at the input; {_TO_SPIKES}',
        )
        for earlier in before([call]):
            inputs = [n for n in earlier.all_input_nodes if n in self.signals]
            linear = inputs and self.trials.kind(earlier, inputs) in (LINEAR, MOVES)
            if linear and self._adds(earlier, inputs):
                self._bias(earlier, takes)

    def _adds(self, call: fx.Node, inputs: list[fx.Node]) -> bool:
        return any(bool((y != 0).any()) for y in self.trials.constant(call, inputs))

    def _at_call(self, call: fx.Node, inputs: list[fx.Node]) -> None:
        if next(floats(self.run.env[call]), None) is None:
            return  # a shape, or a number
        forms = [self.signals[n] for n in inputs]
        spiking = [signal for signal in forms if signal.form != DECODED]
        if not spiking:
            self.signals[call] = forms[0]
            return
        kind = self.trials.kind(call, inputs)
        self.signals[call] = spiking[0]
        if len({signal.form for signal in forms}) > 1:
            texts = [f"{_sent(s.form)} of {self._named(s.source)}" for s in forms]
            self._fault(
                call, f"joins {' and '.join(texts)}", "use one form for all modules of a network"
            )
        elif kind in (NONLINEAR, STATEFUL, STEPS):
            self._fault(call, *_unfit(kind, spiking[0].form))
        elif self._adds(call, inputs):
            self._bias(call, spiking[0].form)

    def _bias(self, call: fx.Node, form: str) -> None:
        behind = self._behind(call)
        parts = [part for n in behind if (part := self.hand.part(n)) is not None]
        takes = "initial_input there" if parts and parts[0].role == "neuron" else "Readout(initial)"
        module = self.hand.module(call) is not None
        what, leave = ("its bias", "make it with bias=False") if module else (
            "a constant", "leave the constant out"
        )  # fmt: skip
        self._fault(
            call,
            f"adds {what} at every step to {form} spikes, before "
            f"{', '.join(map(self.hand.where, behind))}",
            f"{leave} and pass its effect on the layers' output as {takes}; {_TO_SPIKES}",
        )

    def _behind(self, call: fx.Node) -> list[fx.Node]:
        """The modules of this package, or the output, that a call feeds."""
        ahead, seen = list(call.users), dict.fromkeys(call.users)
        for user in ahead:
            if self.hand.part(user) is None:
                more = [n for n in user.users if n not in seen]
                seen |= dict.fromkeys(more)
                ahead += more
        return [n for n in ahead if self.hand.part(n) is not None or n.op == "output"]

    def _source(self, path: str) -> fx.Node:
        """The call that a value comes from."""
        calls = [call for call in self.hand.graph.nodes if str(call.target) == path]
        return calls[0] if calls else next(iter(self.hand.graph.nodes))

    def _named(self, path: str) -> str:
        return self.hand.where(self._source(path)) if path else "the input"

    # -- the network as a whole -------------------------------------------------------------------

    def _calls(self) -> None:
        """One place for each neuron, and one step mode."""
        for call, n in self.hand.repeated():
            fault = f"is called {n} times in one forward, but has one state"
            self._fault(call, fault, "use a separate node for each call")
        for call in self.hand.mixed():
            self._fault(call, *self.hand.simulator.unlike_others)

    def _common(self) -> None:
        """One schedule and one m, where the receivers of spikes have to know them."""
        parts = [(call, part) for call, part in self.hand.parts() if part.spikes in _COMMON]
        for name, say in (("schedule", repr), ("members", str)):
            values = [say(getattr(part, name)) for _, part in parts]
            for (call, part), value in zip(parts, values, strict=True):
                if value != (most := Counter(values).most_common(1)[0][0]):
                    self._fault(
                        call,
                        f"has {name}={value}, and the others {most}, but the receivers of "
                        f"{part.spikes} spikes assume one for all",
                        "make them the same, or choose spikes='signed'",
                    )

    def _starts(self) -> None:
        """Initial inputs and offsets, of a network in which nothing else is wrong."""
        binary = any(part.spikes == "binary" for _, part in self.hand.parts())
        units = Run(self.hand, self.example, one_unit) if binary else None
        for call, part in self.hand.parts():
            if part.role != "encode" and part.spikes != DECODED:
                self._start(call, part)
                if units is not None and part.spikes == "binary":
                    self._offset(call, part, units.inputs(call))

    def _start(self, call: fx.Node, part: Part) -> None:
        name = "initial" if part.role == "readout" else "initial_input"
        for x, given in zip(self.run.inputs(call), _for_each(part.initial, call), strict=False):
            if not _fits(given, x):
                step = list(x.shape[2:] if part.over_time else x.shape[1:])
                self._fault(
                    call,
                    f"has {name} of {list(torch.as_tensor(given).shape)}, which does not broadcast "
                    f"to one step of its input, {step}",
                    f"give it one value for each feature; {_TO_SPIKES}",
                )
            elif bool((torch.as_tensor(given) == 0).all()) and not close(x, torch.zeros_like(x)):
                self._fault(
                    call,
                    f"has {name} 0, but the resting values of the presynaptic neurons contribute "
                    f"up to {float(x.abs().max()):.4g} to its input",
                    f"pass {name} = W v(0) + bias; {_TO_SPIKES}",
                )

    def _offset(self, call: fx.Node, part: Part, units: tuple[Tensor, ...]) -> None:
        for x, given in zip(units, _for_each(part.offset, call), strict=False):
            value = torch.as_tensor(given, dtype=x.dtype, device=x.device)
            if not _fits(given, x) or not close(value.expand_as(x), x):
                self._fault(
                    call,
                    "has an offset other than W scale 1, the output of the layers before it for "
                    "one spike from every neuron",
                    f"pass offset=weight.sum(1) times the scale; {_TO_SPIKES}",
                )


def _describe(part: Part) -> str:
    if part.role != "neuron":
        return f"{part.role}, {part.spikes}"
    assert part.dynamics is not None
    return f"neuron {part.dynamics.function.name}, {part.spikes}"


def _sent(form: str) -> str:
    return "decoded values" if form == DECODED else f"{form} spikes"


def _unfit(kind: str, form: str) -> tuple[str, str]:
    what = {
        NONLINEAR: "is not linear",
        STATEFUL: "has a state of its own",
        STEPS: "mixes time steps",
    }
    where = "after the Readout" if kind == STEPS else "by a signGD node of that function"
    return f"{what[kind]}, and it receives {form} spikes", f"do that {where}"


def _for_each(values: tuple[float | Tensor, ...], call: fx.Node) -> tuple[float | Tensor, ...]:
    return values * len(call.args) if len(values) == 1 else values


def _fits(value: float | Tensor, x: Tensor) -> bool:
    try:
        return torch.as_tensor(value).broadcast_to(x.shape) is not None
    except RuntimeError:
        return False
