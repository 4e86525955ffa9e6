"""The functions that a signGD neuron can compute: one row each.

A row is the function f, the number of its arguments and whether the neuron fires at a tie
(v = f(x)). Where the published implementation has a mechanism for f, the tie is its own
(snn_signgd: ReLU, square, exp and mul fire; LeakyReLU, GELU, abs, maximum, div and x / sqrt(y)
do not). A function of many arguments takes the tie of the mechanism that ends its published
decomposition: softmax and x over its norm that of div, a norm that of sqrt, LayerNorm and RMSNorm
that of x / sqrt(y), a matrix product and attention that of mul. A user adds a function by writing a
row, or by passing a callable to the neuron.

With its C expression a row also runs inside the kernels. The expression is over the arguments x, y,
z and the parameters of ``parameters`` by their names, in float32, and may use what the files
``kernels/functions.cuh`` and ``math.cuh`` define.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..names import near, spelled
from .kernels.build import kernel_function
from .qcfs import qcfs as qcfs_operator


class FunctionInC(NamedTuple):
    """``key`` is the code and the names in it; tensors are read like arguments, numbers are not."""

    key: str
    tensors: tuple[Tensor, ...]
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Nonlinearity:
    """f(\\*arguments, \\*\\*parameters) -> Tensor.

    ``arity`` None stands for any number of arguments. ``elementwise`` says that an output depends
    on the inputs at its own (broadcast) position only; max pooling is not. ``code`` is f in C,
    empty if the kernels receive f(x) instead. ``parameters`` are the names that occur in it with
    their defaults: a number, which also stands for None; None for a parameter that is a tensor; the
    words that a parameter may be, the default first, which replace its name in braces.

    ``any_leading`` says that f takes its arguments with any dimensions in front, such as time.
    ``selects`` says that an output is one of the inputs, so that f(a x) = a f(x) for a > 0.
    """

    name: str
    function: Callable[..., Tensor]
    arity: int | None = 1
    fires_at_tie: bool = True
    elementwise: bool = True
    any_leading: bool = False
    selects: bool = False
    code: str = ""
    parameters: Mapping[str, float | tuple[str, ...] | None] = field(
        default_factory=dict, hash=False
    )

    def __call__(self, *arguments: Tensor, **parameters: Any) -> Tensor:
        return self.function(*arguments, **parameters)

    def over_time(self, *x_seq: Tensor, **parameters: Any) -> Tensor:
        """f of each step of sequences [T, *]: of all at once where the row allows it."""
        if self.any_leading:
            return self(*x_seq, **parameters)
        if self.elementwise:
            tensors = (a for a in parameters.values() if isinstance(a, Tensor))
            rank = max(*(x.dim() for x in x_seq), *(1 + a.dim() for a in tensors), 1)
            ones = [[1] * (rank - x.dim()) for x in x_seq]
            aligned = (
                x.reshape(x.shape[0], *one, *x.shape[1:])
                for x, one in zip(x_seq, ones, strict=True)
            )
            return self(*aligned, **parameters)
        steps = zip(*x_seq, strict=True)
        return torch.stack([self(*step, **parameters) for step in steps])

    def in_c(self, given: Mapping[str, Any]) -> FunctionInC | None:
        """f with these parameters as the kernels take it, None where its code does not serve."""
        if not self.code or self.arity is None or set(given) - set(self.parameters):
            return None
        words: dict[str, str] = {}
        tensors: list[Tensor] = []
        numbers: list[float] = []
        for name, default in self.parameters.items():
            value = given.get(name)
            if isinstance(default, tuple):
                words[name] = default[0] if value is None else value
                if words[name] not in default:
                    return None
            elif default is None:
                if not isinstance(value, Tensor):
                    return None
                tensors.append(value)
            elif isinstance(value, Tensor):
                return None
            else:
                numbers.append(float(default if value is None else value))
        function = kernel_function(self.code, self.arity, dict(self.parameters), words)
        return FunctionInC(function.key, tuple(tensors), tuple(numbers))


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
    """x, or ``floor`` where a decoded x is below it, as a variance may be at first."""
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


def exp(x: Tensor, ceiling: float | None = None) -> Tensor:
    """exp of x, or of ``ceiling`` if a decoded x is above it, as x - max(x) may be at first."""
    return torch.exp(x if ceiling is None else x.clamp(max=ceiling))


def log(x: Tensor, floor: float | None = None) -> Tensor:
    return torch.log(_above(x, floor))


def softmax(x: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Over ``dim``, counted from the end: one neuron for a weight, which sees all its logits.

    ``keep`` broadcasts against x: 1 where a logit takes part, 0 where it is masked and its weight
    is 0. A fully masked row gives zeros, as torch's scaled_dot_product_attention does.
    """
    if keep is None:
        return torch.softmax(x, dim)
    masked = keep == 0
    out = torch.softmax(x.masked_fill(masked, float("-inf")), dim)
    return out.masked_fill(masked, 0.0)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    return torch.log_softmax(x, dim)


