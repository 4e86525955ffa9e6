"""SpikingJelly node types: signGD, group and subgradient neurons, and what codes and decodes them.

Every module holds its state as memories (``functional.reset_net`` starts anew), takes [N, *] in
``step_mode="s"`` and [T, N, *] in ``"m"``, and gives the same numbers in both. States are float32,
float64 for float64 inputs, whatever the input's type; the output has the input's type.

``spikes`` says what passes between the modules of one network: "signed", "binary" or "decoded"
(``neurons/protocol.py``).

signGD and group neurons run by kernels where ``backend`` finds them, the same in both step modes
(``neurons/multi_step.py`` says what "auto", "cpu", "cupy" and "torch" mean); ``choice`` tells what
runs.

Written against what SpikingJelly 2.0.0 and 0.0.0.0.14 have in common: memories,
``materialize_states`` and functional forwards are 2.0.0's names, used by both here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons.coding import (
    CodingState,
    PoissonCodingParameters,
    RealCodingParameters,
    poisson_step,
)
from ...neurons.group import GroupNeuronParameters, group_initial_v
from ...neurons.growth import GrowthState, growth_initial_state, selecting
from ...neurons.multi_step import (
    BACKENDS,
    Choice,
    group_choice,
    group_multi_step,
    growth_multi_step,
    signgd_choice,
    sum_choice,
)
from ...neurons.nonlinearities import Nonlinearity, nonlinearity
from ...neurons.protocol import (
    at_least_float32,
    check_protocol,
    encode_step,
    like,
    readout_sequence,
    running_mean,
    signgd_sequence,
    signgd_start,
    state_dtype,
)
from ...neurons.scan import scan
from ...neurons.schedules import InverseSchedule, Schedule
from ...neurons.signgd import SignGDParameters, SignGDState
from ...neurons.subgradient import SubgradientParameters, SubgradientState, subgradient_step
from ...neurons.surrogate import Surrogate
from .. import simulator

with simulator("spikingjelly"):
    from spikingjelly.activation_based import base, neuron, surrogate

__all__ = [
    "Encode",
    "GroupNode",
    "GrowthNode",
    "PoissonEncode",
    "Readout",
    "RunningMean",
    "SignGDNode",
    "SubgradientNode",
    "group_neuron_factory",
]

Shapes = tuple[tuple[int, ...], ...]
Record = list[tuple[Tensor, Tensor | None]]  # v_seq and spike_seq of a call, [T, N, *]


class _Stateful(base.MemoryModule):
    """A module that is its pure step, or its pure sequence of steps.

    A subclass registers its memories in the order of ``State``, whose ``shapes``, those of the
    inputs, is None until the first step, and writes ``_initial_state`` and ``_step``, or
    ``_sequence``, of which a single step is then one of length 1.
    """

    State: ClassVar[Callable[..., Any]]
    _arity: int | None = 1

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> Any:
        raise NotImplementedError

    def _step(
        self, inputs: tuple[Tensor, ...], state: Any, record: Record | None
    ) -> tuple[Tensor, Any]:
        """One step in the state's precision; a record is given (v, spikes) of it, [N, *]."""
        raise NotImplementedError

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: Any, record: Record | None
    ) -> tuple[Tensor, Any]:
        """Steps [T, N, *] of any type to outputs of that type."""
        dtype, of_steps = state_dtype(inputs), None if record is None else Record()
        steps = [tuple(x.to(dtype) for x in step) for step in zip(*inputs, strict=True)]
        y_seq, state = scan(self._step, steps, state, of_steps)
        if record is not None and of_steps:
            spikes = [s for _, s in of_steps if s is not None]
            v_seq = torch.stack([v for v, _ in of_steps])
            record.append((v_seq, torch.stack(spikes) if spikes else None))
        return y_seq.to(inputs[0].dtype), state

    def _checked(self, inputs: tuple[Any, ...], step_mode: str) -> tuple[Tensor, ...]:
        """The inputs of the first step."""
        if not inputs or (self._arity is not None and len(inputs) != self._arity):
            raise InputError(
                f"{self._get_name()}: one input for each argument is needed, so "
                f"{self._arity or 'at least 1'}, but {len(inputs)} came in. Call it as node(x1, x2)"
                " for a function of two arguments."
            )
        for x in inputs:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise InputError(
                    f"{self._get_name()}: inputs are floating-point tensors, but one is "
                    f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}. Convert it with "
                    "x.float()."
                )
        if step_mode == "s":
            return inputs
        if any(x.dim() == 0 or x.shape[0] < 1 or x.shape[0] != inputs[0].shape[0] for x in inputs):
            raise InputError(
                f"{self._get_name()}: in step_mode 'm' an input is [T, N, *] with one T >= 1, but "
                f"the shapes are {[tuple(x.shape) for x in inputs]}. Set step_mode 's' "
                "(functional.set_step_mode) to feed one step [N, *]."
            )
        return tuple(x[0] for x in inputs)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> Any:
        """Before the first step the states for this batch, then the same ones, checked."""
        first = self._checked(inputs, step_mode)
        shapes: Shapes = tuple(tuple(x.shape) for x in first)
        dtype = state_dtype(first)
        state = self.State(*states)
        if state.shapes is None:
            return self._initial_state(tuple(x.to(dtype) for x in first))._replace(shapes=shapes)
        if state.shapes != shapes:
            raise InputError(
                f"{self._get_name()}: a step is {list(shapes)} now, but the state was built for "
                f"{list(state.shapes)}. Reset the neuron (functional.reset_net) before feeding a "
                "batch of another shape."
            )
        device = first[0].device
        return self.State(*(_each_tensor(value, lambda s: s.to(device, dtype)) for value in state))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], record: Record | None = None
    ) -> tuple[tuple[Tensor], Any]:
        """Pure: (outputs, new states), states in the order of registration."""
        one = tuple(x.unsqueeze(0) for x in inputs)
        y_seq, state = self._sequence(one, self.State(*states), record)
        return (y_seq[0],), state

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], record: Record | None = None
    ) -> tuple[tuple[Tensor], Any]:
        """Pure, [T, N, *] to [T, N, *]."""
        y_seq, state = self._sequence(inputs, self.State(*states), record)
        return (y_seq,), state

    def single_step_forward(self, *inputs: Tensor) -> Tensor:
        return self._run(inputs, "s")

    def multi_step_forward(self, *inputs: Tensor) -> Tensor:
        return self._run(inputs, "m")

    def _run(self, inputs: tuple[Tensor, ...], step_mode: str) -> Tensor:
        states = self.materialize_states(inputs, tuple(self._memories.values()), step_mode)
        record: Record | None = [] if getattr(self, "store_v_seq", False) else None
        if step_mode == "s":
            (y,), states = self.single_step_functional_forward(inputs, states, record)
        else:
            (y,), states = self.multi_step_functional_forward(inputs, states, record)
        self._memories.update(zip(self._memories, states, strict=True))
        if record is not None:
            self._store(record, step_mode)
        return y

    def _store(self, record: Record, step_mode: str) -> None:
        raise NotImplementedError

    def detach(self) -> None:
        for name, value in self._memories.items():
            self._memories[name] = _each_tensor(value, Tensor.detach)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for name, value in self._memories.items():
            if isinstance(value, tuple):  # the tensors by themselves are SpikingJelly's to move
                self._memories[name] = _each_tensor(value, fn)
        module: nn.Module = super()._apply(fn)
        return module


