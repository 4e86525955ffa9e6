"""Causal convolutions over time, of which a frame computes only the newest hop.

A causal Conv1d sees (k - 1) d inputs before the newest one: zeros to the left, by ``padding`` whose
right end the model cuts off, or by a pad before it. In a stream these inputs are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedOperation
from .memory import Memory, Remembering


class Lengths(NamedTuple):
    """How many inputs and outputs a frame has, and how many in front or behind are of no frame."""

    inputs: int
    outputs: int
    pad: int
    extra: int

    @classmethod
    def of(cls, all_frames: tuple[int, int], fewer: tuple[int, int], frames: int) -> Lengths:
        """Of (input, output) in a run of so many frames, and in one of a frame fewer."""
        (into, out), (n, m) = all_frames, (a - b for a, b in zip(all_frames, fewer, strict=True))
        return cls(n, m, into - frames * n, out - frames * m)


class RememberingConv(Remembering):
    """nn.Conv1d of the newest inputs [B, C, n] of a frame and those kept of the frames before.

    What it returns is as long as the convolution's own output for one frame: what the padding adds
    to its end, which the model cuts off, is zeros.
    """

    def __init__(self, conv: nn.Conv1d, path: str, memory: Memory, lengths: Lengths) -> None:
        super().__init__(conv, path, memory)
        self.lengths = lengths
        self.kept = lengths.pad + _padding(conv, lengths)
        if self.kept:
            memory.shapes[path] = (conv.in_channels, self.kept)

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.layer
        lengths = self.lengths
        x = x[..., -lengths.inputs :]
        if self.kept:
            x = torch.cat([self.memory.before[self.path], x], -1)
            self.memory.after[self.path] = x[..., -self.kept :]
        y = F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        return F.pad(y[..., : lengths.outputs], (0, lengths.extra)) if lengths.extra else y


def check_causal(conv: nn.Conv1d, path: str, lengths: Lengths, calls: int) -> None:
    """Raises UnsupportedOperation, naming the convolution, unless its outputs of a frame are
    functions of the inputs so far."""
    where = f"'{path}' (nn.Conv1d)"
    if calls > 1:
        raise UnsupportedOperation(
            f"{where} is called {calls} times in one run, which would need several states. Use a "
            "separate convolution with the same weights for each call."
        )
    if conv.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"{where} pads with padding_mode={conv.padding_mode!r}; before a stream starts, its "
            "input is zero. Train it with padding_mode='zeros'."
        )
    stride, reach = conv.stride[0], (conv.kernel_size[0] - 1) * conv.dilation[0]
    if not lengths.inputs:
        raise UnsupportedOperation(
            f"{where} has the same number of inputs for any number of frames: its time dimension "
            "is the last one of its input, [B, C, L]. Choose the dim of x that becomes it."
        )
    if lengths.outputs < 1 or lengths.outputs * stride != lengths.inputs:
        raise UnsupportedOperation(
            f"{where} has {lengths.inputs} inputs in a frame and a stride of {stride}, but each "
            f"further frame adds {lengths.outputs} outputs. Choose a hop that is a multiple of "
            "the strides."
        )
    if lengths.extra < 0:
        raise UnsupportedOperation(
            f"{where} makes {-lengths.extra} outputs fewer than its frames require, so that the "
            f"first frames have none. Pad {reach} zeros to the left."
        )
    ahead = (lengths.outputs - 1) * stride + reach - lengths.pad - _padding(conv, lengths)
    ahead -= lengths.inputs - 1
    if ahead > 0:
        raise UnsupportedOperation(
            f"{where} is not causal: it looks {ahead} input(s) ahead of the newest. Pad {reach} "
            "zeros to the left and none to the right, or give the network windows of its "
            "whole sequence as inputs."
        )


def _padding(conv: nn.Conv1d, lengths: Lengths) -> int:
    """Zeros that it puts to the left itself."""
    reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
    if type(conv).forward is not nn.Conv1d.forward:  # a causal one pads, which the check shows
        return 0 if lengths.pad or conv.stride[0] > 1 else reach
    if isinstance(conv.padding, str):
        return reach // 2 if conv.padding == "same" else 0  # the rest is to the right
    return conv.padding[0]
