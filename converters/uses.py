"""Who reads what among the nodes of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.network import Input, Node, leaves


def users(nodes: Sequence[Node], outputs: Any) -> dict[str, int]:
    """How many nodes, and outputs, read each value."""
    count = {node.name: 0 for node in nodes}
    for node in nodes:
        for name in node.inputs:
            count[name] += 1
    for name in leaves(outputs):
        count[name] += 1
    return count


def used(nodes: Sequence[Node], outputs: Any) -> tuple[Node, ...]:
    """Without the nodes that no output depends on; the inputs stay."""
    needed = {node.name for node in nodes if isinstance(node, Input) and node.given}
    needed |= set(leaves(outputs))
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in nodes if node.name in needed)