class _Recording(_Stateful, neuron.BaseNode):
    """A neuron that keeps ``v_seq`` and ``spike_seq`` [T, N, *] if ``store_v_seq``.

    Each call in step_mode 'm' replaces them; in 's' a step is appended, until the next reset.
    ``spike_seq`` is bool, uint8 for the m bits of several signs a step (the first one's the
    highest), None for neurons whose spikes are graded.
    """

    v: Any  # Tensor, a number before the first step

    @property
    def store_v_seq(self) -> bool:
        return self._store_v_seq

    @store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        self._store_v_seq = value
        self.v_seq: Any = None  # Tensor, or None before the first step
        self.spike_seq: Any = None

    def __getattr__(self, name: str) -> Any:
        # where the AttributeMonitor of 0.0.0.0.14 looks for attributes that are no memories
        return self.__dict__[name] if name in self.__dict__ else super().__getattr__(name)

    def _store(self, record: Record, step_mode: str) -> None:
        ((v_seq, spike_seq),) = record
        if step_mode == "s" and self.v_seq is not None:
            v_seq = torch.cat([self.v_seq, v_seq])
            if spike_seq is not None and self.spike_seq is not None:
                spike_seq = torch.cat([self.spike_seq, spike_seq])
        self.v_seq, self.spike_seq = v_seq, spike_seq

    def reset(self) -> None:
        super().reset()
        self.v_seq = self.spike_seq = None

    def detach(self) -> None:
        super().detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def _start_from(self, v: float) -> None:
        self.v = v
        self.set_reset_value("v", v)


