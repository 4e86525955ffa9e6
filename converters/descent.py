"""Adam on choices: a step for each gradient, while dead zones stay where kernels are fast.

Several processes hold the same choices and take the same steps. What they send each other for one
is the gradient of each piece of the minibatch, one tensor of as many numbers as are learned (of a
convolutional network: T, and two or three for each channel, of each layer), to all others. The
pieces' gradients are added in their order, so the sum is the same for any number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from math import log

import torch
from torch import Tensor

from ..neurons.signgd.dithered import MOST
from .budget import Budget
from .tunable import Choices

Gradient = tuple[Tensor, list[bool]]

LEARNED = ("steps", "scales", "resting", "dead_zones")  # of each neuron
START = (0.5, 2.0, 4.0, 8.0)  # of all steps of all neurons with dead zones
RATES = (1.0, 0.5, 0.1, 0.5)  # of these, over the rate of the descent
SPARSE_RATES = (1.0, 0.5, 0.4, 0.5)  # with dead zones, resting values in finest steps


class Descent:
    """``choices``, begun at ``start``, of which what ``learn`` names moves; ``iterations`` are the
    steps after which the rate is nearly 0."""

    def __init__(
        self,
        start: Choices,
        learn: Collection[str],
        rate: float,
        iterations: int,
        sparse: bool,
    ) -> None:
        self.choices = {name: choice.copy() for name, choice in start.items()}
        groups: list[list[Tensor]] = [[] for _ in LEARNED]
        for choice in self.choices.values():
            for kind, group, tensor in zip(LEARNED, groups, choice.tensors(), strict=True):
                if kind in learn and bool(tensor.isfinite().any()):
                    group.append(tensor.requires_grad_())
        rates = [rate * one for one in (SPARSE_RATES if sparse else RATES)]
        settings = [{"params": g, "lr": r} for g, r in zip(groups, rates, strict=True) if g]
        self.parameters = [tensor for group in groups for tensor in group]
        # those asked for, where they are wider
        self.zones = [(g, max(log(MOST / (1 - MOST)), float(g.detach().max()))) for g in groups[-1]]
        self.adam = torch.optim.Adam(settings, betas=(0.8, 0.95))
        self.course = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, iterations, rate / 50)

    def step(self, losses: Sequence[Callable[[], Tensor]], budget: Budget) -> None:
        """Along the gradient of the sum of the losses, each computed and forgotten in turn.

        Raises TimeUp, and is not made, where there is no time for one of them.
        """
        put(self.parameters, budget.dealt("descent", losses, self._gradient))
        if bool(torch.nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite()):
            self.adam.step()
            for logit, most in self.zones:
                logit.data.clamp_(max=most)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a step that was left out is no mistake
            self.course.step()

    def _gradient(self, loss: Callable[[], Tensor]) -> Gradient:
        with torch.enable_grad():
            return gradient_of(loss(), self.parameters)


def gradient_of(loss: Tensor, parameters: Sequence[Tensor]) -> Gradient:
    """By all parameters, one after the other, and which of them the loss depends on."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    flat = [(p.new_zeros(p.shape) if g is None else g).reshape(-1) for p, g in pairs]
    return torch.cat(flat), [gradient is not None for gradient in found]


def put(parameters: Sequence[Tensor], gradients: Sequence[Gradient]) -> None:
    """The sum of gradients, in their order, as that of the parameters."""
    total = gradients[0][0].clone()
    for flat, _ in gradients[1:]:
        total += flat
    parts = total.split([parameter.numel() for parameter in parameters])
    reached = zip(*(which for _, which in gradients), strict=True)
    for parameter, part, which in zip(parameters, parts, reached, strict=True):
        parameter.grad = part.view_as(parameter) if any(which) else None
