"""A module of a network runs inputs of another size, where its network does.

While it does, ``module.network`` is the network at that size. Neurons are the same modules: their
tensors fit all sizes, and their states are made when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import InputError
from .network import Constant, Linear, Neuron, SpikingNetwork

Run = TypeVar("Run", bound=Callable[..., Any])


def at_its_size(leads: Callable[..., bool]) -> Callable[[Run], Run]:
    """For a function of (module, x, ...): x may be of any size that the network runs at.

    ``leads`` says, of the arguments after x, whether x leads with time.
    """

    def decorate(function: Run) -> Run:
        @wraps(function)
        def run(module: Any, x: Any, *args: Any, **options: Any) -> Any:
            shape = _other_size(module, x, int(leads(*args, **options)))
            if shape is None:
                return function(module, x, *args, **options)
            with _at_size(module, shape):
                return function(module, x, *args, **options)

        return run  # type: ignore[return-value]

    return decorate


def _other_size(module: Any, x: Any, leading: int) -> tuple[int, ...] | None:
    """The shape of a sample, where it is another one and other sizes were checked at all."""
    network = getattr(module, "network", None)
    if network is None or not isinstance(x, Tensor) or "sizes" not in network.provenance:
        return None
    shape, expected = tuple(x.shape[1 + leading :]), network.input.shape[1:]
    return None if shape == expected or len(shape) != len(expected) else shape


@contextmanager
def _at_size(module: Any, shape: tuple[int, ...]) -> Iterator[None]:
    before = module.network, module.operations
    network = _sized(module, shape)
    module.network, module.operations = network, _operations(module, before[0], network)
    try:
        yield
    finally:
        module.network, module.operations = before


def _sized(module: Any, shape: tuple[int, ...]) -> SpikingNetwork:
    """Kept: to compute the shapes takes as long as one sample does."""
    known = module.__dict__.setdefault("_at_sizes", {})
    key = id(module.network), shape
    if key not in known:
        network = module.network.at_size(shape)
        _check_neurons(module.network, network, shape)
        known[key] = network
    return known[key]  # type: ignore[no-any-return]


def _check_neurons(before: SpikingNetwork, network: SpikingNetwork, shape: tuple[int, ...]) -> None:
    """A neuron whose function has other arguments is another module."""
    for old, new in zip(before.of(Neuron), network.of(Neuron), strict=True):
        if old.arguments is not new.arguments:
            raise InputError(
                f"the function of {new.name!r} has other arguments at samples {list(shape)}; build "
                f"the network of that size: build(network.at_size{shape})."
            )


def _operations(module: Any, before: SpikingNetwork, network: SpikingNetwork) -> nn.ModuleDict:
    """The module's own, with attributes of the other size and the leading parts of tables."""
    pairs = zip(before.nodes, network.nodes, strict=True)
    held = [(old, new) for old, new in pairs if isinstance(new, (Linear, Constant))]
    now = nn.ModuleDict(module.operations)
    for (old, new), (key, operation) in zip(held, module.operations.items(), strict=True):
        if isinstance(old, Linear) and isinstance(new, Linear):
            if old.attributes is not new.attributes or old.tensors is not new.tensors:
                now[key] = _with_tensors(operation, new.tensors)
                now[key].attributes = new.attributes  # type: ignore[assignment]
        elif isinstance(old, Constant) and isinstance(new, Constant) and old.value is not new.value:
            now[key] = _with_tensors(operation, {"value": new.value})
    return now


def _with_tensors(operation: nn.Module, shaped: Mapping[str, Tensor]) -> nn.Module:
    """Its own buffers, wherever they are by now, cut to these shapes."""
    cut = copy(operation)
    cut._buffers = {
        name: buffer[tuple(slice(n) for n in shaped[name].shape)]  # type: ignore[index]
        for name, buffer in operation._buffers.items()
    }
    return cut
