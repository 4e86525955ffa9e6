r"""Group neuron: m integrate-and-fire members that share one membrane potential.

.. math::
    h[t] &= v[t-1] + x[t] \\
    n[t] &= \textstyle\sum_{k=1}^{m} \Theta(h[t] - k\theta), \qquad \theta = v_{th} / m \\
    v[t] &= h[t] - n[t]\,\theta, \qquad \text{out}[t] = n[t]\,\theta, \qquad v[0] = \theta / 2

The members' potentials are always equal, so one membrane is exact; m = 1 is the
integrate-and-fire neuron with soft reset. With a constant input the mean output of T steps is
the QCFS activation of L = m T levels; with T = 1 this holds for every input.

A *signed* group neuron also fires negative spikes: if h is negative it fires up to m of them, but
never more than the spikes N that it has sent:

.. math::
    n[t] = \operatorname{clamp}(\lfloor h[t] / \theta \rfloor, -\min(m, N[t-1]), m), \qquad
    N[t] = N[t-1] + n[t], \qquad N[0] = 0

which corrects spikes that it sent because inputs arrived early or unevenly. Without negative input
the two kinds are the same. v_th and v[0] may be tensors, one for each channel.

Sources: Lv et al., ICASSP 2024 (arXiv:2402.19061); the signed form is new here, with the memory of
the signed neurons of Wang et al., IJCAI 2022. At a tie, h = k theta, member k fires.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from .. import spikes
from ..base import FOLDS, Code, Factor, Function, Learned, Make, Neuron, spread
from ..by_hand import RANGES
from ..rounding import Rounded
from ..scan import scan

SMALLEST_THETA = 2.0**-100  # below, the kernels' reciprocal overflows


@dataclass(frozen=True, eq=False)
class GroupNeuronParameters(Rounded):
    """m members; member k fires at ``k * v_threshold / members``.

    ``v_threshold``, the largest output of one step, and ``initial_charge``, v[0] as a fraction of
    theta (1/2 rounds to the nearest level), are numbers or tensors that broadcast against v.
    """

    members: int
    v_threshold: float | Tensor = 1.0
    initial_charge: float | Tensor = 0.5
    signed: bool = False
    check: InitVar[bool] = True  # reads the threshold, which makes a GPU wait
    # the launches for inputs of some layout, by ``sequence.py``
    ready: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ready": {}}  # which is of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"ready": {}, **state})

    def __post_init__(self, check: bool) -> None:
        if self.members < 1 or int(self.members) != self.members:
            raise ValueError(
                f"GroupNeuronParameters: members counts neurons, so it is an integer >= 1, "
                f"but it is {self.members!r}."
            )
        if not isinstance(self.v_threshold, Tensor):
            fits, shown = 0 < self.v_threshold < float("inf"), repr(self.v_threshold)
        elif check and not torch.compiler.is_compiling():
            each = self.v_threshold.detach()
            # no kernel could look at every value before each call
            fits = bool(((each / self.members >= SMALLEST_THETA) & each.isfinite()).all())
            shown = f"between {float(each.min())} and {float(each.max())}"
        else:
            return
        if not fits:
            raise ValueError(
                f"GroupNeuronParameters: v_threshold is the largest output of one step, so it is "
                f"positive (a tensor's from members * 2 ** -100 on) and finite, but it is {shown}."
            )

    @property
    def theta(self) -> float | Tensor:
        return self.v_threshold / self.members

    @property
    def v_initial(self) -> float | Tensor:
        return self.initial_charge * self.theta

    def thresholds(self, like: Tensor) -> Tensor:
        """``k * theta`` for k = 1..m, [m], or [m, *theta.shape]. Backends compare with these."""
        k = torch.arange(1, self.members + 1, device=like.device, dtype=like.dtype)
        if not isinstance(self.theta, Tensor):
            return k * self.theta
        theta = self.theta.to(device=like.device, dtype=like.dtype)
        return k.view(-1, *[1] * theta.dim()) * theta


class SignedGroupState(NamedTuple):
    """``v`` [B, ...] the potential, ``sent`` [B, ...] N, the spikes sent so far, a whole number."""

    v: Tensor
    sent: Tensor


def group_initial_v(like: Tensor, p: GroupNeuronParameters) -> Tensor:
    """v[0], with the shape, device and type of ``like``, an input of one step."""
    if not isinstance(p.v_initial, Tensor):
        return torch.full(like.shape, p.v_initial, dtype=like.dtype, device=like.device)
    v = torch.as_tensor(p.v_initial, dtype=like.dtype, device=like.device)
    return spread(v, like.shape, "initial_charge or v_threshold").clone()


def group_step(x: Tensor, v: Tensor, p: GroupNeuronParameters) -> tuple[Tensor, Tensor]:
    """One step: membrane current x and potential v, both [B, ...], to (output, new v)."""
    n, h = _count(x, v, p)
    out = n.to(h.dtype) * _theta(h, p)
    return out, h - out


def signed_group_step(
    x: Tensor, state: SignedGroupState, p: GroupNeuronParameters
) -> tuple[Tensor, SignedGroupState]:
    """One step of signed neurons: membrane current x [B, ...] to (output, state)."""
    n, h = _count(x, state.v, p)
    # h < -(k - 1) theta for k = 1..m: what floor counts below zero
    below = 0 - h
    back = (below > 0).to(h.dtype)
    for threshold in p.thresholds(h)[:-1]:
        back += below > threshold
    n = n.to(h.dtype) - torch.minimum(back, state.sent)
    out = n * _theta(h, p)
    return out, SignedGroupState(h - out, state.sent + n)


def _count(x: Tensor, v: Tensor, p: GroupNeuronParameters) -> tuple[Tensor, Tensor]:
    """How many members fire, and h."""
    h = v + x
    thresholds = p.thresholds(h)
    # counted by comparison: floor(h / theta) rounds to another count on the thresholds
    if thresholds.dim() == 1:
        return torch.bucketize(h.contiguous(), thresholds, right=True), h
    n = torch.zeros_like(h)
    for threshold in thresholds:
        n += (h < threshold).logical_not()  # as bucketize counts: all members where h is NaN
    return n, h


def _counts(out: Tensor, p: GroupNeuronParameters) -> spikes.Events:
    number = (out / _theta(out, p)).round()
    return spikes.Events(number, number.abs())


def _theta(h: Tensor, p: GroupNeuronParameters) -> float | Tensor:
    return p.theta.to(h) if isinstance(p.theta, Tensor) else p.theta


def group_surrogate_step(
    x: Tensor,
    v: Tensor,
    p: GroupNeuronParameters,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Tensor, Tensor]:
    """``group_step``, the same to the bit, with the surrogate's gradient summed over the members.

    ``detach_reset`` keeps the gradient from passing through the reset.
    """
    h = v + x
    # h - k theta >= 0 where h >= k theta, also in floating point: the count is group_step's
    out = surrogate(h - _for_each_member(h, p)).sum(0) * _theta(h, p)
    return out, h - (out.detach() if detach_reset else out)


def signed_group_surrogate_step(
    x: Tensor,
    state: SignedGroupState,
    p: GroupNeuronParameters,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Tensor, SignedGroupState]:
    """``signed_group_step``, likewise: the negative spike k has a gradient where k were sent."""
    h = state.v + x
    thresholds = _for_each_member(h, p)
    k = torch.arange(p.members, device=h.device).view(-1, *[1] * h.dim())
    lower = torch.cat([torch.zeros_like(thresholds[:1]), thresholds[:-1]])
    back = (1 - surrogate(h + lower)) * (state.sent > k)
    n = surrogate(h - thresholds).sum(0) - back.sum(0)
    out = n * _theta(h, p)
    v = h - (out.detach() if detach_reset else out)
    return out, SignedGroupState(v, state.sent + n.detach())


def _for_each_member(h: Tensor, p: GroupNeuronParameters) -> Tensor:
    """The thresholds, so that they broadcast against h: [m, ...]."""
    thresholds = p.thresholds(h)
    rank = h.dim() - (thresholds.dim() - 1)
    return thresholds.view(-1, *[1] * rank, *thresholds.shape[1:])


def group_ceiling(node: Function) -> float | None:
    """The largest value of a function that a group neuron can compute: infinity for a ReLU, b for
    ReLU6, clamp(x, 0, b) and a QCFS activation, at which its m members saturate.

    None for other functions, which it cannot compute.
    """
    name, given = node.function.name, node.arguments
    if name == "clamp" and given.get("min") == 0:
        most = given.get("max")
        return math.inf if most is None else most if most > 0 else None
    known = {"relu": math.inf, "relu6": 6.0, "qcfs": given.get("v_threshold", math.inf)}
    return known.get(name)


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupNeuron(Neuron):
    """Computes a QCFS activation, a ReLU, or a ReLU with an upper bound such as ReLU6; its output
    is per step, not decoded."""

    kind = "group"
    sized_by = "threshold"
    decoded = False
    members: int
    v_threshold: float | Tensor
    initial_charge: float | Tensor = 0.5
    signed: bool = False

    @property
    def trained(self) -> bool:
        """Whether the threshold was learned with the network, as for a QCFS activation."""
        return self.function.name == "qcfs"

    def fitted(self, v_threshold: float | Tensor, initial_charge: float | Tensor) -> Self:
        """With these, the threshold at most the function's ceiling."""
        most = group_ceiling(self)
        if most is not None:
            tensor = isinstance(v_threshold, Tensor)
            v_threshold = v_threshold.clamp(max=most) if tensor else min(v_threshold, most)  # type: ignore[union-attr, type-var, assignment]
        return replace(self, v_threshold=v_threshold, initial_charge=initial_charge)

    def resized(self, factor: float) -> Self:
        return replace(self, v_threshold=self.v_threshold * factor)

    def learning(self, make: Make) -> Self:
        learned = Learned(1.0, *RANGES["v_threshold"], relative=True)
        return replace(super().learning(make), v_threshold=make(self.v_threshold, learned))

    def reach(self, steps: int) -> tuple[float | Tensor, float | Tensor]:
        return -math.inf, self.v_threshold  # what it cannot send is not below zero

    @property
    def code(self) -> Code:
        kind = "graded" if self.members > 1 else "sign" if self.signed else "binary"
        bits = math.ceil(math.log2(self.members * (2 if self.signed else 1)))
        return Code(kind, max(1, bits), self.members)

    @property
    def most_spikes(self) -> int:
        return self.members

    @property
    def unit(self) -> float | Tensor:
        return self.parameters.theta

    @property
    def factor(self) -> Factor:
        return FOLDS

    @property
    def steady(self) -> bool:
        return False

    def numbers(self, arguments: int) -> int:
        return self.values * (2 if self.signed else 1)

    def additions(self, arguments: int) -> int:
        """Charge, compare with each threshold, reset."""
        return self.values * (2 * self.members + 3 if self.signed else self.members + 2)

    @property
    def parameters(self) -> GroupNeuronParameters:
        return GroupNeuronParameters(
            self.members, self.v_threshold, self.initial_charge, self.signed
        )

    def start(self, inputs: tuple[Tensor, ...]) -> Tensor | SignedGroupState:
        v = group_initial_v(inputs[0], self.parameters)
        return SignedGroupState(v, torch.zeros_like(inputs[0])) if self.signed else v

    def sequence(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        p, step = self.parameters, signed_group_step if self.signed else group_step
        y_seq, state = scan(step, inputs[0], state, p)  # type: ignore[arg-type]
        spikes.tell(partial(_counts, y_seq, p))
        return y_seq, state
