"""The kernels as torch operators, ``torch.ops.spikingjelly_signgd.*``, opaque to torch.compile.

A schedule and a function travel as text, so that one graph serves every number of steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import launch
from .prepared import Prepared, keep, layout, unwatched

# what torch.library calls the types of ``launch``
_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "Sequence[Tensor]": "Tensor[]",
    "Sequence[float]": "float[]",
    "torch.dtype": "ScalarType",
    "Count": "SymInt",
    "Iterator[Tensor]": "Tensor",
    "Iterator[list[Tensor]]": "Tensor[]",
    "Iterator[tuple[Tensor, Tensor]]": "(Tensor, Tensor)",
    "Iterator[tuple[Tensor, Tensor, Tensor]]": "(Tensor, Tensor, Tensor)",
}


def _operator(name: str) -> Any:
    """The operator of a function of ``launch``: its outputs, filled; unfilled in a graph."""

    def run(*given: Any) -> Any:
        return filled(getattr(launch, name)(*given))

    operator = torch.library.custom_op(
        f"spikingjelly_signgd::{name}", run, mutates_args=(), schema=_schema(getattr(launch, name))
    )
    operator.register_fake(lambda *given: next(getattr(launch, name)(*given)))
    return operator


def filled(launched: Iterator[Any]) -> Any:
    """The outputs of a function of ``launch``, after the kernel."""
    outputs = next(launched)
    for _ in launched:
        pass
    return outputs


def _schema(launched: Callable[..., Any]) -> str:
    """Of a signature, without what has a default."""
    signature = inspect.signature(launched)
    given = [each for each in signature.parameters.values() if each.default is each.empty]
    typed = [f"{_TYPES.get(each.annotation, each.annotation)} {each.name}" for each in given]
    return f"({', '.join(typed)}) -> {_TYPES[signature.return_annotation]}"


signgd = _operator("signgd")
group = _operator("group")
group_train = _operator("group_train")
group_gradient = _operator("group_gradient")
track = _operator("track")
track_gradient = _operator("track_gradient")
_running_sum = _operator("running_sum")
_sums: dict[Any, Prepared] = {}


def running_sum(x_seq: Tensor, start: Tensor) -> Tensor:
    """y(t) = y(t - 1) + x(t), y(0) = start: [T, ...], float32."""
    given = (x_seq, start)
    recorded = torch.is_grad_enabled() and (x_seq.requires_grad or start.requires_grad)
    if recorded or not unwatched() or (key := layout(given)) is None:
        return _running_sum(*given)  # type: ignore[no-any-return]
    if (known := _sums.get(key)) is not None:
        return known(given)[0]
    ready: list[Prepared] = []
    y: Tensor = filled(launch.running_sum(*given, ready=ready))
    for each in ready:
        keep(_sums, key, each)
    return y


# -- gradients ------------------------------------------------------------------------------------


def _keep_group(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.constants, ctx.dtype = inputs[2:], inputs[0].dtype


def _group_backward(
    ctx: Any, grad_y: Tensor | None, grad_v: Tensor | None, _: None
) -> tuple[Any, ...]:
    (h_seq,) = ctx.saved_tensors
    grad_y = torch.zeros_like(h_seq, dtype=ctx.dtype) if grad_y is None else grad_y
    x, v = group_gradient(grad_y, grad_v, h_seq, *ctx.constants)
    return x, v, *[None] * len(ctx.constants)


group_train.register_autograd(_group_backward, setup_context=_keep_group)


def _keep_track(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    target_seq, v, scale, zone, theta, _, *constants, signed, surrogate, alpha = inputs
    ctx.save_for_backward(target_seq, output[2] if signed else output[0], v, scale, zone)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.constants = (theta, *constants, signed, surrogate, alpha)


def _track_backward(
    ctx: Any, grad_y: Tensor | None, grad_v: Tensor | None, _: None
) -> tuple[Any, ...]:
    grad_y = torch.zeros_like(ctx.saved_tensors[1]) if grad_y is None else grad_y
    x, v = track_gradient(grad_y, grad_v, *ctx.saved_tensors, *ctx.constants)
    return x, v, *[None] * 10


track.register_autograd(_track_backward, setup_context=_keep_track)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    later = grad.flip(0).cumsum(0)
    return later.flip(0).to(ctx.dtype), later[-1]


def _keep_sum(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


_running_sum.register_autograd(_sum_backward, setup_context=_keep_sum)
