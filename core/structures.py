"""Structures of outputs: a name or a tensor, or lists, tuples and dicts of such; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def leaves(structure: Any) -> list[Any]:
    """What lists, tuples and dicts hold in the end, in order: names of nodes, or tensors."""
    if isinstance(structure, Mapping):
        structure = tuple(structure.values())
    if not isinstance(structure, (list, tuple)):
        return [structure]
    return [leaf for item in structure for leaf in leaves(item)]


def plain(structure: Any) -> Any:
    """What a model returns in lists, tuples and dicts: of dicts and dataclasses (the outputs of
    transformers) what is not None, by name."""
    if is_dataclass(structure) and not isinstance(structure, (type, Mapping)):
        structure = {each.name: getattr(structure, each.name) for each in fields(structure)}
    if isinstance(structure, Mapping):
        return {key: plain(item) for key, item in structure.items() if item is not None}
    if isinstance(structure, (list, tuple)):
        items = [plain(item) for item in structure]
        return items if isinstance(structure, list) else tuple(items)
    return structure


def each_leaf(structure: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with ``function`` applied to each of ``leaves``."""
    if isinstance(structure, Mapping):
        return {key: each_leaf(item, function) for key, item in structure.items()}
    if not isinstance(structure, (list, tuple)):
        return function(structure)
    return type(structure)(each_leaf(item, function) for item in structure)


def fill(structure: Any, values: Mapping[str, Any]) -> Any:
    """The structure with each name replaced by its value."""
    return each_leaf(structure, values.__getitem__)


def tagged(structure: Any) -> Any:
    """Names in JSON that keeps lists, tuples and dicts apart."""
    if isinstance(structure, str):
        return structure
    if isinstance(structure, Mapping):
        return {"dict": {key: tagged(value) for key, value in structure.items()}}
    kind = "tuple" if isinstance(structure, tuple) else "list"
    return {kind: [tagged(value) for value in structure]}


def untagged(data: Any) -> Any:
    """The structure of names that ``tagged`` took."""
    if isinstance(data, str):
        return data
    ((kind, items),) = data.items()
    if kind == "dict":
        return {key: untagged(value) for key, value in items.items()}
    return {"list": list, "tuple": tuple}[kind](untagged(value) for value in items)
