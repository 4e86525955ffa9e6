"""Faults of one of several processes end all of them, with a message and within half a minute.

A process that fails reports it in the store that all of them share; one that cannot (killed,
stopped, its machine lost) is reported by its neighbour in a ring, which misses its heartbeat. A
thread of every process reads the store, and ends the process even if that is blocked in a
collective operation.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT = 1.0  # seconds from one look at the store to the next
LIMIT = 15  # looks without a beat of the neighbour until it counts as dead
GRACE = 1.0  # seconds for the main thread to leave by itself, often with the same error
FAREWELL = 5.0  # seconds at most that a process which leaves waits for the others to hear of it
LONGEST = 10_000  # characters of a message; an entry of the store is limited


class Watch:
    """The watching threads of one process of ``size``; ``store`` is a connection of their own.

    Nothing asked of the store waits for another process: a client that waits holds its lock.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self._over = threading.Event()
        self._looks = 0
        self._exchanges, self._waits = 0, False
        self._beat()
        self._threads = [
            threading.Thread(target=each, name="spikingjelly_signgd watch", daemon=True)
            for each in (self._watch, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        neighbour = (self.rank + 1) % self.size
        beat, missed = b"", 0
        try:
            while not self._over.wait(BEAT):
                self._looks += 1
                self._beat()
                if self.store.check(["error"]):
                    return self._heard()
                now = self._value(f"beat/{neighbour}")
                # before its first beat it has not come yet. Looks are counted, and not seconds:
                # where this process was held up, so may be the other
                missed = missed + 1 if now == beat and now else 0
                beat = now
                self._look_for_leavers()
                if missed >= LIMIT:
                    self._say(
                        neighbour,
                        "no sign of life: it was killed or stopped, or its machine is lost",
                    )
                    _wake(now.decode())
        except RuntimeError as error:  # also those of torch.distributed
            if not self._over.is_set():
                end(f"the process with the shared store has ended ({error})")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While this process exchanges something with all others."""
        self._exchanges += 1
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _look_for_leavers(self) -> None:
        """Who left without the exchange that this process waits in never comes."""
        exchanges = self._exchanges
        for rank in range(self.size) if self._waits else ():
            left = self._value(f"done/{rank}")
            if left and int(left) < exchanges and self._waits:
                self._say(
                    rank,
                    "left the block of sg.Distributed while other processes wait for it. All "
                    "processes must make the same calls with distributed=; none of "
                    'them may be under "if world.first".',
                )

    def _beat(self) -> None:
        self.store.set(f"beat/{self.rank}", f"{self._looks} {os.getpid()} {socket.gethostname()}")

    def _guard(self) -> None:
        """Ends the process where the store does not even fail: its machine was lost."""
        looks, missed = -1, 0
        while not self._over.wait(BEAT):
            missed = missed + 1 if looks == self._looks else 0
            looks = self._looks
            if missed >= LIMIT + 5:
                end("the shared store does not answer any more; its machine may be lost")

    def _value(self, key: str) -> bytes:
        return self.store.get(key) if self.store.check([key]) else b""

    def _say(self, rank: int, what: str) -> str:
        """The first error of all, which is this one where there was none."""
        return self.store.compare_set("error", "", f"rank {rank}: {what}").decode()

    def _heard(self) -> None:
        self.store.set(f"heard/{self.rank}", "")
        if not self._over.wait(GRACE):
            end(self._value("error").decode())

    def tell(self, error: BaseException) -> None:
        """Before ``error`` ends this process; does not return where another one was first.

        That was the reason then: what a process meets whose neighbour is gone says nothing. Where
        all meet the same error, each raises its own.
        """
        what = _described(error)
        try:
            first = self._say(self.rank, what)
            self.store.set(f"heard/{self.rank}", "")
            self._stop()
            # the store may be in this process: until the others have read it
            self._wait_for("heard", FAREWELL)
        except RuntimeError:
            return
        if first.partition(": ")[2] != what:
            end(first)

    def goodbye(self) -> None:
        """A barrier at the normal end, so that a process that left early does not count as lost."""
        self.store.set(f"done/{self.rank}", str(self._exchanges))
        self._wait_for("done")
        self._stop()
        self.store.set(f"left/{self.rank}", "")
        if self.rank == 0:  # the store may be in this process
            self._wait_for("left", FAREWELL)

    def _wait_for(self, what: str, seconds: float = float("inf")) -> None:
        keys = [f"{what}/{rank}" for rank in range(self.size)]
        start, pause = time.monotonic(), 0.01
        while not self.store.check(keys) and time.monotonic() - start < seconds:
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(FAREWELL)


def _described(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    # names of files may hold what is no text, which the store does not take
    said = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
    return said[:LONGEST]


def _wake(beat: str) -> None:
    """A stopped process of this machine goes on, to read that it is to end.

    Left stopped it would hold up torchrun, which waits half a minute before it kills.
    """
    _, pid, host = beat.split(maxsplit=2)
    if host == socket.gethostname() and hasattr(signal, "SIGCONT"):
        with suppress(OSError):  # it may be gone
            os.kill(int(pid), signal.SIGCONT)


def end(message: str) -> None:
    """Ends this process with code 1, whatever its main thread waits for."""
    text = f"spikingjelly_signgd: ended by a fault of another process.\n{message}\n"
    # in a thread: the streams may have no reader, and the main thread may hold the lock of one
    last = threading.Thread(target=_last_words, args=(text,), daemon=True)
    last.start()
    last.join(GRACE)
    os._exit(1)


def _last_words(text: str) -> None:
    with suppress(OSError, ValueError):  # who read the stream may be gone
        os.write(2, text.encode())
    with suppress(OSError, ValueError):
        sys.stdout.flush()
