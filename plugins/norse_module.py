"""What all Norse cells and layers of ours share: parameters, states, one step, a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import FormatError, InputError
from ..neurons.nonlinearities import Nonlinearity, nonlinearity
from ..neurons.protocol import state_dtype
from ..neurons.schedules import Schedule, schedule_from_dict
from . import simulator

with simulator("norse"):
    from norse.torch.module.snn import SNN, SNNCell


class Neuron(nn.Module):
    """A kind of neuron: pure functions of its parameters p and of what was made of them.

    ``dynamics`` makes and checks what the definition takes, once for each p.
    """

    Parameters: ClassVar[type[Any]]
    State: ClassVar[type[Any]]
    dt: float
    numbers: ClassVar[tuple[str, ...]] = ()  # of p, which may come as tensors of one element
    _layout: Any = None

    @classmethod
    def dynamics(cls, p: Any) -> Any:
        return None

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any, dynamics: Any) -> Any:
        """The state before a first step with these inputs, [B, ...] each."""
        raise NotImplementedError

    @classmethod
    def check(cls, inputs: tuple[Tensor, ...], state: Any) -> None:
        """Raises InputError where the state is not for a step with these inputs."""
        if state[0].shape != inputs[0].shape:
            raise stale(cls, inputs, state[0])

    @classmethod
    def sequence(
        cls, inputs: tuple[Tensor, ...], state: Any, p: Any, dynamics: Any
    ) -> tuple[Tensor, Any]:
        """Steps [T, B, ...] to ([T, B, ...], state)."""
        raise NotImplementedError

    @classmethod
    def feed_forward_step(
        cls, input_tensor: Tensor | tuple[Tensor, ...], state: Any, p: Any, dt: float = 0.001
    ) -> tuple[Tensor, Any]:
        """One step [B, ...]; no state is the one before the first step."""
        p = cls.Parameters() if p is None else p
        return cls._one_step(cls._inputs(input_tensor), state, p, cls.dynamics(p))

    @classmethod
    def _one_step(
        cls, inputs: tuple[Tensor, ...], state: Any, p: Any, dynamics: Any
    ) -> tuple[Tensor, Any]:
        state = cls._state(inputs, state, p, dynamics)
        y, state = cls.sequence(tuple(x.unsqueeze(0) for x in inputs), state, p, dynamics)
        return y[0], state

    @classmethod
    def _inputs(cls, input_tensor: Any, *, sequence: bool = False) -> tuple[Tensor, ...]:
        inputs = input_tensor if isinstance(input_tensor, tuple) else (input_tensor,)
        for x in inputs:
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_sparse:
                given = x.dtype if isinstance(x, Tensor) else type(x).__name__
                sparse = isinstance(x, Tensor) and x.is_sparse
                raise InputError(
                    f"{cls.__name__}: inputs are dense floating-point tensors, but one is "
                    f"{'sparse' if sparse else given}. Convert it with "
                    f"x.{'to_dense' if sparse else 'float'}()."
                )
        if sequence and any(x.dim() == 0 or not len(x) or len(x) != len(inputs[0]) for x in inputs):
            raise InputError(
                f"{cls.__name__}: a layer's input is [T, B, ...] with T >= 1, but it is "
                f"{[list(x.shape) for x in inputs]}. Use {cls.__name__}Cell for one step [B, ...]."
            )
        return inputs

    @classmethod
    def _state(cls, inputs: tuple[Tensor, ...], state: Any, p: Any, dynamics: Any) -> Any:
        """The state for a step with these inputs, in their precision and checked."""
        dtype = state_dtype(inputs)
        if state is None:
            return cls.start(tuple(x.to(dtype) for x in inputs), p, dynamics)
        if not isinstance(state, cls.State):
            raise InputError(
                f"{cls.__name__}: the state is what an earlier call returned, or None, but it is "
                f"{type(state).__name__}. A layer in Lift hands on the state of the module before; "
                "put layers into SequentialState as they are."
            )
        if state[0].device != inputs[0].device:
            raise InputError(
                f"{cls.__name__}: the state is on {state[0].device}, the input on "
                f"{inputs[0].device}. Pass state=None, or move the state's tensors."
            )
        cls.check(inputs, state)
        return cls.State(*(_each_tensor(value, lambda s: s.to(dtype)) for value in state))

    # -- parameters -----------------------------------------------------------------------------

    @property
    def p(self) -> Any:
        return self._current()[1]

    @p.setter
    def p(self, p: Any) -> None:
        for name in self.__dict__.get("_tensors", ()):
            delattr(self, name)
        self._tensors: list[str] = []
        p = p._replace(**{field: _number(self, field, getattr(p, field)) for field in self.numbers})
        self._layout = type(p)(*(self._hold(*item) for item in zip(p._fields, p, strict=True)))
        self._made: tuple[tuple[Tensor, ...], Any, Any] | None = None
        self._current()  # checked at birth

    def _hold(self, name: str, value: Any) -> Any:
        """The value with each tensor, which becomes the module's, replaced by its name."""
        if isinstance(value, tuple):
            return tuple(self._hold(f"{name}_{k}", item) for k, item in enumerate(value))
        if isinstance(value, Mapping):
            return {key: self._hold(f"{name}_{key}", item) for key, item in value.items()}
        if not isinstance(value, Tensor):
            return value
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value.detach().clone())
        self._tensors.append(name)
        return _Held(name)

    def _current(self) -> tuple[tuple[Tensor, ...], Any, Any]:
        """The tensors, p and dynamics, made anew where a tensor is not the one it was."""
        tensors = tuple(getattr(self, name) for name in self._tensors)
        made = self._made
        if made is None or any(a is not b for a, b in zip(tensors, made[0], strict=True)):
            held = dict(zip(self._tensors, tensors, strict=True))
            p = type(self._layout)(*(_filled(value, held) for value in self._layout))
            dynamics = None if any(a.is_meta for a in tensors) else self.dynamics(p)
            made = self._made = (tensors, p, dynamics)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        module = super()._apply(fn, recurse)
        self._made = None
        self._current()  # now, since torch.compile could not make it
        return module

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._made = None
        self._current()

    def get_extra_state(self) -> dict[str, Any]:
        """What of p is no tensor, as plain numbers and text."""
        fields = zip(self._layout._fields, self._layout, strict=True)
        # where it runs is no property of what is saved
        kept = {name: _plain(value) for name, value in fields if name != "backend"}
        return {"dt": self.dt, **kept}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        changes: dict[str, Any] = {}
        for name, now in zip(self._layout._fields, self._layout, strict=True):
            if name == "backend":
                continue
            if name not in state:
                raise FormatError(f"{self._get_name()}: the saved state has no {name!r}.")
            if state[name] == _plain(now):
                continue
            if name in ("function", "spikes") or _has_tensor(now) or _is_tensor(state[name]):
                raise FormatError(
                    f"{self._get_name()}: the saved neuron has {name}={state[name]!r}, this one "
                    f"{_plain(now)!r}. Make it with the parameters it was saved with."
                )
            saved = state[name]
            changes[name] = schedule_from_dict(saved) if name == "schedule" and saved else saved
        self.dt = state.get("dt", self.dt)
        if changes:
            self.p = self.p._replace(**changes)

    def extra_repr(self) -> str:
        fields = zip(self.p._fields, self.p, strict=True)
        return ", ".join(f"{name}={_shown(value)}" for name, value in fields)


