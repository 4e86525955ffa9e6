"""signGD neurons as a node of a network description."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from .. import spikes
from ..base import KEPT, Code, Factor, Learned, Make, Neuron
from ..by_hand import RANGES
from ..schedules import Schedule, is_constant, name_schedule
from .sequence import signgd_multi_step
from .step import (
    SignGDParameters,
    SignGDSpikeState,
    SignGDState,
    signgd_start_state,
    signgd_step,
    signs,
    weighted_spike,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class SignGDNeuron(Neuron):
    kind = "signgd"
    spike_view = True
    sized_by = "scale"
    schedule: Schedule
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    momentum: float = 0.0
    members: int = 1  # signs of one step, of sizes eta, eta / 2, ...
    dead_zone: float | Tensor = 0.0  # theta, of a step: within it a member is silent

    def resized(self, factor: float) -> Self:
        return replace(self, scale=self.scale * factor)

    def learning(self, make: Make) -> Self:
        """Scale, resting value and dead zone, each for every channel that has a scale of its own.

        A zone is learned where there is one, and it is not wider than learned ones may be.
        """
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        finest = scale * (self.schedule(1) * self.finest)
        node = replace(
            super().learning(make),
            scale=make(self.scale, Learned(1.0, *RANGES["scale"], relative=True)),
            resting=make(self._each(self.resting), Learned(finest)),
        )
        if not self._learns_zone():
            return node
        zone = Learned(1.0, *RANGES["dead_zone"])
        return replace(node, dead_zone=make(self._each(self.dead_zone), zone))

    def _learns_zone(self) -> bool:
        if isinstance(self.dead_zone, nn.Parameter):
            return True
        zone = torch.as_tensor(self.dead_zone, dtype=torch.float32)
        most = torch.tensor(RANGES["dead_zone"][1])
        return bool((zone > 0).any() and (zone <= most).all())

    def _each(self, value: float | Tensor) -> float | Tensor:
        """As many values as scales, where it is a number."""
        if isinstance(value, Tensor) or not isinstance(self.scale, Tensor):
            return value
        return torch.full_like(self.scale, value)

    def reach(self, steps: int) -> tuple[float | Tensor, float | Tensor]:
        total = self._travel(steps)
        return self.resting - total * self.scale, self.resting + total * self.scale

    def _travel(self, steps: int) -> float:
        """The largest distance of v from its resting value, in units of the scale."""
        total, buffer = 0.0, 0.0
        for t in range(1, steps + 1):  # all signs alike, which momentum adds up
            buffer = self.momentum * buffer + 2 - 2.0 ** (1 - self.members)
            total += self.schedule(t) * buffer
        return total

    def distinguishable(self, steps: int) -> int:
        r"""The number of values that the spikes of T steps distinguish.

        .. math::
            N = \min\left(D^T, \; 1 + \lfloor g R / c \rfloor\right), \qquad
            R = \textstyle\sum_t \eta(t) (2 - 2^{1-m}), \qquad c = 2^{1-m} \min_t \eta(t)

        Without a dead zone a step has D = 2^m codes, and neighbours differ by 2 c (g = 1); with
        one, D = 2^(m+1) - 1, and they differ by c (g = 2). So one step distinguishes D values,
        equal steps T (D - 1) + 1 (for single signs the T + 1 of rates), steps that halve 2^T or
        2^(T+1) -
        1. Where steps decay more slowly, codes overlap: there are D^T of them, but only as many
        values within reach as lie c, or 2 c, apart. Where they decay faster, the number of codes is
        the limit.
        """
        sparse = self.parameters.sparse
        codes = (2 ** (self.members + 1) - 1 if sparse else 2**self.members) ** steps
        finest = self.finest * min(self.schedule(t) for t in range(1, steps + 1))
        apart = self._travel(steps) * (2 if sparse else 1) / finest if finest else math.inf
        if math.isinf(apart):
            return codes
        return min(codes, 1 + math.floor(apart * (1 + 1e-12)))  # whole but for roundings

    @property
    def widest_dead_zone(self) -> float:
        return float(torch.as_tensor(self.dead_zone).max())

    @property
    def code(self) -> Code:
        m = self.members
        bits = m + 1 if self.parameters.sparse and m > 1 else m  # d is odd without a dead zone
        return Code("sign" if m == 1 else "graded", bits, 2**m - 1)

    @property
    def steady(self) -> bool:
        return not self.parameters.sparse

    @property
    def frame(self) -> str:
        """v follows f(x) from any value."""
        if self.momentum:
            return "its momentum would carry over from one frame to the next"
        return KEPT

    @property
    def even(self) -> bool:
        return is_constant(self.schedule)

    @property
    def most_spikes(self) -> int:
        return self.members

    @property
    def factor(self) -> Factor:
        return Factor(f"{self.kind} {name_schedule(self.schedule)}", adds=True)

    @property
    def finest(self) -> float:
        return 2.0 ** (1 - self.members)

    def numbers(self, arguments: int) -> int:
        return self.values * (2 if self.momentum else 1) + arguments

    def additions(self, arguments: int) -> int:
        """Against f(x), and a step: for each sign. With a dead zone v - f(x), for each sign one
        against the zone and a step, and v's own."""
        if self.parameters.sparse:
            return self.values * (2 * self.members + (1 if self.members == 1 else 2))
        return self.values * (2 * self.members + (1 if self.momentum else 0))

    @property
    def products(self) -> int:
        return self.values if self.momentum else 0  # of v's memory

    @cached_property
    def parameters(self) -> SignGDParameters:
        return SignGDParameters(
            self.function,
            self.schedule,
            self.scale,
            self.resting,
            self.arguments,
            self.momentum,
            self.members,
            self.dead_zone,
        )

    @property
    def tracks(self) -> SignGDParameters:
        return self.parameters

    def start(self, inputs: tuple[Tensor, ...]) -> SignGDState:
        return signgd_start_state(inputs, inputs[0], self.parameters)

    def sequence(
        self, inputs: tuple[Tensor, ...], state: SignGDState
    ) -> tuple[Tensor, SignGDState]:
        """T steps [T, B, ...] to (v [T, B, ...], state), by the kernels where there are any."""
        done = signgd_multi_step(inputs, state, self.parameters, dtype=inputs[0].dtype)
        return done.y, done.state

    def step(self, inputs: tuple[Tensor, ...], state: SignGDState) -> tuple[Tensor, SignGDState]:
        fires, state = signgd_step(inputs, state, self.parameters)
        self._tell(fires)
        return state.v, state

    def spike_start(self, inputs: tuple[Tensor, ...]) -> SignGDSpikeState:
        """The state before a first step in the spike view, where the inputs are x(0)."""
        return SignGDSpikeState(inputs, self.start(inputs))

    def spike_step(
        self, inputs: tuple[Tensor, ...], state: SignGDSpikeState
    ) -> tuple[Tensor, SignGDSpikeState]:
        """One step of the spike view in torch alone: (weighted spikes, state) of such spikes."""
        p = self.parameters
        x = tuple(a + b for a, b in zip(state.x, inputs, strict=True))
        fires, after = signgd_step(x, state.neuron, p)
        self._tell(fires)
        return weighted_spike(fires, after, p), SignGDSpikeState(x, after)

    def _tell(self, fires: Tensor) -> None:
        spikes.tell(lambda: signs(fires.unsqueeze(0), self.members))
