"""NeuroBench: a converted network as one of its models, with all its synaptic operations counted.

NeuroBench counts by hooks: what enters a Linear or Conv layer are spikes where every value is -1, 0
or 1, and what leaves an activation module is active where it is not 0. In a converted network
decoded values, or multiples of a threshold, pass between the layers, and no operation is such a
layer. So the network runs as in ``run``, and the spikes of its neurons are then passed through
layers that exist only to be counted: n members that fire at once are n events, and an average is
the sum of the events that enter it. NeuroBench counts them by its own rules.

Written against neurobench 2.3.0, of which only benchmarks, models and metrics are imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..analysis.connections import changes, products, reached
from ..core.module import NetworkModule, key
from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
)
from ..core.operations import LINEAR, apply_over_time, resolve
from ..core.running import check_run, check_steps, run
from ..core.spikes import Sent, codes, listening
from ..core.walk import Semantics, walk
from ..errors import BackendUnavailable, InputError

try:
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import NeuroBenchModel
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("neurobench", "snntorch"):
        raise
    raise BackendUnavailable(
        f"{__name__} needs NeuroBench: {error}. Install it with: pip install "
        f"'spikingjelly-signgd[neurobench]' torch=={torch.__version__.partition('+')[0]} (torch is "
        "pinned on the same line, or pip may replace it)"
    ) from error

__all__ = ["AllSynapticOperations", "NeuroBenchNetwork"]

REAL = 0.5  # stands for a real value: no spike for NeuroBench


class Unseen(NamedTuple):
    """Operations of one batch that NeuroBench has no hook for."""

    accumulates: float = 0.0
    multiplies: float = 0.0
    dense: float = 0.0


class AllSynapticOperations(SynapticOperations):  # type: ignore[misc]
    """``SynapticOperations`` with what NeuroBench has no hook for; of a ``NeuroBenchNetwork``.

    Accumulates of other weighted operations (transposed convolutions, einsum, weights on the left)
    and of spikes that arrive at a neuron past no weight; multiplications of two signals (mul,
    matmul, attention) where a factor changed. Means for a sample, as NeuroBench gives them.
    """

    def __call__(self, model: NeuroBenchNetwork, preds: Any, data: Any) -> dict[str, float]:
        self.AC += model.unseen.accumulates
        self.MAC += model.unseen.multiplies
        self.total_synops += model.unseen.dense
        found: dict[str, float] = super().__call__(model, preds, data)
        return found


class NeuroBenchNetwork(NeuroBenchModel):  # type: ignore[misc]
    """``Benchmark(NeuroBenchNetwork(snn, time_steps), loader, ...)``: a network of ``build``.

    A batch x is [B, ...], one static input; it returns the decoded output after ``time_steps``,
    those that the network was planned for unless given. Raises InputError.

    NeuroBench keeps what its hooks have seen until a batch is through, so memory grows with T and
    with the batch of the loader, not with the number of batches.
    """

    def __init__(self, snn: NetworkModule, time_steps: int | None = None) -> None:
        super().__init__()
        if not isinstance(snn, NetworkModule):
            raise InputError(
                "NeuroBenchNetwork takes the module that build(network) returns, not "
                f"{type(snn).__name__}."
            )
        self.snn = snn
        if not snn.network.plain:
            raise InputError(
                "NeuroBench passes one floating-point tensor per batch, but the network takes "
                f"{', '.join(node.name for node in snn.network.inputs)}; use count_operations."
            )
        steps = snn.network.time_steps if time_steps is None else time_steps
        (self.time_steps,) = check_steps(steps)
        self.net = Layers(snn.network)
        # in float64 NeuroBench's sums of events are exact
        self._counted = copy.deepcopy(self.net).double()
        self.add_activation_module(Spikes)
        self.unseen = Unseen()
        self._most: dict[str, int] = {}  # events that arrive at one input of a layer in a step
        self._dense = self._full_step()

    def __net__(self) -> nn.Module:
        """The weights in NeuroBench's layers, for its static metrics; it does not run."""
        return self.net

    def connection_layers(self) -> list[nn.Module]:
        return [m for m in self._counted.connections.values() if not isinstance(m, Other)]

    def activation_layers(self) -> list[dict[str, Any]]:
        neurons = self._counted.neurons
        own = [node.name for node in self.snn.network.nodes if node.code is not None]
        return [{"layer_name": name, "layer": neurons[key(name)]} for name in own]

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Any:
        if isinstance(batch, Tensor):  # where NeuroBench has put the data
            self.snn.to(batch.device)
            self._counted.to(batch.device)
        x = check_run("NeuroBenchNetwork", self.snn, batch, self.time_steps, False)
        spikes: dict[str, list[Tensor]] = {}

        def listen(sent: Sent) -> None:
            if sent.events is not None:
                spikes.setdefault(sent.node.name, []).append(sent.events.spikes.float())

        with listening(self.snn, listen):
            output = run(self.snn, x, self.time_steps)[self.time_steps]
        if self.connection_hooks or self.activation_hooks:
            self._pass(x, {name: torch.cat(parts) for name, parts in spikes.items()})
        return output

    def _pass(self, x: Tensor, spikes: Mapping[str, Tensor]) -> None:
        """Through the layers that are counted, what was sent in all steps."""
        for name, sent in spikes.items():
            self._counted.neurons[key(name)](sent)
        passing = Passing(self.snn, x, spikes, self._count).run()
        dense = self._dense * self.time_steps * len(x)
        self.unseen = Unseen(passing.found, passing.products, dense)

    def _count(self, node: Linear, signal: Signal) -> float:
        """Hands a weighted operation its events; returns accumulates that NeuroBench misses."""
        layer = self._counted.connections[key(node.name)]
        if isinstance(layer, Other):  # real values that enter it are left out, as in NeuroBench
            if signal.spikes is None:
                return 0.0
            return float(layer.connections(signal.spikes.double()).sum())
        for real in _real(signal):
            layer(_folded(layer, real))
        if signal.spikes is not None:
            arrived = _folded(layer, signal.spikes)
            for n in range(1, max(self._most[node.name], int(arrived.max())) + 1):
                layer((arrived >= n).double())
        return 0.0

    @torch.no_grad()
    def _full_step(self) -> float:
        """``most``, and what NeuroBench misses, where all members of one sample fire at once."""
        network = self.snn.network
        device = next(self.snn.buffers(), torch.zeros(())).device
        pooled = max((n.most_spikes for n in network.nodes if n.unit is not None), default=1)
        spikes = {}
        for name in codes(network):
            most = network[name].most_spikes if network[name].code else pooled
            shape = (1, *resolve(network[name].shape, 1))
            spikes[name] = torch.full(shape, float(most), device=device)

        def count(node: Linear, signal: Signal) -> float:
            if signal.spikes is None:
                return 0.0
            self._most[node.name] = int(signal.spikes.max())
            layer = self._counted.connections[key(node.name)]
            if not isinstance(layer, Other):
                return 0.0
            return float(layer.connections(signal.spikes.double(), dense=True).sum())

        x = torch.zeros(resolve(network.input.shape, 1), dtype=network.dtype)
        passing = Passing(self.snn, x.to(device), spikes, count).run()
        return passing.found + sum(network.products(node) for node in passing.moving)


