"""The estimated energy of a run, by published tables: never a measurement.

A table gives the energy of each kind of operation. The operations of the spiking network are all
those that ``count_operations`` counts: additions of weights, updates of neurons, and the remaining
multiplications. The source network is estimated by the same table in floating point, with
activations quantised to as many levels as the spikes distinguish (``activation_bits``), and with
8-bit integers, if the table has their energy.

Spiking and source break even at so many additions for each multiply-accumulate of the source
(``Operations.additions_per_mac``), whatever m and T they were sent in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.module import NetworkModule
from ..core.network import SpikingNetwork
from ..core.running import check_steps
from ..core.samples import Data
from ..errors import InputError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from .cost import DENSE, NUMBER, WORD, LayerOperations, Operations, additions_line, count, table


@dataclass(frozen=True)
class EnergyTable(Rounded):
    """Energies in picojoules.

    ``mac`` and ``accumulate`` of one operation; the difference is the multiplier, whose operands
    have ``significand`` bits. ``memory`` is that of one bit read or written, 0 where only
    computation is priced, and ``word`` the bits of a number in it. With ``stored_sums`` every
    synaptic operation also reads and writes the sum it adds to, as if events are processed in the
    order of arrival; without, sums stay in a register, as in a multiply-accumulate of the source.
    ``function`` is that of one evaluation of a neuron's f, which the tables here do not contain.
    ``int8`` is that of one multiply-accumulate of weights and activations of 8 bits in the same
    technology; None where it is not known.
    """

    mac: float
    accumulate: float
    covers: str
    source: str
    significand: int = 24
    word: int = 32
    memory: float = 0.0
    stored_sums: bool = False
    function: float = 0.0
    int8: float | None = None

    def __post_init__(self) -> None:
        prices = (self.mac, self.accumulate, self.memory, self.function, self.int8 or 0.0)
        if not all(math.isfinite(p) and p >= 0 for p in prices) or self.mac < self.accumulate:
            raise InputError(
                "EnergyTable: energies are finite numbers of at least 0, and a multiply-accumulate "
                f"costs no less than an accumulate, but they are {prices}."
            )
        if self.significand < 1 or self.word < 1:
            raise InputError("EnergyTable: significand and word are numbers of bits, at least 1.")

    def multiply(self, bits: float) -> float:
        """A weight times a number of so many bits, and the addition.

        An array multiplier adds one shifted copy of the weight for each bit of the other factor,
        so its energy grows with the product of their widths. Horowitz' own figures do: 3.1 pJ for
        32 by 32 bits is 15.5 times the 0.2 pJ for 8 by 8, where the widths say 16.
        """
        share = min(bits, self.significand) / self.significand
        return self.accumulate + (self.mac - self.accumulate) * share

    def multiply_two(self, bits: float) -> float:
        """Two numbers of so many bits."""
        share = min(bits, self.significand) / self.significand
        return self.accumulate + (self.mac - self.accumulate) * share**2

    # -- what is priced ---------------------------------------------------------------------------

    @property
    def addition(self) -> float:
        """One spike at one connection: a bit that fetches a weight, and its addition."""
        moved = 3 * self.word if self.stored_sums else self.word + 1
        return self.accumulate + self.memory * moved

    def spiking(self, c: Operations | LayerOperations) -> float:
        """The spiking network, or one layer, spike by spike."""
        compute = self._neurons(c) + self.accumulate * c.synaptic
        sums = 2 * self.word if self.stored_sums else 0
        # a spike at a connection is one bit, and it fetches a weight
        fetched = c.synaptic * (self.word + sums + (0 if self.stored_sums else 1))
        return compute + self.memory * (fetched + self._kept(c))

    def break_even(self, c: Operations, energy: float) -> float | None:
        """The additions for each MAC of the source at which the spiking network costs ``energy``,
        with all that is not the addition of a spike as counted; None where that alone is more."""
        left = energy - (self.spiking(c) - self.addition * c.synaptic)
        macs = c.source_macs + c.source_multiplies
        if left < 0 or not macs or not self.addition:
            return None
        return left / self.addition / macs + c.additions_per_mac - c.parts_per_mac["spikes"]

    def whole(self, c: Operations | LayerOperations) -> float:
        """The same if an event is sent as one integer, which multiplies the weight."""
        share = (self.mac - self.accumulate) / self.significand
        compute = self._neurons(c) + self.accumulate * c.synaptic_events + share * c.graded_bits
        sums = 2 * self.word if self.stored_sums else 0
        fetched = c.synaptic_events * (self.word + sums)
        fetched += 0 if self.stored_sums else c.synaptic_bits
        return compute + self.memory * (fetched + self._kept(c))

    def _neurons(self, c: Operations | LayerOperations) -> float:
        """The remaining multiplications, and the updates."""
        return (
            self.mac * c.macs + self.accumulate * c.update_additions + self.function * c.evaluations
        )

    def _kept(self, c: Operations | LayerOperations) -> float:
        """Bits: two factors of each product, state read and written, events sent."""
        factors = 2 * self.word * (c.input_macs + c.sum_macs + c.multiplies)
        state = 2 * self.word * (c.state_bytes / NUMBER) * c.time_steps
        return factors + state + c.event_bits

    def network(self, c: Operations | LayerOperations) -> float:
        """The source network in floating point."""
        products = c.source_macs + c.source_multiplies
        moved = self.word * (2 * products + c.source_values)
        return self.mac * products + self.function * c.source_values + self.memory * moved

    def integer(self, c: Operations | LayerOperations) -> float | None:
        """The source network with weights and activations of 8 bits."""
        if self.int8 is None:
            return None
        products = c.source_macs + c.source_multiplies
        moved = 8 * (2 * products + c.source_values)
        return self.int8 * products + self.function * c.source_values + self.memory * moved

    def quantised(self, c: Operations | LayerOperations, bits: float) -> float:
        """The source network with unchanged weights and activations of so many bits.

        What meets the input itself is priced as in the spiking network, which does it once in full.
        """
        bits = min(bits, self.word)
        later = c.source_macs - c.input_macs
        compute = (
            self.mac * c.input_macs
            + self.multiply(bits) * later
            + self.multiply_two(bits) * c.source_multiplies
            + self.function * c.source_values
        )
        moved = 2 * self.word * c.input_macs + (self.word + bits) * later
        moved += 2 * bits * c.source_multiplies + bits * c.source_values
        return compute + self.memory * moved


HOROWITZ = (
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, "
    "doi:10.1109/ISSCC.2014.6757323, 45 nm, 0.9 V"
)
COMPUTE = "compute only"
INT8 = 0.23  # pJ: multiply 0.2, add 0.03
TABLES: dict[str, EnergyTable] = {
    "45 nm fp32": EnergyTable(
        4.6, 0.9, COMPUTE, f"{HOROWITZ}: multiply 3.7, add 0.9 pJ; the usual 4.6 / 0.9", int8=INT8
    ),
    "45 nm fp16": EnergyTable(
        1.5,
        0.4,
        COMPUTE,
        f"{HOROWITZ}: multiply 1.1, add 0.4 pJ",
        significand=11,
        word=16,
        int8=INT8,
    ),
    "45 nm int8": EnergyTable(
        INT8,
        0.03,
        COMPUTE,
        f"{HOROWITZ}: multiply 0.2, add 0.03 pJ",
        significand=8,
        word=8,
        int8=INT8,
    ),
    "45 nm fp32 + memory": EnergyTable(
        4.6,
        0.9,
        "compute and on-chip memory",
        f"{HOROWITZ}: as fp32; a 32 kB cache gives 64 bits for 20 pJ",
        memory=20 / 64,
        int8=INT8,
    ),
    "45 nm fp32 + stored sums": EnergyTable(
        4.6,
        0.9,
        "compute and on-chip memory",
        f"{HOROWITZ}: as fp32; a 32 kB cache gives 64 bits for 20 pJ; a sum read and written for "
        "each spike, as Lemaire et al. (arXiv:2210.13107) count potentials",
        memory=20 / 64,
        stored_sums=True,
        int8=INT8,
    ),
}


@dataclass(frozen=True)
class EnergyEstimate(Rounded):
    """Estimated energies of one inference, picojoules, by the names of ``tables``.

    ``source``
        Of the source network.
    ``quantised``
        {table: {T: pJ}} of the source network with activations of ``bits[T]`` bits,
        ``activation_bits`` of the spiking network.
    ``total``
        {table: {T: pJ}} of the spiking network, every spike an addition of a weight.
    ``whole``
        The same if the m signs, or n spikes, of a step are sent as one integer, which multiplies
        the weight. Equal to ``total`` where no neuron sends more than one spike in a step.
    ``layers``
        {T: {layer: {table: pJ}}}; they add up to ``total``.
    ``int8``
        {table: pJ} of the source network with weights and activations of 8 bits; None where the
        table does not know their price.
    ``break_even``, ``break_even_int8``
        {table: {T: additions}}: so many additions for each multiply-accumulate of the source
        (``Operations.additions_per_mac``) at which ``total`` is ``source``, or ``int8``, all that
        is not the addition of a spike being what it is. Below it the spiking network costs less.
        None where the rest alone costs more.
    """

    time_steps: tuple[int, ...]
    operations: Mapping[int, Operations]
    tables: Mapping[str, EnergyTable]
    bits: Mapping[int, float]
    source: Mapping[str, float]
    quantised: Mapping[str, Mapping[int, float]]
    total: Mapping[str, Mapping[int, float]]
    whole: Mapping[str, Mapping[int, float]]
    layers: Mapping[int, Mapping[str, Mapping[str, float]]]
    int8: Mapping[str, float | None]
    break_even: Mapping[str, Mapping[int, float | None]]
    break_even_int8: Mapping[str, Mapping[int, float | None]]
    estimate: bool = True

    def ratio(self, table: str, time_steps: int) -> float:
        """The spiking network's energy over its source's; infinity where that is nothing."""
        source = self.source[table]
        return self.total[table][time_steps] / source if source else math.inf

    def sentence(self, time_steps: int | None = None, table: str | None = None) -> str:
        """``at T=32 this network costs 6.6 times its source (compute only, 45 nm fp32, ...)``."""
        t = self.time_steps[-1] if time_steps is None else time_steps
        name = next(iter(self.tables)) if table is None else table
        return (
            f"at T={t} this network costs {self.ratio(name, t):.2g} times its source "
            f"({self.tables[name].covers}, {name}, estimate)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Keys of T are strings, as JSON has them."""
        return {
            "estimate": self.estimate,
            "unit": "pJ",
            "time_steps": list(self.time_steps),
            "tables": {name: asdict(each) for name, each in self.tables.items()},
            "bits": _keys(self.bits),
            "source": dict(self.source),
            "quantised": {name: _keys(found) for name, found in self.quantised.items()},
            "total": {name: _keys(found) for name, found in self.total.items()},
            "whole": {name: _keys(found) for name, found in self.whole.items()},
            "layers": {
                str(t): {layer: dict(found) for layer, found in of.items()}
                for t, of in self.layers.items()
            },
            "int8": dict(self.int8),
            "break_even": {name: _keys(found) for name, found in self.break_even.items()},
            "break_even_int8": {name: _keys(found) for name, found in self.break_even_int8.items()},
            "sentences": [self.sentence(table=name) for name in self.tables],
            "operations": {
                str(t): found.to_dict(each=True) for t, found in self.operations.items()
            },
        }

    def __str__(self) -> str:
        last = self.operations[self.time_steps[-1]]
        lines = ["estimated energy of one inference, nJ (from tables, not measured)", ""]
        lines += self._table("source", self.source, self.total)
        if last.members > 1:
            lines += ["", "all spikes of a step sent as one integer, which multiplies the weight"]
            lines += self._table("source", self.source, self.whole)
        bits = [f"{self.bits[t]:.3g} bit" for t in self.time_steps]
        lines += [
            "",
            "the source with activations quantised to as many levels as the spikes distinguish",
        ]
        rows = [
            [name, "", *(_nano(found[t]) for t in self.time_steps)]
            for name, found in self.quantised.items()
        ]
        lines += table(["table", "", *bits], rows)
        lines += ["", *self._additions()]
        lines += ["", *(self.sentence(table=name) for name in self.tables)]
        if last.dense:
            lines.append(DENSE)
        lines.append(
            f"not priced: {last.evaluations:,.0f} evaluations of neuron functions (source: "
            f"{last.source_values:,.0f}), addresses of events, control, leakage."
        )
        sources = dict.fromkeys(each.source for each in self.tables.values())
        return "\n".join([*lines, *(f"source of figures: {source}" for source in sources)])

    def _additions(self) -> list[str]:
        """Those of the network, and at how many it costs as much as its source."""
        t = self.time_steps[-1]
        heads = ["break-even at", "additions per MAC", "source", "source in int8"]
        rows = [
            [
                name,
                each.covers,
                *(shown(by[name][t]) for by in (self.break_even, self.break_even_int8)),
            ]
            for name, each in self.tables.items()
        ]
        return [f"T={t}: {additions_line(self.operations[t])}", *table(heads, rows)]

    def _table(
        self, against: str, source: Mapping[str, float], total: Mapping[str, Mapping[int, float]]
    ) -> list[str]:
        heads = ["table", "covers", against, *(f"T={t}" for t in self.time_steps)]
        rows = [
            [name, each.covers, _nano(source[name])]
            + [_nano(total[name][t]) for t in self.time_steps]
            for name, each in self.tables.items()
        ]
        return table(heads, rows)


