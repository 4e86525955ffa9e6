"""Group neurons as SpikingJelly nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...neurons.by_hand import check_learnable, check_members, check_number, check_range, refuse
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
from .base import Made, Record, Shapes, hold, known_surrogate, show

with simulator("spikingjelly"):
    from spikingjelly.activation_based import surrogate


# what users of SpikingJelly's neurons may look for
_INSTEAD = {
    "v_reset": "a spike takes the threshold off v (soft reset), which no value replaces. Leave it "
    "out, or pass None.",
    "tau": "v does not leak. Leave it out, or use SpikingJelly's LIFNode.",
    "decay_input": "v does not leak. Leave it out, or use SpikingJelly's LIFNode.",
    "scale": "the unit of what is sent is the threshold. Pass v_threshold=...",
    "spikes": "group neurons send n v_threshold / members, in one form. Leave it out.",
}


class _GroupNodeState(NamedTuple):
    v: Tensor
    sent: Tensor | None
    shapes: Shapes | None


class GroupNode(Made):
    """Group neuron of m members (``neurons/group``): membrane current in, n v_threshold / m out.

    ``GroupNode(initial_charge=0.0)`` is SpikingJelly's ``IFNode(v_reset=None)``, outputs, v and
    gradients alike, by kernels; by default v begins with half a threshold, which rounds to the
    nearest level, and m members share the threshold.

    ``v_threshold`` and ``initial_charge`` broadcast against v [N, *]; an ``nn.Parameter`` stays
    one, another tensor becomes a buffer, and ``learnable`` names which of the two is to become a
    parameter. A threshold stays positive. A ``signed`` neuron may fire negative spikes, at most as
    many as it has sent; ``sent`` counts them.

    Where an input or a parameter requires a gradient it passes through ``surrogate_function``
    (Sigmoid unless given), the sum over the members; the forward values are the same to the bit.
    """

    State = _GroupNodeState
    _of_start = ("v_threshold", "initial_charge", "members", "signed")

    def __init__(
        self,
        members: int = 1,
        v_threshold: float | Tensor = 1.0,
        *,
        initial_charge: float | Tensor = 0.5,
        signed: bool = False,
        learnable: Iterable[str] = (),
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        v_reset: None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        **elsewhere: Any,
    ) -> None:
        owner = type(self).__name__
        refuse(owner, elsewhere | ({} if v_reset is None else {"v_reset": v_reset}), _INSTEAD)
        members = check_members(owner, members)
        check_number(owner, "v_threshold", v_threshold)
        check_number(owner, "initial_charge", initial_charge)
        names = check_learnable(owner, learnable, ("v_threshold", "initial_charge"))
        number = not isinstance(v_threshold, Tensor) and "v_threshold" not in names
        super().__init__(
            v_threshold=float(v_threshold) if number else 1.0,
            surrogate_function=surrogate_function or surrogate.Sigmoid(),
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        self.members = members
        self.signed = signed
        if not number:
            del self.v_threshold  # SpikingJelly's own, a number
            if hold(self, "v_threshold", v_threshold, names):
                self._learns += ("v_threshold",)
                check_range(owner, "v_threshold", self.v_threshold)
        if hold(self, "initial_charge", initial_charge, names):
            self._learns += ("initial_charge",)
        self._make()
        self._begin()

    def _begin(self) -> None:
        if not isinstance(v_initial := self._first_v(), Tensor):
            self._start_from(v_initial)

    @classmethod
    def of(cls, node: GroupNeuron, spikes: str = "decoded") -> GroupNode:
        charge = node.initial_charge
        return cls(node.members, node.v_threshold, initial_charge=charge, signed=node.signed)

    def _first_v(self) -> float | Tensor:
        meta = any(buffer.is_meta for buffer in self.buffers(recurse=False))
        return 0.0 if meta else self.dynamics.v_initial

    def _of_dynamics(self) -> Iterable[str]:
        return self._of_start

    def _dynamics(self, check: bool) -> GroupNeuronParameters:
        return GroupNeuronParameters(
            self.members,
            self._used("v_threshold"),
            at_least_float32(self.initial_charge),
            self.signed,
            check=check,
        )

    def _definition(self) -> dict[str, Any]:
        return {"members": self.members, "signed": self.signed}

    def _numbers(self) -> tuple[str, ...]:
        return ("v_threshold", "initial_charge")

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        if not isinstance(v_initial := self._first_v(), Tensor):
            self.set_reset_value("v", v_initial)

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _GroupNodeState:
        v = group_initial_v(inputs[0], self.dynamics)
        return _GroupNodeState(v, torch.zeros_like(v) if self.signed else None, None)

    def _trains(self, *tensors: Tensor) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in (*tensors, self.v_threshold)
        )

    def choice(self, x: Tensor) -> Choice:
        trains = self._trains(x)
        gradient = known_surrogate(self.surrogate_function) if trains else None
        return group_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _GroupNodeState, record: Record | None
    ) -> tuple[Tensor, _GroupNodeState]:
        (x_seq,) = inputs
        trains = self._trains(x_seq, state.v)
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
            f"step_mode={self.step_mode}, backend={self.shown_backend}"
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
