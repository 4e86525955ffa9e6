"""How torch computes the linear operations, over one time step or over many at once.

``apply`` computes the whole, ``apply_linear`` its linear part. ``apply_over_time`` does either at
many time steps at once, and ``connections`` counts what arrives where every connection is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from string import ascii_letters

import torch
import torch.nn.functional as F
from torch import Tensor

from ...neurons.base import Size, follows_batch, resolve
from .rows import LINEAR, Attributes

__all__ = [
    "FORMS",
    "Size",
    "apply",
    "apply_linear",
    "apply_over_time",
    "connections",
    "follows_batch",
    "resolve",
]

Inputs = Sequence[Tensor]
Tensors = Mapping[str, Tensor]
# ``time`` is 1 where every input leads with a time axis [K, ...], else 0
Apply = Callable[[Inputs, Attributes, Tensors, int, int], Tensor]


def _shift(dim: int, time: int) -> int:
    """The dimension of one step, in a value that leads with time."""
    return dim + time if dim >= 0 else dim


def _align(x: Tensor, rank: int, time: int) -> Tensor:
    """x broadcasts to ``rank`` dimensions from the right; its time axis stays in front of them."""
    missing = rank + time - x.dim()
    if not time or missing <= 0:
        return x
    return x.reshape(x.shape[0], *[1] * missing, *x.shape[1:])


def _expand_to(x: Tensor, shape: Sequence[Size], batch: int, time: int) -> Tensor:
    return _align(x, len(shape), time).expand(*x.shape[:time], *resolve(shape, batch))


def _fold(run: Callable[[Tensor], Tensor], x: Tensor, spatial: int) -> Tensor:
    """``run`` of [N, C, *spatial]: time and all else before C are folded into N."""
    lead = x.dim() - spatial - 1
    if lead < 2:
        return run(x)
    return run(x.flatten(0, lead - 1)).unflatten(0, x.shape[:lead])


def _conv(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    n = len(a["stride"])
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    weights = w["weight"], w.get("bias")
    options = a["stride"], a["padding"], a["dilation"], a["groups"]
    return _fold(lambda v: conv(v, *weights, *options), x[0], n)


def _conv_transpose(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    n = len(a["stride"])
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    weights = w["weight"], w.get("bias")
    options = a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
    return _fold(lambda v: conv(v, *weights, *options), x[0], n)


def _linear(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return F.linear(x[0], w["weight"], w.get("bias"))


def _matmul(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    value, weight, left = x[0], w["weight"], a["side"] == "left"
    vector = time and value.dim() == 2  # at every step a matrix of one column, or of one row
    if vector:
        value = value.unsqueeze(-1 if left else -2)
    value = _align(value, weight.dim(), time)
    out = weight @ value if left else value @ weight
    return out.squeeze(-1 if left or weight.dim() == 1 else -2) if vector else out


def _einsum(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    position = a["position"]
    equation = _equation_over_time(a["equation"], position) if time else a["equation"]
    operands = [x[0], w["weight"]] if position == 0 else [w["weight"], x[0]]
    out: Tensor = torch.einsum(equation, *operands)
    return out


def _equation_over_time(equation: str, position: int) -> str:
    """``"nc,cd->nd"`` to ``"anc,cd->and"``: a new index leads the value and the result."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:  # what occurs once, in alphabetical order
        out = "".join(c for c in sorted(ascii_letters) if terms.count(c) == 1)
        out = "..." + out if "..." in terms else out
    time = next(c for c in ascii_letters if c not in equation)
    operands = [time * (i == position) + term for i, term in enumerate(terms.split(","))]
    return f"{','.join(operands)}->{time}{out}"


