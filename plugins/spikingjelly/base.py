"""SpikingJelly node types: signGD, group and subgradient neurons, and what codes and decodes them.

Every module holds its state as memories (``functional.reset_net`` resets them), takes [N, *] in
``step_mode="s"`` and [T, N, *] in ``"m"``, and gives the same numbers in both. States are float32,
float64 for float64 inputs, whatever the input's type; the output has the input's type.

``spikes`` says what passes between the modules of one network: "signed", "binary", "ternary" or
"decoded" (``neurons/protocol.py``).

signGD and group neurons run by kernels where ``backend`` finds them, the same in both step modes
(``neurons/choice.py`` says what "auto", "cpu", "cupy" and "torch" mean); ``choice`` tells what
runs.

Written against what SpikingJelly 2.0.0 and 0.0.0.0.14 have in common: memories,
``materialize_states`` and functional forwards are 2.0.0's names, used by both here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import FormatError, InputError
from ...neurons.base import each_tensor
from ...neurons.by_hand import learned, within
from ...neurons.choice import BACKENDS, Choice, runs
from ...neurons.kernels.prepared import keep, unwatched
from ...neurons.protocol import at_least_float32, state_dtype
from ...neurons.rounding import rounded
from ...neurons.scan import scan
from ...neurons.surrogate import Surrogate
from .. import simulator

with simulator("spikingjelly"):
    from spikingjelly.activation_based import base, neuron, surrogate

_NUMBERS = (int, float, str, type(None))
Shapes = tuple[tuple[int, ...], ...]
Record = list[tuple[Tensor, Tensor | None]]  # v_seq and spike_seq of a call, [T, N, *]


class Stateful(base.MemoryModule):
    """A module that is its pure step, or its pure sequence of steps.

    Its memories are the fields of ``State``, whose ``shapes``, those of the inputs, is None until
    the first step. A subclass writes ``_step``, or ``_sequence``, of which a single step is then
    one of length 1, and ``_initial_state`` where it is not zeros.
    """

    State: ClassVar[type[Any]]
    _arity: int | None = 1

    def __init__(self, step_mode: str = "s", **options: Any) -> None:
        super().__init__(**options)
        for name in self.State._fields:
            if name not in self._memories:  # v is SpikingJelly's
                self.register_memory(name, 0 if name == "t" else None)
        self.step_mode = step_mode

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> Any:
        return self.State(torch.zeros_like(inputs[0]))

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

    def _checked(self, inputs: tuple[Any, ...], step_mode: str) -> Shapes:
        """The shapes of one step."""
        if not inputs or (self._arity is not None and len(inputs) != self._arity):
            raise InputError(
                f"{self._get_name()}: one input for each argument is needed, so "
                f"{self._arity or 'at least 1'}, but {len(inputs)} were passed. Call it as "
                "node(x1, x2) for a function of two arguments."
            )
        for x in inputs:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise InputError(
                    f"{self._get_name()}: inputs are floating-point tensors, but one is "
                    f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}. Convert it with "
                    "x.float()."
                )
        if step_mode == "s":
            return tuple([tuple(x.shape) for x in inputs])
        if not all([x.dim() and x.shape[0] and x.shape[0] == inputs[0].shape[0] for x in inputs]):
            raise InputError(
                f"{self._get_name()}: in step_mode 'm' an input is [T, N, *] with one T >= 1, but "
                f"the shapes are {[tuple(x.shape) for x in inputs]}. Set step_mode 's' "
                "(functional.set_step_mode) to feed one step [N, *]."
            )
        return tuple([tuple(x.shape[1:]) for x in inputs])

    def _start_of(self, inputs: tuple[Tensor, ...], shapes: Shapes, step_mode: str) -> Any:
        """The state before a first step."""
        dtype = state_dtype(inputs)
        first = inputs if step_mode == "s" else tuple([x[0] for x in inputs])
        return self._initial_state(tuple([x.to(dtype) for x in first]))._replace(shapes=shapes)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> Any:
        """Before the first step the states for this batch, then the same ones, checked."""
        shapes, state = self._checked(inputs, step_mode), self.State(*states)
        if state.shapes is None:
            return self._start_of(inputs, shapes, step_mode)
        if state.shapes != shapes:
            raise InputError(
                f"{self._get_name()}: a step is {list(shapes)} now, but the state was built for "
                f"{list(state.shapes)}. Reset the neuron (functional.reset_net) before feeding a "
                "batch of another shape."
            )
        device, dtype = inputs[0].device, state_dtype(inputs)

        def here(s: Tensor) -> Tensor:
            return s.to(device, dtype if s.is_floating_point() else s.dtype)

        return each_tensor(state, here)

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

    def reset(self) -> None:
        """As SpikingJelly's, which copies what they begin with: numbers need none."""
        if any([isinstance(value, Tensor) for value in self._memories_rv.values()]):
            super().reset()
        else:
            self._memories.update(self._memories_rv)

    def detach(self) -> None:
        for name, value in self._memories.items():
            self._memories[name] = each_tensor(value, Tensor.detach)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for name, value in self._memories.items():
            if isinstance(value, tuple):  # the tensors by themselves are SpikingJelly's to move
                self._memories[name] = each_tensor(value, fn)
        module: nn.Module = super()._apply(fn)
        return module


