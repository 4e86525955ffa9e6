"""NetworkModule: a network description as a torch module, whatever simulator its neurons are from.

Two views of a signGD network run here. In the *decoded* view every value is what a receiver has
decoded so far, and linear operations are applied as in the source network. In the *spike* view
("signed") what passes is the weighted spikes of one step, through the linear part alone, and each
neuron integrates its own input. They agree to rounding (DESIGN: x(t) = W v_in(t) + b).
Rate-coded networks (group neurons) pass the outputs of one step, and are averaged at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Input,
    Linear,
    Node,
    SpikingNetwork,
    SubgradientNeuron,
    fill,
    leaves,
)
from .neurons.multi_step import running_sum
from .operations import apply, apply_linear, apply_over_time, resolve


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

    def __init__(self, node: Function, persistent: bool) -> None:
        super().__init__()
        self.function = node.function
        self.arguments = {k: v for k, v in node.arguments.items() if not isinstance(v, Tensor)}
        for name, value in node.arguments.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value.clone(), persistent=persistent)

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


class NetworkModule(nn.Module):
    """``neurons`` maps the name of each neuron, encoder and average to the simulator's module.

    ``forward(x)``: step_mode "s": x [B, ...], one step; "m": x [T, B, ...], T steps. Both return
    the output at every step, decoded, in the structure that the source network returns. With
    ``mode = "ann"`` every neuron is replaced by its function and x is [B, ...] in both.
    """

    mode = "snn"
    step_mode: str

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
                spiking = node.name in neurons
                self.functions[key(node.name)] = FunctionOperation(node, not spiking)
            if node.name in neurons:
                self.neurons[key(node.name)] = neurons[node.name]
        self._last_use = _last_uses(network)
        self._readouts: dict[str, Tensor] = {}  # spike view: the decoded outputs so far
        self._previous = torch.empty(0)  # spike view: the input of the step before
        self._started = False

    def neuron(self, name: str) -> nn.Module:
        """The simulator's module of a neuron, by its name in the network."""
        return self.neurons[key(name)]

    # -- running ------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Any:
        if self.mode == "ann":
            return self.ann(x)
        if self.step_mode == "s":
            return self._outputs(self._walk(self.check_input(x), None, {}), None)
        return self._outputs(self._walk(self.check_input(x, 1), x.shape[0], None), x.shape[0])

    def advance(self, x: Tensor, steps: int, static: dict[str, Tensor] | None = None) -> Any:
        """``steps`` steps of a constant input x [B, ...]; outputs are [steps, B, ...].

        Every node must be in step mode "m". ``static`` keeps what does not change with time
        between calls with the same x.
        """
        values = self._walk(self.check_input(x), steps, {} if static is None else static)
        return self._outputs(values, steps)

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

    def reset(self) -> None:
        """Forget every state, as before the first step."""
        self._readouts.clear()
        self._started = False
        for module in self.neurons.values():
            module.reset()  # type: ignore[operator]

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
        return x.to(self.network.dtype if not self._dtype() else self._dtype())

    def _dtype(self) -> torch.dtype | None:
        for buffer in self.operations.buffers():
            if buffer.is_floating_point():
                return buffer.dtype
        return None

    # -- one block of steps -------------------------------------------------------------------

    def _walk(
        self, x: Tensor, steps: int | None, static: dict[str, Tensor] | None
    ) -> dict[str, Signal]:
        """Values of the output nodes after one step (steps None) or a block of steps.

        ``static`` None says that x is a sequence [steps, B, ...].
        """
        sequence = static is None
        static = {} if static is None else static
        x = x.to(self._dtype() or x.dtype)
        batch = x.shape[1] if sequence else x.shape[0]
        if self.spikes == "signed":
            first = x[0] if sequence else x
            if not self._started:
                self._start(first)
            elif first.shape != self._previous.shape:
                raise InputError(
                    f"a step is {list(first.shape)} now, but the state was built for "
                    f"{list(self._previous.shape)}. Reset the network before feeding a batch of "
                    "another shape."
                )
        values: dict[str, Signal] = {}
        kept = set(leaves(self.network.outputs))
        for node in self.network.nodes:
            if node.name in static:
                values[node.name] = (static[node.name], False)
            else:
                values[node.name] = self._value(node, values, x, sequence, steps, batch)
                if not values[node.name][1] and not sequence and self.spikes == "decoded":
                    if steps is not None:
                        static[node.name] = values[node.name][0]
            for name in self._last_use.get(node.name, ()):
                if name not in kept:
                    del values[name]
        self._started = True
        return values

    def _value(
        self,
        node: Node,
        values: Mapping[str, Signal],
        x: Tensor,
        sequence: bool,
        steps: int | None,
        batch: int,
    ) -> Signal:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Input):
            return self._input(x, sequence, steps)
        if isinstance(node, Constant):
            value = self.operations[key(node.name)].value
            assert isinstance(value, Tensor)
            return (value if self.spikes == "decoded" else torch.zeros_like(value)), False
        if isinstance(node, Linear):
            return self._linear(node, inputs, steps, batch)
        if isinstance(node, Function) and key(node.name) not in self.neurons:
            return self._function(node, inputs)
        if isinstance(node, Encoder):  # codes the input itself, in both views
            arguments = [x if sequence or steps is None else x.expand(steps, *x.shape)]
        else:
            arguments = [self._in_time(signal, steps) for signal in inputs]
        return self.neurons[key(node.name)](*arguments), steps is not None

    def _input(self, x: Tensor, sequence: bool, steps: int | None) -> Signal:
        if self.spikes == "decoded":
            return x, sequence
        if sequence:  # increments of the input
            before = torch.cat([self._previous.unsqueeze(0), x[:-1]])
            self._previous = x[-1]
            return x - before, True
        change = x - self._previous
        self._previous = x
        return change, False

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

    def _start(self, x: Tensor) -> None:
        """Spike view: what every neuron's input and every read-out is before the first step."""
        batch = x.shape[0]
        values: dict[str, Tensor] = {}
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
                module = self.neurons[key(node.name)]
                module.start(*inputs)  # type: ignore[operator]
                resting = torch.as_tensor(module.resting, dtype=x.dtype, device=x.device)
                values[node.name] = resting.expand(resolve(node.shape, batch))
        names = leaves(self.network.outputs)
        self._readouts = {name: values[name] for name in names}
        self._previous = torch.zeros_like(x)

    def _outputs(self, values: Mapping[str, Signal], steps: int | None) -> Any:
        """Decoded outputs, in the structure of the source network."""
        outputs: dict[str, Tensor] = {}
        for name in dict.fromkeys(leaves(self.network.outputs)):
            value = self._in_time(values[name], steps)
            if self.spikes == "signed":
                one = value.unsqueeze(0) if steps is None else value
                sums = running_sum(one, self._readouts[name])
                self._readouts[name] = sums[-1].clone()
                value = sums[0] if steps is None else sums
            outputs[name] = value
        return fill(self.network.outputs, outputs)


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
        if isinstance(node, (GroupNeuron, SubgradientNeuron, Average))
        or (type(node) is Function)
        or (isinstance(node, Encoder) and node.coding == "poisson")
    ]
    if rate:
        raise ValueError(
            f'spikes="signed" is a view of signGD neurons; {", ".join(rate[:5])} are not. Build '
            'with spikes="decoded" (group neurons pass their own spikes there).'
        )