def _affine(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    # without its bias the linear part still has the broadcast shape
    out = _expand_to(x[0], a["shape"], batch, time)
    weight, bias = w.get("weight"), w.get("bias")
    if weight is not None:
        out = out * weight
    if bias is None:
        return out
    # the product is nobody else's; addcmul would round once where this rounds twice
    return out + bias if weight is None or bias.dtype != out.dtype else out.add_(bias)


def _add(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    first, second = a["coefficients"]
    rank = max(v.dim() for v in x) - time
    left, right = (_align(v, rank, time) for v in x)
    return torch.add(left if first == 1 else left * first, right, alpha=second)


def _avg_pool(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    n = len(a["kernel_size"])
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    options = [a[k] for k in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")]
    if n > 1:
        options.append(a.get("divisor_override"))
    return _fold(lambda v: pool(v, *options), x[0], n)


def _adaptive_avg_pool(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    size = a["output_size"]
    if all(s == 1 for s in size):  # as torch computes it, in any layout
        return x[0].mean(list(range(-len(size), 0)), True)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    return _fold(lambda v: pool(v, size), x[0], len(size))


def _mean(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return _reduce(torch.mean, x[0], a, time)


def _sum(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return _reduce(torch.sum, x[0], a, time)


def _reduce(reduction: Callable[..., Tensor], x: Tensor, a: Attributes, time: int) -> Tensor:
    dims = [_shift(d, time) for d in a["dim"]]
    return reduction(x, dims, a["keepdim"]) if dims else x  # torch takes [] for all


def _reshape(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return x[0].reshape(*x[0].shape[:time], *resolve(a["shape"], batch))


def _expand(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return _expand_to(x[0], a["shape"], batch, time)


def _permute(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return x[0].permute(*range(time), *(_shift(d, time) for d in a["dims"]))


def _cat(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return torch.cat(list(x), _shift(a["dim"], time))


def _slice(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    index = [slice(None)] * x[0].dim()
    start, stop = resolve([a["start"], a["stop"]], batch)
    index[_shift(a["dim"], time)] = slice(start, stop, a["step"])
    return x[0][tuple(index)]


def _index(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    return x[0].index_select(_shift(a["dim"], time), w["index"])


def _pad(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    pad, mode = a["pad"], a["mode"]
    if mode == "constant":
        return F.pad(x[0], pad, value=a["value"])
    return _fold(lambda v: F.pad(v, pad, mode=mode), x[0], len(pad) // 2)


def _upsample(x: Inputs, a: Attributes, w: Tensors, batch: int, time: int) -> Tensor:
    options = {"size": a["size"], "mode": a["mode"], "align_corners": a.get("align_corners")}
    return _fold(lambda v: F.interpolate(v, **options), x[0], len(a["size"]))


FORMS: dict[str, Apply] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "affine": _affine,
    "add": _add,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "sum": _sum,
    "reshape": _reshape,
    "expand": _expand,
    "permute": _permute,
    "cat": _cat,
    "slice": _slice,
    "index": _index,
    "pad": _pad,
    "upsample": _upsample,
}


def form(op: str) -> Apply:
    """How torch computes an operation: as its row says, if a caller's does."""
    return LINEAR[op].run or FORMS[op]


def apply(op: str, inputs: Inputs, attributes: Attributes, tensors: Tensors, batch: int) -> Tensor:
    """The operation ``op`` on its inputs, one time step."""
    return form(op)(inputs, attributes, tensors, batch, 0)


def apply_linear(
    op: str, inputs: Inputs, attributes: Attributes, tensors: Tensors, batch: int
) -> Tensor:
    """The linear part of ``op``: what increments pass through."""
    return form(op)(inputs, *_linear_part(attributes, tensors), batch, 0)


def apply_over_time(
    op: str,
    inputs: Inputs,
    in_time: Sequence[bool],
    attributes: Attributes,
    tensors: Tensors,
    batch: int,
    linear_part: bool = False,
) -> Tensor:
    """``apply``, or ``apply_linear``, at K time steps at once: [K, ...].

    ``in_time`` says which inputs, at least one, lead with a time axis [K, ...]; the others are the
    same at every step.
    """
    if not all(in_time):
        steps = next(x.shape[0] for x, led in zip(inputs, in_time, strict=True) if led)
        inputs = [
            x if led else x.expand(steps, *x.shape) for x, led in zip(inputs, in_time, strict=True)
        ]
    if linear_part:
        attributes, tensors = _linear_part(attributes, tensors)
    return form(op)(inputs, attributes, tensors, batch, 1)


def _linear_part(attributes: Attributes, tensors: Tensors) -> tuple[Attributes, Tensors]:
    tensors = {name: value for name, value in tensors.items() if name != "bias"}
    return ({**attributes, "value": 0.0} if "value" in attributes else attributes), tensors


# -- connections ----------------------------------------------------------------------------------


def connections(
    op: str, inputs: Inputs, attributes: Attributes, tensors: Tensors, batch: int
) -> Tensor:
    """How much arrives at each output [T, *] of inputs [T, *] where every connection is one.

    A weight of 0 connects nothing.
    """
    count = LINEAR[op].connections or CONNECTIONS.get(op)
    if count is not None:
        out: Tensor = count(inputs, attributes, tensors, batch)
        return out
    tensors = {
        name: (value != 0).to(inputs[0].dtype) if name == "weight" else value
        for name, value in tensors.items()
    }
    return form(op)(inputs, *_linear_part(attributes, tensors), batch, 1)


def _sum_of_mean(x: Inputs, a: Attributes, w: Tensors, batch: int) -> Tensor:
    return _sum(x, a, w, batch, 1)


def _sum_of_both(x: Inputs, a: Attributes, w: Tensors, batch: int) -> Tensor:
    return _add(x, {"coefficients": (1, 1)}, w, batch, 1)


def _sum_of_pool(x: Inputs, a: Attributes, w: Tensors, batch: int) -> Tensor:
    if len(a["kernel_size"]) > 1:
        return _avg_pool(x, {**a, "divisor_override": 1}, w, batch, 1)
    out = _avg_pool(x, {**a, "count_include_pad": True}, w, batch, 1)
    return out * float(prod(a["kernel_size"]))


def _sum_of_windows(x: Inputs, a: Attributes, w: Tensors, batch: int) -> Tensor:
    values = torch.ones((), dtype=x[0].dtype, device=x[0].device)
    for out, n in zip(a["output_size"], x[0].shape[-len(a["output_size"]) :], strict=True):
        i = torch.arange(out, device=x[0].device)
        values = values.unsqueeze(-1) * (-(-(i + 1) * n // out) - i * n // out)
    return _adaptive_avg_pool(x, a, w, batch, 1) * values


def _sum_of_neighbours(x: Inputs, a: Attributes, w: Tensors, batch: int) -> Tensor:
    """Every input that an output takes anything of, one dimension after the other."""
    value = x[0]
    mode = "nearest" if a["mode"] == "nearest" else "linear"
    corners = a.get("align_corners")
    for dim, out in enumerate(a["size"], -len(a["size"])):
        one = torch.eye(value.shape[dim], dtype=torch.double, device=value.device).unsqueeze(1)
        taken = F.interpolate(one, size=out, mode=mode, align_corners=corners)
        taken = (taken.squeeze(1).abs() > 1e-12).to(value)
        value = (value.movedim(dim, -1) @ taken).movedim(-1, dim)
    return value


CONNECTIONS: dict[str, Callable[[Inputs, Attributes, Tensors, int], Tensor]] = {
    "mean": _sum_of_mean,
    "add": _sum_of_both,
    "avg_pool": _sum_of_pool,
    "adaptive_avg_pool": _sum_of_windows,
    "upsample": _sum_of_neighbours,
}