class _Held(str):
    """The name of a tensor that a module holds."""


def _filled(value: Any, held: Mapping[str, Tensor]) -> Any:
    if isinstance(value, _Held):
        return held[value]
    if isinstance(value, tuple):
        return tuple(_filled(item, held) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, held) for key, item in value.items()}
    return value


def _number(owner: nn.Module, field: str, value: Any) -> Any:
    """A number that came as a tensor, as Norse's parameters do."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1 or value.requires_grad:
        raise ValueError(
            f"{type(owner).__name__}: {field} is one number that is not trained, but it is a "
            f"tensor of {list(value.shape)}{' with a gradient' if value.requires_grad else ''}. "
            "Scale the weights of the layer before instead."
        )
    return value.item()


def _plain(value: Any) -> Any:
    """JSON-able: a held tensor as a dictionary that says so."""
    if isinstance(value, _Held):
        return {"tensor": str(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Schedule):
        return value.to_dict()
    return nonlinearity(value).name


def _has_tensor(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    nested = isinstance(value, (tuple, list, Mapping))
    return isinstance(value, _Held) or (nested and any(map(_has_tensor, items)))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "tensor" in value


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    return value.name if isinstance(value, Nonlinearity) else repr(value)


def _each_tensor(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_each_tensor(item, fn) for item in value)
    return fn(value) if isinstance(value, Tensor) else value


def stale(cls: type, inputs: Iterable[Tensor], v: Tensor) -> InputError:
    return InputError(
        f"{cls.__name__}: a step is {[list(x.shape) for x in inputs]} now, but the state was made "
        f"for {list(v.shape)}. Pass state=None before feeding a batch of another shape."
    )


class Cell(Neuron, SNNCell):  # type: ignore[misc]
    """One step: ``cell(input [B, ...], state=None) -> (output [B, ...], state)``."""

    def __init__(self, p: Any = None, dt: float = 0.001) -> None:
        p = self.Parameters() if p is None else p
        super().__init__(self.feed_forward_step, self.initial_state, p, dt)

    def initial_state(self, input_tensor: Tensor | tuple[Tensor, ...]) -> Any:
        """The state before a first step with this input, [B, ...]."""
        _, p, dynamics = self._current()
        return self._state(self._inputs(input_tensor), None, p, dynamics)

    def forward(
        self, input_tensor: Tensor | tuple[Tensor, ...], state: Any = None
    ) -> tuple[Tensor, Any]:
        _, p, dynamics = self._current()
        return self._one_step(self._inputs(input_tensor), state, p, dynamics)


class Layer(Neuron, SNN):  # type: ignore[misc]
    """T steps: ``layer(input [T, B, ...], state=None) -> (output [T, B, ...], state)``.

    With ``record_states`` the returned state holds those after each step, [T, ...].
    """

    record_states: bool

    def __init__(self, p: Any = None, dt: float = 0.001, record_states: bool = False) -> None:
        p = self.Parameters() if p is None else p
        super().__init__(
            self.feed_forward_step, self.initial_state, p, dt, record_states=record_states
        )

    def initial_state(self, input_tensor: Tensor | tuple[Tensor, ...]) -> Any:
        """The state before a first step with this input, [T, B, ...]."""
        _, p, dynamics = self._current()
        first = tuple(x[0] for x in self._inputs(input_tensor, sequence=True))
        return self._state(first, None, p, dynamics)

    def forward(
        self, input_tensor: Tensor | tuple[Tensor, ...], state: Any = None
    ) -> tuple[Tensor, Any]:
        _, p, dynamics = self._current()
        inputs = self._inputs(input_tensor, sequence=True)
        state = self._state(tuple(x[0] for x in inputs), state, p, dynamics)
        if not self.record_states:
            return self.sequence(inputs, state, p, dynamics)
        outputs, states = [], []
        for t in range(inputs[0].shape[0]):
            y, state = self.sequence(tuple(x[t : t + 1] for x in inputs), state, p, dynamics)
            outputs.append(y)
            states.append(state)
        return torch.cat(outputs), merge_states(states)

    def step(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """One step, [B, ...], as the layer's cell."""
        _, p, dynamics = self._current()
        return self._one_step(self._inputs(inputs), state, p, dynamics)


def merge_states(states: list[Any]) -> Any:
    """States of one kind as one whose tensors are [T, ...] (a count of steps an int64 tensor)."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(states)
    if isinstance(first, int):
        return torch.tensor(states)
    if isinstance(first, tuple):
        fields = [merge_states(list(field)) for field in zip(*states, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    return first
