r"""A subset of a data set, spread evenly over it, if the whole does not fit into memory.

Sample i of all comes before sample j where the fractional part of :math:`i \varphi` is smaller,
:math:`\varphi` the golden ratio; the first ``count`` in this order are kept. Their places differ by
one of three distances, whatever the number of samples, and keep step with no period in the data,
such as classes in turn. What is kept of two parts of the data is what is kept of both: so the
choice needs one pass, and is the same on several processes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..errors import InputError
from .dealing import batches, by_index
from .distributed import Distributed
from .given import given, is_pair, one_batch
from .inputs import Batch, Inputs, batch_of, tensor_of

# a tensor [N, ...], a dict of such, a pair (x, y), a data set, a DataLoader, or batches x or (x, y)
Data = Tensor | Mapping[str, Tensor] | Dataset[Any] | Iterable[Any]
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
BATCH = 64  # of samples that were kept one by one
LEAST = 64  # samples that are kept however large they are


class Some(NamedTuple):
    """Samples x [count, ...], and their labels, y [count, ...], None if there are none."""

    x: Batch
    y: Tensor | None


def some(data: Any, count: int) -> Some:
    """At most ``count`` samples of ``data``, in its order, spread evenly over it; all, where it has
    no more.

    ``data`` is a tensor [N, ...], a dict of such tensors, a map-style ``Dataset`` of samples x or
    (x, y), of which no others are loaded, a DataLoader, or an iterable of batches x or (x, y),
    which is gone through once. Raises InputError where it is none of these, where samples differ in
    shape, and where there are none.
    """
    data = given(data)
    whole, y = data if is_pair(data) else (data, None)
    x = batch_of(whole)
    if isinstance(x, (Tensor, Inputs)):
        if len(x) <= count:
            return Some(x, y)
        kept_of = _places(len(x), count)
        return Some(x[kept_of], None if y is None else y[kept_of])
    if not isinstance(data, (Dataset, Iterable)):
        raise InputError(
            "data are a tensor [N, ...], a dict of such, a Dataset, a DataLoader or an iterable of "
            f"batches x or (x, y), not {type(data).__name__}."
        )
    kept = Spread(count)
    for number, batch in enumerate(_chosen(data, count)):
        x, y = pair_of(batch)
        kept.add(number, (x, y if isinstance(y, Tensor) else None))
    if not kept.seen:
        raise InputError("the data contain no samples; a few dozen representative ones are enough.")
    return Some(*joined(kept.batches()))


def pair_of(batch: Any) -> tuple[Batch, Any]:
    """(x, y) of a batch x, (x,) or (x, y), where x may be a dict of tensors; y is None of x."""
    if not isinstance(batch, (tuple, list)):
        return batch_of(batch), None
    if len(batch) not in (1, 2):
        raise InputError(f"a batch is x or (x, y), but the data give {len(batch)} values.")
    return batch_of(batch[0]), tensor_of(batch[1]) if len(batch) == 2 else None


def inputs_of(data: Any) -> Iterator[Any]:
    """The x of one batch after the other; what is a tensor, a dict of tensors or no data is one."""
    data = one_batch(data)
    return iter([data]) if is_whole(data) else (pair_of(each)[0] for each in batches(data, BATCH))


def is_whole(data: Any) -> bool:
    """Whether data are one batch, a tensor or a dict of tensors, or none at all."""
    data = one_batch(data)
    return isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, (Dataset, Iterable))


def examined(x: Any, y: Any, count: int) -> tuple[Any, Any]:
    """x and y as they are where x is one batch; of other data ``count`` samples, and their labels.

    Raises InputError where labels are given twice.
    """
    x, y = labelled(x, y)
    if is_whole(x):
        return x, y
    if y is not None:
        raise InputError(
            "y holds the labels of one batch x, but x is a data set; put the labels into its "
            "batches (x, y)."
        )
    found = some(x, count)
    return found.x, labels_of(found.y)


def labelled(x: Any, y: Any) -> tuple[Any, Any]:
    """x and y, where x may be the pair of both, and y be left out. Raises InputError."""
    x, y = given(x), tensor_of(y)
    if not is_pair(x):
        return x, y
    if y is not None:
        raise InputError("y is given twice, in the pair (x, y) and beside it; leave one out.")
    return x[0], labels_of(x[1])


def labels_of(y: Any) -> Tensor | None:
    """y where it is class indices [B]."""
    known = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point()
    return y if known and y.dtype != torch.bool else None


def joined(batches: Sequence[Any]) -> Any:
    """Several batches, each x or a tuple such as (x, None), as one."""
    if isinstance(batches[0], tuple):
        return tuple(map(joined, zip(*batches, strict=True)))
    if any(each is None for each in batches):
        return None
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))


def _chosen(data: Any, count: int) -> Iterable[Any]:
    """Batches of the samples that are kept where these can be loaded alone, else all."""
    if isinstance(data, DataLoader) and by_index(data):
        order = [i for batch in data.batch_sampler for i in batch]  # type: ignore[union-attr]
        picked = [order[i] for i in _places(len(order), count)]
        return DataLoader(
            Subset(data.dataset, picked),
            min(BATCH, data.batch_size or BATCH),
            num_workers=data.num_workers,
            collate_fn=data.collate_fn,
            worker_init_fn=data.worker_init_fn,
            multiprocessing_context=data.multiprocessing_context,
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(Subset(data, _places(len(data), count)), BATCH)  # type: ignore[arg-type]
    return data  # type: ignore[no-any-return]


def _places(length: int, count: int) -> list[int]:
    """Which of so many samples are kept."""
    if length <= count:
        return list(range(length))
    return sorted(heapq.nsmallest(count, range(length), key=_turn))


def _turn(place: int) -> int:
    """When a sample's turn comes; who comes first is kept."""
    return place * GOLDEN % 2**64


