"""The running mean over the steps so far: decodes what rate-coded neurons send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Timed, Value
from .protocol import running_mean


@dataclass(frozen=True, eq=False, kw_only=True)
class Average(Timed):
    """The running mean over the steps so far: decodes what rate-coded neurons send."""

    kind = "average"
    spike_view = False

    def visit(self, semantics: Any, inputs: list[Value]) -> Value:
        return semantics.average(self, inputs)  # type: ignore[no-any-return]

    def start(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """(sum, steps done)"""
        return torch.zeros_like(inputs[0]), 0

    def sequence(
        self, inputs: tuple[Tensor, ...], state: tuple[Tensor, int]
    ) -> tuple[Tensor, tuple[Tensor, int]]:
        """T steps of inputs [T, B, ...] to (their means so far, state)."""
        (x_seq,), (total, t) = inputs, state
        y_seq, total = running_mean(x_seq, total, t)
        return y_seq, (total, t + len(x_seq))
