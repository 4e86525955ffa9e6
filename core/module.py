"""NetworkModule: a network description as a torch module, whatever simulator its neurons are from.

Two views of a signGD network run here. In the *decoded* view every value is what a receiver has
decoded so far, and linear operations are applied as in the source network. In the *spike* view
("signed") what passes is the weighted spikes of one step, through the linear part alone, and each
neuron integrates its own input. They agree to rounding (DESIGN: x(t) = W v_in(t) + b).
Rate-coded networks (group neurons) pass the outputs of one step, and are averaged at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons.choice import Choice, running_sum
from ..neurons.protocol import at_least_float32, like
from ..neurons.spikes import hear, joined
from .network import (
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
    Timed,
    fill,
    leaves,
)
from .operations import apply, apply_linear, apply_over_time, resolve
from .sizing import at_its_size
from .spikes import Sent
from .walk import Semantics, following, walk


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
        return run(self.op, inputs, self.attributes, self._tensors, batch)

    def over_time(
        self, inputs: Sequence[Tensor], led: Sequence[bool], batch: int, linear_part: bool
    ) -> Tensor:
        """At all steps at once; ``led`` says which inputs lead with time."""
        return apply_over_time(
            self.op, inputs, led, self.attributes, self._tensors, batch, linear_part
        )

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return self._buffers  # type: ignore[return-value]

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


class Source(Semantics[Tensor]):
    """The source network on x [B, ...]: every neuron is its function, coding passes x on."""

    def __init__(self, module: NetworkModule, x: Tensor) -> None:
        self.operations, self.functions = module.operations, module.functions
        self.x, self.batch = x, x.shape[0]

    def input(self, node: Input) -> Tensor:
        return self.x

    def constant(self, node: Constant) -> Tensor:
        return self.operations[key(node.name)].value  # type: ignore[return-value]

    def linear(self, node: Linear, inputs: list[Tensor]) -> Tensor:
        value: Tensor = self.operations[key(node.name)](*inputs, batch=self.batch)
        return value

    def function(self, node: Function, inputs: list[Tensor]) -> Tensor:
        value: Tensor = self.functions[key(node.name)](*inputs)
        return value

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        return self.function(node, inputs)

    def timed(self, node: Timed, inputs: list[Tensor]) -> Tensor:
        return inputs[0]


class Rest(Source):
    """What every value is before the first step of the spike view; neurons begin in ``state``."""

    def __init__(self, module: NetworkModule, x: Tensor) -> None:
        super().__init__(module, torch.zeros_like(x))
        self.begin, self.state = module.begin, NetworkState({}, self.x, {})

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        resting = like(self.begin(node, inputs, self.state), self.x)
        return resting.expand(resolve(node.shape, self.batch))


class Walk(Semantics[Signal]):
    """The decoded view of one step (``steps`` None) or a block of steps.

    ``static`` keeps what does not change with time; None says that x is a sequence [steps, B, ...].
    """

    linear_part = False

    def __init__(
        self,
        module: NetworkModule,
        x: Tensor,
        steps: int | None,
        static: dict[str, Tensor] | None,
        before: NetworkState,
    ) -> None:
        self.module, self.x, self.steps, self.static, self.before = module, x, steps, static, before
        # a module's own modules take long to ask for
        self.operations, self.functions = module.operations, module.functions
        self.simulated = module.neurons
        self.neurons: dict[str, Any] = {}  # their states afterwards
        self.sequence = static is None
        self.batch = x.shape[1] if self.sequence else x.shape[0]

    def in_time(self, signal: Signal) -> Tensor:
        """The value at every step of the block."""
        value, led = signal
        if led or self.steps is None:
            return value
        return value.unsqueeze(0).expand(self.steps, *value.shape)

    def still(self, node: Node, value: Tensor) -> Signal:
        """A value that is the same at every step, kept for the blocks after this one."""
        if self.static is not None and self.steps is not None:
            self.static[node.name] = value
        return value, False

    def input(self, node: Input) -> Signal:
        return (self.x, True) if self.sequence else self.still(node, self.x)

    def constant(self, node: Constant) -> Signal:
        return self.still(node, self.operations[key(node.name)].value)  # type: ignore[arg-type]

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        operation = self.operations[key(node.name)]
        values, led = [value for value, _ in inputs], [led for _, led in inputs]
        if not any(led):
            value = operation(*values, batch=self.batch, linear_part=self.linear_part)
            return self.still(node, value)
        return operation.over_time(values, led, self.batch, self.linear_part), True  # type: ignore[operator]

    def function(self, node: Function, inputs: list[Signal]) -> Signal:
        """A nonlinearity that is not a neuron, computed at every step."""
        function = self.functions[key(node.name)]
        if not any(led for _, led in inputs):
            return self.still(node, function(*[value for value, _ in inputs]))
        return function.over_time(*map(self.in_time, inputs)), True  # type: ignore[operator]

    def neuron(self, node: Neuron, inputs: list[Signal]) -> Signal:
        if key(node.name) not in self.simulated:
            return self.function(node, inputs)
        return self.timed(node, inputs)

    def encoder(self, node: Encoder, inputs: list[Signal]) -> Signal:
        """Codes the input itself, in both views."""
        held = self.sequence or self.steps is None
        x = self.x if held else self.x.expand(self.steps, *self.x.shape)  # type: ignore[arg-type]
        return self._fired(node, [x])

    def timed(self, node: Timed, inputs: list[Signal]) -> Signal:
        return self._fired(node, [self.in_time(signal) for signal in inputs])

    def _fired(self, node: Timed, inputs: list[Tensor]) -> Signal:
        module = self.module
        if module.listener is None:
            y = module.fire(node, inputs, self)
        else:
            with hear() as told:
                y = module.fire(node, inputs, self)
            value = y.unsqueeze(0) if self.steps is None else y
            module.listener(Sent(node, value, partial(joined, told)))
        return y, self.steps is not None


class SignedWalk(Walk):
    """The spike view: increments pass, through the linear parts."""

    linear_part = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        previous = self.before.previous
        first = self.x.shape[1:] if self.sequence else self.x.shape
        if previous is None or previous.shape != first:
            raise InputError(
                f"a step is {list(first)} now, but the state was built for "
                f"{list(previous.shape) if previous is not None else 'decoded values'}. Reset the "
                "network, or pass no state, before feeding a batch of another shape."
            )
        self.previous = previous

    def in_time(self, signal: Signal) -> Tensor:
        """A static increment arrives at the first step of the block alone."""
        value, led = signal
        if led or self.steps is None:
            return value
        later = value.new_zeros((self.steps - 1, *value.shape))
        return torch.cat([value.unsqueeze(0), later])

    def still(self, node: Node, value: Tensor) -> Signal:
        return value, False

    def input(self, node: Input) -> Signal:
        if not self.sequence:
            return self.x - self.previous, False
        return self.x - torch.cat([self.previous.unsqueeze(0), self.x[:-1]]), True

    def constant(self, node: Constant) -> Signal:
        return torch.zeros_like(super().constant(node)[0]), False

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        if any(led for _, led in inputs):
            inputs = [(self.in_time(signal), True) for signal in inputs]
        return super().linear(node, inputs)


VIEWS: dict[str, type[Walk]] = {"decoded": Walk, "signed": SignedWalk}


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
        network.last_uses  # noqa: B018  torch.compile cannot make it
        self.spikes = spikes
        linear = {node.name: LinearOperation(node) for node in network.of(Linear)}
        constants = {node.name: ConstantValue(node) for node in network.of(Constant)}
        functions = {node.name: FunctionOperation(node) for node in network.of(Function)}
        self.operations = _in_order(network, {**linear, **constants})
        self.functions = _in_order(network, functions)
        self.neurons = _in_order(network, neurons)

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

    def for_sequences(self) -> AbstractContextManager[None]:
        """Inside, the simulator's modules take whole sequences and record nothing."""
        return nullcontext()

    # -- running ------------------------------------------------------------------------------

    @at_its_size(lambda steps=None, *_, **__: steps is None)
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

    @at_its_size(lambda *_, **__: False)
    def step(self, x: Tensor, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        """One step, x [B, ...]: outputs [B, ...] and the state."""
        return self._walk(self.check_input(x), None, {}, state)

    @torch.no_grad()
    def ann(self, x: Tensor) -> Any:
        """The source network: every neuron replaced by its function, x [B, ...]."""
        return fill(self.network.outputs, self.activations(x))

    @property
    def source(self) -> nn.Module:
        """The source network, as the description holds it, as a module of its own."""
        return _Ann(self)

    @at_its_size(lambda *_, **__: False)
    def activations(self, x: Tensor, keep: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The value of the nodes ``keep`` (the outputs, unless named) in the source network."""
        source = Source(self, self.check_input(x))
        return walk(self.network, source, leaves(self.network.outputs) if keep is None else keep)

    def all_activations(self, x: Tensor) -> dict[str, Tensor]:
        return self.activations(x, [node.name for node in self.network.nodes])

    def activations_after(
        self, values: Mapping[str, Tensor], changed: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The outputs of the source network where some of all its ``values`` are ``changed``."""
        network, after = self.network, following(self.network, changed)
        known = {name: value for name, value in values.items() if name not in after}
        source = Source(self, values[network.input.name])
        return walk(network, source, leaves(network.outputs), {**known, **changed})

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
        return x.to(self._dtype() or self.network.dtype)

    def _dtype(self) -> torch.dtype | None:
        for operation in self.operations.values():
            for buffer in operation._buffers.values():
                if buffer is not None and buffer.is_floating_point():
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
            state = self._start(x[0] if static is None else x)
        block = VIEWS[self.spikes](self, x, steps, static, state)
        known = {name: (value, False) for name, value in (static or {}).items()}
        return self._outputs(walk(self.network, block, leaves(self.network.outputs), known), block)

    def _start(self, x: Tensor) -> NetworkState:
        """In the spike view what neurons' inputs and read-outs are before the first step."""
        if self.spikes == "decoded":
            return NetworkState({})
        rest, names = Rest(self, x), leaves(self.network.outputs)
        values = walk(self.network, rest, names)
        return rest.state._replace(readouts={k: at_least_float32(v) for k, v in values.items()})

    def _outputs(self, values: Mapping[str, Signal], walk: Walk) -> tuple[Any, NetworkState]:
        """Decoded outputs, in the structure of the source network, and the state after them."""
        outputs: dict[str, Tensor] = {}
        state = NetworkState(walk.neurons)
        if self.spikes == "signed":
            last = walk.x[-1] if walk.sequence else walk.x
            state = NetworkState(walk.neurons, last, {})
        for name in dict.fromkeys(leaves(self.network.outputs)):
            value = walk.in_time(values[name])
            if state.readouts is not None:
                assert walk.before.readouts is not None
                one = value.unsqueeze(0) if walk.steps is None else value
                sums = running_sum(one, walk.before.readouts[name])
                state.readouts[name] = sums[-1].clone()
                value = (sums[0] if walk.steps is None else sums).to(value.dtype)
            outputs[name] = value
        return fill(self.network.outputs, outputs), state


class _Ann(nn.Module):
    def __init__(self, snn: NetworkModule) -> None:
        super().__init__()
        self._snn = (snn,)  # no submodule: its modes are its own

    def forward(self, x: Tensor) -> Any:
        return self._snn[0].ann(x)


def _in_order(network: SpikingNetwork, modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """The modules of nodes by ``key``, in the order of the network."""
    names = [node.name for node in network.nodes if node.name in modules]
    return nn.ModuleDict({key(name): modules[name] for name in names})


_TAKEN = frozenset([*dir(nn.ModuleDict), *dir(type)])


def key(name: str) -> str:
    """A node's name as torch takes it for a submodule: no dots, no name of ModuleDict's own."""
    path = name.replace(".", "/")
    return f"{path}/" if path in _TAKEN else path


def _check_spike_view(network: SpikingNetwork) -> None:
    rate = [node.name for node in network.nodes if not node.spike_view]
    if rate:
        raise ValueError(
            f'spikes="signed" is a view of signGD neurons; {", ".join(rate[:5])} are not. Build '
            'with spikes="decoded" (group neurons pass their own spikes there).'
        )
