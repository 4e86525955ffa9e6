"""signGD neurons as Norse has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons import signgd
from ...neurons.by_hand import (
    check_learned_zone,
    check_number,
    chosen_function,
    chosen_initial,
    chosen_steps,
    learned,
)
from ...neurons.choice import Choice
from ...neurons.nonlinearities import Nonlinearity
from ...neurons.protocol import (
    at_least_float32,
    check_protocol,
    check_spikes,
    chosen_dead_zone,
    has_gradient,
    signgd_sequence,
    signgd_start,
)
from ...neurons.schedules import Schedule
from ...neurons.surrogate import Surrogate
from .common import DITHERED, METHODS, check_backend, of_arity, surrogate
from .module import Cell, Dynamic, Layer, stale
from .parameters import item_of, no_field, used


class SignGDParameters(NamedTuple):
    """Parametrization of signGD neurons; ``SignGDParameters()`` follows relu.

    Values that are None get the defaults of ``neurons/by_hand.py``, as for SpikingJelly's nodes,
    when a cell, layer or step takes the parameters; ``layer.p`` has the resulting values. An
    ``nn.Parameter`` among them is trained; ``learnable`` of a cell or layer makes parameters of
    scale, resting, initial_input, dead_zone and of f's arguments.

    Parameters:
        function (str | Nonlinearity | Callable): f, a row of ``NONLINEARITIES``, its name, or a
            callable of one or several tensors
        schedule (Schedule): the step sizes eta(t)
        scale (float | Tensor): unit of the steps, positive, broadcasts against v [B, ...]
        resting (float | Tensor): v(0), broadcasts against v
        initial_input (float | Tensor | tuple): x(0): the bias of the layer before, which has none
            itself, plus W v(0) if the presynaptic neurons have a resting value; broadcasts against
            an input; a tuple for several inputs. With "decoded" values there is none, and the layer
            before keeps its bias; spikes must be given one
        spikes (str): "decoded", v(t) of decoded values, or the spikes as hardware sends them:
            "signed" -eta(t) scale sigma(t), "binary" scale {0, 1}, "ternary" scale {-1, 0, 1}, of
            single signs (``neurons/protocol.py``)
        offset (float | Tensor | tuple): W (scale 1) of the layer before, for "binary" alone
        arguments (Mapping): parameters of f, such as ``{"negative_slope": 0.1}``
        momentum (float): of the step, 0 in the paper; there is no gradient with it
        method (str): the gradient. "dithered", the default: v follows f(x), so that the
            derivative of v is that of f where it is within reach (``neurons/signgd/gradient.py``),
            and of scale, resting value and dead zone by their part in the error. Or Norse's method
            for the gradient of a spike in v - f(x), "super", "triangle", "tanh", "circ",
            "heavi_erfc"; "heaviside" for none
        alpha (float): Norse's hyper parameter of its methods
        backend (str): what runs the neurons, "auto", "cpu", "cupy" or "torch"
        members (int): m, the signs of one step, of sizes eta, eta / 2, ...; at most 8, with a dead
            zone 12, without momentum, and the same for all neurons of a network with "binary"
            spikes
        dead_zone (float | Tensor): theta, a fraction of the step size in [0, 1), broadcasts against
            v: a member is silent where v is within theta of its step of f(x); 0 is the paper's
            neuron, a sign at every step. None is ``sg.DEAD_ZONE``, but 0 with momentum and with
            "binary" spikes, which have none
    """

    function: str | Nonlinearity | Callable[..., Tensor] = "relu"
    schedule: Schedule | None = None
    scale: float | Tensor = 1.0
    resting: float | Tensor = 0.0
    initial_input: float | Tensor | tuple[float | Tensor, ...] | None = None
    spikes: str = "decoded"
    offset: float | Tensor | tuple[float | Tensor, ...] | None = None
    arguments: Mapping[str, Any] | None = None
    momentum: float = 0.0
    method: str = DITHERED
    alpha: float = 100.0
    backend: str = "auto"
    members: int | None = None
    dead_zone: float | Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        raise no_field(self, name)


class SignGDState(NamedTuple):
    """State of signGD neurons.

    Parameters:
        v (Tensor): decoded output [B, ...]
        t (int): steps done
        x (tuple[Tensor, ...]): the integrated inputs, None where decoded values pass
        buffer (Tensor): the momentum's memory, None without
        rest (Tensor): carries the gradient of a resting value that is learned, else None
    """

    v: Tensor
    t: int = 0
    x: tuple[Tensor, ...] | None = None
    buffer: Tensor | None = None
    rest: Tensor | None = None


class _SignGD(Dynamic):
    Parameters = SignGDParameters
    State = SignGDState
    numbers = ("momentum", "alpha")
    learns = ("scale", "resting", "initial_input", "dead_zone")
    ranges = {"scale": "scale", "dead_zone": "dead_zone"}
    later = {"members": 1, "dead_zone": 0.0}

    @classmethod
    def is_first(cls, value: Any) -> bool:
        """A function: a row, its name, or a callable; a class of modules is refused as one."""
        if isinstance(value, type):
            return issubclass(value, nn.Module)
        return isinstance(value, (str, Nonlinearity)) or callable(value)

    @classmethod
    def check_parameters(cls, p: SignGDParameters) -> None:
        assert p.members is not None  # ``_normal`` has chosen
        options = (p.offset, p.momentum, p.members, p.dead_zone)
        check_protocol(cls.__name__, p.spikes, 0.0, *options)
        if p.method not in (DITHERED, *METHODS):
            raise InputError(
                f"{cls.__name__}: method is one of {', '.join((DITHERED, *METHODS))}, but it is "
                f"{p.method!r}."
            )
        if p.method != DITHERED:
            surrogate(p.method, p.alpha)
        check_backend(cls.__name__, p.backend)
        cls.dynamics(p, check=True)

    @classmethod
    def learning(cls, p: SignGDParameters, learnable: Iterable[str]) -> SignGDParameters:
        names = (learnable,) if isinstance(learnable, str) else tuple(learnable)
        if "initial_input" in names and p.spikes == "decoded":
            raise InputError(
                f"{cls.__name__}: with spikes='decoded' there is no initial input to learn; learn "
                "the bias of the layer before."
            )
        check_learned_zone(cls.__name__, names, p.spikes, p.momentum)
        return super().learning(p, names)  # type: ignore[no-any-return]

    @classmethod
    def _normal(cls, p: SignGDParameters) -> SignGDParameters:
        """p with what is meant where nothing was said, which is then also what is saved."""
        p, owner = super()._normal(p), cls.__name__
        check_spikes(owner, p.spikes)
        for name in ("scale", "resting", "momentum"):
            check_number(owner, name, getattr(p, name))
        chosen_function(owner, p.function)
        steps = (p.schedule, item_of(p.members), p.spikes, p.momentum)
        schedule, members = chosen_steps(owner, *steps)
        theta = chosen_dead_zone(p.dead_zone, p.spikes, p.momentum)
        signgd.check_dead_zone_type(owner, theta)
        initial = chosen_initial(owner, p.initial_input, p.spikes)
        return p._replace(
            schedule=schedule, members=members, dead_zone=theta, initial_input=initial
        )

    @classmethod
    def dynamics(cls, p: SignGDParameters, check: bool = False) -> signgd.SignGDParameters:
        """What the definition takes, made of p's tensors as they are now."""
        assert p.schedule is not None and p.members is not None
        arguments = {key: at_least_float32(value) for key, value in (p.arguments or {}).items()}
        return signgd.SignGDParameters(
            chosen_function(cls.__name__, p.function),
            p.schedule,
            used("scale", p.scale),
            at_least_float32(p.resting),
            arguments,
            p.momentum,
            p.members,
            used("dead_zone", p.dead_zone),
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
        offsets = () if p.offset is None else _for_each(p.offset, inputs, cls.__name__)
        asking = (*inputs, state.v, *(state.x or ()), state.rest, *offsets)
        learns = cls._learns(p, dynamics, *[a for a in asking if isinstance(a, Tensor)])
        gradient = cls._surrogate(p, learns)
        with torch.set_grad_enabled(learns):
            done = signgd_sequence(
                inputs,
                signgd.SignGDState(state.v, state.t, state.buffer),
                state.x,
                dynamics,
                p.spikes,
                offsets=offsets,
                backend=p.backend,
                surrogate=gradient,
                rest=state.rest,
            )
        v, t, buffer = done.state
        x = None if state.x is None else done.x
        return done.y, SignGDState(v, t, x, buffer, done.rest)

    def choice(self, x: Tensor) -> Choice:
        """What runs for inputs of the type and on the device of x, and why if it is the
        definition. Raises BackendUnavailable."""
        p, dynamics = self.p, self.dynamics(self.p)
        gradient = self._surrogate(p, self._learns(p, dynamics, x))
        return signgd.signgd_choice(p.backend, x, dynamics, gradient)

    @classmethod
    def _learns(
        cls, p: SignGDParameters, dynamics: signgd.SignGDParameters, *values: Tensor
    ) -> bool:
        """Whether a gradient is recorded: one is asked for, and p.method has one."""
        asked = signgd.trains(dynamics, *values)
        if not asked or p.method == "heaviside":
            return False
        if p.method != DITHERED and not has_gradient(p.spikes, p.momentum):
            raise InputError(
                f"{cls.__name__}: the gradient of method={p.method!r} passes signed spikes or "
                f"decoded values without momentum. Choose method={DITHERED!r} without momentum, "
                'or method="heaviside" for no gradient.'
            )
        return True

    @classmethod
    def _surrogate(cls, p: SignGDParameters, learns: bool) -> Surrogate | None:
        """The surrogate of p.method, where a gradient is recorded and it is one of Norse's."""
        return surrogate(p.method, p.alpha) if learns and p.method != DITHERED else None

    def begin(self, inputs: tuple[Tensor, ...]) -> SignGDState:
        """The state of a run whose integrated inputs begin with these values."""
        return self.start(inputs, self.p._replace(initial_input=inputs))


def _for_each(value: Any, inputs: tuple[Tensor, ...], owner: str) -> tuple[float | Tensor, ...]:
    """One value for each input; a single number counts for all."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) == 1 and not isinstance(values[0], Tensor):
        values *= len(inputs)
    if len(values) != len(inputs):
        raise InputError(
            f"{owner}: {len(inputs)} inputs were passed, but initial_input or offset has "
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
        \sigma(t) &= +1 \text{ where } v(t-1) \ge f(x(t)), \text{ else } -1 \\
        v(t) &= v(t-1) - \eta(t)\, s\, \sigma(t)

    x(t) comes in, what a layer with its bias computes, and v(t) is the output, unless ``p.spikes``
    says otherwise: with "signed" spikes the output is :math:`-\eta(t)\, s\, \sigma(t)`, and
    I(t) comes in, what a layer without bias makes of such outputs, with x(t) = x(t-1) + I(t).
    Whether v = f(x) fires is a property of f's row.
    With ``p.members`` m > 1 m signs follow on each other, of which each halves the step, and v
    moves by :math:`-\eta(t)\, s\, 2^{1-m} d(t)`, d(t) the odd integer that they are the digits
    of.
    With ``p.dead_zone`` theta > 0 a neuron within theta of the step of f(x) is silent: sigma is 0
    where :math:`|v(t-1) - f(x(t))| \le \theta\, \eta(t)\, s`, and d(t) may be even.
    Source: Oh & Lee, ICML 2024 (arXiv:2407.01645).

    Parameters:
        input_tensor (Tensor): x(t) [B, ...] (I(t) where spikes pass); a tuple for several
            arguments of f
        state (SignGDState): the state, None before the first step
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``; a
            function alone, ``"gelu"``, for those with it
        dt (float): not used, for compatibility

    Raises InputError where the state is one of another batch, BackendUnavailable where
    ``p.backend`` cannot run.

    Example:
        >>> p = SignGDParameters("gelu")
        >>> v, state = signgd_feed_forward_step(torch.randn(8, 64), None, p)
    """
    return SignGDCell.feed_forward_step(input_tensor, state, p, dt)


class SignGDCell(_SignGD, Cell):
    """signGD neurons, one step [B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``; a
            function alone, ``SignGDCell("gelu")``, for those with it
        dt (float): not used, for compatibility
        learnable (str | Iterable[str]): which numbers and tensors of p become parameters

    Example:
        >>> cell = SignGDCell("gelu")
        >>> v, state = cell(torch.randn(8, 64))
        >>> v, state = cell(torch.randn(8, 64), state)
    """


class SignGD(_SignGD, Layer):
    """signGD neurons, T steps [T, B, ...]: see :func:`signgd_feed_forward_step`.

    Parameters:
        p (SignGDParameters): parameters of the neurons, by default ``SignGDParameters()``; a
            function alone, ``SignGD("gelu")``, for those with it
        dt (float): not used, for compatibility
        record_states (bool): return the states after each step, with t as a tensor [T]
        learnable (str | Iterable[str]): which numbers and tensors of p become parameters

    Example:
        >>> layer = SignGD("gelu", members=3, learnable="scale")
        >>> v_seq, state = layer(torch.randn(32, 8, 64))
    """


def signgd_layer(node: signgd.SignGDNeuron, spikes: str, kernels: str) -> SignGD:
    """The layer of a network's node."""
    return SignGD(
        SignGDParameters(
            node.function,
            node.schedule,
            node.scale,
            node.resting,
            None if spikes == "decoded" else 0.0,  # of a run; ``begin`` says what it is
            spikes=spikes,
            arguments=node.arguments,
            momentum=node.momentum,
            method=DITHERED if any(map(learned, node.tensors.values())) else "heaviside",
            backend=kernels,
            members=node.members,
            dead_zone=node.dead_zone,
        )
    )
