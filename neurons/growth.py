r"""Pooling of spikes that count: the growth of f over the cumulative inputs.

.. math::
    X_i(t) &= X_i(t-1) + x_i(t), \qquad X_i(0) = 0 \\
    \text{out}(t) &= f(X_1(t), X_2(t), \dots) - f(X_1(t-1), X_2(t-1), \dots)

for functions f that select one of their inputs, such as max pooling. What rate-coded neurons send
means something by its sum alone: the maximum of single steps, summed, is more than the maximum of
the sums, wherever the largest input is another one from step to step. The outputs here add up to
f of the sums exactly, so f of the mean over T steps is their mean. With T = 1 it is f itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import FOLDS, Factor, Neuron
from .nonlinearities import NONLINEARITIES, Nonlinearity, nonlinearity

Function = Callable[..., Tensor]


class GrowthState(NamedTuple):
    """``totals``: the sum of each input so far; ``last``: f of them, in the shape of the output."""

    totals: tuple[Tensor, ...]
    last: Tensor


def growth_initial_state(inputs: tuple[Tensor, ...], function: Function) -> GrowthState:
    """Nothing has arrived: f of zeros, which is zero."""
    totals = tuple(torch.zeros_like(x) for x in inputs)
    return GrowthState(totals, function(*totals))


def growth_step(
    inputs: tuple[Tensor, ...], state: GrowthState, function: Function
) -> tuple[Tensor, GrowthState]:
    """One step: inputs [B, ...] to (output, state)."""
    totals = tuple(a + b for a, b in zip(state.totals, inputs, strict=True))
    after = function(*totals)
    return after - state.last, GrowthState(totals, after)


def selecting(owner: str, function: str | Nonlinearity) -> Nonlinearity:
    """The row, or a ValueError: of a function that makes new values no growth is a spike's."""
    row = nonlinearity(function)
    if not row.selects:
        names = ", ".join(name for name, each in NONLINEARITIES.items() if each.selects)
        raise ValueError(
            f"{owner}: growth is that of a function that selects one of its inputs, {names}, but "
            f"{row.name!r} does not. Take group neurons for ReLU and QCFS."
        )
    return row


@dataclass(frozen=True, eq=False, kw_only=True)
class Growth(Neuron):
    """The growth of a function that selects, such as max pooling, of what group neurons sent.

    Its output is per step.
    """

    kind = "growth"
    decoded = False

    @property
    def factor(self) -> Factor:
        return FOLDS

    @property
    def steady(self) -> bool:
        return False
