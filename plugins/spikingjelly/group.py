"""Group neurons as SpikingJelly nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...neurons.choice import Choice
from ...neurons.group import (
    GroupNeuron,
    GroupNeuronParameters,
    group_choice,
    group_initial_v,
    group_multi_step,
)
from ...neurons.protocol import at_least_float32
from .. import simulator
from .base import Made, Record, Shapes, held, hold, known_surrogate, show, unchanged

with simulator("spikingjelly"):
    from spikingjelly.activation_based import surrogate


class _GroupNodeState(NamedTuple):
    v: Tensor
    sent: Tensor | None
    shapes: Shapes | None


class GroupNode(Made):
    """Group neuron of m members (``neurons/group.py``): membrane current in, n v_threshold / m out.

    ``v_threshold`` and ``initial_charge`` broadcast against v [N, *]; tensors become buffers. A
    ``signed`` neuron may take back what it has sent; ``sent`` counts it.

    Where the input requires a gradient it passes through ``surrogate_function`` (Sigmoid unless
    given), the sum over the members; the forward values are the same to the bit.
    """

    State = _GroupNodeState
    _of_start = ("v_threshold", "initial_charge", "members", "signed")

    def __init__(
        self,
        members: int,
        v_threshold: float | Tensor = 1.0,
        *,
        initial_charge: float | Tensor = 0.5,
        signed: bool = False,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        by_channel = isinstance(v_threshold, Tensor)
        super().__init__(
            v_threshold=1.0 if by_channel else float(v_threshold),
            surrogate_function=surrogate_function or surrogate.Sigmoid(),
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self.members = members
        self.signed = signed
        if by_channel:
            del self.v_threshold  # SpikingJelly's own, a number
            hold(self, "v_threshold", v_threshold)
        hold(self, "initial_charge", initial_charge)
        self._make()
        if not isinstance(v_initial := self._first_v(), Tensor):
            self._start_from(v_initial)

    @classmethod
    def of(cls, node: GroupNeuron, spikes: str = "decoded") -> GroupNode:
        charge = node.initial_charge
        return cls(node.members, node.v_threshold, initial_charge=charge, signed=node.signed)

    def _first_v(self) -> float | Tensor:
        meta = any(buffer.is_meta for buffer in self.buffers(recurse=False))
        return 0.0 if meta else self.dynamics.v_initial

    @property
    def dynamics(self) -> GroupNeuronParameters:
        """The definition's parameters, with the tensors of the buffers."""
        of = held(self, self._of_start)
        made = self._made
        if made is None or not unchanged(of, made[0]):
            dynamics = GroupNeuronParameters(
                self.members,
                at_least_float32(self.v_threshold),
                at_least_float32(self.initial_charge),
                self.signed,
            )
            made = self._made = (of, dynamics)
        return made[1]

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _GroupNodeState:
        v = group_initial_v(inputs[0], self.dynamics)
        return _GroupNodeState(v, torch.zeros_like(v) if self.signed else None, None)

    def choice(self, x: Tensor) -> Choice:
        trains = torch.is_grad_enabled() and x.requires_grad
        gradient = known_surrogate(self.surrogate_function) if trains else None
        return group_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _GroupNodeState, record: Record | None
    ) -> tuple[Tensor, _GroupNodeState]:
        (x_seq,) = inputs
        trains = torch.is_grad_enabled() and (x_seq.requires_grad or state.v.requires_grad)
        done = group_multi_step(
            x_seq,
            state.v,
            self.dynamics,
            sent=state.sent,
            backend=self.backend,
            surrogate=known_surrogate(self.surrogate_function) if trains else None,
            detach_reset=self.detach_reset,
            keep_v=record is not None,
        )
        if record is not None:
            assert done.v_seq is not None
            record.append((done.v_seq, None))
        return done.y, _GroupNodeState(done.v, done.sent, state.shapes)

    def extra_repr(self) -> str:
        return (
            f"members={self.members}, v_threshold={show(self.v_threshold)}, "
            f"initial_charge={show(self.initial_charge)}, "
            f"{'signed=True, ' if self.signed else ''}detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode!r}"
        )


def group_neuron_factory(
    members: int, *, initial_charge: float = 0.5
) -> Callable[[float], GroupNode]:
    """``RateCodingRecipe(..., neuron_factory=group_neuron_factory(4))`` of SpikingJelly 2.

    The recipe's scalers map [0, scale] to [0, 1] and back, so the threshold is 1 at every scale.
    """

    def factory(scale: float) -> GroupNode:
        return GroupNode(members, initial_charge=initial_charge)

    return factory
