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
from .inputs import Inputs, batch_of
from .network import Constant, Linear, Neuron, SpikingNetwork, Static

Run = TypeVar("Run", bound=Callable[..., Any])


def at_its_size(leads: Callable[..., bool]) -> Callable[[Run], Run]:
    """For a function of (module, x, ...): x may be of any size that the network runs at.

    ``leads`` says, of the arguments after x, whether x leads with time.
    """

    def decorate(function: Run) -> Run:
        @wraps(function)
        def run(module: Any, x: Any, *args: Any, **options: Any) -> Any:
            shapes = _other_size(module, x, int(leads(*args, **options)))
            if shapes is None:
                return function(module, x, *args, **options)
            with _at_size(module, shapes):
                return function(module, x, *args, **options)

        return run  # type: ignore[return-value]

    return decorate


Shapes = dict[str, tuple[int, ...]]  # of one sample, by input


def _other_size(module: Any, x: Any, leading: int) -> Shapes | None:
    """The shapes of a sample, where they are others and other sizes were checked at all."""
    network, x = getattr(module, "network", None), batch_of(x)
    if network is None or "sizes" not in network.provenance:
        return None
    own = {node.name: node.shape[1:] for node in network.inputs}
    given = x.tensors if isinstance(x, Inputs) else {network.input.name: x}
    if set(given) != set(own) or not all(isinstance(value, Tensor) for value in given.values()):
        return None
    shapes = {name: tuple(given[name].shape[1 + leading :]) for name in own}
    ranks = all(len(shapes[name]) == len(shape) for name, shape in own.items())
    return shapes if ranks and shapes != own else None


@contextmanager
def _at_size(module: Any, shapes: Shapes) -> Iterator[None]:
    before = module.network, module.operations
    network = _sized(module, shapes)
    module.network, module.operations = network, _operations(module, before[0], network)
    try:
        yield
    finally:
        module.network, module.operations = before


def _sized(module: Any, shapes: Shapes) -> SpikingNetwork:
    """Kept: to compute the shapes takes as long as one sample does."""
    known = module.__dict__.setdefault("_at_sizes", {})
    key = id(module.network), *shapes.values()
    if key not in known:
        network = module.network.at_size(shapes)
        _check_neurons(module.network, network)
        network.last_uses, network.plain  # noqa: B018  as the module's own
        known[key] = network
    return known[key]  # type: ignore[no-any-return]


def _check_neurons(before: SpikingNetwork, network: SpikingNetwork) -> None:
    """A neuron whose function has other arguments is another module."""
    for old, new in zip(before.of(Neuron), network.of(Neuron), strict=True):
        if old.arguments is not new.arguments:
            raise InputError(
                f"the function of {new.name!r} takes other arguments at this size; build the "
                "network for that size: build(network.at_size(...))."
            )


def _operations(module: Any, before: SpikingNetwork, network: SpikingNetwork) -> nn.ModuleDict:
    """The module's own, with attributes of the other size and the leading parts of tables."""
    pairs = zip(before.nodes, network.nodes, strict=True)
    held = [(old, new) for old, new in pairs if isinstance(new, (Linear, Constant, Static))]
    now = nn.ModuleDict(module.operations)
    for (old, new), (key, operation) in zip(held, module.operations.items(), strict=True):
        if isinstance(new, (Linear, Static)) and isinstance(old, type(new)):
            if old.attributes is not new.attributes or old.tensors is not new.tensors:
                now[key] = _with_tensors(operation, new.tensors)
                given = {"node": new} if isinstance(new, Static) else {"attributes": new.attributes}
                vars(now[key]).update(given)
        elif isinstance(old, Constant) and isinstance(new, Constant) and old.value is not new.value:
            now[key] = _with_tensors(operation, {"value": new.value})
    return now


def _with_tensors(operation: nn.Module, shaped: Mapping[str, Tensor]) -> nn.Module:
    """Its own buffers, wherever they are by now, cut to these shapes."""
    cut = copy(operation)
    cut._buffers = {
        name: tensor[tuple(slice(n) for n in shaped[name].shape)]  # type: ignore[index]
        for name, tensor in {**operation._buffers, **operation._parameters}.items()
    }
    cut._parameters = {}  # which would take none that is a part of one
    return cut
