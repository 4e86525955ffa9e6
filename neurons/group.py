r"""Group neuron: m integrate-and-fire members that share one membrane potential.

.. math::
    h[t] &= v[t-1] + x[t] \\
    n[t] &= \textstyle\sum_{k=1}^{m} \Theta(h[t] - k\theta), \qquad \theta = v_{th} / m \\
    v[t] &= h[t] - n[t]\,\theta, \qquad \text{out}[t] = n[t]\,\theta, \qquad v[0] = \theta / 2

The members' potentials are always equal, so one membrane is exact; m = 1 is the
integrate-and-fire neuron with soft reset. With a constant input the mean output of T steps is
the QCFS activation of L = m T levels; with T = 1 this holds for every input.

Source: Lv et al., ICASSP 2024 (arXiv:2402.19061). At a tie, h = k theta, member k fires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupNeuronParameters:
    """m members; member k fires at ``k * v_threshold / members``.

    ``initial_charge`` is v[0] as a fraction of theta; 1/2 rounds to the nearest level.
    """

    members: int
    v_threshold: float = 1.0  # the largest output of one step
    initial_charge: float = 0.5

    def __post_init__(self) -> None:
        if self.members < 1 or int(self.members) != self.members:
            raise ValueError(
                f"GroupNeuronParameters: members counts neurons, so it is an integer >= 1, "
                f"but it is {self.members!r}."
            )
        if not 0 < self.v_threshold < float("inf"):
            raise ValueError(
                f"GroupNeuronParameters: v_threshold is the largest output of one step, so it is "
                f"positive and finite, but it is {self.v_threshold!r}."
            )

    @property
    def theta(self) -> float:
        return self.v_threshold / self.members

    @property
    def v_initial(self) -> float:
        return self.initial_charge * self.theta

    def thresholds(self, like: Tensor) -> Tensor:
        """``k * theta`` for k = 1..m, [m]. Every backend compares against these numbers."""
        k = torch.arange(1, self.members + 1, device=like.device, dtype=like.dtype)
        return k * self.theta


def group_step(x: Tensor, v: Tensor, p: GroupNeuronParameters) -> tuple[Tensor, Tensor]:
    """One step: membrane current x and potential v, both [B, ...], to (output, new v)."""
    h = v + x
    # counted by comparison: floor(h / theta) rounds to another count on the thresholds
    n = torch.bucketize(h.contiguous(), p.thresholds(h), right=True)
    out = n.to(h.dtype) * p.theta
    return out, h - out


def group_surrogate_step(
    x: Tensor,
    v: Tensor,
    p: GroupNeuronParameters,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool = False,
) -> tuple[Tensor, Tensor]:
    """``group_step``, the same to the bit, with the surrogate's gradient summed over the members.

    ``detach_reset`` keeps the gradient from passing through what a spike takes off v.
    """
    h = v + x
    # h - k theta >= 0 where h >= k theta, also in floating point: the count is group_step's
    above = h - p.thresholds(h).view(-1, *[1] * h.dim())
    out = surrogate(above).sum(0) * p.theta
    return out, h - (out.detach() if detach_reset else out)
