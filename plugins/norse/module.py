"""The base of the Norse cells and layers: parameters, states, one step, a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import FormatError, InputError
from ...neurons.base import each_tensor, tensors_in
from ...neurons.by_hand import RANGES, check_learnable, check_range, learned
from ...neurons.choice import runs
from ...neurons.nonlinearities import nonlinearity
from ...neurons.protocol import state_dtype
from .. import simulator
from .parameters import (
    Held,
    count_of,
    filled,
    has_tensor,
    hold_tensors,
    holds_tensors,
    number_of,
    parameter_of,
    plain_of,
    shown,
    told,
    wrong_class,
)

with simulator("norse"):
    from norse.torch.module.snn import SNN, SNNCell


_Held = Held  # as modules that earlier versions pickled know it
# what a neuron is, where scale, resting value and threshold say how large: never loaded
DEFINING = ("function", "schedule", "members", "momentum", "spikes", "signed", "averaged", "node")


class Neuron(nn.Module):
    """A kind of neuron: pure functions of inputs, a state and parameters p.

    A module holds the tensors of p as buffers, or as parameters where they are ``nn.Parameter``,
    and puts p together at every call.
    """

    Parameters: ClassVar[type[Any]]
    State: ClassVar[type[Any] | tuple[type[Any], ...]]
    numbers: ClassVar[tuple[str, ...]] = ()  # of p, which may come as tensors of one element
    counts: ClassVar[tuple[str, ...]] = ()  # of p, integers, likewise
    learns: ClassVar[tuple[str, ...]] = ()  # of p, which ``learnable`` may name
    # of p, that stay in a range of ``neurons/by_hand.py`` where they are learned, by its name
    ranges: ClassVar[Mapping[str, str]] = {}
    # of p, that earlier versions had not and did not save: what their neurons did
    later: ClassVar[Mapping[str, Any]] = {}
    dt: float

    # -- what a kind of neuron says -------------------------------------------------------------

    @classmethod
    def check_parameters(cls, p: Any) -> None:
        """Raises ValueError, InputError or BackendUnavailable for a p that cannot be."""

    @classmethod
    def start(cls, inputs: tuple[Tensor, ...], p: Any) -> Any:
        """The state before a first step with these inputs, [B, ...] each; zeros unless said."""
        return cls.State(torch.zeros_like(inputs[0]))  # type: ignore[operator]

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: Any) -> None:
        """Raises InputError where the state is not for a step with these inputs."""
        if state[0].shape != inputs[0].shape:
            raise stale(cls, inputs, state[0])

    @classmethod
    def sequence(cls, inputs: tuple[Tensor, ...], state: Any, p: Any) -> tuple[Tensor, Any]:
        """Steps [T, B, ...] to ([T, B, ...], state)."""
        raise NotImplementedError

    # -- one step -------------------------------------------------------------------------------

    @classmethod
    def feed_forward_step(
        cls, input_tensor: Tensor | tuple[Tensor, ...], state: Any, p: Any, dt: float = 0.001
    ) -> tuple[Tensor, Any]:
        """One step [B, ...]; no state is the one before the first step."""
        p = cls._normal(cls.given(p))
        cls.check_parameters(p)
        return cls._one_step(cls._inputs(input_tensor), state, p)

    @classmethod
    def _one_step(
        cls, inputs: tuple[Tensor, ...], state: Any, p: Any, *made: Any
    ) -> tuple[Tensor, Any]:
        state = cls._state(inputs, state, p, *made)
        y, state = cls.sequence(tuple(x.unsqueeze(0) for x in inputs), state, p, *made)
        return y[0], state

    def _made(self, p: Any) -> tuple[Any, ...]:
        """What ``start`` and ``sequence`` would make of p at every call, if a module keeps it."""
        return ()

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
    def _state(cls, inputs: tuple[Tensor, ...], state: Any, p: Any, *made: Any) -> Any:
        """The state for a step with these inputs, in their precision and checked."""
        dtype = state_dtype(inputs)
        if state is None:
            return cls.start(tuple([x.to(dtype) for x in inputs]), p, *made)
        if not isinstance(state, cls.State):
            raise InputError(
                f"{cls.__name__}: the state is what an earlier call returned, or None, but it is "
                f"{type(state).__name__}. A layer in Lift passes on the state of the module "
                "before; put layers directly into SequentialState."
            )
        for value in tensors_in(state):
            if value.device != inputs[0].device:
                raise InputError(
                    f"{cls.__name__}: the state is on {value.device}, the input on "
                    f"{inputs[0].device}. Pass state=None, or move the state's tensors."
                )
        cls.check_state(inputs, state)
        return each_tensor(state, lambda s: s.to(dtype) if s.is_floating_point() else s)

    # -- parameters -----------------------------------------------------------------------------

    @classmethod
    def is_first(cls, value: Any) -> bool:
        """Whether a value in the place of p is meant as the first field of ``Parameters``."""
        return False

    @classmethod
    def given(cls, p: Any, fields: Mapping[str, Any] | None = None) -> Any:
        """p; the defaults for None; for ``GroupNeuron(4)`` those with this first field.

        ``fields`` are others of its fields, ``GroupNeuron(4, v_th=0.5)``.
        """
        for name in fields or ():
            if name not in cls.Parameters._fields:
                raise TypeError(
                    f"{cls.__name__}() got an unexpected keyword argument {name!r}; its parameters "
                    f"are {', '.join(cls.Parameters._fields)}."
                )
        if p is None or cls.is_first(p):
            p = cls.Parameters() if p is None else cls.Parameters(p)
        if not isinstance(p, cls.Parameters):
            raise wrong_class(cls, p)
        return p._replace(**(fields or {}))

    @classmethod
    def _behind(cls, p: Any, behind: tuple[Any, ...], dt: float) -> float:
        """dt, which stands behind parameters as Norse has it, but not behind their first field."""
        if not behind:
            return dt
        if len(behind) > 1 or cls.is_first(p):
            name = "dt" if len(cls.Parameters._fields) < 2 else cls.Parameters._fields[1]
            raise TypeError(
                f"{cls.__name__}: {', '.join(map(repr, behind))} follow {p!r}, but only p, or p "
                f"and dt, may be positional. Pass the others by name: {cls.__name__}({p!r}, "
                f"{name}=...)."
            )
        return behind[0]  # type: ignore[no-any-return]

    @classmethod
    def learning(cls, p: Any, learnable: Iterable[str]) -> Any:
        """p with the values of these names, numbers or tensors, as parameters to be trained."""
        p = cls._normal(p)
        arguments = dict(getattr(p, "arguments", None) or {})
        names = check_learnable(cls.__name__, learnable, (*cls.learns, *arguments))
        of_f = {key: parameter_of(value) for key, value in arguments.items() if key in names}
        own = {name: parameter_of(getattr(p, name)) for name in names if name in cls.learns}
        p = p._replace(**own, **({"arguments": {**arguments, **of_f}} if of_f else {}))
        for name, known in cls.ranges.items():
            check_range(cls.__name__, known, getattr(p, name))
        return p

    @classmethod
    def _normal(cls, p: Any) -> Any:
        """p with numbers that came as tensors, as Norse's parameters do, as numbers."""
        if not isinstance(p, cls.Parameters):
            raise wrong_class(cls, p)
        given = p._asdict()
        return p._replace(
            **{name: number_of(cls, name, given[name]) for name in cls.numbers},
            **{name: count_of(cls, name, given[name]) for name in cls.counts},
        )

    @property
    def p(self) -> Any:
        layout = self._layout
        given = {k: filled(getattr(layout, k), partial(getattr, self)) for k in self._with_tensors}
        return layout._replace(**given) if given else layout

    @p.setter
    def p(self, p: Any) -> None:
        p = self._normal(p)
        held: dict[str, Tensor] = {}
        layout = type(p)(
            *(hold_tensors(self, name, value, held) for name, value in p._asdict().items())
        )
        if not any(a.is_meta for a in held.values()):
            self.check_parameters(p)
        for name in self.__dict__.get("_tensors", ()):  # of the p before, which was whole till here
            delattr(self, name)
        self._tensors = list(held)
        self._with_tensors = [k for k, v in layout._asdict().items() if holds_tensors(v)]
        self._layout = layout
        self._hold_function(getattr(p, "function", None))
        for name, value in held.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value.clone())

    def _hold_function(self, function: Any) -> None:
        """A function that is a module becomes a child: it moves, trains, is saved and loaded."""
        self._modules.pop("function_module", None)
        if function is not None and isinstance(
            inside := nonlinearity(function).function, nn.Module
        ):
            self.function_module = inside

    def get_extra_state(self) -> dict[str, Any]:
        """The fields of p that are not tensors, as plain numbers and text, without the backend."""
        fields = self._layout._asdict().items()
        return {"dt": self.dt, **{k: plain_of(value) for k, value in fields if k != "backend"}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._layout = self._layout._replace(**self._changes(state))
        self.dt = state.get("dt", self.dt)

    def _changes(self, state: dict[str, Any], where: str = "") -> dict[str, Any]:
        """What the saved numbers and texts change of p, or a FormatError: what a neuron computes,
        its steps and its code are not changed."""
        changes: dict[str, Any] = {}
        owner = f"{self._get_name()} at {where!r}" if where else self._get_name()
        for name, now in self._layout._asdict().items():
            if name == "backend":
                continue
            if name not in state and name not in self.later:
                raise FormatError(f"{owner}: the saved state has no {name!r}.")
            saved, mine = state.get(name, self.later.get(name)), plain_of(now)
            if saved == mine:
                continue
            if name in DEFINING or has_tensor(mine) or has_tensor(saved):
                raise FormatError(
                    f"{owner}: the saved neuron has {name}={told(saved)}, this one "
                    f"{told(mine)}. Make it with the parameters it was saved with."
                )
            changes[name] = saved
        return changes

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """What is learned is saved as it counts, in its range, where it then also is."""
        for name, known in self.ranges.items():
            if isinstance(value := getattr(self, name, None), nn.Parameter) and not value.is_meta:
                value.data.clamp_(*RANGES[known])
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is not None:  # refused before anything is changed
            loaded = {name: state_dict.get(prefix + name) for name in self._tensors}
            same = all(
                isinstance(a, Tensor) and a.shape == getattr(self, name).shape and not a.is_meta
                for name, a in loaded.items()
            )
            layout = self._layout._replace(**self._changes(extra, prefix.rstrip(".")))
            if same:  # otherwise torch says what does not fit
                as_mine = {k: self._like_mine(k, a) for k, a in loaded.items()}
                values = [filled(value, as_mine.__getitem__) for value in layout]
                self.check_parameters(type(layout)(*values))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _like_mine(self, name: str, loaded: Any) -> Any:
        """A parameter where mine is one: it then counts within its range."""
        learns = isinstance(getattr(self, name), nn.Parameter) and loaded.is_floating_point()
        return nn.Parameter(loaded) if learns else loaded

    def extra_repr(self) -> str:
        """As Norse's, with the shapes of tensors in the place of their values."""
        p = self.p._asdict()
        if "backend" in p:
            held = (*self.parameters(), *self.buffers())
            device = held[0].device.type if held else "cpu"
            p["backend"] = runs(p["backend"], device)
        fields = [f"{name}={shown(value)}" for name, value in p.items()]
        parts = [f"p={self.Parameters.__name__}({', '.join(fields)})", f"dt={self.dt}"]
        if getattr(self, "record_states", False):
            parts.append("record_states=True")
        return ", ".join(parts)


def stale(cls: type, inputs: Iterable[Tensor], v: Tensor) -> InputError:
    shapes = [list(x.shape) for x in inputs]
    if list(v.shape[1:]) in shapes:
        fix = "If these are recorded states, take the last: each field's [-1], and the last t."
    else:
        fix = "Pass state=None before feeding a batch of another shape."
    return InputError(
        f"{cls.__name__}: a step is {shapes} now, but the state was made for {list(v.shape)}. {fix}"
    )


class Cell(Neuron, SNNCell):  # type: ignore[misc]
    """One step: ``cell(input [B, ...], state=None) -> (output [B, ...], state)``."""

    def __init__(
        self,
        p: Any = None,
        *behind: float,
        dt: float = 0.001,
        learnable: Iterable[str] = (),
        **fields: Any,
    ) -> None:
        dt = self._behind(p, behind, dt)
        p = self.learning(self.given(p, fields), learnable)
        super().__init__(self.feed_forward_step, self.initial_state, p, dt)

    def initial_state(self, input_tensor: Tensor | tuple[Tensor, ...]) -> Any:
        """The state before a first step with this input, [B, ...]."""
        return _own(self._state(self._inputs(input_tensor), None, self.p))

    def forward(
        self, input_tensor: Tensor | tuple[Tensor, ...], state: Any = None
    ) -> tuple[Tensor, Any]:
        p = self.p
        return self._one_step(self._inputs(input_tensor), state, p, *self._made(p))


class Layer(Neuron, SNN):  # type: ignore[misc]
    """T steps: ``layer(input [T, B, ...], state=None) -> (output [T, B, ...], state)``.

    With ``record_states`` the returned state holds those after each step, [T, ...].
    """

    record_states: bool

    def __init__(
        self,
        p: Any = None,
        *behind: float,
        dt: float = 0.001,
        record_states: bool = False,
        learnable: Iterable[str] = (),
        **fields: Any,
    ) -> None:
        dt = self._behind(p, behind, dt)
        p = self.learning(self.given(p, fields), learnable)
        super().__init__(
            self.feed_forward_step, self.initial_state, p, dt, record_states=record_states
        )

    def initial_state(self, input_tensor: Tensor | tuple[Tensor, ...]) -> Any:
        """The state before a first step with this input, [T, B, ...]."""
        first = tuple(x[0] for x in self._inputs(input_tensor, sequence=True))
        return _own(self._state(first, None, self.p))

    def forward(
        self, input_tensor: Tensor | tuple[Tensor, ...], state: Any = None
    ) -> tuple[Tensor, Any]:
        p, inputs = self.p, self._inputs(input_tensor, sequence=True)
        made = self._made(p)
        state = self._state(tuple([x[0] for x in inputs]), state, p, *made)
        if not self.record_states:
            return self.sequence(inputs, state, p, *made)
        outputs, states = [], []
        for t in range(inputs[0].shape[0]):
            y, state = self.sequence(tuple(x[t : t + 1] for x in inputs), state, p, *made)
            outputs.append(y)
            states.append(state)
        return torch.cat(outputs), merge_states(states)

    def step(self, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        """One step, [B, ...], as the layer's cell."""
        p = self.p
        return self._one_step(self._inputs(inputs), state, p, *self._made(p))


class Dynamic(Neuron):
    """A kind with ``dynamics``, the definition's parameters, which ``start`` and ``sequence`` may
    be handed: a module keeps them as long as its p stays as it is."""

    _kept: tuple[tuple[Any, ...], Any] | None = None  # of what, and the dynamics

    @classmethod
    def dynamics(cls, p: Any, check: bool = False) -> Any:
        raise NotImplementedError

    def _made(self, p: Any) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():
            return ()
        of = (*p, *(getattr(p, "arguments", None) or {}).values())
        kept = self._kept
        if kept is None or len(of) != len(kept[0]) or not all(map(is_, of, kept[0])):
            # what is made of half precision, or to stay in a range, does not follow its tensor
            made = any(isinstance(a, Tensor) and (a.element_size() < 4 or learned(a)) for a in of)
            if made:
                return ()
            kept = (of, self.dynamics(p))
            self.__dict__["_kept"] = kept
        return (kept[1],)


def _own(state: Any) -> Any:
    """A state that shares no memory with the parameters it was made of."""
    return each_tensor(state, Tensor.clone)


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
