"""Modules in another mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def having(module: nn.Module, **wanted: Any) -> Iterator[None]:
    """Each submodule that has such attributes with these values; what was set before comes back."""
    parts = [(p, name) for p in module.modules() for name in wanted if _has(p, name)]
    given = [(part, name, getattr(part, name)) for part, name in parts]
    before = [each for each in given if each[2] != wanted[each[1]]]
    for part, name, _ in before:
        object.__setattr__(part, name, wanted[name])
    try:
        yield
    finally:
        for part, name, value in before:
            object.__setattr__(part, name, value)


def _has(module: nn.Module, name: str) -> bool:
    """Whether it is an attribute, no tensor or submodule: to ask those takes long."""
    return name in vars(module) or hasattr(type(module), name)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every submodule has its own mode and attributes back.

    A forward pass may set attributes, also to what torch.export puts in the place of a tensor, and
    may register hooks.
    The fused attention that torch takes in eval mode, one opaque operation, is off meanwhile.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    hooks = [(kept, kept.copy()) for module in model.modules() for kept in _hooks(module)]
    fused = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        for kept, content in hooks:  # in place: their handles hold on to the dict
            if kept != content:
                kept.clear()
                kept.update(content)


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [v for name, v in vars(module).items() if "_hooks" in name and isinstance(v, dict)]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; its dicts of parameters, buffers and children by a copy."""
    return {
        name: value.copy() if name in ("_parameters", "_buffers", "_modules") else value
        for name, value in vars(module).items()
    }
