"""signGD neurons as Norse has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons import signgd
from ...neurons.by_hand import within
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
from ...neurons.schedules import ExponentialSchedule, Schedule
from ...neurons.surrogate import Surrogate
from .common import check_backend, check_schedule, of_arity, surrogate, trains
from .module import Cell, Dynamic, Layer, stale


class SignGDParameters(NamedTuple):
    """Parametrization of signGD neurons.

    Parameters:
        function (str | Nonlinearity | Callable): f, a row of ``NONLINEARITIES``, its name, or a
            callable of one or several tensors
        schedule (Schedule): the step sizes eta(t); the default is the published choice
        scale (float | Tensor): unit of the steps, positive, broadcasts against v [B, ...]
        resting (float | Tensor): v(0), broadcasts against v
        initial_input (float | Tensor | tuple): x(0), the bias of the layer before, broadcasts
            against an input; a tuple for several inputs
        spikes (str): what is sent, "signed" -eta(t) scale sigma(t), "binary" scale {0, 1},
            "ternary" scale {-1, 0, 1}, of single signs, or "decoded" v(t)
            (``neurons/protocol.py``)
        offset (float | Tensor | tuple): W (scale 1) of the layer before, for "binary" alone
        arguments (Mapping): parameters of f, such as ``{"negative_slope": 0.1}``
        momentum (float): of the step, 0 in the paper
        method (str): Norse's method for the gradient of a spike in v - f(x)
        alpha (float): Norse's hyper parameter of that gradient
        backend (str): what runs the neurons, "auto", "cpu", "cupy" or "torch"
        members (int): m, the signs of one step, of sizes eta, eta / 2, ...; at most 8, with a dead
            zone 12, without momentum, and the same for all neurons of a network with "binary"
            spikes
        dead_zone (float | Tensor): theta, a part of a step in [0, 1), broadcasts against v: a
            member is silent where v is within theta of its step of f(x); 0 is the paper's neuron,
            a sign at every step. None is ``sg.DEAD_ZONE``, but 0 with momentum and
            with "binary" spikes, which have none
    """

    function: str | Nonlinearity | Callable[..., Tensor] = "relu"
    schedule: Schedule = ExponentialSchedule(0.15, 0.95)
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    initial_input: float | Tensor | tuple[float | Tensor, ...] = 0.0
    spikes: str = "signed"
    offset: float | Tensor | tuple[float | Tensor, ...] | None = None
    arguments: Mapping[str, Any] | None = None
    momentum: float = 0.0
    method: str = "super"
    alpha: float = 100.0
    backend: str = "auto"
    members: int = 1
    dead_zone: float | Tensor | None = None


class SignGDState(NamedTuple):
    """State of signGD neurons.

    Parameters:
        v (Tensor): decoded output [B, ...]
        t (int): steps done
        x (tuple[Tensor, ...]): the integrated inputs, None where decoded values pass
        buffer (Tensor): the momentum's memory, None without
    """

    v: Tensor
    t: int = 0
    x: tuple[Tensor, ...] | None = None
    buffer: Tensor | None = None


class _SignGD(Dynamic):
    Parameters = SignGDParameters
    State = SignGDState
    numbers = ("momentum", "alpha")
    counts = ("members",)
    later = {"members": 1, "dead_zone": 0.0}

    @classmethod
    def check_parameters(cls, p: SignGDParameters) -> None:
        options = (p.initial_input, p.offset, p.momentum, p.members, p.dead_zone)
        check_protocol(cls.__name__, p.spikes, *options)
        check_schedule(cls.__name__, p.schedule)
        surrogate(p.method, p.alpha)
        check_backend(cls.__name__, p.backend)
        cls.dynamics(p, check=True)

    @classmethod
    def _normal(cls, p: SignGDParameters) -> SignGDParameters:
        """p with the dead zone that is meant, so that it is also what is saved."""
        p = super()._normal(p)
        theta = chosen_dead_zone(p.dead_zone, p.spikes, p.momentum)
        signgd.check_dead_zone_type(cls.__name__, theta)
        return p._replace(dead_zone=theta)

    @classmethod
    def dynamics(cls, p: SignGDParameters, check: bool = False) -> signgd.SignGDParameters:
        """What the definition takes, made of p's tensors as they are now."""
        arguments = {key: at_least_float32(value) for key, value in (p.arguments or {}).items()}
        return signgd.SignGDParameters(
            nonlinearity(p.function),
            p.schedule,
            _used("scale", p.scale),
            at_least_float32(p.resting),
            arguments,
            p.momentum,
            p.members,
            _used("dead_zone", p.dead_zone),
            check=check,
        )

    @classmethod
    def start(
        cls,
        inputs: tuple[Tensor, ...],
        p: SignGDParameters,
        dynamics: signgd.SignGDParameters | None = None,
    ) -> SignGDState:
        dynamics = dynamics or cls.dynamics(p)
        of_arity(cls, inputs, dynamics.function)
        initial = () if p.spikes == "decoded" else _for_each(p.initial_input, inputs, cls.__name__)
        (v, t, buffer), x = signgd_start(inputs, dynamics, p.spikes, initial)
        return SignGDState(v, t, x, buffer)

    @classmethod
    def check_state(cls, inputs: tuple[Tensor, ...], state: SignGDState) -> None:
        # ``sequence`` knows what shape v has, and how many arguments f
        for x, integrated in zip(inputs, state.x or (), strict=False):
            if x.shape != integrated.shape:
                raise stale(cls, inputs, integrated)

    @classmethod
    def sequence(
        cls,
        inputs: tuple[Tensor, ...],
        state: SignGDState,
        p: SignGDParameters,
        dynamics: signgd.SignGDParameters | None = None,
    ) -> tuple[Tensor, SignGDState]:
        dynamics = dynamics or cls.dynamics(p)
        of_arity(cls, inputs, dynamics.function)
        if (state.x is None) != (p.spikes == "decoded"):
            raise InputError(
                f"{cls.__name__}: the state is one of a neuron that "
                f"{'takes decoded values' if state.x is None else 'integrates spikes'}, but "
                f"spikes={p.spikes!r}. Pass state=None."
            )
        if state.x is None and dynamics.function.elementwise:
            shapes = [x.shape[1:] for x in inputs]
            shape = torch.broadcast_shapes(*shapes) if len(shapes) > 1 else shapes[0]
            if shape != state.v.shape:
                raise stale(cls, [x[0] for x in inputs], state.v)
        gradient = cls._gradient(p, *inputs, *state)
        if gradient is not None and not has_gradient(p.spikes, p.momentum):
            raise InputError(
                f"{cls.__name__}: a gradient passes signed spikes or decoded values without "
                'momentum. Choose spikes="signed", or method="heaviside" for no gradient.'
            )
        learns = isinstance(p.scale, nn.Parameter) and torch.is_grad_enabled()
        with torch.set_grad_enabled(gradient is not None or learns):
            done = signgd_sequence(
                inputs,
                signgd.SignGDState(state.v, state.t, state.buffer),
                state.x,
                dynamics,
                p.spikes,
                offsets=() if p.offset is None else _for_each(p.offset, inputs, cls.__name__),
                backend=p.backend,
                surrogate=gradient,
            )
        v, t, buffer = done.state
        return done.y, SignGDState(v, t, None if state.x is None else done.x, buffer)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        return signgd.signgd_choice(
            self.p.backend, x, self.dynamics(self.p), self._gradient(self.p, x)
        )

    @classmethod
    def _gradient(cls, p: SignGDParameters, *values: Any) -> Surrogate | None:
        """The surrogate, where one of these values or a tensor of p asks for a gradient."""
        arguments = tuple((p.arguments or {}).values())
        learns = trains(*values, p.scale, p.resting, p.initial_input, p.dead_zone, arguments)
        return surrogate(p.method, p.alpha) if learns else None

    def begin(self, inputs: tuple[Tensor, ...]) -> SignGDState:
        """The state of a run whose integrated inputs begin with these values."""
        return self.start(inputs, self.p._replace(initial_input=inputs))


