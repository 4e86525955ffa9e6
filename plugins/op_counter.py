"""SpikingJelly's op_counter, with rules by which signs and graded spikes are accumulates.

Its counters take a tensor for spikes where every value is 0 or 1; eta(t) sigma of a signGD neuron,
n theta of a group neuron and every pooled spike are multiply-accumulates for them. ``Spikes``
follows what the neurons of a network send, by where it comes from and never by its values, through
views, copies, sums and averages, and gives the counters rules that ask it::

    with Spikes(net) as spikes:
        synops = SynOpCounter(spikes.rules_of(SynOpCounter))
        macs = MACCounter(spikes.rules_of(MACCounter))
        with DispatchCounterMode([spikes, synops, macs]):  # spikes first
            net(x_seq)

``count`` does so for a network of ``build``. Written against spikingjelly 2.0.0; 0.0.0.0.14 has no
op_counter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from ..core import spikes as stream
from ..core.module import NetworkModule
from ..core.operations import connections
from ..core.running import check_run, check_steps
from ..errors import BackendUnavailable, InputError
from ..neurons.spikes import Events, Told, hear, joined
from . import simulator
from .spikingjelly import Encode, GroupNode, GrowthNode, SignGDNode

with simulator("spikingjelly"):
    from spikingjelly.activation_based import neuron

try:
    from spikingjelly.activation_based.op_counter import (
        ACCounter,
        BaseCounter,
        DispatchCounterMode,
        MACCounter,
        SynOpCounter,
    )
except ImportError as error:
    raise BackendUnavailable(
        f"{__name__} needs op_counter, which came with spikingjelly 2: {error}. Install it with: "
        f"pip install 'spikingjelly>=2' torch=={torch.__version__.partition('+')[0]} (torch is "
        "pinned on the same line, or pip may replace it), or count with "
        "analysis.count_operations, which needs no simulator's counter"
    ) from error

__all__ = ["Counted", "Spikes", "count"]

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]

# operations that rearrange or repeat values
MOVES = (
    aten.clone.default,
    aten._to_copy.default,
    aten.cat.default,
    aten.stack.default,
    aten.constant_pad_nd.default,
    aten.index_select.default,
    aten.repeat.default,
    aten.flip.default,
    aten.roll.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
)
# a number or a tensor that every spike is multiplied with belongs to the weights behind it
SCALES = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default)
ADDS = (aten.add.Tensor, aten.sub.Tensor)
MEANS = (aten.mean.dim, aten.sum.dim_IntList)
POOLS = (aten.avg_pool2d.default, aten.avg_pool3d.default)
ADAPTIVE = (aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
INTERPOLATES = {
    aten.upsample_linear1d.default: "linear",
    aten.upsample_bilinear2d.default: "bilinear",
    aten.upsample_trilinear3d.default: "trilinear",
}
# where the two operands stand among the arguments
PRODUCTS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
    aten.convolution.default: 0,
}


class Sent(NamedTuple):
    """How many spikes each element of a storage stands for, -1 where it is none of a neuron's."""

    storage: StorageWeakRef  # which keeps the address from being another storage's
    version: int
    dtype: torch.dtype
    numbers: Tensor  # [elements of the storage]
    unit: Tensor  # the same: the size of one spike, NaN where it has none


