r"""Block by block: the tuning of networks too large to be descended on as a whole.

A network is cut where few values are alive: behind a residual block, at the bottleneck of an
inverted one, between the layers of a transformer. From the input on, each block is tuned on what
the *spiking* blocks before it really send, so that it sees their errors, toward what the source
network has at its end,

.. math::
    L_b = E_b + w A_b, \qquad E_b = \sum_i g_i^2\, \mathrm{mean}\,(v_i - f_i)^2 .

:math:`A_b` are the block's additions; :math:`g_i^2` is the mean squared gradient of the outputs of
the source network at value i of the cut, by random signs as in ``thresholds.py``: to second order
:math:`E_b` is the E of ``tuning.py``, if what follows were exact and errors independent. With T > 1
the error at each step is in units of the planned network's at that step: a block that is right
in the end alone leaves those behind it no time.

Memory holds the values at one cut for all samples, and the graph of one block for a few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.module import NetworkModule, Signal, Source
from ..core.network import Input, SignGDNeuron, SpikingNetwork, leaves, values_of
from ..core.operations import follows_batch
from ..core.progress import progress
from ..core.walk import following, walk
from .budget import Budget, TimeUp, now
from .descent import START, Descent
from .tunable import Choice, Choices, Samples, Tunable
from .uses import used

LAYERS = 8  # of neurons in a block
PARTS = 8  # of the network's neurons: a block has no more than one, where it can be cut so
FEW = 4  # values alive at a cut, at most
SEEN = 128  # samples
LEAST_SEEN = 16
BATCH = 8  # samples in one step of descent
ITERATIONS = 60  # of each block
LOOKS = 3  # at the held-out samples, in each block
RATE = 0.05
KEPT = 2**30  # bytes of values at a cut
MEMORY = 2**29  # bytes of the graph of one block
WEIGHED = 16  # samples for g
PROJECTIONS = 4
EVEN = 0.05  # of the mean of g squared, for what costs nothing on these samples


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive nodes as a network of their own, for which ``inputs`` are known."""

    network: SpikingNetwork
    inputs: tuple[str, ...]

    @property
    def outputs(self) -> list[str]:
        return leaves(self.network.outputs)

    @property
    def neurons(self) -> tuple[SignGDNeuron, ...]:
        return self.network.of(SignGDNeuron)

    @property
    def values(self) -> int:
        """Of all nodes, for one sample."""
        return sum(values_of(node.shape) for node in self.network.nodes)


def alive(network: SpikingNetwork) -> list[tuple[str, ...]]:
    """For each node the values that nodes behind it, or the outputs, need; constants apart."""
    moving = following(network, [network.input.name])
    last = {name: i for i, node in enumerate(network.nodes) for name in node.inputs}
    last |= dict.fromkeys(leaves(network.outputs), len(network.nodes))
    found: list[tuple[str, ...]] = []
    names: list[str] = []
    for i, node in enumerate(network.nodes):
        names = [name for name in (*names, node.name) if last.get(name, -1) > i and name in moving]
        found.append(tuple(names))
    return found


def divided(network: SpikingNetwork) -> list[Block]:
    """The network in blocks of at most LAYERS layers, and a PARTS-th of all neurons, where there
    are such cuts: behind the fewest values that there are from the middle of the block on."""
    nodes, cuts = network.nodes, alive(network)
    shapes = {node.name: node.shape for node in nodes}
    sizes = [node.values if isinstance(node, SignGDNeuron) else 0 for node in nodes]
    width = [sum(values_of(shapes[name]) for name in names) for names in cuts]
    possible = [
        i
        for i, names in enumerate(cuts)
        if 0 < len(names) <= FEW and all(_led(shapes[name]) for name in names)
    ]
    blocks, begin = [], 0
    while begin < len(nodes):
        end = _end(sizes, width, possible, begin)
        blocks.append(_block(network, begin, end, cuts))
        begin = end + 1
    return blocks