class Defined(Stateful):
    """A module whose state dict also holds its ``_definition``, as the bytes of a text.

    A dict without one, as of earlier versions, is loaded as it is.
    """

    def _definition(self) -> dict[str, Any]:
        """The parameters that are not tensors, as plain values by name: those of a state dict must
        be equal."""
        raise NotImplementedError

    def _numbers(self) -> tuple[str, ...]:
        """The attributes that are numbers or tensors, of which numbers are saved as a text."""
        return ()

    def get_extra_state(self) -> Tensor:
        numbers = {name: getattr(self, name) for name in self._numbers()}
        plain = {name: float(a) for name, a in numbers.items() if not isinstance(a, Tensor)}
        text = json.dumps({**self._definition(), "numbers": plain}, default=str)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """The numbers; ``_load_from_state_dict`` has compared the rest."""
        for name, value in _read(state).get("numbers", {}).items():
            if name in self._numbers() and not isinstance(getattr(self, name), Tensor):
                setattr(self, name, value)

    def _compare(self, state: Tensor) -> None:
        own, saved = _read(self.get_extra_state()), _read(state)
        for name, value in own.items():
            if name != "numbers" and name in saved and saved[name] != value:
                raise FormatError(
                    f"{self._get_name()}: the saved one has {name}={saved[name]!r}, this one "
                    f"{value!r}. Make it with the {name} it was saved with."
                )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        key = prefix + "_extra_state"
        if key in state_dict:
            self._compare(state_dict[key])
        else:
            state_dict[key] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Recording(Stateful, neuron.BaseNode):
    """A neuron that keeps ``v_seq`` and ``spike_seq`` [T, N, *] if ``store_v_seq``.

    Each call in step_mode 'm' replaces them; in 's' a step is appended, until the next reset.
    ``spike_seq`` is bool, uint8 for the m bits of several signs a step (the first one's the
    highest), None for neurons whose spikes are graded. Of signGD neurons with a dead zone it is
    sigma in {-1, 0, 1}, int8, or d of several signs, int16: what a raster shows.
    """

    v: Any  # Tensor, a number before the first step

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"v_reset": None, "surrogate_function": None, **options})

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
        self.__dict__.update(v_seq=None, spike_seq=None)  # past three __setattr__

    def detach(self) -> None:
        super().detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def _start_from(self, v: float) -> None:
        self.v = v
        self.set_reset_value("v", v)


class Kernel(Recording):
    """A neuron with a choice of ``backend`` (``neurons/choice.py``), assigned at any time.

    ``functional.set_backend`` of 0.0.0.0.14 does so for a whole network.
    """

    def __init__(self, *, backend: str = "auto", **options: Any) -> None:
        super().__init__(**options)
        self.backend = backend

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

    @property
    def shown_backend(self) -> str:
        """What runs on the device of the state, and before there is one on a CPU."""
        device = self.v.device.type if isinstance(self.v, Tensor) else "cpu"
        return runs(self.backend, device)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        raise NotImplementedError


