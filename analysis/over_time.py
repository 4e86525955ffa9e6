"""The cost of a stream, frame by frame: a clip runs with its state kept, and each frame is counted.

Spikes are counted (``core.spikes.listening``) at the connections that they meet (``connections``),
by the rules of ``cost``. Remaining multiplications are counted if an operand changed: an input is
an event if it differs from that of the previous frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import Batch, Inputs, samples_of
from ..core.module import NetworkModule
from ..core.network import Input, SpikingNetwork, Static, Timed
from ..core.progress import progress
from ..core.running import check_run, length_of, run, steps_of
from ..core.sizing import at_its_size
from ..core.spikes import codes, listening
from ..core.streams import check_stream, completed, in_blocks, tensors_of
from ..core.walk import following
from ..errors import InputError
from ..neurons.base import Node
from ..neurons.rounding import Rounded
from .connections import Connections, Signal
from .cost import BLOCK_BYTES, Block, Counts, LayerOperations, Operations, table
from .energy import TABLES, EnergyTable

Changed = Mapping[str, Tensor]  # by input, bool [B, ...]: where it is another than before
PARTS = {"spikes": "synaptic", "sums": "sum_macs", "products": "multiplies", "input": "input_macs"}


@dataclass(frozen=True)
class CostsOverTime(Rounded):
    """The costs of each frame of a clip, means of its samples.

    ``frames``
        The counts of each frame (``count_operations``). ``input_macs`` are multiply-accumulates on
        what follows from the input alone, ``sum_macs`` those on other real values, ``multiplies``
        products of two signals: each where an operand changed since the frame before.
    ``energy``
        By table, picojoules of each frame.
    ``source_energy``
        By table, picojoules of the source network, which computes every frame in full.
    """

    frames: tuple[Operations, ...]
    energy: Mapping[str, tuple[float, ...]]
    source_energy: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def additions(self) -> tuple[float, ...]:
        """Of each frame: every spike at each connection that it meets, and the
        multiply-accumulates that remain."""
        return tuple(sum(getattr(f, name) for name in PARTS.values()) for f in self.frames)

    @property
    def source_macs(self) -> float:
        """What the source network multiplies for every frame."""
        return self.frames[0].source_macs + self.frames[0].source_multiplies

    @property
    def additions_per_mac(self) -> tuple[float, ...]:
        """Of each frame, for each multiply-accumulate of the source."""
        return tuple(f.additions_per_mac for f in self.frames)

    @property
    def peak(self) -> int:
        """The frame of the most additions, counted from 0."""
        return max(range(len(self)), key=lambda f: self.additions[f])

    def mean(self, start: int = 0) -> float:
        """Additions for each multiply-accumulate of the source, the mean of the frames from
        ``start`` on: 1 leaves out the first, in which the state is built."""
        if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < len(self):
            raise InputError(f"mean: there are frames 0 to {len(self) - 1}, not {start!r}.")
        return sum(self.additions_per_mac[start:]) / (len(self) - start)

    def of(self, name: str) -> tuple[float, ...]:
        """The additions of one node in each frame; 0 where it makes none."""
        rows = [{row.name: row for row in frame.each} for frame in self.frames]
        if not any(name in row for row in rows):
            raise InputError(f"no node called {name!r} costs anything; see frames[0].each.")
        return tuple(_additions(row[name]) if name in row else 0.0 for row in rows)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that make additions in any frame, in the order of the network."""
        rows = [row for frame in self.frames for row in frame.each if _additions(row)]
        return tuple(dict.fromkeys(row.name for row in rows))

    def to_dict(self, each: bool = False) -> dict[str, Any]:
        """JSON-able; with ``each`` also the additions of every node."""
        nodes = {"nodes": {name: list(self.of(name)) for name in self.nodes}} if each else {}
        return {
            "samples": self.frames[0].samples,
            "source_macs": self.source_macs,
            "additions": list(self.additions),
            "additions_per_mac": list(self.additions_per_mac),
            "parts": {k: [getattr(f, name) for f in self.frames] for k, name in PARTS.items()},
            "spikes": [f.spikes for f in self.frames],
            "events": [f.events for f in self.frames],
            "neurons": self.frames[0].neurons,
            "peak": self.peak,
            "mean_additions_per_mac": self.mean(),
            "later_additions_per_mac": self.mean(1) if len(self) > 1 else None,
            "energy": {name: list(values) for name, values in self.energy.items()},
            "source_energy": dict(self.source_energy),
            **nodes,
        }

    def __str__(self) -> str:
        first = next(iter(self.energy), "")
        heads = ["frame", "", "additions", *PARTS, "per MAC", "spikes a neuron", "energy, nJ"]
        rows: list[list[Any]] = [
            [str(k), "", self.additions[k], *(getattr(f, name) for name in PARTS.values()),
             f"{f.additions_per_mac:.3f}", f"{f.spikes / max(f.neurons, 1):.3f}",
             f"{self.energy[first][k] / 1e3:,.3g}" if first else ""]
            for k, f in enumerate(self.frames)
        ]  # fmt: skip
        source = self.source_energy.get(first)
        end = ["source", "", self.source_macs, *("" for _ in PARTS), "1", "",
               "" if source is None else f"{source / 1e3:,.3g}"]  # fmt: skip
        lines = [*table(heads, [*rows, end]), ""]
        later = f", after the first {self.mean(1):.3f}" if len(self) > 1 else ""
        lines.append(
            f"additions per MAC of the source, the mean of {len(self)} frames: {self.mean():.3f}"
            f"{later}; the most in frame {self.peak}: {self.additions_per_mac[self.peak]:.3f}"
        )
        return "\n".join(lines + ([f"energy: {first}, estimate"] if first else []))