def _end(sizes: Sequence[int], width: Sequence[int], possible: Sequence[int], begin: int) -> int:
    """Where the block ends that begins there; what is left is one where it is small enough."""
    most, whole = sum(sizes) // PARTS, len(sizes) - 1

    def layers(end: int) -> int:
        return sum(map(bool, sizes[begin : end + 1]))

    def small(end: int) -> bool:
        return sum(sizes[begin : end + 1]) <= most and layers(end) <= LAYERS

    ends = [i for i in possible if i >= begin and layers(i) and any(sizes[i + 1 :])]
    if not ends or small(whole):
        return whole
    fitting = [i for i in ends if small(i)]
    if not fitting:
        return ends[0]
    late = [i for i in fitting if 2 * layers(i) >= layers(fitting[-1])]
    return min(late, key=lambda i: (width[i], -i))


def _led(shape: Any) -> bool:
    """Whether samples are told apart by the first dimension."""
    return shape[:1] == ("1*batch",) and not any(map(follows_batch, shape[1:]))


def _block(network: SpikingNetwork, begin: int, end: int, cuts: Sequence[tuple[str, ...]]) -> Block:
    """The nodes from ``begin`` to ``end``, and the constants that they need."""
    nodes = network.nodes
    before = cuts[begin - 1] if begin else ()
    last = end == len(nodes) - 1
    after = tuple(leaves(network.outputs)) if last else cuts[end]
    moving = following(network, [network.input.name])
    still = [node for node in nodes[:begin] if node.name not in moving]
    known = [Input(name=name, inputs=(), shape=network[name].shape) for name in before]
    inner = used((*still, *known, *nodes[begin : end + 1]), after)
    return Block(SpikingNetwork(inner, after, network.time_steps), before)


@dataclass(frozen=True, eq=False)
class Flow:
    """Samples x at a cut: what the ``spiking`` network has there, and the ``source``."""

    x: Tensor
    spiking: Mapping[str, Signal]
    source: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, index: Any) -> Flow:
        spiking = {
            name: (value[:, index] if led else value[index], led)
            for name, (value, led) in self.spiking.items()
        }
        return Flow(self.x[index], spiking, {k: v[index] for k, v in self.source.items()})

    def split(self, size: int) -> Iterator[Flow]:
        for begin in range(0, len(self), size):
            yield self.pick(slice(begin, begin + size))


def joined(flows: Sequence[Flow]) -> Flow:
    first = flows[0]
    spiking = {
        name: (torch.cat([flow.spiking[name][0] for flow in flows], 1 if led else 0), led)
        for name, (_, led) in first.spiking.items()
    }
    source = {name: torch.cat([flow.source[name] for flow in flows]) for name in first.source}
    return Flow(torch.cat([flow.x for flow in flows]), spiking, source)


