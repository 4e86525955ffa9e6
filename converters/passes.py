"""Passes over the nodes of a network that is not spiking yet: nodes in, new nodes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.network import Linear, Node, leaves

Nodes = tuple[Node, ...]


def users(nodes: Sequence[Node], outputs: Any) -> dict[str, int]:
    """How many nodes, and outputs, read each value."""
    count = {node.name: 0 for node in nodes}
    for node in nodes:
        for name in node.inputs:
            count[name] += 1
    for name in leaves(outputs):
        count[name] += 1
    return count


def remove_unused(nodes: Nodes, outputs: Any) -> Nodes:
    """Without the nodes that no output depends on; the input stays."""
    needed = set(leaves(outputs)) | {"input"}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in nodes if node.name in needed)


def fuse_batch_norm(nodes: Nodes, outputs: Any) -> Nodes:
    """Scale and shift by channel, as batch norm is, folded into the weights before them.

    The factors are applied in float64. A convolution whose output is read by others too keeps its
    weights, and so does the affine operation after anything that has none.
    """
    count = users(nodes, outputs)
    by_name = {node.name: node for node in nodes}
    renamed: dict[str, str] = {}
    fused: dict[str, Node] = {}
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        source = fused.get(node.inputs[0]) if node.inputs else None
        if (
            isinstance(node, Linear)
            and node.op == "affine"
            and isinstance(source, Linear)
            and count[by_name[node.name].inputs[0]] == 1
            and source.shape == node.shape
        ):
            tensors = _folded(source, node.tensors)
            if tensors is not None:
                fused[source.name] = replace(source, tensors=tensors)
                renamed[node.name] = source.name
                count[source.name] = count[node.name]
                continue
        fused[node.name] = node
    if any(name in renamed for name in leaves(outputs)):
        return _with_output_names(outputs, renamed, fused)
    return tuple(fused.values())


def _with_output_names(outputs: Any, renamed: dict[str, str], fused: dict[str, Node]) -> Nodes:
    """The fused nodes under the names that the outputs use."""
    wanted = {renamed[name]: name for name in leaves(outputs) if name in renamed}
    return tuple(
        replace(
            node,
            name=wanted.get(node.name, node.name),
            inputs=tuple(wanted.get(name, name) for name in node.inputs),
        )
        for node in fused.values()
    )


def _folded(source: Linear, affine: Any) -> dict[str, Tensor] | None:
    """The weights of ``source`` after scale and shift, or None where they cannot hold them."""
    if source.op == "conv":
        spatial = len(source.attributes["stride"])
    elif source.op == "linear":
        spatial = 0
    else:
        return None
    weight = source.tensors["weight"]
    channels = weight.shape[0]
    vectors = {}
    for name in ("weight", "bias"):
        if name in affine:
            value = affine[name].double()
            by_channel = value.dim() == 0 or value.numel() == 1
            by_channel |= tuple(value.shape) in (
                (channels, *[1] * spatial),
                (1, channels, *[1] * spatial),
            )
            if not by_channel:
                return None
            vectors[name] = value.reshape(-1).expand(channels)
    factor = vectors.get("weight", torch.ones(channels, dtype=torch.float64))
    bias = source.tensors["bias"].double() * factor if "bias" in source.tensors else None
    if "bias" in vectors:
        bias = vectors["bias"] if bias is None else bias + vectors["bias"]
    shaped = factor.reshape(-1, *[1] * (weight.dim() - 1))
    tensors = {"weight": (weight.double() * shaped).to(weight.dtype)}
    if bias is not None:
        tensors["bias"] = bias.to(weight.dtype).contiguous()
    return tensors
