"""What codes and decodes signGD and rate-coded neurons, as Norse has it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...neurons import coding
from ...neurons.base import spread
from ...neurons.by_hand import check_schedule, chosen_coding
from ...neurons.protocol import (
    check_protocol,
    check_readout,
    encode_step,
    like,
    readout_sequence,
    running_mean,
)
from ...neurons.schedules import Schedule
from .common import scan_steps, single
from .module import Cell, Layer, Neuron


class EncodeParameters(NamedTuple):
    """Parametrization of real-valued input coding (``neurons/coding.py``).

    Parameters:
        schedule (Schedule): the step sizes; with "binary" and "ternary" spikes those of all
            neurons. None is chosen by ``neurons/by_hand.py``: x at once where that is possible
        momentum (float): of the step
        spikes (str): what is sent, "signed" increments of v, "decoded" v, "ternary" v - x, or
            "binary" (1 + v - x) / 2, as published
        members (int): of the neurons that take "binary" spikes
    """

    schedule: Schedule | None = None
    momentum: float = 0.0
    spikes: str = "signed"
    members: int = 1


class EncodeState(NamedTuple):
    """``v`` [B, ...] the decoded input, ``t`` the steps done, ``buffer`` the momentum's memory."""

    v: Tensor
    t: int = 0
    buffer: Tensor | None = None


class _Encode(Neuron):
    Parameters = EncodeParameters
    State = EncodeState
    numbers = ("momentum",)
    counts = ("members",)
    later = {"members": 1}

    @classmethod
    def check_parameters(cls, p: EncodeParameters) -> None:
        offset = 0.0 if p.spikes == "binary" else None
        check_protocol(cls.__name__, p.spikes, 0.0, offset, p.momentum, p.members)

    @classmethod
    def is_first(cls, value: Any) -> bool:
        """A schedule."""
        return isinstance(value, Schedule) and not isinstance(value, type)

    @classmethod
    def _normal(cls, p: EncodeParameters) -> EncodeParameters:
        """p with the schedule that is meant."""
        p = super()._normal(p)
        schedule = chosen_coding(cls.__name__, p.schedule, p.spikes, p.momentum)
        return p._replace(schedule=schedule)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: EncodeState, p: EncodeParameters
    ) -> tuple[Tensor, EncodeState]:
        def step(
            x: Tensor, state: EncodeState, q: coding.RealCodingParameters
        ) -> tuple[Tensor, EncodeState]:
            y, after = encode_step(x, coding.CodingState(*state), q, p.spikes, p.members)
            return y, EncodeState(*after)

        assert p.schedule is not None  # ``_normal`` has chosen
        q = coding.RealCodingParameters(p.schedule, p.momentum)
        return scan_steps(step, single(cls, inputs)[0], state, q)


class EncodeCell(_Encode, Cell):
    """One step of real-valued coding: the input [B, ...] to what a signGD layer takes."""


class Encode(_Encode, Layer):
    """T steps of real-valued coding: inputs [T, B, ...] to what a signGD layer takes."""


class PoissonEncodeParameters(NamedTuple):
    """Parametrization of Poisson input coding (``neurons/coding.py``).

    Parameters:
        scale (float): the amplitude of a spike
        seed (int): of the draws, which depend on (seed, t) alone
        averaged (bool): send the mean of the spikes so far
    """

    scale: float = 1.0
    seed: int = 0
    averaged: bool = False


class PoissonEncodeState(NamedTuple):
    """``v`` [B, ...] the mean of the spikes so far, ``t`` the steps done."""

    v: Tensor
    t: int = 0


class _PoissonEncode(Neuron):
    Parameters = PoissonEncodeParameters
    State = PoissonEncodeState
    numbers = ("scale",)
    counts = ("seed",)

    @classmethod
    def check_parameters(cls, p: PoissonEncodeParameters) -> None:
        coding.PoissonCodingParameters(p.scale, p.seed)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: PoissonEncodeState, p: PoissonEncodeParameters
    ) -> tuple[Tensor, PoissonEncodeState]:
        def step(
            x: Tensor, state: PoissonEncodeState, q: coding.PoissonCodingParameters
        ) -> tuple[Tensor, PoissonEncodeState]:
            spikes, after = coding.poisson_step(x, coding.CodingState(*state), q)
            return after.v if p.averaged else spikes, PoissonEncodeState(after.v, after.t)

        q = coding.PoissonCodingParameters(p.scale, p.seed)
        return scan_steps(step, single(cls, inputs)[0], state, q)


