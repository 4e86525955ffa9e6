"""What codes and decodes signGD and rate-coded neurons, as SpikingJelly modules."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...neurons.by_hand import chosen_coding
from ...neurons.coding import (
    CodingState,
    Encoder,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_step,
)
from ...neurons.protocol import (
    check_protocol,
    check_readout,
    encode_step,
    like,
    readout_sequence,
    running_mean,
)
from ...neurons.schedules import Schedule
from .base import Defined, Record, Shapes, Stateful, hold, show


class _EncodeState(NamedTuple):
    v: Tensor
    t: int = 0
    buffer: Tensor | None = None
    shapes: Shapes | None = None


class Encode(Defined):
    """Real-valued input coding (``neurons/coding.py``): v follows the input x, v(0) = 0.

    Sends the increments of v ("signed"), v ("decoded"), or (1 + v - x) / 2 ("binary", as
    published: not binary at all, but decoded by the same formula as binary spikes, those of neurons
    of ``members``), or likewise v - x ("ternary"). Without a ``schedule`` v is x at once, but with
    "binary" and "ternary" spikes and momentum follows it with the default of single signs.
    """

    State = _EncodeState

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        momentum: float = 0.0,
        spikes: str = "signed",
        members: int = 1,
        step_mode: str = "s",
    ) -> None:
        super().__init__(step_mode)
        offset = 0.0 if spikes == "binary" else None
        check_protocol(self._get_name(), spikes, 0.0, offset, momentum, members)
        chosen = chosen_coding(self._get_name(), schedule, spikes, momentum)
        self.dynamics = RealCodingParameters(chosen, momentum)
        self.members = members
        self.spikes = spikes

    def _definition(self) -> dict[str, Any]:
        return {
            "schedule": self.dynamics.schedule.to_dict(),
            "momentum": self.dynamics.momentum,
            "members": self.members,
            "spikes": self.spikes,
        }

    def _step(
        self, inputs: tuple[Tensor, ...], state: _EncodeState, record: Record | None
    ) -> tuple[Tensor, _EncodeState]:
        (x,) = inputs
        coded = CodingState(state.v, state.t, state.buffer)
        y, after = encode_step(x, coded, self.dynamics, self.spikes, self.members)
        return y, _EncodeState(*after, state.shapes)

    def extra_repr(self) -> str:
        p = self.dynamics
        momentum = f"momentum={p.momentum}, " if p.momentum else ""
        return f"{p.schedule!r}, {momentum}spikes={self.spikes!r}, step_mode={self.step_mode!r}"


class _PoissonEncodeState(NamedTuple):
    v: Tensor
    t: int = 0
    shapes: Shapes | None = None


class PoissonEncode(Stateful):
    """Poisson input coding (``neurons/coding.py``): spikes of amplitude ``scale``, signed.

    Sends the spikes, or their mean so far if ``averaged``. The same seed draws the same spikes
    after every reset, however the steps are cut into calls.
    """

    State = _PoissonEncodeState

    def __init__(
        self, scale: float = 1.0, *, seed: int = 0, averaged: bool = False, step_mode: str = "s"
    ) -> None:
        super().__init__(step_mode)
        self.dynamics = PoissonCodingParameters(scale, seed)
        self.averaged = averaged

    def _step(
        self, inputs: tuple[Tensor, ...], state: _PoissonEncodeState, record: Record | None
    ) -> tuple[Tensor, _PoissonEncodeState]:
        spikes, after = poisson_step(inputs[0], CodingState(state.v, state.t), self.dynamics)
        y = after.v if self.averaged else spikes
        return y, _PoissonEncodeState(after.v, after.t, state.shapes)

    def extra_repr(self) -> str:
        p = self.dynamics
        return f"scale={p.scale}, seed={p.seed}, averaged={self.averaged}"


def encode(node: Encoder, spikes: str = "decoded") -> Encode | PoissonEncode:
    """The module of a network's input coding."""
    if node.coding == "poisson":
        return PoissonEncode(node.scale, seed=node.seed, averaged=not node.per_step)
    assert node.schedule is not None
    return Encode(node.schedule, momentum=node.momentum, spikes=spikes)


class _ReadoutState(NamedTuple):
    y: Tensor
    t: int = 0
    shapes: Shapes | None = None


class Readout(Defined):
    """Accumulates what the last linear layer makes of the spikes to the decoded output y(t).

    ``initial`` is the layer's bias, y(0); "binary" needs the senders' ``schedule`` and ``members``
    and the offset of the layer, "ternary" their schedule.
    """

    State = _ReadoutState

    def __init__(
        self,
        initial: float | Tensor = 0.0,
        *,
        spikes: str = "signed",
        schedule: Schedule | None = None,
        offset: float | Tensor | None = None,
        members: int = 1,
        step_mode: str = "s",
    ) -> None:
        super().__init__(step_mode)
        check_protocol(self._get_name(), spikes, initial, offset, members=members)
        check_readout(self._get_name(), spikes, schedule)
        hold(self, "initial", initial)
        hold(self, "offset", 0.0 if offset is None else offset)
        self.schedule = schedule
        self.members = members
        self.spikes = spikes

    def _definition(self) -> dict[str, Any]:
        return {
            "schedule": None if self.schedule is None else self.schedule.to_dict(),
            "members": self.members,
            "spikes": self.spikes,
        }

    def _numbers(self) -> tuple[str, ...]:
        return ("initial", "offset")

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _ReadoutState:
        (current,) = inputs
        return _ReadoutState(like(self.initial, current).expand(current.shape), 0, None)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _ReadoutState, record: Record | None
    ) -> tuple[Tensor, _ReadoutState]:
        (current,) = inputs
        y_seq, y = readout_sequence(
            current, state.y, state.t, self.spikes, self.schedule, self.offset, self.members
        )
        return y_seq, _ReadoutState(y, state.t + current.shape[0], state.shapes)

    def extra_repr(self) -> str:
        parts = [f"initial={show(self.initial)}"]
        if self.spikes in ("binary", "ternary"):
            parts.append(repr(self.schedule))
        if self.spikes == "binary":
            parts.append(f"offset={show(self.offset)}")
        return ", ".join([*parts, f"spikes={self.spikes!r}", f"step_mode={self.step_mode!r}"])


class _RunningMeanState(NamedTuple):
    total: Tensor
    t: int = 0
    shapes: Shapes | None = None


class RunningMean(Stateful):
    """The mean of all inputs since the last reset: the read-out of rate-coded networks."""

    State = _RunningMeanState

    def __init__(self, *, step_mode: str = "s") -> None:
        super().__init__(step_mode)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _RunningMeanState, record: Record | None
    ) -> tuple[Tensor, _RunningMeanState]:
        (x_seq,) = inputs
        y_seq, total = running_mean(x_seq, state.total, state.t)
        return y_seq, _RunningMeanState(total, state.t + x_seq.shape[0], state.shapes)
