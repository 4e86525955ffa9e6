"""The parameters p of Norse's neurons: checked, held by a module, saved as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...neurons.base import Node
from ...neurons.by_hand import check_members, learned, within
from ...neurons.nonlinearities import Nonlinearity, nonlinearity
from ...neurons.protocol import at_least_float32
from ...neurons.rounding import rounded
from ...neurons.schedules import Schedule


@dataclass(frozen=True)
class Held:
    """In the place of a tensor of p: the name that the module holds it by."""

    name: str


def hold_tensors(owner: nn.Module, name: str, value: Any, held: dict[str, Tensor]) -> Any:
    """The value with each tensor, which goes into ``held``, replaced by its name."""
    if isinstance(value, tuple):
        return tuple(hold_tensors(owner, f"{name}_{k}", item, held) for k, item in enumerate(value))
    if isinstance(value, Mapping):
        return {
            key: hold_tensors(owner, f"{name}_{key}", item, held) for key, item in value.items()
        }
    if isinstance(value, list):
        raise ValueError(
            f"{owner._get_name()}: {name} is a list; pass a tuple for several inputs, or a tensor."
        )
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(
            f"{owner._get_name()}: {name} is a tensor with a gradient, which would be lost. Pass "
            "an nn.Parameter to train it, or value.detach()."
        )
    held[name] = value
    return Held(name)


def filled(value: Any, held: Callable[[str], Any]) -> Any:
    """The value with each name replaced by the tensor that is ``held`` by it."""
    if isinstance(value, Held):
        return held(value.name)
    if isinstance(value, tuple):
        return tuple([filled(item, held) for item in value])
    if isinstance(value, dict):
        return {key: filled(item, held) for key, item in value.items()}
    return value


def used(name: str, value: Any) -> Any:
    """A number or tensor as it counts: in float32 at least, what is learned in its range."""
    value, learns = at_least_float32(value), learned(value)
    return within(name, value) if learns else value


def parameter_of(value: Any) -> Any:
    """A number or tensor, or each of a tuple, as one that is trained."""
    if isinstance(value, tuple):
        return tuple(map(parameter_of, value))
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return nn.Parameter(value.detach().clone())
    return nn.Parameter(torch.tensor(float(value), dtype=torch.float32))


def wrong_class(cls: type[Any], p: Any) -> InputError:
    """Parameters of another class, perhaps of the same name."""
    name, kind = cls.Parameters.__name__, p if isinstance(p, type) else type(p)
    known = isinstance(p, (str, int, float, list, dict, Tensor)) and type(p) is not type
    given = repr(p) if known else f"{kind.__module__}.{kind.__qualname__}"
    return InputError(
        f"{cls.__name__}: p is plugins.norse.{name}(...), but it is {given}. Import it with 'from "
        f"spikingjelly_signgd.plugins.norse import {name}'; its fields are "
        f"{', '.join(cls.Parameters._fields)}."
    )


def no_field(p: Any, name: str) -> AttributeError:
    """Where the pure steps of ``neurons/`` are handed a p of Norse's neurons."""
    kind = type(p).__name__
    return AttributeError(
        f"plugins.norse.{kind} has no {name!r}. The steps and sequences of neurons/ take "
        f"sg.{kind}, another class; the cells, layers and steps of plugins.norse take this one."
    )


def count_of(cls: type, name: str, value: Any) -> Any:
    """An integer, which Norse's users may give as a tensor."""
    value = item_of(value)
    if name == "members":
        return check_members(cls.__name__, value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{cls.__name__}: {name} is an integer, but it is {value!r}.")
    return value


def item_of(value: Any) -> Any:
    """The number in a tensor of one."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def number_of(cls: type, name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1 or value.requires_grad:
        raise ValueError(
            f"{cls.__name__}: {name} is one number that is not trained, but it is a tensor of "
            f"{list(value.shape)}{' with a gradient' if value.requires_grad else ''}. Scale the "
            "weights of the layer before instead."
        )
    return value.item()


def plain_of(value: Any) -> Any:
    """What ``torch.load`` reads with ``weights_only``; a held tensor as a dictionary."""
    if isinstance(value, Held):
        return {"tensor": value.name}
    if isinstance(value, tuple):
        return tuple(plain_of(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): plain_of(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, Tensor):  # a node's, which is saved by itself
        return "tensor"
    if isinstance(value, Node):
        return {each.name: plain_of(getattr(value, each.name)) for each in fields(value)}
    is_function = isinstance(value, Nonlinearity) or callable(value)
    return nonlinearity(value).name if is_function else repr(value)


def holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(holds_tensors, value.values()))
    return isinstance(value, Held) or (isinstance(value, tuple) and any(map(holds_tensors, value)))


def has_tensor(plain: Any) -> bool:
    if isinstance(plain, dict):
        return set(plain) == {"tensor"} or any(map(has_tensor, plain.values()))
    return isinstance(plain, tuple) and any(map(has_tensor, plain))


def told(plain: Any) -> str:
    """A saved value as an error names it."""
    if isinstance(plain, dict) and set(plain) == {"tensor"}:
        return "a tensor"
    return repr(plain)


def shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {shown(item)}' for key, item in value.items())}}}"
    return value.name if isinstance(value, (Node, Nonlinearity)) else rounded(value)