class _Kernel(_Recording):
    """A neuron with a choice of ``backend`` (``neurons/multi_step.py``), assigned at any time.

    ``functional.set_backend`` of 0.0.0.0.14 does so for a whole network.
    """

    @property
    def supported_backends(self) -> tuple[str, ...]:
        return BACKENDS

    @property
    def backend(self) -> str:
        return self._chosen_backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in BACKENDS:
            raise ValueError(
                f"{self._get_name()}: backend is one of {', '.join(BACKENDS)}, but it is {value!r}."
            )
        self._chosen_backend = value

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        raise NotImplementedError


class _Made(_Kernel):
    """A neuron with ``dynamics``, the definition's parameters, made again where one changes."""

    _made: tuple[tuple[Any, ...], Any] | None = None  # of what, and the dynamics

    @property
    def dynamics(self) -> Any:
        raise NotImplementedError

    def _make(self) -> None:
        """The dynamics now, since torch.compile cannot make them; not of tensors without values."""
        self._made = None
        if not any(buffer.is_meta for buffer in self.buffers(recurse=False)):
            self.dynamics  # noqa: B018

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        module = super()._apply(fn, recurse)
        self._make()
        return module

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._make()


def _known_surrogate(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """SpikingJelly's surrogate as one that the kernels know, if they do."""
    kinds = {
        surrogate.Sigmoid: "sigmoid",
        surrogate.ATan: "atan",
        surrogate.PiecewiseQuadratic: "piecewise_quadratic",
    }
    kind = kinds.get(type(function))
    if kind is None or not function.spiking:  # type: ignore[attr-defined]
        return function
    return Surrogate(kind, float(function.alpha))  # type: ignore[attr-defined]


def _same(a: Any, b: Any) -> bool:
    """Whether a value that a module was made of is still the one, a tensor the very same."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)


def _each_tensor(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_each_tensor(item, fn) for item in value)
    return fn(value) if isinstance(value, Tensor) else value


def _hold(module: nn.Module, name: str, value: Any) -> None:
    """A tensor becomes a buffer, a copy that is the module's own; a number stays a number."""
    if isinstance(value, Tensor):
        module.register_buffer(name, value.detach().clone())
    else:
        setattr(module, name, value)


def _show(value: Any) -> str:
    return f"Tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


class _SignGDNodeState(NamedTuple):
    v: Tensor
    t: int
    buffer: Tensor | None
    x: tuple[Tensor, ...] | None
    shapes: Shapes | None


class SignGDNode(_Made):
    """signGD neuron of any function of one or several arguments (``neurons/signgd.py``).

    ``function`` is a row's name, a row or a callable; ``arguments`` are its parameters, such as
    ``{"negative_slope": 0.1}``. ``scale`` and ``resting`` broadcast against v [N, *],
    ``initial_input`` and ``offset`` against an input, with a tuple of them for several inputs.
    Tensors become buffers. ``v`` is the decoded output, ``x`` the tuple of the integrated inputs.
    ``members``, m, is the number of signs of one step, of sizes eta, eta / 2, ...; all neurons of a
    network with "binary" spikes have the same.

    ``surrogate_function`` gives outputs a gradient with respect to inputs; without, as after a
    conversion, none passes a spike and none is recorded. It takes "signed" or "decoded" spikes.
    """

    State = _SignGDNodeState

    def __init__(
        self,
        function: str | Nonlinearity | Callable[..., Tensor],
        schedule: Schedule,
        *,
        scale: float | Tensor = 1.0,
        resting: float | Tensor = 0.0,
        initial_input: float | Tensor | tuple[float | Tensor, ...] = 0.0,
        spikes: str = "signed",
        offset: float | Tensor | tuple[float | Tensor, ...] | None = None,
        arguments: Mapping[str, Any] | None = None,
        momentum: float = 0.0,
        members: int = 1,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_reset=None,
            surrogate_function=surrogate_function,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.backend = backend
        check_protocol(self._get_name(), spikes, initial_input, offset, momentum)
        if surrogate_function is not None and (spikes == "binary" or momentum):
            raise ValueError(
                f"{self._get_name()}: a gradient passes signed spikes or decoded values without "
                'momentum. Choose spikes="signed", or leave surrogate_function out.'
            )
        self.register_memory("t", 0)
        self.register_memory("buffer", None)
        self.register_memory("x", None)
        self.register_memory("shapes", None)
        self._start: tuple[Tensor, ...] | None = None
        self.function = nonlinearity(function)
        if isinstance(self.function.function, nn.Module):
            self.function_module = self.function.function  # a child: moves, saves and loads
        self._arity = self.function.arity
        self.schedule = schedule
        self.spikes = spikes
        self.momentum = momentum
        self.members = members
        _hold(self, "scale", scale)
        _hold(self, "resting", resting)
        self._initial_inputs = self._hold_each("initial_input", initial_input)
        self._offsets = self._hold_each("offset", 0.0 if offset is None else offset)
        self._arguments = {key: f"argument_{key}" for key in arguments or {}}
        for key, value in (arguments or {}).items():
            _hold(self, f"argument_{key}", value)
        self._make()  # checked at birth
        if not isinstance(resting, Tensor):
            self._start_from(float(resting))

    def start(self, *x: Tensor) -> None:
        """x(0), one for each argument, of the run that begins now; a reset forgets it."""
        self._start = x

    def reset(self) -> None:
        super().reset()
        self._start = None

    def _hold_each(self, name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, tuple):
            _hold(self, name, value)
            return (name,)
        names = tuple(f"{name}_{k}" for k in range(len(value)))
        for key, item in zip(names, value, strict=True):
            _hold(self, key, item)
        return names

    def _held(self, names: tuple[str, ...], inputs: int) -> tuple[float | Tensor, ...]:
        """The values under these names, one for each input; a single number counts for all."""
        values = tuple(getattr(self, name) for name in names)
        if len(values) == 1 and not isinstance(values[0], Tensor):
            values *= inputs
        if len(values) != inputs:
            raise InputError(
                f"{self._get_name()}: {inputs} inputs came in, but there are {len(values)} "
                f"values of {names[0].removesuffix('_0')}. Pass a tuple with one for each input."
            )
        return values

    @property
    def arguments(self) -> dict[str, Any]:
        return {key: getattr(self, name) for key, name in self._arguments.items()}

    @property
    def dynamics(self) -> SignGDParameters:
        """The definition's parameters, with the tensors of the buffers."""
        arguments = self.arguments
        numbers = (self.schedule, self.momentum, self.members)
        of = (*numbers, self.scale, self.resting, *arguments.values())
        made = self._made
        if made is None or not all(map(_same, of, made[0])):
            dynamics = SignGDParameters(
                self.function,
                self.schedule,
                at_least_float32(self.scale),
                at_least_float32(self.resting),
                {key: at_least_float32(value) for key, value in arguments.items()},
                self.momentum,
                self.members,
            )
            made = self._made = (of, dynamics)
        return made[1]

    @torch.no_grad()
    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _SignGDNodeState:
        initial: tuple[float | Tensor, ...] = ()
        if self.spikes != "decoded":
            initial = self._start or self._held(self._initial_inputs, len(inputs))
        (v, t, buffer), x = signgd_start(inputs, self.dynamics, self.spikes, initial)
        return _SignGDNodeState(v, t, buffer, x, None)

    def choice(self, x: Tensor) -> Choice:
        function = self.surrogate_function if torch.is_grad_enabled() else None
        gradient = None if function is None else _known_surrogate(function)
        return signgd_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _SignGDNodeState, record: Record | None
    ) -> tuple[Tensor, _SignGDNodeState]:
        function = self.surrogate_function
        if function is None or not torch.is_grad_enabled():
            with torch.no_grad():
                return self._run_sequence(inputs, state, record, None)
        return self._run_sequence(inputs, state, record, _known_surrogate(function))

    def _run_sequence(
        self,
        inputs: tuple[Tensor, ...],
        state: _SignGDNodeState,
        record: Record | None,
        gradient: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, _SignGDNodeState]:
        binary = self.spikes == "binary"
        done = signgd_sequence(
            inputs,
            SignGDState(state.v, state.t, state.buffer),
            state.x,
            self.dynamics,
            self.spikes,
            offsets=self._held(self._offsets, len(inputs)) if binary else (),
            backend=self.backend,
            surrogate=gradient,
            keep=record is not None,
        )
        if record is not None:
            assert done.v_seq is not None
            record.append((done.v_seq, done.spike_seq))
        x = None if state.x is None else done.x
        return done.y, _SignGDNodeState(*done.state, x, state.shapes)

    def extra_repr(self) -> str:
        parts = [self.function.name, repr(self.schedule)]
        names = ["scale", "resting", *self._initial_inputs, *self._arguments.values()]
        if self.spikes == "binary":
            names += self._offsets
        parts += [f"{name}={_show(getattr(self, name))}" for name in names]
        if self.momentum:
            parts.append(f"momentum={self.momentum}")
        if self.members > 1:
            parts.append(f"members={self.members}")
        return ", ".join([*parts, f"spikes={self.spikes!r}", f"step_mode={self.step_mode!r}"])


class _GroupNodeState(NamedTuple):
    v: Tensor
    sent: Tensor | None
    shapes: Shapes | None


class GroupNode(_Made):
    """Group neuron of m members (``neurons/group.py``): membrane current in, n v_threshold / m out.

    ``v_threshold`` and ``initial_charge`` broadcast against v [N, *]; tensors become buffers. A
    ``signed`` neuron may take back what it has sent; ``sent`` counts it.

    Where the input requires a gradient it passes through ``surrogate_function`` (Sigmoid unless
    given), the sum over the members; the forward values are the same to the bit.
    """

    State = _GroupNodeState

    def __init__(
        self,
        members: int,
        v_threshold: float | Tensor = 1.0,
        *,
        initial_charge: float | Tensor = 0.5,
        signed: bool = False,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        by_channel = isinstance(v_threshold, Tensor)
        super().__init__(
            v_threshold=1.0 if by_channel else float(v_threshold),
            v_reset=None,
            surrogate_function=surrogate_function or surrogate.Sigmoid(),
            detach_reset=detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.backend = backend
        self.register_memory("sent", None)
        self.register_memory("shapes", None)
        self.members = members
        self.signed = signed
        if by_channel:
            del self.v_threshold  # SpikingJelly's own, a number
            _hold(self, "v_threshold", v_threshold)
        _hold(self, "initial_charge", initial_charge)
        self._make()
        if not isinstance(v_initial := self._first_v(), Tensor):
            self._start_from(v_initial)

    def _first_v(self) -> float | Tensor:
        meta = any(buffer.is_meta for buffer in self.buffers(recurse=False))
        return 0.0 if meta else self.dynamics.v_initial

    @property
    def dynamics(self) -> GroupNeuronParameters:
        """The definition's parameters, with the tensors of the buffers."""
        of = (self.members, self.v_threshold, self.initial_charge, self.signed)
        made = self._made
        if made is None or not all(map(_same, of, made[0])):
            dynamics = GroupNeuronParameters(
                self.members,
                at_least_float32(self.v_threshold),
                at_least_float32(self.initial_charge),
                self.signed,
            )
            made = self._made = (of, dynamics)
        return made[1]

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _GroupNodeState:
        v = group_initial_v(inputs[0], self.dynamics)
        return _GroupNodeState(v, torch.zeros_like(v) if self.signed else None, None)

    def choice(self, x: Tensor) -> Choice:
        trains = torch.is_grad_enabled() and x.requires_grad
        gradient = _known_surrogate(self.surrogate_function) if trains else None
        return group_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _GroupNodeState, record: Record | None
    ) -> tuple[Tensor, _GroupNodeState]:
        (x_seq,) = inputs
        trains = torch.is_grad_enabled() and (x_seq.requires_grad or state.v.requires_grad)
        done = group_multi_step(
            x_seq,
            state.v,
            self.dynamics,
            sent=state.sent,
            backend=self.backend,
            surrogate=_known_surrogate(self.surrogate_function) if trains else None,
            detach_reset=self.detach_reset,
            keep_v=record is not None,
        )
        if record is not None:
            assert done.v_seq is not None
            record.append((done.v_seq, None))
        return done.y, _GroupNodeState(done.v, done.sent, state.shapes)

    def extra_repr(self) -> str:
        return (
            f"members={self.members}, v_threshold={_show(self.v_threshold)}, "
            f"initial_charge={_show(self.initial_charge)}, "
            f"{'signed=True, ' if self.signed else ''}detach_reset={self.detach_reset}, "
            f"step_mode={self.step_mode!r}"
        )


def group_neuron_factory(
    members: int, *, initial_charge: float = 0.5
) -> Callable[[float], GroupNode]:
    """``RateCodingRecipe(..., neuron_factory=group_neuron_factory(4))`` of SpikingJelly 2.

    The recipe's scalers map [0, scale] to [0, 1] and back, so the threshold is 1 at every scale.
    """

    def factory(scale: float) -> GroupNode:
        return GroupNode(members, initial_charge=initial_charge)

    return factory


class _GrowthNodeState(NamedTuple):
    v: Tensor
    totals: tuple[Tensor, ...]
    shapes: Shapes | None


class GrowthNode(_Kernel):
    """Pooling of spikes that count (``neurons/growth.py``), such as those of group neurons.

    Sends the growth of ``function`` over the sums of its inputs so far, ``totals``, of which ``v``
    is the function's value; what is sent adds up to it. ``function`` is a row of which an output is
    one of the inputs, or its name: "max_pool", "amax", "maximum" and others; ``arguments`` are its
    parameters. With one step it is the function itself.
    """

    State = _GrowthNodeState

    def __init__(
        self,
        function: str | Nonlinearity,
        arguments: Mapping[str, Any] | None = None,
        *,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_reset=None, surrogate_function=None, step_mode=step_mode, store_v_seq=store_v_seq
        )
        self.backend = backend
        self.register_memory("totals", None)
        self.register_memory("shapes", None)
        self.function = selecting(self._get_name(), function)
        self._arity = self.function.arity
        self.arguments = dict(arguments or {})

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _GrowthNodeState:
        totals, v = growth_initial_state(inputs, partial(self.function, **self.arguments))
        return _GrowthNodeState(v, totals, None)

    def choice(self, x: Tensor) -> Choice:
        return sum_choice(self.backend, x)

    @torch.no_grad()
    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _GrowthNodeState, record: Record | None
    ) -> tuple[Tensor, _GrowthNodeState]:
        done = growth_multi_step(
            inputs,
            GrowthState(state.totals, state.v),
            self.function,
            self.arguments,
            backend=self.backend,
            keep_last=record is not None,
        )
        if record is not None:
            assert done.last_seq is not None
            record.append((done.last_seq, None))
        return done.y, _GrowthNodeState(done.state.last, done.state.totals, state.shapes)

    def extra_repr(self) -> str:
        given = "".join(f"{key}={_show(value)}, " for key, value in self.arguments.items())
        return f"{self.function.name}, {given}step_mode={self.step_mode!r}"


class _SubgradientNodeState(NamedTuple):
    v: Tensor
    t: int
    shapes: Shapes | None


class SubgradientNode(_Recording):
    """The rate-coded baseline for ReLU (``neurons/subgradient.py``): decoded x(t) in, v(t) out.

    ``scale``, the largest output, broadcasts against x; the schedule is 1 / (t + 1) unless given.
    """

    State = _SubgradientNodeState

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        schedule: Schedule | None = None,
        *,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_reset=None, surrogate_function=None, step_mode=step_mode, store_v_seq=store_v_seq
        )
        self.register_memory("t", 0)
        self.register_memory("shapes", None)
        self.schedule = InverseSchedule(1.0, delay=1.0) if schedule is None else schedule
        _hold(self, "scale", scale)
        self._dynamics = SubgradientParameters(scale, self.schedule)

    @property
    def dynamics(self) -> SubgradientParameters:
        if self._dynamics.scale is not self.scale:
            self._dynamics = SubgradientParameters(self.scale, self.schedule)
        return self._dynamics

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _SubgradientNodeState:
        return _SubgradientNodeState(torch.zeros_like(inputs[0]), 0, None)

    @torch.no_grad()
    def _step(
        self, inputs: tuple[Tensor, ...], state: _SubgradientNodeState, record: Record | None
    ) -> tuple[Tensor, _SubgradientNodeState]:
        (x,) = inputs
        fires, after = subgradient_step(x, SubgradientState(state.v, state.t), self.dynamics)
        if record is not None:
            record.append((after.v, fires))
        return after.v, _SubgradientNodeState(*after, state.shapes)

    def extra_repr(self) -> str:
        return f"scale={_show(self.scale)}, {self.schedule!r}, step_mode={self.step_mode!r}"


