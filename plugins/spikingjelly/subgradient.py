"""The rate-coded baseline as SpikingJelly nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...neurons.schedules import InverseSchedule, Schedule
from ...neurons.subgradient import SubgradientParameters, SubgradientState, subgradient_step
from .base import Record, Recording, Shapes, hold, show


class _SubgradientNodeState(NamedTuple):
    v: Tensor
    t: int = 0
    shapes: Shapes | None = None


class SubgradientNode(Recording):
    """The rate-coded baseline for ReLU (``neurons/subgradient.py``): decoded x(t) in, v(t) out.

    ``scale``, the largest output, broadcasts against x; the schedule is 1 / (t + 1) unless given.
    """

    State = _SubgradientNodeState

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        schedule: Schedule | None = None,
        *,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(step_mode=step_mode, store_v_seq=store_v_seq)
        self.schedule = InverseSchedule(1.0, delay=1.0) if schedule is None else schedule
        hold(self, "scale", scale)
        self._dynamics = SubgradientParameters(scale, self.schedule)

    @property
    def dynamics(self) -> SubgradientParameters:
        if self._dynamics.scale is not self.scale:
            self._dynamics = SubgradientParameters(self.scale, self.schedule)
        return self._dynamics

    @torch.no_grad()
    def _step(
        self, inputs: tuple[Tensor, ...], state: _SubgradientNodeState, record: Record | None
    ) -> tuple[Tensor, _SubgradientNodeState]:
        (x,) = inputs
        fires, after = subgradient_step(x, SubgradientState(state.v, state.t), self.dynamics)
        if record is not None:
            record.append((after.v, fires))
        return after.v, _SubgradientNodeState(*after, state.shapes)

    def extra_repr(self) -> str:
        return f"scale={show(self.scale)}, {self.schedule!r}, step_mode={self.step_mode!r}"
