"""The processes of a command that ``torchrun`` started. Loads no torch."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..core.distributed import Distributed

SEVERAL = ("convert", "search", "evaluate")  # commands that compute one result in several processes


def started_by_torchrun() -> bool:
    return "RANK" in os.environ


def rank() -> int:
    """Of this process; 0 alone, and where the environment is not torchrun's."""
    return _number("RANK", 0) if _number("WORLD_SIZE", 1) > 1 else 0


@contextmanager
def once_a_machine() -> Iterator[None]:
    """What all processes say alike, of options that cannot be, is said by one of a machine."""
    with _silence() if _number("LOCAL_RANK", 0) else nullcontext():
        yield


@contextmanager
def _silence() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def processes(options: argparse.Namespace) -> Iterator[Distributed]:
    """torchrun's, or this one alone, with the threads of --threads. Networks run on CPUs.

    Raises InputError for a command that several processes would only run several times, and where
    the environment is not torchrun's.
    """
    from ..core.distributed import Distributed

    world = Distributed(threads=options.threads, device="cpu")
    if world.size > 1 and options.command not in SEVERAL:
        raise InputError(
            f"{options.command} runs in one process, but torchrun started {world.size}, which "
            "would each do the same and write the same files; start it without torchrun. Several "
            f"processes can run: {', '.join(SEVERAL)}."
        )
    with world:
        yield world


def _number(name: str, otherwise: int) -> int:
    """A number from the environment; an invalid one is refused where processes are joined."""
    text: Any = os.environ.get(name, "")
    return int(text) if text.isdigit() else otherwise
