"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    *,
    images: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """``items``, with a bar on standard error where that is a terminal and tqdm is installed.

    With ``images``, how many samples an item holds, the bar counts these, ``total`` in all, and
    tells how many a second and how long the rest takes.
    """
    if not sys.stderr.isatty():
        return iter(items)
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return iter(items)
    if images is None:
        return iter(tqdm(items, desc=label, total=total, leave=False))
    bar = tqdm(desc=label, total=total, unit=" images", leave=False)
    return _counted(items, bar, images)


def _counted(items: Iterable[T], bar: Any, images: Callable[[T], int]) -> Iterator[T]:
    with bar:
        for item in items:
            yield item
            bar.update(images(item))


def samples_in(loader: Any) -> int | None:
    """How many samples the batches of a DataLoader hold; None where that is not known."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, (list, tuple)):
        return sum(map(len, sampler))
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None
