"""NetworkModule: a network description as a torch module, whatever simulator its neurons are from.

A signGD network runs in one of two forms. In the *decoded* form every value is what a receiver has
decoded so far, and linear operations are applied as in the source network. In the *spike* form
("signed") the weighted spikes of one step pass through the linear part only, and each neuron
integrates its own input. They agree to rounding: x(t) = W v_in(t) + b. Rate-coded networks (group
neurons) pass the outputs of one step, and are averaged at the end.

In a stream the state is kept from frame to frame (``core/streams.py``), and the spike view of a
plan for streams is one that cannot drift, however long it runs (``StreamWalk``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons.choice import Choice, running_sum
from ..neurons.protocol import at_least_float32, like
from ..neurons.spikes import hear, joined, pricing
from .inputs import Batch, Inputs, batch_of, samples_of, value_of
from .network import (
    KEPT,
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
    Static,
    Timed,
    fill,
    leaves,
)
from .operations import apply, apply_linear, apply_over_time, resolve
from .operations.statics import compute
from .sizing import at_its_size
from .spikes import Sent
from .tally import Tally
from .walk import Semantics, following, walk


def hold(module: nn.Module, name: str, value: Tensor, layout: Any = torch.preserve_format) -> None:
    """A parameter of the description as it is, another tensor as a buffer of the module's own."""
    if isinstance(value, nn.Parameter):
        if layout is not torch.preserve_format:  # a clone has strides of its own for sizes of 1
            value.data = value.data.clone(memory_format=layout)
        module.register_parameter(name, value)
    else:  # a clone: the description keeps its own
        module.register_buffer(name, value.clone(memory_format=layout))


def held(module: nn.Module) -> dict[str, Any]:
    """What ``hold`` put there."""
    return {**module._buffers, **module._parameters} if module._parameters else module._buffers


class LinearOperation(nn.Module):
    """One linear node with its tensors as buffers, or as parameters where it trains."""

    def __init__(self, node: Linear) -> None:
        super().__init__()
        self.op = node.op
        self.attributes = node.attributes
        for name, value in node.tensors.items():
            layout = torch.channels_last if node.op == "conv" and value.dim() == 4 else None
            hold(self, name, value, layout or torch.preserve_format)

    def forward(
        self, *inputs: Tensor, batch: int, linear_part: bool = False, wide: bool = False
    ) -> Tensor:
        run = apply_linear if linear_part else apply
        tensors = each_wide(self._tensors) if wide else self._tensors
        return run(self.op, inputs, self.attributes, tensors, batch)

    def over_time(
        self,
        inputs: Sequence[Tensor],
        led: Sequence[bool],
        batch: int,
        linear_part: bool,
        wide: bool = False,
    ) -> Tensor:
        """At all steps at once; ``led`` says which inputs lead with time."""
        tensors = each_wide(self._tensors) if wide else self._tensors
        return apply_over_time(self.op, inputs, led, self.attributes, tensors, batch, linear_part)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return held(self)

    def extra_repr(self) -> str:
        attributes = ", ".join(f"{k}={v}" for k, v in self.attributes.items() if v is not None)
        tensors = ", ".join(f"{k} {list(v.shape)}" for k, v in self._tensors.items())
        return ", ".join(part for part in (self.op, attributes, tensors) if part)


def wide(value: Tensor) -> Tensor:
    """In float64, where it is floating-point."""
    return value.double() if value.is_floating_point() else value


def each_wide(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: wide(tensor) for name, tensor in tensors.items()}


class FunctionOperation(nn.Module):
    """A nonlinearity computed as it is: the "ann" mode of a neuron."""

    def __init__(self, node: Function) -> None:
        super().__init__()
        self.function = node.function
        self.arguments = {k: v for k, v in node.arguments.items() if not isinstance(v, Tensor)}
        for name, value in node.arguments.items():
            if isinstance(value, Tensor):
                hold(self, name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **self.arguments, **held(self))

    def over_time(self, *x_seq: Tensor) -> Tensor:
        return self.function.over_time(*x_seq, **self.arguments, **held(self))

    def extra_repr(self) -> str:
        return self.function.name


