r"""Input coding: how real-valued inputs enter a spiking network step by step.

*Real-valued* coding is that of the published signGD code: the encoder's state v follows the input,
:math:`v \leftarrow v - \eta(t) (v - x)`, and it sends real values. *Poisson* coding sends signed
spikes of amplitude ``scale`` with probability ``|x| / scale``; decoding takes their mean.
Spike coding by signs is a signGD neuron of the identity and needs nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import spikes
from .base import FOLDS, KEPT, MEAN, Code, Factor, Timed, Value
from .scan import scan
from .schedules import Schedule, is_constant


class CodingState(NamedTuple):
    """``v`` [B, ...] the decoded input, ``t`` the steps done, ``buffer`` the momentum's memory."""

    v: Tensor
    t: int = 0
    buffer: Tensor | None = None


@dataclass(frozen=True)
class RealCodingParameters:
    schedule: Schedule
    momentum: float = 0.0


def real_step(x: Tensor, state: CodingState, p: RealCodingParameters) -> tuple[Tensor, CodingState]:
    """Input x [B, ...] to (decoded input v(t), state); 1 - prod(1 - eta) of x is reached."""
    t = state.t + 1
    gradient = state.v - x
    if p.momentum != 0.0 and state.buffer is not None:
        gradient = p.momentum * state.buffer + gradient
    v = state.v - p.schedule(t) * gradient
    return v, CodingState(v, t, gradient if p.momentum != 0.0 else None)


@dataclass(frozen=True)
class PoissonCodingParameters:
    """``scale`` is the amplitude of a spike; inputs beyond it saturate at one spike a step."""

    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(
                f"PoissonCodingParameters: scale is the amplitude of a spike, so it is positive "
                f"and finite, but it is {self.scale!r}."
            )


def poisson_spikes(x: Tensor, t: int, p: PoissonCodingParameters) -> Tensor:
    """The spikes of step t in {-scale, 0, scale} [B, ...]; a step's draw depends on (seed, t)."""
    generator = torch.Generator(device=x.device).manual_seed(p.seed * 1_000_003 + t)
    draw = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.where(draw * p.scale < x.abs(), x.sign() * p.scale, 0.0)


def poisson_step(
    x: Tensor, state: CodingState, p: PoissonCodingParameters
) -> tuple[Tensor, CodingState]:
    """Input x [B, ...] to (spikes, state); the state's v is the mean of the spikes so far."""
    t = state.t + 1
    sent = poisson_spikes(x, t, p)
    spikes.tell(lambda: spikes.Events(sent.sign().unsqueeze(0), sent.sign().abs().unsqueeze(0)))
    return sent, CodingState(state.v + (sent - state.v) / t, t)


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoder(Timed):
    """Real-valued ("real", with its schedule) or "poisson" input coding."""

    kind = "encoder"
    coding: str
    schedule: Schedule | None = None
    momentum: float = 0.0
    scale: float = 1.0
    seed: int = 0
    per_step: bool = False  # poisson: the spikes themselves (rate-coded networks), or their mean

    @property
    def spikes(self) -> bool:
        """Whether it sends spikes, not real values."""
        return self.coding == "poisson"

    @property
    def code(self) -> Code | None:
        return Code("sign", 1, 1) if self.spikes else None

    def distinguishable(self, steps: int) -> int:
        return 2 * steps + 1  # of either sign

    @property
    def unit(self) -> float | None:
        return self.scale if self.spikes and self.per_step else None

    @property
    def factor(self) -> Factor | None:
        if not self.spikes:
            return None
        return FOLDS if self.per_step else MEAN

    @property
    def steady(self) -> bool:
        return not self.spikes

    @property
    def frame(self) -> str:
        """With real-valued coding v follows the input from any value."""
        if self.coding == "poisson":
            return (
                "Poisson coding draws random spikes for each frame, so that the estimate has to "
                "converge again"
            )
        if self.momentum:
            return "its momentum would carry over from one frame to the next"
        return KEPT

    @property
    def even(self) -> bool:
        return self.schedule is not None and is_constant(self.schedule)

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.encoder(self, inputs)  # type: ignore[no-any-return]

    @property
    def spike_view(self) -> bool:  # type: ignore[override]
        return self.coding == "real"

    def start(self, inputs: tuple[Tensor, ...]) -> CodingState:
        return CodingState(torch.zeros_like(inputs[0]))

    def step(self, inputs: tuple[Tensor, ...], state: CodingState) -> tuple[Tensor, CodingState]:
        """One step, [B, ...]: the decoded value so far, or the Poisson spikes of this step."""
        if self.coding == "poisson":
            sent, state = poisson_step(
                inputs[0], state, PoissonCodingParameters(self.scale, self.seed)
            )
            return (sent if self.per_step else state.v), state
        assert self.schedule is not None
        return real_step(inputs[0], state, RealCodingParameters(self.schedule, self.momentum))

    def spike_step(
        self, inputs: tuple[Tensor, ...], state: CodingState
    ) -> tuple[Tensor, CodingState]:
        """Real-valued coding in the spike view: the increments of v."""
        v, after = self.step(inputs, state)
        return v - state.v, after

    def sequence(
        self, inputs: tuple[Tensor, ...], state: CodingState
    ) -> tuple[Tensor, CodingState]:
        """T steps of inputs [T, B, ...]."""
        steps = list(zip(*inputs, strict=True))
        return scan(lambda x, before, _: self.step(x, before), steps, state, None)
