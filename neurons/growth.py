r"""Pooling of spikes that count: the growth of f over the cumulative inputs.

.. math::
    X_i(t) &= X_i(t-1) + x_i(t), \qquad X_i(0) = 0 \\
    \text{out}(t) &= f(X_1(t), X_2(t), \dots) - f(X_1(t-1), X_2(t-1), \dots)

for functions f that select one of their inputs, such as max pooling. For rate-coded neurons only
the sum of the spikes carries the value: if the largest input changes from step to step, the sum of
the maxima of single steps exceeds the maximum of the sums. The outputs here add up to f of the sums
exactly, so f of the mean over T steps is their mean. With T = 1 it is f itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .base import FOLDS, Factor, Neuron
from .choice import against_input, against_types, check_types, choose
from .kernels import operators
from .nonlinearities import NONLINEARITIES, Nonlinearity, nonlinearity
from .scan import scan

Function = Callable[..., Tensor]


class GrowthState(NamedTuple):
    """``totals``: the sum of each input so far; ``last``: f of them, in the shape of the output."""

    totals: tuple[Tensor, ...]
    last: Tensor


def growth_initial_state(inputs: tuple[Tensor, ...], function: Function) -> GrowthState:
    """The state before any input: f of zeros, which is zero."""
    totals = tuple(torch.zeros_like(x) for x in inputs)
    return GrowthState(totals, function(*totals))


def growth_step(
    inputs: tuple[Tensor, ...], state: GrowthState, function: Function
) -> tuple[Tensor, GrowthState]:
    """One step: inputs [B, ...] to (output, state)."""
    totals = tuple(a + b for a, b in zip(state.totals, inputs, strict=True))
    after = function(*totals)
    return after - state.last, GrowthState(totals, after)


class GrowthSequence(NamedTuple):
    """``y`` [T, *], the state after it, and f of the sums after each step if requested."""

    y: Tensor
    state: GrowthState
    last_seq: Tensor | None = None  # [T, *]


def growth_multi_step(
    x_seq: Sequence[Tensor],
    state: GrowthState,
    function: Nonlinearity,
    arguments: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    keep_last: bool = False,
) -> GrowthSequence:
    """T steps of the growth of ``function``; same contract as ``scan(growth_step, ...)``.

    ``x_seq``: [T, ...] for each of its arguments. ``keep_last`` keeps f of the sums after each
    step. The output is in ``dtype``, by default that of the input; states are float32, float64 for
    float64 inputs. Raises BackendUnavailable, InputError.
    """
    check_types("growth_multi_step", x_seq, [*state.totals, state.last])
    shapes, wanted = [x.shape[1:] for x in x_seq], [total.shape for total in state.totals]
    if shapes != wanted or not x_seq or any(len(x) != len(x_seq[0]) or not len(x) for x in x_seq):
        raise InputError(
            f"growth_multi_step: inputs are [T, *totals.shape] with one T >= 1, but they are "
            f"{[list(x.shape) for x in x_seq]} and the totals {[list(a) for a in wanted]}. Reset "
            "the neuron before feeding a batch of another shape."
        )
    given, dtype = arguments or {}, x_seq[0].dtype if dtype is None else dtype
    if choose(backend, x_seq[0].device.type, _against_sums(x_seq, state)).backend == "torch":
        y, seen = [], []
        for step in zip(*x_seq, strict=True):
            wide = tuple(a.to(b.dtype) for a, b in zip(step, state.totals, strict=True))
            out, state = growth_step(wide, state, partial(function, **given))
            y.append(out.to(dtype))
            seen.append(state.last)
        return GrowthSequence(torch.stack(y), state, torch.stack(seen) if keep_last else None)
    sums = [operators.running_sum(a, b) for a, b in zip(x_seq, state.totals, strict=True)]
    after = function.over_time(*sums, **given)
    y_seq = after - torch.cat([state.last.unsqueeze(0), after[:-1]])
    last = GrowthState(tuple(a[-1].clone() for a in sums), after[-1].clone())
    return GrowthSequence(y_seq.to(dtype), last, after if keep_last else None)


def _against_sums(x_seq: Sequence[Tensor], state: GrowthState) -> str:
    reasons = [against_input(x.dtype) for x in x_seq]
    reasons.append(against_types(state.totals, torch.float32))
    return next((reason for reason in reasons if reason), "")


def selecting(owner: str, function: str | Nonlinearity) -> Nonlinearity:
    """The row; ValueError for a function that does not select one of its inputs."""
    row = nonlinearity(function)
    if not row.selects:
        names = ", ".join(name for name, each in NONLINEARITIES.items() if each.selects)
        raise ValueError(
            f"{owner}: growth neurons need a function that selects one of its inputs ({names}), "
            f"but {row.name!r} does not. Use group neurons for ReLU and QCFS."
        )
    return row


@dataclass(frozen=True, eq=False, kw_only=True)
class Growth(Neuron):
    """The growth of a selecting function, such as max pooling, of the spikes of group neurons.

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

    def start(self, inputs: tuple[Tensor, ...]) -> GrowthState:
        return growth_initial_state(inputs, partial(self.function, **self.arguments))

    def sequence(
        self, inputs: tuple[Tensor, ...], state: GrowthState
    ) -> tuple[Tensor, GrowthState]:
        function = partial(self.function, **self.arguments)
        return scan(growth_step, list(zip(*inputs, strict=True)), state, function)