class ExactOperation(nn.Module):
    """A static node with its tensors as buffers."""

    def __init__(self, node: Static) -> None:
        super().__init__()
        self.node = node
        for name, value in node.tensors.items():
            self.register_buffer(name, value.clone())

    def forward(self, inputs: Sequence[Tensor], batch: int, floating: torch.dtype) -> Tensor:
        node, tensors = self.node, dict(self.named_buffers())
        given = node.name, node.op, inputs, node.attributes, tensors, batch, node.dtype, floating
        return compute(*given)


class ConstantValue(nn.Module):
    value: Tensor

    def __init__(self, node: Constant) -> None:
        super().__init__()
        self.register_buffer("value", node.value.clone())


Signal = tuple[Tensor, bool]  # a value, and whether its first dimension is time


class NetworkState(NamedTuple):
    """What a network carries from one step to the next.

    ``neurons``: their states by name; empty where the simulator's modules keep them. In the spike
    view also ``previous`` [B, ...], the last input, and ``readouts``, the decoded outputs so far;
    in that of streams by name of the neuron also ``sums``, the integrated arguments of f, and
    ``sent``, what it has been decoded to, all in float64. ``carried`` are the decoded values that
    a network of its own feeds itself in the next frame, by the name of their node.
    """

    neurons: dict[str, Any]
    previous: Batch | None = None
    readouts: dict[str, Tensor] | None = None
    sums: dict[str, tuple[Tensor, ...]] | None = None
    sent: dict[str, Tensor] | None = None
    carried: dict[str, Tensor] | None = None