def shown(break_even: float | None) -> str:
    """A break-even as text: additions for each MAC, ``none`` where there is none."""
    return "none" if break_even is None else f"{break_even:.2f}"


def activation_bits(network: SpikingNetwork, steps: int) -> float:
    """The bits of the values that the spikes of so many steps distinguish, a mean over neurons.

    Of each neuron it is ceil(log2(N)), N its ``distinguishable(steps)``: m T + 1 values of group
    neurons and rates, which is ceil(log2(T + 1)) bits for m = 1 (Yan et al., arXiv:2409.08290). Of
    m signs, whose sizes are powers of two, one step has 2 ** m codes, m bits, with a dead zone
    2 ** (m + 1) - 1, m + 1 bits; several steps: ``SignGDNeuron.distinguishable``. A float32's where
    nothing sends spikes.
    """
    senders = [node for node in network.nodes if node.code is not None]
    bits = sum(node.values * (node.distinguishable(steps) - 1).bit_length() for node in senders)
    return bits / sum(node.values for node in senders) if senders else float(WORD)


def _keys(found: Mapping[int, Any]) -> dict[str, Any]:
    return {str(t): value for t, value in found.items()}


def _nano(picojoules: float) -> str:
    return f"{picojoules / 1e3:,.3g}" if picojoules < 1e6 else f"{picojoules / 1e3:,.0f}"


