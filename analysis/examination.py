"""What the doctor looks with: the source network beside the spiking one, and runs in which one
neuron layer is changed.

Uses the converters' lowering of a reference, and their simulation by the definitions: what is
examined is the description, whatever simulator it was built for.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..converters.conversion import source_network
from ..converters.rules import Entry, Operation
from ..converters.settings import Settings
from ..converters.simulation import Simulation, group_outputs
from ..core.module import NetworkModule, NetworkState, Signal, Walk, key
from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
    leaves,
    values_of,
)
from ..errors import InputError
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.protocol import running_mean

VALUES = 2**26  # kept from one run to the next
PART = 2**24  # values of the largest node in all steps of one part of the samples
TOLERANCE = 1e-4  # of a node's value, fed the same inputs; rounding is near 1e-6
TINY = torch.finfo(torch.float64).tiny


class Source(NetworkModule):
    """A description whose neurons are their functions."""

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__(network, {})

    def all_values(self, x: Tensor) -> dict[str, Tensor]:
        return self.activations(x, keep=[node.name for node in self.network.nodes])

    def compute(self, node: Node, inputs: list[Tensor], batch: int) -> Tensor:
        if isinstance(node, Constant):
            return self.operations[key(node.name)].value  # type: ignore[return-value]
        if isinstance(node, Linear):
            return self.operations[key(node.name)](*inputs, batch=batch)  # type: ignore[no-any-return]
        if isinstance(node, Function):
            return self.functions[key(node.name)](*inputs)  # type: ignore[no-any-return]
        return inputs[0]

    def outputs_with(
        self, values: Mapping[str, Tensor], changed: Mapping[str, Tensor], batch: int
    ) -> list[Tensor]:
        """The outputs where some nodes have other values than ``all_values`` gave."""
        new = dict(changed)
        for node in self.network.nodes:
            if node.name not in new and any(name in new for name in node.inputs):
                inputs = [new.get(name, values.get(name)) for name in node.inputs]
                new[node.name] = self.compute(node, inputs, batch)  # type: ignore[arg-type]
        ends = dict.fromkeys(leaves(self.network.outputs))
        return [new[name] if name in new else values[name] for name in ends]


class Sums:
    """Squared differences and squared norms of pairs of tensors, gathered over parts."""

    def __init__(self) -> None:
        self.wrong = self.norm = self.have = self.product = self.difference = self.size = 0.0
        self.absolute = 0.0

    def add(self, have: Tensor, want: Tensor) -> None:
        a, b = have.detach().double(), want.detach().double()
        self.wrong += float((a - b).square().sum())
        self.norm += float(b.square().sum())
        self.have += float(a.square().sum())
        self.product += float((a * b).sum())
        self.difference += float((a - b).sum())
        self.absolute += float(b.abs().sum())

    @property
    def error(self) -> float:
        """The norm of the difference over that of what is wanted; itself where that is zero."""
        return float((self.wrong / (self.norm or 1.0)) ** 0.5)

    @property
    def cosine(self) -> float:
        both = (self.have * self.norm) ** 0.5
        return self.product / both if both else float(self.have == self.norm)

    @property
    def bias(self) -> float:
        """The mean difference over the mean size of what is wanted."""
        return self.difference / (self.absolute or 1.0)


def relative(pairs: Iterable[Sums]) -> float:
    """The error of several outputs together: the root of the mean of their squared errors."""
    squares = [sums.error**2 for sums in pairs]
    return float((sum(squares) / max(1, len(squares))) ** 0.5)


# -- the description beside the reference ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Comparison:
    """``wrong``: the error of each node that does not compute what the reference's does, fed the
    reference's values; ``right``: that node as it should be (None where it cannot be taken over);
    ``own``: as it is; ``missing``: nodes of which the reference has none of that name, ``unmet``:
    those of the reference that the network has not. ``mended`` is the network with what is right.
    """

    wrong: Mapping[str, float]
    right: Mapping[str, Node | None]
    own: Mapping[str, Node]
    missing: tuple[str, ...]
    unmet: tuple[str, ...]
    mended: SpikingNetwork


def lower(
    network: SpikingNetwork,
    reference: nn.Module,
    x: Tensor,
    neurons: Mapping[Operation, Entry],
) -> SpikingNetwork:
    """The reference as a description of functions, in the forms that the network was made with."""
    kinds = network.provenance.get("functions") or {}
    paper = network.provenance.get("preset") == "paper"
    preset = "paper" if paper else None
    settings = Settings(preset=preset, forms=kinds, neurons=neurons, time_steps=network.time_steps)
    found = source_network(reference, x[:2], settings)
    if not paper:
        return found
    nodes = tuple(  # that preset takes another GELU, and says so
        replace(node, function=NONLINEARITIES["sigmoid_gelu"], arguments={})
        if isinstance(node, Function) and node.function.name == "gelu"
        else node
        for node in found.nodes
    )
    return found.replace(nodes=nodes)


@torch.no_grad()
def compare(network: SpikingNetwork, reference: SpikingNetwork, x: Tensor) -> Comparison:
    """Node by node: what each makes of the reference's values of its inputs."""
    own, true = Source(network), Source(reference)
    names = {node.name for node in reference.nodes}
    errors: dict[str, Sums] = {}
    shapes: dict[str, bool] = {}
    missing: dict[str, None] = {}
    passed = _passed(network, names)
    for part in parts(network, x, 1):
        there = true.all_values(part)
        values: dict[str, Tensor] = {}
        for node in network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, Input):
                values[node.name] = true.check_input(part)
                continue
            if node.name in passed:
                values[node.name] = inputs[0]
                continue
            want = there.get(node.name)
            have = None
            try:
                have = own.compute(node, inputs, len(part))
            except (RuntimeError, IndexError) as error:
                if want is None:
                    raise InputError(
                        f"the reference is another network: '{node.name}' does not take what it "
                        f"has at {', '.join(node.inputs)}. Pass the model that was converted."
                    ) from error
            if want is None:
                missing[node.name] = None
                assert have is not None
                values[node.name] = have
                continue
            if have is None or have.shape != want.shape:
                shapes[node.name] = True
            else:
                errors.setdefault(node.name, Sums()).add(have, want)
            values[node.name] = want
    wrong = dict.fromkeys(shapes, 1.0)
    wrong.update({k: s.error for k, s in errors.items() if not s.error <= TOLERANCE})
    order = [node.name for node in network.nodes if node.name in wrong]
    right = {name: _taken(network[name], reference[name], passed) for name in order}
    nodes = tuple(right.get(node.name) or node for node in network.nodes)
    mine = {node.name for node in network.nodes}
    return Comparison(
        {name: wrong[name] for name in order},
        right,
        {name: network[name] for name in order},
        tuple(missing),
        tuple(node.name for node in reference.nodes if node.name not in mine),
        network.replace(nodes=nodes),
    )