def _additions(row: LayerOperations) -> float:
    return float(sum(getattr(row, name) for name in PARTS.values()))


@torch.no_grad()
@at_its_size(lambda *_, **__: True)
def costs_over_time(
    snn: NetworkModule, clip: Any, *, tables: Mapping[str, EnergyTable] | None = None
) -> CostsOverTime:
    """The costs of each frame of a clip [F, B, ...], as ``run(..., keep_state=True)`` shows it.

    Each frame is shown for the steps of the plan. The clip may be a dict of such tensors by the
    names of the model's arguments. ``tables``, by default ``TABLES``, price the counts. The state
    is reset before and after. Raises InputError for data that are not a clip, and for a network
    that cannot run on streams.
    """
    tables = TABLES if tables is None else tables
    _check_tables(tables)
    clip = check_clip(snn, clip)
    sent = spikes_by_frame(snn, clip)
    counts = FrameCounts(snn.network)
    return costs_of([counts.frame(block, changed) for block, changed in sent], tables)


def _check_tables(tables: Any) -> None:
    """Before a clip is counted: it takes a while."""
    given = tables.values() if isinstance(tables, Mapping) else [tables]
    if not all(isinstance(each, EnergyTable) for each in given):
        raise InputError(
            "costs_over_time: tables are EnergyTables by name, such as TABLES, or {} for none, "
            f"but they are {tables!r}."
        )


def costs_of(frames: Sequence[Operations], tables: Mapping[str, EnergyTable]) -> CostsOverTime:
    """The counts of frames, priced."""
    return CostsOverTime(
        tuple(frames),
        {name: tuple(map(each.spiking, frames)) for name, each in tables.items()},
        {name: each.network(frames[0]) for name, each in tables.items()},
    )


# -- one frame -------------------------------------------------------------------------------------


class Changing(Connections):
    """Connections of one frame: what follows from the input is met where the input changed."""

    changed: Changed

    def input(self, node: Input) -> Signal:
        found = self.changed.get(node.name)
        if found is None:  # computed of constants alone
            return Signal()
        later = found.new_zeros(self.steps - 1, *found.shape)  # which see the same
        return Signal(sums=torch.cat([found.unsqueeze(0), later]).double())

    def exact(self, node: Static, inputs: list[Signal]) -> Signal:
        """Changes where any of what it is computed of does."""
        moved = any(s.sums is not None and bool(s.sums.any()) for s in inputs)
        return Signal(sums=self._ones(node, self.steps) * float(moved))


class FrameCounts(Counts):
    """The counts of one frame after another of a stream, each of the steps of the plan."""

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__(network, network.time_steps, same=False)
        timed = [node.name for node in network.of(Timed)]  # from there on sums of what was sent
        self.input_alone = {node.name for node in network.nodes} - following(network, timed)
        self.changed: Changed = {}

    def frame(self, block: Block, changed: Changed) -> Operations:
        """Of what was sent [steps, B, ...] in a frame whose input ``changed`` there."""
        self.clear()
        self.changed = changed
        samples = len(next(iter(changed.values())))
        self.add(block.spikes, samples, 0)
        self.add_levels(block)
        return self.at(self.steps)

    def met(self, spikes: Mapping[str, Tensor], samples: int, first: bool = True) -> Connections:
        connections = Changing(self.network, spikes, samples, first=first)
        connections.changed = self.changed
        return connections.run()

    def _row(self, node: Node, steps: int) -> LayerOperations | None:
        row = super()._row(node, steps)
        if row is None or node.name not in self.input_alone:
            return row
        return replace(row, input_macs=row.sum_macs, sum_macs=0.0)


