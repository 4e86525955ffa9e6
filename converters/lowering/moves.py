"""Operations that only move values: detected by running them, and replaced by an index.

``Tensor.unfold``, ``F.unfold``, slices that are written into, ``as_strided``, gathers by constant
indices, pixel shuffles and their kind need no handler each. An operation is one of them where every
value it makes is, for every input tried, the one of the same place, or the same constant: labels
tell the places; both signs, sizes from 5e-324 to 1e300, infinities and NaN tell moves from whatever
computes or chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...core.operations import Size, follows_batch
from ..constants import Masked, Unsettled
from ..rules import NotConvertible
from .graph import Lowering
from .tables import OTHERWISE, no_neuron
from .values import Name, Value

DRAWS = 12  # orders of the values; the reverse of each is tried too
FILLS = (0.0, 1.0, 5e-324, math.inf, -math.inf, math.nan)
SAMPLES = (3, 7)  # a batch is tried with
NUMBERED = (3, 2)  # where a constant numbers the samples
MOST_VALUES = 2**22  # of a sample, before and after: an index holds 8 bytes for each


@dataclass(frozen=True)
class Map:
    """``places`` [M]: where each value of a sample comes from, -1 where ``fill`` [M] stands."""

    places: Tensor
    fill: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Of [samples, N], [samples, M]."""
        return torch.where(self.places < 0, self.fill, values[:, self.places.clamp(0)])


def moved(low: Lowering, refusal: str = "") -> Value:
    """The operation being lowered, if all that it does is to move values.

    Raises NotConvertible, with ``refusal``, where it does more, moves between samples, or where
    the batch is part of another dimension.
    """
    target: Any = low.here.target
    found = None
    if torch.Tag.nondeterministic_seeded not in target.tags and _real_values(low):
        with torch.no_grad():
            found = Trial(low).maps()
    if found is None:
        raise NotConvertible(refusal or no_neuron(target))
    values = [_indexed(low, *pair) for pair in zip(found, _results(low), strict=True)]
    return values if isinstance(low.here.meta["val"], (list, tuple)) else values[0]


OTHERWISE.append(moved)


def _real_values(low: Lowering) -> bool:
    """Whether the operation makes floating-point values of such values, or exact ones of exact."""
    signals = _signals(low)
    if signals and all(name in low.exact for name in signals):
        return True
    metas = [n.meta["val"] for n in (*signals.values(), low.here)]
    flat = [v for m in metas for v in (m if isinstance(m, (list, tuple)) else [m])]
    return all(isinstance(v, Tensor) and v.dtype.is_floating_point for v in flat)