# -- the layers that are counted ------------------------------------------------------------------


class Spikes(nn.Module):
    """Stands for a layer of neurons, called with how many spikes each sends, [T, B, ...]."""

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes


class Other(nn.Module):
    """The tensors of an operation that is none of NeuroBench's layers, which only counts them."""

    def __init__(self, node: Linear) -> None:
        super().__init__()
        self.op, self.attributes = node.op, dict(node.attributes)
        for name, value in node.tensors.items():
            if value.is_floating_point():
                self.register_parameter(name, _parameter(value))

    def connections(self, spikes: Tensor, dense: bool = False) -> Tensor:
        """How many spikes [T, B, ...] arrive at each output, past weights of zero if ``dense``."""
        weight: Any = self.weight
        ones = {"weight": torch.ones_like(weight) if dense else (weight != 0).to(weight)}
        batch = spikes.shape[1] if spikes.dim() > 1 else 1
        return apply_over_time(self.op, [spikes], [True], self.attributes, ones, batch, True)


class Layers(nn.Module):
    """Linear and Conv layers with the weights of the network, other operations, and neurons."""

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__()
        self.connections = nn.ModuleDict()
        self.rest = nn.ModuleDict()
        for node in network.of(Linear):
            if node.tensors:
                group = self.connections if LINEAR[node.op].weighted else self.rest
                group[key(node.name)] = _layer(node) or Other(node)
        self.neurons = nn.ModuleDict({key(name): Spikes() for name in codes(network)})


