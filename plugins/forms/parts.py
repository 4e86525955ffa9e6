"""The roles of this package's modules in a network built by hand, for any simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, fx, nn

from ...core.module import NetworkModule
from ...errors import InputError
from ...neurons.schedules import Schedule
from ...neurons.signgd import SignGDParameters

_PLUGINS = (__package__ or "").rpartition(".")[0]
_SIMULATORS = ("spikingjelly", "norse")


@dataclass(frozen=True, eq=False)
class Part:
    """A signGD neuron layer ("neuron"), an input coding ("encode") or a read-out ("readout").

    ``initial`` is x(0) of each input, or the read-out's; ``offset`` those of "binary" spikes;
    ``over_time`` whether a call is [T, N, *] and not one step [N, *].
    """

    role: str
    spikes: str
    schedule: Schedule | None
    over_time: bool
    members: int = 1
    momentum: float = 0.0
    initial: tuple[float | Tensor, ...] = ()
    offset: tuple[float | Tensor, ...] = ()
    dynamics: SignGDParameters | None = None  # of a neuron


class Simulator(ABC):
    """How a simulator's modules are recognised and made."""

    unlike_others: tuple[
        str, str
    ]  # a module takes steps where others take all of time, and the fix

    @abstractmethod
    def part(self, module: nn.Module) -> Part | None:
        """The role of a module of this package, None for every other."""

    @abstractmethod
    def stateful(self, module: nn.Module) -> bool:
        """Whether what a module makes of a step depends on the steps before."""

    @abstractmethod
    def reset(self, net: nn.Module) -> None:
        """Before the first step."""

    @abstractmethod
    def graph(self, net: nn.Module) -> fx.Graph | None:
        """The graph of a container that torch.fx does not follow, None for what it does.

        Raises InputError for a network of another build.
        """

    @abstractmethod
    def chained(self, net: nn.Module, children: dict[str, nn.Module]) -> nn.Module | None:
        """A sequence of ``children`` of the type of ``net``, None if that is not a sequence."""

    @abstractmethod
    def neuron(
        self,
        module: nn.Module,
        spikes: str,
        initial: tuple[float | Tensor, ...],
        offset: tuple[float | Tensor, ...] | None,
    ) -> nn.Module:
        """A neuron layer as ``module`` in another form; ``initial`` is left out where decoded."""

    @abstractmethod
    def encode(
        self, schedule: Schedule, spikes: str, members: int, momentum: float, over_time: bool
    ) -> nn.Module: ...

    @abstractmethod
    def readout(self, like: Part, initial: float | Tensor, offset: float | Tensor) -> nn.Module:
        """A read-out of spikes like those of ``like``, a neuron or an input coding."""


def simulator_of(net: nn.Module) -> Simulator | None:
    """The simulator of this package's nodes in the network, None if there are no such nodes.

    Raises InputError for a network of ``build``, and for nodes of two simulators.
    """
    if any(isinstance(module, NetworkModule) for module in net.modules()):
        raise InputError(
            f"{type(net).__name__} is a network made by build, not by hand: build(network, "
            'simulator, spikes="signed") gives it in another form, and check(model, sample) '
            "examines the model that was converted."
        )
    classes = {cls for module in net.modules() for cls in type(module).__mro__}
    found = [name for name in _SIMULATORS if any(_of(cls, name) for cls in classes)]
    if len(found) > 1:
        raise InputError(
            f"{type(net).__name__} has nodes of {' and '.join(found)}. Use those of one only."
        )
    if not found:
        return None
    simulator: Simulator = import_module(f".{found[0]}", __package__).SIMULATOR
    return simulator


def _of(cls: type[Any], name: str) -> bool:
    home = f"{_PLUGINS}.{name}"
    return cls.__module__ == home or cls.__module__.startswith(f"{home}.")


def single(values: Sequence[float | Tensor]) -> Any:
    """A tuple for several inputs, the value itself for one."""
    return values[0] if len(values) == 1 else tuple(values)