def select(value: Any, index: Tensor, batch: int) -> Any:
    """A state of ``batch`` samples, in whatever nesting of tuples and dicts, for some of them."""
    if isinstance(value, Tensor):
        return value[index] if value.shape[:1] == (batch,) else value
    if isinstance(value, Inputs):
        return Inputs(select(value.tensors, index, batch), select(value.exact, index, batch))
    if isinstance(value, dict):
        return {k: select(item, index, batch) for k, item in value.items()}
    if not isinstance(value, tuple):
        return value
    if value and all(isinstance(item, int) for item in value):  # a shape that was seen
        return (len(index), *value[1:]) if value[0] == batch else value
    items = [select(item, index, batch) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


class Exact(Semantics[Tensor | None]):
    """What is computed of whole numbers alone, for inputs [B, ...]; None for all else."""

    def __init__(self, module: NetworkModule, x: Inputs) -> None:
        self.operations, self.x, self.batch = module.operations, x, samples_of(x)
        self.floating = module.floating
        self.found: dict[str, Tensor] = {}

    def input(self, node: Input) -> Tensor:
        return self.x.tensors[node.name]

    def exact(self, node: Static, inputs: list[Tensor | None]) -> Tensor:
        run: Any = self.operations[key(node.name)]
        self.found[node.name] = run(inputs, self.batch, self.floating)
        return self.found[node.name]

    def constant(self, node: Constant) -> Tensor:
        return self.operations[key(node.name)].value  # type: ignore[return-value]

    def linear(self, node: Linear, inputs: list[Tensor | None]) -> None:
        return None

    def function(self, node: Function, inputs: list[Tensor | None]) -> None:
        return None

    def timed(self, node: Timed, inputs: list[Tensor | None]) -> None:
        return None


class Source(Semantics[Tensor]):
    """The source network on x [B, ...]: every neuron is its function, coding passes x on."""

    def __init__(self, module: NetworkModule, x: Batch) -> None:
        self.operations, self.functions = module.operations, module.functions
        self.x, self.batch = module.prepared(x), samples_of(x)

    def input(self, node: Input) -> Tensor:
        return value_of(self.x, node.name)

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

    def __init__(self, module: NetworkModule, x: Batch) -> None:
        super().__init__(module, zeros_of(x))
        self.floating = torch.empty(0, dtype=module.floating, device=x.device)
        self.begin, self.state = module.begin, NetworkState({}, self.x, {})

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        resting = like(self.begin(node, inputs, self.state), self.floating)
        return resting.expand(resolve(node.shape, self.batch))


class StreamRest(Rest):
    """The same in float64, for the spike view of streams: what is integrated, and decoded."""

    def __init__(self, module: NetworkModule, x: Batch) -> None:
        super().__init__(module, x)
        self.state = self.state._replace(sums={}, sent={})

    def input(self, node: Input) -> Tensor:
        return wide(super().input(node))

    def constant(self, node: Constant) -> Tensor:
        return wide(super().constant(node))

    def linear(self, node: Linear, inputs: list[Tensor]) -> Tensor:
        operation = self.operations[key(node.name)]
        value: Tensor = operation(*inputs, batch=self.batch, wide=True)
        return value

    def neuron(self, node: Neuron, inputs: list[Tensor]) -> Tensor:
        assert self.state.sums is not None
        self.state.sums[node.name] = tuple(x.clone() for x in inputs)
        return self._sent(node, super().neuron(node, [x.to(self.floating) for x in inputs]))

    def timed(self, node: Timed, inputs: list[Tensor]) -> Tensor:
        return self._sent(node, super().timed(node, inputs))

    def _sent(self, node: Timed, value: Tensor) -> Tensor:
        assert self.state.sent is not None
        self.state.sent[node.name] = wide(value)
        return self.state.sent[node.name]


def zeros_of(x: Batch) -> Batch:
    """What every input is before the first step of the spike view."""
    if isinstance(x, Tensor):
        return torch.zeros_like(x)
    assert x.exact is not None
    tensors, exact = (
        {k: torch.zeros_like(v) for k, v in each.items()} for each in (x.tensors, x.exact)
    )
    return Inputs(tensors, exact)


class Walk(Semantics[Signal]):
    """The decoded view of one step (``steps`` None) or a block of steps.

    ``static`` keeps what does not change with time; None says that x is a sequence [steps, B, ...].
    """

    linear_part = False
    wide = False  # whether linear operations compute in float64

    def __init__(
        self,
        module: NetworkModule,
        x: Batch,
        steps: int | None,
        static: dict[str, Tensor] | None,
        before: NetworkState,
    ) -> None:
        self.module, self.steps, self.static, self.before = module, steps, static, before
        self.x = x if static is None else module.prepared(x)
        # a module's own modules take long to ask for
        self.operations, self.functions = module.operations, module.functions
        self.simulated = module.neurons
        self.neurons: dict[str, Any] = {}  # their states afterwards
        self.sequence = static is None
        self.batch = samples_of(x, int(self.sequence))

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
        value = value_of(self.x, node.name)
        return (value, True) if self.sequence and node.coded else self.still(node, value)

    def constant(self, node: Constant) -> Signal:
        return self.still(node, self.operations[key(node.name)].value)  # type: ignore[arg-type]

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        operation = self.operations[key(node.name)]
        values, led = [value for value, _ in inputs], [led for _, led in inputs]
        if not any(led):
            given = {"batch": self.batch, "linear_part": self.linear_part, "wide": self.wide}
            return self.still(node, operation(*values, **given))
        over_time: Any = operation.over_time
        return over_time(values, led, self.batch, self.linear_part, self.wide), True

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
        held, x = self.sequence or self.steps is None, value_of(self.x, node.inputs[0])
        x = x if held else x.expand(self.steps, *x.shape)  # type: ignore[arg-type]
        return self._fired(node, [x])

    def timed(self, node: Timed, inputs: list[Signal]) -> Signal:
        return self._fired(node, [self.in_time(signal) for signal in inputs])

    def _fired(self, node: Timed, inputs: list[Tensor]) -> Signal:
        module = self.module
        fire = module.fire if module.tally is None else partial(counted, module)
        if module.listener is None:
            y = self.passing(node, fire(node, inputs, self))
        else:
            with hear() as told:
                y = self.passing(node, fire(node, inputs, self))
            value = y.unsqueeze(0) if self.steps is None else y
            module.listener(Sent(node, value, partial(joined, told)))
        return y, self.steps is not None

    def passing(self, node: Timed, y: Tensor) -> Tensor:
        """What passes, of what the simulator's module returned."""
        return y


def counted(module: NetworkModule, node: Timed, inputs: list[Tensor], walk: Walk) -> Tensor:
    """``module.fire`` of a network that trains; its tally is told what was sent."""
    tally: Any = module.tally
    inputs = [at_least_float32(x) for x in inputs]  # what autocast made half
    fan_out = tally.of(node, inputs[0]) if module.network is tally.network else None
    if fan_out is None:
        return module.fire(node, inputs, walk)
    with pricing(fan_out) as sent:
        y = module.fire(node, inputs, walk)
    if node.unit is not None:  # what passes is made of spikes of one size
        size = like(node.unit, y)
        sent = [((y / size).abs() * fan_out).sum()]
    tally.add(node.name, sent)
    return y


class SignedWalk(Walk):
    """The spike view: increments pass, through the linear parts."""

    linear_part = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        previous = self.before.previous
        first = shape_of(step_of(self.x, 0) if self.sequence else self.x)
        if previous is None or shape_of(previous) != first:
            raise InputError(
                f"a step is {first} now, but the state was built for "
                f"{shape_of(previous) if previous is not None else 'decoded values'}. Reset the "
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
        x, before = (self.as_wide(value_of(a, node.name)) for a in (self.x, self.previous))
        if node.dtype != "float":  # read by what is exact alone
            return x, False
        if not node.coded:  # the same at every step, where it masks -inf
            return torch.where(x == before, torch.zeros_like(x), x - before), False
        if not self.sequence:
            return x - before, False
        return x - torch.cat([before.unsqueeze(0), x[:-1]]), True

    def constant(self, node: Constant) -> Signal:
        return self.as_wide(torch.zeros_like(super().constant(node)[0])), False

    def linear(self, node: Linear, inputs: list[Signal]) -> Signal:
        if any(led for _, led in inputs):
            inputs = [(self.in_time(signal), True) for signal in inputs]
        return super().linear(node, inputs)

    def as_wide(self, value: Tensor) -> Tensor:
        return wide(value) if self.wide else value


class StreamWalk(SignedWalk):
    """The spike view of streams, where what is integrated stays W v + b however many steps pass.

    What passes is how much v has moved, -c_m d where v is a whole number of c_m: differences of
    float32 numbers are exact in float64, and so, but for 1e-16, are their weighted sums. The walk
    integrates them; f is taken of the sums in float32, as in the decoded view.
    """

    wide = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.sums: dict[str, tuple[Tensor, ...]] = {}
        self.sent: dict[str, Tensor] = {}

    def timed(self, node: Timed, inputs: list[Signal]) -> Signal:
        assert self.before.sums is not None
        rises = [self.in_time(signal) for signal in inputs]
        pairs = zip(rises, self.before.sums[node.name], strict=True)
        sums = [self._integrated(rise, start) for rise, start in pairs]
        self.sums[node.name] = tuple(total[-1].clone() for total in sums)
        given = [total[0] if self.steps is None else total for total in sums]
        return self._fired(node, [x.to(self.module.floating) for x in given])

    def _integrated(self, rise: Tensor, start: Tensor) -> Tensor:
        return running_sum(rise.unsqueeze(0) if self.steps is None else rise, start)

    def passing(self, node: Timed, y: Tensor) -> Tensor:
        assert self.before.sent is not None
        v, before = wide(y), self.before.sent[node.name]
        if self.steps is None:
            self.sent[node.name] = v
            return v - before
        self.sent[node.name] = v[-1].clone()
        return v - torch.cat([before.unsqueeze(0), v[:-1]])


def step_of(x: Batch, t: int) -> Batch:
    """One step of a sequence."""
    return x.of_step(t) if isinstance(x, Inputs) else x[t]


def shape_of(x: Batch) -> Any:
    """To compare, and to show in an error."""
    if isinstance(x, Inputs):
        return {name: list(value.shape) for name, value in x.tensors.items()}
    return list(x.shape)


# what a block of steps is computed by, by ``NetworkModule.view``
VIEWS: dict[str, type[Walk]] = {"decoded": Walk, "signed": SignedWalk, "stream": StreamWalk}


def of_neurons(network: SpikingNetwork, spikes: str) -> str:
    """What a simulator's neurons send: in the spike view of streams the walk integrates, and they
    are asked what they are decoded to."""
    return "decoded" if network.stream else spikes


class Seen(NamedTuple):
    """Of a stream: its ``frames``, the ``shapes`` of one by input, and the whole numbers given."""

    frames: int
    shapes: Mapping[str, Sequence[int]]
    whole: Mapping[str, Tensor]


class NetworkModule(nn.Module):
    """``neurons`` maps the name of each neuron, encoder and average to the simulator's module.

    A plugin's subclass defines how one of them is run (``fire``) and started (``begin``), and has
    the ``forward`` that users of the simulator expect. Outputs are those of every step, decoded, in
    the structure that the source network returns. With ``mode = "ann"`` every neuron is replaced by
    its function.
    """

    mode = "snn"
    listener: Callable[[Sent], None] | None = None  # told what each neuron sent
    # of a network that trains: what its neurons sent, and what that costs
    tally: Tally | None = None
    prices: Any = None
    # what the next frame of a stream finds, beside what the simulator's modules keep
    state_kept: NetworkState | None = None
    seen: Seen | None = None
    forgotten: str = ""  # why a stream that was under way is no more; said at its next frame

    def __init__(
        self,
        network: SpikingNetwork,
        neurons: Mapping[str, nn.Module],
        spikes: str = "decoded",
    ) -> None:
        super().__init__()
        if spikes not in ("decoded", "signed"):
            raise InputError(f'spikes is "decoded" or "signed" in a network, not {spikes!r}.')
        if spikes == "signed":
            _check_spike_view(network)
        self.network = network
        network.last_uses, network.plain  # noqa: B018  torch.compile cannot make them
        self.spikes = spikes
        self.view = "stream" if spikes == "signed" and network.stream else spikes
        linear = {node.name: LinearOperation(node) for node in network.of(Linear)}
        constants = {node.name: ConstantValue(node) for node in network.of(Constant)}
        exact = {node.name: ExactOperation(node) for node in network.statics}
        functions = {node.name: FunctionOperation(node) for node in network.of(Function)}
        self.operations = _in_order(network, {**linear, **constants, **exact})
        self.functions = _in_order(network, functions)
        self.neurons = _in_order(network, neurons)

    @property
    def trainable(self) -> bool:
        """Whether it was built with ``trainable=True``: gradients pass, and spikes are counted."""
        return self.tally is not None

    def neuron(self, name: str) -> nn.Module:
        """The simulator's module of a neuron, by its name in the network."""
        return self.neurons[key(name)]

    def choices(self, x: Batch) -> dict[str, Choice]:
        """The backend of each signGD and group neuron for inputs like x, and why it is used."""
        neurons = {name: self.neuron(name) for name in self.network.count()}
        if isinstance(x, Inputs) or not x.is_floating_point():  # what neurons see is
            x = torch.zeros((), dtype=self.floating, device=x.device)
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
        """Spike form: starts a run with these values of f's arguments; returns v(0)."""
        raise NotImplementedError

    def reset(self) -> None:
        """Resets the state that is kept from step to step, and from frame to frame."""
        self.state_kept = self.seen = None
        self.forgotten = ""

    def forget(self, why: str) -> None:
        """Discards the state of the current stream; its next frame is refused until a reset."""
        if self.seen is not None:
            self.reset()
            self.forgotten = why

    def checkpoint(self) -> Callable[[], None]:
        """Returns a function that restores the present state, whatever ran meanwhile.

        States are returned new, never changed in place, so that nothing is copied.
        """
        kept = self.state_kept, self.seen, self.forgotten

        def restore() -> None:
            self.state_kept, self.seen, self.forgotten = kept

        return restore

    def _load_from_state_dict(self, *given: Any, **options: Any) -> None:
        """In the spike form the state contains W v + b, which depends on the weights."""
        self.forget("weights were loaded (load_state_dict) after its last frame")
        super()._load_from_state_dict(*given, **options)

    def state(self) -> dict[str, Any]:
        """The state that is kept between frames of a stream: of tensors, numbers, texts, lists and
        dicts (``core/states.py``), a copy. Raises InputError if no frame was processed."""
        found: dict[str, Any] = import_module(".states", __package__).state_of(self)
        return found

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state``, taken from this network in this or another simulator.

        Raises InputError if it belongs to another network or form.
        """
        import_module(".states", __package__).load_state(self, state)

    def neuron_states(self) -> dict[str, Any]:
        """The state of each neuron by name, in whatever nesting of tuples, between two frames."""
        return {} if self.state_kept is None else dict(self.state_kept.neurons)

    def set_neuron_states(self, states: Mapping[str, Any]) -> None:
        """These neurons in such states."""
        assert self.state_kept is not None
        neurons = {**self.state_kept.neurons, **states}
        self.state_kept = self.state_kept._replace(neurons=neurons)

    def new_frame(self, state: NetworkState | None) -> NetworkState | None:
        """The state with which a new frame of a stream begins, at step 0."""
        if state is None:
            return None
        kept = {node.name for node in self.network.of(Timed) if node.frame == KEPT}
        neurons = {k: from_step_0(each) for k, each in state.neurons.items() if k in kept}
        return state._replace(neurons=neurons)

    def select(self, index: Tensor, batch: int) -> None:
        """Keep in what the simulator's modules keep these of the ``batch`` samples alone."""

    def for_sequences(self) -> AbstractContextManager[None]:
        """Inside, the simulator's modules take whole sequences and record nothing."""
        return nullcontext()

    # -- running ------------------------------------------------------------------------------

    @at_its_size(lambda steps=None, *_, **__: steps is None)
    def advance(
        self,
        x: Any,
        steps: int | None = None,
        static: dict[str, Tensor] | None = None,
        state: NetworkState | None = None,
    ) -> tuple[Any, NetworkState]:
        """A block of steps: of a sequence x [T, B, ...], or ``steps`` of one input x [B, ...].

        x is a tensor, or of several inputs a dict of tensors by name (see ``run``). Returns the
        outputs, [steps, B, ...], and the state; none is the one before the first step.
        ``static`` keeps what does not change with time between calls with the same x.
        """
        if steps is None:
            x = self.check_input(x, 1)
            return self._walk(x, samples_of(x), None, state)
        return self._walk(self.check_input(x), steps, {} if static is None else static, state)

    @at_its_size(lambda *_, **__: False)
    def step(self, x: Any, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        """One step, x [B, ...] or a dict of such: outputs [B, ...] and the state."""
        return self._walk(self.check_input(x), None, {}, state)

    @torch.no_grad()
    def ann(self, x: Any) -> Any:
        """The source network: every neuron replaced by its function, x [B, ...] or a dict of
        such."""
        return fill(self.network.outputs, self.activations(x))

    @property
    def source(self) -> nn.Module:
        """The source network, as stored in the description, as a module."""
        return Ann(self)

    @at_its_size(lambda *_, **__: False)
    def activations(self, x: Any, keep: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The value of the nodes ``keep`` (the outputs, unless named) in the source network."""
        source = Source(self, self.check_input(x))
        return walk(self.network, source, leaves(self.network.outputs) if keep is None else keep)

    def all_activations(self, x: Any) -> dict[str, Tensor]:
        return self.activations(x, [node.name for node in self.network.nodes])

    def activations_after(
        self, values: Mapping[str, Tensor], changed: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The outputs of the source network where some of all its ``values`` are ``changed``."""
        network, after = self.network, following(self.network, changed)
        known = {name: value for name, value in values.items() if name not in after}
        source = Source(self, inputs_in(network, values))
        return walk(network, source, leaves(network.outputs), {**known, **changed})

    def is_step(self, x: Any) -> bool:
        """Whether x is one step, [B, ...] or a dict of such, by its number of dimensions."""
        x, node = batch_of(x), self.network.input
        value = x.tensors.get(node.name) if isinstance(x, Inputs) else x
        return isinstance(value, Tensor) and value.dim() == len(node.shape)

    def check_input(self, x: Any, leading: int = 0) -> Any:
        """x in the form that the network takes, or an InputError that says what to change.

        Of one floating-point input the tensor, else ``Inputs`` with what is computed of them
        exactly; ``leading`` is 1 for a sequence.
        """
        if isinstance(x, Inputs) and x.exact is not None:
            return x
        given = given_to(self.network, x)
        checked = {
            node.name: check_tensor(node, given[node.name], leading, not self.network.plain)
            for node in self.network.inputs
        }
        tensors = {
            name: value.to(self.floating) if value.is_floating_point() else value
            for name, value in checked.items()
        }
        if self.network.plain:
            return tensors[self.network.input.name]
        sizes = {name: list(value.shape[: 1 + leading]) for name, value in tensors.items()}
        if len({tuple(size) for size in sizes.values()}) > 1:
            raise InputError(f"the inputs differ in their number of samples: {sizes}.")
        inputs = Inputs(tensors)
        exact = self.exact_of(inputs.of_step(0) if leading else inputs)
        return Inputs(tensors, exact, self.exact_of)

    def prepared(self, x: Batch) -> Any:
        """x [B, ...] with what is computed of it exactly, if anything is."""
        if self.network.plain or (isinstance(x, Inputs) and x.exact is not None):
            return x
        x = x if isinstance(x, Inputs) else Inputs({self.network.input.name: x})
        return Inputs(x.tensors, self.exact_of(x), self.exact_of)

    def exact_of(self, x: Inputs) -> dict[str, Tensor]:
        """What is computed of whole numbers alone, by node."""
        exact = Exact(self, x)
        walk(self.network, exact, keep=())
        return exact.found

    @property
    def floating(self) -> torch.dtype:
        """The floating-point type of its values."""
        return self._dtype() or self.network.dtype

    def _dtype(self) -> torch.dtype | None:
        for operation in self.operations.values():
            for tensor in held(operation).values():
                if tensor is not None and tensor.is_floating_point():
                    return tensor.dtype  # type: ignore[no-any-return]
        return None

    # -- one block of steps -------------------------------------------------------------------

    def _walk(
        self,
        x: Batch,
        steps: int | None,
        static: dict[str, Tensor] | None,
        state: NetworkState | None,
    ) -> tuple[Any, NetworkState]:
        # of others also past the neurons a gradient would be a wrong one
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            x = x.to(self.floating)
            if self.tally is not None:
                samples = samples_of(x, int(static is None))
                self.tally.run(self.network, state is None, samples, steps or 1)
            if state is None:
                state = self._start(step_of(x, 0) if static is None else x)
            block = VIEWS[self.view](self, x, steps, static, state)
            known = {name: (value, False) for name, value in (static or {}).items()}
            values = walk(self.network, block, read_out(self.network), known)
            return self._outputs(values, block)

    def _start(self, x: Batch) -> NetworkState:
        """In the spike view what neurons' inputs and read-outs are before the first step."""
        if self.spikes == "decoded":
            return NetworkState({})
        rest = (StreamRest if self.view == "stream" else Rest)(self, x)
        values = walk(self.network, rest, read_out(self.network))
        return rest.state._replace(readouts={k: at_least_float32(v) for k, v in values.items()})

    def _outputs(self, values: Mapping[str, Signal], walk: Walk) -> tuple[Any, NetworkState]:
        """Decoded outputs, in the structure of the source network, and the state after them."""
        outputs: dict[str, Tensor] = {}
        state = NetworkState(walk.neurons)
        if self.spikes == "signed":
            given = step_of(walk.x, -1) if walk.sequence else walk.x
            state = NetworkState(walk.neurons, given, {})
        if isinstance(walk, StreamWalk):
            state = state._replace(sums=walk.sums, sent=walk.sent)
        for name in read_out(self.network):
            value = walk.in_time(values[name])
            if state.readouts is not None:
                assert walk.before.readouts is not None
                one = value.unsqueeze(0) if walk.steps is None else value
                sums = running_sum(one, walk.before.readouts[name])
                state.readouts[name] = sums[-1].clone()
                value = sums[0] if walk.steps is None else sums
                value = value.to(self.floating if walk.wide else one.dtype)
            outputs[name] = value
        if self.network.carries:
            fed = {name: outputs[name] for name in self.network.carries.values()}
            last = {k: v if walk.steps is None else v[-1].clone() for k, v in fed.items()}
            state = state._replace(carried=last)
        return fill(self.network.outputs, outputs), state


def read_out(network: SpikingNetwork) -> list[str]:
    """The nodes whose decoded values are asked for: outputs, and what is carried on."""
    return list(dict.fromkeys([*leaves(network.outputs), *network.carries.values()]))


def from_step_0(state: Any) -> Any:
    """A neuron's state, in whatever nesting of named tuples, whose steps are counted from 0."""
    if not isinstance(state, tuple) or not hasattr(state, "_fields"):
        return state
    items = {k: from_step_0(v) for k, v in zip(state._fields, state, strict=True)}
    return type(state)(**{**items, **({"t": 0} if "t" in items else {})})


def inputs_in(network: SpikingNetwork, values: Mapping[str, Tensor]) -> Batch:
    """The batch that was fed, of all values that there are."""
    if network.plain:
        return values[network.input.name]
    tensors, exact = (
        {node.name: values[node.name] for node in nodes}
        for nodes in (network.inputs, network.statics)
    )
    return Inputs(tensors, exact)


def given_to(network: SpikingNetwork, x: Any) -> Mapping[str, Any]:
    """The values passed in, by the names of the inputs. Raises InputError."""
    x = batch_of(x)
    names = [node.name for node in network.inputs]
    outer = [name for name in names if name not in network.carries]
    shown = ", ".join(f"{name!r}: ..." for name in outer)
    if set(x.tensors if isinstance(x, Inputs) else outer[:1]) == set(outer) != set(names):
        fed = ", ".join(map(repr, network.carries))
        raise InputError(
            f"the network feeds {fed} back to itself from frame to frame of a clip [F, B, ...]: "
            "call run(snn, clip, sequence=True, keep_state=True)."
        )
    if not isinstance(x, Inputs):
        if len(names) > 1:
            raise InputError(
                f"the network has {len(outer)} inputs, but x is {type(x).__name__}; pass a dict, "
                f"{{{shown}}}."
            )
        return {names[0]: x}
    if set(x.tensors) != set(names):
        raise InputError(
            f"the network takes {{{shown}}}, but the dict holds "
            f"{', '.join(name for name in x.tensors if name not in network.carries) or 'nothing'}; "
            "pass exactly these."
        )
    return x.tensors


def check_tensor(node: Input, x: Any, leading: int, named: bool) -> Tensor:
    """x as the input ``node`` takes it; errors name the input where it is ``named``."""
    what = f"the input {node.name!r}" if named else "the input"
    expected = node.shape[1:]
    if not isinstance(x, Tensor):
        raise InputError(f"{what} is a tensor, not {type(x).__name__}.")
    x = _of_kind(node, x, what)
    if tuple(x.shape[1 + leading :]) != expected or x.dim() < 1 + leading:
        time = "T, " * leading
        raise InputError(
            f"{what} is [{time}B, {', '.join(map(str, expected))}], but x is "
            f"{list(x.shape)}."
            + (
                (
                    " The time dimension is missing: a sequence is [T, B, ...], a clip [F, B, "
                    "...]; for a single step or frame pass x.unsqueeze(0)."
                    if leading
                    else " A sequence is passed as run(..., sequence=True) or in step_mode 'm'."
                )
                if x.dim() == len(expected) + 2 - leading
                else ""
            )
        )
    if leading and x.shape[0] == 0:
        raise InputError("a sequence has at least one step, but T is 0.")
    if leading and not node.coded and not bool((x == x[:1]).all()):
        raise InputError(
            f"{what} holds {node.dtype} values, which are the same at every step of a sequence; "
            "pass x.expand(T, *x.shape)."
        )
    return x


def _of_kind(node: Input, x: Tensor, what: str) -> Tensor:
    if node.dtype == "float" and not x.is_floating_point():
        raise InputError(
            f"{what} is {x.dtype}; convert it as in training, for instance x.float() / 255."
        )
    if node.dtype == "float":
        return x
    if x.is_floating_point():
        raise InputError(
            f"{what} holds {node.dtype} values, such as token ids or a mask, but it is "
            f"{x.dtype}; pass the tokenizer's tensor unchanged."
        )
    if node.dtype == "boolean" and x.dtype != torch.bool:
        raise InputError(f"{what} holds boolean values, but it is {x.dtype}; pass x.bool().")
    return x if node.dtype == "boolean" else x.long()


class Ann(nn.Module):
    """``NetworkModule.source``."""

    def __init__(self, snn: NetworkModule) -> None:
        super().__init__()
        self._snn = (snn,)  # no submodule: its modes are its own

    @property
    def snn(self) -> NetworkModule:
        return self._snn[0]

    def forward(self, x: Tensor | None = None, **inputs: Tensor) -> Any:
        if x is not None and inputs:  # of several inputs one is called x
            return self.snn.ann({"x": x, **inputs})
        return self.snn.ann(inputs if x is None else x)


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
        raise InputError(
            f'spikes="signed" is available for signGD neurons only; {", ".join(rate[:5])} are '
            'not. Build with spikes="decoded" (group neurons send their own spikes there).'
        )
