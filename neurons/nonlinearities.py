"""The functions that a signGD neuron can spike: one row each.

A row is the function f, the number of its arguments and whether the neuron fires at a tie
(v = f(x)). Where the published implementation has a mechanism for f, the tie is its own
(snn_signgd: ReLU, square, exp and mul fire; LeakyReLU, GELU, abs, maximum, div and x / sqrt(y)
do not). A user adds a function by writing a row, or by handing a callable to the neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .qcfs import qcfs as qcfs_operator


@dataclass(frozen=True)
class Nonlinearity:
    """f(\\*arguments, \\*\\*parameters) -> Tensor.

    ``arity`` None stands for any number of arguments. ``elementwise`` says that an output depends
    on the inputs at its own (broadcast) position only; max pooling is not.
    """

    name: str
    function: Callable[..., Tensor]
    arity: int | None = 1
    fires_at_tie: bool = True
    elementwise: bool = True

    def __call__(self, *arguments: Tensor, **parameters: Any) -> Tensor:
        return self.function(*arguments, **parameters)


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    return torch.clamp(x, min, max) if min is not None or max is not None else x


def elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """scale (x where x > 0, else alpha (exp(input_scale x) - 1)), as torch has ELU and SELU."""
    out: Tensor = torch.ops.aten.elu(x, alpha, scale, input_scale)
    return out


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` broadcasts against x: [C, 1, 1] for channels of an image."""
    return torch.where(x >= 0, x, weight * x)


def sigmoid_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the published implementation's GELU; 1.3 % off the real one."""
    return x * torch.sigmoid(1.702 * x)


def _above(x: Tensor, floor: float | None) -> Tensor:
    """x, or ``floor`` where a decoded x is below it: early on a variance may be negative."""
    return x if floor is None else x.clamp(min=floor)


def power(x: Tensor, exponent: float, floor: float | None = None) -> Tensor:
    return torch.pow(_above(x, floor), exponent)


def sqrt(x: Tensor, floor: float | None = None) -> Tensor:
    return torch.sqrt(_above(x, floor))


def rsqrt(x: Tensor, floor: float | None = None) -> Tensor:
    return torch.rsqrt(_above(x, floor))


def reciprocal(x: Tensor, floor: float | None = None) -> Tensor:
    return torch.reciprocal(_above(x, floor))


def divide(x: Tensor, y: Tensor, floor: float | None = None) -> Tensor:
    return x / _above(y, floor)


def divide_by_sqrt(x: Tensor, y: Tensor, floor: float | None = None) -> Tensor:
    return x / torch.sqrt(_above(y, floor))


def maximum_of(*arguments: Tensor) -> Tensor:
    return reduce(torch.maximum, arguments)


def max_pool(
    x: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool = False,
) -> Tensor:
    """The largest of a window, for one, two or three spatial dimensions: one neuron for a window.

    One dimension after the other as maxima of strided slices, several times faster on a CPU than
    torch's pooling, which also looks for the positions. Values are selected, so they are the same.
    """
    for axis, (k, s, p, d) in enumerate(zip(kernel_size, stride, padding, dilation, strict=True)):
        dim = axis - len(kernel_size)
        size, reach = x.shape[dim], d * (k - 1) + 1
        room = size + 2 * p - reach + (s - 1 if ceil_mode else 0)
        windows = room // s + 1
        if ceil_mode and (windows - 1) * s >= size + p:  # none starts in the padding on the right
            windows -= 1
        behind = max(0, (windows - 1) * s + reach - size - p)
        if p or behind:
            sides = [0] * (2 * -dim - 2) + [p, behind]
            x = F.pad(x, sides, value=float("-inf"))
        last = (windows - 1) * s + 1
        x = reduce(
            torch.maximum, [x.narrow(dim, i * d, last).unfold(dim, 1, s)[..., 0] for i in range(k)]
        )
    return x


def adaptive_max_pool(x: Tensor, output_size: tuple[int, ...]) -> Tensor:
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    return pool[len(output_size) - 1](x, output_size)


