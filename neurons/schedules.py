"""Step-size schedules eta(t), t = 1, 2, ...: any number of steps, JSON-able plain data.

The tracking lemma of signGD neurons: a constant target within the sum of the steps is held within
eta(t) once crossed, if eta(t + 1) >= eta(t) / 2.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from .rounding import Rounded


@runtime_checkable
class Schedule(Protocol):
    """A callable from the step t >= 1 to the step size, with a plain-data description of itself."""

    def __call__(self, t: int) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...


def _check_positive(owner: object, **values: float) -> None:
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(
                f"{type(owner).__name__}: {name} is a step size or ratio, so it is positive and "
                f"finite, but it is {value!r}."
            )


@dataclass(frozen=True)
class _Formula(Rounded):
    kind: ClassVar[str]
    constant: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ExponentialSchedule(_Formula):
    """``eta(t) = initial * decay ** (t - 1)``; the published choice is 0.15 and 0.95."""

    kind = "exponential"
    initial: float
    decay: float

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.decay == 1

    def __post_init__(self) -> None:
        _check_positive(self, initial=self.initial, decay=self.decay)

    def __call__(self, t: int) -> float:
        return self.initial * self.decay ** (t - 1)


@dataclass(frozen=True)
class InverseSchedule(_Formula):
    """``eta(t) = initial / (t + delay)``."""

    kind = "inverse"
    initial: float = 1.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, initial=self.initial)
        if self.delay < 0:
            raise ValueError(f"InverseSchedule: delay is at least 0, but it is {self.delay!r}.")

    def __call__(self, t: int) -> float:
        return self.initial / (t + self.delay)


@dataclass(frozen=True)
class ConstantSchedule(_Formula):
    """``eta(t) = initial``: never settles below one step."""

    kind = "constant"
    constant = True
    initial: float

    def __post_init__(self) -> None:
        _check_positive(self, initial=self.initial)

    def __call__(self, t: int) -> float:
        return self.initial


@dataclass(frozen=True)
class ListSchedule(_Formula):
    """The step sizes one by one.

    A step beyond the last is an error; with ``tail``, it is the previous step times ``tail``.
    """

    kind = "list"
    values: tuple[float, ...]
    tail: float | None = None

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.tail == 1 and len(set(self.values)) == 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        for i, value in enumerate(self.values):
            _check_positive(self, **{f"values[{i}]": value})
        if self.tail is not None:
            _check_positive(self, tail=self.tail)

    def to_dict(self) -> dict[str, Any]:
        """As releases before ``tail`` wrote it where there is none."""
        tail = {} if self.tail is None else {"tail": self.tail}
        return {"kind": self.kind, "values": self.values, **tail}

    def __call__(self, t: int) -> float:
        beyond = t - len(self.values)
        if beyond > 0 and self.values and self.tail is not None:
            return self.values[-1] * self.tail**beyond
        if beyond > 0:
            raise ValueError(
                f"ListSchedule: step {t} was asked for, but the list has {len(self.values)} step "
                "sizes. Reset the network between inputs, or give a longer list."
            )
        return self.values[t - 1]


SCHEDULES: dict[str, type[Any]] = {
    cls.kind: cls for cls in (ExponentialSchedule, InverseSchedule, ConstantSchedule, ListSchedule)
}


def is_constant(schedule: Schedule) -> bool:
    """Whether eta(t) is the same at every step; False for a user's class without this property."""
    return bool(getattr(schedule, "constant", False))


def schedule_from_dict(data: dict[str, Any]) -> Schedule:
    """The schedule that ``to_dict`` described."""
    arguments = dict(data)
    kind = arguments.pop("kind", None)
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule kind {kind!r}; known: {', '.join(SCHEDULES)}.")
    schedule: Schedule = SCHEDULES[kind](**arguments)
    return schedule


_named: dict[str, Schedule] = {}


def name_schedule(schedule: Schedule) -> str:
    """One line of text that ``named_schedule`` knows the schedule by.

    The formulas above are told in full, in any process and while torch.compile traces; a user's
    class is known in this process only.
    """
    if isinstance(schedule, _Formula) and type(schedule) in SCHEDULES.values():
        if isinstance(schedule, ListSchedule):
            sizes = [float(value) for value in schedule.values]
            return f"list {sizes if schedule.tail is None else [sizes, float(schedule.tail)]}"
        return f"{schedule.kind} {[float(value) for value in vars(schedule).values()]}"
    kind = f"{type(schedule).__module__}.{type(schedule).__qualname__}"
    name = f"{kind} {json.dumps(schedule.to_dict(), sort_keys=True)}"
    known = _named.setdefault(name, schedule)
    if known is not schedule and known != schedule:  # a class that tells less than it is
        name = f"{name} {id(schedule)}"
        _named[name] = schedule
    return name


def named_schedule(name: str) -> Schedule:
    if name not in _named:
        kind, _, values = name.partition(" ")
        arguments = json.loads(values)
        if kind == "list" and not isinstance(arguments[0], list):
            arguments = [arguments]
        _named[name] = SCHEDULES[kind](*arguments)
    return _named[name]
