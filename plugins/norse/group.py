"""Group neurons as Norse has them."""

from __future__ import annotations

from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons import group
from ...neurons.by_hand import check_number, learned
from ...neurons.choice import Choice
from ...neurons.protocol import at_least_float32
from .common import check_backend, single, surrogate, trains
from .module import Cell, Dynamic, Layer
from .parameters import no_field, used


class GroupNeuronParameters(NamedTuple):
    """Parametrization of group neurons.

    Parameters:
        members (int): m; member k fires at k v_th / m; ``GroupNeuron(4)`` has four
        v_th (float | Tensor): the largest output of one step, positive, broadcasts against v
            [B, ...]; an ``nn.Parameter`` is trained
        initial_charge (float | Tensor): v(0) as a fraction of v_th / m; 1/2 rounds to the nearest
            level; broadcasts against v
        method (str): Norse's method for the gradient of a member's spike in h - k v_th / m
        alpha (float): Norse's hyper parameter of that gradient
        backend (str): what runs the neurons, "auto", "cpu", "cupy" or "torch"
        signed (bool): the neurons may fire negative spikes, at most as many as they have sent
    """

    members: int = 4
    v_th: float | Tensor = 1.0
    initial_charge: float | Tensor = 0.5
    method: str = "super"
    alpha: float = 100.0
    backend: str = "auto"
    signed: bool = False

    def __getattr__(self, name: str) -> Any:
        raise no_field(self, name)


class GroupNeuronState(NamedTuple):
    """State of group neurons.

    Parameters:
        v (Tensor): membrane potential [B, ...], which all members share
    """

    v: Tensor


class SignedGroupNeuronState(NamedTuple):
    """State of signed group neurons.

    Parameters:
        v (Tensor): membrane potential [B, ...], which all members share
        sent (Tensor): spikes sent so far [B, ...], minus the negative ones
    """

    v: Tensor
    sent: Tensor


class _GroupNeuron(Dynamic):
    Parameters = GroupNeuronParameters
    State = (GroupNeuronState, SignedGroupNeuronState)
    numbers = ("alpha",)
    counts = ("members",)
    learns = ("v_th", "initial_charge")
    ranges = {"v_th": "v_threshold"}
    later = {"signed": False}

    @classmethod
    def is_first(cls, value: Any) -> bool:
        """A number of members, if a wrong one."""
        return isinstance(value, (Number, str, Tensor))

    @classmethod
    def _normal(cls, p: Any) -> Any:
        p = super()._normal(p)
        given = {name: getattr(p, name) for name in ("v_th", "initial_charge")}
        for name, value in given.items():
            check_number(cls.__name__, name, value)
        return p._replace(**{name: _one_number(value) for name, value in given.items()})

    @classmethod
    def check_parameters(cls, p: GroupNeuronParameters) -> None:
        surrogate(p.method, p.alpha)
        check_backend(cls.__name__, p.backend)
        cls.dynamics(p, check=True)

    @classmethod
    def dynamics(cls, p: GroupNeuronParameters, check: bool = False) -> group.GroupNeuronParameters:
        """What the definition takes, made of p's tensors as they are now."""
        v_th, charge = used("v_threshold", p.v_th), at_least_float32(p.initial_charge)
        return group.GroupNeuronParameters(p.members, v_th, charge, p.signed, check)

    @classmethod
    def start(
        cls,
        inputs: tuple[Tensor, ...],
        p: GroupNeuronParameters,
        dynamics: group.GroupNeuronParameters | None = None,
    ) -> GroupNeuronState | SignedGroupNeuronState:
        v = group.group_initial_v(inputs[0], dynamics or cls.dynamics(p))
        return SignedGroupNeuronState(v, torch.zeros_like(v)) if p.signed else GroupNeuronState(v)

    @classmethod
    def sequence(
        cls,
        inputs: tuple[Tensor, ...],
        state: GroupNeuronState | SignedGroupNeuronState,
        p: GroupNeuronParameters,
        dynamics: group.GroupNeuronParameters | None = None,
    ) -> tuple[Tensor, GroupNeuronState | SignedGroupNeuronState]:
        (x_seq,) = single(cls, inputs)
        sent = state.sent if isinstance(state, SignedGroupNeuronState) else None
        if (sent is not None) != p.signed:
            raise InputError(
                f"{cls.__name__}: the state is one of neurons that are "
                f"{'not ' if p.signed else ''}signed. Pass state=None."
            )
        learns = trains(x_seq, state.v, p.v_th, p.initial_charge)
        done = group.group_multi_step(
            x_seq,
            state.v,
            dynamics or cls.dynamics(p),
            sent=sent,
            backend=p.backend,
            surrogate=surrogate(p.method, p.alpha) if learns else None,
        )
        if done.sent is None:
            return done.y, GroupNeuronState(done.v)
        return done.y, SignedGroupNeuronState(done.v, done.sent)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        p = self.p
        learns = trains(x, p.v_th, p.initial_charge)
        gradient = surrogate(p.method, p.alpha) if learns else None
        return group.group_choice(p.backend, x, self.dynamics(p), gradient)


