"""Networks by hand of Norse cells or layers: ``SequentialState`` of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn

from ...errors import InputError
from ...neurons.by_hand import put_within
from ...neurons.schedules import Schedule
from .. import simulator
from ..norse import (
    Encode,
    EncodeCell,
    EncodeParameters,
    Readout,
    ReadoutCell,
    ReadoutParameters,
    SignGD,
    SignGDCell,
)
from ..norse.module import Cell, Layer
from .parts import Part, Simulator, single

with simulator("norse"):
    from norse.torch.module.sequential import SequentialState
    from norse.torch.utils.state import _is_module_stateful


class _Norse(Simulator):
    unlike_others = (
        "takes single steps where others take whole sequences, or vice versa",
        "build the network of layers only, or of cells only",
    )

    def part(self, module: nn.Module) -> Part | None:
        timed = isinstance(module, Layer)
        if isinstance(module, (SignGD, SignGDCell)):
            p = module.p
            offset = _each(p.offset) if p.spikes == "binary" else ()
            options = (p.members, p.momentum, _each(p.initial_input), offset, module.dynamics(p))
            return Part("neuron", p.spikes, p.schedule, timed, *options)
        if isinstance(module, (Encode, EncodeCell)):
            p = module.p
            return Part("encode", p.spikes, p.schedule, timed, p.members, p.momentum)
        if isinstance(module, (Readout, ReadoutCell)):
            p = module.p
            offset = _each(p.offset) if p.spikes == "binary" else ()
            at = _each(p.initial)
            return Part("readout", p.spikes, p.schedule, timed, p.members, 0.0, at, offset)
        return None

    def stateful(self, module: nn.Module) -> bool:
        return any(map(_is_module_stateful, module.modules()))

    def reset(self, net: nn.Module) -> None:
        """Norse's modules hold no state."""

    def graph(self, net: nn.Module) -> fx.Graph | None:
        if not isinstance(net, SequentialState) or net.return_hidden:
            raise InputError(
                f"{type(net).__name__}: Norse's neurons return their states, which torch.fx does "
                "not follow. Build the network as a SequentialState of layers and neurons, "
                "without return_hidden."
            )
        graph = fx.Graph()
        value = graph.placeholder("input_tensor")
        for path, module in _leaves(net, ""):
            value = graph.call_module(path, (value,))
            self._check_leaf(path, module)
            if _is_module_stateful(module) and self.part(module) is None:
                value = graph.call_function(lambda pair: pair[0], (value,))
                value.meta["path"] = path
        graph.output(value)
        return graph

    def _check_leaf(self, path: str, module: nn.Module) -> None:
        """Raises InputError for a module that calls a neuron of this package and does not return
        its state."""
        inside = [part for part in module.modules() if isinstance(part, (Cell, Layer))]
        if inside and not isinstance(module, (Cell, Layer)):
            raise InputError(
                f"'{path}' ({type(module).__name__}) holds a {type(inside[0]).__name__} and does "
                "not return its state. Put that into the SequentialState itself, or into another "
                "SequentialState in it."
            )

    def chained(self, net: nn.Module, children: dict[str, nn.Module]) -> nn.Module | None:
        chain = SequentialState(*children.values())
        chain.training = net.training  # its own alone: modules have theirs
        return chain

    def neuron(
        self,
        module: nn.Module,
        spikes: str,
        initial: tuple[float | Tensor, ...],
        offset: tuple[float | Tensor, ...] | None,
    ) -> nn.Module:
        assert isinstance(module, (SignGD, SignGDCell))
        put_within("scale", module.p.scale)
        put_within("dead_zone", module.p.dead_zone)
        none = type(module.p)._field_defaults["initial_input"]
        p = module.p._replace(
            spikes=spikes,
            initial_input=single(initial) if initial else none,
            offset=None if offset is None else single(offset),
        )
        other = type(module)(p, module.dt)
        if isinstance(other, SignGD) and isinstance(module, SignGD):
            other.record_states = module.record_states
        return other.train(module.training)

    def encode(
        self, schedule: Schedule, spikes: str, members: int, momentum: float, over_time: bool
    ) -> nn.Module:
        make = Encode if over_time else EncodeCell
        return make(EncodeParameters(schedule, momentum, spikes, members))

    def readout(self, like: Part, initial: float | Tensor, offset: float | Tensor) -> nn.Module:
        make = Readout if like.over_time else ReadoutCell
        at = offset if like.spikes == "binary" else None
        return make(ReadoutParameters(initial, like.spikes, like.schedule, at, like.members))


def _each(value: object) -> tuple[float | Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)  # type: ignore[return-value]


def _leaves(net: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a SequentialState calls one after the other, with their paths."""
    for name, module in net._modules.items():  # where one stands twice, ``children`` has it once
        if module is None:
            continue
        if isinstance(module, SequentialState):
            yield from _leaves(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


SIMULATOR = _Norse()
