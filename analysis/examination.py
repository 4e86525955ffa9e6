"""The measurements of the doctor: both networks side by side, and runs with one layer changed.

Uses the converters' lowering of a reference, and their simulation by the definitions: what is
examined is the description, whatever simulator it was built for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..converters.conversion import source_network
from ..converters.rules import Entry, Operation
from ..converters.settings import Settings
from ..converters.simulation import Simulation, sequence
from ..core.module import NetworkModule, NetworkState, Signal, Source, Walk, key
from ..core.network import (
    Average,
    Encoder,
    Function,
    Input,
    Neuron,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    Timed,
    leaves,
    values_of,
)
from ..core.walk import Semantics, following, walk
from ..errors import InputError
from ..neurons.nonlinearities import NONLINEARITIES
from ..neurons.protocol import running_mean

VALUES = 2**26  # kept from one run to the next
PART = 2**24  # values of the largest node in all steps of one part of the samples
TOLERANCE = 1e-4  # of a node's value, fed the same inputs; rounding is near 1e-6
TINY = torch.finfo(torch.float64).tiny


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
    those of the reference that the network has not. ``fixed`` is the network with what is right.
    """

    wrong: Mapping[str, float]
    right: Mapping[str, Node | None]
    own: Mapping[str, Node]
    missing: tuple[str, ...]
    unmet: tuple[str, ...]
    fixed: SpikingNetwork


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
    other = NONLINEARITIES["sigmoid_gelu"]  # that preset takes another GELU, and says so
    gelus = [node for node in found.of(Function) if node.function.name == "gelu"]
    return found.with_nodes({n.name: replace(n, function=other, arguments={}) for n in gelus})


class _Beside(Semantics[Tensor]):
    """Each node on what the reference has ``there`` for its inputs; differences are gathered."""

    def __init__(self, network: SpikingNetwork, reference: SpikingNetwork) -> None:
        self.module = NetworkModule(network, {})
        self.passed = _passed(network, {node.name for node in reference.nodes})
        self.errors: dict[str, Sums] = {}
        self.shapes: dict[str, bool] = {}
        self.missing: dict[str, None] = {}

    def take(self, there: Mapping[str, Tensor], x: Tensor) -> None:
        self.there, self.own = there, Source(self.module, x)
        walk(self.module.network, self, keep=())

    def input(self, node: Input) -> Tensor:
        return self.own.input(node)

    def each(self, node: Node, inputs: Sequence[Tensor] = ()) -> Tensor:
        if node.name in self.passed:
            return inputs[0]
        want, have = self.there.get(node.name), None
        try:
            have = node.visit(self.own, list(inputs))
        except (RuntimeError, IndexError) as error:
            if want is None:
                raise InputError(
                    f"the reference is another network: '{node.name}' does not accept its values "
                    f"at {', '.join(node.inputs)}. Pass the model that was converted."
                ) from error
        if want is None:
            self.missing[node.name] = None
            assert have is not None
            return have
        if have is None or have.shape != want.shape:
            self.shapes[node.name] = True
        else:
            self.errors.setdefault(node.name, Sums()).add(have, want)
        return want

    constant = linear = function = timed = each  # type: ignore[assignment]


@torch.no_grad()
def compare(network: SpikingNetwork, reference: SpikingNetwork, x: Tensor) -> Comparison:
    """Node by node: what each makes of the reference's values of its inputs."""
    true, beside = NetworkModule(reference, {}), _Beside(network, reference)
    for part in parts(network, x, 1):
        beside.take(true.all_activations(part), true.check_input(part))
    wrong = dict.fromkeys(beside.shapes, 1.0)
    wrong.update({k: s.error for k, s in beside.errors.items() if not s.error <= TOLERANCE})
    order = [node.name for node in network.nodes if node.name in wrong]
    right = {name: _taken(network[name], reference[name], beside.passed) for name in order}
    mine = {node.name for node in network.nodes}
    return Comparison(
        {name: wrong[name] for name in order},
        right,
        {name: network[name] for name in order},
        tuple(beside.missing),
        tuple(node.name for node in reference.nodes if node.name not in mine),
        network.with_nodes({name: node for name, node in right.items() if node is not None}),
    )


