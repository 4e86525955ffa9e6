r"""Step sizes from measured residuals: schedules of several members for several steps.

In its first step a group of signs covers the range of its neuron. In the next one it has to cover
the residual errors of all neurons before it, which depend on the network: in deep ones they are far
larger than the rounding of the neuron itself. So the steps are chosen one after the other, with the
network running on a few calibration samples: in step t the neuron sees
:math:`e = v(t-1) - f(x(t))` and takes the size of the least expected error of its code,

.. math::
    \eta(t) = \arg\min_\eta \sum_e q_\eta(e)^2 + \varepsilon \sum_e q_\eta(2 e)^2,

where :math:`q_\eta(e)` is the residual of e after the code and :math:`\varepsilon` = 1 % accounts
for values that these samples do not show. The default schedule is kept if it has the smaller output
error on held-out samples. The method is new here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Inputs, value_of
from ..core.module import NetworkModule
from ..core.network import (
    Constant,
    Function,
    Input,
    Linear,
    SignGDNeuron,
    SpikingNetwork,
    leaves,
)
from ..core.operations import apply
from ..core.walk import Semantics, walk
from ..neurons.base import Neuron, Timed
from ..neurons.schedules import ListSchedule
from ..neurons.signgd.sparse import dense_step, sparse_step
from .calibration import at_once

UPDATES = 4e8  # of neurons, in a run
FEWEST, MOST = 4, 64  # samples of a run
ENOUGH = 8  # from where other scales are tried too
VALUES = 20_000  # of a neuron that a size is chosen by
SIZES = tuple(1.5 * 2 ** (-i / 3) for i in range(22))  # over what reaches the largest of them
UNSEEN, FARTHER = 0.01, 2.0
TAIL = 0.9  # ratio of the steps after the last one planned for


class Steps(Semantics[Tensor]):
    """Step after step of a network for inputs x [B, ...]: each ``walk`` is one step.

    Neurons of ``choosing`` choose their sizes first, ``sizes``. ``off`` holds for each neuron that
    decodes how far it is from its target after the step: squared distance, and that of the target.
    """

    def __init__(self, x: Tensor | Inputs, choosing: Collection[str] = ()) -> None:
        self.choosing = choosing
        self.sizes: dict[str, list[float]] = {name: [] for name in choosing}
        self.off: dict[str, tuple[float, float]] = {}
        self.begin(x)

    def begin(self, x: Tensor | Inputs) -> None:
        """Other samples, from rest."""
        self.x, self.states, self.before = x, dict[str, Any](), dict(self.off)

    def input(self, node: Input) -> Tensor:
        return value_of(self.x, node.name)

    def constant(self, node: Constant) -> Tensor:
        return node.value

    def linear(self, node: Linear, inputs: list[Tensor]) -> Tensor:
        return apply(node.op, inputs, node.attributes, node.tensors, len(self.x))

    def function(self, node: Function, inputs: list[Tensor]) -> Tensor:
        return node.function(*inputs, **node.arguments)

    def timed(self, node: Timed, inputs: list[Tensor]) -> Tensor:
        given = tuple(inputs)
        state = self.states[node.name] if node.name in self.states else node.start(given)
        y, self.states[node.name] = node.step(given, state)
        return y

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        if not node.decoded:
            return self.timed(node, inputs)
        target = self.function(node, inputs)
        if node.name in self.choosing:
            assert isinstance(node, SignGDNeuron)
            node = self._sized(node, inputs, target)
        v = self.timed(node, inputs)
        off, size = self.before.get(node.name, (0.0, 0.0))
        self.off[node.name] = off + _square(v - target), size + _square(target)
        return v

    def _sized(self, node: SignGDNeuron, inputs: list[Tensor], target: Tensor) -> SignGDNeuron:
        given, sizes = tuple(inputs), self.sizes[node.name]
        state = self.states.setdefault(node.name, node.start(given))
        scale = torch.as_tensor(node.scale).to(target).expand_as(target)
        left = ((state.v - target) / scale).flatten()
        if len(left) > VALUES:
            pick = torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:VALUES]
            left, scale = left[pick.to(left.device)], scale.flatten()[pick.to(left.device)]
        usual = sizes[-1] * TAIL if sizes else node.schedule(1)
        sizes.append(best_size(node, left, scale.flatten(), usual))
        return replace(node, schedule=ListSchedule(tuple(sizes)))


def best_size(node: SignGDNeuron, left: Tensor, weight: Tensor, usual: float) -> float:
    """eta of the least error for what is left of values, in units of scales ``weight``."""
    largest = float(left.abs().max())
    if largest == 0.0:
        return usual
    reach = largest / (2 - 2.0 ** (1 - node.members))
    sizes = [reach * size for size in SIZES]
    far = weight * UNSEEN**0.5
    errors = [
        float((_rest(node, left, size) * weight).square().sum())
        + float((_rest(node, FARTHER * left, size) * far).square().sum())
        for size in sizes
    ]
    return sizes[min(range(len(sizes)), key=errors.__getitem__)]


def _rest(node: SignGDNeuron, left: Tensor, size: float) -> Tensor:
    target, step = torch.zeros_like(left), left.new_tensor(size)
    theta = torch.as_tensor(node.dead_zone).to(left)
    if node.parameters.sparse:
        return sparse_step(target, step, theta.max(), left, node.members)[1]
    return dense_step(target, step, left, node.members, node.function.fires_at_tie)[1]


def samples_for(network: SpikingNetwork) -> int:
    """How many samples a run may have."""
    updates = sum(n.values * getattr(n, "members", 1) for n in network.neurons)
    return int(min(MOST, max(FEWEST, UPDATES // max(1, updates * network.time_steps))))


@torch.no_grad()
def run(
    network: SpikingNetwork, x: Tensor | Inputs, choosing: Collection[str] = ()
) -> tuple[Steps, float]:
    """All steps for x [B, ...], and the relative error of the outputs after the last."""
    module, names = NetworkModule(network, {}), leaves(network.outputs)
    x = module.check_input(x)
    steps, squares = Steps(x, choosing), [(0.0, 0.0)] * len(names)
    for part in (x,) if choosing else x.split(at_once(network)):  # a size is chosen by all of them
        steps.begin(part)
        values = {}
        for _ in range(network.time_steps):
            values = walk(network, steps, names)
        wanted = module.activations(part, keep=names)
        squares = [
            (off + _square(values[n] - wanted[n]), size + _square(wanted[n]))
            for n, (off, size) in zip(names, squares, strict=True)
        ]
    relative = sum(off / max(size, 1e-30) for off, size in squares)
    return steps, (relative / max(1, len(squares))) ** 0.5


def _square(value: Tensor) -> float:
    return float(value.square().sum())


def fit(network: SpikingNetwork, usual: SpikingNetwork, x: Tensor | Inputs) -> SpikingNetwork:
    """The plan with the least output error on samples that no size was chosen by: the network, its
    step sizes by the module's docstring where neurons have several members, and for networks that
    are no work the same two with the scales of ``usual``."""
    few = min(samples_for(network), len(x) // 2)
    if not few:
        return network
    begun = {"fitted": network} | ({"quantile": usual} if few >= ENOUGH else {})
    plans = {}
    for scale, one in begun.items():
        plans[f"{scale} scales, default steps"] = one
        several = {n.name for n in one.of(SignGDNeuron) if n.members > 1}
        if several and network.time_steps > 1:
            steps, _ = run(one, x[:few], several)
            plans[f"{scale} scales, measured steps"] = one.with_nodes(_stepped(one, steps.sizes))
    if len(plans) == 1:
        return network
    errors = {name: run(one, x[few : 2 * few])[1] for name, one in plans.items()}
    best = min(errors, key=errors.__getitem__)
    said = {"chosen": best, "errors": errors, "samples": few}
    return plans[best].replace(provenance={**network.provenance, "plan": said})


def _stepped(network: SpikingNetwork, sizes: dict[str, list[float]]) -> dict[str, SignGDNeuron]:
    return {
        node.name: replace(node, schedule=ListSchedule(tuple(sizes[node.name]), TAIL))
        for node in network.of(SignGDNeuron)
        if node.name in sizes
    }