def layer_norm(x: Tensor, dims: int, eps: float) -> Tensor:
    """Over the last ``dims`` dimensions, without weight and bias: one neuron for an output.

    On a CPU torch has vectorised code with a weight and a bias alone; 1 and 0 change no bit.
    """
    shape = x.shape[-dims:]
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.layer_norm(x, shape, eps=eps)
    return F.layer_norm(x, shape, x.new_ones(shape), x.new_zeros(shape), eps)


def rms_norm(x: Tensor, dims: int, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(list(range(-dims, 0)), True) + eps)


def vector_norm(x: Tensor, dim: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The root of the sum of squares over dimensions, counted from the end: one neuron a norm."""
    return torch.linalg.vector_norm(x, 2, dim, keepdim)


def normalize(x: Tensor, dim: tuple[int, ...], eps: float) -> Tensor:
    """x over its norm, which counts as ``eps`` at least: one neuron for an output."""
    return x / vector_norm(x, dim, True).clamp(min=eps)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """[..., n, k] times [..., k, m] of as many dimensions: one neuron for a scalar of [n, m]."""
    return torch.matmul(x, y)


def attention(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    scale: float = 1.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """softmax(scale x y + bias) z, one neuron for an output of attention.

    Queries [..., n, d], transposed keys [..., d, s] and values [..., s, m] of as many dimensions;
    ``keep`` as ``softmax`` has it.
    """
    logits = torch.matmul(x, y).mul_(scale)
    return torch.matmul(softmax(logits if bias is None else logits + bias, -1, keep), z)


def masked_softmax(x: Tensor, bias: Tensor, dim: int, keep: Tensor | None = None) -> Tensor:
    """Of x + ``bias``, which depends on the input, -inf where it masks: ``softmax`` else."""
    masked = bias == float("-inf")
    masked = masked if keep is None else masked | (keep == 0)
    return softmax(x + bias, dim, (~masked).to(x.dtype))


def masked_attention(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    mask: Tensor,
    scale: float = 1.0,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """softmax(scale x y + bias + mask) z, see ``attention``; ``mask`` as in ``masked_softmax``."""
    logits = torch.matmul(x, y).mul_(scale)
    logits = logits if bias is None else logits + bias
    return torch.matmul(masked_softmax(logits, mask, -1, keep), z)


def qcfs(x: Tensor, v_threshold: float, levels: int) -> Tensor:
    """The quantised clip-floor-shift activation of a network trained for group neurons."""
    out: Tensor = qcfs_operator(x, torch.as_tensor(v_threshold, dtype=x.dtype), levels)
    return out


def identity(x: Tensor) -> Tensor:
    return x


_ROWS = [
    Nonlinearity("identity", identity, fires_at_tie=False, code="x"),  # codes an input as spikes
    Nonlinearity("relu", torch.relu, code="at_least(x, 0.0f)"),
    Nonlinearity("relu6", F.relu6, code="at_most(at_least(x, 0.0f), 6.0f)"),
    Nonlinearity(
        "leaky_relu",
        F.leaky_relu,
        fires_at_tie=False,
        code="x > 0.0f ? x : x * negative_slope",
        parameters={"negative_slope": 0.01},
    ),
    Nonlinearity("prelu", prelu, code="x >= 0.0f ? x : weight * x", parameters={"weight": None}),
    Nonlinearity(
        "elu",
        elu,
        code="elu(x, alpha, scale, input_scale)",
        parameters={"alpha": 1.0, "scale": 1.0, "input_scale": 1.0},
    ),
    Nonlinearity("selu", F.selu, code="elu(x, 1.67326324235f, 1.05070098736f, 1.0f)"),
    Nonlinearity(
        "celu", F.celu, code="elu(x, alpha, 1.0f, 1.0f / alpha)", parameters={"alpha": 1.0}
    ),
    Nonlinearity(
        "gelu",
        F.gelu,
        fires_at_tie=False,
        code="gelu_{approximate}(x)",
        parameters={"approximate": ("none", "tanh")},
    ),
    Nonlinearity(
        "sigmoid_gelu", sigmoid_gelu, fires_at_tie=False, code="x * sigmoid_of(1.702f * x)"
    ),
    Nonlinearity("silu", F.silu, code="x / (1.0f + exp_of(-x))"),
    Nonlinearity("mish", F.mish, code="mish(x)"),
    Nonlinearity(
        "softplus",
        F.softplus,
        code="softplus(x, beta, threshold)",
        parameters={"beta": 1.0, "threshold": 20.0},
    ),
    Nonlinearity("hardswish", F.hardswish, code="x * relu6(x + 3.0f) / 6.0f"),
    Nonlinearity("hardsigmoid", F.hardsigmoid, code="relu6(x + 3.0f) / 6.0f"),
    Nonlinearity(  # hardtanh
        "clamp",
        clamp,
        code="at_most(at_least(x, min), max)",
        parameters={"min": -inf, "max": inf},
    ),
    Nonlinearity(
        "qcfs",
        qcfs,
        code="qcfs(x, v_threshold, levels)",
        parameters={"v_threshold": 1.0, "levels": 1.0},
    ),
    Nonlinearity("sigmoid", torch.sigmoid, code="sigmoid_of(x)"),
    Nonlinearity("tanh", torch.tanh, code="tanh_of(x)"),
    Nonlinearity("abs", torch.abs, fires_at_tie=False, code="fabsf(x)"),
    Nonlinearity("exp", exp, code="exp_of(at_most(x, ceiling))", parameters={"ceiling": inf}),
    Nonlinearity("log", log),  # floor
    Nonlinearity("square", torch.square, code="x * x"),
    Nonlinearity("pow", power),  # exponent, floor
    Nonlinearity("sqrt", sqrt, code="sqrtf(at_least(x, floor))", parameters={"floor": -inf}),
    Nonlinearity(
        "rsqrt", rsqrt, code="1.0f / sqrtf(at_least(x, floor))", parameters={"floor": -inf}
    ),
    Nonlinearity(
        "reciprocal", reciprocal, code="1.0f / at_least(x, floor)", parameters={"floor": -inf}
    ),
    Nonlinearity(
        "maximum",
        torch.maximum,
        arity=2,
        fires_at_tie=False,
        selects=True,
        code="maximum(x, y)",
    ),
    Nonlinearity(
        "minimum",
        torch.minimum,
        arity=2,
        fires_at_tie=False,
        selects=True,
        code="minimum(x, y)",
    ),
    Nonlinearity("mul", torch.mul, arity=2, code="x * y"),
    Nonlinearity(
        "div",
        divide,
        arity=2,
        fires_at_tie=False,
        code="x / at_least(y, floor)",
        parameters={"floor": -inf},
    ),
    Nonlinearity(
        "divide_by_sqrt",
        divide_by_sqrt,
        arity=2,
        fires_at_tie=False,
        code="x / sqrtf(at_least(y, floor))",
        parameters={"floor": -inf},
    ),
    Nonlinearity("max", maximum_of, arity=None, fires_at_tie=False, selects=True),
    Nonlinearity(
        "max_pool",
        max_pool,
        fires_at_tie=False,
        elementwise=False,
        any_leading=True,
        selects=True,
    ),
    Nonlinearity(
        "adaptive_max_pool", adaptive_max_pool, fires_at_tie=False, elementwise=False, selects=True
    ),
    Nonlinearity(  # dim, keepdim
        "amax", amax, fires_at_tie=False, elementwise=False, selects=True
    ),
    Nonlinearity(  # dim, keep
        "softmax", softmax, fires_at_tie=False, elementwise=False, any_leading=True
    ),
    Nonlinearity(  # dim
        "log_softmax", log_softmax, fires_at_tie=False, elementwise=False, any_leading=True
    ),
    Nonlinearity(  # dims, eps
        "layer_norm", layer_norm, fires_at_tie=False, elementwise=False, any_leading=True
    ),
    Nonlinearity(  # dims, eps
        "rms_norm", rms_norm, fires_at_tie=False, elementwise=False, any_leading=True
    ),
    Nonlinearity("vector_norm", vector_norm, elementwise=False, any_leading=True),  # dim, keepdim
    Nonlinearity(  # dim, eps
        "normalize", normalize, fires_at_tie=False, elementwise=False, any_leading=True
    ),
    Nonlinearity("matmul", matmul, arity=2, elementwise=False, any_leading=True),
    Nonlinearity(  # scale, bias, keep
        "attention", attention, arity=3, elementwise=False, any_leading=True
    ),
    Nonlinearity(  # dim, keep
        "masked_softmax",
        masked_softmax,
        arity=2,
        fires_at_tie=False,
        elementwise=False,
        any_leading=True,
    ),
    Nonlinearity(  # scale, bias, keep
        "masked_attention", masked_attention, arity=4, elementwise=False, any_leading=True
    ),
]
NONLINEARITIES: dict[str, Nonlinearity] = {row.name: row for row in _ROWS}


def nonlinearity(function: str | Nonlinearity | Callable[..., Tensor]) -> Nonlinearity:
    """The row of this name; a callable becomes a new row, which fires at a tie.

    How a callable treats its dimensions is not known, so it does not count as elementwise.
    """
    if isinstance(function, Nonlinearity):
        return function
    if isinstance(function, str):
        function = spelled(function, NONLINEARITIES)
        if function not in NONLINEARITIES:
            raise ValueError(
                f"no nonlinearity is called {function!r}; known: {', '.join(NONLINEARITIES)}."
                f"{near(function, NONLINEARITIES)} "
                "A function of your own is passed as a callable or as a Nonlinearity row."
            )
        return NONLINEARITIES[function]
    if not callable(function):
        raise TypeError(
            f"a nonlinearity is a row's name, a Nonlinearity or a callable, not {function!r}."
        )
    name = getattr(function, "__name__", "custom")
    return Nonlinearity(name, function, arity=None, elementwise=False)
