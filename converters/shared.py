"""Data that several processes share: samples, options, and the resulting network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import ALONE, Distributed
from ..core.given import one_batch
from ..core.inputs import Inputs
from ..core.network import SpikingNetwork
from .calibration import Batches, Calibration
from .fine_tuning import digest, fingerprint


def samples(calibration: Calibration, most: int | None, world: Distributed | None) -> Any:
    """x [N, ...] of the first ``most`` batches, the same on all processes; of many samples those
    that ``Batches`` keeps.

    Of a tensor, a dict and a list each process has its own, which are compared; of a loader each
    loads a part for all. Raises CalibrationError, and InputError where processes differ.
    """
    calibration = one_batch(calibration)
    held = isinstance(calibration, (Tensor, Inputs, Mapping, list, tuple))
    x = torch.cat(list(Batches(calibration, most, ALONE if held or world is None else world)))
    if held and world is not None:
        world.agree("the samples", _described(x))
    return x


def _described(x: Any) -> str:
    return f"{len(x)}, sha256 {digest([x.tensors if isinstance(x, Inputs) else x])[:16]}"


def agreed(
    what: str, network: SpikingNetwork, options: Mapping[str, Any], world: Distributed
) -> None:
    """Raises InputError where processes call ``what`` with another network or options."""
    world.agree(f"the network given to {what}", fingerprint(network)[-16:])
    world.agree(f"the options of {what}", ", ".join(f"{k}={v!r}" for k, v in options.items()))


def ended(what: str, network: SpikingNetwork, world: Distributed | None) -> SpikingNetwork:
    """``network``, which all processes have made. Raises InputError where it differs, such as on
    processors that round differently."""
    if world is not None:
        world.agree(f"the network made by {what}", fingerprint(network)[-16:])
    return network