class PoissonEncodeCell(_PoissonEncode, Cell):
    """One step of Poisson coding, [B, ...]."""


class PoissonEncode(_PoissonEncode, Layer):
    """T steps of Poisson coding, [T, B, ...]."""


class ReadoutParameters(NamedTuple):
    """Parametrization of the read-out of signGD networks.

    Parameters:
        initial (float | Tensor): y(0), the bias of the last layer, broadcasts against its output
        spikes (str): what the last layer was handed, "signed", "binary", "ternary" or "decoded"
        schedule (Schedule): the step sizes of the senders, for "binary" and "ternary"
        offset (float | Tensor): W (scale 1) of the last layer, for "binary" alone
        members (int): of the senders, for "binary"
    """

    initial: float | Tensor = 0.0
    spikes: str = "signed"
    schedule: Schedule | None = None
    offset: float | Tensor | None = None
    members: int = 1


class ReadoutState(NamedTuple):
    """``y`` [B, ...] the decoded output, ``t`` the steps done."""

    y: Tensor
    t: int = 0


class _Readout(Neuron):
    Parameters = ReadoutParameters
    State = ReadoutState
    counts = ("members",)
    learns = ("initial",)
    later = {"members": 1}

    @classmethod
    def is_first(cls, value: Any) -> bool:
        """y(0)."""
        return isinstance(value, (int, float, Tensor))

    @classmethod
    def check_parameters(cls, p: ReadoutParameters) -> None:
        check_protocol(cls.__name__, p.spikes, p.initial, p.offset, members=p.members)
        check_readout(cls.__name__, p.spikes, p.schedule)
        if p.schedule is not None:
            check_schedule(cls.__name__, p.schedule)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: ReadoutParameters) -> ReadoutState:
        (current,) = single(cls, inputs)
        return ReadoutState(spread(like(p.initial, current), current.shape, "initial"))

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: ReadoutState, p: ReadoutParameters
    ) -> tuple[Tensor, ReadoutState]:
        (current,) = single(cls, inputs)
        offset = 0.0 if p.offset is None else p.offset
        y_seq, y = readout_sequence(
            current, state.y, state.t, p.spikes, p.schedule, offset, p.members
        )
        return y_seq, ReadoutState(y, state.t + current.shape[0])


class ReadoutCell(_Readout, Cell):
    """One step of the read-out: what the last layer makes of spikes [B, ...], decoded."""


class Readout(_Readout, Layer):
    """T steps of the read-out: what the last layer makes of spikes [T, B, ...], decoded."""


class RunningMeanParameters(NamedTuple):
    """The running mean has no parameters."""


class RunningMeanState(NamedTuple):
    """``total`` [B, ...] the sum of the inputs so far, ``t`` the steps done."""

    total: Tensor
    t: int = 0


class _RunningMean(Neuron):
    Parameters = RunningMeanParameters
    State = RunningMeanState

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: RunningMeanState, p: Any
    ) -> tuple[Tensor, RunningMeanState]:
        (x_seq,) = single(cls, inputs)
        y_seq, total = running_mean(x_seq, state.total, state.t)
        return y_seq, RunningMeanState(total, state.t + x_seq.shape[0])


class RunningMeanCell(_RunningMean, Cell):
    """One step of the read-out of rate-coded networks: the mean of the inputs so far."""


class RunningMean(_RunningMean, Layer):
    """T steps of the read-out of rate-coded networks: the mean of the inputs so far."""


def encode_layer(node: coding.Encoder, spikes: str, kernels: str) -> Encode | PoissonEncode:
    """The layer of a network's input coding."""
    if node.coding == "poisson":
        p = PoissonEncodeParameters(node.scale, node.seed, averaged=not node.per_step)
        return PoissonEncode(p)
    assert node.schedule is not None
    return Encode(EncodeParameters(node.schedule, node.momentum, spikes))