class Made(Defined, Kernel):
    """A neuron with ``dynamics``, the definition's parameters, made again where one changes."""

    _made: tuple[Sequence[Any], Any] | None = None  # of what, and the dynamics
    _of_start: tuple[str, ...] = ()  # the attributes that a state before a first step is made of
    _learns: tuple[str, ...] = ()  # the attributes that are nn.Parameter

    def _of_dynamics(self) -> Iterable[str]:
        """The attributes that the dynamics are made of."""
        raise NotImplementedError

    def _dynamics(self, check: bool) -> Any:
        raise NotImplementedError

    @property
    def dynamics(self) -> Any:
        """The definition's parameters, with the tensors of the module."""
        if self._learns:  # a parameter changes in place, and what it is used as has a graph
            return self._dynamics(check=False)
        of, made = held(self, self._of_dynamics()), self._made
        if made is None or not unchanged(of, made[0]):
            made = self._made = (of, self._dynamics(check=True))
        return made[1]

    def _start_of(self, inputs: tuple[Tensor, ...], shapes: Shapes, step_mode: str) -> Any:
        """Kept where it depends on shapes, types and numbers alone; it is never changed in
        place."""
        of = held(self, self._of_start)
        if self._learns or not (all([isinstance(value, _NUMBERS) for value in of]) and unwatched()):
            return super()._start_of(inputs, shapes, step_mode)
        where = (inputs[0].device, torch.is_inference_mode_enabled())
        key, known = (*of, shapes, state_dtype(inputs), *where), self.dynamics.ready
        if (state := known.get(key)) is None:
            state = super()._start_of(inputs, shapes, step_mode)
            keep(known, key, state)
        return state

    def _make(self) -> None:
        """The dynamics now, since torch.compile cannot make them; not of tensors without values."""
        self._made = None
        own = (*self.buffers(recurse=False), *self.parameters(recurse=False))
        if any(tensor.is_meta for tensor in own):
            return
        if self._learns:
            with torch.no_grad():
                self._dynamics(check=True)
        else:
            self.dynamics  # noqa: B018

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        module = super()._apply(fn, recurse)
        self._make()
        return module

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._make()

    def _used(self, name: str) -> Any:
        """A number or tensor as it counts: in float32 at least, what is learned in its range."""
        value = at_least_float32(getattr(self, name))
        return within(name, value) if name in self._learns else value


def _read(state: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(state.tolist()))
    return found


def known_surrogate(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
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


def same(a: Any, b: Any) -> bool:
    """Whether a value that a module was made of is still the one, a tensor the very same."""
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)


def unchanged(now: Sequence[Any], made_of: Sequence[Any]) -> bool:
    """Whether these are the values that a module was made of."""
    return all(map(is_, now, made_of)) or all(map(same, now, made_of))


def hold(module: nn.Module, name: str, value: Any, learnable: Sequence[str] = ()) -> bool:
    """A tensor becomes a buffer, a copy that is the module's own; a number stays a number.

    What is an nn.Parameter stays that one, what is ``learnable`` becomes one. Returns whether it
    is one.
    """
    if name in learnable and not isinstance(value, nn.Parameter):
        value = nn.Parameter(torch.as_tensor(value, dtype=_wide(value)).detach().clone())
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
        return True
    if learned(value):
        raise InputError(
            f"{module._get_name()}: {name} is a tensor with a gradient, which would be lost. Pass "
            "an nn.Parameter to train it, or value.detach()."
        )
    if isinstance(value, Tensor):
        module.register_buffer(name, value.clone())
    else:
        setattr(module, name, value)
    return False


def _wide(value: Any) -> torch.dtype:
    return value.dtype if isinstance(value, Tensor) else torch.float32


def held(module: nn.Module, names: Iterable[str]) -> list[Any]:
    """What ``hold`` put there, past the three ``__getattr__`` of a SpikingJelly module."""
    if torch.compiler.is_compiling():
        return [getattr(module, name) for name in names]
    own, buffers = module.__dict__, module._buffers
    return [
        own[name] if name in own else buffers[name] if name in buffers else getattr(module, name)
        for name in names
    ]


def show(value: Any) -> str:
    return f"Tensor{list(value.shape)}" if isinstance(value, Tensor) else rounded(value)
