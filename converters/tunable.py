"""The model that tuning optimises: a network of signGD neurons whose parameters are replaced by
differentiable choices; its samples and measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.inputs import value_of
from ..core.module import NetworkModule, Signal
from ..core.network import (
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    leaves,
)
from ..core.operations import apply, apply_over_time, resolve
from ..core.walk import Semantics, walk
from ..neurons.schedules import ListSchedule
from ..neurons.signgd.dithered import MOST, SparseTrack
from ..neurons.spikes import hear
from .additions import Prices
from .budget import Budget

BATCH = 32  # samples in one step of descent
MEMORY = 2**31  # bytes that one step of descent may keep
TAIL = 0.9  # ratio of the steps after the last tuned one


def updates(network: SpikingNetwork) -> int:
    """Of neurons, in all steps, for one sample."""
    members = sum(node.values * node.members for node in network.of(SignGDNeuron))
    return max(1, members * network.time_steps)


def batch_of(network: SpikingNetwork) -> int:
    """Samples at once: about four values of four bytes are kept for each update."""
    return max(1, min(BATCH, MEMORY // (16 * updates(network))))


class _Track(torch.autograd.Function):
    """T steps of m signs toward targets, with the gradient of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,  # [T, ...], or [...] where it does not change
        eta: Tensor,  # [T]
        scale: Tensor,
        resting: Tensor,
        node: SignGDNeuron,
        static: bool,
    ) -> Tensor:
        steps, shape = len(eta), target.shape if static else target.shape[1:]
        v = resting.expand(shape).clone()
        y = target.new_empty(steps, *shape)
        fires, near = (
            torch.empty(steps * node.members, *shape, dtype=torch.bool, device=v.device)
            for _ in range(2)
        )
        for t in range(steps):
            f = target if static else target[t]
            for k in range(node.members):
                size = eta[t] * 2.0**-k * scale
                i = t * node.members + k
                u = v - f
                fires[i] = u >= 0 if node.function.fires_at_tie else u > 0
                near[i] = u.abs_() < size
                v += torch.where(fires[i], -size, size)
            y[t] = v
        ctx.save_for_backward(fires, near, eta, scale)
        ctx.resting = resting.shape
        ctx.members, ctx.static = node.members, static
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        fires, near, eta, scale = ctx.saved_tensors
        v = torch.zeros_like(gradient[0])
        target = torch.zeros_like(gradient[0] if ctx.static else gradient)
        d_eta, d_scale = torch.zeros_like(eta), torch.zeros_like(scale)
        for t in reversed(range(len(eta))):
            v = v + gradient[t]
            for k in reversed(range(ctx.members)):
                i = t * ctx.members + k
                moved = torch.where(fires[i], -v, v).sum_to_size(scale.shape) * 2.0**-k
                d_eta[t] += (moved * scale).sum()
                d_scale += moved * eta[t]
                followed = v * near[i]
                v = v - followed
                (target if ctx.static else target[t]).add_(followed)
        return target, d_eta, d_scale, v.sum_to_size(ctx.resting), None, None


