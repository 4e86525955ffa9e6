"""A network by hand in another form: biases into initial inputs, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import InputError
from ...neurons.protocol import SPIKES
from ...neurons.schedules import ConstantSchedule, Schedule
from .examining import examine
from .hand import Hand, after, before
from .linear import (
    FIRST,
    LINEAR,
    MOVES,
    NONLINEAR,
    PLAIN,
    STATEFUL,
    STEPS,
    Shift,
    Trials,
    drops,
    take_off,
    unlike_eval,
)
from .parts import Part
from .resting import Run, check_example, compact, one_unit, samples

# what an input coding with this schedule has decoded after a step is its input, to the bit
EXACT = ConstantSchedule(1.0)

_WHY = {
    NONLINEAR: "is not linear, and increments of a value say nothing of a function of it. Use a "
    "signGD node of that function in its place",
    STATEFUL: "has a state of its own and takes values, not increments. Use a signGD node in its "
    "place",
    STEPS: "mixes time steps, or makes or takes away their axis. Do that before the first layer "
    "or after the last one",
}


def to_spikes(net: nn.Module, example: Any, spikes: str = "signed") -> nn.Module:
    """A copy of a network by hand in the form that hardware sees: signs or silence.

    ``net`` is in the decoded form (one in a spiking form is brought there first); ``example`` is
    what it is called with, [N, *], or [T, N, *] over time, of which the shapes count; several
    inputs are a tuple. Biases and shifts of norms leave the layers and go, with what the layers
    make of the resting values, into ``initial_input`` of the neurons behind them; an ``Encode``
    stands at the input and a ``Readout`` at each output. ``spikes`` is "signed", "ternary" or
    "binary" (``neurons/protocol.py``).

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


def to_decoded(net: nn.Module, example: Any) -> nn.Module:
    """A copy of a network by hand in the decoded form, as ``to_spikes`` takes it: the way back.

    Biases are put back into the layers before the neurons, or where those can hold none, added by
    a module of its own, ``Shift``. ``Readout`` is removed, and ``Encode`` where it is exact
    (``ConstantSchedule(1)``); another one stays, in the decoded form, so that values agree to
    rounding at every step. A network in the decoded form is copied.

    Raises InputError for a network in which ``check`` finds a fault.
    """
    report = examine(net, example)
    if not report.ok:
        raise InputError(f"to_decoded: {report.faults_text()}")
    hand = Hand(net)
    if all(part.spikes == "decoded" for _, part in hand.parts()):
        return hand.root
    _put_biases(hand, example)
    for call, part in hand.parts():
        if part.role == "neuron":
            hand.put(call, hand.simulator.neuron(_module(hand, call), "decoded", (), None))
        elif part.role == "readout" or (part.schedule == EXACT and not part.momentum):
            hand.remove(call)
        else:
            assert part.schedule is not None
            options = (part.schedule, "decoded", part.members, part.momentum, part.over_time)
            hand.put(call, hand.simulator.encode(*options))
    return hand.network()


# -- what can be changed --------------------------------------------------------------------------


def _check(hand: Hand, example: Any, spikes: str) -> None:
    """Raises InputError, by name, where the network cannot have such spikes."""
    for path, module in unlike_eval(hand.root):
        raise InputError(
            f"'{path}' ({type(module).__name__}) is in training mode, in which it is not the layer "
            "that will run. Call net.eval() first."
        )
    neurons = hand.neurons()
    if not neurons:
        raise InputError(f"{hand.name} has no signGD neurons, and others have one form alone.")
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
        return f"has momentum={part.momentum}, which a sign or silence cannot carry"
    if part.schedule != first.schedule:
        return (
            f"has the schedule {part.schedule!r}, and {where} has {first.schedule!r}, but the "
            f"receivers of {spikes} spikes know one common schedule"
        )
    if part.role == "encode":
        return None
    assert part.dynamics is not None
    if spikes == "ternary" and part.members > 1:
        return f"has members={part.members}, and a ternary spike is one sign or silence"
    if spikes == "binary" and part.members != first.members:
        return f"has members={part.members}, and {where} has {first.members}, but one is common"
    if spikes == "binary" and part.dynamics.sparse:
        return (
            "has a dead zone, and a binary spike cannot say that a neuron is silent (dead_zone=0)"
        )
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
                f"{self.hand.where(call)} comes after a read-out or another coding: one network by "
                "hand has its codings at the inputs and its read-outs at the outputs."
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
                hand.put(call, hand.simulator.neuron(_module(hand, call), *options))
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
        targets = {call.target for call in self.passed if call.op == "call_module"}
        for call in self.hand.graph.nodes:
            if call.op == "call_module" and call.target in targets and call not in self.passed:
                raise InputError(
                    f"{self.hand.where(call)} is called with increments and with values, so it "
                    "cannot lose its bias. Give each place a layer of its own."
                )


