"""The fields that a file holds for each kind of node: a row of ``KINDS`` for each, without torch.

The rows are the tables of ``docs/format.md``. A kind from another package is one more row::

    KINDS["leaky"] = Kind({**FUNCTION, "leak": positive}, neuron=True, numpy=leaky_by_numpy)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...core.checks import (
    Check,
    either,
    flag,
    integer,
    is_array,
    mapping,
    names,
    natural,
    number,
    optional,
    positive,
    sizes,
    text,
)
from ...core.operations.rows import LINEAR, Operation
from ...core.operations.statics import STATIC
from ...errors import FormatError

LARGEST_MEMBERS = 2**16
SMALLEST_THETA = 2.0**-100  # of thresholds in a tensor
MOST_SIGNS = 8  # of a signGD neuron in one step
MOST_SPARSE = 12  # with a dead zone
FIRST = (1, 0)  # format version
KEPT, ANEW = "kept", "anew"  # what a new frame of a stream does to a state


@dataclass(frozen=True)
class Record:
    """One node: its kind and the fields of ``KINDS[kind]``, tensors as arrays."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        name: str = self.fields["name"]
        return name

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


def _linear() -> tuple[Mapping[str, Operation], str]:
    return LINEAR, "linear operation"


def _exact() -> tuple[Mapping[str, Operation], str]:
    return STATIC, "exact operation"


def _never(record: Record) -> bool:
    return False


def _anew(record: Record) -> str:
    return ANEW


class Since(NamedTuple):
    """The format version that a field came with, and what files before it mean."""

    version: tuple[int, int]
    before: Any


@dataclass(frozen=True)
class Kind:
    """``fields`` are those of the node's class, each with what it may be.

    ``numpy(record, inputs, state, dtype) -> (what passes, where it fires, state)`` is one step for
    the NumPy runner of a kind from elsewhere, with state None before the first; without it the file
    is read, not replayed.
    """

    fields: Mapping[str, Check]
    inputs: int | None = None  # None: as many as f takes, of a linear operation as its row says
    neuron: bool = False
    computes: bool = False  # f itself is run
    spike_view: Callable[[Record], bool] = _never  # whether weighted spikes can pass it
    check: Callable[[str, Record], None] | None = None  # what fields must be together
    since: Mapping[str, Since] = field(default_factory=dict)  # fields that came after 1.0
    # fields that are this in a node whose kind has no version behind it, also where it is absent
    implied: Mapping[str, Any] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()  # fields that were not tensors before 1.2
    numpy: Callable[..., tuple[Any, Any, Any]] | None = None
    # what a new frame of a stream does to the state: it is KEPT, but for the count of steps, or
    # starts ANEW; else why there are no streams of it
    frame: Callable[[Record], str] = _anew
    # the rows that the field "op" is of, and what one is called
    operations: Callable[[], tuple[Mapping[str, Operation], str]] = _linear

    def arity(self, record: Record) -> int | None:
        return record["function"]["arity"] if self.computes else self.inputs  # type: ignore[no-any-return]

    def needs(self, record: Record) -> tuple[int, int]:
        """The first format version whose readers take the node for what it is."""
        found = [FIRST]
        for name, (version, before) in self.since.items():
            if is_array(record[name]) or record[name] != before:
                found.append(version)
        if any(is_array(record[name]) for name in self.numbers):
            found.append((1, 2))
        return max(found)

    def later(self, version: tuple[int, int]) -> dict[str, Any]:
        """The fields that files of ``version`` do not have, with what these mean."""
        return {name: since.before for name, since in self.since.items() if since.version > version}


def sparse(record: Record) -> bool:
    """Whether a signGD neuron has a dead zone: it may be silent."""
    theta = record["dead_zone"]
    return is_array(theta) or bool(theta > 0)


def finite(value: Any) -> bool:
    import numpy as np

    return is_array(value) and (value.dtype.kind in "iub" or bool(np.isfinite(value).all()))


def _number_or_array(value: Any) -> bool:
    return number(value) or (is_array(value) and value.dtype.kind == "f")


def _scale(value: Any) -> bool:
    return positive(value) or (
        _number_or_array(value) and is_array(value) and bool((value > 0).all())
    )


def _row(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and text(value.get("name"))
        and (value.get("arity") is None or natural(value["arity"]))
        and all(flag(value.get(key)) for key in ("fires_at_tie", "elementwise", "own"))
        and flag(value.get("selects", False))  # came with 1.2
    )


SCHEDULES: dict[str, dict[str, Check]] = {
    "exponential": {"initial": positive, "decay": positive},
    "inverse": {"initial": positive, "delay": lambda v: number(v) and v >= 0},
    "constant": {"initial": positive},
    "list": {
        "values": lambda v: isinstance(v, (list, tuple)) and all(map(positive, v)),
        "tail": positive,
    },
}
MAY_BE_ABSENT = {"tail"}  # of a schedule