@dataclass(frozen=True, eq=False)
class Choice:
    """What is tuned of one neuron: log step sizes [T], log scale, resting in units of ``unit``, the
    scale or, with a dead zone, the finest step, and the zone's logit, -inf where there is none."""

    eta: Tensor
    scale: Tensor
    resting: Tensor
    dead_zone: Tensor
    unit: Tensor

    @staticmethod
    def of(node: SignGDNeuron, steps: int, like: Tensor, by_channel: bool = False) -> Choice:
        """Those of a node; ``by_channel``: with a resting value for each of them."""
        eta = like.new_tensor([node.schedule(t) for t in range(1, steps + 1)])
        scale = torch.as_tensor(node.scale).to(like).clone()
        # the finest step is what a silent neuron's resting value is seen by
        unit = scale * (float(eta[-1]) * node.finest if node.parameters.sparse else 1.0)
        resting = torch.as_tensor(node.resting).to(like) / unit
        if by_channel and node.channel is not None and resting.numel() == 1:
            sizes = [node.shape[node.channel], *[1] * (-node.channel - 1)]
            resting = resting.reshape(()).expand([s for s in sizes if isinstance(s, int)]).clone()
        theta = torch.as_tensor(node.dead_zone).to(like)
        return Choice(eta.log(), scale.log(), resting, theta.logit(), unit)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.eta, self.scale, self.resting, self.dead_zone

    def copy(self) -> Choice:
        eta, scale, resting, dead_zone = (a.detach().clone() for a in self.tensors())
        return Choice(eta, scale, resting, dead_zone, self.unit)

    def resized(self, factor: float) -> Choice:
        """With all steps so much larger."""
        choice = self.copy()
        choice.eta.add_(math.log(factor))
        return choice

    def applied(self, node: SignGDNeuron) -> SignGDNeuron:
        sizes = tuple(float(size) for size in self.eta.detach().exp())
        return replace(
            node,
            schedule=ListSchedule(sizes, TAIL),
            scale=self.scale.detach().exp(),
            resting=(self.resting * self.unit).detach(),
            dead_zone=self._theta(),
        )

    def _theta(self) -> float | Tensor:
        theta = self.dead_zone.detach().sigmoid()
        # no further than kernels know in closed form, by the rounding of a logit
        theta = theta.where((theta - MOST).abs() > 1e-6, MOST)
        return float(theta) if theta.dim() == 0 else theta


Choices = Mapping[str, Choice]


