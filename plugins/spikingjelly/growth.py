"""Pooling of spikes that count as SpikingJelly nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...neurons.choice import Choice, sum_choice
from ...neurons.growth import GrowthState, growth_initial_state, growth_multi_step, selecting
from ...neurons.nonlinearities import Nonlinearity
from .base import Kernel, Record, Shapes, show


class _GrowthNodeState(NamedTuple):
    v: Tensor
    totals: tuple[Tensor, ...]
    shapes: Shapes | None


class GrowthNode(Kernel):
    """Pooling of spikes that count (``neurons/growth.py``), such as those of group neurons.

    Sends the growth of ``function`` over the sums of its inputs so far, ``totals``, of which ``v``
    is the function's value; what is sent adds up to it. ``function`` is a row of which an output is
    one of the inputs, or its name: "max_pool", "amax", "maximum" and others; ``arguments`` are its
    parameters. With one step it is the function itself.
    """

    State = _GrowthNodeState

    def __init__(
        self,
        function: str | Nonlinearity,
        arguments: Mapping[str, Any] | None = None,
        *,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(step_mode=step_mode, backend=backend, store_v_seq=store_v_seq)
        self.function = selecting(self._get_name(), function)
        self._arity = self.function.arity
        self.arguments = dict(arguments or {})

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _GrowthNodeState:
        totals, v = growth_initial_state(inputs, partial(self.function, **self.arguments))
        return _GrowthNodeState(v, totals, None)

    def choice(self, x: Tensor) -> Choice:
        return sum_choice(self.backend, x)

    @torch.no_grad()
    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _GrowthNodeState, record: Record | None
    ) -> tuple[Tensor, _GrowthNodeState]:
        done = growth_multi_step(
            inputs,
            GrowthState(state.totals, state.v),
            self.function,
            self.arguments,
            backend=self.backend,
            keep_last=record is not None,
        )
        if record is not None:
            assert done.last_seq is not None
            record.append((done.last_seq, None))
        return done.y, _GrowthNodeState(done.state.last, done.state.totals, state.shapes)

    def extra_repr(self) -> str:
        given = "".join(f"{key}={show(value)}, " for key, value in self.arguments.items())
        return f"{self.function.name}, {given}step_mode={self.step_mode!r}"
