"""Recurrent layers: unrolled over their sequence, whose length a network fixes, or step by step.

``DECOMPOSITIONS`` is what ``torch.export`` writes them as: linear layers, sums, products, sigmoid
and tanh at every step. torch has the layers; the cells are these formulas, of its documentation.
In a stream they continue from the previous frame (``stepping``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._decomp import decomposition_table

from ..errors import UnsupportedOperation
from .memory import Memory, Remembering

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


# -- layers and cells that go on from the frame before ---------------------------------------------


class RememberingLayer(Remembering):
    """nn.LSTM, nn.GRU or nn.RNN whose state is kept: each frame begins where the last one ended."""

    def __init__(self, layer: nn.RNNBase, path: str, memory: Memory) -> None:
        super().__init__(layer, path, memory)
        layers = layer.num_layers
        memory.shapes[f"{path}.h"] = (layers, layer.proj_size or layer.hidden_size)
        if isinstance(layer, nn.LSTM):
            memory.shapes[f"{path}.c"] = (layers, layer.hidden_size)
        self.names = [name for name in memory.shapes if name.rpartition(".")[0] == path]

    def forward(self, x: Tensor, _: Any = None) -> tuple[Tensor, Any]:
        state = tuple(self.memory.before[name].transpose(0, 1) for name in self.names)
        out, after = self.layer(x, state if len(state) > 1 else state[0])
        after_each = after if isinstance(after, tuple) else (after,)
        for name, value in zip(self.names, after_each, strict=True):
            self.memory.after[name] = value.transpose(0, 1)
        return out, after


class RememberingCell(Remembering):
    """nn.LSTMCell, nn.GRUCell or nn.RNNCell whose first call in a frame continues from the last one
    of the previous frame."""

    def __init__(self, cell: nn.RNNCellBase, path: str, memory: Memory) -> None:
        super().__init__(cell, path, memory)
        parts = ("h", "c") if isinstance(cell, nn.LSTMCell) else ("h",)
        self.names = [f"{path}.{part}" for part in parts]
        memory.shapes |= dict.fromkeys(self.names, (cell.hidden_size,))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        first = self.names[0] not in self.memory.after
        if first:
            kept = tuple(self.memory.before[name] for name in self.names)
            state = kept if len(kept) > 1 else kept[0]
        after = self.layer(x, state)
        after_each = after if isinstance(after, tuple) else (after,)
        self.memory.after |= dict(zip(self.names, after_each, strict=True))
        return after


def check_remembers(module: nn.Module, path: str, calls: Sequence[tuple[Any, ...]]) -> None:
    """Raises UnsupportedOperation, naming the module, where its state cannot be kept: one that
    reads both ways, starts from something else than zeros, or is called more than once a run."""
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase) and module.bidirectional:
        raise UnsupportedOperation(
            f"'{path}' (nn.{kind}) reads the sequence in both directions, so that no output is "
            "known before its end. Train it with bidirectional=False, or convert the whole "
            "sequence as one input."
        )
    if isinstance(module, nn.RNNBase) and len(calls) > 1:
        raise UnsupportedOperation(
            f"'{path}' (nn.{kind}) is called {len(calls)} times in one run, which would need "
            "several states. Use a separate layer with the same weights for each call."
        )
    given = calls[0][1] if calls and len(calls[0]) > 1 else None
    states = given if isinstance(given, (tuple, list)) else (given,)
    if any(isinstance(state, Tensor) and bool(state.any()) for state in states):
        raise UnsupportedOperation(
            f"'{path}' (nn.{kind}) starts from a non-zero state, but a stream starts with zeros. "
            "Write the model as one step, forward(x, h) -> (y, h), and use carries=."
        )
