"""A description at another size of its input, by NumPy: ``core/sizes.py`` says what changes.

Independent of ``core/resizing.py``, which does the same for torch: here, too, all shapes are those
of a run on zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...core.sizes import Shapes, allowed, refused, shown
from ...errors import InputError, SignGDError
from .content import Content, Record
from .kinds import KINDS
from .runner_functions import Array, Function
from .runner_operations import apply, resolve


def at_size(
    content: Content, wanted: Shapes, functions: Mapping[str, Function], dtype: Any
) -> Content:
    """The description for samples of the shapes ``wanted``, by input. Raises InputError."""
    sizes = content.provenance.get("sizes")
    changes = allowed(sizes, wanted)
    if changes is None:
        raise refused(sizes, wanted)
    records = {node.name: node for node in content.nodes}
    values: dict[str, Array] = {}
    nodes = []
    for node in content.nodes:
        inputs = [values[name] for name in node["inputs"]]
        try:
            node = _changed(node, changes.get(node.name, {}))
            node = _derived(node, inputs, records, sizes["scaled"])  # type: ignore[index]
            value = _value(node, inputs, wanted, functions, dtype)
        except SignGDError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the network does not run on samples {shown(wanted)}: {node.name!r} fixes the "
                f"size ({error})."
            ) from error
        values[node.name] = value
        nodes.append(_with(node, shape=_shape(node["shape"], value.shape)))
    return replace(content, nodes=tuple(nodes))


def _value(
    node: Record,
    inputs: list[Array],
    wanted: Shapes,
    functions: Mapping[str, Function],
    dtype: Any,
) -> Array:
    """The source network's value for one sample of zeros."""
    if node.kind == "input":
        return np.zeros((1, *wanted[node.name]), dtype)
    if node.kind == "constant":
        return np.asarray(node["value"])
    if node.kind == "linear":
        return apply(node["op"], inputs, node["attributes"], node["tensors"], 1)
    if KINDS[node.kind].computes:
        return np.asarray(functions[node.name](*inputs, **node["arguments"]))
    return inputs[0]


def _with(node: Record, **fields: Any) -> Record:
    return Record(node.kind, {**node.fields, **fields})


def _shape(before: list[int | str], now: tuple[int, ...]) -> list[int | str]:
    """What followed the batch, of one sample here, follows it again."""
    pairs = zip(before, now, strict=True)
    return [f"{n}*batch" if isinstance(size, str) else n for size, n in pairs]


def _changed(node: Record, changes: Mapping[str, Mapping[str, Any]]) -> Record:
    if node.kind == "constant" and changes:
        return _with(node, value=_leading(node["value"], changes["tensors"]["value"]))
    for part, values in changes.items():
        now = dict(node[part])
        for name, value in values.items():
            now[name] = _leading(now[name], value) if hasattr(now[name], "shape") else value
        node = _with(node, **{part: now})
    return node


def _leading(array: Array, shape: list[int]) -> Array:
    if any(n > size for n, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"its table {list(array.shape)} has no {shape}; convert at the largest")
    return array[tuple(slice(n) for n in shape)]


def _derived(
    node: Record, inputs: list[Array], records: Mapping[str, Record], scaled: Any
) -> Record:
    """Attributes that say again what the shapes of inputs say."""
    if node.kind != "linear":
        return node
    if node["op"] == "affine":
        shapes = [inputs[0].shape, *(tensor.shape for tensor in node["tensors"].values())]
        shape = _shape(node["attributes"]["shape"], np.broadcast_shapes(*shapes))
        return _with(node, attributes={**node["attributes"], "shape": shape})
    if node.name in scaled:
        size = records[node.name]["attributes"]["size"]
        before = resolve(records[node["inputs"][0]]["shape"], 1)[-len(size) :]
        now = [
            n * (new // old)
            for n, new, old in zip(inputs[0].shape[-len(size) :], size, before, strict=True)
        ]
        return _with(node, attributes={**node["attributes"], "size": now})
    return node
