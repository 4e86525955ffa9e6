"""What is printed of numbers: six digits, which is more than anything here is exact to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

DIGITS = 6


def rounded(value: Any) -> str:
    """``repr`` of a value, with floats, also in lists, tuples and dicts, of six digits."""
    if isinstance(value, float):
        text = repr(value)
        return text if len(text) <= DIGITS + 2 else f"{value:.{DIGITS}g}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {rounded(item)}' for key, item in value.items())}}}"
    if type(value) in (tuple, list):
        inside = ", ".join(map(rounded, value)) + "," * (type(value) is tuple and len(value) == 1)
        return f"({inside})" if type(value) is tuple else f"[{inside}]"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _named(value, dict(zip(value._fields, value, strict=True)))
    return repr(value)


class Rounded:
    """A dataclass whose ``repr`` is as always, but for ``rounded`` numbers."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__repr__ in (object.__repr__, _repr):  # before dataclass() would give it one
            cls.__repr__ = _repr  # type: ignore[method-assign]


def _repr(self: Any) -> str:
    return _named(self, {each.name: getattr(self, each.name) for each in fields(self) if each.repr})


def _named(value: Any, parts: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name}={rounded(part)}" for name, part in parts.items())
    return f"{type(value).__qualname__}({shown})"
