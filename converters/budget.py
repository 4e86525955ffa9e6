"""Seconds that tuning may take, asked before each piece of work, so that a limit is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


def now() -> float:
    return time.monotonic()


class TimeUp(Exception):
    """A piece of work that would end too late was not begun."""


class Budget:
    """What is left of ``seconds``, everything where these are None.

    ``longest`` are the seconds of the longest piece of each kind of work so far. The first of a
    kind is begun while anything is left, so a limit is kept but for one piece of work.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.end = math.inf if seconds is None else now() + seconds
        self.longest: dict[str, float] = {}

    def left(self) -> float:
        return self.end - now()

    def less(self, seconds: float) -> Budget:
        """Ends so much earlier."""
        part = Budget()
        part.end, part.longest = self.end - seconds, self.longest
        return part

    def share(self, part: float) -> Budget:
        """A part of what is left."""
        return self.less((1 - part) * self.left()) if self.end < math.inf else self.less(0.0)

    def fits(self, work: str, pieces: float = 1) -> bool:
        left = self.left()
        return left > 0 and left >= pieces * self.longest.get(work, 0.0)

    @contextmanager
    def piece(self, work: str) -> Iterator[None]:
        """Raises TimeUp where a piece like the longest would end too late."""
        if not self.fits(work):
            raise TimeUp(work)
        begun = now()
        yield
        self.longest[work] = max(self.longest.get(work, 0.0), now() - begun)
