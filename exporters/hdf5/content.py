"""What a description holds, as plain data, and what each part of it may be.

NumPy arrays, numbers, strings, lists and dicts: torch is not needed to read one, to check it or to
run it. ``FIELDS`` here and the rows of ``core/operations`` are the tables of ``docs/format.md``.
NumPy comes with h5py and is imported where it is used, so that ``save`` can say what to install
where both are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
from ...core.operations.rows import LINEAR
from ...errors import FormatError

if TYPE_CHECKING:
    import numpy as np

VERSION = (1, 2)
LARGEST_MEMBERS = 2**16
SMALLEST_THETA = 2.0**-100  # of thresholds in a tensor
MOST_SIGNS = 8  # of a signGD neuron in one step
# fields of 1.2, and what they are in older files
DEFAULTS: dict[str, dict[str, Any]] = {"signgd": {"members": 1}, "group": {"signed": False}}


@dataclass(frozen=True)
class Record:
    """One node: its kind and the fields of ``FIELDS[kind]``, tensors as arrays."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        name: str = self.fields["name"]
        return name

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


@dataclass(frozen=True)
class Content:
    """A description as plain data; ``outputs`` is a name, or lists, tuples and dicts of names."""

    nodes: tuple[Record, ...]
    outputs: Any
    time_steps: int
    statistics: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    version: tuple[int, int] = VERSION
    checksum: str = ""
    certificate: Mapping[str, Any] | None = None


def _finite(value: Any) -> bool:
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


_NODE: dict[str, Check] = {"name": text, "inputs": names, "shape": sizes}
_FUNCTION: dict[str, Check] = {
    "function": _row,
    "arguments": mapping,
    "channel": optional(integer),
    "module": text,
}
FIELDS: dict[str, dict[str, Check]] = {
    "input": _NODE,
    "constant": {**_NODE, "value": _finite},
    "linear": {**_NODE, "op": text, "attributes": mapping, "tensors": mapping},
    "function": {**_NODE, **_FUNCTION},
    "signgd": {
        **_NODE,
        **_FUNCTION,
        "schedule": _schedule,
        "scale": _scale,
        "resting": _number_or_array,
        "momentum": _momentum,
        "members": lambda v: natural(v) and 1 <= v <= MOST_SIGNS,
    },
    "group": {
        **_NODE,
        **_FUNCTION,
        "members": lambda v: natural(v) and 1 <= v <= LARGEST_MEMBERS,
        "v_threshold": _scale,
        "initial_charge": _number_or_array,
        "signed": flag,
    },
    "growth": {**_NODE, **_FUNCTION},
    "subgradient": {**_NODE, **_FUNCTION, "schedule": _schedule, "scale": _scale},
    "encoder": {
        **_NODE,
        "coding": either("real", "poisson"),
        "schedule": optional(_schedule),
        "momentum": _momentum,
        "scale": positive,
        "seed": integer,
        "per_step": flag,
    },
    "average": _NODE,
}
ARITY = {"input": 0, "constant": 0, "group": 1, "subgradient": 1, "encoder": 1, "average": 1}

_SPATIAL = ("kernel_size", "stride", "padding", "dilation", "output_padding")  # one for each


def check(content: Content) -> None:
    """Raises FormatError, naming node and field, for what no description holds."""
    seen: set[str] = set()
    for node in content.nodes:
        _check_node(node, seen)
        seen.add(node.name)
    if sum(node.kind == "input" for node in content.nodes) != 1:
        raise FormatError("a network has one input node; this one has none, or several.")
    missing = [name for name in leaves(content.outputs) if name not in seen]
    if missing:
        raise FormatError(f"the outputs name {missing[0]!r}, but no node is called so.")
    if not (natural(content.time_steps) and content.time_steps >= 1):
        raise FormatError(f"time_steps is an integer >= 1, but it is {content.time_steps!r}.")
    if not isinstance(content.provenance, Mapping):
        raise FormatError("provenance is not a JSON object.")
    if not optional(names)(content.class_names):
        raise FormatError(f"class_names is a list of strings, but it is {content.class_names!r}.")