def costs(
    module: NetworkModule, x: Tensor, names: Collection[str], norms: Mapping[str, float], seed: int
) -> dict[str, Tensor]:
    """g squared [...] of the values ``names``; ``norms`` are the mean squares |y|^2 of outputs."""
    generator = torch.Generator().manual_seed(seed)
    values = sum(values_of(node.shape) for node in module.network.nodes)
    found: dict[str, Tensor] = {}
    for part in x.split(max(1, MEMORY // (8 * values))):
        with torch.enable_grad():
            for name, square in _squares(module, part, names, norms, generator).items():
                found[name] = found[name] + square if name in found else square
    return {k: v / (len(x) * PROJECTIONS) for k, v in found.items()}


def _squares(
    module: NetworkModule,
    x: Tensor,
    names: Collection[str],
    norms: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Squared gradients of outputs times random signs, summed over projections and samples."""
    values = module.activations(x.detach().clone().requires_grad_(), keep=[*names, *norms])
    found = {name: torch.zeros_like(values[name][0]) for name in names}
    for _ in range(PROJECTIONS):
        ends = [(_signs(values[k], generator) * values[k]).sum() / n**0.5 for k, n in norms.items()]
        total = torch.stack(ends).sum()
        reached = [name for name in names if values[name].requires_grad]
        if not reached or not total.requires_grad:
            break  # functions of the user's that have no gradient
        gradients = torch.autograd.grad(
            total, [values[name] for name in reached], retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(reached, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.square().sum(0)
    return found


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned, for what: ``tuning.tune``."""

    learn: Collection[str]
    weight: float
    sparse: bool
    iterations: int
    budget: Budget
    seed: int


class BlockTuner:
    """``choices`` for the whole network, and ``errors``: of each block E_b on held-out samples, as
    it was found and as it was left, by the name of its last neuron."""

    def __init__(
        self, tunable: Tunable, choices: Choices, seen: Samples, held_out: Samples, task: Task
    ) -> None:
        self.tunable, self.task = tunable, task
        self.module = NetworkModule(tunable.network, {})
        self.choices, self.errors = dict(choices), dict[str, list[float]]()
        self.blocks = divided(tunable.network)
        seen = seen.pick(slice(0, self._room(len(seen))))
        self.seen, self.held_out = (Flow(each.x, {}, {}) for each in (seen, held_out))
        self.generator = torch.Generator().manual_seed(task.seed)
        self.norms = {
            name: float(target.square().mean()) * target[0].numel() + 1e-30
            for name, target in zip(leaves(tunable.network.outputs), seen.targets, strict=True)
        }

    def _room(self, samples: int) -> int:
        """Samples whose values at the beginning and the end of each block fit in memory."""
        shapes = {node.name: node.shape for node in self.tunable.network.nodes}
        ends = [{*block.inputs, *block.outputs} for block in self.blocks]
        most = max(sum(values_of(shapes[name]) for name in names) for names in ends)
        each = 4 * most * (self.tunable.steps + 1)
        return min(samples, SEEN, max(LEAST_SEEN, KEPT // each))

    def run(self) -> Choices:
        """All blocks, or as many as there is time for."""
        total = len(self.blocks) * self.task.iterations
        with suppress(TimeUp):
            for _ in progress(self._steps(), "tuning blocks", total):
                pass
        return self.choices

    def _steps(self) -> Iterator[None]:
        names = {name for block in self.blocks for name in block.outputs}
        with self.task.budget.piece("costs"):
            x, seed = self.seen.x[:WEIGHED], self.task.seed
            found = costs(self.module, x, sorted(names), self.norms, seed)
        for i, block in enumerate(self.blocks):
            left = sum(each.values for each in self.blocks[i:])
            budget = self.task.budget.share(block.values / left)
            part = _Part(self, block, found, budget)
            self.seen, self.held_out = part.aimed(self.seen), part.aimed(self.held_out)
            yield from self._descend(part, budget)
            if block is not self.blocks[-1]:
                flows = part.advanced(self.seen), part.advanced(self.held_out)
                self.seen, self.held_out = flows

    def _descend(self, part: _Part, budget: Budget) -> Iterator[None]:
        """The choices of a block, the best on held-out samples; time is left for its values."""
        begun, held_out, task = now(), self.held_out, self.task
        best = {node.name: self.choices[node.name] for node in part.block.neurons}
        least = before = part.begun(held_out, best)
        look = now() - begun
        budget = budget.less(1.2 * look * (2 + len(self.seen) / len(held_out)))
        given = task.learn, RATE, task.iterations, task.sparse
        best, least = part.resized(held_out, best, least)
        descent = Descent(best, *given)
        looks = {math.ceil(task.iterations * k / LOOKS) for k in range(1, LOOKS + 1)}
        for i in range(1, task.iterations + 1):
            if not budget.fits("descent"):
                break
            begun = now()
            descent.step(part.losses(self._drawn(), descent.choices))
            budget.longest["descent"] = now() - begun
            if i in looks:
                found = part.look(held_out, descent.choices)
                if found < least:
                    best = {k: c.copy() for k, c in descent.choices.items()}
                    least = found
            yield
        self.choices.update(best)
        self.errors[part.block.neurons[-1].name] = [before, least]

    def _drawn(self) -> Flow:
        pick = torch.randperm(len(self.seen), generator=self.generator)[:BATCH]
        return self.seen.pick(pick.to(self.seen.x.device))


class _Part:
    """A block while it is tuned. ``units`` [T] are its errors as it was found."""

    def __init__(
        self, tuner: BlockTuner, block: Block, costs: Mapping[str, Tensor], budget: Budget
    ) -> None:
        self.module, self.task, self.block, self.budget = tuner.module, tuner.task, block, budget
        self.simulation, self.steps = tuner.tunable.part(block.network), tuner.tunable.steps
        self.choices = tuner.choices
        self.costs = {name: costs[name] for name in block.outputs}
        self.units = torch.ones(self.steps)
        values = 4 * block.values * self.steps
        self.many, self.few = (max(1, min(32, MEMORY // (n * values))) for n in (2, 6))

    @torch.no_grad()
    def aimed(self, flow: Flow) -> Flow:
        """With what the source network has at the end in place of at the beginning."""
        parts = []
        for part in flow.split(self.many):
            with self.budget.piece("source"):
                source = Source(self.module, part.x)
                parts.append(walk(self.block.network, source, self.block.outputs, part.source))
        whole = {name: torch.cat([part[name] for part in parts]) for name in self.block.outputs}
        return Flow(flow.x, flow.spiking, whole)

    @torch.no_grad()
    def advanced(self, flow: Flow) -> Flow:
        """At the end of the block."""
        parts, every_step = [], self.simulation.every_step
        for part in flow.split(self.many):
            values, _ = self.simulation.signals(part.x, self.choices, part.spiking, counted=False)
            kept = {
                name: (value, led) if not led or name in every_step else (value[-1], False)
                for name, (value, led) in zip(self.block.outputs, values, strict=True)
            }
            parts.append(Flow(part.x, kept, part.source))
        return joined(parts)

    @torch.no_grad()
    def begun(self, flow: Flow, choices: Choices) -> float:
        """The loss of the block as it is found, whose errors are the units."""
        if not any(bool(cost.any()) for cost in self.costs.values()):  # there is no gradient
            squares = {k: v.square().mean().clamp(min=1e-30) for k, v in flow.source.items()}
            self.costs = {
                k: (1 / squares[k]).expand_as(v) / v.numel() for k, v in self.costs.items()
            }
        self.costs = {k: cost + EVEN * cost.mean() for k, cost in self.costs.items()}
        parts = [self._errors(part, choices, False)[0] * len(part) for part in self._pieces(flow)]
        self.units = (torch.stack(parts).sum(0) / len(flow)).clamp(min=1e-30)
        return self.look(flow, choices)

    def resized(self, flow: Flow, choices: Choices, loss: float) -> tuple[dict[str, Choice], float]:
        """With all steps larger or smaller, where fewer additions are asked for."""
        best, least = dict(choices), loss
        for factor in START if self.task.weight and "steps" in self.task.learn else ():
            tried = {name: choice.resized(factor) for name, choice in choices.items()}
            found = self.look(flow, tried)
            if found < least:
                best, least = tried, found
        return best, least

    @torch.no_grad()
    def look(self, flow: Flow, choices: Choices) -> float:
        losses = [float(self._loss(part, choices)) * len(part) for part in self._pieces(flow)]
        return sum(losses) / len(flow)

    def _pieces(self, flow: Flow) -> Iterator[Flow]:
        for part in flow.split(self.many):
            with self.budget.piece("look at a block"):
                yield part

    def losses(self, flow: Flow, choices: Choices) -> Iterator[Callable[[], Tensor]]:
        """In parts, for each of which the graph fits in memory."""
        for part in flow.split(self.few):
            yield lambda part=part: self._loss(part, choices) * (len(part) / len(flow))  # type: ignore[misc]

    def _loss(self, flow: Flow, choices: Choices) -> Tensor:
        errors, additions = self._errors(flow, choices, bool(self.task.weight))
        loss = (errors / self.units).mean() * self.units[-1]
        return loss if additions is None else loss + self.task.weight * additions

    def _errors(self, flow: Flow, choices: Choices, counted: bool) -> tuple[Tensor, Tensor | None]:
        """E_b at each step [T], or in the end [1] where no neuron needs more, and additions."""
        values, additions = self.simulation.signals(flow.x, choices, flow.spiking, counted)
        errors = flow.x.new_zeros(1)
        for name, (value, led) in zip(self.block.outputs, values, strict=True):
            y = value if led and name in self.simulation.every_step else value[-1:]
            y = y if led else value.unsqueeze(0)
            square = (y - flow.source[name]).square() * self.costs[name]
            errors = errors + square.flatten(1).sum(1) / len(flow)
        return errors, additions
