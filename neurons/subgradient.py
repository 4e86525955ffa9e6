r"""The rate-coded baseline of the signGD paper: integrate-and-fire as a subgradient method.

.. math::
    s(t) &= \Theta(x(t) - v(t-1)), \quad \Theta(0) = 0 \\
    v(t) &= v(t-1) - \eta(t) (v(t-1) - c\, s(t)), \qquad \eta(t) = 1 / (t + 1)

v is the rate of the neuron's spikes, c S(t) / (t + 1); it approaches ReLU clipped at the scale c.
Only ReLU can be computed this way: its fixed point is built into the dynamics.

Source: Oh & Lee, ICML 2024 (arXiv:2407.01645), the "subgradient" mode of the published code.
"""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from . import spikes
from .base import Code, Factor, Neuron
from .scan import scan
from .schedules import InverseSchedule, Schedule, name_schedule


@dataclass(frozen=True, eq=False)
class SubgradientParameters:
    """``scale`` c is the largest output: a number or a tensor that broadcasts against v."""

    scale: float | Tensor = 1.0
    schedule: Schedule = field(default_factory=lambda: InverseSchedule(1.0, delay=1.0))
    check: InitVar[bool] = True  # reads the scale

    def __post_init__(self, check: bool) -> None:
        if check and not bool((torch.as_tensor(self.scale) > 0).all()):
            raise ValueError("SubgradientParameters: scale is positive everywhere.")


class SubgradientState(NamedTuple):
    """``v`` [B, ...] the decoded rate, ``t`` the steps done."""

    v: Tensor
    t: int = 0


def subgradient_step(
    x: Tensor, state: SubgradientState, p: SubgradientParameters
) -> tuple[Tensor, SubgradientState]:
    """One step: decoded input x [B, ...] to (spikes in {0, 1} as bool, state)."""
    t = state.t + 1
    fires = x > state.v
    output = torch.as_tensor(p.scale, dtype=x.dtype, device=x.device) * fires
    if output.shape != state.v.shape:
        raise InputError(
            f"subgradient neurons: a scale for {list(output.shape)} does not broadcast to a state "
            f"v of {list(state.v.shape)}."
        )
    spikes.tell(lambda: spikes.Events(fires.unsqueeze(0), fires.unsqueeze(0)))
    return fires, SubgradientState(state.v - p.schedule(t) * (state.v - output), t)


@dataclass(frozen=True, eq=False, kw_only=True)
class SubgradientNeuron(Neuron):
    """The rate-coded baseline, for ReLU."""

    kind = "subgradient"
    schedule: Schedule
    scale: float | Tensor = 1.0

    def reach(self, steps: int) -> tuple[float | Tensor, float | Tensor]:
        return -math.inf, self.scale  # what it cannot send is not below zero

    @property
    def code(self) -> Code:
        return Code("binary", 1, 1)

    @property
    def factor(self) -> Factor:
        return Factor(f"{self.kind} {name_schedule(self.schedule)}")

    @property
    def steady(self) -> bool:
        return False

    @property
    def frame(self) -> str:
        return (
            "its v is a mean over all steps since the first, which does not restart at a new frame"
        )

    def additions(self, arguments: int) -> int:
        return 2 * self.values

    @property
    def products(self) -> int:
        return self.values  # v

    @property
    def parameters(self) -> SubgradientParameters:
        return SubgradientParameters(self.scale, self.schedule)

    def start(self, inputs: tuple[Tensor, ...]) -> SubgradientState:
        return SubgradientState(torch.zeros_like(inputs[0]))

    def sequence(
        self, inputs: tuple[Tensor, ...], state: SubgradientState
    ) -> tuple[Tensor, SubgradientState]:
        return scan(_decoded_step, inputs[0], state, self.parameters)


def _decoded_step(
    x: Tensor, state: SubgradientState, p: SubgradientParameters
) -> tuple[Tensor, SubgradientState]:
    _, state = subgradient_step(x, state, p)
    return state.v, state
