"""The contents of a description as plain data, and the constraints on each part.

NumPy arrays, numbers, strings, lists and dicts: torch is not needed to read one, to check it or to
run it. The rows of ``kinds.py`` and ``core/operations`` are the tables of ``docs/format.md``.
NumPy comes with h5py and is imported where it is used, so that ``save`` can say what to install
where both are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.checks import flag, is_array, names, natural, optional, text
from ...core.registry import look_up
from ...core.structures import leaves
from ...errors import FormatError
from .kinds import FIRST, KINDS, Record, finite

if TYPE_CHECKING:
    import numpy as np

VERSION = (1, 5)  # that this release reads


@dataclass(frozen=True)
class Content:
    """A description as plain data; ``outputs`` is a name, or lists, tuples and dicts of names.

    ``stream``: its state is kept from frame to frame. ``carries``: by the inputs that the network
    feeds itself, the node whose decoded value of the frame before they are.
    """

    nodes: tuple[Record, ...]
    outputs: Any
    time_steps: int
    statistics: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    stream: bool = False
    carries: Mapping[str, str] = field(default_factory=dict)
    version: tuple[int, int] = VERSION
    checksum: str = ""
    certificate: Mapping[str, Any] | None = None

    def of(self, kind: str) -> tuple[Record, ...]:
        """The nodes of a kind, in order."""
        return tuple(node for node in self.nodes if node.kind == kind)

    @property
    def plain(self) -> bool:
        """Whether the network takes one floating-point tensor."""
        inputs = self.of("input")
        return len(inputs) == 1 and inputs[0]["dtype"] == "float"


_SPATIAL = ("kernel_size", "stride", "padding", "dilation", "output_padding")  # one for each


def check(content: Content) -> None:
    """Raises FormatError, naming node and field, for what no description holds."""
    seen: set[str] = set()
    for node in content.nodes:
        _check_node(node, seen)
        seen.add(node.name)
    if not content.of("input"):
        raise FormatError("a network has an input node; this one has none.")
    missing = [name for name in leaves(content.outputs) if name not in seen]
    if missing:
        raise FormatError(f"the outputs name {missing[0]!r}, but there is no such node.")
    if not (natural(content.time_steps) and content.time_steps >= 1):
        raise FormatError(f"time_steps is an integer >= 1, but it is {content.time_steps!r}.")
    if not isinstance(content.provenance, Mapping):
        raise FormatError("provenance is not a JSON object.")
    if not optional(names)(content.class_names):
        raise FormatError(f"class_names is a list of strings, but it is {content.class_names!r}.")
    _check_stream(content)


def _check_stream(content: Content) -> None:
    if not flag(content.stream):
        raise FormatError(f"stream is true or false, but it is {content.stream!r}.")
    nodes = {node.name: node for node in content.nodes}
    inputs = {node.name: node for node in content.of("input") if node["dtype"] == "float"}
    if not isinstance(content.carries, Mapping):
        raise FormatError(f"carries is an object of names, but it is {content.carries!r}.")
    for name, of in content.carries.items():
        if name not in inputs or not text(of) or of not in nodes:
            raise FormatError(
                f"carries says that {name!r} is fed by {of!r}; the first is a floating-point input "
                f"({', '.join(inputs)}), the second a node."
            )
        if inputs[name]["shape"] != nodes[of]["shape"]:
            shapes = [list(inputs[name]["shape"]), list(nodes[of]["shape"])]
            raise FormatError(f"{name!r} is fed by {of!r}, but the shapes are {shapes}.")


def _check_node(node: Record, before: set[str]) -> None:
    where = f"node {node.fields.get('name')!r}"
    kind = look_up(KINDS, node.kind)
    if kind is None:
        raise FormatError(
            f"{where} is of kind {node.kind!r}; known: {', '.join(KINDS)}. It was written by a "
            "newer release."
        )
    for name, fits in kind.fields.items():
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
                f"{where} takes {name!r}, but no earlier node has that name; nodes are in "
                "topological order, without cycles."
            )
    arity = kind.arity(node)
    if arity is not None and arity != len(node["inputs"]):
        raise FormatError(f"{where} has {len(node['inputs'])} inputs; it takes {arity}.")
    if "op" in kind.fields:
        _check_operation(node, where)
    if kind.check is not None:
        kind.check(where, node)


def needs(node: Record) -> tuple[int, int]:
    """The format version that a reader of this node has to know."""
    tail = (1, 2) if "tail" in (node.fields.get("schedule") or {}) else FIRST
    return max(tail, KINDS[node.kind].needs(node))


def version_of(content: Content) -> tuple[int, int]:
    """The format version that the description is written in: no newer one than it needs."""
    several = (1, 4) if len(content.of("input")) > 1 else (1, 2)
    streams = (1, 5) if content.stream or content.carries else (1, 2)
    return max(several, streams, *map(needs, content.nodes))


def _check_finite(where: str, name: str, value: Any) -> None:
    """NaN and infinity make every output after them NaN, and chips cannot represent them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            infinite = isinstance(item, float) and math.isinf(item)
            if not (name == "arguments" and infinite):  # a clamp may be open on one side
                _check_finite(where, f"{name}.{key}", item)
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        is_array(value) and not finite(value)
    ):
        raise FormatError(
            f"{where}: {name} holds NaN or infinity, which a description must not; look for the "
            "layer of the model whose weights diverged."
        )


def _check_operation(node: Record, where: str) -> None:
    op, attributes, tensors = node["op"], node["attributes"], node["tensors"]
    rows, what = KINDS[node.kind].operations()
    row = look_up(rows, op)
    if row is None:
        raise FormatError(f"{where}: no {what} is called {op!r}; known: {', '.join(rows)}.")
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


def input_coding(content: Content) -> str:
    """How the first layers see the input: "exact", "real", "spike" or "poisson"."""
    for encoder in content.of("encoder"):
        coding: str = encoder["coding"]
        return coding
    inputs = {node.name for node in content.of("input")}
    coded = any(
        node["function"]["name"] == "identity" and set(node["inputs"]) <= inputs
        for node in content.of("signgd")
    )
    return "spike" if coded else "exact"
