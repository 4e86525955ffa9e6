"""Calibration: what the values of each nonlinearity are like, from a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Inputs, batch_of
from ..core.module import NetworkModule, Source
from ..core.network import Function, SpikingNetwork
from ..core.operations import follows_batch
from ..core.progress import progress
from ..core.walk import walk
from ..errors import CalibrationError
from . import sketch

Calibration = Tensor | Mapping[str, Tensor] | Iterable[Any]
PLACES = 256  # of each channel and sample that are counted
FEW_CHANNELS = 4096  # of all channels together, where they are few
QUANTILE = 0.9995
VALUES = 2**25  # of all nodes of the samples that are run at once
BATCH = 64


def batches_of(calibration: Calibration, most: int | None = None) -> list[Any]:
    """Batches x [B, ...] of a tensor [N, ...], or of an iterable of x or (x, y).

    Where the model takes several arguments x is a dict of tensors by their names, and a batch is
    ``Inputs``. Whole numbers (token ids, masks) stay what they are.

    Raises CalibrationError for data that is empty, no tensors, or not finite.
    """
    calibration = batch_of(calibration)
    if isinstance(calibration, Inputs):
        _check_batch(calibration, 0)
        batches: Iterator[Any] = iter(calibration.split(BATCH))
    elif isinstance(calibration, Tensor):
        batches = iter(calibration.split(BATCH)) if calibration.dim() else iter(())
    elif isinstance(calibration, Iterable):
        batches = iter(calibration)
    else:
        raise CalibrationError(
            "calibration data is a tensor [N, ...] or an iterable of batches x or (x, y), not "
            f"{type(calibration).__name__}."
        )
    kept: list[Any] = []
    for item in islice(batches, most):
        x = batch_of(item[0] if isinstance(item, (tuple, list)) else item)
        if _check_batch(x, len(kept)):
            kept.append(x.clone() if any(value.is_inference() for value in _tensors(x)) else x)
    if not kept:
        raise CalibrationError(
            "the calibration data is empty; a few dozen representative samples are enough."
        )
    if any(_shapes(x) != _shapes(kept[0]) for x in kept):
        shapes = sorted({_shapes(x) for x in kept})
        raise CalibrationError(f"the calibration samples differ in shape: {shapes}.")
    return kept


def _tensors(x: Any) -> list[Tensor]:
    return list(x.tensors.values()) if isinstance(x, Inputs) else [x]


def _shapes(x: Any) -> tuple[Any, ...]:
    """Of one sample, by name where there are several inputs."""
    if isinstance(x, Inputs):
        return tuple((name, tuple(value.shape[1:])) for name, value in x.tensors.items())
    return tuple(x.shape[1:])


def _check_batch(x: Any, number: int) -> bool:
    """Whether a batch holds anything; raises CalibrationError."""
    for value in _tensors(x):
        if not isinstance(value, Tensor):
            raise CalibrationError(
                f"a calibration batch is a tensor x or a pair (x, y), not {type(value).__name__}."
            )
        if value.dim() == 0:
            raise CalibrationError("a calibration batch is [B, ...], but one is a single number.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CalibrationError(
                f"batch {number} of the calibration data holds NaN or infinity; remove those "
                "samples or fix the preprocessing."
            )
    lengths = {len(value) for value in _tensors(x)}
    if len(lengths) != 1:
        raise CalibrationError(
            f"the inputs of a batch have one number of samples, but here they have {lengths}: {x}."
        )
    return all(value.numel() for value in _tensors(x))


def at_once(network: SpikingNetwork) -> int:
    """Samples that fit into memory together."""
    return max(1, VALUES // max(1, sum(node.values for node in network.nodes)))


@torch.no_grad()
def statistics(
    network: SpikingNetwork, batches: Iterable[Tensor | Inputs], seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """For each function: by channel "maximum", "minimum", "mean", "quantile" (99.95 %, of the
    absolute value) and "counts" (``sketch``), for the whole tensor "tensor_quantile", the number of
    "samples", and "element_maximum" (batch sizes are 1).

    One pass, in memory that does not depend on how many batches there are. What is counted are
    integers: the same samples give the same counts in any order and in batches of any size.
    """
    module = NetworkModule(network, {})
    seen = {node.name: _Seen(node, seed) for node in network.of(Function)}
    for batch in progress(batches, "calibrating"):
        for x in batch.split(at_once(network)):
            walk(network, _Watched(module, module.check_input(x), seen), ())
    return {name: one.summary() for name, one in seen.items()}


class _Watched(Source):
    """The source network, whose functions' values are counted."""

    def __init__(self, module: NetworkModule, x: Tensor | Inputs, seen: Mapping[str, _Seen]):
        super().__init__(module, x)
        self.seen = seen

    def function(self, node: Function, inputs: list[Tensor]) -> Tensor:
        value = super().function(node, inputs)
        self.seen[node.name].add(value, inputs, self.batch)
        return value