class Spikes(BaseCounter):  # type: ignore[misc]
    """Follows the spikes of the neurons of ``net``, while it is entered.

    The neurons of this package report what they send (with ``spikes="binary"`` the ones count),
    other neurons of SpikingJelly send 0 or 1. With ``events`` all that a neuron sends in one step
    is one. Raises InputError where signGD neurons are built with spikes="decoded", whose linear
    layers see no spikes at all.

    What cannot be followed (an operation in place, a nonlinearity, a real value added) is counted
    as SpikingJelly counts it.
    """

    def __init__(self, net: nn.Module, *, events: bool = False) -> None:
        super().__init__()
        self.net = net
        self.events = events
        for name, module in net.named_modules():
            if isinstance(module, (SignGDNode, Encode)) and module.spikes == "decoded":
                of_streams = getattr(net, "view", "") == "stream"  # whose walk makes the spikes
                network = "network.replace(stream=False)" if of_streams else "network"
                raise InputError(
                    f"what passes from '{name}' on are decoded values, not spikes, so op_counter "
                    f'would count multiplications. Build with build({network}, spikes="signed"), '
                    "or count with analysis.count_operations."
                )
        self._sent: dict[int, Sent] = {}
        self._entered = ExitStack()
        self._hearing: list[tuple[Any, Told]] = []
        self.rules = {
            **dict.fromkeys(MOVES, 0),
            **dict.fromkeys((*SCALES, *ADDS, *MEANS, *POOLS, *ADAPTIVE, *INTERPOLATES), 0),
        }

    def __enter__(self) -> Spikes:
        networks = [m for m in self.net.modules() if isinstance(m, NetworkModule)]
        inside = {neuron for network in networks for neuron in network.neurons.values()}
        for network in networks:
            self._listen(network)
        for module in self.net.modules():
            if isinstance(module, neuron.BaseNode) and module not in inside:
                before = module.register_forward_pre_hook(self._before)
                after = module.register_forward_hook(self._after, always_call=True)
                self._entered.callback(before.remove)
                self._entered.callback(after.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        self._sent.clear()

    def numbers(self, x: Any) -> Tensor | None:
        """How many spikes each value of x stands for; None where not all of them are spikes."""
        found = self._found(x)
        return None if found is None else found[0]

    def _found(self, x: Any) -> tuple[Tensor, Tensor] | None:
        """The numbers, and the units."""
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            return None
        sent = self._sent.get(x.untyped_storage()._cdata)
        if sent is None or sent.dtype != x.dtype or sent.version != _version(x):
            return None
        place = x.shape, x.stride(), x.storage_offset()
        numbers, unit = sent.numbers.as_strided(*place), sent.unit.as_strided(*place)
        return None if bool((numbers < 0).any()) else (numbers, unit)

    def rules_of(self, counter: type[BaseCounter]) -> dict[Any, Rule]:
        """``extra_rules`` of SynOpCounter, ACCounter or MACCounter."""
        if not issubclass(counter, (SynOpCounter, ACCounter, MACCounter)):
            raise InputError(
                f"there are rules for SynOpCounter, ACCounter and MACCounter, not for {counter}."
            )
        own = counter().rules

        def rule_of(op: Any) -> Rule:
            def rule(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
                numbers = self._operands(op, args)
                if numbers is None:
                    return int(own[op](args, kwargs, out))
                return 0 if issubclass(counter, MACCounter) else _accumulates(op, args, numbers)

            return rule

        return {op: rule_of(op) for op in PRODUCTS}

    def count(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any, **scope: Any) -> int:
        """Follows spikes through an operation; nothing is counted here."""
        numbers = self._through(func, args, kwargs)
        if numbers is not None and isinstance(out, Tensor) and numbers.shape == out.shape:
            self._mark(out, numbers, self._unit_through(func, args, kwargs))
        return 0

    # -- where spikes are ---------------------------------------------------------------------

    def _mark(self, x: Tensor, numbers: Tensor, unit: float | Tensor) -> None:
        self._sent = {k: s for k, s in self._sent.items() if not s.storage.expired()}
        storage = x.untyped_storage()
        elements = storage.nbytes() // x.element_size()

        def flat(values: Tensor, outside: float) -> Tensor:
            out = torch.full((elements,), outside, device=x.device)
            out.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(values)
            return out

        both = flat(numbers, -1.0), flat(torch.as_tensor(unit), nan)
        self._sent[storage._cdata] = Sent(StorageWeakRef(storage), _version(x), x.dtype, *both)

    def _mark_sent(self, y: Tensor, spikes: Tensor, unit: float | Tensor) -> None:
        self._mark(y, (spikes > 0).to(spikes) if self.events else spikes, unit)

    def _listen(self, network: NetworkModule) -> None:
        """To a network of ``build``."""

        def hears(sent: stream.Sent) -> None:
            if sent.events is not None:
                self._mark_sent(sent.value, sent.events.spikes, nan)

        self._entered.enter_context(stream.listening(network, hears))
        told = network.listener
        assert told is not None

        def quietly(sent: stream.Sent) -> None:
            with _disable_current_modes():  # what is computed here is not the network's
                told(sent)

        network.listener = quietly

    def _before(self, module: nn.Module, inputs: Any) -> None:
        hearing = hear()
        self._hearing.append((hearing, hearing.__enter__()))

    @torch.no_grad()
    def _after(self, module: nn.Module, inputs: tuple[Any, ...], y: Any) -> None:
        """Of a neuron in a network made by hand."""
        hearing, told = self._hearing.pop()
        hearing.__exit__(None, None, None)
        if isinstance(y, Tensor):
            with _disable_current_modes():
                spikes, unit = self._sent_by(module, inputs, y, joined(told))
                if spikes is not None:
                    self._mark_sent(y, spikes.reshape(y.shape), unit)

    def _sent_by(
        self, module: nn.Module, inputs: tuple[Any, ...], y: Tensor, events: Events | None
    ) -> tuple[Tensor | None, float | Tensor]:
        """How many spikes, and of which unit."""
        if isinstance(module, GrowthNode):
            found = [self._found(x) for x in inputs]
            in_time = getattr(module, "step_mode", "s") == "m"
            run = partial(
                module.function.over_time if in_time else module.function, **module.arguments
            )
            if any(each is None for each in found):
                return None, nan
            unit = stream.selected(run, [each[1] for each in found if each is not None])
            return stream.passed(y, unit).spikes, unit
        if events is None:
            return (y if bool(((y == 0) | (y == 1)).all()) else None), 1.0
        if isinstance(module, SignGDNode) and module.spikes == "binary":
            code = (events.number.long() + 2**module.members - 1) // 2
            return sum((code >> k) & 1 for k in range(module.members)).to(y), nan  # type: ignore[union-attr]
        return events.spikes, module.dynamics.theta if isinstance(module, GroupNode) else nan

    def _unit_through(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The size of one spike after an operation that moves or scales it."""
        if op in (aten.cat.default, aten.stack.default):
            return op([self._units(part) for part in args[0]], *args[1:], **kwargs)
        if op is aten._to_copy.default:
            return self._units(args[0])
        if op in MOVES:
            return op(self._units(args[0]), *args[1:], **kwargs)
        if op in SCALES:
            sizes = (x if (unit := self._units(x)) is None else unit for x in args)
            return op(*sizes).abs()
        return nan

    def _units(self, x: Any) -> Tensor | None:
        found = self._found(x)
        return None if found is None else found[1]

    def _through(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The numbers of an operation's output, None where it is not made of spikes alone."""
        if op in (aten.cat.default, aten.stack.default):
            parts = [self.numbers(part) for part in args[0]]
            if any(part is None for part in parts):
                return None
            moved: Tensor = op(parts, *args[1:], **kwargs)
            return moved
        x = self.numbers(args[0])
        other = args[1] if len(args) > 1 else None
        if op in SCALES and isinstance(other, Tensor):
            y = self.numbers(other)
            if x is None and y is not None and op is aten.mul.Tensor:
                return y * (args[0] != 0)
            return None if x is None or y is not None else x * (other != 0)
        if x is None:
            return None
        if op in SCALES:
            return x if other is None or other != 0 else torch.zeros_like(x)
        if op in ADDS:
            y = self.numbers(other)
            return None if y is None else x + y
        if op in MEANS:
            added: Tensor = aten.sum.dim_IntList(x, *args[1:3], **kwargs)
            return added
        if op in POOLS:  # kernel, stride, padding, ceil_mode, count_include_pad, and the divisor
            given = args[1:6]
            pooled: Tensor = op(x, *given, *(None, [], 0, False, True)[len(given) :], 1)
            return pooled
        if op in ADAPTIVE:
            return _arriving("adaptive_avg_pool", x, output_size=list(args[1]))
        if op in INTERPOLATES:
            size, mode = list(args[1]), INTERPOLATES[op]
            return _arriving("upsample", x, size=size, mode=mode, align_corners=args[2])
        if op is aten.constant_pad_nd.default and len(args) > 2 and args[2] != 0:
            return None
        if op is aten._to_copy.default:
            return x
        out: Tensor = op(x, *args[1:], **kwargs)
        return out

    def _operands(self, op: Any, args: tuple[Any, ...]) -> list[Tensor] | None:
        """The numbers of both operands, 1 for each weight; None where neither are spikes."""
        first = PRODUCTS[op]
        numbers = [self.numbers(x) for x in args[first : first + 2]]
        if all(n is None for n in numbers):
            return None
        return [
            torch.ones_like(x, dtype=torch.double) if n is None else n.double()
            for x, n in zip(args[first : first + 2], numbers, strict=True)
        ]


def _arriving(op: str, x: Tensor, **attributes: Any) -> Tensor:
    return connections(op, [x.double()], attributes, {}, 1).round().to(x)


def _accumulates(op: Any, args: tuple[Any, ...], numbers: list[Tensor]) -> int:
    """Spikes times the connections that each meets; of two operands of spikes, their products."""
    plain = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}
    rest = (None, *args[3:]) if op is aten.convolution.default else ()
    return int(plain.get(op, op)(*numbers, *rest).sum())


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


class Counted(NamedTuple):
    """Means for one sample, of all steps together."""

    synaptic: float  # SynOpCounter: accumulates of matrix products and convolutions
    macs: float  # MACCounter


@torch.no_grad()
def count(
    snn: NetworkModule, x: Tensor, time_steps: int | None = None, *, events: bool = False
) -> Counted:
    """SpikingJelly's counters, with the rules, over one run of a network of ``build``.

    x is [B, ...], one static input. signGD networks are built with spikes="signed". What every
    neuron's input is before the first step does not count, it follows from the weights alone.
    Raises InputError.
    """
    if time_steps is None:
        time_steps = snn.network.time_steps if isinstance(snn, NetworkModule) else 1
    (steps,) = check_steps(time_steps)
    x = check_run("count", snn, x, steps, False)
    with Spikes(snn, events=events) as spikes:
        synops = SynOpCounter(spikes.rules_of(SynOpCounter))
        macs = MACCounter(spikes.rules_of(MACCounter))
        snn.reset()
        try:
            state = snn._start(x) if snn.spikes == "signed" else None
            with snn.for_sequences(), DispatchCounterMode([spikes, synops, macs]):
                snn.advance(x, steps, {}, state)
        finally:
            snn.reset()
    return Counted(synops.get_total() / len(x), macs.get_total() / len(x))
