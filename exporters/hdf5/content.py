"""What a description holds, as plain data, and what each part of it may be.

NumPy arrays, numbers, strings, lists and dicts: torch is not needed to read one, to check it or to
run it. ``FIELDS`` and ``OPERATIONS`` are the tables of ``docs/format.md``. NumPy comes with h5py
and is imported where it is used, so that ``save`` can say what to install where both are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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


Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _natural(value: Any) -> bool:
    return _integer(value) and value >= 0


def _number(value: Any) -> bool:
    return (_integer(value) or isinstance(value, float)) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _size(value: Any) -> bool:
    if isinstance(value, str):
        times, star, batch = value.partition("*")
        return star == "*" and batch == "batch" and times.isdecimal() and len(times) < 18
    return _natural(value)


def _sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_size(v) for v in value)


def _integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_integer(v) for v in value)


def _naturals(value: Any) -> bool:
    return _integers(value) and all(v >= 0 for v in value)


def _counts(value: Any) -> bool:
    return _naturals(value) and 0 not in value and 0 < len(value) <= 3


def is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _finite(value: Any) -> bool:
    import numpy as np

    return is_array(value) and (value.dtype.kind in "iub" or bool(np.isfinite(value).all()))


def _number_or_array(value: Any) -> bool:
    return _number(value) or (is_array(value) and value.dtype.kind == "f")


def _scale(value: Any) -> bool:
    return _positive(value) or (
        _number_or_array(value) and is_array(value) and bool((value > 0).all())
    )


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _either(*choices: Any) -> Check:
    return lambda value: any(c(value) if callable(c) else value == c for c in choices)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _row(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and _text(value.get("name"))
        and (value.get("arity") is None or _natural(value["arity"]))
        and all(_flag(value.get(flag)) for flag in ("fires_at_tie", "elementwise", "own"))
        and _flag(value.get("selects", False))  # came with 1.2
    )


SCHEDULES: dict[str, dict[str, Check]] = {
    "exponential": {"initial": _positive, "decay": _positive},
    "inverse": {"initial": _positive, "delay": lambda v: _number(v) and v >= 0},
    "constant": {"initial": _positive},
    "list": {
        "values": lambda v: isinstance(v, (list, tuple)) and all(map(_positive, v)),
        "tail": _positive,
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
    return _number(value) and 0 <= value < 1


_NODE: dict[str, Check] = {"name": _text, "inputs": _names, "shape": _sizes}
_FUNCTION: dict[str, Check] = {
    "function": _row,
    "arguments": _mapping,
    "channel": _optional(_integer),
    "module": _text,
}
FIELDS: dict[str, dict[str, Check]] = {
    "input": _NODE,
    "constant": {**_NODE, "value": _finite},
    "linear": {**_NODE, "op": _text, "attributes": _mapping, "tensors": _mapping},
    "function": {**_NODE, **_FUNCTION},
    "signgd": {
        **_NODE,
        **_FUNCTION,
        "schedule": _schedule,
        "scale": _scale,
        "resting": _number_or_array,
        "momentum": _momentum,
        "members": lambda v: _natural(v) and 1 <= v <= MOST_SIGNS,
    },
    "group": {
        **_NODE,
        **_FUNCTION,
        "members": lambda v: _natural(v) and 1 <= v <= LARGEST_MEMBERS,
        "v_threshold": _scale,
        "initial_charge": _number_or_array,
        "signed": _flag,
    },
    "growth": {**_NODE, **_FUNCTION},
    "subgradient": {**_NODE, **_FUNCTION, "schedule": _schedule, "scale": _scale},
    "encoder": {
        **_NODE,
        "coding": _either("real", "poisson"),
        "schedule": _optional(_schedule),
        "momentum": _momentum,
        "scale": _positive,
        "seed": _integer,
        "per_step": _flag,
    },
    "average": _NODE,
}
ARITY = {"input": 0, "constant": 0, "group": 1, "subgradient": 1, "encoder": 1, "average": 1}

_PADDING = _either("same", "valid", _naturals)
_POOL: dict[str, Check] = {
    "kernel_size": _counts,
    "stride": _counts,
    "padding": _naturals,
    "ceil_mode": _flag,
    "count_include_pad": _flag,
}
_REDUCE: dict[str, Check] = {"dim": _integers, "keepdim": _flag}
# operation -> its attributes, its tensors, its other tensors that may be absent
OPERATIONS: dict[str, tuple[dict[str, Check], tuple[str, ...], tuple[str, ...]]] = {
    "conv": (
        {"stride": _counts, "padding": _PADDING, "dilation": _counts, "groups": _natural},
        ("weight",),
        ("bias",),
    ),
    "conv_transpose": (
        {
            "stride": _counts,
            "padding": _naturals,
            "output_padding": _naturals,
            "groups": _natural,
            "dilation": _counts,
        },
        ("weight",),
        ("bias",),
    ),
    "linear": ({}, ("weight",), ("bias",)),
    "matmul": ({"side": _either("left", "right")}, ("weight",), ()),
    "einsum": ({"equation": _text, "position": _either(0, 1)}, ("weight",), ()),
    "affine": ({"shape": _sizes}, (), ("weight", "bias")),
    "add": (
        {
            "coefficients": lambda v: (
                isinstance(v, (list, tuple)) and [*map(_number, v)] == [True] * 2
            )
        },
        (),
        (),
    ),
    "avg_pool": ({**_POOL, "divisor_override": _optional(_integer)}, (), ()),
    "adaptive_avg_pool": ({"output_size": _counts}, (), ()),
    "mean": (_REDUCE, (), ()),
    "sum": (_REDUCE, (), ()),
    "reshape": ({"shape": _sizes}, (), ()),
    "expand": ({"shape": _sizes}, (), ()),
    "permute": ({"dims": _integers}, (), ()),
    "cat": ({"dim": _integer}, (), ()),
    "slice": (
        {
            "dim": _integer,
            "start": _size,
            "stop": _size,
            "step": lambda v: _natural(v) and v > 0,
        },
        (),
        (),
    ),
    "index": ({"dim": _integer}, ("index",), ()),
    "pad": (
        {
            "pad": _integers,
            "mode": _either("constant", "reflect", "replicate", "circular"),
            "value": _number,
        },
        (),
        (),
    ),
    "upsample": (
        {
            "size": _counts,
            "mode": _either("nearest", "linear", "bilinear", "trilinear"),
        },
        (),
        (),
    ),
}
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
    if not (_natural(content.time_steps) and content.time_steps >= 1):
        raise FormatError(f"time_steps is an integer >= 1, but it is {content.time_steps!r}.")
    if not isinstance(content.provenance, Mapping):
        raise FormatError("provenance is not a JSON object.")
    names = content.class_names
    if names is not None and not _names(names):
        raise FormatError(f"class_names is a list of strings, but it is {names!r}.")


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
    if op not in OPERATIONS:
        raise FormatError(
            f"{where}: no linear operation is called {op!r}; known: {', '.join(OPERATIONS)}."
        )
    checks, required, others = OPERATIONS[op]
    for name, fits in checks.items():
        if name not in attributes or not fits(attributes[name]):
            shown = _shown(attributes[name]) if name in attributes else "missing"
            raise FormatError(f"{where}: the attribute {name} of {op} is {shown}.")
    for name in required:
        if name not in tensors:
            raise FormatError(f"{where}: {op} has a tensor {name!r}, which is missing.")
    for name in tensors:
        if name not in (*required, *others) or not is_array(tensors[name]):
            raise FormatError(f"{where}: {op} has no tensor {name!r}.")
    lengths = {len(attributes[k]) for k in _SPATIAL if isinstance(attributes.get(k), (list, tuple))}
    if len(lengths) > 1:
        raise FormatError(f"{where}: the attributes of {op} differ in their dimensions.")
    if op.startswith("conv") and tensors["weight"].ndim != len(attributes["stride"]) + 2:
        raise FormatError(f"{where}: the weight of {op} is {_shown(tensors['weight'])}.")
    inputs = len(node["inputs"])
    if inputs < 1 or (op == "add" and inputs != 2) or (op not in ("add", "cat") and inputs != 1):
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
