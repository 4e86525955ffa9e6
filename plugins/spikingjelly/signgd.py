"""signGD neurons as SpikingJelly nodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons.choice import Choice
from ...neurons.nonlinearities import Nonlinearity, nonlinearity
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
from .base import Made, Record, Shapes, held, hold, known_surrogate, show, unchanged

_OF_DYNAMICS = ("schedule", "momentum", "members", "scale", "resting", "dead_zone")


class _SignGDNodeState(NamedTuple):
    v: Tensor
    t: int
    buffer: Tensor | None
    x: tuple[Tensor, ...] | None
    shapes: Shapes | None


class SignGDNode(Made):
    """signGD neuron of any function of one or several arguments (``neurons/signgd.py``).

    ``function`` is a row's name, a row or a callable; ``arguments`` are its parameters, such as
    ``{"negative_slope": 0.1}``. ``scale``, ``resting`` and ``dead_zone`` broadcast against v
    [N, *], ``initial_input`` and ``offset`` against an input, with a tuple of them for several
    inputs. Tensors become buffers. ``v`` is the decoded output, ``x`` the tuple of the integrated
    inputs. ``members``, m, is the number of signs of one step, of sizes eta, eta / 2, ...; all
    neurons of a network with "binary" spikes have the same.

    ``dead_zone``, theta in [0, 1), is a part of a step: a neuron nearer than that to its target is
    silent. 0 is the paper's neuron, with a sign at every step; None is
    ``sg.DEAD_ZONE``, but 0 with momentum and with "binary" spikes, which have none.
    ``spikes``: "signed" -eta(t) scale sigma(t), "binary" scale {0, 1}, "ternary"
    scale {-1, 0, 1}, of single signs, or "decoded" v(t) (``neurons/protocol.py``).

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
        dead_zone: float | Tensor | None = None,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            surrogate_function=surrogate_function,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
        )
        dead_zone = chosen_dead_zone(dead_zone, spikes, momentum)
        options = (initial_input, offset, momentum, members, dead_zone)
        check_protocol(self._get_name(), spikes, *options)
        if surrogate_function is not None and not has_gradient(spikes, momentum):
            raise ValueError(
                f"{self._get_name()}: a gradient passes signed spikes or decoded values without "
                'momentum. Choose spikes="signed", or leave surrogate_function out.'
            )
        self._start: tuple[Tensor, ...] | None = None
        self.function = nonlinearity(function)
        if isinstance(self.function.function, nn.Module):
            self.function_module = self.function.function  # a child: moves, saves and loads
        self._arity = self.function.arity
        self.schedule = schedule
        self.spikes = spikes
        self.momentum = momentum
        self.members = members
        hold(self, "scale", scale)
        hold(self, "resting", resting)
        hold(self, "dead_zone", dead_zone)
        self._initial_inputs = self._hold_each("initial_input", initial_input)
        self._of_start = ("resting", "spikes", "_start", *self._initial_inputs)
        self._offsets = self._hold_each("offset", 0.0 if offset is None else offset)
        self._arguments = {key: f"argument_{key}" for key in arguments or {}}
        for key, value in (arguments or {}).items():
            hold(self, f"argument_{key}", value)
        self._make()  # checked at birth
        if not isinstance(resting, Tensor):
            self._start_from(float(resting))

    @classmethod
    def of(cls, node: SignGDNeuron, spikes: str = "decoded") -> SignGDNode:
        return cls(
            node.function,
            node.schedule,
            scale=node.scale,
            resting=node.resting,
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

    def _hold_each(self, name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, tuple):
            hold(self, name, value)
            return (name,)
        names = tuple(f"{name}_{k}" for k in range(len(value)))
        for key, item in zip(names, value, strict=True):
            hold(self, key, item)
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

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """A dead zone that is a number is saved as a tensor is; without one all is as before."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not isinstance(self.dead_zone, Tensor) and self.dead_zone:
            destination[prefix + "dead_zone"] = torch.tensor(self.dead_zone, dtype=torch.float64)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
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
        elif saved is None and self.dead_zone:
            warnings.warn(
                f"{self._get_name()}: the state_dict has no {key!r}, and this neuron has dead_zone="
                f"{self.dead_zone:.4g}. Neurons without one, as all of earlier versions, are saved "
                "so, and send a sign at every step: make them with dead_zone=0. Weights of a "
                "source network need nothing.",
                stacklevel=2,
            )

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(zip(self._arguments, held(self, self._arguments.values()), strict=True))

    @property
    def dynamics(self) -> SignGDParameters:
        """The definition's parameters, with the tensors of the buffers."""
        of = held(self, (*_OF_DYNAMICS, *self._arguments.values()))
        made = self._made
        if made is None or not unchanged(of, made[0]):
            dynamics = SignGDParameters(
                self.function,
                self.schedule,
                at_least_float32(self.scale),
                at_least_float32(self.resting),
                {key: at_least_float32(value) for key, value in self.arguments.items()},
                self.momentum,
                self.members,
                at_least_float32(self.dead_zone),
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
        gradient = None if function is None else known_surrogate(function)
        return signgd_choice(self.backend, x, self.dynamics, gradient, self.store_v_seq)

    def _sequence(
        self, inputs: tuple[Tensor, ...], state: _SignGDNodeState, record: Record | None
    ) -> tuple[Tensor, _SignGDNodeState]:
        function = self.surrogate_function
        if not torch.is_grad_enabled():
            return self._run_sequence(inputs, state, record, None)
        if function is None:
            with torch.no_grad():
                return self._run_sequence(inputs, state, record, None)
        return self._run_sequence(inputs, state, record, known_surrogate(function))

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
        parts += [f"{name}={show(getattr(self, name))}" for name in names]
        if self.momentum:
            parts.append(f"momentum={self.momentum}")
        if self.members > 1:
            parts.append(f"members={self.members}")
        if isinstance(self.dead_zone, Tensor) or self.dead_zone:
            parts.append(f"dead_zone={show(self.dead_zone)}")
        return ", ".join([*parts, f"spikes={self.spikes!r}", f"step_mode={self.step_mode!r}"])
