"""Surrogate gradients: a step function forward, a smooth derivative backward.

The first three derivatives are those of the functions of the same names in SpikingJelly's
``surrogate``, the last five those of Norse's ``threshold`` methods. Those with a name here run in
the kernels; any other callable that is 1 where x >= 0 works with the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rounding import Rounded

KINDS = (
    "sigmoid",
    "atan",
    "piecewise_quadratic",
    "straight_through",
    "super",
    "triangle",
    "tanh",
    "circ",
    "heavi_erfc",
)


@dataclass(frozen=True)
class Surrogate(Rounded):
    """``surrogate(x)`` is 1 where x >= 0, else 0, with the derivative of a smooth step.

    ========================  ==========================================
    "sigmoid"                 alpha s (1 - s), s = 1 / (1 + exp(-alpha x))
    "atan"                    alpha / 2 / (1 + (pi / 2 alpha x) ** 2)
    "piecewise_quadratic"     alpha max(0, 1 - alpha abs(x))
    "straight_through"        1
    "super"                   1 / (1 + alpha abs(x)) ** 2
    "triangle"                alpha max(0, 1 - abs(x))
    "tanh"                    1 - tanh(alpha x) ** 2
    "circ"                    (1 + (x / alpha) ** 2) ** -1.5
    "heavi_erfc"              2 / sqrt(pi) exp(-(alpha x) ** 2)
    ========================  ==========================================
    """

    kind: str = "sigmoid"
    alpha: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Surrogate: kind is one of {', '.join(KINDS)}, but it is {self.kind!r}."
            )
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"Surrogate: alpha is positive, but it is {self.alpha!r}.")

    def derivative(self, x: Tensor) -> Tensor:
        if self.kind == "sigmoid":
            s = torch.sigmoid(self.alpha * x)
            return (1 - s) * s * self.alpha
        if self.kind == "atan":
            return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())
        if self.kind == "piecewise_quadratic":
            return self.alpha * (1 - self.alpha * x.abs()).clamp(min=0)
        if self.kind == "super":
            return 1 / (1 + self.alpha * x.abs()).square()
        if self.kind == "triangle":
            return self.alpha * (1 - x.abs()).clamp(min=0)
        if self.kind == "tanh":
            s = torch.sigmoid(2 * self.alpha * x)  # 1 - tanh ** 2 itself would cancel
            return 4 * (1 - s) * s
        if self.kind == "circ":
            below = 1 + (x / self.alpha).square()
            return 1 / (below * below.sqrt())
        if self.kind == "heavi_erfc":
            return 2 / math.sqrt(math.pi) * torch.exp(-(self.alpha * x).square())
        return torch.ones_like(x)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = _Step.apply(x, self)  # type: ignore[no-untyped-call]
        return out


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(x), None
