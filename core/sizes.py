"""The other input sizes at which a description may run, and what changes at them; without torch.

A graph is captured at one size, and any constant in it may depend on that size. So a network runs
only at those sizes that ``convert(sizes=)`` compared with the model, and at all between where
torch.export proved that no operation reads a size. ``provenance["sizes"]`` holds it::

    {"checked": [{"shapes": {"input": [3, 96, 80]},
                  "changes": {"up": {"attributes": {"size": [96, 80]}}}}, ...],
     "between": {"input": [[3, 3], [7, 4096], [7, 4096]]},     # or null
     "scaled": ["up"]}

The first of "checked" is the size of the description. "changes" are attributes and arguments by
value, and tensors by their shape: of a table of positions, say, the leading part is taken. "scaled"
are upsamplings by a whole factor, whose size follows their input's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

Shapes = Mapping[str, Sequence[int]]  # of one sample, by input
Changes = Mapping[str, Mapping[str, Mapping[str, Any]]]

FIX = (
    "If the model takes such samples, pass convert(..., sizes=[...]) with this size among them; "
    "otherwise resize or crop them"
)


def allowed(sizes: Mapping[str, Any] | None, wanted: Shapes) -> Changes | None:
    """What changes at a size; None where it was never checked."""
    for each in (sizes or {}).get("checked", ()):
        if _same(each["shapes"], wanted):
            return each["changes"]  # type: ignore[no-any-return]
    between = (sizes or {}).get("between")
    if between and all(_within(between[name], shape) for name, shape in wanted.items()):
        return {}
    return None


def _same(one: Shapes, two: Shapes) -> bool:
    return {k: list(v) for k, v in one.items()} == {k: list(v) for k, v in two.items()}


def _within(bounds: Sequence[Sequence[int]], shape: Sequence[int]) -> bool:
    pairs = list(zip(bounds, shape, strict=False))
    return len(bounds) == len(shape) and all(low <= n <= high for (low, high), n in pairs)


def shown(shapes: Shapes) -> str:
    found = [f"{name}: {list(shape)}" for name, shape in shapes.items()]
    return found[0].split(": ")[1] if len(found) == 1 else ", ".join(found)


def refused(sizes: Mapping[str, Any] | None, wanted: Shapes) -> InputError:
    """The error for a size at which the network was not checked."""
    if sizes is None:
        known = "it was converted for one size"
    else:
        known = "it was checked at " + "; ".join(shown(each["shapes"]) for each in sizes["checked"])
        if sizes["between"]:
            bounds = {k: [_span(b) for b in v] for k, v in sizes["between"].items()}
            known += " and runs on " + ", ".join(f"[{', '.join(b)}]" for b in bounds.values())
    return InputError(
        f"the network does not run on samples {shown(wanted)}: {known}. Constants in its graph "
        f"may depend on that size. {FIX}."
    )


def _span(bounds: Sequence[int]) -> str:
    low, high = bounds
    return str(low) if low == high else f"{low}..{high}"


def as_shapes(names: Sequence[str], given: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """``(3, 96, 80)``, ``((3, 96, 80),)`` or ``({"ids": (12,), "mask": (12,)},)`` by input."""
    one = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
    by_name = one if isinstance(one, Mapping) else {names[0]: one}
    if set(by_name) != set(names) or not all(map(_is_shape, by_name.values())):
        raise InputError(
            f"a size is the shape of one sample, such as (3, 96, 80), or a dict of such for the "
            f"inputs {', '.join(names)}, but it is {one!r}."
        )
    return {name: tuple(by_name[name]) for name in names}


def _is_shape(shape: Any) -> bool:
    numbers = isinstance(shape, (list, tuple)) and all(type(n) is int and n > 0 for n in shape)
    return bool(numbers)