def _check_node(node: Record, before: set[str]) -> None:
    where = f"node {node.fields.get('name')!r}"
    if node.kind not in FIELDS:
        raise FormatError(
            f"{where} is of kind {node.kind!r}; known: {', '.join(FIELDS)}. It was written by a "
            "newer release."
        )
    for name, fits in FIELDS[node.kind].items():
        if name not in node.fields:
            raise FormatError(f"{where}: the field {name!r} of a {node.kind} node is missing.")
        _check_finite(where, name, node.fields[name])
        if not fits(node.fields[name]):
            raise FormatError(f"{where}: {name} = {_shown(node.fields[name])} does not fit.")
    if node.name in before:
        raise FormatError(f"two nodes are called {node.name!r}; names are unique.")
    for name in node["inputs"]:
        if name not in before:
            raise FormatError(
                f"{where} takes {name!r}, which no node before it is called; nodes are in "
                "topological order, without cycles."
            )
    own = node.kind in ("function", "signgd", "growth")
    arity = node["function"]["arity"] if own else ARITY.get(node.kind)
    if arity is not None and arity != len(node["inputs"]):
        raise FormatError(f"{where} has {len(node['inputs'])} inputs; it takes {arity}.")
    if node.kind == "encoder" and node["coding"] == "real" and node["schedule"] is None:
        raise FormatError(f"{where}: real-valued coding has a schedule, but it is missing.")
    if node.kind == "linear":
        _check_operation(node, where)
    if node.kind == "signgd" and node["members"] > 1 and node["momentum"]:
        raise FormatError(
            f"{where}: members = {node['members']} and momentum = {node['momentum']} exclude each "
            "other; set one of them to 1 or 0."
        )
    if node.kind == "group":
        for name in ("v_threshold", "initial_charge"):
            _check_broadcast(where, name, node[name], node["shape"])
        least = node["members"] * SMALLEST_THETA
        if is_array(node["v_threshold"]) and bool((node["v_threshold"] < least).any()):
            raise FormatError(
                f"{where}: v_threshold has values below members * 2 ** -100; rescale the layer."
            )
    if node.kind == "growth" and not node["function"].get("selects", False):
        raise FormatError(
            f"{where}: function = {node['function']['name']!r} does not select one of its inputs, "
            "as max pooling does, so its growth is no sum of spikes; make it a group neuron."
        )


def needs(node: Record) -> tuple[int, int] | None:
    """The format version that a reader of this node has to know, None for the first."""
    new = any(node[name] != value for name, value in DEFAULTS.get(node.kind, {}).items())
    new = new or "tail" in (node.fields.get("schedule") or {})
    if node.kind == "group":
        new = new or is_array(node["v_threshold"]) or is_array(node["initial_charge"])
    return (1, 2) if new else None


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


def _check_finite(where: str, name: str, value: Any) -> None:
    """NaN and infinity make every output after them NaN, and no chip holds them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            infinite = isinstance(item, float) and math.isinf(item)
            if not (name == "arguments" and infinite):  # a clamp may be open on one side
                _check_finite(where, f"{name}.{key}", item)
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        is_array(value) and not _finite(value)
    ):
        raise FormatError(
            f"{where}: {name} holds NaN or infinity, which a description does not; look for the "
            "layer of the model whose weights diverged."
        )


def _check_operation(node: Record, where: str) -> None:
    op, attributes, tensors = node["op"], node["attributes"], node["tensors"]
    if op not in LINEAR:
        raise FormatError(
            f"{where}: no linear operation is called {op!r}; known: {', '.join(LINEAR)}."
        )
    row = LINEAR[op]
    for name, fits in row.attributes.items():
        if name not in attributes or not fits(attributes[name]):
            shown = _shown(attributes[name]) if name in attributes else "missing"
            raise FormatError(f"{where}: the attribute {name} of {op} is {shown}.")
    for name in row.tensors:
        if name not in tensors:
            raise FormatError(f"{where}: {op} has a tensor {name!r}, which is missing.")
    for name in tensors:
        if name not in (*row.tensors, *row.optional) or not is_array(tensors[name]):
            raise FormatError(f"{where}: {op} has no tensor {name!r}.")
    lengths = {len(attributes[k]) for k in _SPATIAL if isinstance(attributes.get(k), (list, tuple))}
    if len(lengths) > 1:
        raise FormatError(f"{where}: the attributes of {op} differ in their dimensions.")
    if op.startswith("conv") and tensors["weight"].ndim != len(attributes["stride"]) + 2:
        raise FormatError(f"{where}: the weight of {op} is {_shown(tensors['weight'])}.")
    inputs = len(node["inputs"])
    if inputs != (row.inputs or max(inputs, 1)):
        raise FormatError(f"{where}: {op} has {inputs} inputs.")


def _shown(value: Any) -> str:
    text = f"an array {list(value.shape)} of {value.dtype}" if is_array(value) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def leaves(structure: Any) -> list[str]:
    """The node names in a structure of outputs, in order."""
    if isinstance(structure, str):
        return [structure]
    items = structure.values() if isinstance(structure, Mapping) else structure
    return [name for item in items for name in leaves(item)]


def input_coding(content: Content) -> str:
    """How the first layers see the input: "exact", "real", "spike" or "poisson"."""
    inputs = {node.name for node in content.nodes if node.kind == "input"}
    for node in content.nodes:
        if node.kind == "encoder":
            coding: str = node["coding"]
            return coding
        if node.kind == "signgd" and node["function"]["name"] == "identity":
            if set(node["inputs"]) <= inputs:
                return "spike"
    return "exact"