def _layer(node: Linear) -> nn.Module | None:
    """The nn.Linear or nn.Conv of a node, where there is one."""
    weight, bias, a = node.tensors.get("weight"), node.tensors.get("bias"), node.attributes
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    if node.op == "matmul" and a["side"] == "right" and weight is not None and weight.dim() == 2:
        weight = weight.t()
    elif node.op not in ("conv", "linear"):
        return None
    assert weight is not None
    if node.op == "conv":
        groups, size = a["groups"], len(a["stride"])
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[size - 1]
        layer = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            tuple(a["stride"]),
            tuple(a["padding"]),
            tuple(a["dilation"]),
            groups,
            bias=False,
            device="meta",  # the weights come from the network, and no random number is drawn
        )
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def _folded(layer: nn.Module, x: Tensor) -> Tensor:
    """x as a convolution takes it, [N, C, ...]: the dimensions before are samples."""
    if isinstance(layer, nn.Linear):
        return x
    return x.flatten(0, max(x.dim() - layer.weight.dim(), 0))  # type: ignore[operator]


def _real(signal: Signal) -> list[Tensor]:
    """The real values that enter; in the first step what is static and sums are one value."""
    if signal.sums is None:
        return [] if signal.static is None else [signal.static.double()]
    sums = REAL * signal.sums.double()
    if signal.static is None:
        return [sums]
    first = torch.where(signal.sums[0], sums[0], signal.static.double())
    return [first, sums[1:]] if len(sums) > 1 else [first]


# -- what was sent, passed on to those layers -----------------------------------------------------


class Signal(NamedTuple):
    """What a value is made of, each None where there is nothing of it.

    ``spikes`` [T, B, ...]: how many arrive, past no weight yet; ``sums`` [T, B, ...]: where a real
    value changes, bool; ``static`` [B, ...]: the real value that follows from the input alone;
    ``rates``: whether means over the steps so far are in it.
    """

    spikes: Tensor | None = None
    sums: Tensor | None = None
    static: Tensor | None = None
    rates: bool = False

    @property
    def moves(self) -> bool:
        return self.spikes is not None or self.sums is not None


