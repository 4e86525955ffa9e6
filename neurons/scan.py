"""The one loop over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def scan(
    step: Callable[[Any, State, Any], tuple[Tensor, State]],
    x_seq: Tensor | Sequence[Any],
    state: State,
    p: Any,
) -> tuple[Tensor, State]:
    """``step`` over x_seq [T, B, ...], or over any sequence of its inputs: ([T, B, ...], state)."""
    outputs = []
    for x in x_seq:
        out, state = step(x, state, p)
        outputs.append(out)
    return torch.stack(outputs), state
