r"""A network of one step as NIR's plain integrate-and-fire nodes, for the reader that is named.

Each neuron becomes the comparisons of its ``exporters.staircase``, side by side in the channels::

    x [C] -> copies - b [N] -> IF, v_threshold 0 [N] -> number [C] -> unit -> base -> y [C]

``copies`` has weights 1 and 0 and the bias -b, so that the sign of its sum is exact, whatever order
it is added up in. ``number`` has whole weights and sums, ``unit`` and ``base`` are diagonal: what
leaves is y to the bit. Between neurons are the layers of the network, with their biases; sums of
floating-point numbers are rounded by each reader in its own order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.network import Linear, Neuron, Node, SpikingNetwork
from ...core.structures import leaves
from ...neurons.base import values_of
from ..staircase import NoStaircase, Staircase, WholeCode, of_largest, staircase
from .graph import (
    LARGEST_WEIGHT,
    WHY_NOT,
    GraphWriter,
    _Refused,
    _Value,
    listed,
    pool,
)
from .readers import Reader

Array = NDArray[Any]
KINDS = ("group", "signgd")

NEVER = np.float32(2.0**90)  # no input reaches it, and 1e9 times it is a float32 too


def comparisons(steps: Staircase) -> tuple[Array, Array]:
    """(k, c), [N] each: of channel c the comparison with b_k, for all that it makes.

    One that is never true stands for layers that make none.
    """
    finite = np.isfinite(steps.below)
    number, channel = np.nonzero(finite if finite.any() else finite[:1, :1] | True)
    return number, channel


class SingleStepWriter(GraphWriter):
    """``GraphWriter`` of networks of one step, for one reader."""

    def __init__(self, nir: Any, network: SpikingNetwork, reader: Reader) -> None:
        super().__init__(nir, network, "single step", reader.dialect, reader.pooling, 1)
        self.reader = reader
        self.fires = 0  # integrate-and-fire neurons, for one input
        self.senders: dict[str, str] = {}  # the node that sends a neuron's value

    def neuron(self, node: Neuron, inputs: list[_Value]) -> _Value:
        if node.kind not in KINDS:
            raise _Refused(WHY_NOT.get(node.kind, "it is no staircase of one step."))
        x, pools = inputs[0], node.function.name == "max_pool"
        try:
            steps = staircase(of_largest(node) if pools else node, len(x.shape))
        except NoStaircase as error:
            raise _Refused(str(error)) from None
        steps = self.by_channel(steps, x.shape)
        spikes = self.compare(node, x, steps)
        spikes = self.any_of(node, spikes) if pools else spikes
        value = self.decoded(node.name, spikes, steps)
        (self.senders[node.name],) = value.sources
        return value

    def average(self, node: Node, inputs: list[_Value]) -> _Value:
        return inputs[0]  # the mean of one step

    def linear(self, node: Linear, inputs: list[_Value]) -> _Value:
        made = super().linear(node, inputs)
        if len(made.sources) > 1 and not self.reader.branches:
            raise _Refused(
                f"{self.reader.name} {self.reader.version} runs branches in the wrong order, and "
                "this adds two. Write the file for another reader."
            )
        return made

    def conv(
        self,
        name: str,
        x: _Value,
        weight: Array,
        bias: Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> _Value:
        if len(stride) == 1 and not self.reader.conv1d:
            raise _Refused(
                f"{self.reader.name} {self.reader.version} does not import nir.Conv1d. Convolve "
                "over [H, W] with H = 1, or write the file for another reader."
            )
        return super().conv(name, x, weight, bias, stride, padding, dilation)

    # -- one neuron ---------------------------------------------------------------------------

    def by_channel(self, steps: Staircase, shape: tuple[int, ...]) -> Staircase:
        """[K, C] and [K + 1, C]: channels are the first dimension of ``shape``."""
        if any(n > 1 for n in steps.below.shape[2:]):
            raise _Refused(
                "its neurons differ within a channel, which a convolution cannot express. "
                'Convert with scale="channel" or "tensor".'
            )

        def flat(values: Array) -> Array:
            return np.broadcast_to(
                values.reshape(*values.shape[:2], -1)[..., 0], (len(values), shape[0])
            )

        bases, units = (
            tuple(flat(each[None])[0] for each in hints) for hints in (steps.bases, steps.units)
        )
        return Staircase(flat(steps.below), flat(steps.values), bases, units)

    def compare(self, node: Neuron, x: _Value, steps: Staircase) -> _Value:
        """Spikes [N, ...] of x [C, ...], one for each of ``comparisons``."""
        number, channel = comparisons(steps)
        size = len(channel) * x.shape[0]
        if size > LARGEST_WEIGHT:
            raise _Refused(
                f"its {len(channel)} comparisons of {x.shape[0]} channels are a matrix of {size} "
                f"numbers, more than {LARGEST_WEIGHT}. Convert with fewer members."
            )
        below = np.minimum(steps.below[number, channel], NEVER)
        if self.reader.ties == "fire":
            below = np.nextafter(below, np.float32(np.inf))
        weight = np.eye(x.shape[0], dtype=np.float32)[channel]
        return self.fire(node, self.mixed(f"{node.name}.copies", x, weight, -below), 0.0)

    def any_of(self, node: Neuron, spikes: _Value) -> _Value:
        """Where any of a window has fired: the sum of its spikes, against 1 / 2."""
        a = node.arguments
        if any(d != 1 for d in a["dilation"]) or a["ceil_mode"]:
            raise _Refused("its windows are dilated or not whole. Set dilation=1, ceil_mode=False.")
        kernel, stride, padding = (list(a[key]) for key in ("kernel_size", "stride", "padding"))
        channels = spikes.shape[0]
        if self.pooling == "conv" and channels**2 * prod(kernel) > LARGEST_WEIGHT:
            raise _Refused(
                f"its {channels} comparisons are pooled by a convolution of {channels} x "
                f"{channels} kernels, more than {LARGEST_WEIGHT} weights. Convert with fewer "
                "members, or use average pooling."
            )
        return self.fire(node, pool(self, node, spikes, kernel, stride, padding, True), 0.5)

    def fire(self, node: Neuron, x: _Value, threshold: float) -> _Value:
        made = self.spiking(x.shape, threshold)
        made.metadata = self.described(node)
        self.fires += values_of(x.shape)
        return self.add(node.name, made, x, x.shape)

    def decoded(self, name: str, spikes: _Value, steps: Staircase) -> _Value:
        code = steps.whole()
        if code is not None:
            return self.from_whole(name, spikes, steps, code)
        self.lose("values of neurons are rounded in another order", name)
        rises = np.diff(steps.values.astype(np.float64), axis=0)
        return self.decode(f"{name}.value", spikes, steps, rises, steps.values[0])

    def from_whole(self, name: str, spikes: _Value, steps: Staircase, code: WholeCode) -> _Value:
        rises, start = np.diff(code.number, axis=0), code.number[0]
        value = self.decode(f"{name}.number", spikes, steps, rises, start)
        apart = not code.fused
        value = self.per_channel(
            f"{name}.unit", value, code.unit, 0 * code.base if apart else code.base
        )
        if not apart:
            return value
        return self.per_channel(f"{name}.base", value, np.ones_like(code.base), code.base)

    def decode(
        self, name: str, spikes: _Value, steps: Staircase, rises: Array, start: Array
    ) -> _Value:
        """start [C] + the sum of rises, [K, C], where there are spikes."""
        number, channel = comparisons(steps)
        weight = np.zeros((len(start), len(channel)))
        weight[channel, np.arange(len(channel))] = rises[number, channel]
        return self.mixed(name, spikes, weight, start)

    def mixed(self, name: str, x: _Value, weight: Array, bias: Array) -> _Value:
        """A matrix over the channels, at each place."""
        if len(x.shape) == 1:
            return self.affine(name, x, weight, bias)
        spatial = len(x.shape) - 1
        if spatial > 2:
            raise _Refused("NIR has no convolution of three dimensions to mix channels with.")
        ones: Sequence[int] = [1] * spatial
        return self.conv(
            name, x, weight.reshape(*weight.shape, *ones), bias, ones, [0] * spatial, ones
        )

    # -- what the file says about itself ------------------------------------------------------

    def outputs(self, refused: list[str]) -> list[dict[str, str]]:
        names = list(dict.fromkeys(leaves(self.network.outputs)))
        if len(names) > 1 and not self.reader.outputs:
            refused.append(
                f"{listed(names)} (outputs): {self.reader.name} {self.reader.version} reads graphs "
                'of one output. Return one in the source network, or write reader="nir".'
            )
        return super().outputs(refused)

    def metadata(self, outputs: list[dict[str, str]], report: Any) -> dict[str, Any]:
        told = {"reader": self.reader.name, "ties": self.reader.ties}
        told["values"] = json.dumps(self.senders)  # by neuron, the node that sends its value
        return super().metadata(outputs, report) | told

    def notes(self) -> tuple[str, ...]:
        neurons = sum(node.values for node in self.network.neurons)
        return (
            f"for {self.reader.name} {self.reader.version}: {self.reader.how}",
            "one step for each input; all states are reset for the next",
            f"{self.fires} integrate-and-fire neurons, which fire at most once, for {neurons} "
            "neurons of the network",
            "spikes differ from the network's only where a sum lies within rounding of a threshold",
        )
