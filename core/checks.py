"""What a field of a description may hold: checks of plain data, without torch and NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str)


def names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)


def integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def natural(value: Any) -> bool:
    return integer(value) and value >= 0


def number(value: Any) -> bool:
    return (integer(value) or isinstance(value, float)) and math.isfinite(value)


def positive(value: Any) -> bool:
    return number(value) and value > 0


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def size(value: Any) -> bool:
    """49, or "3*batch"."""
    if isinstance(value, str):
        times, star, batch = value.partition("*")
        return star == "*" and batch == "batch" and times.isdecimal() and len(times) < 18
    return natural(value)


def each(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


sizes, integers, naturals = each(size), each(integer), each(natural)


def counts(value: Any) -> bool:
    """One for each dimension of an image."""
    return naturals(value) and 0 not in value and 0 < len(value) <= 3


def is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def either(*choices: Any) -> Check:
    return lambda value: any(c(value) if callable(c) else value == c for c in choices)
