r"""Block-by-block tuning of networks that are too large for gradient descent as a whole.

A network is cut where few values are needed later: after a residual block, at the bottleneck of an
inverted one, between the layers of a transformer. From the input on, each block is tuned on the
actual output of the *spiking* blocks before it, so that it sees their errors, toward the values of
the source network at its end,

.. math::
    L_b = E_b + w A_b, \qquad E_b = \sum_i g_i^2\, \mathrm{mean}\,(v_i - f_i)^2 .

:math:`A_b` are the block's additions; :math:`g_i^2` is the mean squared gradient of the outputs of
the source network at value i of the cut, by random signs as in ``thresholds.py``: to second order
:math:`E_b` is the E of ``tuning.py``, if what follows were exact and errors independent. The errors
of one channel are not independent: their mean over all positions is separated, and weighted by the
square of the sum of the gradients. With T > 1 the error at each step is in units of the planned
network's at that step: a block that is correct only at the end leaves the blocks after it no time.

Memory holds the values at one cut for all samples, and the graph of one block for a few. With
``outputs_of`` all blocks are then tuned together, on the error of the outputs itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.module import NetworkModule, Signal, Source
from ..core.network import Function, Input, Linear, SignGDNeuron, SpikingNetwork, leaves, values_of
from ..core.operations import follows_batch
from ..core.progress import announce, progress
from ..core.walk import following, walk
from .budget import Budget, TimeUp, now
from .descent import START, Descent
from .tunable import Choices, Samples, Tunable
from .uses import used

T = TypeVar("T")

LAYERS = 8  # of neurons in a block
PARTS = 8  # of the network's neurons: a block has no more than one, where it can be cut so
FEW = 4  # values alive at a cut, at most
SEEN = 128  # samples
LEAST_SEEN = 16
BATCH = 8  # samples in one step of descent
ITERATIONS = (10, 60)  # of each block: as many as make, of all blocks,
DESCENDING = 18.0  # seconds about, for one sample of each step
LOOKS = 3  # at the held-out samples, in each block
MEASURED = 3  # steps, after which it is told what all blocks will take
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


def iterations_of(network: SpikingNetwork, macs: float) -> int:
    """Steps of descent, by the size of a network whose source makes so many ``macs``."""
    seconds = 2e-10 * macs + 6e-8 * sum(node.values for node in network.of(SignGDNeuron))
    least, most = ITERATIONS
    return min(most, max(least, int(DESCENDING / max(seconds * network.time_steps, 1e-9))))


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
    """Where the block ends that begins there; the rest is one block if it is small enough."""
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
    """Whether the first dimension is that of the samples."""
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

    def split(self, size: int) -> list[Flow]:
        return [self.pick(slice(begin, begin + size)) for begin in range(0, len(self), size)]


def joined(parts: Sequence[Mapping[str, Signal]]) -> dict[str, Signal]:
    """The signals of all samples."""
    return {
        name: (torch.cat([part[name][0] for part in parts], 1 if led else 0), led)
        for name, (_, led) in parts[0].items()
    }


class Cost(NamedTuple):
    """g squared: of each value [...], and of the mean of each channel over its positions."""

    each: Tensor
    mean: Tensor
    positions: tuple[int, ...]  # dimensions, of values [B, ...]

    def of(self, error: Tensor) -> Tensor:
        """E_b [...] of errors [..., B, values of a sample], summed over samples."""
        lead = error.dim() - self.each.dim()
        if not self.positions:
            return (error.square() * self.each).flatten(lead - 1).sum(-1)
        mean = error.mean([lead - 1 + d for d in self.positions], keepdim=True)
        apart = ((error - mean).square() * self.each).flatten(lead - 1).sum(-1)
        return apart + (mean.square() * self.mean).flatten(lead - 1).sum(-1)


def costs(
    module: NetworkModule,
    x: Tensor,
    names: Collection[str],
    norms: Mapping[str, float],
    seed: int,
    budget: Budget,
) -> dict[str, Cost]:
    """Of the values ``names``; ``norms`` are the mean squares |y|^2 of outputs. Raises TimeUp."""
    positions = {name: _positions(module.network, name) for name in names}
    parts = x.split(budget.size_of(len(x)))

    def of(number: int) -> dict[str, Cost]:
        generator = torch.Generator().manual_seed(seed + number)
        return _sums(module, parts[number], positions, norms, generator)

    found = budget.dealt("costs", range(len(parts)), of)
    total, amount = found[0], len(x) * PROJECTIONS
    for part in found[1:]:
        for name, (each, mean, at) in part.items():
            total[name] = Cost(total[name].each + each, total[name].mean + mean, at)
    return {k: Cost(each / amount, mean / amount, at) for k, (each, mean, at) in total.items()}


def _sums(
    module: NetworkModule,
    x: Tensor,
    positions: Mapping[str, tuple[int, ...]],
    norms: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Cost]:
    """Of all samples and projections."""
    values = sum(values_of(node.shape) for node in module.network.nodes)
    found: dict[str, Cost] = {}
    for part in x.split(max(1, MEMORY // (8 * values))):
        with torch.enable_grad():
            for name, gradients in _gradients(module, part, positions, norms, generator):
                each = gradients.square().sum(0)
                mean = each
                if positions[name]:
                    mean = gradients.sum(positions[name], keepdim=True).square().sum(0)
                before = found.get(name, Cost(torch.zeros_like(each), torch.zeros_like(mean), ()))
                found[name] = Cost(before.each + each, before.mean + mean, positions[name])
    return found


def _positions(network: SpikingNetwork, name: str) -> tuple[int, ...]:
    """The dimensions of a value that are neither samples nor channels."""
    node, dims = network[name], len(network[name].shape)
    seen = node
    while seen.inputs and not (isinstance(seen, Function) and seen.channel is not None):
        if isinstance(seen, Linear) and seen.op in ("conv", "linear"):
            break
        before = network[seen.inputs[0]]
        if len(before.shape) != dims:
            return ()
        seen = before
    channel = -1
    if isinstance(seen, Function) and seen.channel is not None:
        channel = seen.channel
    elif isinstance(seen, Linear) and seen.op == "conv":
        channel = -1 - len(seen.attributes["stride"])
    return tuple(d for d in range(1, dims) if d != dims + channel)


def _gradients(
    module: NetworkModule,
    x: Tensor,
    names: Collection[str],
    norms: Mapping[str, float],
    generator: torch.Generator,
) -> Iterator[tuple[str, Tensor]]:
    """[B, ...] of outputs times random signs, by the values ``names``, PROJECTIONS times."""
    values = module.activations(x.detach().clone().requires_grad_(), keep=[*names, *norms])
    for _ in range(PROJECTIONS):
        ends = [(_signs(values[k], generator) * values[k]).sum() / n**0.5 for k, n in norms.items()]
        total = torch.stack(ends).sum()
        reached = [name for name in names if values[name].requires_grad]
        gradients: Sequence[Tensor | None] = [None] * len(reached)
        if reached and total.requires_grad:  # functions of the user's may have no gradient
            gradients = torch.autograd.grad(
                total, [values[name] for name in reached], retain_graph=True, allow_unused=True
            )
        found = dict(zip(reached, gradients, strict=True))
        for name in names:
            gradient = found.get(name)
            yield name, torch.zeros_like(values[name]) if gradient is None else gradient


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def outputs_of(
    tunable: Tunable, blocks: Sequence[Block], x: Tensor, choices: Choices, counted: bool
) -> tuple[list[Tensor], Tensor | None]:
    """``Tunable.run``, whose graph holds the values between blocks; those within are made again
    where a gradient needs them."""
    known: dict[str, Signal] = {}
    sent = []
    for block in blocks:
        led = {name: known[name][1] for name in block.inputs}
        run = _Checkpointed(tunable.part(block.network), block, led, x, choices, counted)
        given = [known[name][0] for name in block.inputs]
        *values, made = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
        known |= {
            name: (value, run.led[name]) for name, value in zip(block.outputs, values, strict=True)
        }
        sent.append(made)
    total = torch.stack(sent).sum() if counted else None
    ends = [known[name] for name in leaves(tunable.network.outputs)]
    return [value[-1] if led else value for value, led in ends], tunable.per_mac(total)


@dataclass(eq=False)
class _Checkpointed:
    """A block of tensors: what it makes, and what is sent. ``led`` is of inputs, and outputs."""

    part: Tunable
    block: Block
    led: dict[str, bool]
    x: Tensor
    choices: Choices
    counted: bool

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.block.inputs, values, strict=True)
        known = {name: (value, self.led[name]) for name, value in pairs}
        signals, sent = self.part.signals(self.x, self.choices, known, self.counted)
        ends = [self.part.trimmed(*end) for end in zip(self.block.outputs, signals, strict=True)]
        self.led |= {n: led for n, (_, led) in zip(self.block.outputs, ends, strict=True)}
        return *(value for value, _ in ends), torch.zeros(
            (), device=self.x.device
        ) if sent is None else sent


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
            begun = now()
            for i, _ in enumerate(progress(self._steps(), "tuning blocks", total)):
                begun = now() if i == 0 else begun  # without what is set up for the first
                if i == MEASURED:
                    seconds = min(total * (now() - begun) / MEASURED, self.task.budget.left())
                    announce(f"tuning {len(self.blocks)} blocks", seconds)
        return self.choices

    def _steps(self) -> Iterator[None]:
        names = {name for block in self.blocks for name in block.outputs}
        given = self.norms, self.task.seed, self.task.budget
        found = costs(self.module, self.seen.x[:WEIGHED], sorted(names), *given)
        for i, block in enumerate(self.blocks):
            left = sum(each.values for each in self.blocks[i:])
            part = _Part(self, block, found, self.task.budget.share(block.values / left))
            self.seen, self.held_out = part.aimed(self.seen), part.aimed(self.held_out)
            with suppress(TimeUp):
                yield from self._descend(part)
            if block is not self.blocks[-1]:
                flows = part.advanced(self.seen), part.advanced(self.held_out)
                self.seen, self.held_out = flows

    def _descend(self, part: _Part) -> Iterator[None]:
        """The choices of a block, the best on held-out samples; time is left for its values."""
        task, held_out, name = self.task, self.held_out, part.block.neurons[-1].name
        plan = {node.name: self.choices[node.name] for node in part.block.neurons}
        begun = now()
        least = before = part.begun(held_out, plan)
        look = now() - begun
        self.errors[name] = [before, before]
        part.share = part.share.less(look * (1 + len(self.seen) / len(held_out)))

        def consider(choices: Choices) -> None:
            nonlocal least
            found = part.look(held_out, choices)
            if found < least:
                least = self.errors[name][1] = found
                self.choices.update({k: c.copy() for k, c in choices.items()})

        # leading zeros cost nothing, and fine digits do
        for factor in START if task.weight and "steps" in task.learn else ():
            consider({k: choice.resized(factor) for k, choice in plan.items()})
        start = {k: self.choices[k] for k in plan}
        descent = Descent(start, task.learn, RATE, task.iterations, task.sparse)
        looks = {math.ceil(task.iterations * k / LOOKS) for k in range(1, LOOKS + 1)}
        part.share = part.share.less(look)
        for i in range(1, task.iterations + 1):
            try:
                descent.step(part.losses(self._drawn(), descent.choices), part.share)
            except TimeUp:
                break
            if i in looks:
                consider(descent.choices)
            yield
        else:
            return
        part.share = part.share.less(-look)
        consider(descent.choices)

    def _drawn(self) -> Flow:
        pick = torch.randperm(len(self.seen), generator=self.generator)[:BATCH]
        return self.seen.pick(pick.to(self.seen.x.device))


class _Part:
    """A block while it is tuned, in its ``share`` of the time. ``units`` [T] are its errors as it
    was found."""

    def __init__(
        self, tuner: BlockTuner, block: Block, costs: Mapping[str, Cost], share: Budget
    ) -> None:
        self.module, self.task, self.block, self.share = tuner.module, tuner.task, block, share
        self.simulation, self.steps = tuner.tunable.part(block.network), tuner.tunable.steps
        self.choices = tuner.choices
        self.costs = {
            name: Cost(each + EVEN * each.mean(), mean + EVEN * mean.mean(), at)
            for name, (each, mean, at) in ((name, costs[name]) for name in block.outputs)
        }
        self.units = torch.ones(self.steps)
        values = 4 * block.values * self.steps
        many, self.few = (max(1, min(32, MEMORY // (n * values))) for n in (2, 6))
        self.many = share.size_of(many)

    @torch.no_grad()
    def aimed(self, flow: Flow) -> Flow:
        """With what the source network has at the end in place of at the beginning."""

        def found(part: Flow) -> dict[str, Tensor]:
            source = Source(self.module, part.x)
            values = walk(self.block.network, source, self.block.outputs, part.source)
            return {name: values[name] for name in self.block.outputs}

        parts = self.task.budget.dealt("source", flow.split(self.many), found)
        whole = {name: torch.cat([part[name] for part in parts]) for name in self.block.outputs}
        return Flow(flow.x, flow.spiking, whole)

    @torch.no_grad()
    def advanced(self, flow: Flow) -> Flow:
        """At the end of the block."""

        def ends(part: Flow) -> dict[str, Signal]:
            given = part.x, self.choices, part.spiking
            values, _ = self.simulation.signals(*given, counted=False)
            pairs = zip(self.block.outputs, values, strict=True)
            return {name: self.simulation.trimmed(name, signal) for name, signal in pairs}

        parts = self.task.budget.dealt("advance", flow.split(self.many), ends)
        return replace(flow, spiking=joined(parts))

    @torch.no_grad()
    def begun(self, flow: Flow, choices: Choices) -> float:
        """The loss of the block as it is found, whose errors are the units."""
        if not any(bool(cost.each.any()) for cost in self.costs.values()):  # without a gradient
            squares = {k: v.square().sum() / len(flow) for k, v in flow.source.items()}
            for name, cost in self.costs.items():
                each = (1 / squares[name].clamp(min=1e-30)).expand_as(cost.each)
                self.costs[name] = Cost(each, each, ())
        parts = self._looked(flow, lambda part: self._errors(part, choices, False)[0] * len(part))
        self.units = (torch.stack(parts).sum(0) / len(flow)).clamp(min=1e-30)
        return self.look(flow, choices)

    @torch.no_grad()
    def look(self, flow: Flow, choices: Choices) -> float:
        losses = self._looked(flow, lambda part: float(self._loss(part, choices)) * len(part))
        return sum(losses) / len(flow)

    def _looked(self, flow: Flow, look: Callable[[Flow], T]) -> list[T]:
        return self.share.dealt("look at a block", flow.split(self.many), look)

    def losses(self, flow: Flow, choices: Choices) -> list[Callable[[], Tensor]]:
        """In pieces, for each of which the graph fits in memory."""

        def loss(part: Flow) -> Tensor:
            return self._loss(part, choices) * (len(part) / len(flow))

        size = self.share.size_of(BATCH)
        return [partial(loss, part) for part in flow.split(min(self.few, size))]

    def _loss(self, flow: Flow, choices: Choices) -> Tensor:
        errors, additions = self._errors(flow, choices, bool(self.task.weight))
        loss = (errors / self.units).mean() * self.units[-1]
        return loss if additions is None else loss + self.task.weight * additions

    def _errors(self, flow: Flow, choices: Choices, counted: bool) -> tuple[Tensor, Tensor | None]:
        """E_b at each step [T], or in the end [1] where no neuron needs more, and additions."""
        values, sent = self.simulation.signals(flow.x, choices, flow.spiking, counted)
        errors = torch.zeros(1, device=flow.x.device)
        for name, (value, led) in zip(self.block.outputs, values, strict=True):
            y = value if led and name in self.simulation.every_step else value[-1:]
            y = y if led else value.unsqueeze(0)
            errors = errors + self.costs[name].of(y - flow.source[name]) / len(flow)
        return errors, self.simulation.per_mac(sent)
