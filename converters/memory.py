"""The state that the modules of a model keep between frames, as one tensor, in and out."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]  # of one stream, by what is kept


class Memory:
    """What a frame finds (``before``) and leaves (``after``), each [B, ...], by name.

    It is not an attribute of a tensor or module: torch.export sees only the values in it.
    """

    def __init__(self) -> None:
        self.shapes: Shapes = {}
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def begin(self, state: Tensor) -> None:
        """A frame begins with the state [B, S]."""
        parts = state.split([prod(shape) for shape in self.shapes.values()], 1)
        named = zip(self.shapes.items(), parts, strict=True)
        self.before = {name: part.unflatten(1, shape) for (name, shape), part in named}
        self.after = {}

    def end(self) -> Tensor:
        """The state [B, S] that a frame leaves; what was not used stays."""
        kept = [self.after.get(name, self.before[name]) for name in self.shapes]
        return torch.cat([value.flatten(1) for value in kept], 1)

    @property
    def size(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


class Remembering(nn.Module):
    """A layer in whose place it is: what a model reads of the layer is the layer's."""

    def __init__(self, layer: nn.Module, path: str, memory: Memory) -> None:
        super().__init__()
        self.layer, self.path, self.memory = layer, path, memory

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