def _schedule(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.get("kind") not in SCHEDULES:
        return False
    checks = SCHEDULES[value["kind"]]
    missing, given = set(checks) - set(value), set(value) - {"kind"}
    fits = missing <= MAY_BE_ABSENT and given <= set(checks)
    return fits and all(checks[key](value[key]) for key in given)


def _momentum(value: Any) -> bool:
    return number(value) and 0 <= value < 1


def _dead_zone(value: Any) -> bool:
    import numpy as np

    if not _number_or_array(value):
        return False
    theta = np.asarray(value)
    inside = bool(((theta >= 0) & (theta < 1)).all())
    return inside and bool((theta.astype(np.float32) < 1).all())  # which is what runners read


def _check_broadcast(where: str, name: str, value: Any, shape: Any) -> None:
    if not is_array(value):
        return
    pairs = zip(reversed(value.shape), reversed(shape), strict=False)
    wrong = any(n != 1 and isinstance(size, int) and n != size for n, size in pairs)
    if wrong or value.ndim > len(shape):
        raise FormatError(
            f"{where}: {name} is {list(value.shape)} and does not broadcast to its neurons, "
            f"{list(shape)}; for channels of images it is [C, 1, 1]."
        )


def _check_signs(where: str, node: Record) -> None:
    if node["members"] > 1 and node["momentum"]:
        raise FormatError(
            f"{where}: members = {node['members']} and momentum = {node['momentum']} exclude each "
            "other; set one of them to 1 or 0."
        )
    if sparse(node) and node["momentum"]:
        raise FormatError(
            f"{where}: momentum = {node['momentum']} accumulates the signs of all steps, some of "
            "which a dead zone suppresses; set one of them to 0."
        )
    if node["members"] > MOST_SIGNS and not sparse(node):
        raise FormatError(
            f"{where}: members = {node['members']} does not fit; without a dead zone a neuron "
            f"fires at most {MOST_SIGNS} signs in a step, with one {MOST_SPARSE}."
        )
    _check_broadcast(where, "dead_zone", node["dead_zone"], node["shape"])


def _check_group(where: str, node: Record) -> None:
    for name in ("v_threshold", "initial_charge"):
        _check_broadcast(where, name, node[name], node["shape"])
    least = node["members"] * SMALLEST_THETA
    if is_array(node["v_threshold"]) and bool((node["v_threshold"] < least).any()):
        raise FormatError(
            f"{where}: v_threshold has values below members * 2 ** -100; rescale the layer."
        )


def _check_growth(where: str, node: Record) -> None:
    if not node["function"].get("selects", False):
        raise FormatError(
            f"{where}: function = {node['function']['name']!r} does not select one of its "
            "inputs, as max pooling does, so its growth is not a sum of spikes; make it a group "
            "neuron."
        )


def _check_encoder(where: str, node: Record) -> None:
    if node["coding"] == "real" and node["schedule"] is None:
        raise FormatError(f"{where}: real-valued coding has a schedule, but it is missing.")


def _always(record: Record) -> bool:
    return True


def _real(record: Record) -> bool:
    return bool(record["coding"] == "real")


def _follows(record: Record) -> str:
    """v follows f(x), or the input, from wherever it is."""
    return (
        "its momentum would carry over from one frame to the next" if record["momentum"] else KEPT
    )


def _coded(record: Record) -> str:
    if record["coding"] == "poisson":
        return (
            "Poisson spikes are drawn again for each frame, so that the estimate has to converge "
            "again"
        )
    return _follows(record)


def _rate(record: Record) -> str:
    return "its v is a mean over all steps since the first, which does not restart at a new frame"


NODE: dict[str, Check] = {"name": text, "inputs": names, "shape": sizes}
FUNCTION: dict[str, Check] = {
    **NODE,
    "function": _row,
    "arguments": mapping,
    "channel": optional(integer),
    "module": text,
}
_SIGNGD: dict[str, Check] = {
    **FUNCTION,
    "schedule": _schedule,
    "scale": _scale,
    "resting": _number_or_array,
    "momentum": _momentum,
    "members": lambda v: natural(v) and 1 <= v <= MOST_SPARSE,
    "dead_zone": _dead_zone,
}
_GROUP: dict[str, Check] = {
    **FUNCTION,
    "members": lambda v: natural(v) and 1 <= v <= LARGEST_MEMBERS,
    "v_threshold": _scale,
    "initial_charge": _number_or_array,
    "signed": flag,
}
_SUBGRADIENT: dict[str, Check] = {**FUNCTION, "schedule": _schedule, "scale": _scale}
_ENCODER: dict[str, Check] = {
    **NODE,
    "coding": either("real", "poisson"),
    "schedule": optional(_schedule),
    "momentum": _momentum,
    "scale": positive,
    "seed": integer,
    "per_step": flag,
}
DTYPE: dict[str, Check] = {"dtype": either("float", "integer", "boolean")}
_LINEAR: dict[str, Check] = {**NODE, "op": text, "attributes": mapping, "tensors": mapping}
KINDS: dict[str, Kind] = {
    "input": Kind(
        {**NODE, **DTYPE},
        0,
        spike_view=_always,
        since={"dtype": Since((1, 4), "float")},
        implied={"dtype": "float"},
    ),
    "static": Kind(
        {**_LINEAR, **DTYPE},
        spike_view=_always,
        since={"dtype": Since((1, 4), None)},
        operations=_exact,
    ),
    "constant": Kind({**NODE, "value": finite}, 0, spike_view=_always),
    "linear": Kind(_LINEAR, spike_view=_always),
    "function": Kind(FUNCTION, computes=True),
    "signgd": Kind(
        _SIGNGD,
        neuron=True,
        computes=True,
        spike_view=_always,
        check=_check_signs,
        since={"members": Since((1, 2), 1), "dead_zone": Since((1, 3), 0.0)},
        frame=_follows,
    ),
    "group": Kind(
        _GROUP,
        1,
        neuron=True,
        check=_check_group,
        since={"signed": Since((1, 2), False)},
        numbers=("v_threshold", "initial_charge"),
    ),
    "growth": Kind(FUNCTION, neuron=True, computes=True, check=_check_growth),
    "subgradient": Kind(_SUBGRADIENT, 1, neuron=True, frame=_rate),
    "encoder": Kind(_ENCODER, 1, spike_view=_real, check=_check_encoder, frame=_coded),
    "average": Kind(NODE, 1),
}