class _EncodeState(NamedTuple):
    v: Tensor
    t: int
    buffer: Tensor | None
    shapes: Shapes | None


class Encode(_Stateful):
    """Real-valued input coding (``neurons/coding.py``): v follows the input x, v(0) = 0.

    Sends the increments of v ("signed"), v ("decoded"), or (1 + v - x) / 2 ("binary", as
    published: not binary at all, but decoded by the same formula as binary spikes, those of neurons
    of ``members``).
    """

    State = _EncodeState

    def __init__(
        self,
        schedule: Schedule,
        *,
        momentum: float = 0.0,
        spikes: str = "signed",
        members: int = 1,
        step_mode: str = "s",
    ) -> None:
        super().__init__()
        offset = 0.0 if spikes == "binary" else None
        check_protocol(self._get_name(), spikes, 0.0, offset, momentum)
        for name, value in zip(_EncodeState._fields, (None, 0, None, None), strict=True):
            self.register_memory(name, value)
        self.dynamics = RealCodingParameters(schedule, momentum)
        self.members = members
        self.spikes = spikes
        self.step_mode = step_mode

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _EncodeState:
        return _EncodeState(torch.zeros_like(inputs[0]), 0, None, None)

    def _step(
        self, inputs: tuple[Tensor, ...], state: _EncodeState, record: Record | None
    ) -> tuple[Tensor, _EncodeState]:
        (x,) = inputs
        coded = CodingState(state.v, state.t, state.buffer)
        y, after = encode_step(x, coded, self.dynamics, self.spikes, self.members)
        return y, _EncodeState(*after, state.shapes)

    def extra_repr(self) -> str:
        p = self.dynamics
        momentum = f"momentum={p.momentum}, " if p.momentum else ""
        return f"{p.schedule!r}, {momentum}spikes={self.spikes!r}, step_mode={self.step_mode!r}"


