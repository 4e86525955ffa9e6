"""signGD neurons as SpikingJelly nodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons.by_hand import (
    check_learnable,
    check_learned_zone,
    check_number,
    check_range,
    chosen_function,
    chosen_initial,
    chosen_steps,
    refuse,
)
from ...neurons.choice import Choice
from ...neurons.nonlinearities import Nonlinearity
from ...neurons.protocol import (
    at_least_float32,
    check_protocol,
    chosen_dead_zone,
    has_gradient,
    signgd_sequence,
    signgd_start,
)
from ...neurons.schedules import Schedule
from ...neurons.signgd import SignGDNeuron, SignGDParameters, SignGDState, signgd_choice
from .base import Made, Record, Shapes, held, hold, known_surrogate, show

# what users of SpikingJelly's neurons may look for
_INSTEAD = {
    "v_threshold": "a signGD neuron has no threshold; its step is the schedule's times scale=...",
    "v_reset": "v is the estimate of f(x) and is never set back. Leave it out, or pass None.",
    "detach_reset": "there is no reset whose gradient could be left out. Leave it out.",
    "tau": "v does not leak. Leave it out; the step sizes are schedule=...",
    "decay_input": "v does not leak. Leave it out.",
}
_OF_DYNAMICS = ("schedule", "momentum", "members", "scale", "resting", "dead_zone")


class _SignGDNodeState(NamedTuple):
    v: Tensor
    t: int
    buffer: Tensor | None
    x: tuple[Tensor, ...] | None
    rest: Tensor | None  # carries the gradient of v(0) (neurons/signgd/gradient.py)
    shapes: Shapes | None


class SignGDNode(Made):
    """signGD neuron of any function of one or several arguments (``neurons/signgd/step.py``).

    ``function`` is a row's name, a row or a callable; ``arguments`` are its parameters, such as
    ``{"negative_slope": 0.1}``. ``schedule`` and ``members`` are the step sizes and m, the number
    of signs of one step, of sizes eta, eta / 2, ...; their defaults are described in
    ``neurons/by_hand.py``. ``scale``, ``resting`` and ``dead_zone`` broadcast against v [N, *],
    ``initial_input`` and ``offset`` against an input, with a tuple of them for several inputs.
    ``v`` is the decoded output, ``x`` the tuple of the integrated inputs.

    ``spikes``: "decoded" v(t), of the outputs of a layer with its bias; or the spikes as hardware
    sends them: "signed" -eta(t) scale sigma(t), "binary" scale {0, 1}, "ternary" scale {-1, 0, 1},
    of single signs (``neurons/protocol.py``), between layers without bias. ``initial_input`` is
    then x(0): the bias of the layer before, plus W v(0) if the presynaptic neurons have a resting
    value. All neurons of a network with "binary" spikes have the same members.

    ``dead_zone``, theta in [0, 1), is a fraction of the step size: a neuron closer than that to its
    target is silent. 0 is the paper's neuron, with a sign at every step; None is ``sg.DEAD_ZONE``,
    but 0 with momentum and with "binary" spikes, which have none.

    An ``nn.Parameter`` stays one, another tensor becomes a buffer; ``learnable`` names those that
    are to become parameters, of scale, resting, initial_input, dead_zone and the arguments. Scales
    stay positive, dead zones in [0, 2 / 3].

    If an input or a parameter requires a gradient, outputs have the dithered one: v follows its
    target within reach (``neurons/signgd/gradient.py``). A ``surrogate_function`` is used in its
    place, with "signed" spikes or "decoded" values. With momentum there is none: backward raises.
    """

    State = _SignGDNodeState

    def __init__(
        self,
        function: str | Nonlinearity | Callable[..., Tensor] = "relu",
        schedule: Schedule | None = None,
        *,
        scale: float | Tensor = 1.0,
        resting: float | Tensor = 0.0,
        initial_input: float | Tensor | tuple[float | Tensor, ...] | None = None,
        spikes: str = "decoded",
        offset: float | Tensor | tuple[float | Tensor, ...] | None = None,
        arguments: Mapping[str, Any] | None = None,
        momentum: float = 0.0,
        members: int | None = None,
        dead_zone: float | Tensor | None = None,
        learnable: Iterable[str] = (),
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        v_reset: None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        **elsewhere: Any,
    ) -> None:
        super().__init__(
            surrogate_function=surrogate_function,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        owner = self._get_name()
        others = {"v_reset": v_reset, "detach_reset": detach_reset or None}
        refuse(owner, elsewhere | {k: a for k, a in others.items() if a is not None}, _INSTEAD)
        for name, value in (("scale", scale), ("resting", resting), ("momentum", momentum)):
            check_number(owner, name, value)
        schedule, members = chosen_steps(owner, schedule, members, spikes, momentum)
        dead_zone = chosen_dead_zone(dead_zone, spikes, momentum)
        options = (offset, momentum, members, dead_zone)
        check_protocol(owner, spikes, 0.0, *options)
        initial_input = chosen_initial(owner, initial_input, spikes)
        check_number(owner, "initial_input", initial_input)
        if surrogate_function is not None and not has_gradient(spikes, momentum):
            raise ValueError(
                f"{owner}: a surrogate gradient passes signed spikes or decoded values without "
                "momentum. Choose one of these, or leave surrogate_function out."
            )
        self._start: tuple[Tensor, ...] | None = None
        self.function = chosen_function(owner, function)
        if isinstance(self.function.function, nn.Module):
            self.function_module = self.function.function  # a child: moves, saves and loads
        self._arity = self.function.arity
        self.schedule = schedule
        self.spikes = spikes
        self.momentum = momentum
        self.members = members
        self._hold_all(
            {"scale": scale, "resting": resting, "dead_zone": dead_zone},
            {"initial_input": initial_input, "offset": 0.0 if offset is None else offset},
            arguments or {},
            learnable,
        )
        self._of_start = ("resting", "spikes", "_start", *self._initial_inputs)
        self._make()  # checked at birth
        if not isinstance(self.resting, Tensor):
            self._start_from(float(self.resting))

    def _hold_all(
        self,
        own: Mapping[str, Any],
        of_inputs: Mapping[str, Any],
        arguments: Mapping[str, Any],
        learnable: Iterable[str],
    ) -> None:
        known = ("scale", "resting", "dead_zone", "initial_input", *arguments)
        names = check_learnable(self._get_name(), learnable, known)
        check_learned_zone(self._get_name(), names, self.spikes, self.momentum)
        if "initial_input" in names and self.spikes == "decoded":
            raise InputError(
                f"{self._get_name()}: with spikes='decoded' there is no initial input to learn; "
                "learn the bias of the layer before."
            )
        for name, value in own.items():
            if hold(self, name, value, names):
                self._learns += (name,)
                check_range(self._get_name(), name, getattr(self, name))
        self._initial_inputs = self._hold_each("initial_input", of_inputs["initial_input"], names)
        self._offsets = self._hold_each("offset", of_inputs["offset"])
        self._arguments = {key: f"argument_{key}" for key in arguments}
        for key, value in arguments.items():
            name = f"argument_{key}"
            if hold(self, name, value, (name,) if key in names else ()):
                self._learns += (name,)

    @classmethod
    def of(cls, node: SignGDNeuron, spikes: str = "decoded") -> SignGDNode:
        return cls(
            node.function,
            node.schedule,
            scale=node.scale,
            resting=node.resting,
            initial_input=None if spikes == "decoded" else 0.0,  # ``start`` tells it
            spikes=spikes,
            arguments=node.arguments,
            momentum=node.momentum,
            members=node.members,
            dead_zone=node.dead_zone,
        )

    def start(self, *x: Tensor) -> None:
        """x(0), one for each argument, of the run that begins now; a reset forgets it."""
        self._start = x

    def reset(self) -> None:
        super().reset()
        self.__dict__["_start"] = None

    def _hold_each(self, name: str, value: Any, learnable: tuple[str, ...] = ()) -> tuple[str, ...]:
        if not isinstance(value, tuple):
            hold(self, name, value, learnable)
            return (name,)
        names = tuple(f"{name}_{k}" for k in range(len(value)))
        for key, item in zip(names, value, strict=True):
            hold(self, key, item, names if name in learnable else ())
        return names

    def _held(self, names: tuple[str, ...], inputs: int) -> tuple[float | Tensor, ...]:
        """The values under these names, one for each input; a single number counts for all."""
        values = tuple(getattr(self, name) for name in names)
        if len(values) == 1 and not isinstance(values[0], Tensor):
            values *= inputs
        if len(values) != inputs:
            raise InputError(
                f"{self._get_name()}: {inputs} inputs were passed, but there are {len(values)} "
                f"values of {names[0].removesuffix('_0')}. Pass a tuple with one for each input."
            )
        return values

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """A dead zone that is a number is saved as a tensor is; without one all is as before."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not isinstance(self.dead_zone, Tensor) and self.dead_zone:
            destination[prefix + "dead_zone"] = torch.tensor(self.dead_zone, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if (saved := state_dict.get(prefix + "_extra_state")) is not None:
            self._compare(saved)  # refused before anything is changed
        if not isinstance(self.dead_zone, Tensor):
            self._load_number(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _load_number(self, state_dict: dict[str, Any], prefix: str) -> None:
        """The dead zone that was saved as a number; what was saved without one had none."""
        key = prefix + "dead_zone"
        saved = state_dict.get(key)
        if isinstance(saved, Tensor) and saved.dim() == 0:
            theta, offset = float(state_dict.pop(key)), 0.0 if self.spikes == "binary" else None
            check_protocol(self._get_name(), self.spikes, 0.0, offset, dead_zone=theta)
            self.dead_zone = theta
        elif saved is None and prefix + "_extra_state" in state_dict:
            self.dead_zone = 0.0
        elif saved is None and self.dead_zone:
            warnings.warn(
                f"{self._get_name()}: the state_dict has no {key!r}, and this neuron has "
                f"dead_zone={self.dead_zone:.4g}. Neurons without a dead zone, such as all of "
                "earlier versions, are saved this way and send a sign at every step: create them "
                "with dead_zone=0. For the weights of a source network, nothing needs to be done.",
                stacklevel=2,
            )

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(zip(self._arguments, held(self, self._arguments.values()), strict=True))

    def _of_dynamics(self) -> Iterable[str]:
        return (*_OF_DYNAMICS, *self._arguments.values())

    def _dynamics(self, check: bool) -> SignGDParameters:
        return SignGDParameters(
            self.function,
            self.schedule,
            self._used("scale"),
            at_least_float32(self.resting),
            {key: at_least_float32(value) for key, value in self.arguments.items()},
            self.momentum,
            self.members,
            self._used("dead_zone"),
            check=check,
        )

    def _definition(self) -> dict[str, Any]:
        words = {k: v for k, v in self.arguments.items() if not isinstance(v, Tensor)}
        return {
            "function": self.function.name,
            "arguments": words,
            "schedule": self.schedule.to_dict(),
            "members": self.members,
            "momentum": self.momentum,
            "spikes": self.spikes,
        }

    def _numbers(self) -> tuple[str, ...]:
        return ("scale", "resting", *self._initial_inputs, *self._offsets)

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        if not isinstance(self.resting, Tensor):
            self.set_reset_value("v", float(self.resting))

    def _initial_state(self, inputs: tuple[Tensor, ...]) -> _SignGDNodeState:
        initial: tuple[float | Tensor, ...] = ()
        if self.spikes != "decoded":
            initial = self._start or self._held(self._initial_inputs, len(inputs))
        (v, t, buffer), x = signgd_start(inputs, self.dynamics, self.spikes, initial)
        return _SignGDNodeState(v, t, buffer, x, None, None)

    def choice(self, x: Tensor) -> Choice:
        gradient = self._surrogate()
        return signgd_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _surrogate(self) -> Callable[[Tensor], Tensor] | None:
        function = self.surrogate_function if torch.is_grad_enabled() else None
        return None if function is None else known_surrogate(function)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _SignGDNodeState, record: Record | None
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
            surrogate=self._surrogate(),
            keep=record is not None,
            rest=state.rest,
        )
        if record is not None:
            assert done.v_seq is not None
            record.append((done.v_seq, done.spike_seq))
        x = None if state.x is None else done.x
        return done.y, _SignGDNodeState(*done.state, x, done.rest, state.shapes)

    def extra_repr(self) -> str:
        parts = [self.function.name, repr(self.schedule)]
        initial = () if self.spikes == "decoded" else self._initial_inputs
        names = ["scale", "resting", *initial, *self._arguments.values()]
        if self.spikes == "binary":
            names += self._offsets
        parts += [f"{name}={show(getattr(self, name))}" for name in names]
        if self.momentum:
            parts.append(f"momentum={self.momentum}")
        if self.members > 1:
            parts.append(f"members={self.members}")
        if isinstance(self.dead_zone, Tensor) or self.dead_zone:
            parts.append(f"dead_zone={show(self.dead_zone)}")
        parts += [f"spikes={self.spikes!r}", f"step_mode={self.step_mode}"]
        return ", ".join([*parts, f"backend={self.shown_backend}"])
