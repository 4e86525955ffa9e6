"""The results of an evaluation, batch by batch, and the file from which it resumes.

A results file is text, one JSON document per line: the options, then one record for each finished
batch, in any order. Numbers are restored to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import FormatError, InputError
from .inputs import Inputs
from .structures import leaves

FORMAT, VERSION = "spikingjelly_signgd results", 1
MOST = 64 * 2**20  # bytes in a line

# what a results file is of, and how that is called in an error
ASKED = {
    "network": "the network",
    "reference": "the reference",
    "simulator": "the simulator",
    "time_steps": "time_steps",
    "metric": "the metrics",
    "chunk": "chunk",
    "data": "the data",
    "batches": "the number of batches",
    "threads": "the number of torch's threads",
    "device": "the device",
    "torch": "the version of torch",
}


@dataclass(frozen=True)
class Record:
    """What one batch brings; lists hold a number for each T.

    ``classes`` is 0 where the output is no classifier's. ``right`` and ``right_top5`` are those of
    the reference. ``squared`` are squared distances from its outputs, ``norm`` is their squared
    norm. ``parts`` are those of the metrics, of outputs of ``shapes``. ``input`` is a digest of the
    batch, empty if it is not compared.
    """

    batch: int
    samples: int
    skipped: tuple[str, ...] = ()  # names of samples that could not be read
    input: str = ""
    classes: int = 0
    labelled: int = 0
    right: int = 0
    right_top5: int = 0
    norm: float = 0.0
    correct: tuple[int, ...] = ()
    top5: tuple[int, ...] = ()
    same: tuple[int, ...] = ()
    squared: tuple[float, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, list[Tensor]]] = field(default_factory=dict)

    def to_json(self) -> str:
        """On one line."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps(values, default=_numbers)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Raises FormatError for what ``to_json`` did not write."""
        try:
            values = json.loads(text)
            if set(values) != {each.name for each in fields(cls)}:
                raise KeyError(f"the fields are {', '.join(values)}")
            for each in fields(cls):
                values[each.name] = _read_as(getattr(_ZERO, each.name), values[each.name])
            values["shapes"] = {name: tuple(shape) for name, shape in values["shapes"].items()}
            values["parts"] = {
                output: {name: list(map(_tensor, parts)) for name, parts in own.items()}
                for output, own in values["parts"].items()
            }
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise FormatError(f"this is not a record of a batch: {error}") from error


_ZERO = Record(0, 0)