class Tunable:
    """A network of signGD neurons in the decoded view, run with choices in place of its own."""

    def __init__(self, network: SpikingNetwork, steps: int) -> None:
        self.network, self.steps = network, steps
        self.neurons = network.of(SignGDNeuron)
        self.prices: Prices | None = None  # where additions are counted
        self.every_step = {node.name for node in self.neurons}  # needed at, not at the last alone
        for node in reversed(network.nodes):
            if node.name in self.every_step:
                self.every_step.update(node.inputs)

    def count_additions(self) -> None:
        self.prices = Prices.of(self.network, self.steps)

    def part(self, network: SpikingNetwork) -> Tunable:
        """Some nodes of it, needed at the steps, and counted, as there."""
        part = copy(self)
        part.network, part.neurons = network, network.of(SignGDNeuron)
        return part

    def outputs(self, x: Tensor, choices: Choices) -> list[Tensor]:
        """Each output after the last step [B, ...]; by the kernels where no gradient is wanted."""
        return self.run(x, choices)[0]

    def run(
        self, x: Tensor, choices: Choices, counted: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """``outputs`` and the additions of a sample for each MAC, where these are counted."""
        values, sent = self.signals(x, choices, counted=counted)
        return [value[-1] if led else value for value, led in values], self.per_mac(sent)

    def per_mac(self, sent: Tensor | None) -> Tensor | None:
        """The additions of a sample, of what is ``sent``, spikes times connections."""
        return None if sent is None or self.prices is None else self.prices.per_mac(sent)

    def signals(
        self,
        x: Tensor,
        choices: Choices,
        known: Mapping[str, Signal] | None = None,
        counted: bool = True,
    ) -> tuple[list[Signal], Tensor | None]:
        """The outputs for values that are ``known``, and what each sample sends."""
        names = leaves(self.network.outputs)
        prices = self.prices if counted else None
        semantics = _Differentiable(self, x, choices, prices)
        found = walk(self.network, semantics, names, known)
        values = [found[name] for name in names]
        if prices is None:
            return values, None
        sent = semantics.sent or [torch.zeros((), device=x.device)]
        return values, torch.stack(sent).sum() / len(x)

    def trimmed(self, name: str, signal: Signal) -> Signal:
        """The last step alone, where no neuron needs the others."""
        value, led = signal
        return (value[-1], False) if led and name not in self.every_step else signal


class _Differentiable(Semantics[Signal]):
    """All steps of x [B, ...] at once, with a gradient in the choices."""

    def __init__(
        self, tunable: Tunable, x: Tensor, choices: Choices, prices: Prices | None
    ) -> None:
        self.steps, self.every_step = tunable.steps, tunable.every_step
        self.x, self.choices, self.prices = x, choices, prices
        self.sent: list[Tensor] = []  # by each neuron: spikes times connections

    def input(self, node: Input) -> Signal:
        return value_of(self.x, node.name), False

    def constant(self, node: Constant) -> Signal:
        return node.value, False

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        x = value_of(self.x, node.inputs[0])
        x_seq = x.expand(self.steps, *x.shape)
        return node.sequence((x_seq,), node.start((x,)))[0], True

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        values, led = self._needed(node, inputs)
        given, batch = (node.attributes, node.tensors), len(self.x)
        if any(led):
            return apply_over_time(node.op, values, led, *given, batch), True
        return apply(node.op, values, *given, batch), False

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        values, led = self._needed(node, inputs)
        if not any(led):
            return node.function(*values, **node.arguments), False
        return node.function.over_time(*self._series(values, led), **node.arguments), True

    def neuron(self, node: SignGDNeuron, inputs: list[Signal]) -> Signal:  # type: ignore[override]
        choice = self.choices[node.name]
        prices = self.prices
        fan_out = None if prices is None else prices.fan_out[node.name].to(self.x.device)
        if torch.is_grad_enabled():
            return self._with_gradient(node, inputs, choice, fan_out)
        tried, x_seq = choice.applied(node), self._series(*zip(*inputs, strict=True))
        start = tried.start(tuple(x[0] for x in x_seq))
        if fan_out is None:
            return tried.sequence(x_seq, start)[0], True
        with hear() as told:
            v = tried.sequence(x_seq, start)[0]
        events = told[0]()
        assert events is not None
        self.sent.append((events.spikes * fan_out).sum())
        return v, True

    def _with_gradient(
        self, node: SignGDNeuron, inputs: list[Signal], choice: Choice, fan_out: Tensor | None
    ) -> Signal:
        target, led = self.function(node, inputs)
        tuned = choice.eta.exp(), choice.scale.exp(), choice.resting * choice.unit
        if node.parameters.sparse:
            rest = fan_out, node.members, node.function.fires_at_tie, not led
            v, sent = SparseTrack.apply(target, *tuned, choice.dead_zone.sigmoid(), *rest)  # type: ignore[no-untyped-call]
            self.sent.append(sent)
            return v, True
        if fan_out is not None:  # every sign is a spike
            each = fan_out.expand(resolve(node.shape, len(self.x)))
            self.sent.append(each.sum() * (node.members * self.steps))
        return _Track.apply(target, *tuned, node, not led), True  # type: ignore[no-untyped-call]

    def _needed(self, node: Node, inputs: list[Signal]) -> tuple[list[Tensor], list[bool]]:
        """What the node needs of its inputs: every step, or what they are in the end."""
        if node.name not in self.every_step:
            inputs = [(value[-1] if led else value, False) for value, led in inputs]
        return [value for value, _ in inputs], [led for _, led in inputs]

    def _series(self, values: Sequence[Tensor], led: Sequence[bool]) -> tuple[Tensor, ...]:
        pairs = zip(values, led, strict=True)
        return tuple(v if in_time else v.expand(self.steps, *v.shape) for v, in_time in pairs)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs [N, ...] and what the source network makes of them, one tensor for each output."""

    x: Tensor
    targets: list[Tensor]
    least: tuple[float, ...]  # of the mean squares of the targets, whatever samples are picked
    squares: tuple[Tensor, ...] = ()  # that errors are relative to; none: those of these samples

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, index: Any) -> Samples:
        targets = [target[index] for target in self.targets]
        return Samples(self.x[index], targets, self.least, self.squares)

    def norms(self) -> tuple[Tensor, ...]:
        """The mean square of each target."""
        pairs = zip(self.targets, self.least, strict=True)
        return self.squares or tuple(y.square().mean().clamp(min=least) for y, least in pairs)

    def together(self) -> Samples:
        """Parts of which have errors relative to all."""
        return replace(self, squares=self.norms())


@torch.no_grad()
def samples_of(network: SpikingNetwork, x: Tensor, budget: Budget | None = None) -> Samples:
    """x [N, ...] with the outputs of the source network. Raises TimeUp."""
    module = NetworkModule(network, {})
    x = module.check_input(x)
    names = leaves(network.outputs)

    def outputs(part: Tensor) -> list[Tensor]:
        values = module.activations(part)
        return [values[name] for name in names]

    parts = (budget or Budget()).dealt("source", x.split(BATCH), outputs)
    targets = [torch.cat(part) for part in zip(*parts, strict=True)]
    squares = [float(target.square().mean()) for target in targets]
    # an output that is nearly silent, or silent in some samples, does not outweigh the others
    least = tuple(max(0.1 * square, 1e-4 * max(squares), 1e-30) for square in squares)
    return Samples(x, targets, least)


def default_choices(network: SpikingNetwork, samples: Samples, by_channel: bool = False) -> Choices:
    """The network as it is."""
    given = network.time_steps, samples.targets[0], by_channel
    return {node.name: Choice.of(node, *given) for node in network.of(SignGDNeuron)}


def loss_of(outputs: Sequence[Tensor], samples: Samples) -> Tensor:
    """E of the module's docstring."""
    parts = [
        (y - target).square().mean() / norm
        for y, target, norm in zip(outputs, samples.targets, samples.norms(), strict=True)
    ]
    return torch.stack(parts).sum()


class Found(NamedTuple):
    error: float
    agreement: float | None
    additions: float | None = None

    def loss(self, weight: float) -> float:
        """In the order of L; without a weight the error itself."""
        if not weight or self.additions is None:
            return self.error
        return self.error**2 + weight * self.additions


class Measure:
    """Error, agreement and additions of choices on samples, without a gradient.

    Of several processes each runs some batches; all take what the first one finds in the outputs.
    Raises TimeUp where the budget is over before all samples are seen.
    """

    def __init__(self, simulation: Tunable, samples: Samples, budget: Budget | None = None) -> None:
        self.simulation, self.samples = simulation, samples
        self.budget = budget or Budget()
        self.batch = self.budget.size_of(batch_of(simulation.network))
        first = samples.targets[0]
        self.classifies = len(samples.targets) == 1 and first.dim() == 2 and first.shape[1] > 1

    @property
    def pieces(self) -> int:
        """One after the other."""
        return self.budget.rounds(-(-len(self.samples) // self.batch))

    @torch.no_grad()
    def __call__(self, choices: Choices) -> Found:
        parts = self.samples.x.split(self.batch)
        done = self.budget.dealt("look", parts, lambda x: self.simulation.run(x, choices))
        ran, made = zip(*done, strict=True)
        found = self.of([torch.cat(part) for part in zip(*ran, strict=True)], parts, made)
        return self.budget.world.broadcast(found)

    def of(
        self, outputs: Sequence[Tensor], parts: Sequence[Tensor], made: Sequence[Tensor | None]
    ) -> Found:
        error = float(loss_of(outputs, self.samples)) ** 0.5
        additions = self._mean(parts, made)
        if not self.classifies:
            return Found(error, None, additions)
        same = outputs[0].argmax(1) == self.samples.targets[0].argmax(1)
        return Found(error, float(same.double().mean()), additions)

    def _mean(self, parts: Sequence[Tensor], made: Sequence[Tensor | None]) -> float | None:
        counted = [float(a) * len(x) for x, a in zip(parts, made, strict=True) if a is not None]
        return sum(counted) / len(self.samples) if counted else None
