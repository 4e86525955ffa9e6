"""NetworkModule: a network description as a torch module, whatever simulator its neurons are from.

Two views of a signGD network run here. In the *decoded* view every value is what a receiver has
decoded so far, and linear operations are applied as in the source network. In the *spike* view
("signed") what passes is the weighted spikes of one step, through the linear part alone, and each
neuron integrates its own input. They agree to rounding (DESIGN: x(t) = W v_in(t) + b).
Rate-coded networks (group neurons) pass the outputs of one step, and are averaged at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons.choice import Choice, running_sum
from ..neurons.protocol import at_least_float32, like
from ..neurons.spikes import hear, joined
from .network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Growth,
    Input,
    Linear,
    Node,
    SpikingNetwork,
    SubgradientNeuron,
    fill,
    leaves,
)
from .operations import apply, apply_linear, apply_over_time, resolve
from .spikes import Sent


class LinearOperation(nn.Module):
    """One linear node with its tensors as buffers."""

    def __init__(self, node: Linear) -> None:
        super().__init__()
        self.op = node.op
        self.attributes = node.attributes
        for name, value in node.tensors.items():
            layout = torch.channels_last if node.op == "conv" and value.dim() == 4 else None
            # a clone: the description keeps its own
            self.register_buffer(name, value.clone(memory_format=layout or torch.preserve_format))

    def forward(self, *inputs: Tensor, batch: int, linear_part: bool = False) -> Tensor:
        run = apply_linear if linear_part else apply
        return run(self.op, inputs, self.attributes, dict(self.named_buffers()), batch)

    def extra_repr(self) -> str:
        attributes = ", ".join(f"{k}={v}" for k, v in self.attributes.items() if v is not None)
        tensors = ", ".join(f"{k} {list(v.shape)}" for k, v in self.named_buffers())
        return ", ".join(part for part in (self.op, attributes, tensors) if part)


class FunctionOperation(nn.Module):
    """A nonlinearity computed as it is: the "ann" mode of a neuron."""

    def __init__(self, node: Function) -> None:
        super().__init__()
        self.function = node.function
        self.arguments = {k: v for k, v in node.arguments.items() if not isinstance(v, Tensor)}
        for name, value in node.arguments.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value.clone())

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **self.arguments, **dict(self.named_buffers()))

    def over_time(self, *x_seq: Tensor) -> Tensor:
        return self.function.over_time(*x_seq, **self.arguments, **dict(self.named_buffers()))

    def extra_repr(self) -> str:
        return self.function.name


class ConstantValue(nn.Module):
    value: Tensor

    def __init__(self, node: Constant) -> None:
        super().__init__()
        self.register_buffer("value", node.value.clone())


Signal = tuple[Tensor, bool]  # a value, and whether its first dimension is time


class NetworkState(NamedTuple):
    """What a network carries from one step to the next.

    ``neurons``: their states by name; empty where the simulator's modules keep them. In the spike
    view also ``previous`` [B, ...], the last input, and ``readouts``, the decoded outputs so far.
    """

    neurons: dict[str, Any]
    previous: Tensor | None = None
    readouts: dict[str, Tensor] | None = None


def select(value: Any, index: Tensor, batch: int) -> Any:
    """A state of ``batch`` samples, in whatever nesting of tuples and dicts, for some of them."""
    if isinstance(value, Tensor):
        return value[index] if value.shape[:1] == (batch,) else value
    if isinstance(value, dict):
        return {k: select(item, index, batch) for k, item in value.items()}
    if not isinstance(value, tuple):
        return value
    if value and all(isinstance(item, int) for item in value):  # a shape that was seen
        return (len(index), *value[1:]) if value[0] == batch else value
    items = [select(item, index, batch) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


@dataclass
class Walk:
    """One pass through the nodes: one step (``steps`` None) or a block of steps.

    ``static`` keeps what does not change with time; None says that x is a sequence [steps, B, ...].
    """

    x: Tensor
    steps: int | None
    static: dict[str, Tensor] | None
    before: NetworkState
    neurons: dict[str, Any] = field(default_factory=dict)  # their states afterwards

    @property
    def sequence(self) -> bool:
        return self.static is None

    @property
    def batch(self) -> int:
        return self.x.shape[1] if self.sequence else self.x.shape[0]


class NetworkModule(nn.Module):
    """``neurons`` maps the name of each neuron, encoder and average to the simulator's module.

    A plugin's subclass says how one of them is run (``fire``) and begun (``begin``), and has a
    ``forward`` as the simulator's users know it. Outputs are those of every step, decoded, in the
    structure that the source network returns. With ``mode = "ann"`` every neuron is replaced by its
    function.
    """

    mode = "snn"
    listener: Callable[[Sent], None] | None = None  # told what each neuron sent

    def __init__(
        self,
        network: SpikingNetwork,
        neurons: Mapping[str, nn.Module],
        spikes: str = "decoded",
    ) -> None:
        super().__init__()
        if spikes not in ("decoded", "signed"):
            raise ValueError(f'spikes is "decoded" or "signed" in a network, not {spikes!r}.')
        if spikes == "signed":
            _check_spike_view(network)
        self.network = network
        self.spikes = spikes
        self.operations = nn.ModuleDict()
        self.functions = nn.ModuleDict()
        self.neurons = nn.ModuleDict()
        for node in network.nodes:
            if isinstance(node, Linear):
                self.operations[key(node.name)] = LinearOperation(node)
            elif isinstance(node, Constant):
                self.operations[key(node.name)] = ConstantValue(node)
            if isinstance(node, Function):
                self.functions[key(node.name)] = FunctionOperation(node)
            if node.name in neurons:
                self.neurons[key(node.name)] = neurons[node.name]
        self._last_use = _last_uses(network)

    def neuron(self, name: str) -> nn.Module:
        """The simulator's module of a neuron, by its name in the network."""
        return self.neurons[key(name)]

    def choices(self, x: Tensor) -> dict[str, Choice]:
        """For each signGD and group neuron what runs it for inputs like x, and why if it is the
        definition."""
        neurons = {name: self.neuron(name) for name in self.network.count()}
        return {
            name: neuron.choice(x)  # type: ignore[operator]
            for name, neuron in neurons.items()
            if hasattr(neuron, "choice")
        }

    # -- what a plugin says -------------------------------------------------------------------

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        """Runs a neuron; inputs and output are [T, ...], [...] in a walk of one step."""
        raise NotImplementedError

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        """Spike view: a run begins with these values of f's arguments; returns v(0)."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what the simulator's modules keep from step to step."""

    def select(self, index: Tensor, batch: int) -> None:
        """Keep in what the simulator's modules keep these of the ``batch`` samples alone."""

    # -- running ------------------------------------------------------------------------------

    def advance(
        self,
        x: Tensor,
        steps: int | None = None,
        static: dict[str, Tensor] | None = None,
        state: NetworkState | None = None,
    ) -> tuple[Any, NetworkState]:
        """A block of steps: of a sequence x [T, B, ...], or ``steps`` of one input x [B, ...].

        Returns the outputs, [steps, B, ...], and the state; none is the one before the first step.
        ``static`` keeps what does not change with time between calls with the same x.
        """
        if steps is None:
            x = self.check_input(x, 1)
            return self._walk(x, x.shape[0], None, state)
        return self._walk(self.check_input(x), steps, {} if static is None else static, state)

    def step(self, x: Tensor, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        """One step, x [B, ...]: outputs [B, ...] and the state."""
        return self._walk(self.check_input(x), None, {}, state)

    @torch.no_grad()
    def ann(self, x: Tensor) -> Any:
        """The source network: every neuron replaced by its function, x [B, ...]."""
        values = self.activations(x)
        return fill(self.network.outputs, values)

    def activations(self, x: Tensor, keep: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The value of the nodes ``keep`` (the outputs, unless named) in the source network."""
        x = self.check_input(x)
        batch = x.shape[0]
        kept = set(leaves(self.network.outputs) if keep is None else keep)
        values: dict[str, Tensor] = {}
        for node in self.network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, Input):
                values[node.name] = x
            elif isinstance(node, Constant):
                values[node.name] = self.operations[key(node.name)].value  # type: ignore[assignment]
            elif isinstance(node, Linear):
                values[node.name] = self.operations[key(node.name)](*inputs, batch=batch)
            elif isinstance(node, Function):
                values[node.name] = self.functions[key(node.name)](*inputs)
            else:  # encoders and averages
                values[node.name] = inputs[0]
            for name in self._last_use.get(node.name, ()):
                if name not in kept:
                    del values[name]
        return values

    def check_input(self, x: Tensor, leading: int = 0) -> Tensor:
        """x as the network takes it, or an InputError that says what to change."""
        expected = self.network.input.shape[1:]
        if not isinstance(x, Tensor):
            raise InputError(f"the input is a tensor, not {type(x).__name__}.")
        if not x.is_floating_point():
            raise InputError(
                f"the input is {x.dtype}; convert it as in training, for instance x.float() / 255."
            )
        if tuple(x.shape[1 + leading :]) != expected or x.dim() < 1 + leading:
            time = "T, " * leading
            raise InputError(
                f"the input is [{time}B, {', '.join(map(str, expected))}], but x is "
                f"{list(x.shape)}."
                + (
                    " A sequence is passed as run(..., sequence=True) or in step_mode 'm'."
                    if x.dim() == len(expected) + 2 - leading
                    else ""
                )
            )
        if leading and x.shape[0] == 0:
            raise InputError("a sequence has at least one step, but T is 0.")
        return x.to(self.network.dtype if not self._dtype() else self._dtype())

    def _dtype(self) -> torch.dtype | None:
        for buffer in self.operations.buffers():
            if buffer.is_floating_point():
                return buffer.dtype
        return None

    # -- one block of steps -------------------------------------------------------------------

    @torch.no_grad()  # also past the neurons a gradient would be a wrong one
    def _walk(
        self,
        x: Tensor,
        steps: int | None,
        static: dict[str, Tensor] | None,
        state: NetworkState | None,
    ) -> tuple[Any, NetworkState]:
        x = x.to(self._dtype() or x.dtype)
        if state is None:
            state = NetworkState({})
            if self.spikes == "signed":
                state = self._start(x[0] if static is None else x)
        walk = Walk(x, steps, static, state)
        if self.spikes == "signed":
            self._check_batch(walk)
        values: dict[str, Signal] = {}
        kept = set(leaves(self.network.outputs))
        for node in self.network.nodes:
            if static is not None and node.name in static:
                values[node.name] = (static[node.name], False)
            else:
                value, in_time = self._value(node, values, walk)
                values[node.name] = value, in_time
                if static is not None and steps is not None and not in_time:
                    if self.spikes == "decoded":
                        static[node.name] = value
            for name in self._last_use.get(node.name, ()):
                if name not in kept:
                    del values[name]
        return self._outputs(values, walk)

    def _check_batch(self, walk: Walk) -> None:
        previous = walk.before.previous
        first = walk.x.shape[1:] if walk.sequence else walk.x.shape
        if previous is None or previous.shape != first:
            raise InputError(
                f"a step is {list(first)} now, but the state was built for "
                f"{list(previous.shape) if previous is not None else 'decoded values'}. Reset the "
                "network, or pass no state, before feeding a batch of another shape."
            )

    def _value(self, node: Node, values: Mapping[str, Signal], walk: Walk) -> Signal:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Input):
            return self._input(walk)
        if isinstance(node, Constant):
            value = self.operations[key(node.name)].value
            assert isinstance(value, Tensor)
            return (value if self.spikes == "decoded" else torch.zeros_like(value)), False
        if isinstance(node, Linear):
            return self._linear(node, inputs, walk.steps, walk.batch)
        if isinstance(node, Function) and key(node.name) not in self.neurons:
            return self._function(node, inputs)
        if isinstance(node, Encoder):  # codes the input itself, in both views
            held = walk.sequence or walk.steps is None
            arguments = [walk.x if held else walk.x.expand(walk.steps, *walk.x.shape)]  # type: ignore[arg-type]
        else:
            arguments = [self._in_time(signal, walk.steps) for signal in inputs]
        if self.listener is None:
            y = self.fire(node, arguments, walk)
        else:
            with hear() as told:
                y = self.fire(node, arguments, walk)
            value = y.unsqueeze(0) if walk.steps is None else y
            self.listener(Sent(node, value, partial(joined, told)))
        return y, walk.steps is not None

    def _input(self, walk: Walk) -> Signal:
        if self.spikes == "decoded":
            return walk.x, walk.sequence
        assert walk.before.previous is not None
        if walk.sequence:  # increments of the input
            before = torch.cat([walk.before.previous.unsqueeze(0), walk.x[:-1]])
            return walk.x - before, True
        return walk.x - walk.before.previous, False

    def _linear(self, node: Linear, inputs: list[Signal], steps: int | None, batch: int) -> Signal:
        module = self.operations[key(node.name)]
        linear_part = self.spikes == "signed"
        if not any(in_time for _, in_time in inputs):
            return module(*[v for v, _ in inputs], batch=batch, linear_part=linear_part), False
        if linear_part:  # a static increment arrives at the first step of the block alone
            inputs = [(self._in_time(signal, steps), True) for signal in inputs]
        values, in_time = zip(*inputs, strict=True)
        out = apply_over_time(
            node.op,
            values,
            in_time,
            node.attributes,
            dict(module.named_buffers()),
            batch,
            linear_part,
        )
        return out, True

    def _function(self, node: Function, inputs: list[Signal]) -> Signal:
        """A nonlinearity that is not a neuron, computed at every step."""
        module = self.functions[key(node.name)]
        if not any(in_time for _, in_time in inputs):
            return module(*[value for value, _ in inputs]), False
        steps = next(value.shape[0] for value, in_time in inputs if in_time)
        x_seq = [v if in_time else v.expand(steps, *v.shape) for v, in_time in inputs]
        return module.over_time(*x_seq), True  # type: ignore[operator]

    def _in_time(self, signal: Signal, steps: int | None) -> Tensor:
        value, in_time = signal
        if in_time or steps is None:
            return value
        if self.spikes == "decoded":
            return value.unsqueeze(0).expand(steps, *value.shape)
        later = value.new_zeros((steps - 1, *value.shape))
        return torch.cat([value.unsqueeze(0), later])

    def _start(self, x: Tensor) -> NetworkState:
        """Spike view: what every neuron's input and every read-out is before the first step."""
        batch = x.shape[0]
        values: dict[str, Tensor] = {}
        state = NetworkState({}, torch.zeros_like(x), {})
        for node in self.network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, Input):
                values[node.name] = torch.zeros_like(x)
            elif isinstance(node, Constant):
                values[node.name] = self.operations[key(node.name)].value  # type: ignore[assignment]
            elif isinstance(node, Linear):
                values[node.name] = self.operations[key(node.name)](*inputs, batch=batch)
            elif isinstance(node, Encoder):
                values[node.name] = inputs[0]
            else:
                resting = like(self.begin(node, inputs, state), x)
                values[node.name] = resting.expand(resolve(node.shape, batch))
        names = leaves(self.network.outputs)
        return state._replace(readouts={name: at_least_float32(values[name]) for name in names})

    def _outputs(self, values: Mapping[str, Signal], walk: Walk) -> tuple[Any, NetworkState]:
        """Decoded outputs, in the structure of the source network, and the state after them."""
        outputs: dict[str, Tensor] = {}
        state = NetworkState(walk.neurons)
        if self.spikes == "signed":
            last = walk.x[-1] if walk.sequence else walk.x
            state = NetworkState(walk.neurons, last, {})
        for name in dict.fromkeys(leaves(self.network.outputs)):
            value = self._in_time(values[name], walk.steps)
            if state.readouts is not None:
                assert walk.before.readouts is not None
                one = value.unsqueeze(0) if walk.steps is None else value
                sums = running_sum(one, walk.before.readouts[name])
                state.readouts[name] = sums[-1].clone()
                value = (sums[0] if walk.steps is None else sums).to(value.dtype)
            outputs[name] = value
        return fill(self.network.outputs, outputs), state


def key(name: str) -> str:
    """A node's name as torch takes it for a submodule: no dots, no name of ModuleDict's own."""
    path = name.replace(".", "/")
    return f"{path}/" if hasattr(nn.ModuleDict, path) else path


def _last_uses(network: SpikingNetwork) -> dict[str, list[str]]:
    """For each node, the values that nobody needs after it."""
    last = {name: node.name for node in network.nodes for name in node.inputs}
    uses: dict[str, list[str]] = {}
    for value, user in last.items():
        uses.setdefault(user, []).append(value)
    return uses


def _check_spike_view(network: SpikingNetwork) -> None:
    rate = [
        node.name
        for node in network.nodes
        if isinstance(node, (GroupNeuron, Growth, SubgradientNeuron, Average))
        or (type(node) is Function)
        or (isinstance(node, Encoder) and node.coding == "poisson")
    ]
    if rate:
        raise ValueError(
            f'spikes="signed" is a view of signGD neurons; {", ".join(rate[:5])} are not. Build '
            'with spikes="decoded" (group neurons pass their own spikes there).'
        )
