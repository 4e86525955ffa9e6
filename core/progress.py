"""What is being done, and how much is left of it, on standard error.

On a terminal and in a notebook it is one line that is rewritten and erased at the end; in a log,
or wherever else standard error goes, a line now and then. Nothing is shown of what is over in two
seconds (in a log in five), and nothing at all by other processes than the first.

The environment variable ``SIGNGD_PROGRESS`` is the switch: ``off``, ``bar`` (the line that is
rewritten), ``lines`` or, as if it were not there, ``auto``.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

VARIABLE = "SIGNGD_PROGRESS"
OFF = ("off", "0", "false", "no")
AFTER = {"bar": 2.0, "lines": 5.0}  # seconds, before which nothing is shown
EVERY = {"bar": 0.2, "lines": 10.0}  # seconds between two looks
WIDTH = 120  # of the line in a notebook


def progress(
    items: Iterable[T],
    label: str | Callable[[T], str],
    total: int | None = None,
    *,
    images: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """``items``, and while they are gone through how many of ``total`` are done.

    With ``images``, how many samples an item holds, these are counted, ``total`` in all, and how
    many a second is told, too. Where ``label`` is a function, of an item, the items are unlike each
    other, and there is no estimate of how long the rest takes.
    """
    if mode() is None:
        return iter(items)
    named = label if callable(label) else None
    task = _Task("" if callable(label) else label, total, " images" if images else "")
    return _counted(items, task, images or (lambda _: 1), named)


@contextmanager
def working(label: str) -> Iterator[None]:
    """Around one long call, which cannot say how far it is: what is done, and for how long."""
    if mode() is None:
        yield
        return
    task, over = _Task(label), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY["bar"]):
            _SCREEN.look()

    _SCREEN.push(task, _frames())
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        _SCREEN.drop(task)


def announce(text: str, seconds: float) -> None:
    """A line that stays, of what is about to take so long: none of what is short."""
    how = mode()
    if how is not None and seconds >= AFTER[how]:
        _SCREEN.write(f"{text}, about {duration(seconds)}")


def mode() -> str | None:
    """ "bar", "lines", or None where nothing is shown."""
    asked = os.environ.get(VARIABLE, "auto").strip().lower()
    if asked in OFF or sys.stderr is None or os.environ.get("RANK", "0") not in ("", "0"):
        return None
    if asked in EVERY:
        return asked
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    return "bar" if notebook or sys.stderr.isatty() else "lines"


def samples_in(loader: Any) -> int | None:
    """How many samples the batches of a DataLoader hold; None where that is not known."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, (list, tuple)):
        return sum(map(len, sampler))
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


class _Task:
    def __init__(self, label: str, total: int | None = None, unit: str = "") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.begun, self.done = time.monotonic(), 0
        self.at = self.begun  # when the last of them was done
        self.current = ""  # what the item is called that is worked on
        self.frame = 0  # id of the frame that goes through the items

    def __str__(self) -> str:
        spent = time.monotonic() - self.begun
        if self.total is None and not self.done:
            return f"{self.label}, {duration(spent)}"
        if self.current:
            return f"{self.current} ({self.done + 1}{f' of {self.total}' if self.total else ''})"
        text = f"{self.label} {self.done:,}"
        text += self.unit if self.total is None else f"/{self.total:,}{self.unit}"
        if self.unit and spent:
            text += f", {self.done / spent:.3g}{self.unit}/s"
        if self.total is not None and 0 < self.done <= self.total:
            each = (self.at - self.begun) / self.done
            left = (self.total - self.done) * each - (time.monotonic() - self.at)
            text += f", {duration(max(left, 0.0))} left"
        return text


def _counted(
    items: Iterable[T],
    task: _Task,
    count: Callable[[T], int],
    named: Callable[[T], str] | None,
) -> Iterator[T]:
    try:
        for item in items:
            task.current = named(item) if named else ""
            frames = _frames()
            task.frame = next(iter(frames))
            _SCREEN.push(task, frames)
            _SCREEN.look()
            yield item
            task.done, task.at = task.done + count(item), time.monotonic()
            _SCREEN.look()
    finally:
        _SCREEN.drop(task)


def _frames() -> dict[int, None]:
    """Ids of the frames that run, the caller of the one that asks first."""
    frame, found = sys._getframe(2), dict[int, None]()
    while frame is not None:
        found[id(frame)] = None
        frame = frame.f_back  # type: ignore[assignment]
    return found


class _Screen:
    """The line, and the tasks that it tells of, from the outermost to the innermost."""

    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.lock = threading.RLock()
        self.shown, self.width = -math.inf, 0  # when; of the line that stands there

    def push(self, task: _Task, frames: dict[int, None]) -> None:
        """A task that goes on. What an error ended is still here as long as its traceback is, but
        no running frame goes through its items."""
        with self.lock:
            self.tasks = [t for t in self.tasks if t is task or not t.frame or t.frame in frames]
            if task not in self.tasks:
                self.tasks.append(task)

    def drop(self, task: _Task) -> None:
        with self.lock:
            self.tasks = [each for each in self.tasks if each is not task]
            if not self.tasks:
                self.erase()

    def look(self) -> None:
        """Shows what there is, where it is time to."""
        with self.lock:
            now, how = time.monotonic(), mode()
            if how is None or not self.tasks or now - self.shown < EVERY[how]:
                return
            if now - self.tasks[0].begun >= AFTER[how]:
                self.shown = now
                self.draw(" > ".join(map(str, self.tasks)), how)

    def draw(self, text: str, how: str) -> None:
        if how == "lines":
            self.put(f"{text}\n")
            return
        room = shutil.get_terminal_size().columns - 1 if sys.stderr.isatty() else WIDTH
        text = text[:room]
        self.put(f"\r{text}{' ' * (self.width - len(text))}")
        self.width = len(text)

    def erase(self) -> None:
        if self.width:
            self.put(f"\r{' ' * self.width}\r")
            self.width = 0

    def write(self, text: str) -> None:
        with self.lock:
            self.erase()
            self.put(f"{text}\n")

    @staticmethod
    def put(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # closed, or a pipe that nobody reads
            return


def duration(value: float) -> str:
    """Seconds as a person says them."""
    if value < 60:
        return f"{value:.0f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:02.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:02.0f} min"


_SCREEN = _Screen()
