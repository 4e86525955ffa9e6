"""Recurrent layers, unrolled over their sequence, whose length a network fixes.

``DECOMPOSITIONS`` is what ``torch.export`` writes them as: linear layers, sums, products, sigmoid
and tanh at every step. torch has the layers; the cells are these formulas, of its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import decomposition_table

aten = torch.ops.aten
Bias = Tensor | None


def lstm_cell(
    x: Tensor, hx: Sequence[Tensor], w_x: Tensor, w_h: Tensor, b_x: Bias = None, b_h: Bias = None
) -> tuple[Tensor, Tensor]:
    h, c = hx
    i, f, g, o = (F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(
    x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Bias = None, b_h: Bias = None
) -> Tensor:
    from_x, from_h = F.linear(x, w_x, b_x).chunk(3, 1), F.linear(h, w_h, b_h).chunk(3, 1)
    r, z = (a.add(b).sigmoid() for a, b in zip(from_x[:2], from_h[:2], strict=True))
    n = (from_x[2] + r * from_h[2]).tanh()
    return n + z * (h - n)


def _cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Bias = None, b_h: Bias = None
    ) -> Tensor:
        return activation(F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h))

    return cell


LAYERS = aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **{layer: decomposition_table[layer] for layer in LAYERS if layer in decomposition_table},
    aten.lstm_cell.default: lstm_cell,
    aten.gru_cell.default: gru_cell,
    aten.rnn_tanh_cell.default: _cell(torch.tanh),
    aten.rnn_relu_cell.default: _cell(torch.relu),
}