def _passed(network: SpikingNetwork, names: Collection[str]) -> dict[str, str]:
    """What planning puts in, and the source network has not: values pass it unchanged."""
    found: dict[str, str] = {}
    coded = [node for node in network.of(SignGDNeuron) if node.function.name == "identity"]
    put_in: set[Node] = {*network.of(Average), *network.of(Encoder), *coded}
    for node in network.nodes:
        if node in put_in and node.name not in names:
            (before,) = node.inputs
            found[node.name] = found.get(before, before)
    return found


def _taken(node: Node, true: Node, passed: Mapping[str, str]) -> Node | None:
    """The node with what the reference has in its place, None where that is of another kind."""
    if tuple(passed.get(name, name) for name in node.inputs) != true.inputs:
        return None
    return node.taking(true)


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
        source = NetworkModule(network, {})
        self.targets = [_leaves(network, source, part) for part in self.parts]
        if total <= VALUES:
            self.kept = [self._pass(part, {}, keep=None) for part in self.parts]
        self.start = self.rerun()

    def rerun(
        self, changes: Mapping[str, Timed] | None = None, exact: Collection[str] = ()
    ) -> Outcome:
        """The outcome with ``changes`` in place of nodes, and ``exact`` neurons without error:
        their functions, of what reaches them."""
        self.exact, self.changes = frozenset(exact), dict(changes or {})
        names = list(dict.fromkeys(leaves(self.network.outputs)))
        sums = [Sums() for _ in names]
        same = samples = 0
        for i, part in enumerate(self.parts):
            found = self._pass(part, self.kept[i] if self.kept is not None else {}, names)
            for j, name in enumerate(names):
                y, in_time = found[name]
                y = y[-1] if in_time else y
                want = self.targets[i][j]
                sums[j].add(y, want)
                if classes(self.network, want):
                    same += int((y.argmax(1) == want.argmax(1)).sum())
                    samples += len(part)
        self.exact, self.changes = frozenset(), {}
        return Outcome(relative(sums), same / samples if samples else None)

    def _pass(
        self, x: Tensor, before: dict[str, Signal], keep: Collection[str] | None
    ) -> dict[str, Signal]:
        """The values ``keep``; only those that differ from ``before`` are computed."""
        after = following(self.network, {*self.changes, *self.exact})
        known = {name: value for name, value in before.items() if name not in after}
        block = Walk(self, x, self.steps, {}, NetworkState({}))
        return walk(self.network, block, keep, known)

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        if node.name in self.exact:
            return self._exact(node, inputs)  # type: ignore[arg-type]
        return super().fire(node, inputs, walk)

    def _exact(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        function = self.functions[key(node.name)]
        if node.decoded:
            return function.over_time(*inputs)  # type: ignore[operator, no-any-return]
        # rate-coded: such that the mean of the steps so far is f of the mean of the inputs so far
        means = [running_mean(x, torch.zeros_like(x[0]), 0)[0] for x in inputs]
        y = function.over_time(*means)  # type: ignore[operator]
        total = y * torch.arange(1, len(y) + 1).to(y).view(-1, *[1] * (y.dim() - 1))
        return torch.cat([total[:1], total[1:] - total[:-1]])


def _leaves(network: SpikingNetwork, source: NetworkModule, x: Tensor) -> list[Tensor]:
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
def alone(node: Neuron, inputs: list[Tensor], steps: int, at: Collection[int]) -> dict[int, Tensor]:
    """What one neuron decodes after each of ``at`` steps of constant inputs [B, ...]."""
    y = sequence(node, [x.expand(steps, *x.shape) for x in inputs])
    if not node.decoded:
        y = running_mean(y, torch.zeros_like(y[0]), 0)[0]
    return {t: y[t - 1].clone() for t in at}
