"""What a run of a spiking network costs: spikes, synaptic operations and the state that is kept.

The currency is the connection that a spike meets: a weight that is not zero, inside the border of
the image, in the spike's own group of channels. Connections are counted exactly, by the operations
themselves with ones for the weights that are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    values_of,
)
from ..network_module import NetworkModule
from ..neurons.protocol import like
from ..operations import apply_over_time, resolve
from ..running import check_run, check_steps, multi_step

WEIGHTED = ("conv", "conv_transpose", "linear", "matmul", "einsum")
BATCH = 32
NUMBER = 4  # bytes of a float32 state


@dataclass(frozen=True)
class Operations:
    """Means for one sample, of all ``time_steps`` together, counted on ``samples`` samples.

    ``spikes``
        signGD neurons send m signs in every step; of group neurons the members that fire or are
        taken back. Pooling passes on spikes of others, which are not counted again.
    ``events``
        Steps in which a neuron sends anything: m signs, or n members, at once are one event.
    ``synaptic``
        Additions of a weight: each spike at each connection it meets on its way to a sum. A
        connection without a weight, past which a neuron or a shortcut takes a spike as it is,
        counts one. Averages belong to the weights behind them.
    ``synaptic_events``
        The same where an event is handed on whole, a small integer times the weight.
    ``input_macs``
        Multiply-accumulates on what follows from the input alone, done once.
    ``sum_macs``
        Multiply-accumulates at every step on real values: linear operations of sums of weighted
        spikes (two linear layers without a neuron between them), of functions that are kept
        real-valued, and of real-valued input coding.
    ``multiplies``
        Of neurons whose function is a product of two signals (mul, matmul, attention), every step.
    ``evaluations``
        How often a neuron or a kept function computes its f: once a step.
    ``state_bytes``
        Numbers kept from one step to the next, float32: v, the estimate of each argument of f (each
        value once for a layer whose neurons share it), potentials, and what signed neurons have
        sent.
    ``source_macs``, ``source_multiplies``
        Of the source network, weights of zero and borders left out as everywhere here.
    ``layers``
        The synaptic operations (``synaptic``) of each linear operation or receiving neuron.
    """

    time_steps: int
    samples: int
    spikes: float
    events: float
    synaptic: float
    synaptic_events: float
    input_macs: float
    sum_macs: float
    multiplies: float
    evaluations: float
    state_bytes: int
    source_macs: float
    source_multiplies: float
    layers: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": dict(self.layers)}


class Signal(NamedTuple):
    """Where something is in a value, and how much, each [T or 1, B, ...] or None for nothing.

    ``spikes`` counts those that pass here without having met a weight, ``sums`` is 1 where a real
    value changes at every step, ``static`` where one follows from the input.
    """

    spikes: Tensor | None = None
    sums: Tensor | None = None
    static: Tensor | None = None


@torch.no_grad()
def count_operations(snn: NetworkModule, x: Tensor, time_steps: int | None = None) -> Operations:
    """What ``run(snn, x, time_steps)`` costs; x is [B, ...], one static input.

    ``time_steps`` are those the network was planned for unless given. For signGD and group neurons;
    raises InputError for others and for Poisson-coded input, whose spikes are not to be seen.
    """
    network = snn.network if isinstance(snn, NetworkModule) else None
    steps = time_steps or (network.time_steps if network else 1)
    (steps,) = check_steps(steps)
    x = check_run("count_operations", snn, x, steps, False)
    assert network is not None
    for node in network.nodes:
        poisson = isinstance(node, Encoder) and node.coding == "poisson"
        if poisson or node.kind == "subgradient":
            raise InputError(
                f"count_operations counts what signGD and group neurons send, but '{node.name}' is "
                f"{'Poisson-coded input' if poisson else 'a rate-coded neuron'}."
            )
    if not any(isinstance(node, (GroupNeuron, Growth)) for node in network.nodes):
        return _operations(network, steps, 1, steps, _one_step(network))
    parts = x.split(BATCH)
    return _mean([_operations(network, steps, len(p), 1, _run(snn, p, steps)) for p in parts])


def _one_step(network: SpikingNetwork) -> dict[str, Tensor]:
    """The spikes of each neuron [1, 1, ...], one step of one sample, which are those of all."""
    return {
        node.name: torch.full((1, *resolve(node.shape, 1)), float(node.members)).double()
        for node in network.nodes
        if isinstance(node, SignGDNeuron)
    }


def _run(snn: NetworkModule, x: Tensor, steps: int) -> dict[str, Tensor]:
    """How many spikes each neuron sends, [T, B, ...]."""
    spikes: dict[str, Tensor] = {}
    theta: dict[str, Any] = {}

    def listen(node: Node, y: Tensor) -> None:
        if isinstance(node, GroupNeuron):
            theta[node.name] = node.parameters.theta
        elif isinstance(node, Growth):  # a window holds neurons of one channel
            theta[node.name] = next((theta[n] for n in node.inputs if n in theta), None)
        if isinstance(node, SignGDNeuron):
            spikes[node.name] = torch.full_like(y, node.members, dtype=torch.double)
        elif theta.get(node.name) is not None:
            spikes[node.name] = (y / like(theta[node.name], y)).abs().round().double()
        elif isinstance(node, Growth):
            spikes[node.name] = (y != 0).double()

    before, snn.on_fire = snn.on_fire, listen
    snn.reset()
    try:
        with multi_step(snn):
            snn.advance(x, steps, {}, None)
    finally:
        snn.reset()
        snn.on_fire = before
    return spikes


def _operations(
    network: SpikingNetwork,
    steps: int,
    samples: int,
    times: int,
    spikes: Mapping[str, Tensor],
) -> Operations:
    """``spikes`` stand for ``times`` as many steps."""
    own = [spikes[n.name] for n in network.neurons if not isinstance(n, Growth)]
    each = _Walk(network, spikes, samples).run()
    whole = _Walk(network, {k: (s > 0).double() for k, s in spikes.items()}, samples).run()
    dense = _Walk(network, {}, 1, source=True).run()
    functions = [n for n in network.nodes if isinstance(n, Function)]
    products = sum(_multiplies(network, node) for node in functions)
    moving = [n for n in functions if n.name in each.moving]
    return Operations(
        time_steps=steps,
        samples=samples,
        spikes=times * sum(float(s.sum()) for s in own) / samples,
        events=times * sum(float((s > 0).sum()) for s in own) / samples,
        synaptic=times * sum(each.synaptic.values()) / samples,
        synaptic_events=times * sum(whole.synaptic.values()) / samples,
        input_macs=each.static / samples,
        sum_macs=times * each.sums / samples,
        multiplies=float(steps * sum(_multiplies(network, node) for node in moving)),
        evaluations=float(steps * sum(values_of(node.shape) for node in moving)),
        state_bytes=NUMBER * _numbers(network),
        source_macs=dense.static,
        source_multiplies=float(products),
        layers={name: times * found / samples for name, found in each.synaptic.items()},
    )


def _mean(parts: list[Operations]) -> Operations:
    samples = sum(part.samples for part in parts)

    def mean(of: Callable[[Operations], float]) -> float:
        return sum(of(part) * part.samples for part in parts) / samples

    return replace(
        parts[0],
        samples=samples,
        spikes=mean(lambda part: part.spikes),
        events=mean(lambda part: part.events),
        synaptic=mean(lambda part: part.synaptic),
        synaptic_events=mean(lambda part: part.synaptic_events),
        input_macs=mean(lambda part: part.input_macs),
        sum_macs=mean(lambda part: part.sum_macs),
        layers={
            name: sum(part.layers.get(name, 0.0) * part.samples for part in parts) / samples
            for name in dict.fromkeys(name for part in parts for name in part.layers)
        },
    )


class _Walk:
    """Spikes, sums and static values passed through the network, and the connections they meet."""

    def __init__(
        self,
        network: SpikingNetwork,
        spikes: Mapping[str, Tensor],
        batch: int,
        source: bool = False,
    ) -> None:
        self.network, self.spikes, self.batch, self.source = network, spikes, batch, source
        self.steps = max((s.shape[0] for s in spikes.values()), default=1)
        self.synaptic: dict[str, float] = {}
        self.moving: set[str] = set()  # functions whose arguments change with time
        self.sums = self.static = 0.0

    def run(self) -> _Walk:
        values: dict[str, Signal] = {}
        for node in self.network.nodes:
            values[node.name] = self._value(node, [values[name] for name in node.inputs])
        return self

    def _ones(self, node: Node, steps: int = 1) -> Tensor:
        return torch.ones(steps, *resolve(node.shape, self.batch), dtype=torch.double)

    def _value(self, node: Node, inputs: list[Signal]) -> Signal:
        if isinstance(node, Input):
            return Signal(static=self._ones(node))
        if isinstance(node, Constant):
            return Signal()
        if isinstance(node, Linear):
            return self._linear(node, inputs)
        if self.source:
            return Signal(static=self._ones(node))
        if isinstance(node, Encoder):
            return Signal(sums=self._ones(node, self.steps))
        if isinstance(node, Average):
            return inputs[0]
        assert isinstance(node, Function)
        arrived = sum(float(s.spikes.sum()) for s in inputs if s.spikes is not None)
        if arrived:
            self.synaptic[node.name] = arrived
        moves = any(s.spikes is not None or s.sums is not None for s in inputs)
        if type(node) is Function:  # kept real-valued
            if not moves:
                return Signal(static=self._ones(node))
            self.moving.add(node.name)
            return Signal(sums=self._ones(node, self.steps))
        self.moving.add(node.name)
        return Signal(spikes=self.spikes[node.name])

    def _linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        by_kind = {kind: [getattr(s, kind) for s in inputs] for kind in Signal._fields}
        found = {
            kind: self._connections(node, parts)
            for kind, parts in by_kind.items()
            if any(part is not None for part in parts)
        }
        spikes, sums, static = (found.get(kind) for kind in Signal._fields)
        if node.op not in WEIGHTED:
            return Signal(spikes, _mask(sums), _mask(static))
        if spikes is not None:
            self.synaptic[node.name] = float(spikes.sum())
        self.sums += 0.0 if sums is None else float(sums.sum())
        self.static += 0.0 if static is None else float(static.sum())
        changes = [part for part in (spikes, sums) if part is not None]
        return Signal(sums=_mask(sum(changes[1:], changes[0]) if changes else None),
                      static=_mask(static))  # fmt: skip

    def _connections(self, node: Linear, parts: list[Tensor | None]) -> Tensor:
        """How much arrives at each output, every connection being one."""
        shapes = [self._shape(name) for name in node.inputs]
        steps = max(part.shape[0] for part in parts if part is not None)
        values = [
            torch.zeros(steps, *shape, dtype=torch.double)
            if part is None
            else part.cpu().expand(steps, *part.shape[1:])
            for part, shape in zip(parts, shapes, strict=True)
        ]
        tensors = {
            name: (value.cpu() != 0).double() if name == "weight" else value.cpu()
            for name, value in node.tensors.items()
        }
        op, attributes, grown = _counting(node, values[0])
        out = apply_over_time(
            op, values, [True] * len(values), attributes, tensors, self.batch, linear_part=True
        )
        out = out * grown
        return out.ceil() if op == "upsample" else out  # one connection or more for each output

    def _shape(self, name: str) -> list[int]:
        return resolve(self.network[name].shape, self.batch)


def _counting(node: Linear, x: Tensor) -> tuple[str, dict[str, Any], float | Tensor]:
    """An operation whose connections are ones: averages become sums, or are multiplied up."""
    a = dict(node.attributes)
    if node.op == "mean":
        return "sum", a, 1.0
    if node.op == "add":
        return "add", {**a, "coefficients": (1, 1)}, 1.0
    if node.op == "avg_pool":
        if len(a["kernel_size"]) > 1:
            return "avg_pool", {**a, "divisor_override": 1}, 1.0
        return "avg_pool", {**a, "count_include_pad": True}, float(prod(a["kernel_size"]))
    if node.op == "adaptive_avg_pool":
        size = torch.ones((), dtype=torch.double)
        for out, n in zip(a["output_size"], x.shape[-len(a["output_size"]) :], strict=True):
            i = torch.arange(out)
            ends = (i + 1) * n
            one = -(-ends // out) - i * n // out
            size = size.unsqueeze(-1) * one
        return "adaptive_avg_pool", a, size
    return node.op, a, 1.0


def _mask(value: Tensor | None) -> Tensor | None:
    return None if value is None else (value > 0).double()


def _multiplies(network: SpikingNetwork, node: Function) -> int:
    """The products of two signals in one evaluation of all neurons of a node."""
    name = node.function.name
    constant = {n.name for n in network.nodes if isinstance(n, Constant)}
    if any(i in constant for i in node.inputs) or name not in ("mul", "matmul", "attention"):
        return 0
    if name == "mul":
        return values_of(node.shape)
    depth = values_of(network[node.inputs[0]].shape[-1:])
    if name == "matmul":
        return values_of(node.shape) * depth
    keys = values_of(network[node.inputs[1]].shape[-1:])
    queries = values_of(network[node.inputs[0]].shape[:-1])
    return queries * keys * depth + values_of(node.shape) * keys


def _numbers(network: SpikingNetwork) -> int:
    """The float32 numbers that the neurons keep from one step to the next."""
    constant = {n.name for n in network.nodes if isinstance(n, Constant)}
    total = 0
    for node in network.neurons:
        own = values_of(node.shape)
        arguments = sum(values_of(network[n].shape) for n in node.inputs if n not in constant)
        if isinstance(node, SignGDNeuron):
            total += own * (2 if node.momentum else 1) + arguments
        elif isinstance(node, GroupNeuron):
            total += own * (2 if node.signed else 1)
        else:  # pooling: what came from each input, and what was passed on
            total += own + arguments
    return total
