"""Command line: ``spikingjelly-signgd check | convert | evaluate | ...`` (docs/command-line.md)."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from ..errors import CaptureError, SignGDError, UnsupportedOperation
from .options import parse
from .processes import once_a_machine, processes, rank, started_by_torchrun

__all__ = ["main"]

OK, USAGE, UNSUPPORTED, INTERRUPTED = 0, 2, 3, 130
SILENT = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 2 usage, 3 unsupported operations, 4 verification failed, 5 below a limit.

    A model that torch.export cannot capture cannot be converted either: 3. One that cannot be
    loaded, or that itself fails on the data given, is a matter of usage: 2.

    Of several processes (torchrun) the first alone prints; of the others errors are heard.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with once_a_machine():
        options = parse(arguments)
    options.arguments = arguments
    notes: list[str] = []
    try:
        with _surroundings(options, notes):
            from .commands import COMMANDS  # torch, which --help does without

            with processes(options) as world:
                options.world = world
                # of one process, too: then every number of them gives the same
                options.distributed = world if started_by_torchrun() else None
                result = COMMANDS[options.command](options)
    except SignGDError as error:
        return _failed(options, error, notes, _code(error))
    except KeyboardInterrupt:
        return _failed(options, KeyboardInterrupt("interrupted"), notes, INTERRUPTED)
    document = {**result.document, "warnings": notes}
    if rank():
        return result.code
    if options.json:
        _print(_json(document))
    elif not options.quiet:
        _print(result.text)
    return result.code


def _code(error: SignGDError) -> int:
    if isinstance(error, (CaptureError, UnsupportedOperation)):
        return UNSUPPORTED
    return getattr(error, "code", USAGE)


def _failed(options: argparse.Namespace, error: BaseException, notes: list[str], code: int) -> int:
    if rank():
        print(f"{options.command}: rank {rank()}: {error}", file=sys.stderr)
    elif options.json:
        kind = type(error).__name__
        _print(_json({"ok": False, "error": str(error), "kind": kind, "warnings": notes}))
    else:
        print(f"{options.command}: {error}", file=sys.stderr)
    return code


@contextmanager
def _surroundings(options: argparse.Namespace, notes: list[str]) -> Iterator[None]:
    """Standard output is kept for the result; warnings are lines, of the first process alone."""
    quiet = options.quiet or rank() > 0

    def note(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, SILENT):
            return
        notes.append(str(message))
        if not quiet:
            print(f"warning: {message}", file=sys.stderr)

    error = io.StringIO() if quiet else sys.stderr  # where progress bars are, too
    with redirect_stdout(error), redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield


def _json(document: dict[str, Any]) -> str:
    from .commands import plain

    return json.dumps(plain(document), indent=2, allow_nan=False)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
