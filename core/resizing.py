"""A description at another size of its input: the same nodes, with all shapes recomputed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..neurons.base import Function, Node, Size, Timed, broadcasts, follows_batch, resolve
from .network import Constant, Input, Linear, SpikingNetwork, Static, is_affine
from .operations import apply
from .operations.statics import compute, types
from .sizes import Changes, Shapes, allowed, as_shapes, refused, shown
from .walk import Semantics, walk


def at_size(network: SpikingNetwork, given: tuple[Any, ...]) -> SpikingNetwork:
    """``SpikingNetwork.at_size``."""
    inputs = network.inputs
    wanted = as_shapes([node.name for node in inputs], given)
    if all(wanted[node.name] == node.shape[1:] for node in inputs):
        return network
    sizes = network.provenance.get("sizes")
    changes = allowed(sizes, wanted)
    if sizes is None:
        resized(network, wanted, {})  # a node that fixes the size is a better reason
    if changes is None or sizes is None:
        raise refused(sizes, wanted)
    return resized(network, wanted, changes, sizes["scaled"])


def resized(
    network: SpikingNetwork, wanted: Shapes, changes: Changes, scaled: Any = ()
) -> SpikingNetwork:
    """The network with ``changes``, whose shapes are those of a run on zeros.

    Raises InputError, naming the node, where one fixes the size.
    """
    sizes = _Sizes(network, wanted, changes, scaled)
    walk(network, sizes, keep=())
    return network.with_nodes(sizes.nodes)


class _Sizes(Semantics[Tensor]):
    """The source network's values for one sample of zeros; ``nodes`` as they are at that size."""

    def __init__(
        self, network: SpikingNetwork, wanted: Shapes, changes: Changes, scaled: Any
    ) -> None:
        self.network, self.wanted, self.changes, self.scaled = network, wanted, changes, scaled
        self.nodes: dict[str, Node] = {}
        floating = (t for t in network._tensors() if t.is_floating_point())
        self.like = next(floating, torch.zeros(()))

    def _sized(
        self,
        node: Any,
        value: Callable[[Any], Tensor],
        derived: Callable[[Any], Any] = lambda node: node,
    ) -> Tensor:
        """The node's value, once it is changed."""
        try:
            changed = derived(_changed(node, self.changes.get(node.name, {})))
            found = value(changed)
            sized = replace(changed, shape=_shape(node.shape, found))
            _check_tensors(sized, node.shape)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise InputError(_fixed(node, self.wanted, error)) from error
        self.nodes[node.name] = sized
        return found

    def input(self, node: Input) -> Tensor:
        dtype = types(self.like.dtype)[node.dtype]
        zeros = self.like.new_zeros(1, *self.wanted[node.name], dtype=dtype)
        return self._sized(node, lambda n: zeros)

    def exact(self, node: Static, inputs: list[Tensor]) -> Tensor:
        def value(n: Static) -> Tensor:
            given = n.name, n.op, inputs, n.attributes, n.tensors, 1, n.dtype, self.like.dtype
            return compute(*given)

        return self._sized(node, value)

    def constant(self, node: Constant) -> Tensor:
        return self._sized(node, lambda n: n.value)

    def linear(self, node: Linear, inputs: list[Tensor]) -> Tensor:
        return self._sized(
            node,
            lambda n: apply(n.op, inputs, n.attributes, n.tensors, 1),
            lambda n: self._derived(n, inputs),
        )

    def function(self, node: Function, inputs: list[Tensor]) -> Tensor:
        return self._sized(node, lambda n: n.function(*inputs, **n.arguments))

    neuron = function  # type: ignore[assignment]

    def timed(self, node: Timed, inputs: list[Tensor]) -> Tensor:
        return self._sized(node, lambda n: inputs[0])

    def _derived(self, node: Linear, inputs: list[Tensor]) -> Linear:
        """Attributes that say again what the shapes of inputs say: sizes that were not chosen by a
        user."""
        if is_affine(node):
            shapes = [inputs[0].shape, *(tensor.shape for tensor in node.tensors.values())]
            whole = torch.empty(torch.broadcast_shapes(*shapes), device="meta")
            shape = list(_shape(node.attributes["shape"], whole))
            return replace(node, attributes={**node.attributes, "shape": shape})
        if node.name in self.scaled:
            size = self.network[node.name].attributes["size"]  # type: ignore[attr-defined]
            before = resolve(self.network[node.inputs[0]].shape, 1)[-len(size) :]
            now = inputs[0].shape[-len(size) :]
            size = [n * (new // old) for n, new, old in zip(now, size, before, strict=True)]
            return replace(node, attributes={**node.attributes, "size": size})
        return node


def _shape(before: tuple[Size, ...], now: Tensor) -> tuple[Size, ...]:
    """What followed the batch, of one sample here, follows it again."""
    pairs = zip(before, now.shape, strict=True)
    return tuple(f"{n}*batch" if follows_batch(size) else n for size, n in pairs)


def _changed(node: Any, changes: Mapping[str, Mapping[str, Any]]) -> Any:
    if hasattr(node, "value") and changes:
        return replace(node, value=_leading(node.value, changes["tensors"]["value"]))
    for part, values in changes.items():
        now = dict(getattr(node, part))
        for name, value in values.items():
            now[name] = _leading(now[name], value) if isinstance(now[name], Tensor) else value
        node = replace(node, **{part: now})
    return node


def _leading(tensor: Tensor, shape: list[int]) -> Tensor:
    """The part of a table that a smaller size reads; a larger one would read beyond its end."""
    if any(n > size for n, size in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"its table {list(tensor.shape)} has no {shape}; convert at the largest")
    return tensor[tuple(slice(n) for n in shape)]


def _check_tensors(node: Node, before: tuple[Size, ...]) -> None:
    """Scales, thresholds and the like are of all sizes where they are by channel."""
    if not isinstance(node, Timed):
        return
    now, was = resolve(node.shape, 1), resolve(before, 1)
    for name, tensor in node.tensors.items():
        if name.startswith("argument_"):
            continue
        places = zip(reversed(tensor.shape), was[::-1], now[::-1], strict=False)
        if not broadcasts(tensor.shape, now) or any(n > 1 and a != b for n, a, b in places):
            raise ValueError(f"its {name} {list(tensor.shape)} has one value for each position")


def _fixed(node: Any, wanted: Shapes, error: Exception) -> str:
    what = getattr(node, "op", "") or node.kind
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"the network does not run on samples {shown(wanted)}: {node.name!r} ({what}) fixes the "
        f"size ({first}). Convert the model at that size, with convert(..., sizes=[...]) if it "
        "takes both, or pool to one size before this layer, as nn.AdaptiveAvgPool2d does."
    )
