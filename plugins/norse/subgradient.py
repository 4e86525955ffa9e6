"""The rate-coded baseline as Norse has it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...errors import InputError
from ...neurons import subgradient
from ...neurons.by_hand import check_schedule
from ...neurons.protocol import at_least_float32
from ...neurons.schedules import InverseSchedule, Schedule
from .common import scan_steps, single, trains
from .module import Cell, Layer, Neuron


class SubgradientParameters(NamedTuple):
    """Parametrization of the rate-coded baseline for ReLU (``neurons/subgradient.py``).

    Parameters:
        scale (float | Tensor): the largest output, broadcasts against v
        schedule (Schedule): the step sizes, 1 / (t + 1)
    """

    scale: float | Tensor = 1.0
    schedule: Schedule = InverseSchedule(1.0, delay=1.0)


class SubgradientState(NamedTuple):
    """``v`` [B, ...] the decoded rate, ``t`` the steps done."""

    v: Tensor
    t: int = 0


class _Subgradient(Neuron):
    Parameters = SubgradientParameters
    State = SubgradientState

    @classmethod
    def check_parameters(cls, p: SubgradientParameters) -> None:
        check_schedule(cls.__name__, p.schedule)
        subgradient.SubgradientParameters(p.scale, p.schedule)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: SubgradientState, p: SubgradientParameters
    ) -> tuple[Tensor, SubgradientState]:
        if trains(*inputs, *state, p.scale):
            raise InputError(
                f"{cls.__name__}: the rate-coded baseline has no gradient, and the layers before "
                "it would not be trained. Run it under torch.no_grad(), or use SignGD."
            )
        dynamics = subgradient.SubgradientParameters(
            at_least_float32(p.scale), p.schedule, check=False
        )

        def step(
            x: Tensor, state: SubgradientState, p: subgradient.SubgradientParameters
        ) -> tuple[Tensor, SubgradientState]:
            _, after = subgradient.subgradient_step(x, subgradient.SubgradientState(*state), p)
            return after.v, SubgradientState(*after)

        return scan_steps(step, single(cls, inputs)[0], state, dynamics)


class SubgradientCell(_Subgradient, Cell):
    """One step [B, ...] of the baseline: decoded x(t) in, v(t) out."""


class Subgradient(_Subgradient, Layer):
    """T steps [T, B, ...] of the baseline: decoded x(t) in, v(t) out."""