class _PoissonEncodeState(NamedTuple):
    v: Tensor
    t: int
    shapes: Shapes | None


class PoissonEncode(_Stateful):
    """Poisson input coding (``neurons/coding.py``): spikes of amplitude ``scale``, signed.

    Sends the spikes, or their mean so far if ``averaged``. The same seed draws the same spikes
    after every reset, however the steps are cut into calls.
    """

    State = _PoissonEncodeState

    def __init__(
        self, scale: float = 1.0, *, seed: int = 0, averaged: bool = False, step_mode: str = "s"
    ) -> None:
        super().__init__()
        for name, value in zip(_PoissonEncodeState._fields, (None, 0, None), strict=True):
            self.register_memory(name, value)
        self.dynamics = PoissonCodingParameters(scale, seed)
        self.averaged = averaged
        self.step_mode = step_mode

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _PoissonEncodeState:
        return _PoissonEncodeState(torch.zeros_like(inputs[0]), 0, None)

    def _step(
        self, inputs: tuple[Tensor, ...], state: _PoissonEncodeState, record: Record | None
    ) -> tuple[Tensor, _PoissonEncodeState]:
        spikes, after = poisson_step(inputs[0], CodingState(state.v, state.t), self.dynamics)
        y = after.v if self.averaged else spikes
        return y, _PoissonEncodeState(after.v, after.t, state.shapes)

    def extra_repr(self) -> str:
        p = self.dynamics
        return f"scale={p.scale}, seed={p.seed}, averaged={self.averaged}"


