"""The batches of a data set, and which of several processes takes which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import InputError
from .distributed import Distributed
from .given import given, is_pair
from .results import batch_digest


def batches(data: Any, size: int = 64) -> Iterable[Any]:
    """``data`` as batches: those of a loader or any iterable unchanged, otherwise cut by ``size``.

    A tensor [N, ...], a dict of such tensors, a pair (x, y), or a map-style ``Dataset`` of samples,
    which a DataLoader loads; an ``IterableDataset`` is an iterable of batches. The result can be
    iterated again if ``data`` can. Raises InputError for several data sets in one object.
    """
    data = given(data)
    if is_pair(data):
        return list(zip(batches(data[0], size), data[1].split(size), strict=True))
    if isinstance(data, Tensor):
        return data.split(size)
    if isinstance(data, Mapping):
        parts = {name: x.split(size) for name, x in data.items()}
        return [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, size)
    return data  # type: ignore[no-any-return]


def deal(
    data: Iterable[Any],
    world: Distributed,
    done: Collection[int] = (),
    *,
    again: Collection[int] = (),
    most: int | None = None,
    after: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """(number, batch) of this process's batches of ``data``, without those ``done`` before, of
    which some may be sent ``again``.

    Batches are cut by ``data`` itself, numbered in order, and assigned to the processes in turn, so
    that any number of processes computes the same ones. For a DataLoader of a map-style data set
    rank 0 draws the samples of each batch, and each process loads only its own. Any other iterable
    is iterated completely by every process, which keeps its own batches; the first batch is
    compared. All processes must iterate to the end. Only the first ``most`` batches are assigned.
    ``after`` is called with the number of each batch, in order, on all processes, when its own
    process has finished it: there they may exchange results. Raises InputError for a sampler that
    shards by itself, where an iterable gives another first batch or other numbers of batches on
    other processes, and where there are none of the numbers ``done``.
    """
    _check_whole(data, world)
    indexed = isinstance(data, DataLoader) and by_index(data)
    left_out = set(done) - set(again)
    if indexed and (world.size > 1 or done):
        assert isinstance(data, DataLoader)
        drawn: list[list[int]] = world.broadcast(_drawn(data) if world.first else None)[:most]
        _check_done(done, len(drawn))
        yield from _loaded(data, world, drawn, left_out, after)
        return
    number = -1
    for number, batch in enumerate(_the_same(islice(data, most), world)):
        if world.mine(number) and number not in left_out:
            yield number, batch
        if after is not None:
            after(number)
    _check_done(done, number + 1)
    if not indexed:
        world.agree("the number of batches", str(number + 1))


def _the_same(batches: Iterator[Any], world: Distributed) -> Iterator[Any]:
    """``batches``, of which all processes have the same first one: one that is drawn otherwise on
    another process gives some samples twice and others never."""
    if world.size == 1:
        return batches
    begin = list(islice(batches, 1))
    world.agree(
        "the first batch of the data, which every process goes through in the same order,",
        "none" if not begin else batch_digest(begin[0]),
    )
    return chain(begin, batches)


def _check_done(done: Collection[int], length: int) -> None:
    if max(done, default=-1) >= length:
        raise InputError(
            f"batch {max(done)} was already evaluated, but the data have {length} batches "
            "(numbered from 0): these are different data."
        )


def _check_whole(data: Any, world: Distributed) -> None:
    batched = getattr(data, "batch_sampler", None)
    for sampler in (getattr(data, "sampler", None), batched, getattr(batched, "sampler", None)):
        # torch's DistributedSampler, timm's, and others that were made after it
        if world.size > 1 and getattr(sampler, "num_replicas", 1) > 1:
            raise InputError(
                f"the loader's {type(sampler).__name__} already distributes samples over "
                "processes, and repeats some to make the shares equal. Pass a loader of the "
                "whole data set, DataLoader(dataset, batch_size=...), the same on every process: "
                "each batch is then assigned to one process."
            )


def by_index(loader: DataLoader[Any]) -> bool:
    """Whether its batches are lists of indices; a subclass may go another way through them."""
    return (
        type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _loaded(
    loader: DataLoader[Any],
    world: Distributed,
    drawn: Sequence[list[int]],
    left_out: Collection[int],
    after: Callable[[int], None] | None,
) -> Iterator[tuple[int, Any]]:
    own = [n for n in range(len(drawn)) if world.mine(n) and n not in left_out]
    loaded = iter(_with_batches(loader, [drawn[number] for number in own]))
    for number in range(len(drawn)):
        if world.mine(number) and number not in left_out:
            yield number, next(loaded)
        if after is not None:
            after(number)


def _drawn(loader: DataLoader[Any]) -> list[list[int]]:
    # the loader's own seed comes before its sampler's: drawn as by iter(loader)
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return list(loader.batch_sampler)  # type: ignore[arg-type]


def _with_batches(loader: DataLoader[Any], indices: Sequence[list[int]]) -> DataLoader[Any]:
    """The loader with these batches in place of its own."""
    return DataLoader(
        loader.dataset,
        batch_sampler=indices,  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=False,
        pin_memory_device=loader.pin_memory_device,
    )