def _used(name: str, value: Any) -> Any:
    """A parameter in its range."""
    value = at_least_float32(value)
    return within(name, value) if isinstance(value, nn.Parameter) else value


def _for_each(value: Any, inputs: tuple[Tensor, ...], owner: str) -> tuple[float | Tensor, ...]:
    """One value for each input; a single number counts for all."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) == 1 and not isinstance(values[0], Tensor):
        values *= len(inputs)
    if len(values) != len(inputs):
        raise InputError(
            f"{owner}: {len(inputs)} inputs came in, but initial_input or offset has "
            f"{len(values)} values. Pass a tuple with one for each input."
        )
    return values


def signgd_feed_forward_step(
    input_tensor: Tensor | tuple[Tensor, ...],
    state: SignGDState | None,
    p: SignGDParameters | None = None,
    dt: float = 0.001,
) -> tuple[Tensor, SignGDState]:
    r"""One step of signGD neurons, with the sign of a gradient step toward f(x) as spike.

    .. math::
        x(t) &= x(t-1) + I(t) \\
        \sigma(t) &= +1 \text{ where } v(t-1) \ge f(x(t)), \text{ else } -1 \\
        v(t) &= v(t-1) - \eta(t)\, s\, \sigma(t)

    The output is :math:`-\eta(t)\, s\, \sigma(t)` unless ``p.spikes`` says otherwise, and I(t) what
    a layer without bias makes of such outputs; whether v = f(x) fires is a property of f's row.
    With ``p.members`` m > 1 m signs follow on each other, of which each halves the step, and
    :math:`-\eta(t)\, s\, 2^{1-m} d(t)` is sent, d(t) the odd integer that they are the digits of.
    With ``p.dead_zone`` theta > 0 a neuron within theta of the step of f(x) is silent: sigma is 0
    where :math:`|v(t-1) - f(x(t))| \le \theta\, \eta(t)\, s`, and d(t) may be even.
    Source: Oh & Lee, ICML 2024 (arXiv:2407.01645).

    Parameters:
        input_tensor (Tensor): I(t) [B, ...] (x(t) with decoded spikes); a tuple for several
            arguments of f
        state (SignGDState): the state, None before the first step
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility

    Raises InputError where the state is one of another batch, BackendUnavailable where
    ``p.backend`` cannot run.

    Example:
        >>> p = SignGDParameters("gelu", ExponentialSchedule(0.5, 0.9))
        >>> spikes, state = signgd_feed_forward_step(torch.randn(8, 64), None, p)
    """
    return SignGDCell.feed_forward_step(input_tensor, state, p, dt)


class SignGDCell(_SignGD, Cell):
    """signGD neurons, one step [B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility

    Example:
        >>> cell = SignGDCell(SignGDParameters("gelu"))
        >>> spikes, state = cell(torch.randn(8, 64))
        >>> spikes, state = cell(torch.randn(8, 64), state)
    """


class SignGD(_SignGD, Layer):
    """signGD neurons, T steps [T, B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``
        dt (float): not used, for compatibility
        record_states (bool): return the states after each step, with t as a tensor [T]

    Example:
        >>> layer = SignGD(SignGDParameters("gelu"))
        >>> spikes, state = layer(torch.randn(32, 8, 64))
    """


def signgd_layer(node: signgd.SignGDNeuron, spikes: str, kernels: str) -> SignGD:
    """The layer of a network's node."""
    return SignGD(
        SignGDParameters(
            node.function,
            node.schedule,
            node.scale,
            node.resting,
            spikes=spikes,
            arguments=node.arguments,
            momentum=node.momentum,
            method="heaviside",
            backend=kernels,
            members=node.members,
            dead_zone=node.dead_zone,
        )
    )
