r"""Mixed networks: signGD or group neurons for each layer, chosen by output error per spike.

How the two pass values to each other in one network of T steps:

* a signGD neuron receives the running mean of the spikes of group neurons (an ``Average`` node),
which is exact after the last step and coarser before;
* a group neuron receives the decoded values of signGD neurons after each step. It sums them, so it
computes f of their mean over the steps, which includes the inaccurate early ones. This is exact
only at T = 1, where the mean is the value.

A layer may be of group neurons if it is a ReLU or QCFS; pooling that selects among what one such
layer sends goes with it (a ``Growth``, which passes spikes on and sends none itself).

Each choice for a layer, m members of either neuron, is tried with all else real-valued: e is then
the squared relative error of the outputs, s the spikes really sent, m T by a signGD neuron, by
group neurons what they send on these samples. Errors of layers are assumed to be independent, so
squared errors add up. Starting from the cheapest choices, the change that lowers e most per
additional spike is made until the budget is used up; only the lower convex hull of (s, e) of a
layer matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.network import (
    Average,
    Constant,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    fill,
    leaves,
    values_of,
)
from ..core.operations import moves
from ..core.progress import progress
from ..core.spikes import Sent, listening
from ..core.walk import Semantics, walk
from ..neurons.group import group_ceiling
from ..neurons.schedules import ExponentialSchedule
from ..neurons.signgd import MOST_MEMBERS
from ..neurons.spikes import hear
from . import thresholds
from .budget import Budget
from .planning import SMALLEST_CHANNEL, _common, default_schedule, relative_depths
from .simulation import Simulation, Visit, group_outputs, sequence
from .tunable import Samples, loss_of, samples_of

GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)  # m tried; files hold a byte
FIRST = (0.26, 0.3, 0.4, 0.52, 0.65)  # steps tried for signGD neurons, in scales
IMAGES = 128  # each choice is tried on, at most
VALUES = 2**26  # of all nodes for them

Nodes = Mapping[str, Node]


@dataclass(frozen=True)
class Option:
    """``error``: squared relative error of the outputs; ``spikes``: of the layer, a sample."""

    spikes: float
    error: float
    nodes: Nodes


def units(network: SpikingNetwork) -> list[tuple[SignGDNeuron, ...]]:
    """The signGD neurons that are of one method: a layer with the pooling of what it sends."""
    found = _Units()
    walk(network, found, keep=())
    return [tuple(nodes) for nodes in found.units.values()]


class _Units(Semantics[str | None]):
    """A value is the one layer whose spikes it is, as they are."""

    def __init__(self) -> None:
        self.units: dict[str, list[SignGDNeuron]] = {}

    def other(self, node: Node, inputs: Sequence[str | None] = ()) -> str | None:
        return None

    input = constant = function = timed = other  # type: ignore[assignment]

    def linear(self, node: Linear, inputs: list[str | None]) -> str | None:
        return _one(inputs) if _passes_on(node) else None

    def neuron(self, node: SignGDNeuron, inputs: list[str | None]) -> str | None:  # type: ignore[override]
        one = _one(inputs)
        if one is not None and node.function.selects:
            self.units[one].append(node)
            return one
        self.units[node.name] = [node]
        return node.name if may_be_group(node) else None


def _one(inputs: list[str | None]) -> str | None:
    return inputs[0] if len(set(inputs)) == 1 else None


def _passes_on(node: Linear) -> bool:
    """Whether spikes pass without being added up, and none has a value that a border fills in."""
    return moves(node.op, node.attributes) and node.op not in ("pad", "upsample")


def may_be_group(node: Function) -> bool:
    return group_ceiling(node) is not None and node.shape[:1] == ("1*batch",)


class Choices:
    """What each unit of ``network``, of signGD neurons, may be in T steps, and what that does.

    Each choice is tried by one of the processes of ``budget``.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        x: Tensor,
        steps: int,
        seed: int,
        budget: Budget | None = None,
    ) -> None:
        self.network, self.steps, self.seed = network, steps, seed
        self.budget = budget or Budget()
        source = real(network, [node.name for node in network.of(SignGDNeuron)])
        size = sum(values_of(node.shape) for node in network.nodes)
        x = x[: max(16, min(IMAGES, VALUES // size))]
        self.samples = samples_of(source, x, self.budget)
        self.module = Simulation(source)
        self.tried: list[dict[str, Any]] = []
        self.units = self._units()

    def within(self, spikes: float) -> dict[str, Node] | None:
        """The nodes of the least error that send so many spikes a sample, None if too few."""
        at = [unit[0] for unit in self.units]
        left = spikes - sum(option.spikes for option in at)
        if left < 0:
            return None
        closed = set()
        for unit, i in _increments(self.units):
            if unit in closed:
                continue
            option = self.units[unit][i]
            if option.spikes - at[unit].spikes > left:
                closed.add(unit)
                option = _between(at[unit], option, left)
            left -= option.spikes - at[unit].spikes
            at[unit] = option
        return dict(_sum(at).nodes)

    @torch.no_grad()
    def _units(self) -> list[list[Option]]:
        module, x = self.module, self.samples.x
        values = module.activations(x, keep=[node.name for node in module.network.nodes])
        found = units(self.network)
        free = [
            unit[0].name
            for unit in found
            if may_be_group(unit[0]) and unit[0].function.name != "qcfs"
        ]
        generator = torch.Generator().manual_seed(self.seed)
        weights = thresholds.weights(module, x, free, generator) if free else {}
        result = []
        for unit in progress(found, "trying methods", len(found)):
            alone = [hull(self._signgd(node, values, weights)) for node in unit]
            options = _merged(alone)
            if may_be_group(unit[0]):
                grown = {n.name: Growth(**_common(n)) for n in unit[1:]}
                for option in self._group(unit[0], values, weights.get(unit[0].name), generator):
                    options.append(replace(option, nodes={**option.nodes, **grown}))
            result.append(hull(options))
        return result

    def _signgd(
        self, node: SignGDNeuron, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> list[Option]:
        inputs = [values[name] for name in node.inputs]
        target, weight = values[node.name], weights.get(node.name)
        depth = relative_depths(self.network.nodes)[node.name]
        resting = [node.resting]
        if bool(target.min() >= 0):  # half of the range is never needed
            resting.append(torch.as_tensor(node.scale) * 0.5)

        def made(members: int, initial: float, rest: int) -> SignGDNeuron:
            usual = default_schedule(self.steps, depth, members, node.widest_dead_zone)
            schedule = ExponentialSchedule(initial, usual.decay)
            return replace(node, members=members, schedule=schedule, resting=resting[rest])

        def best(members: int) -> tuple[float, int, float, float]:
            """The first step and the resting value, with spikes and error."""
            first = default_schedule(self.steps, depth, members, node.widest_dead_zone).initial
            sizes = (first, *FIRST) if members > 1 or self.steps == 1 else (first,)
            found: tuple[float, float, int, Tensor, float] | None = None
            for initial in dict.fromkeys(sizes):
                for rest in range(len(resting)):
                    y, spikes = self._decoded(made(members, initial, rest), inputs)
                    off = (y - target).square()
                    error = float((off if weight is None else off * weight).mean())
                    if found is None or error < found[0]:
                        found = error, initial, rest, y, spikes
            assert found is not None
            _, initial, rest, y, spikes = found
            return initial, rest, spikes, self._error(node, y, values)

        members = range(1, MOST_MEMBERS + 1)
        return [
            self._option(made(m, initial, rest), spikes, error)
            for m, (initial, rest, spikes, error) in zip(
                members, self.budget.dealt("choice", members, best), strict=True
            )
        ]

    def _decoded(self, node: SignGDNeuron, inputs: list[Tensor]) -> tuple[Tensor, float]:
        """What the neurons hold in the end, and the spikes of a sample."""
        x_seq = [x.expand(self.steps, *x.shape) for x in inputs]
        if node.steady:
            return sequence(node, x_seq)[-1], float(
                node.members * self.steps * values_of(node.shape)
            )
        with hear() as told:
            y = sequence(node, x_seq)[-1]
        events = told[0]()
        assert events is not None
        return y, float(events.spikes.double().sum()) / len(inputs[0])

    def _group(
        self,
        node: SignGDNeuron,
        values: Mapping[str, Tensor],
        weight: Tensor | None,
        generator: torch.Generator,
    ) -> list[Option]:
        x = values[node.inputs[0]]
        groups, drawn = list(self._groups(node)), dict[int, thresholds.Samples]()
        for i, group in enumerate(groups):
            if not group.trained:  # drawn one after the other by all processes, kept by one
                visit = Visit(group, [(x, False)], [x], values[node.name])
                samples = thresholds.layer_samples(visit, weight, self.steps, generator)
                drawn |= {i: samples} if self.budget.world.mine(i) else {}

        def tried(i: int) -> tuple[Any, Any, float, float]:
            """Threshold and initial charge, with spikes and error."""
            group = self._fitted(groups[i], node, drawn[i]) if i in drawn else groups[i]
            with hear() as told:
                y = group_outputs(x.expand(self.steps, *x.shape), group)
            (events,) = told
            spikes = float(events().spikes.double().sum()) / len(x)
            error = self._error(node, y.mean(0), values)
            return group.v_threshold, group.initial_charge, spikes, error

        options = []
        found = self.budget.dealt("choice", range(len(groups)), tried)
        for group, (threshold, charge, spikes, error) in zip(groups, found, strict=True):
            made = replace(group, v_threshold=threshold, initial_charge=charge)
            options.append(self._option(made, spikes, error))
        return options

    def _fitted(
        self, group: GroupNeuron, node: SignGDNeuron, samples: thresholds.Samples
    ) -> GroupNeuron:
        samples = thresholds.with_largest(samples, self.network.statistics[node.name]["maximum"])
        start = torch.as_tensor(group.v_threshold).to(samples.y).reshape(-1, 1)
        start = start.expand(len(samples.y), 1) / group.members
        theta, charge = thresholds.search(samples, start, group.members, group.signed)
        shape = thresholds.channel_shape(node) if theta.numel() > 1 else ()
        return group.fitted(
            thresholds.per_channel(theta * group.members, shape),
            thresholds.per_channel(charge, shape),
        )

    def _groups(self, node: SignGDNeuron) -> Iterator[GroupNeuron]:
        """Those to be tried; one that was trained with L levels is itself at m T = L alone."""
        levels = node.arguments.get("levels")
        if levels is None:
            found = self.network.statistics[node.name]
            threshold: Any = float(found["tensor_quantile"]) or 1.0
            if isinstance(node.scale, Tensor) and node.channel is not None:
                threshold = found["quantile"].clamp(min=SMALLEST_CHANNEL * threshold)
            for members in GROUPS:
                yield GroupNeuron(
                    **_common(node),
                    members=members,
                    v_threshold=threshold,
                    signed=self.steps > 1,
                )
        elif levels % self.steps == 0:
            members, threshold = levels // self.steps, node.arguments["v_threshold"]
            yield GroupNeuron(**_common(node), members=members, v_threshold=threshold)

    def _error(self, node: Node, y: Tensor, values: Any) -> float:
        """Of the outputs, where the node makes y."""
        after = self.module.activations_after(values, {node.name: y})
        outputs = [after[name] for name in leaves(self.network.outputs)]
        return float(loss_of(outputs, self.samples))

    def _option(self, node: SignGDNeuron | GroupNeuron, spikes: float, error: float) -> Option:
        self.tried.append(
            {
                "layer": node.name,
                "method": node.kind,
                "members": node.members,
                "time_steps": self.steps,
                "error": error**0.5,
                "spikes": spikes / values_of(node.shape),
            }
        )
        return Option(spikes, error, {node.name: node})


def hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of (spikes, error), from the fewest spikes to the least error."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.spikes, o.error)):
        if found and option.error >= found[-1].error:
            continue
        while len(found) > 1 and _rate(found[-1], option) >= _rate(found[-2], found[-1]):
            found.pop()
        found.append(option)
    return found


def _rate(a: Option, b: Option) -> float:
    """The error taken off by each spike more."""
    return (a.error - b.error) / (b.spikes - a.spikes)


def _increments(hulls: Sequence[Sequence[Option]]) -> list[tuple[int, int]]:
    """(which hull, its point) one after the other, those that gain most for a spike first."""
    steps = [(u, i) for u, options in enumerate(hulls) for i in range(1, len(options))]
    return sorted(steps, key=lambda s: (-_rate(hulls[s[0]][s[1] - 1], hulls[s[0]][s[1]]), *s))


def _merged(hulls: Sequence[Sequence[Option]]) -> list[Option]:
    """Options of several layers as those of one."""
    at = [options[0] for options in hulls]
    found = [_sum(at)]
    for unit, i in _increments(hulls):
        at[unit] = hulls[unit][i]
        found.append(_sum(at))
    return found


def _sum(options: Sequence[Option]) -> Option:
    nodes = {name: node for option in options for name, node in option.nodes.items()}
    return Option(sum(o.spikes for o in options), sum(o.error for o in options), nodes)


def _between(a: Option, b: Option, spikes: float) -> Option:
    """For so many ``spikes`` more than a, fewer than to b, if group neurons of some m are both."""
    share = spikes / (b.spikes - a.spikes)
    for name, node in b.nodes.items():
        before = a.nodes[name]
        if isinstance(before, GroupNeuron) and isinstance(node, GroupNeuron):
            members = before.members + int(share * (node.members - before.members))
            nodes = {**b.nodes, name: replace(node, members=members)}
            if members > before.members:
                return Option(a.spikes + spikes, a.error + share * (b.error - a.error), nodes)
    return a


def real(network: SpikingNetwork, names: Sequence[str]) -> SpikingNetwork:
    """``network`` with these neurons as real-valued functions."""
    functions = {node.name: node for node in network.of(Function)}
    return joined(network, {name: Function(**_common(functions[name])) for name in names})


def joined(network: SpikingNetwork, chosen: Nodes) -> SpikingNetwork:
    """A network of signGD neurons with nodes of other methods in their places.

    Where something else than a group neuron, or an output, reads what group neurons send, a
    running mean comes in between.
    """
    network = network.with_nodes(chosen)
    join = _Join(network)
    walk(network, join, keep=())
    outputs = fill(network.outputs, {name: join.mean(name) for name in leaves(network.outputs)})
    return network.replace(nodes=tuple(join.nodes), outputs=outputs)


class _Join(Semantics[str]):
    """A value is "static", "moving", decoded and changing with time, or a "rate", sent in steps."""

    def __init__(self, network: SpikingNetwork) -> None:
        self.taken = {node.name for node in network.nodes}
        self.nodes: list[Node] = []
        self.rates: dict[str, Node] = {}
        self.means: dict[str, str] = {}

    def mean(self, name: str) -> str:
        """The node that holds the value itself."""
        if name in self.rates and name not in self.means:
            mean = f"{name}.mean"
            while mean in self.taken:
                mean += "_"
            self.taken.add(mean)
            self.means[name] = mean
            self.nodes.append(Average(name=mean, inputs=(name,), shape=self.rates[name].shape))
        return self.means.get(name, name)

    def input(self, node: Input) -> str:
        return self._as_is(node, "static")

    def constant(self, node: Constant) -> str:
        return self._as_is(node, "static")

    def linear(self, node: Linear, inputs: list[str]) -> str:
        if "moving" in inputs:
            return self.timed(node, inputs)
        return self._as_is(node, "rate" if "rate" in inputs else "static")

    def function(self, node: Function, inputs: list[str]) -> str:
        changes = self.timed(node, inputs)
        return changes if {"moving", "rate"}.intersection(inputs) else "static"

    def neuron(self, node: Neuron, inputs: list[str]) -> str:
        return self.timed(node, inputs) if node.decoded else self._as_is(node, "rate")

    def timed(self, node: Node, inputs: list[str]) -> str:
        means = tuple(map(self.mean, node.inputs))
        return self._as_is(replace(node, inputs=means), "moving")

    def _as_is(self, node: Node, what: str) -> str:
        self.nodes.append(node)
        if what == "rate":
            self.rates[node.name] = node
        return what


@torch.no_grad()
def spikes_sent(network: SpikingNetwork, x: Tensor, budget: Budget | None = None) -> float:
    """The spikes of all signGD and group neurons for one of the inputs x [N, ...], on average."""
    budget = budget or Budget()
    steady = [node for node in network.of(SignGDNeuron) if node.steady]
    counted = [n for n in network.neurons if isinstance(n, (SignGDNeuron, GroupNeuron))]
    counted = [node for node in counted if node not in steady]
    total = float(sum(node.values * node.members for node in steady) * network.time_steps)
    if not counted:
        return total
    simulation = Simulation(network)

    def told(part: Tensor) -> float:
        sums = []

        def listen(sent: Sent) -> None:
            if sent.node in counted and sent.events is not None:
                sums.append(float(sent.events.spikes.double().sum()))

        with listening(simulation, listen):
            simulation.outputs(part, network.time_steps)
        return sum(sums)

    return total + sum(budget.dealt("counting", x.split(budget.size_of(32)), told)) / len(x)


@torch.no_grad()
def measured(
    network: SpikingNetwork, samples: Samples, budget: Budget | None = None
) -> tuple[float, float | None]:
    """Error and agreement of a network of any neurons, as ``tunable.Measure`` has them."""
    budget, simulation = budget or Budget(), Simulation(network)

    def run(part: Tensor) -> list[Tensor]:
        return [y[-1] for y in leaves(simulation.outputs(part, network.time_steps))]

    parts = budget.dealt("look", samples.x.split(budget.size_of(32)), run)
    outputs = [torch.cat(part) for part in zip(*parts, strict=True)]
    return budget.world.broadcast(_compared(outputs, samples))  # type: ignore[no-any-return]


def _compared(outputs: Sequence[Tensor], samples: Samples) -> tuple[float, float | None]:
    error = float(loss_of(outputs, samples)) ** 0.5
    first = samples.targets[0]
    if len(samples.targets) > 1 or first.dim() != 2 or first.shape[1] < 2:
        return error, None
    same = outputs[0].argmax(1) == first.argmax(1)
    return error, float(same.double().mean())