def _results(low: Lowering) -> list[tuple[Size, ...]]:
    value = low.here.meta["val"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [low.sizes(v.shape, strict=False) for v in values]


def _signals(low: Lowering) -> dict[str, fx.Node]:
    """The nodes' values among the arguments, by name."""
    values = {node: low.value(node) for node in low.here.all_input_nodes}
    values = {n: v.value if isinstance(v, Masked) else v for n, v in values.items()}
    return {str(value): node for node, value in values.items() if isinstance(value, Name)}


def _batch_of(shape: Sequence[Size]) -> int | None:
    """The dimension of the samples, None where it is not one of its own."""
    dims = [d for d, size in enumerate(shape) if follows_batch(size)]
    return dims[0] if len(dims) == 1 and shape[dims[0]] == "1*batch" else None


def _inner(shape: Sequence[Size]) -> list[int]:
    return [size for size in shape if isinstance(size, int)]


class Trial:
    """The operation being lowered, run on values of our choice."""

    def __init__(self, low: Lowering) -> None:
        self.low, self.signals = low, _signals(low)
        self.shapes = [low.shape_of(name) for name in self.signals]
        self.results = _results(low)
        self.sizes = [math.prod(_inner(shape)) for shape in self.shapes]
        numbered = any(isinstance(low.value(n), Unsettled) for n in low.here.all_input_nodes)
        self.samples = NUMBERED if numbered else SAMPLES
        self.generator = torch.Generator().manual_seed(0)

    def maps(self) -> list[Map] | None:
        """For each result where its values come from; None where they do not just come."""
        if any(_batch_of(shape) is None for shape in (*self.shapes, *self.results)):
            return None
        made = [math.prod(_inner(shape)) for shape in self.results]
        if max(sum(self.sizes), *made) > MOST_VALUES or 0 in made:
            return None
        try:
            maps = self._labelled()
            draws = ((n, values) for n in self.samples for values in self._draws(n))
            same = maps is not None and all(self._agrees(maps, *draw) for draw in draws)
        except Exception:  # of whatever an operation says to values that are not its own
            return None
        return maps if same else None

    def _labelled(self) -> list[Map] | None:
        n, size = self.samples[0], sum(self.sizes)
        labels = torch.arange(n * size, dtype=torch.double) + 0.37
        maps = []
        for out in self.run(labels.view(n, size)):
            places = (out - 0.37).round().clamp(0, n * size - 1).nan_to_num(0).long()
            places[labels[places] != out] = -1
            own = places - size * torch.arange(n).unsqueeze(1)
            own[places < 0] = -1
            one = Map(own[0], out[0])
            # of the sample's own values, and some of them: a constant is another matter
            if not bool((own == own[0]).all() & (own[0] < size).all() & (own[0] >= 0).any()):
                return None
            if bool((own[places >= 0] < 0).any()) or not bool(one.fill.isfinite().all()):
                return None
            maps.append(one)
        return maps

    def _draws(self, samples: int) -> Iterator[Tensor]:
        shape = samples, sum(self.sizes)
        for _ in range(DRAWS if samples == self.samples[0] else 1):
            uniform = torch.rand((2, *shape), dtype=torch.double, generator=self.generator)
            values = 10.0 ** (600 * uniform[0] - 300) * (uniform[1] - 0.5).sign()
            yield values
            yield -values
        for fill in FILLS:
            yield torch.full(shape, fill, dtype=torch.double)

    def _agrees(self, maps: Sequence[Map], samples: int, values: Tensor) -> bool:
        exact = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
        pairs = zip(maps, self.run(values), strict=True)
        return all(torch.allclose(one(values), out, **exact) for one, out in pairs)  # type: ignore[arg-type]

    def run(self, values: Tensor) -> list[Tensor]:
        """The results [samples, M] for all signals' values, [samples, N]."""
        n = len(values)
        parts = zip(self.signals.items(), self.shapes, values.split(self.sizes, 1), strict=True)
        given = {node: self._laid_out(node, shape, part) for (_, node), shape, part in parts}
        args, kwargs = self.low.arguments(n, given)
        target: Any = self.low.here.target
        out = target(*args, **kwargs)
        results = zip(out if isinstance(out, (list, tuple)) else [out], self.results, strict=True)
        return [o.movedim(_batch_of(shape) or 0, 0).reshape(n, -1) for o, shape in results]

    def _laid_out(self, node: fx.Node, shape: Sequence[Size], part: Tensor) -> Tensor:
        """One signal in the strides of the source network, which ``as_strided`` reads."""
        n, batch = len(part), _batch_of(shape) or 0
        value = part.reshape(n, *_inner(shape)).movedim(0, batch)
        strides = [self.low.number(s, n) for s in node.meta["val"].stride()]
        return torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)


# -- as nodes --------------------------------------------------------------------------------------


def _indexed(low: Lowering, found: Map, shape: tuple[Size, ...]) -> Value:
    """Values flattened as far as they change places, indexed, and brought into shape."""
    names, places = _used(low, found.places)
    new, batch = _inner(shape), _batch_of(shape) or 0
    lead = _lead(places, _inner(low.shape_of(names[0])), new) if len(names) == 1 else 0
    x = _taken(low, _flattened(low, names, new[:lead]), places.view(math.prod(new[:lead]), -1)[0])
    x = low.reshape(x, ("1*batch", *new))
    if batch:
        x = low.permute(x, [*range(1, batch + 1), 0, *range(batch + 1, len(shape))])
    fill = torch.where(places < 0, found.fill, 0.0).view(new)
    if bool(fill.any()):
        x = low.affine(x, bias=fill.unsqueeze(batch).to(low.dtype))
    return x if x in names else low.with_channel(x, _channel(low, names, places, new, batch))


