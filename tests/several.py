"""Several processes as threads of one, for unit tests: the contract of ``Distributed``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch.distributed import HashStore

from spikingjelly_signgd.core.distributed import Distributed

T = TypeVar("T")
PATIENCE = 60.0  # seconds for all to come to the same call


class Thread(Distributed):
    """One of ``size`` threads that exchange values over ``board``."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier, store: Any) -> None:
        self._place(rank, len(board))
        self._store, self.board, self.barrier = store, board, barrier

    def _all(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(PATIENCE)
        found = list(self.board)
        self.barrier.wait(PATIENCE)
        return found

    def _all_tensors(self, value: Any) -> list[Any]:
        return [each.clone() for each in self._all(value)]

    def posted(self) -> list[str]:
        if self.barrier.broken:  # who waits for posts waits for no barrier
            raise threading.BrokenBarrierError
        return super().posted()

    def _firsts(self, value: Any) -> Any:
        return self._all(value)[0]


def several(size: int, function: Callable[[Distributed], T]) -> list[T]:
    """What ``function(world)`` returns in each of ``size`` threads, by rank.

    Raises the first error: where one fails the others end at the next exchange. Seeds and torch's
    threads are shared.
    """
    board: list[Any] = [None] * size
    barrier, store = threading.Barrier(size), HashStore()

    def run(rank: int) -> T:
        try:
            return function(Thread(rank, board, barrier, store))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return [future.result() for future in futures]