def _passed(network: SpikingNetwork, names: Collection[str]) -> dict[str, str]:
    """What planning puts in, and the source network has not: values pass it unchanged."""
    found: dict[str, str] = {}
    for node in network.nodes:
        coded = isinstance(node, SignGDNeuron) and node.function.name == "identity"
        if node.name not in names and (isinstance(node, (Average, Encoder)) or coded):
            (before,) = node.inputs
            found[node.name] = found.get(before, before)
    return found


def _taken(node: Node, true: Node, passed: Mapping[str, str]) -> Node | None:
    """The node with what the reference has in its place, None where that is of another kind."""
    if tuple(passed.get(name, name) for name in node.inputs) != true.inputs:
        return None
    if isinstance(node, Linear) and isinstance(true, Linear):
        changes: dict[str, Any] = {"op": true.op, "attributes": true.attributes}
        return replace(node, shape=true.shape, tensors=true.tensors, **changes)
    if isinstance(node, Constant) and isinstance(true, Constant):
        return replace(node, shape=true.shape, value=true.value)
    if isinstance(node, Function) and isinstance(true, Function):
        guards = {k: v for k, v in node.arguments.items() if k in ("floor", "ceiling")}
        if guards and node.function.name == true.function.name:
            arguments = {**true.arguments, **guards}
        else:
            arguments = dict(true.arguments)
        return replace(node, shape=true.shape, function=true.function, arguments=arguments)
    return None


# -- runs with one layer changed ---------------------------------------------------------------


class Outcome(NamedTuple):
    """Of a run: the relative error of the outputs, and the share of equal predictions."""

    error: float
    agreement: float | None


