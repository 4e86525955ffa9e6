"""The time limit of tuning, and the processes that pieces of work are distributed over.

Piece i is computed by process i modulo their number, and the results are returned to all processes
in the order of the pieces, so that sums are the same for any number of processes. The pieces do not
depend on the processes. If there is a limit, the clock of the first process decides for all, before
each round of pieces.

What is sent, by each process to all others, when ``tune`` runs: in a step of descent the gradient
of each piece, as one tensor of as many numbers as are learned (``descent.py``); in a look at
held-out samples their outputs, block by block one number for a piece; once the outputs of the
source network for all samples (1,280 at most); block by block, at the end of each block, the values
there of its samples (192 at most), of the source network and at every step. ``search`` sends of a
trial a few numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..core.distributed import ALONE, Distributed

PIECES = 4  # that processes cut a batch into, however many they are

T = TypeVar("T")
Found = TypeVar("Found")


def now() -> float:
    return time.monotonic()


class TimeUp(Exception):
    """A piece of work was not started because it would end too late."""


class Budget:
    """What is left of ``seconds``, everything where these are None, for all processes.

    ``longest`` are the seconds of the longest piece of each kind of work so far. The first of a
    kind is started while any time is left, so a limit is exceeded by at most one piece of work.
    """

    def __init__(
        self, seconds: float | None = None, distributed: Distributed | None = None
    ) -> None:
        self.distributed, self.world = distributed, distributed or ALONE
        self.end = math.inf if seconds is None else now() + seconds
        self.longest: dict[str, float] = {}

    def left(self) -> float:
        return self.end - now()

    def less(self, seconds: float) -> Budget:
        """Ends so much earlier."""
        part = Budget(None, self.distributed)
        part.end, part.longest = self.end - seconds, self.longest
        return part

    def share(self, part: float) -> Budget:
        """A part of what is left."""
        return self.less((1 - part) * self.left()) if self.end < math.inf else self.less(0.0)

    def size_of(self, batch: int) -> int:
        """Samples of a piece, where one process alone would take so many at once."""
        return batch if self.distributed is None else -(-batch // PIECES)

    def rounds(self, pieces: int) -> int:
        """Pieces that one process does of so many."""
        return -(-pieces // self.world.size)

    def fits(self, work: str, pieces: float = 1) -> bool:
        """So many pieces, one after the other."""
        if self.end == math.inf:
            return True
        left = self.left()
        fitting = left > 0 and left >= pieces * self.longest.get(work, 0.0)
        return bool(self.world.broadcast(fitting))

    @contextmanager
    def piece(self, work: str) -> Iterator[None]:
        """Raises TimeUp where a piece like the longest would end too late."""
        if not self.fits(work):
            raise TimeUp(work)
        begun = now()
        yield
        self.longest[work] = max(self.longest.get(work, 0.0), now() - begun)

    def dealt(self, work: str, items: Sequence[T], do: Callable[[T], Found]) -> list[Found]:
        """What is found in each item, by one of the processes. Raises TimeUp, in all of them."""
        found = {}
        for begin in range(0, len(items), self.world.size):
            with self.piece(work):
                mine = begin + self.world.rank
                if mine < len(items):
                    found[mine] = do(items[mine])
        return self.world.in_order(found)
