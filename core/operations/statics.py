"""Operations on integers and booleans only, computed exactly and once per run: rows and torch.

Token ids, positions and padding masks never spike. ``STATIC`` says what each operation is; those of
``LINEAR`` that move values serve too. Comparisons, logic and arithmetic are of two values that
broadcast, ``where`` of a mask and two. The NumPy forms are ``exporters/hdf5/runner_statics.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..checks import flag, integer, integers
from .rows import LINEAR, Attributes, Operation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
LOGIC = ("and", "or", "xor")
ARITHMETIC = ("add", "sub", "mul", "div", "minimum", "maximum")
MOVING = ("reshape", "expand", "permute", "cat", "slice", "index", "pad")
_OVER = {"dim": integers, "keepdim": flag}
STATIC: dict[str, Operation] = {
    # a row of the weight for each id: a one-hot vector times the weight
    "embedding": Operation(tensors=("weight",)),
    "cast": Operation(),
    "not": Operation(),
    # 0 where a mask is True, -inf where it is False: what is added to logits
    "bias": Operation(),
    "where": Operation(inputs=3),
    "cumsum": Operation({"dim": integer}),
    # the place of the largest, of the first of several
    "argmax": Operation({"dim": integer, "keepdim": flag}),
    "sum": Operation(_OVER),
    "any": Operation(_OVER),
    "all": Operation(_OVER),
    **{name: Operation(inputs=2) for name in (*COMPARISONS, *LOGIC, *ARITHMETIC)},
    **{name: LINEAR[name] for name in MOVING},
}


def check_ids(where: str, largest: int, smallest: int, rows: int) -> None:
    """Raises InputError for ids outside the vocabulary."""
    if smallest < 0 or largest >= rows:
        wrong = largest if largest >= rows else smallest
        raise InputError(
            f"the ids at '{where}' reach {wrong}, but its vocabulary has {rows} entries, 0 to "
            f"{rows - 1}; use the tokenizer that belongs to the model."
        )


def types(floating: torch.dtype) -> dict[str, torch.dtype]:
    """Of each kind of value; ``floating`` is the network's."""
    import torch

    return {"float": floating, "integer": torch.int64, "boolean": torch.bool}


def compute(
    name: str,
    op: str,
    inputs: Sequence[Tensor],
    attributes: Attributes,
    tensors: Mapping[str, Tensor],
    batch: int,
    kind: str,
    floating: torch.dtype,
) -> Tensor:
    """The operation ``op`` at the node ``name``, whose values are of ``kind``."""

    from .forms import apply

    dtype = types(floating)[kind]
    if op in MOVING:
        return apply(op, inputs, attributes, tensors, batch).to(dtype)
    if op == "embedding":
        (ids,), weight = inputs, tensors["weight"]
        if ids.numel():
            check_ids(name, int(ids.max()), int(ids.min()), len(weight))
        return weight[ids].to(dtype)
    if op in COMPARISONS and any(x.is_floating_point() for x in inputs):
        inputs = [x.to(floating) for x in inputs]
    if op in ARITHMETIC:
        inputs = [x.to(dtype) for x in inputs]
    if op in LOGIC or op in ("not", "any", "all"):
        inputs = [x.bool() for x in inputs]
    return _FORMS[op](*inputs, **attributes).to(dtype)


def _where(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    import torch

    return torch.where(mask.bool(), x, y)


def _bias(mask: Tensor) -> Tensor:
    import torch

    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask.bool(), float("-inf"))


def _argmax(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    return x.long().argmax(dim, keepdim) if not x.is_floating_point() else x.argmax(dim, keepdim)


def _torch(name: str) -> Callable[..., Tensor]:
    def run(*x: Tensor, **attributes: Any) -> Tensor:
        import torch

        out: Tensor = getattr(torch, name)(*x, **attributes)
        return out

    return run


def _reduction(name: str) -> Callable[..., Tensor]:
    def run(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
        for d in sorted((d % x.dim() for d in dim), reverse=True):
            x = getattr(x, name)(d, keepdim=keepdim)
        return x

    return run


_FORMS: dict[str, Callable[..., Tensor]] = {
    "cast": lambda x: x,
    "not": _torch("logical_not"),
    "bias": _bias,
    "where": _where,
    "cumsum": _torch("cumsum"),
    "argmax": _argmax,
    **{name: _reduction(name) for name in ("sum", "any", "all")},
    **{name: _torch(name) for name in (*COMPARISONS, *ARITHMETIC)},
    **{name: _torch(f"logical_{name}") for name in LOGIC},
}