# -- the run ---------------------------------------------------------------------------------------


def spikes_by_frame(snn: NetworkModule, clip: Batch) -> Iterator[tuple[Block, Changed]]:
    """What was sent in each frame of a checked clip, and where its inputs changed."""
    before: Mapping[str, Tensor] | None = None
    steps = snn.network.time_steps
    for block, frames in _simulated(snn, clip, steps):
        for k in range(len(next(iter(frames.values())))):
            frame = {name: value[k].cpu() for name, value in frames.items()}
            yield _one(block, k * steps, steps), changed_inputs(frame, before)
            before = frame


def check_clip(snn: NetworkModule, clip: Any) -> Batch:
    """The clip as the network takes it; raises InputError."""
    if isinstance(snn, NetworkModule):
        check_stream("costs_over_time", snn)
        clip = completed(snn, clip, 1)
        _check_rank(snn, clip)
    clip = check_run("costs_over_time", snn, clip, 1, True)
    if not samples_of(clip, 1):
        raise InputError(
            "costs_over_time: the clip holds no samples, but counting spikes needs at least one."
        )
    return clip  # type: ignore[no-any-return]


def _check_rank(snn: NetworkModule, clip: Any) -> None:
    """Raises InputError where frames, or the samples side by side, are missing."""
    for node in snn.network.inputs:
        value = clip.tensors.get(node.name) if isinstance(clip, Inputs) else clip
        if isinstance(value, Tensor) and value.dim() != len(node.shape) + 1:
            sample = ", ".join(map(str, ["F", "B", *node.shape[1:]]))
            raise InputError(
                f"costs_over_time: a clip is [{sample}], F frames of B samples, but it is "
                f"{list(value.shape)}. Pass that of one sample as clip.unsqueeze(1)."
            )


def _simulated(
    snn: NetworkModule, clip: Batch, steps: int
) -> Iterator[tuple[Block, Mapping[str, Tensor]]]:
    """What was sent in some frames, [frames * steps, B, ...], and those frames' inputs."""
    values = sum(snn.network[name].values for name in codes(snn.network))
    size = BLOCK_BYTES // (8 * max(1, values * samples_of(clip, 1) * steps))
    size = max(1, size) if in_blocks(snn.network) else 1
    frames, block = length_of(clip), Block()
    snn.reset()
    try:
        with listening(snn, block):
            for start in progress(range(0, frames, size), "counting", -(-frames // size)):
                part = steps_of(clip, start, min(start + size, frames))
                given = {**tensors_of(snn.network, part), **_fed(snn)}
                shown = _unfed(snn, part) if start else part
                run(snn, shown, steps, sequence=True, keep_state=True, chunk=size * steps)
                yield block, given
    finally:
        snn.reset()


def _unfed(snn: NetworkModule, x: Batch) -> Batch:
    """Without what the network feeds itself."""
    carries = snn.network.carries
    if not isinstance(x, Inputs) or not carries:
        return x
    tensors = {name: value for name, value in x.tensors.items() if name not in carries}
    return Inputs(tensors, x.exact, x.compute)


def _fed(snn: NetworkModule) -> dict[str, Tensor]:
    """What the network feeds itself in the next frame, [1, B, ...]."""
    kept = None if snn.state_kept is None else snn.state_kept.carried
    carries = snn.network.carries if kept is not None else {}
    return {name: kept[of].unsqueeze(0) for name, of in carries.items() if kept is not None}


def _one(block: Block, start: int, steps: int) -> Block:
    """The steps of one frame."""
    part, frame = slice(start, start + steps), Block()
    frame.spikes = {name: s[part].cpu().double() for name, s in block.spikes.items()}
    frame.levels = {name: s[part] for name, s in block.levels.items()}
    return frame


def changed_inputs(frame: Mapping[str, Tensor], before: Mapping[str, Tensor] | None) -> Changed:
    """Where the inputs [B, ...] of a frame are others than before; all of the first."""
    if before is None:
        return {name: torch.ones_like(x, dtype=torch.bool) for name, x in frame.items()}
    return {name: x != before[name] for name, x in frame.items()}