@named_arguments
def estimate_energy(
    snn: NetworkModule,
    x: Data,
    time_steps: int | Sequence[int] | None = None,
    *,
    tables: Mapping[str, EnergyTable] | None = None,
) -> EnergyEstimate:
    """Energies of one inference at each of ``time_steps`` and break-even points, from one count.

    x is [B, ...], static inputs over which the mean is taken, or data of any length, as
    ``count_operations`` takes them. ``time_steps`` are 1, 2, 4, ... and
    those the network was planned for, unless given. ``tables``, by default ``TABLES``, may be
    extended or replaced: ``TABLES | {"mine": EnergyTable(...)}``. Raises InputError.
    """
    tables = TABLES if tables is None else tables
    if not tables or not all(isinstance(each, EnergyTable) for each in tables.values()):
        raise InputError("estimate_energy: tables maps names to EnergyTable, at least one.")
    if time_steps is None:
        planned = snn.network.time_steps if isinstance(snn, NetworkModule) else 1
        time_steps = [2**k for k in range(planned.bit_length()) if 2**k < planned] + [planned]
    steps = tuple(sorted(set(check_steps(time_steps))))
    counts = count("estimate_energy", snn, x, steps[-1])
    operations = {t: counts.at(t) for t in steps}
    bits = {t: activation_bits(snn.network, t) for t in steps}
    source = {name: each.network(operations[steps[-1]]) for name, each in tables.items()}
    single = {name: each.spiking for name, each in tables.items()}
    whole = {name: each.whole for name, each in tables.items()}
    int8 = {name: each.integer(operations[steps[-1]]) for name, each in tables.items()}
    return EnergyEstimate(
        time_steps=steps,
        operations=operations,
        tables=dict(tables),
        bits=bits,
        source=source,
        quantised={
            name: {t: each.quantised(c, bits[t]) for t, c in operations.items()}
            for name, each in tables.items()
        },
        total=_priced(operations, single),
        whole=_priced(operations, whole),
        layers={
            t: {
                row.name: {name: each.spiking(row) for name, each in tables.items()}
                for row in c.each
            }
            for t, c in operations.items()
        },
        int8=int8,
        break_even=_break_even(operations, tables, source),
        break_even_int8=_break_even(operations, tables, int8),
    )


Price = Callable[[Operations], float]


def _priced(
    operations: Mapping[int, Operations], prices: Mapping[str, Price]
) -> dict[str, dict[int, float]]:
    return {name: {t: price(c) for t, c in operations.items()} for name, price in prices.items()}


def _break_even(
    operations: Mapping[int, Operations],
    tables: Mapping[str, EnergyTable],
    energies: Mapping[str, float | None],
) -> dict[str, dict[int, float | None]]:
    def at(name: str, c: Operations) -> float | None:
        energy = energies[name]
        return None if energy is None else tables[name].break_even(c, energy)

    return {name: {t: at(name, c) for t, c in operations.items()} for name in tables}