class _ReadoutState(NamedTuple):
    y: Tensor
    t: int
    shapes: Shapes | None


class Readout(_Stateful):
    """Accumulates what the last linear layer makes of the spikes to the decoded output y(t).

    ``initial`` is the layer's bias, y(0); "binary" needs the senders' ``schedule`` and ``members``
    and the offset of the layer.
    """

    State = _ReadoutState

    def __init__(
        self,
        initial: float | Tensor = 0.0,
        *,
        spikes: str = "signed",
        schedule: Schedule | None = None,
        offset: float | Tensor | None = None,
        members: int = 1,
        step_mode: str = "s",
    ) -> None:
        super().__init__()
        check_protocol(self._get_name(), spikes, initial, offset)
        if spikes == "binary" and schedule is None:
            raise ValueError(
                "Readout: binary spikes are decoded with the step sizes of their senders. Pass "
                "schedule=... ."
            )
        for name, value in zip(_ReadoutState._fields, (None, 0, None), strict=True):
            self.register_memory(name, value)
        _hold(self, "initial", initial)
        _hold(self, "offset", 0.0 if offset is None else offset)
        self.schedule = schedule
        self.members = members
        self.spikes = spikes
        self.step_mode = step_mode

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _ReadoutState:
        (current,) = inputs
        return _ReadoutState(like(self.initial, current).expand(current.shape), 0, None)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _ReadoutState, record: Record | None
    ) -> tuple[Tensor, _ReadoutState]:
        (current,) = inputs
        y_seq, y = readout_sequence(
            current, state.y, state.t, self.spikes, self.schedule, self.offset, self.members
        )
        return y_seq, _ReadoutState(y, state.t + current.shape[0], state.shapes)

    def extra_repr(self) -> str:
        binary = f"{self.schedule!r}, offset={_show(self.offset)}, "
        return (
            f"initial={_show(self.initial)}, {binary if self.spikes == 'binary' else ''}"
            f"spikes={self.spikes!r}, step_mode={self.step_mode!r}"
        )


class _RunningMeanState(NamedTuple):
    total: Tensor
    t: int
    shapes: Shapes | None


class RunningMean(_Stateful):
    """The mean of all inputs since the last reset: the read-out of rate-coded networks."""

    State = _RunningMeanState

    def __init__(self, *, step_mode: str = "s") -> None:
        super().__init__()
        for name, value in zip(_RunningMeanState._fields, (None, 0, None), strict=True):
            self.register_memory(name, value)
        self.step_mode = step_mode

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _RunningMeanState:
        return _RunningMeanState(torch.zeros_like(inputs[0]), 0, None)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _RunningMeanState, record: Record | None
    ) -> tuple[Tensor, _RunningMeanState]:
        (x_seq,) = inputs
        y_seq, total = running_mean(x_seq, state.total, state.t)
        return y_seq, _RunningMeanState(total, state.t + x_seq.shape[0], state.shapes)