class Trial(Simulation):
    """A run of T steps on x, and others with one neuron layer changed.

    The values of the first run are kept (where memory allows), so another costs what follows the
    changed layer.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor, steps: int) -> None:
        super().__init__(network)
        self.steps = steps
        self.exact: frozenset[str] = frozenset()
        self.parts = parts(network, self.check_input(x), steps)
        total = sum(values_of(node.shape) for node in network.nodes) * steps * len(x)
        self.kept: list[dict[str, Signal]] | None = None
        source = Source(network)
        self.targets = [_leaves(network, source, part) for part in self.parts]
        if total <= VALUES:
            kept: list[dict[str, Signal]] = [{} for _ in self.parts]
            for values, part in zip(kept, self.parts, strict=True):
                values.update(self._pass(part, {}, {}, True))
            self.kept = kept
        self.start = self.rerun()

    def rerun(
        self, changes: Mapping[str, Node] | None = None, exact: Collection[str] = ()
    ) -> Outcome:
        """The outcome with ``changes`` in place of nodes, and ``exact`` neurons without error:
        their functions, of what reaches them."""
        self.exact = frozenset(exact)
        names = list(dict.fromkeys(leaves(self.network.outputs)))
        sums = [Sums() for _ in names]
        same = samples = 0
        for i, part in enumerate(self.parts):
            before = self.kept[i] if self.kept is not None else {}
            found = ChainMap(self._pass(part, changes or {}, before, False), before)
            for j, name in enumerate(names):
                y, in_time = found[name]
                y = y[-1] if in_time else y
                want = self.targets[i][j]
                sums[j].add(y, want)
                if classes(self.network, want):
                    same += int((y.argmax(1) == want.argmax(1)).sum())
                    samples += len(part)
        self.exact = frozenset()
        return Outcome(relative(sums), same / samples if samples else None)

    def _pass(
        self, x: Tensor, changes: Mapping[str, Node], before: dict[str, Signal], keep: bool
    ) -> dict[str, Signal]:
        """The values that differ from ``before``, all where that is empty."""
        walk = Walk(x, self.steps, {}, NetworkState({}))
        new: dict[str, Signal] = {}
        values = ChainMap(new, before)
        ends = set(leaves(self.network.outputs))
        for node in self.network.nodes:
            changed = node.name in changes or node.name in self.exact
            if before and not changed and not any(name in new for name in node.inputs):
                continue
            new[node.name] = self._value(changes.get(node.name, node), values, walk)
            if not keep:
                for name in set(self._last_use.get(node.name, ())) - ends:
                    new.pop(name, None)
        return new

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        if node.name in self.exact and isinstance(node, Function):
            return self._exact(node, inputs)
        if isinstance(node, GroupNeuron):
            return group_outputs(inputs[0], node)
        return super().fire(node, inputs, walk)

    def _exact(self, node: Function, inputs: list[Tensor]) -> Tensor:
        function = self.functions[key(node.name)]
        if isinstance(node, (SignGDNeuron, SubgradientNeuron)):
            return function.over_time(*inputs)  # type: ignore[operator, no-any-return]
        # rate-coded: such that the mean of the steps so far is f of the mean of the inputs so far
        means = [running_mean(x, torch.zeros_like(x[0]), 0)[0] for x in inputs]
        y = function.over_time(*means)  # type: ignore[operator]
        total = y * torch.arange(1, len(y) + 1).to(y).view(-1, *[1] * (y.dim() - 1))
        return torch.cat([total[:1], total[1:] - total[:-1]])


def _leaves(network: SpikingNetwork, source: Source, x: Tensor) -> list[Tensor]:
    names = list(dict.fromkeys(leaves(network.outputs)))
    values = source.activations(x, keep=names)
    return [values[name] for name in names]


def classes(network: SpikingNetwork, output: Tensor) -> bool:
    """Whether the output is that of a classifier: one tensor [B, classes]."""
    return isinstance(network.outputs, str) and output.dim() == 2 and output.shape[1] > 1


def parts(network: SpikingNetwork, x: Tensor, steps: int) -> list[Tensor]:
    """x in parts of which no value of all steps is too large."""
    largest = max(values_of(node.shape) for node in network.nodes)
    size = max(1, min(64, PART // max(1, largest * steps)))
    return list(x.split(size))


@torch.no_grad()
def alone(node: Node, inputs: list[Tensor], steps: int, at: Collection[int]) -> dict[int, Tensor]:
    """What one neuron decodes after each of ``at`` steps of constant inputs [B, ...]."""
    simulation = _One(node)
    x_seq = [x.expand(steps, *x.shape) for x in inputs]
    y = simulation.fire(node, x_seq, None)  # type: ignore[arg-type]
    if not isinstance(node, (SignGDNeuron, SubgradientNeuron)):
        y = running_mean(y, torch.zeros_like(y[0]), 0)[0]
    return {t: y[t - 1].clone() for t in at}


class _One(Simulation):
    """``fire`` of a neuron by itself."""

    def __init__(self, node: Node) -> None:
        nn.Module.__init__(self)
        self.group = {node.name: node} if isinstance(node, GroupNeuron) else {}