class Passing(Semantics[Signal]):
    """One way through the network, for the input x [B, ...] and the spikes that were sent.

    ``count`` is told each weighted operation with what enters it, and says which accumulates
    NeuroBench misses. ``found``: all of these, and the spikes that arrive at a function or neuron
    past no weight; ``products``: those of two signals of which a factor changed; ``moving``: the
    functions whose arguments change with time.
    """

    def __init__(
        self,
        snn: NetworkModule,
        x: Tensor,
        spikes: Mapping[str, Tensor],
        count: Callable[[Linear, Signal], float],
    ) -> None:
        self.snn, self.x, self.spikes, self.count = snn, x, spikes, count
        self.found = self.products = 0.0
        self.moving: list[Function] = []
        self.batch = x.shape[0]
        self.steps = max((s.shape[0] for s in spikes.values()), default=1)
        self.shapes = {node.name: resolve(node.shape, self.batch) for node in snn.network.nodes}
        self.functions = {node.name for node in snn.network.of(Function)}
        self.constants: dict[str, Tensor] = {}

    def run(self) -> Passing:
        walk(self.snn.network, self, keep=())
        return self

    def input(self, node: Input) -> Signal:
        return Signal(static=self.x)

    def constant(self, node: Constant) -> Signal:
        self.constants[node.name] = node.value.to(self.x.device)
        return Signal()

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        if node.code is not None:
            return Signal(spikes=self.spikes[node.name], rates=True)
        return Signal(sums=self._everywhere(node))

    def average(self, node: Average, inputs: list[Signal]) -> Signal:
        return inputs[0]._replace(rates=True)

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        if not any(signal.moves for signal in inputs):  # of the input alone
            return Signal(static=self._static(node, inputs))
        changed = self._arrive(node, inputs)
        return Signal(sums=reached(node, changed).to(self.x.device))

    def neuron(self, node: Neuron, inputs: list[Signal]) -> Signal:
        self._arrive(node, inputs)
        rates = node.factor is None or not node.factor.adds
        return Signal(spikes=self.spikes[node.name], rates=rates)

    def _arrive(self, node: Function, inputs: list[Signal]) -> list[Tensor]:
        """Where the arguments change."""
        self.moving.append(node)
        for signal in inputs:
            self.found += 0.0 if signal.spikes is None else float(signal.spikes.double().sum())
        changed = [
            changes(
                self.shapes[name], self.steps, (s.spikes, s.sums), s.static, s.rates and s.moves
            )
            for name, s in zip(node.inputs, inputs, strict=True)
        ]
        if self.snn.network.products(node):
            self.products += float(products(node, changed).sum())
        return changed

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        if all(name in self.constants for name in node.inputs):
            values = [self.constants[name] for name in node.inputs]
            module = self.snn.operations[key(node.name)]
            self.constants[node.name] = module(*values, batch=self.batch)
            return Signal()
        static = self._static(node, inputs)
        spikes = self._arriving(node, [s.spikes for s in inputs])
        sums = self._arriving(node, [s.sums for s in inputs])
        if not LINEAR[node.op].weighted:
            rates = any(signal.rates for signal in inputs)
            return Signal(spikes, None if sums is None else sums > 0, static, rates)
        self.found += self.count(node, inputs[0])
        changed = [part > 0 for part in (spikes, sums) if part is not None]
        sums = torch.stack(changed).any(0) if changed else None
        return Signal(None, sums, static, any(signal.rates for signal in inputs))

    def _everywhere(self, node: Node) -> Tensor:
        shape = self.steps, *self.shapes[node.name]
        return torch.ones(shape, dtype=torch.bool, device=self.x.device)

    def _static(self, node: Linear | Function, inputs: list[Signal]) -> Tensor | None:
        if not any(signal.static is not None for signal in inputs):
            return None
        values = [
            self.constants.get(name, self._zeros(name)) if s.static is None else s.static
            for name, s in zip(node.inputs, inputs, strict=True)
        ]
        if node.name in self.functions:
            return self.snn.functions[key(node.name)](*values)  # type: ignore[no-any-return]
        module = self.snn.operations[key(node.name)]
        return module(*values, batch=self.batch)  # type: ignore[no-any-return]

    def _zeros(self, name: str) -> Tensor:
        return torch.zeros(self.shapes[name], dtype=self.x.dtype, device=self.x.device)

    def _arriving(self, node: Linear, parts: list[Tensor | None]) -> Tensor | None:
        if all(part is None for part in parts):
            return None
        values = []
        for name, part in zip(node.inputs, parts, strict=True):
            nothing = self._zeros(name).expand(self.steps, *self.shapes[name])
            values.append((nothing if part is None else part).double())
        return node.arriving(values, self.batch).round()
