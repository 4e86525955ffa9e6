"""The cost of a run of a spiking network: spikes, synaptic operations and stored state.

The unit is the connection that a spike meets, see ``connections``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor

from ..core.module import NetworkModule, NetworkState
from ..core.network import Function, Neuron, Node, SpikingNetwork
from ..core.operations import resolve
from ..core.progress import progress, samples_in
from ..core.running import check_run, check_steps
from ..core.samples import Data, inputs_of, is_whole
from ..core.spikes import Sent, codes, listening
from ..errors import InputError
from ..names import named_arguments
from ..neurons.base import Code
from ..neurons.rounding import Rounded
from .connections import Connections, Series, arguments, per_step, scalings

BATCH = 32
BLOCK_BYTES = 64 * 2**20  # of the spikes of one block of steps
NUMBER = 4  # bytes of a float32 state
SAME = 2  # steps that stand for all where these are the same: the first, and one for the others
WORD = 8 * NUMBER  # bits of a weight or of a real value


class _Traffic:
    """Bits moved, from the counts of a layer or of a network."""

    time_steps: int
    state_bytes: int
    input_macs: float
    sum_macs: float
    multiplies: float
    scalings: float
    synaptic: float
    event_bits: float

    @property
    def macs(self) -> float:
        """The multiplications left: of the input, of sums, of two signals, by step sizes."""
        return self.input_macs + self.sum_macs + self.multiplies + self.scalings

    @property
    def state_bits(self) -> float:
        """State read and written once at every step."""
        return 2.0 * 8 * self.state_bytes * self.time_steps

    @property
    def weight_bits(self) -> float:
        """A float32 weight for each synaptic operation and MAC, none kept for a second use."""
        return WORD * (self.synaptic + self.input_macs + self.sum_macs)

    @property
    def bits_moved(self) -> float:
        """Events sent once, state read and written, weights fetched."""
        return self.event_bits + self.state_bits + self.weight_bits


@dataclass(frozen=True, kw_only=True)
class LayerOperations(_Traffic, Rounded):
    """What one node costs, means for one sample, all steps together; see ``Operations``.

    ``kind`` is that of a neuron or the name of a linear operation. ``coding`` says what a sender's
    event is: "binary" (0 or 1), "sign" (-1 or 1), "graded" (a whole number, its size in
    ``levels``), "" for what sends none. ``rate`` is events for each neuron and step.
    """

    name: str
    kind: str
    time_steps: int
    neurons: int = 0
    coding: str = ""
    bits: int = 0
    spikes: float = 0.0
    events: float = 0.0
    levels: Mapping[int, float] = field(default_factory=dict)
    event_bits: float = 0.0
    synaptic: float = 0.0
    synaptic_events: float = 0.0
    synaptic_bits: float = 0.0
    graded_bits: float = 0.0
    input_macs: float = 0.0
    sum_macs: float = 0.0
    multiplies: float = 0.0
    scalings: float = 0.0
    evaluations: float = 0.0
    updates: float = 0.0
    update_additions: float = 0.0
    state_bytes: int = 0
    source_macs: float = 0.0
    source_multiplies: float = 0.0
    source_values: float = 0.0

    @property
    def rate(self) -> float:
        return self.events / (self.neurons * self.time_steps) if self.neurons else 0.0

    def to_dict(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        levels = {str(k): n for k, n in self.levels.items()}
        return {**found, "levels": levels, "rate": self.rate}


SUMMED = ("spikes", "events", "event_bits", "synaptic", "synaptic_events", "synaptic_bits",
          "graded_bits", "input_macs", "sum_macs", "multiplies", "scalings", "evaluations",
          "updates", "update_additions", "state_bytes", "source_macs", "source_multiplies",
          "source_values")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operations(_Traffic, Rounded):
    """Means for one sample, of all ``time_steps`` together, counted on ``samples`` samples.

    ``spikes``
        Of signGD neurons the signs that are sent: m in every step, with a dead zone those of the m
        that are not silent; of group neurons the members that fire, negative spikes included; of
        the rate-coded baseline and of Poisson-coded input the spikes. Pooling passes on spikes of
        others, which are not counted again.
    ``events``
        Steps in which a neuron sends anything: m signs, or n members, at once are one event. A step
        in which all are silent is not an event: it costs no message, and fetches no weight.
    ``kinds``
        The events that are "binary" (0 or 1), "sign" (-1 or 1) and "graded" (whole numbers).
    ``levels``
        The graded events by the size of their number: of group neurons the number of members that
        fired, of m signs the number that they spell, odd without a dead zone.
    ``synaptic``
        Additions of a weight: each spike at each connection it meets on its way to a sum. A
        connection without a weight, past which a neuron or a shortcut takes a spike as it is,
        counts one. Averages belong to the weights behind them.
    ``synaptic_events``
        The same if an event is sent as one integer, which multiplies the weight.
    ``synaptic_bits``, ``graded_bits``
        The bits of those events, of all of them and of the graded ones: what meets a weight.
    ``input_macs``
        Multiply-accumulates on what follows from the input alone, done once.
    ``sum_macs``
        Multiply-accumulates on real values, in each step on those that changed: linear operations
        of sums of weighted spikes (two linear layers without a neuron between them), of functions
        that are kept real-valued, and of real-valued input coding. In the first step what follows
        from the input is part of such a value: where both meet one weight they are one
        multiply-accumulate, which is among ``input_macs``.
    ``multiplies``
        Of neurons whose function is a product of two signals (mul, matmul, attention), in each step
        the products of which a factor changed. What changes is said in
        ``connections.changes``: what an event arrives at in this step.
    ``scalings``
        Multiply-accumulates of step sizes, which do not fold into weights since they change with t:
        of each sum of weighted signs by eta(t) (once for each schedule among its senders) in the
        steps in which one arrives, of averages by 1 / t. theta of group neurons and scales of
        channels fold.
    ``evaluations``
        How often a neuron or a kept function computes its f: once a step.
    ``updates``, ``update_additions``
        How often a neuron's state is updated, once a step, and the additions and comparisons this
        takes: 2 m for m signs (with a dead zone 2 m + 2, of one sign 3), m + 2 for m members (2 m +
        3 signed), 2 for the rate-coded baseline, one for each input and output of pooling.
    ``state_bytes``
        Numbers kept from one step to the next, float32: v, the estimate of each argument of f (each
        value once for a layer whose neurons share it), potentials, and what signed neurons have
        sent.
    ``event_bits``
        Each event once, of as many bits as tell the values apart that an event can have: one for a
        binary event or a sign, m for m signs (m + 1 with a dead zone), ceil(log2(m)) for m members,
        one more if signed. No addresses.
    ``source_macs``, ``source_multiplies``, ``source_values``
        Of the source network, weights of zero and borders left out as everywhere here; the values
        that its functions compute.
    ``neurons``, ``members``
        The neurons that send, and the most spikes that one of them sends in a step.
    ``dense``
        Whether every neuron sends at every step, whatever its value, as signGD neurons without a
        dead zone do.
    ``layers``
        The synaptic operations (``synaptic``) of each linear operation or receiving neuron.
    ``each``
        All counts of each node that costs something, in the order of the network.
    """

    time_steps: int
    samples: int
    spikes: float
    events: float
    synaptic: float
    synaptic_events: float
    input_macs: float
    sum_macs: float
    multiplies: float
    evaluations: float
    state_bytes: int
    source_macs: float
    source_multiplies: float
    layers: Mapping[str, float]
    kinds: Mapping[str, float]
    levels: Mapping[int, float]
    synaptic_bits: float
    graded_bits: float
    scalings: float
    updates: float
    update_additions: float
    event_bits: float
    source_values: float
    neurons: int
    members: int
    dense: bool
    each: tuple[LayerOperations, ...]

    @property
    def rate(self) -> float:
        """Events for each neuron and step."""
        return self.events / (self.neurons * self.time_steps) if self.neurons else 0.0

    @property
    def additions_per_mac(self) -> float:
        """The additions of one inference per multiply-accumulate of the source.

        (``synaptic`` + ``sum_macs`` + ``multiplies`` + ``input_macs``) / (``source_macs`` +
        ``source_multiplies``): additions of a weight, every spike (of m signs every digit that is
        not zero) at each connection that it meets, and what is still multiplied, each product one
        addition more. Step sizes (``scalings``), updates and functions are not in it. This ratio is
        used everywhere: by ``search``, the tables, energies, the report and the command line.
        Infinity if the source multiplies nothing, 0 if nothing is added.
        """
        return self._per_mac(self.synaptic + self.sum_macs + self.multiplies + self.input_macs)

    @property
    def parts_per_mac(self) -> dict[str, float]:
        """The four terms of ``additions_per_mac``, each over the MACs of the source."""
        parts = (self.synaptic, self.sum_macs, self.multiplies, self.input_macs)
        names = ("spikes", "sums", "products", "input")
        return {name: self._per_mac(part) for name, part in zip(names, parts, strict=True)}

    def _per_mac(self, additions: float) -> float:
        macs = self.source_macs + self.source_multiplies
        return additions / macs if macs else (math.inf if additions else 0.0)

    def to_dict(self, each: bool = False) -> dict[str, Any]:
        """JSON-able; with ``each`` also all counts of every layer."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "each"}
        levels = {str(k): n for k, n in self.levels.items()}
        found |= {"layers": dict(self.layers), "kinds": dict(self.kinds), "levels": levels}
        bits = {name: getattr(self, name) for name in ("state_bits", "weight_bits", "bits_moved")}
        rows = {"each": [row.to_dict() for row in self.each]} if each else {}
        ratio = {"additions_per_mac": self.additions_per_mac, "parts_per_mac": self.parts_per_mac}
        return {**found, "rate": self.rate, **ratio, **bits, **rows}

    def __str__(self) -> str:
        heads = ("layer", "kind", "source MACs", "neurons", "events", "rate", "synaptic", "MACs",
                 "updates", "state")  # fmt: skip
        rows = [(row.name, row.kind, row.source_macs + row.source_multiplies, row.neurons,
                 row.events, f"{row.rate:.3f}" if row.coding else "", row.synaptic, row.macs,
                 row.updates, row.state_bytes) for row in self.each]  # fmt: skip
        rows.append(("in all", "", self.source_macs + self.source_multiplies, self.neurons,
                     self.events, f"{self.rate:.3f}", self.synaptic, self.macs, self.updates,
                     self.state_bytes))  # fmt: skip
        kinds = ", ".join(f"{n:,.0f} {kind}" for kind, n in self.kinds.items() if n) or "none"
        lines = [f"one sample, T = {self.time_steps}, counted on {self.samples}", ""]
        lines += table(heads, rows)
        lines += ["", f"events: {kinds}" + _levels_line(self.levels)]
        if self.dense:
            lines.append(DENSE)
        lines += [
            additions_line(self),
            f"MACs left: {self.input_macs:,.0f} of the input, once; in all steps together "
            f"{self.sum_macs:,.0f} of sums, {self.multiplies:,.0f} of two signals, "
            f"{self.scalings:,.0f} of step sizes; f computed {self.evaluations:,.0f} times",
            f"bits moved: {self.event_bits:,.0f} of events, {self.state_bits:,.0f} of state, "
            f"{self.weight_bits:,.0f} of weights",
        ]
        return "\n".join(lines)


