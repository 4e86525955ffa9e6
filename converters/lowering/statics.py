"""What depends on whole numbers alone, token ids and masks: computed exactly, as static nodes.

``STATICS`` holds a handler for each operation whose arguments all do; ``Lowering.exact`` names the
values that do. An embedding ends it: a vector for each id is what the network sees. Where such a
value meets others it is a number like them, a mask what is added to logits or multiplied with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ...core.inputs import kind_of
from ...core.network import Linear
from ...core.operations import follows_batch
from ...core.operations.statics import ARITHMETIC, COMPARISONS, LOGIC
from ..constants import Masked, Unsettled
from ..rules import NotConvertible, aten
from .tables import HANDLERS, IDENTITY, OTHERWISE, Handler, packets
from .values import Name, Value, fixed_size, one_for_all_samples

if TYPE_CHECKING:
    from .graph import Lowering

STATICS: dict[Any, Handler] = {}
BELOW_LOGITS = -1e3  # what is filled with such a number takes no part in a softmax
# operations of a signal that take a mask, or indices, for what it is
TAKES_EXACT = set(packets("where", "masked_fill", "index", "index_select", "gather", "embedding"))
INDEXES = set(packets("index", "gather", "index_select"))


def check_even(value: Value) -> Value:
    """Raises NotConvertible for what numbers the samples, which serves as an index alone."""
    if isinstance(value, Unsettled):
        raise value.refusal()
    return value


def exactly(low: Lowering, packet: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Value]:
    """(args, kwargs, value): the value where all arguments are exact and it can be; else exact
    arguments as numbers, which signals can meet."""
    if not low.exact:
        return args, kwargs, None
    leaves = _leaves((args, kwargs))
    names = [value for value in leaves if isinstance(value, Name)]
    masked = any(isinstance(value, Masked) for value in leaves)
    if names and not masked and all(name in low.exact for name in names):
        args, kwargs = fx.node.map_aggregate((args, kwargs), one_for_all_samples)  # type: ignore[misc]
        value = _exact(low, packet, args, kwargs)
        if value is not None or packet in _MOVED:  # by the usual handler
            return args, kwargs, value
    if packet not in TAKES_EXACT:
        attention = packet in packets("scaled_dot_product_attention")
        number = _added if attention else as_float
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: number(low, a))  # type: ignore[misc]
    return args, kwargs, None


def _exact(low: Lowering, packet: Any, args: Any, kwargs: Any) -> Value:
    handler = STATICS.get(packet)
    if handler is not None:
        try:
            return handler(low, *args, **kwargs)
        except TypeError as error:
            raise NotConvertible(
                f"{low.here.target} of token ids or masks has unsupported arguments ({error}); "
                "write it with comparisons, arithmetic and torch.where"
            ) from error
    value = low.here.meta["val"]
    if packet not in _MOVED and isinstance(value, Tensor) and not value.is_floating_point():
        return OTHERWISE[0](low)
    return None


_MOVED = set(packets("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze")) | set(
    packets("unsqueeze", "expand", "expand_as", "permute", "transpose", "t", "slice", "select")
)


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(tree, lambda a: found.append(a))  # type: ignore[arg-type, return-value]
    return found


def as_float(low: Lowering, value: Value) -> Value:
    """An exact value as floating-point numbers; any other as it is."""
    if not isinstance(value, Name) or low.exact.get(value, "float") == "float":
        return value
    return low.static("cast", [value], low.shape_of(value), "float")


def _added(low: Lowering, value: Value) -> Value:
    """A mask as what is added to logits."""
    if isinstance(value, Name) and low.exact.get(value) == "boolean":
        return low.static("bias", [value], low.shape_of(value), "float")
    return as_float(low, value)


def _handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        STATICS.update(dict.fromkeys(targets, function))
        return function

    return register


def _result(low: Lowering, op: str, inputs: Sequence[Value], **attributes: Any) -> Value:
    dtype = low.here.meta["val"].dtype
    if op in ARITHMETIC and dtype in (torch.uint8, torch.int8, torch.int16):
        raise NotConvertible(
            f"{low.here.target} of {dtype} wraps around at its largest value; compute with x.long()"
        )
    return low.static(op, [_operand(low, x) for x in inputs], low.shape(), _kind(low), **attributes)


def _kind(low: Lowering) -> str:
    return kind_of(low.here.meta["val"].dtype)


def _operand(low: Lowering, value: Value) -> Value:
    """A constant keeps its type; where it is -inf it is what is added to logits."""
    if isinstance(value, (bool, int, float)):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        return value
    masked = value == -math.inf
    if not bool(masked.any()):
        return low.fixed(value)
    shape = tuple(value.shape)
    bias = low.static("bias", [low.fixed(~masked)], shape, "float")
    finite = value.masked_fill(masked, 0.0)
    return low.static("add", [bias, low.fixed(finite)], shape, "float") if finite.any() else bias


_BINARY = {
    **{name: name for name in (*COMPARISONS, *ARITHMETIC)},
    **{f"logical_{name}": name for name in LOGIC},
    **{f"bitwise_{name}": name for name in LOGIC},
    **{f"__{name}__": name for name in LOGIC},
    "true_divide": "div",
}


def _binary(op: str) -> Handler:
    def handler(low: Lowering, x: Value, y: Value, *, alpha: float = 1, **options: Any) -> Value:
        if options:
            raise NotConvertible(f"{low.here.target} of token ids or masks, with {options}")
        logical = "logical" in str(low.here.target) or _kind(low) == "boolean"
        if op in LOGIC and not logical:
            raise NotConvertible(
                f"{low.here.target} of the bits of whole numbers; compare them with numbers"
            )
        if alpha != 1:
            y = low.static("mul", [y, _operand(low, alpha)], low.shape_of(y), _kind(low))
        return _result(low, op, [x, y])

    return handler


for _name, _op in _BINARY.items():
    STATICS.update(dict.fromkeys(packets(_name), _binary(_op)))


@_handles(*packets("rsub"))
def _rsub(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    return _binary("sub")(low, y, x, alpha=alpha)


@_handles(*packets("neg"))
def _neg(low: Lowering, x: Value) -> Value:
    return _result(low, "mul", [x, -1])


@_handles(*packets("logical_not", "bitwise_not"))
def _not(low: Lowering, x: Value) -> Value:
    if _kind(low) != "boolean":
        raise NotConvertible(f"{low.here.target} of the bits of whole numbers")
    return _result(low, "not", [x])


@_handles(*IDENTITY)
def _cast(low: Lowering, x: Value, *_: Any, **__: Any) -> Value:
    kind = _kind(low)
    if low.exact[x] == kind:
        return x
    if kind == "boolean":
        return _result(low, "ne", [x, 0])
    return _result(low, "cast", [x])


@_handles(*packets("where"))
def _where(low: Lowering, mask: Value, x: Value, y: Value) -> Value:
    """Where one of the two is -inf, what is added to logits."""
    (x, never_x), (y, never_y) = _finite(x), _finite(y)
    if not (never_x or never_y):
        return _result(low, "where", [mask, x, y])
    if isinstance(mask, Tensor):
        raise NotConvertible(f"{low.here.target} of token ids by a constant mask with -inf")
    if never_x:
        mask = low.static("not", [mask], low.shape_of(mask), "boolean")
    bias = low.static("bias", [mask], low.shape_of(mask), "float")
    finite = y if never_x else x
    if isinstance(finite, (int, float)) and finite == 0:
        return low.static("expand", [bias], low.shape(), "float", shape=list(low.shape()))
    return _result(low, "add", [bias, finite])


def _finite(value: Value) -> tuple[Value, bool]:
    """A number, of a tensor that is one; and whether it is -inf."""
    if isinstance(value, Tensor) and value.numel() and bool((value == value.flatten()[0]).all()):
        value = value.flatten()[0].item()
    return value, isinstance(value, float) and value == -math.inf


@_handles(*packets("masked_fill"))
def _masked_fill(low: Lowering, x: Value, mask: Value, value: Value) -> Value:
    return _where(low, mask, value, x)


@_handles(*packets("cumsum"))
def _cumsum(low: Lowering, x: Value, dim: int, **_: Any) -> Value:
    return _result(low, "cumsum", [x], dim=_inner(low, x, [dim])[0])


def _reduction(op: str) -> Handler:
    def handler(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        dims = [dim] if isinstance(dim, int) else list(dim or range(len(low.shape_of(x))))
        return _result(low, op, [x], dim=_inner(low, x, dims), keepdim=bool(keepdim))

    return handler


for _name in ("sum", "any", "all"):
    STATICS.update(dict.fromkeys(packets(_name), _reduction(_name)))


def _inner(low: Lowering, x: Value, dims: Sequence[int]) -> list[int]:
    """Counted from the end; not over the samples."""
    shape = low.shape_of(x)
    if any(follows_batch(shape[d]) for d in dims):
        raise NotConvertible(f"{low.here.target} over the batch mixes samples")
    return [d % len(shape) - len(shape) for d in dims]


@_handles(*packets("argmax"))
def _argmax(low: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        raise NotConvertible("argmax over all samples; name its dimension")
    return _result(low, "argmax", [x], dim=_inner(low, x, [dim])[0], keepdim=bool(keepdim))


@_handles(*packets("clamp", "clamp_min", "clamp_max"))
def _clamp(
    low: Lowering, x: Value, low_end: Value = None, high_end: Value = None, **k: Any
) -> Value:
    if "clamp_max" in str(low.here.target):
        low_end, high_end = None, low_end
    least, most = k.get("min", low_end), k.get("max", high_end)
    for op, end in (("maximum", least), ("minimum", most)):
        x = x if end is None else _result(low, op, [x, end])
    return x


@_handles(*packets("embedding"))
def _embedding(low: Lowering, weight: Value, ids: Value, *_: Any) -> Value:
    """A row of the weight for each id."""
    weight = low.constant(weight, "the vocabulary")
    name = low.static("embedding", [ids], low.shape(), "float", {"weight": weight})
    return low.with_channel(name, -1)


@_handles(*packets("index"))
def _index(low: Lowering, x: Value, indices: Sequence[Value]) -> Value:
    """Of a fixed table by ids an embedding; of ids by fixed places a move."""
    if isinstance(x, Tensor) and len(indices) == 1 and x.dim() == 2 and x.is_floating_point():
        return _embedding(low, x, indices[0])
    if isinstance(x, Tensor):
        raise NotConvertible(f"{low.here.target} of a constant by ids; make it an embedding")
    return HANDLERS[aten.index.Tensor](low, x, indices)


@_handles(*packets("gather"))
def _gather(low: Lowering, x: Value, dim: int, index: Value, **_: Any) -> Value:
    """Of one row of constants, the same for every sample, by ids."""
    if not isinstance(x, Tensor) or x.dim() != 2 or len(x) != 1 or dim % 2 != 1:
        return OTHERWISE[0](low)
    return low.static("embedding", [index], low.shape(), _kind(low), {"weight": x[0]})


# -- where a mask meets signals --------------------------------------------------------------------


def choose(low: Lowering, mask: Value, x: Value, y: Value) -> Value:
    """x where ``mask`` is True, y elsewhere; of a signal and a number far below all logits, or
    -inf, the signal with that number added."""
    (x, _), (y, _) = _finite(x), _finite(y)
    for value, other, where in ((x, y, False), (y, x, True)):
        if isinstance(value, (int, float)) and value <= BELOW_LOGITS:
            return _below(low, mask, other, float(value), where)
    taken = low.static("cast", [mask], low.shape_of(mask), "float")
    left = low.static("not", [mask], low.shape_of(mask), "boolean")
    left = low.static("cast", [left], low.shape_of(left), "float")
    parts = [
        HANDLERS[aten.mul](low, as_float(low, value), part)
        for value, part in ((x, taken), (y, left))
        if not (isinstance(value, (int, float)) and value == 0)
    ]
    total = parts[0] if len(parts) == 1 else HANDLERS[aten.add](low, *parts)
    shape = low.shape()
    return (
        total
        if low.shape_of(total) == shape
        else low.linear("expand", [total], shape, shape=list(shape))
    )


def picked(low: Lowering, x: Value, indices: Sequence[Value]) -> Value:
    """x[arange(batch), index]: of each sample one place, which depends on whole numbers alone."""
    samples, index = (list(indices) + [None, None])[:2]
    one = samples.values[1] if isinstance(samples, Unsettled) else torch.empty(0)
    by_sample = len(indices) == 2 and isinstance(index, Name) and index in low.exact
    if not by_sample or one.tolist() != [0, 1] or low.shape_of(index) != ("1*batch",):
        raise NotConvertible(
            "indexing by what depends on the input; x[torch.arange(len(x)), index] picks one place "
            "of each sample"
        )
    places, *inner = low.shape_of(x)[1:]
    ids = low.reshape(index, ("1*batch", 1))
    fixed = low.fixed(torch.arange(fixed_size(places)))
    here = low.static("eq", [ids, fixed], ("1*batch", places), "boolean")
    here = low.static("cast", [here], ("1*batch", places), "float")
    here = low.reshape(here, ("1*batch", places, *[1] * len(inner)))
    product = HANDLERS[aten.mul](low, x, here)
    return low.reduce("sum", product, [1], False)


def _below(low: Lowering, mask: Value, x: Value, number: float, where: bool) -> Value:
    """x, and ``number`` more where the mask is not ``where``."""
    shape = low.shape_of(mask)
    if number == -math.inf:
        mask = mask if where else low.static("not", [mask], shape, "boolean")
        bias = low.static("bias", [mask], shape, "float")
    else:
        numbers = [low.fixed(torch.tensor(n)) for n in ((0.0, number) if where else (number, 0.0))]
        bias = low.static("where", [mask, *numbers], shape, "float")
    return HANDLERS[aten.add](low, x, bias)


def logits_and_mask(low: Lowering, x: Value) -> list[Value]:
    """What a softmax is of: the logits, and what an input adds to them, where one does."""
    node = low.node_of(low.name_of(x))
    if (
        isinstance(node, Linear)
        and node.op == "add"
        and list(node.attributes["coefficients"]) == [1, 1]
    ):
        masks = [name for name in node.inputs if name in low.exact]
        logits = [name for name in node.inputs if name not in low.exact]
        if len(masks) == 1 and low.node_of(logits[0]).shape == node.shape:
            return [Name(logits[0]), Name(masks[0])]
    return [x]
