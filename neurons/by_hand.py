"""Neurons built by hand: defaults, learnable parameters, and checks of arguments.

The step sizes were chosen with ``benchmarks/by_hand.py``: 4, which reaches values up to 8 in one
step, then 1, with 8 members. This is accurate from the first step on, follows inputs by which f
changes by at most about 2 scale per step from the second step on (1 scale with 4 members), and
sends the fewest spikes among schedules of the same accuracy. Inputs that jump from step to step
need ``ConstantSchedule(4.0), members=8`` or a larger scale. Fewer members use smaller steps, which
are more accurate within their reach. Single signs, which "ternary" and "binary" spikes and momentum
require, have decreasing steps. A neuron that is given a schedule has one member, as before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .nonlinearities import Nonlinearity, nonlinearity
from .schedules import ConstantSchedule, ExponentialSchedule, ListSchedule, Schedule

MEMBERS = 8
SINGLE: Schedule = ExponentialSchedule(1.0, 0.8)


def default_schedule(members: int) -> Schedule:
    """Of so many members."""
    first = min(4.0, 2.0 ** (members // 3))
    return SINGLE if members == 1 else ListSchedule((first, first / 4), tail=1.0)


# what is learned stays within, at every use
RANGES = {
    "scale": (1e-6, math.inf),
    "dead_zone": (0.0, 2 / 3),  # as far as kernels know the code of a step in closed form
    "v_threshold": (1e-6, math.inf),
}


def chosen_steps(
    owner: str, schedule: Schedule | None, members: int | None, spikes: str, momentum: float
) -> tuple[Schedule, int]:
    """Schedule and members of a signGD neuron by hand. Raises InputError for invalid ones."""
    if members is None:
        alone = schedule is not None or spikes in ("binary", "ternary") or momentum
        members = 1 if alone else MEMBERS
    members = check_members(owner, members)
    if schedule is None:
        schedule = default_schedule(members)
    check_schedule(owner, schedule)
    return schedule, members


def chosen_coding(owner: str, schedule: Schedule | None, spikes: str, momentum: float) -> Schedule:
    """Of the input coding: v follows x at once, but as the neurons do in protocols with one
    common schedule."""
    if schedule is None:
        common = spikes in ("binary", "ternary") or momentum
        return SINGLE if common else ConstantSchedule(1.0)
    check_schedule(owner, schedule)
    return schedule


def check_members(owner: str, members: Any) -> int:
    if isinstance(members, bool) or not isinstance(members, Integral):
        raise InputError(
            f"{owner}: members is the number of members of a neuron, an integer, but it is "
            f"{members!r}, of type {type(members).__name__}."
        )
    return int(members)


def check_number(owner: str, name: str, value: Any) -> None:
    """Raises InputError unless it is a number, a tensor, or a tuple of them."""
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, (Real, Tensor)):
            listed = isinstance(item, list) or hasattr(item, "__array__")
            raise InputError(
                f"{owner}: {name} is a number or a tensor, but it is {item!r}, of type "
                f"{type(item).__name__}. Pass {f'torch.tensor({name})' if listed else 'a number'}."
            )


def check_schedule(owner: str, schedule: Any) -> None:
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        number = isinstance(schedule, (int, float)) and not isinstance(schedule, bool)
        fix = f"ConstantSchedule({schedule})" if number else "ExponentialSchedule(0.5, 0.9)"
        raise InputError(
            f"{owner}: schedule gives the step size of each time step, such as {fix}, but it is "
            f"{schedule!r}. Leave it out for the default."
        )


def chosen_function(
    owner: str, function: str | Nonlinearity | Callable[..., Tensor]
) -> Nonlinearity:
    """The row of f. Raises InputError for anything else, such as a class that could be called."""
    if isinstance(function, type):
        raise InputError(
            f"{owner}: function is the name of a nonlinearity, a Nonlinearity or a callable, but "
            f"it is the class {function.__name__}. Pass an instance, {function.__name__}(), or a "
            "name such as 'gelu'."
        )
    if isinstance(function, Schedule):
        raise InputError(
            f"{owner}: the first argument is the function, but it is the schedule {function!r}. "
            "Pass schedule=..., or 'relu' before it."
        )
    try:
        return nonlinearity(function)
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: {error}") from error


def chosen_initial(owner: str, given: Any, spikes: str) -> Any:
    """x(0) of a neuron by hand, to which spikes are added; decoded values need none."""
    if spikes == "decoded":
        if not (given is None or (isinstance(given, (int, float)) and given == 0)):
            warnings.warn(
                f"{owner}: initial_input is ignored with spikes='decoded', where the neuron "
                "receives x(t) itself. Keep the bias in the preceding layer.",
                stacklevel=3,
            )
        return 0.0
    if given is None:
        raise InputError(
            f"{owner}: with spikes={spikes!r} a neuron integrates its input, starting from x(0): "
            "the bias of the preceding layer, which itself has none, plus W v(0) if the "
            "presynaptic neurons have a resting value. Pass initial_input=bias, or 0.0 if there "
            "is neither; or build the network with spikes='decoded' and convert it as a whole: "
            "sg.to_spikes(net, example)."
        )
    return given


def check_learnable(owner: str, learnable: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The names of the parameters to learn. Raises InputError for unknown ones."""
    names = (learnable,) if isinstance(learnable, str) else tuple(learnable)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{owner}: learnable must name parameters of the neuron ({', '.join(known)}), but "
            f"{unknown[0]!r} is not one."
        )
    return names