DENSE = (
    "signGD neurons without a dead zone send a spike in every step, whatever their value: nothing "
    "here is sparse."
)


def additions_line(found: Operations) -> str:
    """``additions per MAC of the source: 1.31 (spikes 1.1, sums 0, products 0.12, input 0.09)``."""
    parts = ", ".join(f"{name} {part:.3g}" for name, part in found.parts_per_mac.items())
    return f"additions per MAC of the source: {found.additions_per_mac:.3g} ({parts})"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of columns, two of text and then numbers; zeros are left out."""
    shown = [list(heads)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2f}"


def _levels_line(levels: Mapping[int, float]) -> str:
    if not levels:
        return ""
    most = sorted(sorted(levels, key=lambda k: -levels[k])[:8])
    more = "" if len(levels) <= 8 else f", {len(levels) - 8} more"
    return "; levels: " + ", ".join(f"{k}: {levels[k]:,.0f}" for k in most) + more


@overload
def count_operations(snn: NetworkModule, x: Data, time_steps: int | None = None) -> Operations: ...


@overload
def count_operations(
    snn: NetworkModule, x: Data, time_steps: Sequence[int]
) -> dict[int, Operations]: ...


@named_arguments
@torch.no_grad()
def count_operations(
    snn: NetworkModule, x: Data, time_steps: int | Sequence[int] | None = None
) -> Operations | dict[int, Operations]:
    """The operations of ``run(snn, x, time_steps)``; x is [B, ...], static inputs, or a dict.

    It may also be a ``Dataset``, a DataLoader or batches x or (x, y): all of them are counted, one
    at a time.
    ``time_steps`` are those the network was planned for unless given; several give {T: Operations}
    from one simulation. Raises InputError.
    """
    if time_steps is None:
        time_steps = snn.network.time_steps if isinstance(snn, NetworkModule) else 1
    steps = check_steps(time_steps)
    counts = count("count_operations", snn, x, max(steps))
    found = {t: counts.at(t) for t in steps}
    return found[steps[0]] if isinstance(time_steps, int) else found


# -- what is sent ----------------------------------------------------------------------------------


class Block:
    """What was sent in a block of steps: by node how many ``spikes`` [T, B, ...], and of graded
    events the ``levels``, their sizes."""

    def __init__(self) -> None:
        self.t = 0  # steps before this block
        self.spikes: dict[str, Tensor] = {}
        self.levels: dict[str, Tensor] = {}

    def __call__(self, sent: Sent) -> None:
        name, code = sent.node.name, sent.node.code
        if sent.events is not None:
            self.spikes[name] = sent.events.spikes
        if sent.events is not None and code is not None and code.kind == "graded":
            self.levels[name] = sent.events.number.abs()


def _simulate(snn: NetworkModule, x: Tensor, steps: int) -> Iterator[Block]:
    """Runs x [B, ...], and yields what was sent in each block of steps."""
    network = snn.network
    values = sum(network[name].values for name in codes(network))
    chunk = max(1, min(steps, BLOCK_BYTES // (8 * max(1, values * len(x)))))
    block = Block()
    static: dict[str, Tensor] = {}
    state: NetworkState | None = None
    snn.reset()
    try:
        with snn.for_sequences(), listening(snn, block):
            while block.t < steps:
                size = min(chunk, steps - block.t)
                state = snn.advance(x, size, static, state)[1]
                yield block
                block.t += size
    finally:
        snn.reset()


# -- counts of every step --------------------------------------------------------------------------


class Counts:
    """Counts of each step, from which those of any number of steps are made (``at``).

    Where all steps are the same, as with signGD neurons without a dead zone, two are kept: the
    first, in which what is static is met, and one for all others.
    """

    def __init__(self, network: SpikingNetwork, steps: int, same: bool) -> None:
        self.network, self.steps, self.same = network, steps, same
        # where the spikes of one sample are those of all, but not what they spell
        self.counted_on = 0
        self.codes = codes(network)
        self.clear()
        self.functions = {node.name: node for node in network.of(Function)}
        self.neurons = {node.name: node for node in network.neurons}
        self.dense = Connections(network, {}, 1, source=True).run().static
        self.scalings = scalings(network)

    def clear(self) -> None:
        """Nothing was counted."""
        self.samples = 0
        self.spikes: Series = {}
        self.events: Series = {}
        self.levels: Series = {}  # [steps, levels]
        self.synaptic: Series = {}
        self.synaptic_events: dict[tuple[bool, int], Series] = {}  # by (graded, bits)
        self.sums: Series = {}
        self.products: Series = {}
        self.scaled: Series = {}
        self.static: dict[str, float] = {}
        self.moving: set[str] = set()

    def met(self, spikes: Mapping[str, Tensor], samples: int, first: bool = True) -> Connections:
        """The connections of these spikes [steps, B, ...]."""
        return Connections(self.network, spikes, samples, first=first).run()

    def add(self, spikes: Mapping[str, Tensor], samples: int, t: int) -> None:
        """A block of steps after step t: how many spikes each sender sent, [steps, B, ...]."""
        each = self.met(spikes, samples, first=t == 0)
        for name in ("synaptic", "sums", "products", "scaled"):
            self._put(getattr(self, name), getattr(each, name), t)
        self.moving |= each.moving
        if t == 0:
            self.samples += samples
            for name, n in each.static.items():
                self.static[name] = self.static.get(name, 0.0) + n
        self._put(self.spikes, {k: per_step(s) for k, s in spikes.items()}, t)
        events = {k: (s > 0).double() for k, s in spikes.items()}
        self._put(self.events, {k: per_step(s) for k, s in events.items()}, t)
        classes: dict[tuple[bool, int], dict[str, Tensor]] = {}
        for name, sent in events.items():
            code = self.codes[name]
            classes.setdefault((code.kind == "graded", code.bits), {})[name] = sent
        for key, sent_by in classes.items():
            whole = self.met(sent_by, samples)
            self._put(self.synaptic_events.setdefault(key, {}), whole.synaptic, t)

    def add_levels(self, block: Block) -> None:
        for name, sizes in block.levels.items():
            top = self.codes[name].most + 1
            index = sizes.cpu().flatten(1).long() + top * torch.arange(len(sizes)).view(-1, 1)
            counted = torch.bincount(index.flatten(), minlength=top * len(sizes))
            self._put(self.levels, {name: counted.view(-1, top).double()}, block.t)

    def _put(self, kept: Series, found: Mapping[str, Tensor], t: int) -> None:
        for name, values in found.items():
            if name not in kept:
                length = self.steps if kept is self.levels or not self.same else SAME
                kept[name] = torch.zeros(length, *values.shape[1:], dtype=torch.double)
            kept[name][t : t + len(values)] += values

    def _sum(self, series: Series, name: str, steps: int) -> float:
        """The mean of a sample, of the first ``steps``."""
        if name not in series:
            return 0.0
        found = series[name]
        others = (steps - 1) * float(found[-1])
        total = float(found[0]) + others if self.same else float(found[:steps].sum())
        return total / self.samples

    def at(self, steps: int) -> Operations:
        each = tuple(row for node in self.network.nodes if (row := self._row(node, steps)))
        total = {name: sum(getattr(row, name) for row in each) for name in SUMMED}
        senders = [row for row in each if row.coding]
        kinds = {kind: 0.0 for kind in ("binary", "sign", "graded")}
        levels: Counter[int] = Counter()
        for row in senders:
            kinds[row.coding] += row.events
            if row.coding == "graded":
                levels.update(row.levels)
        sending = [self.network[row.name] for row in senders]
        return Operations(
            time_steps=steps,
            samples=self.counted_on or self.samples,
            layers={row.name: row.synaptic for row in each if row.name in self.synaptic},
            kinds=kinds,
            levels=dict(sorted(levels.items())),
            neurons=sum(row.neurons for row in senders),
            members=max((node.most_spikes for node in sending), default=1),
            dense=self.same and bool(senders),
            each=each,
            **total,
        )

    def _row(self, node: Node, steps: int) -> LayerOperations | None:
        name = node.name
        found: dict[str, Any] = {
            "synaptic": self._sum(self.synaptic, name, steps),
            "sum_macs": self._sum(self.sums, name, steps),
            "input_macs": self.static.get(name, 0.0) / max(self.samples, 1),
            "source_macs": self.dense.get(name, 0.0),
        }
        met = {key: self._sum(of, name, steps) for key, of in self.synaptic_events.items()}
        found["synaptic_events"] = sum(met.values())
        found["synaptic_bits"] = sum(bits * n for (_, bits), n in met.items())
        found["graded_bits"] = sum(bits * n for (graded, bits), n in met.items() if graded)
        every, once = self.scalings.get(name, (0, 0))
        found["scalings"] = every * steps + once + self._sum(self.scaled, name, steps)
        if name in self.functions:
            found |= self._function(self.functions[name], steps)
        if name in self.neurons:
            found |= self._updates(self.neurons[name], steps)
        if node.code is not None:
            found |= self._sent(node, node.code, steps)
        if not any(found.values()):
            return None
        kind = getattr(node, "op", node.kind)
        return LayerOperations(name=name, kind=kind, time_steps=steps, **found)

    def _function(self, node: Function, steps: int) -> dict[str, float]:
        coded = node.name in self.neurons and node.function.name == "identity"
        moves = steps if node.name in self.moving else 0
        return {
            "source_multiplies": float(self.network.products(node)),
            "source_values": 0.0 if coded else float(node.values),
            "multiplies": self._sum(self.products, node.name, steps),
            "evaluations": float(moves * node.values),
        }

    def _updates(self, node: Neuron, steps: int) -> dict[str, float]:
        given = arguments(self.network, node)
        return {
            "updates": float(steps * node.values),
            "update_additions": float(steps * node.additions(given)),
            "state_bytes": NUMBER * node.numbers(given),
        }

    def _sent(self, node: Node, code: Code, steps: int) -> dict[str, Any]:
        events = self._sum(self.events, node.name, steps)
        levels = {1: events} if events else {}
        if code.kind == "graded":
            found = self.levels.get(node.name, torch.zeros(steps, 0))
            counted = found[:steps].sum(0) / self.samples
            levels = {k: float(n) for k, n in enumerate(counted) if k and n}
        return {
            "neurons": node.values,
            "coding": code.kind,
            "bits": code.bits,
            "spikes": self._sum(self.spikes, node.name, steps),
            "events": events,
            "levels": levels,
            "event_bits": events * code.bits,
        }


@torch.no_grad()
def count(owner: str, snn: NetworkModule, x: Any, steps: int) -> Counts:
    """The counts of every step up to ``steps``; of m signs also what they spell. Of data that come
    in batches one is held at a time."""
    given = inputs_of(x)
    first = next(given, None)
    if first is None:
        raise InputError(f"{owner}: x holds no samples, but counting spikes needs at least one.")
    first = check_run(owner, snn, first, steps, False)
    same = all(node.steady for node in snn.network.nodes)
    counts = Counts(snn.network, steps, same)
    if same:
        counts.add(_steady(snn.network), 1, 0)
        if not any(code.kind == "graded" for code in counts.codes.values()):
            return counts
    rest = (check_run(owner, snn, each, steps, False) for each in given)
    parts = (part for each in chain([first], rest) for part in each.split(BATCH))
    total = len(first) if is_whole(x) else samples_in(x)
    samples = 0
    for part in progress(parts, "counting spikes", total, images=len):
        for sent in _simulate(snn, part, steps) if len(part) else ():
            if not same:
                spikes = {name: s.cpu().double() for name, s in sent.spikes.items()}
                counts.add(spikes, len(part), sent.t)
            counts.add_levels(sent)
        samples += len(part)
    if not samples:
        raise InputError(f"{owner}: x holds no samples, but counting spikes needs at least one.")
    if same:  # one sample stands for all, but for levels
        counts.levels = {name: found / samples for name, found in counts.levels.items()}
        counts.counted_on = samples
    return counts


def _steady(network: SpikingNetwork) -> dict[str, Tensor]:
    """The spikes of steady neurons [SAME, 1, ...] of one sample, which are those of all."""
    return {
        node.name: torch.full((SAME, *resolve(node.shape, 1)), float(node.most_spikes)).double()
        for node in network.nodes
        if node.code is not None
    }
