"""From decoded values to spikes: biases become initial inputs, inputs are coded, outputs read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import InputError
from ...neurons.protocol import SPIKES
from ...neurons.schedules import Schedule
from .decoded import EXACT, to_decoded
from .hand import Hand, after, before
from .linear import (
    FIRST,
    LINEAR,
    MOVES,
    NONLINEAR,
    PLAIN,
    STATEFUL,
    STEPS,
    Trials,
    take_off,
    unlike_eval,
)
from .parts import Part
from .resting import Run, check_example, one_unit, samples

_WHY = {
    NONLINEAR: "is not linear, so it cannot be applied to increments. Use a signGD node of that "
    "function in its place",
    STATEFUL: "has a state of its own and takes values, not increments. Use a signGD node in its "
    "place",
    STEPS: "mixes time steps, or adds or removes the time axis. Do that before the first layer or "
    "after the last one",
}


def to_spikes(net: nn.Module, example: Any, spikes: str = "signed") -> nn.Module:
    """A copy of a network built by hand in the spiking form, as hardware runs it: signs or silence.

    ``net`` is in the decoded form (one in a spiking form is brought there first); ``example`` is
    what it is called with, [N, *], or [T, N, *] over time, of which the shapes count; several
    inputs are a tuple. Biases and shifts of norms are moved from the layers into ``initial_input``
    of the neurons after them, together with the layers' output for the resting values; an
    ``Encode`` is placed at the input and a ``Readout`` at each output. ``spikes`` is "signed",
    "ternary" or "binary" (``neurons/protocol.py``).

    Values of both forms agree to rounding at every step. "signed" codes the input exactly;
    "ternary" and "binary" code it with the common schedule, as ``Encode(schedule,
    spikes="decoded")`` before the decoded network does. An nn.Sequential stays one, a Norse
    SequentialState, too; other modules become a ``torch.fx.GraphModule`` with the same paths.

    Raises InputError, by module path, for what is not linear between two neurons, for modules in
    training mode, for neurons that cannot send such spikes, and for modules that torch.fx does not
    follow.
    """
    if spikes not in SPIKES[:3]:
        raise InputError(f"spikes is one of {', '.join(SPIKES[:3])}, but it is {spikes!r}.")
    hand = Hand(net)
    hand.check_calls()
    if any(part.spikes != "decoded" for _, part in hand.parts()):
        hand = Hand(to_decoded(net, example))
    _check(hand, example, spikes)
    coder = _Coder(hand, example, spikes)
    coder.go()
    coder.change()
    return hand.network()


# -- what can be changed --------------------------------------------------------------------------


def _check(hand: Hand, example: Any, spikes: str) -> None:
    """Raises InputError, by name, where the network cannot have such spikes."""
    for path, module in unlike_eval(hand.root):
        raise InputError(
            f"'{path}' ({type(module).__name__}) is in training mode. Call net.eval() first."
        )
    neurons = hand.neurons()
    if not neurons:
        raise InputError(
            f"{hand.name} has no signGD neurons, and other neurons have only one form."
        )
    for call in hand.mixed():
        fault, fix = hand.simulator.unlike_others
        raise InputError(f"{hand.where(call)} {fault}; {fix}.")
    parts = {call: part for call, part in hand.parts() if part.role != "readout"}
    if spikes == "signed":
        return
    first = parts[neurons[0]]
    for call, part in parts.items():
        what = _differs(part, first, spikes, hand.where(neurons[0]))
        if what:
            raise InputError(f"{hand.where(call)} {what}. Change that, or choose spikes='signed'.")


def _differs(part: Part, first: Part, spikes: str, where: str) -> str | None:
    """Why a module cannot send such spikes in one network with the first neurons."""
    if part.momentum:
        return f"has momentum={part.momentum}, which a sign or silence cannot represent"
    if part.schedule != first.schedule:
        return (
            f"has the schedule {part.schedule!r}, and {where} has {first.schedule!r}, but the "
            f"receivers of {spikes} spikes assume one common schedule"
        )
    if part.role == "encode":
        return None
    assert part.dynamics is not None
    if spikes == "ternary" and part.members > 1:
        return f"has members={part.members}, and a ternary spike is one sign or silence"
    if spikes == "binary" and part.members != first.members:
        return f"has members={part.members}, and {where} has {first.members}, but one is common"
    if spikes == "binary" and part.dynamics.sparse:
        return "has a dead zone, and a binary spike cannot represent silence (dead_zone=0)"
    return None


# -- to spikes ------------------------------------------------------------------------------------

RAW, INCREMENTS, READ = "raw", "increments", "read"


class _Coder:
    """Puts Encode and Readout in place, then moves the biases and changes the neurons.

    ``state`` says of each call what would pass there: raw values before the coding, increments, or
    values that are read out. Where one of a kind is wanted, a module is inserted.
    """

    def __init__(self, hand: Hand, example: Any, spikes: str) -> None:
        self.hand, self.example, self.spikes = hand, example, spikes
        self.first: Part = hand.part(hand.neurons()[0])  # type: ignore[assignment]
        check_example(hand, example, self.first.over_time)
        self.run = Run(hand, example)
        self.trials = Trials(hand, self.run, self.first.over_time)
        self.state: dict[fx.Node, str] = {}
        self.made: dict[tuple[str, fx.Node], fx.Node] = {}
        self.passed: list[fx.Node] = []  # the linear calls that increments go through
        self.feeds = before(hand.neurons())
        self.kinds = self._kinds()
        steps = [call for call, kind in self.kinds.items() if kind == STEPS]
        mixed = before([call for call in steps if call not in after(hand.neurons())])
        self.early = {*mixed, *steps} - after(hand.neurons())

    def _kinds(self) -> dict[fx.Node, str]:
        found, varies = {}, set()
        for call in self.hand.graph.nodes:
            inputs = [n for n in call.all_input_nodes if n in varies]
            if call.op == "placeholder" or self.hand.part(call) is not None:
                varies.add(call)
            elif inputs and call.op != "output":
                found[call] = self.trials.kind(call, inputs)
                if found[call] != PLAIN:
                    varies.add(call)
        return found

    def go(self) -> None:
        for call in list(self.hand.graph.nodes):
            inputs = [n for n in call.all_input_nodes if n in self.state]
            if call.op == "placeholder":
                if isinstance(self.run.env[call], Tensor):
                    self.state[call] = RAW
            elif call.op == "output":
                self._wanted(call, inputs, READ)
            elif (part := self.hand.part(call)) is not None:
                self.state[call] = self._at_part(call, part, inputs)
            elif inputs and self.kinds.get(call, PLAIN) != PLAIN:
                self.state[call] = self._at_call(call, inputs)

    def _at_part(self, call: fx.Node, part: Part, inputs: list[fx.Node]) -> str:
        read = [n for n in inputs if self.state[n] == READ]
        if part.role == "readout":
            return READ
        if read or (part.role == "encode" and self.state[inputs[0]] != RAW):
            raise InputError(
                f"{self.hand.where(call)} comes after a read-out or another coding: a network by "
                "hand has its encoders at the inputs and its read-outs at the outputs."
            )
        if part.role == "neuron":
            self._wanted(call, inputs, INCREMENTS)
        return INCREMENTS

    def _at_call(self, call: fx.Node, inputs: list[fx.Node]) -> str:
        kind, states = self.kinds[call], {self.state[n] for n in inputs}
        linear = kind in (LINEAR, MOVES)
        if states == {RAW} and (
            kind in (MOVES, FIRST) or call in self.early or call not in self.feeds
        ):
            return RAW
        if READ not in states and linear:
            self._wanted(call, inputs, INCREMENTS)
            self.passed.append(call)
            return INCREMENTS
        if call in self.feeds or self._weights_behind(call):
            raise InputError(f"{self.hand.where(call)} {_WHY.get(kind, 'comes after a read-out')}.")
        self._wanted(call, inputs, READ)
        return READ

    def _weights_behind(self, call: fx.Node) -> bool:
        """Whether a layer with weights follows, which would compute with real values."""
        modules = [self.hand.module(n) for n in after([call]) - {call}]
        return any(m is not None and next(m.parameters(), None) is not None for m in modules)

    def _wanted(self, call: fx.Node, inputs: list[fx.Node], state: str) -> None:
        """Inserts what makes increments of raw values, or reads increments out."""
        for value in inputs:
            if state == INCREMENTS and self.state[value] == RAW:
                self._insert("encode", value, call)
            elif state == READ and self.state[value] == INCREMENTS:
                self._insert("readout", value, call)

    def _insert(self, name: str, value: fx.Node, user: fx.Node) -> None:
        made = self.made.get((name, value))
        if made is not None:
            user.replace_input_with(value, made)
            return
        if name == "encode":
            module = self._encode(self._schedule)
        else:
            module = self.hand.simulator.readout(self.first, 0.0, 0.0)
        made = self.made[name, value] = self.hand.insert(name, module, value, user)
        self.state[made] = INCREMENTS if name == "encode" else READ

    @property
    def _schedule(self) -> Schedule:
        schedule = EXACT if self.spikes == "signed" else self.first.schedule
        assert schedule is not None
        return schedule

    def _encode(self, schedule: Schedule, momentum: float = 0.0) -> nn.Module:
        members = self.first.members if self.spikes == "binary" else 1
        timed = self.first.over_time
        return self.hand.simulator.encode(schedule, self.spikes, members, momentum, timed)

    def change(self) -> None:
        """Moves the biases into the initial inputs, and changes the neurons."""
        hand, rest = self.hand, Run(self.hand, self.example)
        initial = {call: samples(hand, rest, call) for call, part in hand.parts()
                   if part.role != "encode"}  # fmt: skip
        self._take_off()
        offset: dict[fx.Node, tuple[float | Tensor, ...]] = {}
        if self.spikes == "binary":
            units = Run(hand, self.example, one_unit)
            offset = {call: samples(hand, units, call) for call in initial}
        sender: Part | None = None
        for call, part in hand.parts():
            if part.role == "neuron":
                options = (self.spikes, initial[call], offset.get(call))
                hand.put(call, hand.simulator.neuron(hand.called(call), *options))
                sender = sender or hand.part(call)
            elif part.role == "encode":
                assert part.schedule is not None
                hand.put(call, self._encode(part.schedule, part.momentum))
        assert sender is not None
        for call in hand.readouts():
            at = offset.get(call, (0.0,))[0]
            hand.put(call, hand.simulator.readout(sender, initial[call][0], at))

    def _take_off(self) -> None:
        """The linear part of every call that increments go through, constants among the arguments
        of neurons included."""
        self._check_shared()
        self.trials = Trials(self.hand, Run(self.hand, self.example), self.first.over_time)
        for call in self.passed:
            varies = [n for n in call.all_input_nodes if n in self.state]
            take_off(self.hand, self.trials, call, varies)
        for call in self.hand.neurons():
            for value in [n for n in call.all_input_nodes if n not in self.state]:
                with self.hand.graph.inserting_before(call):
                    zero = self.hand.graph.call_function(torch.zeros_like, (value,))
                call.replace_input_with(value, zero)
                self.hand.edited = True

    def _check_shared(self) -> None:
        passed = {self.hand.module(call) for call in self.passed} - {None}
        for call in self.hand.graph.nodes:
            if self.hand.module(call) in passed and call not in self.passed:
                raise InputError(
                    f"{self.hand.where(call)} is called with increments and with values, so its "
                    "bias cannot be removed. Use a separate layer for each call."
                )
