"""The neurons of ATen operations: a table that the caller can extend.

``NEURONS`` maps an operation to a rule. ``convert(model, data, neurons=NEURONS | {aten.sin.default:
torch.sin})`` adds one; the caller's entry wins. Besides a ``Rule``, an entry may be the name of a
row of ``NONLINEARITIES``, a row, or a callable of the operation's tensor arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from ..neurons.nonlinearities import Nonlinearity, nonlinearity

aten = torch.ops.aten


class NotConvertible(Exception):
    """Raised by a rule that does not support this form of its operation: why, and the fix."""


@dataclass(frozen=True)
class Rule:
    """``function`` names the row; ``arguments`` turns what follows the tensors into parameters."""

    function: str | Nonlinearity | Callable[..., Tensor]
    tensors: int | None = 1  # None: all the tensors that the operation is called with
    arguments: Callable[..., dict[str, Any]] = lambda: {}

    @property
    def row(self) -> Nonlinearity:
        return nonlinearity(self.function)


Entry = Rule | str | Nonlinearity | Callable[..., Tensor]
Operation = OpOverload | OpOverloadPacket


def _hardtanh(low: float = -1.0, high: float = 1.0) -> dict[str, Any]:
    return {"min": low, "max": high}


def _clamp(low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"min": low, "max": high}


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> dict[str, Any]:
    return {"alpha": alpha, "scale": scale, "input_scale": input_scale}


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> dict[str, Any]:
    return {"beta": beta, "threshold": threshold}


def _pool(
    kernel: list[int],
    stride: list[int] | None = None,
    padding: int | list[int] = 0,
    dilation: int | list[int] = 1,
    ceil_mode: bool = False,
    *,
    n: int,
) -> dict[str, Any]:
    def spread(value: int | list[int]) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(values * n if len(values) == 1 else values)

    return {
        "kernel_size": spread(kernel),
        "stride": spread(stride or kernel),
        "padding": spread(padding),
        "dilation": spread(dilation),
        "ceil_mode": bool(ceil_mode),
    }


def _pool_rule(n: int) -> Rule:
    return Rule("max_pool", arguments=lambda *args, **kwargs: _pool(*args, **kwargs, n=n))


def _adaptive(output_size: list[int]) -> dict[str, Any]:
    return {"output_size": tuple(output_size)}


def _amax(dim: int | list[int] | tuple[int, ...] = (), keepdim: bool = False) -> dict[str, Any]:
    return {"dim": (dim,) if isinstance(dim, int) else tuple(dim), "keepdim": keepdim}


def _power(exponent: float) -> dict[str, Any]:
    return {"exponent": exponent}


NEURONS: dict[Operation, Entry] = {
    aten.relu: "relu",
    aten.relu6: "relu6",
    aten.leaky_relu: Rule(
        "leaky_relu", arguments=lambda slope=0.01: {"negative_slope": float(slope)}
    ),
    aten.elu: Rule("elu", arguments=_elu),
    aten.selu: "selu",
    aten.celu: Rule("celu", arguments=lambda alpha=1.0: {"alpha": float(alpha)}),
    aten.gelu: Rule("gelu", arguments=lambda approximate="none": {"approximate": approximate}),
    aten.silu: "silu",
    aten.mish: "mish",
    aten.softplus: Rule("softplus", arguments=_softplus),
    aten.hardswish: "hardswish",
    aten.hardsigmoid: "hardsigmoid",
    aten.hardtanh: Rule("clamp", arguments=_hardtanh),
    aten.clamp.default: Rule("clamp", arguments=_clamp),
    aten.clamp_min.default: Rule("clamp", arguments=lambda low: {"min": low, "max": None}),
    aten.clamp_max.default: Rule("clamp", arguments=lambda high: {"min": None, "max": high}),
    aten.sigmoid: "sigmoid",
    aten.tanh: "tanh",
    aten.abs: "abs",
    aten.exp: "exp",
    aten.square: "square",
    aten.sqrt: "sqrt",
    aten.rsqrt: "rsqrt",
    aten.reciprocal: "reciprocal",
    aten.maximum: Rule("maximum", tensors=2),
    aten.max.other: Rule("maximum", tensors=2),
    aten.minimum: Rule("minimum", tensors=2),
    aten.min.other: Rule("minimum", tensors=2),
    aten.max_pool1d: _pool_rule(1),
    aten.max_pool2d: _pool_rule(2),
    aten.max_pool3d: _pool_rule(3),
    aten.max_pool1d_with_indices: _pool_rule(1),
    aten.max_pool2d_with_indices: _pool_rule(2),
    aten.max_pool3d_with_indices: _pool_rule(3),
    aten.adaptive_max_pool1d: Rule("adaptive_max_pool", arguments=_adaptive),
    aten.adaptive_max_pool2d: Rule("adaptive_max_pool", arguments=_adaptive),
    aten.adaptive_max_pool3d: Rule("adaptive_max_pool", arguments=_adaptive),
    aten.amax: Rule("amax", arguments=_amax),
    aten.max.dim: Rule("amax", arguments=_amax),
}


def as_rule(entry: Entry) -> Rule:
    if isinstance(entry, Rule):
        return entry
    row = nonlinearity(entry)
    return Rule(row, tensors=row.arity)


def find_rule(target: Any, neurons: Mapping[Operation, Entry]) -> Rule | None:
    """The entry for an operation: its overload first, then its packet."""
    for key in (target, getattr(target, "overloadpacket", None)):
        if key is not None and key in neurons:
            return as_rule(neurons[key])
    return None


def power(exponent: float) -> Rule:
    """x ** exponent: the named row where there is one."""
    named = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if float(exponent) in named:
        return Rule(named[float(exponent)])
    if not math.isfinite(exponent):
        raise NotConvertible(f"x ** {exponent} has no finite value")
    return Rule("pow", arguments=lambda: _power(float(exponent)))
