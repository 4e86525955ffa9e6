"""NeuroBench: a converted network as one of its models, its synaptic operations counted whole.

NeuroBench counts by hooks: what enters a Linear or Conv layer are spikes where every value is -1, 0
or 1, and what leaves an activation module is active where it is not 0. In a converted network pass
decoded values, or multiples of a threshold, and no operation is such a layer. So the network runs
as ``run`` runs it, and what its neurons sent is then passed, spike by spike, through layers that
are there to be counted: n members that fire at once are n events, and an average is the sum of the
events that enter it. NeuroBench counts them by its own rules.

Written against neurobench 2.3.0, of which only benchmarks, models and metrics are imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.module import NetworkModule, key
from ..core.network import (
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
)
from ..core.operations import LINEAR, apply_over_time, resolve
from ..core.running import check_run, check_steps, run
from ..errors import BackendUnavailable, InputError
from ..neurons.protocol import like
from .windows import adaptive_sum, interpolated_sum

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
    matmul, attention) at every step. Means for a sample, as NeuroBench gives them.
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
    those that the network was planned for unless given. For signGD and group neurons; raises
    InputError for others and for Poisson-coded input.

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
        for node in snn.network.nodes:
            poisson = isinstance(node, Encoder) and node.coding == "poisson"
            if poisson or node.kind == "subgradient":
                kind = "Poisson-coded input" if poisson else "a rate-coded neuron"
                raise InputError(
                    "NeuroBenchNetwork passes on what signGD and group neurons send, but "
                    f"'{node.name}' is {kind}."
                )
        self.snn = snn
        steps = snn.network.time_steps if time_steps is None else time_steps
        (self.time_steps,) = check_steps(steps)
        self.net = Layers(snn.network)
        # in float64 NeuroBench's sums of events are exact
        self._counted = copy.deepcopy(self.net).double()
        self.add_activation_module(Sent)
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
        own = [n.name for n in self.snn.network.neurons if not isinstance(n, Growth)]
        return [{"layer_name": name, "layer": neurons[key(name)]} for name in own]

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Any:
        if isinstance(batch, Tensor):  # where NeuroBench has put the data
            self.snn.to(batch.device)
            self._counted.to(batch.device)
        x = check_run("NeuroBenchNetwork", self.snn, batch, self.time_steps, False)
        spikes: dict[str, list[Tensor]] = {}
        listen = _listener(spikes)
        before, self.snn.on_fire = self.snn.on_fire, listen
        try:
            output = run(self.snn, x, self.time_steps)[self.time_steps]
        finally:
            self.snn.on_fire = before
        if self.connection_hooks or self.activation_hooks:
            self._pass(x, {name: torch.cat(parts) for name, parts in spikes.items()})
        return output

    def _pass(self, x: Tensor, spikes: Mapping[str, Tensor]) -> None:
        """Through the layers that are counted, what was sent in all steps."""
        found = [0.0, 0.0]

        def meet(node: Node, signal: Signal) -> None:
            if isinstance(node, Linear):
                found[0] += self._count(node, signal)
            else:
                found[0] += 0.0 if signal.spikes is None else float(signal.spikes.double().sum())
                found[1] += self.time_steps * _products(node, self.snn.network, len(x))

        for name, sent in spikes.items():
            self._counted.neurons[key(name)](sent)
        Passing(self.snn, x, spikes, meet).run()
        accumulates, multiplies = found
        dense = self._dense * self.time_steps * len(x)
        self.unseen = Unseen(accumulates, multiplies, dense)

    def _count(self, node: Linear, signal: Signal) -> float:
        """Hands a weighted operation its events; returns accumulates that NeuroBench misses."""
        layer = self._counted.connections[key(node.name)]
        if isinstance(layer, Other):  # real values that enter it are left out, as in NeuroBench
            if signal.spikes is None:
                return 0.0
            return float(layer.connections(signal.spikes.double()).sum())
        if signal.static is not None:
            layer(_folded(layer, signal.static.double()))
        if signal.sums is not None:
            layer(_folded(layer, REAL * signal.sums.double()))
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
        spikes = {}
        for node in network.neurons:
            members = getattr(node, "members", None)
            if members is None:  # pooling of group neurons passes on their members
                members = max((n.members for n in network.nodes if isinstance(n, GroupNeuron)),
                              default=1)  # fmt: skip
            shape = (1, *resolve(node.shape, 1))
            spikes[node.name] = torch.full(shape, float(members), device=device)
        found = [0.0]

        def meet(node: Node, signal: Signal) -> None:
            if not isinstance(node, Linear):
                found[0] += _products(node, network, 1)
            if signal.spikes is None:
                return
            if not isinstance(node, Linear):
                found[0] += float(signal.spikes.sum())
                return
            self._most[node.name] = int(signal.spikes.max())
            layer = self._counted.connections[key(node.name)]
            if isinstance(layer, Other):
                found[0] += float(layer.connections(signal.spikes.double(), dense=True).sum())

        x = torch.zeros(resolve(network.input.shape, 1), dtype=network.dtype)
        Passing(self.snn, x.to(device), spikes, meet).run()
        return found[0]


# -- the layers that are counted ------------------------------------------------------------------


class Sent(nn.Module):
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
        for node in network.nodes:
            if isinstance(node, Linear) and node.tensors:
                group = self.connections if LINEAR[node.op].weighted else self.rest
                group[key(node.name)] = _layer(node) or Other(node)
        self.neurons = nn.ModuleDict({key(name): Sent() for name in network.names()})


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


# -- what was sent, passed on to those layers -----------------------------------------------------


def _listener(spikes: dict[str, list[Tensor]]) -> Callable[[Node, Tensor], None]:
    """For ``on_fire``: keeps how many spikes each neuron sends, [T, B, ...] in parts."""
    theta: dict[str, Any] = {}

    def listen(node: Node, y: Tensor) -> None:
        if isinstance(node, SignGDNeuron):
            sent = torch.full_like(y, node.members)
        elif isinstance(node, (GroupNeuron, Growth)):
            if isinstance(node, GroupNeuron):
                theta[node.name] = node.parameters.theta
            else:  # what is pooled are the spikes of neurons of one threshold
                theta[node.name] = next((theta[n] for n in node.inputs if n in theta), None)
            unit = theta[node.name]
            sent = (y != 0).to(y) if unit is None else (y / like(unit, y)).abs().round()
        else:
            return
        spikes.setdefault(node.name, []).append(sent)

    return listen


class Signal(NamedTuple):
    """What a value is made of, each None where there is nothing of it.

    ``spikes`` [T, B, ...]: how many arrive, past no weight yet; ``sums`` [T, B, ...]: where a real
    value changes, bool; ``static`` [B, ...]: the real value that follows from the input alone.
    """

    spikes: Tensor | None = None
    sums: Tensor | None = None
    static: Tensor | None = None

    @property
    def moves(self) -> bool:
        return self.spikes is not None or self.sums is not None


class Passing:
    """One way through the network, for the input x [B, ...] and the spikes that were sent.

    ``meet`` is told each weighted operation with what enters it, and each function or neuron with
    the spikes that arrive there.
    """

    def __init__(
        self,
        snn: NetworkModule,
        x: Tensor,
        spikes: Mapping[str, Tensor],
        meet: Callable[[Node, Signal], None],
    ) -> None:
        self.snn, self.x, self.spikes, self.meet = snn, x, spikes, meet
        self.batch = x.shape[0]
        self.steps = max((s.shape[0] for s in spikes.values()), default=1)
        self.constants: dict[str, Tensor] = {}

    def run(self) -> None:
        values: dict[str, Signal] = {}
        last = {name: node.name for node in self.snn.network.nodes for name in node.inputs}
        for node in self.snn.network.nodes:
            values[node.name] = self._value(node, [values[name] for name in node.inputs])
            for name in node.inputs:
                if last[name] == node.name:
                    values.pop(name, None)

    def _value(self, node: Node, inputs: list[Signal]) -> Signal:
        if isinstance(node, Input):
            return Signal(static=self.x)
        if isinstance(node, Constant):
            self.constants[node.name] = node.value.to(self.x.device)
            return Signal()
        if isinstance(node, Linear):
            if all(name in self.constants for name in node.inputs):
                values = [self.constants[name] for name in node.inputs]
                module = self.snn.operations[key(node.name)]
                self.constants[node.name] = module(*values, batch=self.batch)
                return Signal()
            return self._linear(node, inputs)
        if isinstance(node, Encoder):  # real-valued coding
            return Signal(sums=self._everywhere(node))
        if isinstance(node, Average):
            return inputs[0]
        assert isinstance(node, Function)
        moves = any(signal.moves for signal in inputs)
        if type(node) is Function and not moves:  # kept as it is, of the input alone
            return Signal(static=self._static(node, inputs))
        arrived = [s.spikes.double().sum() for s in inputs if s.spikes is not None]
        self.meet(node, Signal(spikes=torch.stack(arrived) if arrived else None))
        if type(node) is Function:
            return Signal(sums=self._everywhere(node))
        return Signal(spikes=self.spikes[node.name])

    def _everywhere(self, node: Node) -> Tensor:
        shape = (self.steps, *resolve(node.shape, self.batch))
        return torch.ones(shape, dtype=torch.bool, device=self.x.device)

    def _static(self, node: Linear | Function, inputs: list[Signal]) -> Tensor | None:
        if not any(signal.static is not None for signal in inputs):
            return None
        values = [
            self.constants.get(name, self._zeros(name)) if s.static is None else s.static
            for name, s in zip(node.inputs, inputs, strict=True)
        ]
        if isinstance(node, Linear):
            value: Tensor = self.snn.operations[key(node.name)](*values, batch=self.batch)
            return value
        computed: Tensor = self.snn.functions[key(node.name)](*values)
        return computed

    def _zeros(self, name: str) -> Tensor:
        shape = resolve(self.snn.network[name].shape, self.batch)
        return torch.zeros(shape, dtype=self.x.dtype, device=self.x.device)

    def _linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        static = self._static(node, inputs)
        if LINEAR[node.op].weighted:
            (signal,) = inputs
            self.meet(node, signal)
            if not signal.moves:
                return Signal(static=static)
            changed = [part for part in (signal.spikes, signal.sums) if part is not None]
            arrives = torch.stack([self._connect(node, [part]) > 0 for part in changed])
            return Signal(sums=arrives.any(0), static=static)
        spikes = self._arriving(node, [s.spikes for s in inputs])
        sums = self._arriving(node, [s.sums for s in inputs])
        return Signal(spikes, None if sums is None else sums > 0, static)

    def _arriving(self, node: Linear, parts: list[Tensor | None]) -> Tensor | None:
        if all(part is None for part in parts):
            return None
        values = []
        for name, part in zip(node.inputs, parts, strict=True):
            zeros = self._zeros(name)
            values.append(zeros.expand(self.steps, *zeros.shape) if part is None else part)
        return self._connect(node, values)

    def _connect(self, node: Linear, values: list[Tensor]) -> Tensor:
        """How much arrives at each output where every connection is one."""
        values = [value.float() for value in values]
        a, op = dict(node.attributes), node.op
        tensors = {
            name: (value != 0).float() if name == "weight" else value
            for name, value in self.snn.operations[key(node.name)].named_buffers()
        }
        if op == "mean":
            op = "sum"
        elif op == "add":
            a["coefficients"] = (1, 1)
        elif op == "avg_pool":
            if len(a["kernel_size"]) == 1:  # which has no divisor to choose
                return self._pool(values[0].unsqueeze(-2), a).squeeze(-2)
            a["divisor_override"] = 1
        elif op == "adaptive_avg_pool":
            return adaptive_sum(values[0], a["output_size"])
        elif op == "upsample":
            return interpolated_sum(values[0], a)
        return apply_over_time(op, values, [True] * len(values), a, tensors, self.batch, True)

    def _pool(self, x: Tensor, a: dict[str, Any]) -> Tensor:
        lines = {name: [one, *a[name]] for name, one in
                 (("kernel_size", 1), ("stride", 1), ("padding", 0))}  # fmt: skip
        attributes = {**a, **lines, "divisor_override": 1}
        return apply_over_time("avg_pool", [x], [True], attributes, {}, self.batch, True)


def _products(node: Node, network: SpikingNetwork, batch: int) -> int:
    """Multiplications of two signals in one evaluation of all neurons of a node."""
    assert isinstance(node, Function)
    name = node.function.name
    if name not in ("mul", "matmul", "attention"):
        return 0
    if any(isinstance(network[source], Constant) for source in node.inputs):
        return 0
    out = resolve(node.shape, batch)
    values = torch.Size(out).numel()
    if name == "mul":
        return values
    x = resolve(network[node.inputs[0]].shape, batch)
    if name == "matmul":
        return values * x[-1]
    keys = resolve(network[node.inputs[1]].shape, batch)[-1]
    return torch.Size(x).numel() * keys + values * keys