class Spread:
    """At most ``count`` of the samples of batches that are added, each x or a tuple such as (x, y).

    While all fit they stay as they came, ``whole``; after that each is a row of ``rows``, without
    its batch. A sample's place is that in its batch after the batches before it, all
    taken to be as long as the first: so it does not matter who adds which batch. ``size`` bounds
    the bytes, too, but for ``LEAST`` samples.
    """

    def __init__(self, count: int, size: int | None = None) -> None:
        self.count, self.size = count, size
        self.length = 0  # of the first batch
        self.seen = 0
        self.shapes: list[Any] = []
        self._batches: list[Any] | None = None
        self.whole: dict[int, Any] | None = {}
        self.rows: Any = None  # x [count, ...], or a tuple of such
        # those that are kept and their rows, the last to come first
        self.single: list[tuple[int, int, int, int]] = []

    def begin(self, batch: Any) -> None:
        """The facts of the first batch of all, on whichever process it is added."""
        if self.length:
            return
        self.length = length_of(batch)
        if self.size is not None:
            one = max(1, _bytes_of(batch) // self.length)
            self.count = min(self.count, max(LEAST, self.size // one))

    def add(self, number: int, batch: Any) -> None:
        """The batch of this number; numbers are unlike each other."""
        if not length_of(batch):
            return
        self.begin(batch)
        self._check(batch)
        self.seen += length_of(batch)
        if self.whole is None:
            self._put(number, batch)
        else:
            self.whole[number] = batch
            if self.seen > self.count:
                self._part()

    def _check(self, batch: Any) -> None:
        shapes = [list(x.shape[1:]) for x in _tensors(batch)]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            raise InputError(
                f"samples have one shape, but some are {self.shapes} and others {shapes}."
            )

    @property
    def over(self) -> bool:
        """Whether there were more than are kept."""
        return self.whole is None

    def batches(self) -> list[Any]:
        """The samples in order: the batches that were added, or, of more, ones of ``BATCH``.
        Nothing is added afterwards."""
        if self.whole is not None:
            return [self.whole[number] for number in sorted(self.whole)]
        if self._batches is None:
            order = [row for *_, row in sorted(self.single, key=_place)]
            parts = range(0, len(order), BATCH)
            self._batches = [_each(self.rows, _taken(order[i : i + BATCH])) for i in parts]
            self.rows = None
        return self._batches

    def gather(self, world: Distributed) -> None:
        """Each process's samples to all of them: what one process would have kept."""
        if world.size == 1:
            return
        self.seen = sum(world.gather(self.seen))
        if self.seen <= self.count:
            assert self.whole is not None
            own = {number: _each(batch, _copied) for number, batch in self.whole.items()}
            self.whole = {k: v for part in world.gather(own) for k, v in part.items()}
            return
        self._part()
        turns = sorted(turn for part in world.gather(self._turns()) for turn in part)
        last = turns[min(self.count, len(turns)) - 1]
        mine = [each for each in self.single if _order(each) <= last]
        held = _each(self.rows, _taken([row for *_, row in mine])) if mine else None
        self.rows, keys = None, [each[:3] for each in mine]
        parts = [part for part in world.gather((keys, held)) if part[0]]
        keys = [key for keys, _ in parts for key in keys]
        self.single = [(*key, row) for row, key in enumerate(keys)]
        self.rows = joined([held for _, held in parts])

    def _turns(self) -> list[tuple[int, int, int]]:
        return list(map(_order, self.single))

    def _part(self) -> None:
        """From now on each sample by itself."""
        batches, self.whole = self.whole or {}, None
        for number in sorted(batches):
            self._put(number, batches.pop(number))

    def _put(self, number: int, batch: Any) -> None:
        if self.rows is None:
            self.rows = _each(batch, lambda x: _rows(x, self.count))
        for i in range(length_of(batch)):
            kept = (-_turn(number * self.length + i), -number, -i, len(self.single))
            if len(self.single) < self.count:
                heapq.heappush(self.single, kept)
            elif kept[:3] > self.single[0][:3]:
                kept = (*kept[:3], self.single[0][3])
                heapq.heapreplace(self.single, kept)
            else:
                continue
            for rows, x in zip(_tensors(self.rows), _tensors(batch), strict=True):
                rows[kept[3]] = x[i]


def _place(kept: tuple[int, int, int, int]) -> tuple[int, int]:
    """Where it was in the data."""
    return -kept[1], -kept[2]


def _order(kept: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """When its turn came."""
    return -kept[0], -kept[1], -kept[2]


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch, x or a tuple, with all its parts changed."""
    if isinstance(batch, tuple):
        return tuple(_each(part, change) for part in batch)
    return None if batch is None else change(batch)


def _taken(rows: list[int]) -> Callable[[Any], Any]:
    return lambda x: x[torch.tensor(rows, dtype=torch.long)]


def _rows(x: Any, count: int) -> Any:
    """Room for so many samples."""
    if isinstance(x, Inputs):
        return Inputs({name: _rows(each, count) for name, each in x.tensors.items()})
    return x.new_empty((count, *x.shape[1:]))


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, tuple):
        return [x for part in batch for x in _tensors(part)]
    if isinstance(batch, Inputs):
        return list(batch.tensors.values())
    return [] if batch is None else [batch]


def _copied(x: Any) -> Any:
    return x.clone()  # of a view the whole would travel


def length_of(batch: Any) -> int:
    """Samples of a batch, x or (x, y)."""
    return len(batch[0]) if isinstance(batch, tuple) else len(batch)


def _bytes_of(batch: Any) -> int:
    return sum(x.numel() * x.element_size() for x in _tensors(batch))