def _has_floor(node: Function) -> bool:
    """Roots and quotients: undefined or endless at and below zero."""
    if node.function.name == "pow":
        exponent = node.arguments["exponent"]
        return exponent < 0 or exponent != int(exponent)
    return node.function.name in ("sqrt", "rsqrt", "reciprocal", "div")


def _at_zero(node: Function) -> bool:
    """Defined at zero, though not below."""
    return node.function.name == "sqrt" or node.arguments.get("exponent", -1) > 0


class _Seen:
    """What calibration keeps of one function's values."""

    def __init__(self, node: Function, seed: int) -> None:
        self.node, self.seed = node, seed
        self.samples, self.count = 0, 0
        self.most: Tensor  # and the least, by channel
        self.least: Tensor
        self.floor: float | None = None  # the least divisor

    def add(self, value: Tensor, inputs: list[Tensor], samples: int) -> None:
        node = self.node
        if _has_floor(node):
            divisor = float(inputs[-1].min())
            self.floor = divisor if self.floor is None else min(self.floor, divisor)
        if not bool(value.isfinite().all()):
            raise CalibrationError(
                f"{node.function.name} at '{node.name}' is NaN or infinite on the calibration "
                "data; the source network itself is not finite there."
            )
        batch_dims = [d for d, size in enumerate(node.shape) if follows_batch(size)]
        element = value.amax(batch_dims, keepdim=True) if batch_dims else value
        channels = value.movedim(node.channel, 0) if node.channel else value.unsqueeze(0)
        by_channel = channels.flatten(1)
        most, least = by_channel.amax(1), by_channel.amin(1)
        total = by_channel.sum(1, dtype=torch.float64)
        counts = sketch.counts(self._some(channels, samples))
        if not self.samples:
            self.most, self.least, self.element = most, least, element
            self.total, self.counts = total, counts
        else:
            self.most, self.least = torch.maximum(self.most, most), torch.minimum(self.least, least)
            self.element = torch.maximum(self.element, element)
            self.total, self.counts = self.total + total, self.counts + counts
        self.samples += samples
        self.count += by_channel.shape[1]

    def _some(self, channels: Tensor, samples: int) -> Tensor:
        """Values [C, n] of some places of every sample, the same for all samples."""
        shape = self.node.shape
        # where the batch comes first, what a sample has lies together
        by_sample = bool(shape) and follows_batch(shape[0]) and self.node.channel != -len(shape)
        each = channels.reshape(len(channels), samples if by_sample else 1, -1)
        most = max(PLACES, FEW_CHANNELS // len(channels))
        if each.shape[2] > most:
            generator = torch.Generator().manual_seed(self.seed)
            pick = torch.randperm(each.shape[2], generator=generator)[:most].sort().values
            each = each[..., pick.to(each.device)]
        return each.flatten(1)

    def summary(self) -> dict[str, Tensor]:
        shape, dtype, least = channel_shape(self.node), self.most.dtype, self.floor
        floor = {}
        if least is not None and (least > 0 or (least == 0 and _at_zero(self.node))):
            floor = {"floor": torch.tensor(least, dtype=dtype) / 2}
        seen = {
            "maximum": self.most.reshape(shape),
            "minimum": self.least.reshape(shape),
            "mean": (self.total / self.count).to(dtype).reshape(shape),
            "element_maximum": self.element,
            "counts": self.counts,
            "samples": torch.tensor(self.samples),
            **floor,
        }
        return with_quantiles(seen, QUANTILE)


def with_quantiles(seen: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """What was seen, with the quantiles of |values| below which this share lies."""
    counts, most = seen["counts"], torch.maximum(seen["maximum"].abs(), seen["minimum"].abs())
    together = counts.sum(0, keepdim=True)
    by_channel = sketch.quantile(counts, share, most)
    whole = sketch.quantile(together, share, most.max())
    quantiles = {
        "quantile": by_channel.to(most.dtype).reshape(most.shape),
        "tensor_quantile": whole.to(most.dtype)[0],
    }
    return {**seen, **quantiles}


def channel_shape(node: Function) -> tuple[int, ...]:
    """Broadcasts a value for each channel against the function's output."""
    if node.channel is None:
        return ()
    return (-1, *[1] * (-node.channel - 1))