def _read_as(example: Any, value: Any) -> Any:
    """A field's value of JSON in the type of the field."""
    if isinstance(example, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(example):
        raise TypeError(f"{value!r} stands where {type(example).__name__} is expected")
    return value


def _numbers(x: Any) -> Any:
    assert isinstance(x, Tensor), x
    flat = x.detach().cpu().flatten()
    return {
        "dtype": str(x.dtype).removeprefix("torch."),
        "shape": list(x.shape),
        "of": flat.tolist(),
    }


def _tensor(value: Mapping[str, Any]) -> Tensor:
    dtype = getattr(torch, value["dtype"])
    return torch.tensor(value["of"], dtype=dtype).reshape(value["shape"])


class ResultsFile:
    """The results file at ``path`` of what ``asked`` says (``ASKED``): new, or gone on with.

    ``done`` are the records it holds. A last line that was cut while it was written is taken away.
    Raises InputError where the file is of something else, FormatError where it is damaged or is no
    results file.
    """

    def __init__(self, path: str | Path, asked: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.done: dict[int, Record] = {}
        self.file = self._opened()
        try:
            self._go_on({"format": FORMAT, "version": VERSION, **asked})
        except BaseException:
            self.close()
            raise

    def _go_on(self, header: dict[str, Any]) -> None:
        whole = self._whole_lines(json.dumps(header))
        lines = whole.decode(errors="replace").split("\n")[:-1]
        if lines:
            self._check(lines[0], header)
        for number, line in enumerate(lines[1:], 2):
            self._read(number, line)
        self.file.truncate(len(whole))
        if not lines:
            self._append(json.dumps(header))

    def _opened(self) -> FileIO:
        """Unbuffered: a line is one write, and is there when that returns. One run at a time."""
        try:
            file = FileIO(self.path, "a+")
        except OSError as error:
            raise InputError(
                f"the results file '{self.path}' cannot be written ({error.strerror}); choose a "
                "folder that exists and can be written."
            ) from error
        if not _locked(file):
            file.close()
            raise InputError(
                f"'{self.path}' is being written by another run; wait for its end, or give another "
                "file to resume from."
            )
        return file

    def _whole_lines(self, header: str) -> bytes:
        """What the file holds up to the end of its last whole line."""
        self.file.seek(0)
        held = self.file.readall()
        whole, _, torn = held.rpartition(b"\n")
        if not whole and not header.encode().startswith(torn):
            raise self._no_results()
        return held[: len(held) - len(torn)]

    def _no_results(self) -> FormatError:
        return FormatError(
            f"{self.path} is not a results file of an evaluation; give another file to resume from."
        )

    def _check(self, line: str, header: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line)
            kind, version = found["format"], found["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._no_results() from error
        if kind != FORMAT:
            raise self._no_results()
        if version != VERSION:
            raise FormatError(
                f"{self.path} is a results file of version {version}, but this release reads "
                f"version {VERSION}; give another file to resume from, or delete this one."
            )
        for name, called in ASKED.items():
            if found.get(name) != header[name]:
                raise InputError(
                    f"{self.path} contains results of another evaluation: {called} was "
                    f"{found.get(name)!r} there and is {header[name]!r} now. Give another file "
                    "to resume from, or delete this one."
                )

    def _read(self, number: int, line: str) -> None:
        try:
            record = Record.from_json(line)
        except FormatError as error:
            raise self._damaged(number, str(error)) from error
        if record.batch in self.done:
            raise self._damaged(number, f"batch {record.batch} occurs twice")
        self.done[record.batch] = record

    def _damaged(self, number: int, why: str) -> FormatError:
        return FormatError(
            f"{self.path} is damaged at line {number}: {why}. Delete that line, so that its "
            "batch is evaluated again, or delete the file."
        )

    def add(self, record: str) -> None:
        """A record as ``to_json`` gives it."""
        if len(record) > MOST:
            raise InputError(
                f"one batch's results are {len(record) / 2**20:.0f} MiB, but a line of "
                f"{self.path} may hold {MOST // 2**20}: rank_correlation and functions keep all "
                "outputs. Choose other metrics, smaller batches, or do not pass resume=."
            )
        self._append(record)

    def _append(self, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            why = "" if self.file.write(data) == len(data) else "No space left on device"
        except OSError as error:
            why = error.strerror or str(error)
        if why:
            raise InputError(
                f"the results file '{self.path}' cannot be written ({why}); make room and start "
                "again, which goes on after the last whole line, or give a file elsewhere."
            )

    def close(self) -> None:
        _unlock(self.file)
        self.file.close()


def _locked(file: FileIO) -> bool:
    """Whether it is this run's alone, until it is closed; where files can be locked."""
    try:
        import fcntl
    except ModuleNotFoundError:  # of Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unlock(file: FileIO) -> None:
    """A loader's worker that lives on holds the file open, too, and with it the lock."""
    with suppress(ModuleNotFoundError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


# -- digests --------------------------------------------------------------------------------------


def input_digest(x: Any, y: Tensor | None, skipped: tuple[str, ...]) -> str:
    """Of a batch: its input, labels, and what was left out of it."""
    tensors = x.tensors if isinstance(x, Inputs) else {"x": x}
    labels = {} if y is None else {"y": y}
    return _digest({**tensors, **labels}, *skipped)


def batch_digest(batch: Any) -> str:
    """Of the tensors in a batch, whatever it is."""
    parts = batch.tensors if isinstance(batch, Inputs) else batch
    return _digest({str(i): x for i, x in enumerate(leaves(parts))})


def model_digest(model: nn.Module) -> str:
    """Of the classes of a model's modules, what they say of themselves, and the parameters and
    buffers."""
    said = [f"{name}: {type(m).__module__}.{_said(m)}" for name, m in model.named_modules()]
    return _digest(model.state_dict(), *said)


def _said(module: nn.Module) -> str:
    """Without addresses, such as those of functions, which differ between processes; of a graph
    with its code."""
    if isinstance(module, fx.GraphModule):
        return module.code
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(module).__qualname__}({module.extra_repr()}")


def _digest(tensors: Mapping[str, Any], *texts: str) -> str:
    seen = hashlib.sha256(json.dumps(texts).encode())
    for name, x in tensors.items():
        if isinstance(x, Tensor):
            flat = x.detach().cpu().contiguous().reshape(-1)
            seen.update(f"{name}: {x.dtype} {list(x.shape)};".encode())
            seen.update(flat.view(torch.uint8).numpy().data)
    return seen.hexdigest()