def _used(low: Lowering, places: Tensor) -> tuple[list[str], Tensor]:
    """The signals that values come from, and their places in these."""
    names, start, kept = [], 0, 0
    moved_to = torch.full_like(places, -1)
    for name in _signals(low):
        size = math.prod(_inner(low.shape_of(name)))
        here = (places >= start) & (places < start + size)
        if bool(here.any()):
            moved_to[here] = places[here] - start + kept
            names.append(name)
            kept += size
        start += size
    return names, moved_to


def _lead(places: Tensor, old: Sequence[int], new: Sequence[int]) -> int:
    """How many leading dimensions stay as they are, each of their values alike."""
    same = next((d for d, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
                min(len(old), len(new)))  # fmt: skip
    for lead in range(same, 0, -1):
        outer = math.prod(new[:lead])
        inner = math.prod(old[lead:])
        rows = places.view(outer, -1)
        own = torch.where(rows < 0, -1, rows - inner * torch.arange(outer).unsqueeze(1))
        within = bool(((own[0] < inner) & ((own[0] >= 0) | (rows[0] < 0))).all())
        if within and torch.equal(own, own[:1].expand_as(own)):
            return lead
    return 0


def _flattened(low: Lowering, names: Sequence[str], lead: Sequence[int]) -> Value:
    parts = []
    for name in names:
        shape = low.shape_of(name)
        batch = _batch_of(shape) or 0
        x: Value = Name(name)
        if batch:
            x = low.permute(x, [batch, *(d for d in range(len(shape)) if d != batch)])
        inner = math.prod(_inner(shape)) // math.prod(lead)
        parts.append(low.reshape(x, ("1*batch", *lead, inner)))
    if len(parts) == 1:
        return parts[0]
    inner = sum(_inner(low.shape_of(part))[-1] for part in parts)
    return low.linear("cat", parts, ("1*batch", inner), None, dim=-1)


def _taken(low: Lowering, x: Value, index: Tensor) -> Value:
    """Values of the last dimension; 0 where the index is negative."""
    *lead, _ = low.shape_of(x)
    inner = _inner(low.shape_of(x))[-1]
    if bool((index < 0).any()):
        index = torch.where(index < 0, inner, index)
        pad = {"pad": [0, 1], "mode": "constant", "value": 0.0}
        x = low.linear("pad", [x], (*lead, inner + 1), None, **pad)
    elif torch.equal(index, torch.arange(inner)):
        return x
    return low.linear("index", [x], (*lead, len(index)), None, {"index": index}, dim=-1)


def _channel(
    low: Lowering, names: Sequence[str], places: Tensor, new: Sequence[int], batch: int
) -> int | None:
    """The dimension, counted from the end, each of whose values is of one channel before."""
    channels = [_channels(low, name) for name in names]
    if any(own is None for own in channels):
        return None
    before = torch.cat([own for own in channels if own is not None])[places.clamp(0)].view(new)
    for dim in range(len(new)):
        rows = before.movedim(dim, 0).flatten(1)
        nothing = places.view(new).movedim(dim, 0).flatten(1) < 0
        first = rows.gather(1, (~nothing).int().argmax(1, keepdim=True))
        if bool(((rows == first) | nothing).all()):
            return dim + (dim >= batch) - len(new) - 1
    return None


def _channels(low: Lowering, name: str) -> Tensor | None:
    """The number of the channel that each value of a sample is of."""
    shape, channel = low.shape_of(name), low.channel_of(name)
    if channel is None or follows_batch(shape[channel]):
        return None
    old, at = _inner(shape), channel % len(shape)
    at -= at > (_batch_of(shape) or 0)
    return torch.arange(old[at]).view(-1, *[1] * (len(old) - at - 1)).expand(old).flatten()
