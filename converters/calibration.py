"""Calibration: what the values of each nonlinearity are like, from a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Inputs, batch_of
from ..core.module import NetworkModule
from ..core.network import Function, SpikingNetwork
from ..core.operations import follows_batch
from ..core.progress import progress
from ..errors import CalibrationError

Calibration = Tensor | Mapping[str, Tensor] | Iterable[Any]
SAMPLES = 4096  # values kept for each channel and batch, for the quantile
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


@torch.no_grad()
def statistics(
    network: SpikingNetwork, batches: list[Tensor], seed: int, quantile: float = 0.9995
) -> dict[str, dict[str, Tensor]]:
    """For each function: by channel "maximum", "minimum", "mean", "quantile" (of the absolute
    value), for the whole tensor "tensor_quantile", and "element_maximum" (batch sizes are 1)."""
    module = NetworkModule(network, {})
    functions = network.of(Function)
    collected: dict[str, dict[str, Any]] = {
        node.name: {"parts": [], "count": 0, "sum": 0.0} for node in functions
    }
    divisors = {node.name: node.inputs[-1] for node in functions if _has_floor(node)}
    floors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for x in progress(batches, "calibrating", len(batches)):
        values = module.activations(x, keep=[*collected, *divisors.values()])
        for node in functions:
            if node.name in divisors:
                lowest = values[divisors[node.name]].min()
                floors[node.name] = torch.minimum(floors.get(node.name, lowest), lowest)
            _collect(collected[node.name], node, values[node.name], generator)
    seen = {node.name: _summary(collected[node.name], quantile) for node in functions}
    for node in functions:
        least = floors.get(node.name)
        if least is not None and (least > 0 or (least == 0 and _at_zero(node))):
            seen[node.name]["floor"] = least / 2
    return seen


def _has_floor(node: Function) -> bool:
    """Roots and quotients: undefined or endless at and below zero."""
    if node.function.name == "pow":
        exponent = node.arguments["exponent"]
        return exponent < 0 or exponent != int(exponent)
    return node.function.name in ("sqrt", "rsqrt", "reciprocal", "div")


def _at_zero(node: Function) -> bool:
    """Defined at zero, though not below."""
    return node.function.name == "sqrt" or node.arguments.get("exponent", -1) > 0


def _collect(
    sums: dict[str, Any], node: Function, value: Tensor, generator: torch.Generator
) -> None:
    if not bool(value.isfinite().all()):
        raise CalibrationError(
            f"{node.function.name} at '{node.name}' is NaN or infinite on the calibration data; "
            "the source network itself is not finite there."
        )
    batch_dims = [d for d, size in enumerate(node.shape) if follows_batch(size)]
    element = value.amax(batch_dims, keepdim=True) if batch_dims else value
    by_channel = value.movedim(node.channel, 0).flatten(1) if node.channel else value.reshape(1, -1)
    most, least = by_channel.amax(1), by_channel.amin(1)
    if "maximum" in sums:
        sums["maximum"] = torch.maximum(sums["maximum"], most)
        sums["minimum"] = torch.minimum(sums["minimum"], least)
        sums["element"] = torch.maximum(sums["element"], element)
    else:
        sums.update(maximum=most, minimum=least, element=element)
    sums["sum"] = sums["sum"] + by_channel.double().sum(1)
    sums["count"] += by_channel.shape[1]
    if by_channel.shape[1] > SAMPLES:
        pick = torch.randint(by_channel.shape[1], (SAMPLES,), generator=generator)
        by_channel = by_channel[:, pick.to(by_channel.device)]
    sums["parts"].append(by_channel.abs())
    sums["shape"] = channel_shape(node)


def channel_shape(node: Function) -> tuple[int, ...]:
    """Broadcasts a value for each channel against the function's output."""
    if node.channel is None:
        return ()
    return (-1, *[1] * (-node.channel - 1))


def _summary(sums: Mapping[str, Any], q: float) -> dict[str, Tensor]:
    values = torch.cat(sums["parts"], 1)
    shape, dtype = sums["shape"], values.dtype
    ordered = values.sort(1).values
    rank = min(ordered.shape[1] - 1, round(q * (ordered.shape[1] - 1)))
    flat = values.flatten().sort().values
    return {
        "maximum": sums["maximum"].reshape(shape),
        "minimum": sums["minimum"].reshape(shape),
        "mean": (sums["sum"] / sums["count"]).to(dtype).reshape(shape),
        "quantile": ordered[:, rank].reshape(shape),
        "tensor_quantile": flat[min(len(flat) - 1, round(q * (len(flat) - 1)))],
        "element_maximum": sums["element"],
    }
