"""From spikes to decoded values: initial inputs become biases again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import InputError
from ...neurons.schedules import ConstantSchedule
from .examining import examine
from .hand import Hand
from .linear import Shift, drops
from .parts import Part
from .resting import Run, close, compact

# what an input coding with this schedule has decoded after a step is its input, to the bit
EXACT = ConstantSchedule(1.0)


def to_decoded(net: nn.Module, example: Any) -> nn.Module:
    """A copy of a network by hand in the decoded form, as ``to_spikes`` takes it: the way back.

    Biases are put back into the layers before the neurons, or where those can hold none, added by
    a module of its own, ``Shift``. ``Readout`` is removed, and ``Encode`` where it is exact
    (``ConstantSchedule(1)``); another one stays, in the decoded form, so that values agree to
    rounding at every step. A norm comes back with its mean in its bias; to train further, train the
    network that was handed to ``to_spikes``. A network that is already in the decoded form is
    copied.

    Raises InputError for a network in which ``check`` finds a fault.
    """
    hand = Hand(net)
    if all(part.spikes == "decoded" for _, part in hand.parts()):
        return hand.root
    report = examine(net, example)
    if not report.ok:
        raise InputError(f"to_decoded: {report.faults_text()}")
    hand.check_calls()
    _put_biases(hand, example)
    for call, part in hand.parts():
        if part.role == "neuron":
            hand.put(call, hand.simulator.neuron(hand.called(call), "decoded", (), None))
        elif part.role == "readout" or (part.schedule == EXACT and not part.momentum):
            hand.remove(call)
        else:
            assert part.schedule is not None
            options = (part.schedule, "decoded", part.members, part.momentum, part.over_time)
            hand.put(call, hand.simulator.encode(*options))
    return hand.network()


def _put_biases(hand: Hand, example: Any) -> None:
    rest = Run(hand, example)
    for call, part in hand.parts():
        if part.role != "encode":
            for value, bias in _biases(hand, rest, call, part).items():
                if not bool((bias == 0).all()):
                    _put_bias(hand, rest, value, call, compact(bias))


def _biases(hand: Hand, rest: Run, call: fx.Node, part: Part) -> dict[fx.Node, Tensor]:
    """What initial inputs hold beyond what the layers make of resting values, by input."""
    found: dict[fx.Node, Tensor] = {}
    values = [n for n in call.args if isinstance(n, fx.Node)]
    for value, x, initial in zip(values, rest.inputs(call), _spread(part, call), strict=True):
        row = x[0, 0] if part.over_time else x[0]
        given = torch.as_tensor(initial, dtype=x.dtype, device=x.device).detach()
        bias = given.expand_as(row) - row
        if not close(found.setdefault(value, bias), bias):
            raise InputError(
                f"{hand.where(call)} takes one value as two inputs, with two values of "
                "initial_input, so it is not the bias of a preceding layer. Make them equal."
            )
    return found


def _spread(part: Part, call: fx.Node) -> tuple[float | Tensor, ...]:
    inputs = len(call.args)
    return part.initial * inputs if len(part.initial) == 1 else part.initial


def _put_bias(hand: Hand, rest: Run, value: fx.Node, call: fx.Node, bias: float | Tensor) -> None:
    """Into the layer before, where it is one that has a bias for each channel and feeds this call
    alone; else added by a ``Shift``."""
    for layer in _chain(hand, value):
        module, like = hand.called(layer), rest.env[layer]
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
        module = hand.module(value)
        if sum(hand.module(other) is module for other in hand.graph.nodes) > 1:
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
    module.bias = nn.Parameter(values.to(weight))  # trains, also beside a weight that does not
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