def check_learned_zone(owner: str, names: Iterable[str], spikes: str, momentum: float) -> None:
    """Raises InputError if a dead zone is to be learned that must be 0."""
    if "dead_zone" in names and (spikes == "binary" or momentum):
        why = f"with momentum={momentum}" if momentum else "with spikes='binary'"
        raise InputError(
            f"{owner}: {why} a neuron has no dead zone, so there is none to learn. Leave it out of "
            "learnable, or choose spikes='signed' and no momentum."
        )


def learned(value: Any) -> bool:
    return isinstance(value, Tensor) and (isinstance(value, nn.Parameter) or value.requires_grad)


def check_range(owner: str, name: str, value: Any) -> None:
    """Raises InputError if a parameter to learn starts outside its range."""
    if not learned(value) or value.is_meta or name not in RANGES:
        return
    low, high = RANGES[name]
    given = value.detach()
    least, most = given.new_tensor(low), given.new_tensor(high)  # rounded as the value is
    if not bool(((given.float() >= least.float()) & (given.float() <= most.float())).all()):
        raise InputError(
            f"{owner}: a learned {name} must stay in [{low:.4g}, {high:.4g}], but its initial "
            f"value is {float(given.min())!r} to {float(given.max())!r}."
        )


@torch.no_grad()
def put_within(name: str, value: Any) -> None:
    """Clips learned parameters to their range, in place; their effective value does not change."""
    if learned(value):
        value.clamp_(*RANGES[name])


def within(name: str, value: Tensor) -> Tensor:
    """A learned value in its range, with the gradient that keeps it there or leads back."""
    if not torch.is_grad_enabled():
        return value.clamp(*RANGES[name])
    out: Tensor = _Within.apply(value, *RANGES[name])  # type: ignore[no-untyped-call]
    return out


class _Within(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,), (g,) = ctx.saved_tensors, gradients
        out = ((value < ctx.low) & (g > 0)) | ((value > ctx.high) & (g < 0))
        return g.masked_fill(out, 0.0), None, None


def refuse(owner: str, given: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """Raises InputError for keywords of other neurons, naming what to use ``instead``."""
    for name, value in given.items():
        if name not in instead:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")
        raise InputError(f"{owner}: {name}={value!r} has no meaning here: {instead[name]}")
