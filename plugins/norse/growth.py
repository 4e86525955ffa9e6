"""Pooling of spikes that count as Norse has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ...errors import InputError
from ...neurons import growth
from ...neurons.choice import Choice, sum_choice
from ...neurons.growth import growth_initial_state, growth_multi_step, selecting
from ...neurons.nonlinearities import Nonlinearity, nonlinearity
from .common import check_backend, of_arity, trains
from .module import Cell, Layer, Neuron, stale


class GrowthParameters(NamedTuple):
    """Parametrization of pooling of spikes that count.

    Parameters:
        function (str | Nonlinearity): a row of ``NONLINEARITIES`` of which an output is one of the
            inputs, or its name: "max_pool", "amax", "maximum" and others
        arguments (Mapping): its parameters, such as ``{"kernel_size": 2}``
        backend (str): what sums up, "auto", "cpu", "cupy" or "torch"
    """

    function: str | Nonlinearity = "maximum"
    arguments: Mapping[str, Any] | None = None
    backend: str = "auto"


class GrowthState(NamedTuple):
    """State of pooling of spikes that count.

    Parameters:
        last (Tensor): the function of the totals [B, ...], the sum of what was sent
        totals (tuple[Tensor, ...]): the sum of each input so far [B, ...]
    """

    last: Tensor
    totals: tuple[Tensor, ...]


class _Growth(Neuron):
    Parameters = GrowthParameters
    State = GrowthState

    @classmethod
    def check_parameters(cls, p: GrowthParameters) -> None:
        selecting(cls.__name__, p.function)
        check_backend(cls.__name__, p.backend)

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: GrowthParameters) -> GrowthState:
        row = of_arity(cls, inputs, nonlinearity(p.function))
        totals, last = growth_initial_state(inputs, partial(row, **(p.arguments or {})))
        return GrowthState(last, totals)

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: GrowthState) -> None:
        for x, total in zip(inputs, state.totals, strict=False):
            if x.shape != total.shape:
                raise stale(cls, inputs, total)

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: GrowthState, p: GrowthParameters
    ) -> tuple[Tensor, GrowthState]:
        row = of_arity(cls, inputs, nonlinearity(p.function))
        if trains(*inputs, *state):
            raise InputError(
                f"{cls.__name__}: the growth of sums has no gradient, and the layers before it "
                "would not be trained. Run it under torch.no_grad()."
            )
        before = growth.GrowthState(state.totals, state.last)
        done = growth_multi_step(inputs, before, row, p.arguments, backend=p.backend)
        return done.y, GrowthState(done.state.last, done.state.totals)

    def choice(self, x: Tensor) -> Choice:
        """What sums up inputs of the type and on the device of x, and why if it is the definition.
        Raises BackendUnavailable."""
        return sum_choice(self.p.backend, x)


class GrowthCell(_Growth, Cell):
    """One step [B, ...] of pooling of spikes that count: the growth of f of the inputs' sums.

    Parameters:
        p (GrowthParameters): what is pooled, and how
        dt (float): not used, for compatibility

    Example:
        >>> cell = GrowthCell(GrowthParameters("max_pool", {"kernel_size": 2}))
        >>> pooled, state = cell(torch.randn(8, 3, 4, 4))
    """


class Growth(_Growth, Layer):
    """T steps [T, B, ...] of pooling of spikes that count: see ``GrowthCell``."""