def _one_number(value: float | Tensor) -> float | Tensor:
    """A tensor of one element that is not trained, as Norse's parameters are, as a number."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.requires_grad:
        return value
    if value.numel() != 1 or value.is_meta:
        return value
    return float(value.item())


def group_neuron_feed_forward_step(
    input_tensor: Tensor,
    state: GroupNeuronState | SignedGroupNeuronState | None,
    p: GroupNeuronParameters | None = None,
    dt: float = 0.001,
) -> tuple[Tensor, GroupNeuronState | SignedGroupNeuronState]:
    r"""One step of group neurons: m integrate-and-fire members that share one potential.

    .. math::
        h(t) &= v(t-1) + x(t) \\
        n(t) &= \textstyle\sum_{k=1}^{m} \Theta(h(t) - k\theta), \qquad \theta = v_{th} / m \\
        v(t) &= h(t) - n(t)\,\theta

    The output is :math:`n(t)\,\theta`. With ``p.signed`` n(t) may be negative, down to minus the
    spikes sent so far. Unlike Norse's step :math:`\Theta(0) = 1`: at a tie, which
    quantised inputs reach, member k fires.
    Source: Lv et al., ICASSP 2024 (arXiv:2402.19061).

    Parameters:
        input_tensor (Tensor): membrane current x(t) [B, ...]
        state (GroupNeuronState | SignedGroupNeuronState): the state, None before the first step
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class
        dt (float): not used, for compatibility

    Raises InputError where the state is one of another batch, BackendUnavailable where
    ``p.backend`` cannot run.

    Example:
        >>> p = GroupNeuronParameters(members=8)
        >>> spikes, state = group_neuron_feed_forward_step(torch.randn(8, 64), None, p)
    """
    return GroupNeuronCell.feed_forward_step(input_tensor, state, p, dt)


class GroupNeuronCell(_GroupNeuron, Cell):
    """Group neurons, one step [B, ...]: see :func:`group_neuron_feed_forward_step`.

    Parameters:
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class; a
            number of members alone for those with so many; its fields are keywords also by
            themselves, ``GroupNeuron(4, v_th=0.5)``
        dt (float): not used, for compatibility
        learnable (str | Iterable[str]): which of v_th and initial_charge become parameters

    Example:
        >>> cell = GroupNeuronCell(8)
        >>> spikes, state = cell(torch.randn(8, 64))
        >>> spikes, state = cell(torch.randn(8, 64), state)
    """


class GroupNeuron(_GroupNeuron, Layer):
    """Group neurons, T steps [T, B, ...]: see :func:`group_neuron_feed_forward_step`.

    Parameters:
        p (GroupNeuronParameters): parameters of the neurons, by default those of the class; a
            number of members alone for those with so many; its fields are keywords also by
            themselves, ``GroupNeuron(4, v_th=0.5)``
        dt (float): not used, for compatibility
        record_states (bool): return the potentials after each step, [T, B, ...]
        learnable (str | Iterable[str]): which of v_th and initial_charge become parameters

    Example:
        >>> layer = GroupNeuron(8)
        >>> spikes, state = layer(torch.randn(32, 8, 64))
    """


def group_layer(node: group.GroupNeuron, spikes: str, kernels: str) -> GroupNeuron:
    """The layer of a network's node."""
    return GroupNeuron(
        GroupNeuronParameters(
            node.members,
            node.v_threshold,
            node.initial_charge,
            method="super" if any(map(learned, node.tensors.values())) else "heaviside",
            backend=kernels,
            signed=node.signed,
        )
    )
