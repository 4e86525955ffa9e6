"""Trainable networks: from a description to one whose tensors are parameters, and back.

``parametrised(network)`` is the same description with an ``nn.Parameter`` in the place of each
value that is learned. The modules that are built of it hold these very parameters, so ``collect``
reads the values that an optimiser gave them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FormatError, InputError
from ..neurons.base import Learned, Make
from .module import NetworkModule
from .network import SpikingNetwork


class Learning(NamedTuple):
    """A parameter of a description, and how it is learned."""

    parameter: nn.Parameter
    how: Learned


def each_learned(network: SpikingNetwork, make: Make) -> SpikingNetwork:
    return replace(network, nodes=tuple(node.learning(make) for node in network.nodes))


def learned(network: SpikingNetwork) -> list[Learning]:
    """The parameters of a description, each once, in order."""
    found: dict[int, Learning] = {}

    def look(value: Any, how: Learned) -> Any:
        if isinstance(value, nn.Parameter):
            found.setdefault(id(value), Learning(value, how))
        return value

    each_learned(network, look)
    return list(found.values())


def check_collected(network: SpikingNetwork) -> None:
    """Raises FormatError for a description of parameters: used, they are kept in their range."""
    if learned(network):
        raise FormatError(
            "the network holds parameters: it is the description of a trainable module. Pass "
            "collect(module), which holds their values."
        )


def parametrised(network: SpikingNetwork) -> SpikingNetwork:
    """The description with a parameter for each value that training moves, also for numbers.

    What shares memory in the description is one parameter. Raises InputError where a network has
    parameters already.
    """
    if learned(network):
        raise InputError(
            "the network holds parameters: it is the description of a trainable module. Pass "
            "collect(module), which holds their values."
        )
    # with what each was made of, whose memory nothing else may take meanwhile
    made: dict[Any, tuple[nn.Parameter, Tensor]] = {}

    def make(value: Any, how: Learned) -> Any:
        if not isinstance(value, Tensor):  # a number counts in float64, and so does its parameter
            return nn.Parameter(torch.tensor(float(value), dtype=torch.float64))
        if not value.is_floating_point():
            return value
        memory = value.untyped_storage().data_ptr() if value.numel() else id(value)
        key = memory, value.storage_offset(), value.shape, value.stride(), value.dtype
        if key not in made:
            made[key] = nn.Parameter(value.detach().clone()), value
        return made[key][0]

    return each_learned(network, make)


def collect(snn: NetworkModule) -> SpikingNetwork:
    """The description of a trainable network, with the present values of its parameters.

    A new description, which shares no memory with ``snn``: to be built, verified, saved, exported.
    Raises InputError for a module not built with ``trainable=True``, and if parameters of the
    module were replaced by others, which the description does not hold.
    """
    network = trained("collect", snn).network
    own = {id(p) for p in snn.parameters()}
    if any(id(p) not in own for p, _ in learned(network)):
        raise InputError(
            "collect: parameters of the module were replaced, as by load_state_dict(assign=True), "
            "pruning or parametrizations; copy values into them instead."
        )
    made: dict[int, Any] = {}

    def make(value: Any, how: Learned) -> Any:
        if not isinstance(value, nn.Parameter):
            return value
        if id(value) not in made:
            kept = value.detach().cpu().clamp(how.low, how.high).contiguous()
            made[id(value)] = float(kept) if _of_number(kept) else kept
        return made[id(value)]

    provenance = {**network.provenance, "trained": True}
    return replace(each_learned(network, make), provenance=provenance)


def _of_number(value: Tensor) -> bool:
    """Whether ``parametrised`` made it of a number."""
    return value.dtype == torch.float64 and value.dim() == 0


def trained(owner: str, snn: Any) -> NetworkModule:
    """A trainable network, or an InputError."""
    if isinstance(snn, NetworkModule) and snn.trainable:
        return snn
    given = "a network without it" if isinstance(snn, NetworkModule) else type(snn).__name__
    raise InputError(f"{owner} takes what build(network, trainable=True) returns, not {given}.")
