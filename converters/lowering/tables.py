"""The tables of lowering: which ATen operation is handled how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..rules import aten
from .values import Value

Handler = Callable[..., Value]


HANDLERS: dict[Any, Handler] = {}
OTHERWISE: list[Handler] = []  # of an operation that no handler and no rule is for
LOCAL: dict[str, Handler] = {}  # of a neuron of many arguments: its parts, where they are asked for


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, function))
        return function

    return register


def packets(*names: str) -> list[Any]:
    """The packets of these names that this torch has."""
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_not", "logical_and"),
    *("logical_or", "bitwise_not", "bitwise_and", "bitwise_or"),
)


ASSERTIONS = set(
    packets("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
)


IDENTITY = set(
    packets(
        "clone",
        "contiguous",
        "alias",
        "detach",
        "detach_",
        "lift_fresh_copy",
        "_to_copy",
        "to",
        "type_as",
    )
)


VIEWS = {aten.view.default, aten._unsafe_view.default}


MOVES = IDENTITY | set(  # change places, not values
    packets("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
    + packets("expand", "expand_as", "permute", "transpose", "t", "slice", "select", "repeat")
    + packets("flip", "roll", "index_select", "dropout")
)


TAKES_MASKED = set(
    packets("add", "sub", "mul", "div", "true_divide", "where", "masked_fill")
    + packets("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax")
)


BROADCASTING = TAKES_MASKED | set(
    packets("rsub", "addcmul", "maximum", "minimum", "matmul", "mm", "bmm", "baddbmm")
    + packets("scaled_dot_product_attention")
)


LEAF_NAMES = {
    "_native_batch_norm_legit_no_training": ("affine",),
    "batch_norm": ("affine",),
    **{f"conv{n}d": ("conv",) for n in (1, 2, 3)},
    **{f"max_pool{n}d": ("max_pool",) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": ("avg_pool",) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": ("adaptive_avg_pool",) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("conv_transpose",) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": ("adaptive_max_pool",) for n in (1, 2, 3)},
    "_prelu_kernel": ("prelu",),
    "hardtanh": ("clamp",),
    "layer_norm": ("divide_by_sqrt", "layer_norm"),
    "group_norm": ("divide_by_sqrt", "layer_norm"),
    "rms_norm": ("divide_by_sqrt", "rms_norm"),
    "view": ("reshape",),
}


def no_neuron(target: Any) -> str:
    comparison = (
        "a mask or a choice that is computed from the input has no spiking form; compute it from "
        "constants or buffers (a causal mask, a padding mask that is a buffer), or add it to the "
        "logits as a number"
    )
    known = {
        "bernoulli": "switch the randomness off in eval mode",
        "argmax": "return the logits and take the argmax of the decoded output",
        **dict.fromkeys(COMPARISONS, comparison),
    }
    name = str(getattr(target, "overloadpacket", target)).split(".")[-1]
    fix = known.get(
        name,
        "if it acts on each element, pass neurons=NEURONS | "
        f"{{torch.ops.{target}: a function}}; otherwise write it with supported operations",
    )
    return f"no neuron or linear operation for {target}; {fix}"
