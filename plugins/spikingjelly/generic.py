"""Kinds of neurons that have no node type of their own, as SpikingJelly modules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...neurons.base import Timed
from ...neurons.protocol import state_dtype
from .base import Record, Shapes, Stateful


class _NeuronNodeState(NamedTuple):
    state: Any
    shapes: Shapes | None


class NeuronNode(Stateful):
    """A neuron of any kind by the definition that its node says, ``start`` and ``sequence``.

    The node's tensors become buffers; ``state`` is what the definition makes of it.
    """

    State = _NeuronNodeState
    _arity = None

    def __init__(self, node: Timed, *, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self._node = node
        for name, value in node.tensors.items():
            self.register_buffer(name, value.detach().clone())

    @property
    def node(self) -> Timed:
        """With the tensors as they are now."""
        return self._node.with_tensors(dict(self.named_buffers()))

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _NeuronNodeState:
        return _NeuronNodeState(self.node.start(inputs), None)

    @torch.no_grad()
    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _NeuronNodeState, record: Record | None
    ) -> tuple[Tensor, _NeuronNodeState]:
        dtype = state_dtype(inputs)
        wide = tuple(x.to(dtype) for x in inputs)
        y_seq, after = self.node.sequence(wide, state.state)
        return y_seq.to(inputs[0].dtype), _NeuronNodeState(after, state.shapes)

    def extra_repr(self) -> str:
        return f"{self._node.kind}, step_mode={self.step_mode!r}"
