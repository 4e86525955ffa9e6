r"""Thresholds and initial charges of all group neurons together, by the gradient of the output.

``thresholds.search`` chooses layer by layer, as if errors were independent. From there a few steps
of Adam lower the squared error of the outputs themselves. The outputs are those that the spikes
make; the gradient takes a neuron for :math:`y = (\theta / T) \operatorname{clip}(\lfloor S / \theta
+ c \rfloor, 0, mT)`, whose floor has slope 1 (straight through; Bu et al., ICLR 2022):

.. math::
    \partial y / \partial x = 1, \qquad
    \partial y / \partial \theta = y / \theta - S / (T \theta), \qquad
    \partial y / \partial c = \theta / T

between the ends, where x = S / T is the mean input; above them dy/dtheta = m. Nothing else is
trained: the weights and the source network stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.module import Source
from ..core.network import (
    Average,
    Constant,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Neuron,
    SpikingNetwork,
    leaves,
)
from ..core.progress import progress
from ..core.walk import walk
from .budget import Budget, TimeUp
from .descent import Gradient, gradient_of, put
from .simulation import Simulation

STEPS = 300  # of Adam, times T; but
FEWEST, MOST = 30, 150
RATE = 0.01  # of log theta and of c
BATCH = 64
EFFORT = 4e9  # updates of neurons, at most


class _MeanOutput(torch.autograd.Function):
    """``out``, the mean output that the spikes made of a mean input x, with the gradient above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, c: Tensor, out: Tensor, m: int, T: int) -> Any:
        ctx.save_for_backward(x, theta, c, out)
        ctx.m, ctx.steps = m, T
        return out.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, theta, c, out = ctx.saved_tensors
        level = x * ctx.steps / theta + c
        above = level >= ctx.m * ctx.steps + 1
        inside = gradient * ((level >= 0) & ~above)
        of_theta = inside * (out - x) / theta + gradient * above * ctx.m
        of_c = inside * theta / ctx.steps
        return inside, of_theta.sum_to_size(theta.shape), of_c.sum_to_size(c.shape), *[None] * 3


def refine(
    network: SpikingNetwork,
    x: Tensor,
    names: Sequence[str],
    seed: int,
    budget: Budget | None = None,
) -> SpikingNetwork:
    """The group neurons ``names`` of a network of such neurons alone, on images x [B, ...].

    Processes of ``budget`` do pieces of each minibatch, and end with the same network.
    """
    budget = budget or Budget()
    plain = (Input, Constant, Linear, GroupNeuron, Growth, Average)
    if not all(isinstance(node, plain) for node in network.nodes):
        return network
    simulation, groups = Simulation(network), {n.name: n for n in network.of(GroupNeuron)}
    x = simulation.check_input(x)
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=simulation.floating, device=x.device)
    logs, charges = {}, {}
    for name in names:
        theta, charge = _of(groups[name], like)
        charge = charge.expand_as(theta)
        logs[name] = theta.log().requires_grad_()
        charges[name] = charge.clone().requires_grad_()
    parameters = [*logs.values(), *charges.values()]
    adam = torch.optim.Adam(parameters, RATE, betas=(0.9, 0.99))
    updates = sum(network.count().values()) * network.time_steps * min(BATCH, len(x))
    steps = min(MOST, max(FEWEST, STEPS // network.time_steps), int(EFFORT / updates))
    if steps == 0:
        return network
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def place() -> None:
        for name in names:
            node = groups[name]
            theta, charge = logs[name].detach().exp(), charges[name].detach().clamp(0, 1)
            threshold = theta * node.members
            groups[name] = simulation.changes[name] = node.fitted(
                threshold if threshold.dim() else float(threshold),
                charge.clone() if charge.dim() else float(charge),
            )

    try:
        squares = _squares(simulation, x, budget)
    except TimeUp:
        return network
    order: list[Tensor] = []

    def gradient(pick: Tensor) -> Gradient | None:
        norms = {name: of[batch].sum() for name, of in squares.items()}
        with torch.enable_grad():
            loss = _loss(simulation, x[pick], logs, charges, norms)
            return gradient_of(loss, parameters) if loss.requires_grad else None

    for _ in progress(range(steps), "refining", steps):
        if not order:
            order = list(torch.randperm(len(x), generator=generator).split(BATCH))
        batch = order.pop().to(x.device)
        try:
            found = budget.dealt("refining", batch.split(budget.size_of(BATCH)), gradient)
        except TimeUp:
            break
        gradients = [each for each in found if each is not None]
        if not gradients:
            return network
        put(parameters, gradients)
        adam.step()
        decay.step()
        place()
    return network.with_nodes(groups)


def _squares(simulation: Simulation, x: Tensor, budget: Budget) -> dict[str, Tensor]:
    """Of each image, by output of the source network, where minibatches are cut: all pieces of
    one have errors relative to the whole."""
    if budget.distributed is None:
        return {}
    names = list(dict.fromkeys(leaves(simulation.network.outputs)))

    def of(part: Tensor) -> list[Tensor]:
        values = simulation.activations(part)
        return [values[name].detach().square().flatten(1).sum(1) for name in names]

    parts = budget.dealt("source", x.split(BATCH), of)
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))


def _of(node: GroupNeuron, like: Tensor) -> tuple[Tensor, Tensor]:
    """theta and the initial charge."""
    theta = torch.as_tensor(node.v_threshold).to(like) / node.members
    return theta, torch.as_tensor(node.initial_charge).to(like)


class _Means(Source):
    """The source network with the ``means`` of what the spikes made, whose gradient is above."""

    def __init__(
        self, simulation: Simulation, x: Tensor, logs: dict[str, Tensor], charges: dict[str, Tensor]
    ) -> None:
        super().__init__(simulation, x)
        self.logs, self.charges, self.steps = logs, charges, simulation.network.time_steps
        self.groups = {node.name: node for node in simulation.network.of(GroupNeuron)}
        self.means: dict[str, Tensor] = {}

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        name, group = node.name, self.groups.get(node.name)
        if group is None:
            return super().neuron(node, inputs)
        theta, charge = _of(group, inputs[0])
        theta = self.logs[name].exp() if name in self.logs else theta
        charge, mean = self.charges.get(name, charge), self.means[name]
        given = inputs[0], theta, charge, mean, group.members, self.steps
        return _MeanOutput.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def _loss(
    simulation: Simulation,
    x: Tensor,
    logs: dict[str, Tensor],
    charges: dict[str, Tensor],
    norms: Mapping[str, Tensor],
) -> Tensor:
    """The squared error of the outputs over their square, with a gradient; or over ``norms``."""
    network, source = simulation.network, _Means(simulation, x, logs, charges)
    simulation.listener = lambda sent: source.means.update({sent.node.name: sent.value.mean(0)})
    try:
        simulation.outputs(x, network.time_steps)
    finally:
        simulation.listener = None
    wanted = simulation.activations(x)
    values = walk(network, source, leaves(network.outputs))
    total = torch.zeros((), dtype=simulation.floating, device=x.device)
    for name in dict.fromkeys(leaves(network.outputs)):
        want = wanted[name].detach()
        norm = norms[name] if norms else want.square().sum()
        total = total + (values[name] - want).square().sum() / norm.clamp(min=1e-12)
    return total