def _module(hand: Hand, call: fx.Node) -> nn.Module:
    module = hand.module(call)
    assert module is not None
    return module


# -- back to decoded values -----------------------------------------------------------------------


def _put_biases(hand: Hand, example: Any) -> None:
    """What initial inputs hold beyond what the layers make of resting values, as biases."""
    rest = Run(hand, example)
    for call, part in hand.parts():
        if part.role == "encode":
            continue
        values = [n for n in call.args if isinstance(n, fx.Node)]
        for value, x, initial in zip(values, rest.inputs(call), _spread(part, call), strict=True):
            row = x[0, 0] if part.over_time else x[0]
            bias = torch.as_tensor(initial, dtype=x.dtype, device=x.device).expand_as(row) - row
            if not bool((bias == 0).all()):
                _put_bias(hand, rest, value, call, compact(bias))


def _spread(part: Part, call: fx.Node) -> tuple[float | Tensor, ...]:
    inputs = len(call.args)
    return part.initial * inputs if len(part.initial) == 1 else part.initial


def _put_bias(hand: Hand, rest: Run, value: fx.Node, call: fx.Node, bias: float | Tensor) -> None:
    """Into the layer before, where it is one that has a bias for each channel and feeds this call
    alone; else added by a ``Shift``."""
    for layer in _chain(hand, value):
        module, like = _module(hand, layer), rest.env[layer]
        if _take_bias(module, like, bias, _over_time(hand)):
            return
        if not isinstance(module, nn.Identity) and not drops(module):
            break
    like = rest.env[value]
    given = torch.as_tensor(bias, dtype=like.dtype, device=like.device)
    hand.insert("bias", Shift(given), value, call)


def _over_time(hand: Hand) -> bool:
    return any(part.over_time for _, part in hand.parts())


def _chain(hand: Hand, value: fx.Node) -> Iterator[fx.Node]:
    """The modules before, as long as each is called once and feeds the next one alone."""
    while len(value.users) == 1 and value.op == "call_module" and hand.part(value) is None:
        if sum(other.target == value.target for other in hand.graph.nodes) > 1:
            return
        yield value
        value = value.all_input_nodes[0]


def _take_bias(module: nn.Module, y: Tensor, bias: float | Tensor, over_time: bool) -> bool:
    """Whether the layer that made y took it: one value for each of its channels."""
    module = getattr(module, "lifted_module", module)  # of Norse's Lift
    channels, free = _channels(module)
    if channels is None or not free:
        return False
    behind = 0 if isinstance(module, nn.Linear) else y.dim() - (3 if over_time else 2)
    given = torch.as_tensor(bias, dtype=y.dtype, device=y.device)
    given = given.reshape([1] * (behind + 1 - given.dim()) + list(given.shape))
    if given.dim() > behind + 1 or any(size != 1 for size in given.shape[1:]):
        return False
    weight: Tensor = module.weight  # type: ignore[assignment]
    values = given.flatten().expand(channels).clone()
    module.bias = nn.Parameter(values.to(weight), requires_grad=weight.requires_grad)
    return True


def _channels(module: nn.Module) -> tuple[int | None, bool]:
    """How many values a bias of the layer has, and whether it has none yet."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features, isinstance(module.bias, Tensor)  # which is zero
    if isinstance(module, nn.Linear):
        return module.out_features, module.bias is None
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels, module.bias is None
    return None, False
