"""Kinds of neurons that have no cell or layer of their own, as Norse has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ...neurons import base
from ...neurons.protocol import state_dtype
from .module import Layer


class NodeParameters(NamedTuple):
    """Parametrization of neurons of any kind.

    Parameters:
        node (Timed): says ``start`` and ``sequence``
        tensors (Mapping): what stands in the place of its tensors
    """

    node: base.Timed
    tensors: Mapping[str, Tensor]


class NodeState(NamedTuple):
    """``state`` what the definition makes of it, ``inputs`` the shapes of a step's inputs."""

    state: Any
    inputs: str


class NodeLayer(Layer):
    """T steps [T, B, ...] of neurons of any kind, by the definition that their node says."""

    Parameters = NodeParameters
    State = NodeState

    @classmethod
    def of(cls, node: base.Timed) -> NodeLayer:
        return cls(NodeParameters(node, node.tensors))

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: NodeParameters) -> NodeState:
        return NodeState(p.node.with_tensors(p.tensors).start(inputs), _shapes(inputs))

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: NodeState) -> None:
        if state.inputs != _shapes(inputs):
            raise InputError(
                f"{cls.__name__}: a step is {_shapes(inputs)} now, but the state was made for "
                f"{state.inputs}. Pass state=None before feeding a batch of another shape."
            )

    @classmethod
    @torch.no_grad()
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: NodeState, p: NodeParameters
    ) -> tuple[Tensor, NodeState]:
        dtype = state_dtype(inputs)
        node = p.node.with_tensors(p.tensors)
        y_seq, after = node.sequence(tuple(x.to(dtype) for x in inputs), state.state)
        return y_seq.to(inputs[0].dtype), state._replace(state=after)


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    return str([list(x.shape) for x in inputs])