def amax(x: Tensor, dim: tuple[int, ...], keepdim: bool = False) -> Tensor:
    return torch.amax(x, dim, keepdim)


def qcfs(x: Tensor, v_threshold: float, levels: int) -> Tensor:
    """The quantised clip-floor-shift activation of a network trained for group neurons."""
    out: Tensor = qcfs_operator(x, torch.as_tensor(v_threshold, dtype=x.dtype), levels)
    return out


def identity(x: Tensor) -> Tensor:
    return x


_ROWS = [
    Nonlinearity("identity", identity, fires_at_tie=False),  # codes an input as spikes
    Nonlinearity("relu", torch.relu),
    Nonlinearity("relu6", F.relu6),
    Nonlinearity("leaky_relu", F.leaky_relu, fires_at_tie=False),  # negative_slope
    Nonlinearity("prelu", prelu),  # weight
    Nonlinearity("elu", elu),  # alpha, scale, input_scale
    Nonlinearity("selu", F.selu),
    Nonlinearity("celu", F.celu),  # alpha
    Nonlinearity("gelu", F.gelu, fires_at_tie=False),  # approximate="none" | "tanh"
    Nonlinearity("sigmoid_gelu", sigmoid_gelu, fires_at_tie=False),
    Nonlinearity("silu", F.silu),
    Nonlinearity("mish", F.mish),
    Nonlinearity("softplus", F.softplus),  # beta, threshold
    Nonlinearity("hardswish", F.hardswish),
    Nonlinearity("hardsigmoid", F.hardsigmoid),
    Nonlinearity("clamp", clamp),  # min, max; hardtanh
    Nonlinearity("qcfs", qcfs),  # v_threshold, levels
    Nonlinearity("sigmoid", torch.sigmoid),
    Nonlinearity("tanh", torch.tanh),
    Nonlinearity("abs", torch.abs, fires_at_tie=False),
    Nonlinearity("exp", torch.exp),
    Nonlinearity("square", torch.square),
    Nonlinearity("pow", power),  # exponent, floor
    Nonlinearity("sqrt", sqrt),  # floor
    Nonlinearity("rsqrt", rsqrt),  # floor
    Nonlinearity("reciprocal", reciprocal),  # floor
    Nonlinearity("maximum", torch.maximum, arity=2, fires_at_tie=False),
    Nonlinearity("minimum", torch.minimum, arity=2, fires_at_tie=False),
    Nonlinearity("mul", torch.mul, arity=2),
    Nonlinearity("div", divide, arity=2, fires_at_tie=False),  # floor
    Nonlinearity("divide_by_sqrt", divide_by_sqrt, arity=2, fires_at_tie=False),  # floor
    Nonlinearity("max", maximum_of, arity=None, fires_at_tie=False),
    Nonlinearity("max_pool", max_pool, fires_at_tie=False, elementwise=False),
    Nonlinearity("adaptive_max_pool", adaptive_max_pool, fires_at_tie=False, elementwise=False),
    Nonlinearity("amax", amax, fires_at_tie=False, elementwise=False),  # dim, keepdim
]
NONLINEARITIES: dict[str, Nonlinearity] = {row.name: row for row in _ROWS}


def nonlinearity(function: str | Nonlinearity | Callable[..., Tensor]) -> Nonlinearity:
    """The row named or given; a callable becomes a row of its own, which fires at a tie."""
    if isinstance(function, Nonlinearity):
        return function
    if isinstance(function, str):
        if function not in NONLINEARITIES:
            raise ValueError(
                f"no nonlinearity is called {function!r}; known: {', '.join(NONLINEARITIES)}. "
                "A function of your own is passed as a callable or as a Nonlinearity row."
            )
        return NONLINEARITIES[function]
    if not callable(function):
        raise TypeError(
            f"a nonlinearity is a row's name, a Nonlinearity or a callable, not {function!r}."
        )
    return Nonlinearity(getattr(function, "__name__", "custom"), function, arity=None)
