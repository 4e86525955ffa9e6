"""Events of an event camera: changes of single pixels, as increments of a network's input.

An event camera sends an event (x, y, t, p) whenever the logarithm of the light at a pixel has risen
(p = 1) or fallen (p = 0) by theta since its last event. The input of a network on log intensities
is then the running sum of +-theta, and an event is one increment: one pass of a column of W into x
of the first layer, with no frames in between. Source: Lichtsteiner, Posch & Delbruck, 2008.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from ..errors import BackendUnavailable, FormatError, InputError

# the names that a field has in files
FIELDS = {
    "x": ("x",),
    "y": ("y",),
    "t": ("t", "ts", "timestamp"),
    "p": ("p", "on", "polarity", "pol"),
}
GROUPS = ("events", "CD/events")  # where HDF5 files keep them


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order of time: pixels x and y, t in microseconds, whole numbers [N], and p,
    bool [N], whether it became brighter; ``size`` is (height, width) of the sensor.

    Raises InputError for events that are outside the sensor or out of order.
    """

    x: Tensor
    y: Tensor
    t: Tensor
    p: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_size(self.size))
        for name, column in _aligned({name: getattr(self, name) for name in FIELDS}).items():
            object.__setattr__(self, name, column)
        self._check_inside()
        falls = (self.t.diff() < 0).nonzero()
        if len(falls):
            n = int(falls[0]) + 1
            raise InputError(
                f"event {n} is at {int(self.t[n])} us, earlier than the event before it, at "
                f"{int(self.t[n - 1])} us. Events must be sorted by time: pass sort=True to "
                "Events.of or Events.read."
            )

    def _check_inside(self) -> None:
        for name, most in (("x", self.size[1]), ("y", self.size[0])):
            value = getattr(self, name)
            outside = ((value < 0) | (value >= most)).nonzero()
            if len(outside):
                n = int(outside[0])
                raise InputError(
                    f"event {n} is at {name} = {int(value[n])}, but a sensor of size (height, "
                    f"width) = {tuple(self.size)} has {name} from 0 to {most - 1}. Pass the "
                    "sensor's size, or remove the events outside of it."
                )

    def __len__(self) -> int:
        return len(self.t)

    # -- where they come from ---------------------------------------------------------------------

    @classmethod
    def of(cls, array: Any, size: tuple[int, int], *, sort: bool = False) -> Events:
        """Events from a structured array with the fields x, y, t and p, as in NumPy files and in
        ``tonic``, or from a dict of such columns. ``sort`` sorts them by time."""
        columns = _aligned(_columns(array))
        if sort:
            order = torch.argsort(columns["t"], stable=True)
            columns = {name: value[order] for name, value in columns.items()}
        return cls(**columns, size=size)

    @classmethod
    def read(
        cls,
        path: str | Path,
        size: tuple[int, int] | None = None,
        *,
        key: str | None = None,
        sort: bool = False,
    ) -> Events:
        """Events from a file: NumPy (.npy, .npz: a structured array, or arrays x, y, t, p), HDF5
        (.h5, .hdf5, by h5py: a group of four columns or a compound dataset, at ``key``, by default
        "events" or "CD/events"), or AEDAT4 (.aedat4, by the package aedat, with the sensor's size).

        Nothing is unpickled. Raises FormatError, InputError, BackendUnavailable.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in READERS:
            raise FormatError(
                f"{path}: events are read from {', '.join(READERS)}, not {suffix or 'no suffix'}. "
                "Read the file yourself, and pass its columns to Events.of."
            )
        if not Path(path).is_file():
            raise InputError(f"there is no file '{path}'.")
        array, found = READERS[suffix](Path(path), key)
        if size is None and found is None:
            raise InputError(
                f"{path} does not contain the size of the sensor; pass size=(height, width)."
            )
        chosen = size or found
        assert chosen is not None
        return cls.of(array, chosen, sort=sort)

    @classmethod
    def simulated(
        cls, video: Tensor, theta: float = 0.2, *, interval: int = 1000, floor: float = 1e-3
    ) -> Events:
        """Events that an ideal event camera sends for a video of intensities [F, H, W], one frame
        every ``interval`` microseconds: log(intensity + floor) is interpolated linearly between
        frames, and a pixel sends an event whenever it has changed by theta since its last event.

        Source: ESIM (Rebecq, Gehrig & Scaramuzza, CoRL 2018), without noise. Events that lead to a
        frame precede it: after ``counts(interval)`` of f steps the sum is within theta of frame f.
        Raises InputError.
        """
        theta, interval = _checked_theta(theta), _checked_interval(interval)
        _check_video(video)
        light = (video.double() + floor).log()
        if not bool(light.isfinite().all()):
            raise InputError("intensities are finite and above -floor, but some are not.")
        last, found = light[0].clone(), []
        for f in range(1, len(light)):
            found.append(_between(light[f - 1], light[f], last, theta, f - 1, interval))
        columns = [torch.cat(each) for each in zip(*found, strict=True)]
        order = torch.argsort(columns[2], stable=True)
        x, y, t, p = (column[order] for column in columns)
        return cls(x, y, t, p, (video.shape[1], video.shape[2]))

    # -- what a network is fed --------------------------------------------------------------------

    def counts(
        self, dt: int, steps: int | None = None, *, start: int | None = None, channels: int = 1
    ) -> Tensor:
        """Events of each step of ``dt`` microseconds, [F, channels, H, W]: whole numbers, float32.

        With one channel, brighter minus darker events, the increments; with two channels, darker
        and brighter events, in the order of ``tonic``. The first step starts at ``start``, by
        default at the first event, and there are ``steps``, by default up to the last event; events
        outside are ignored.
        """
        dt = _at_least_1("dt", dt)
        steps = None if steps is None else _at_least_1("steps", steps)
        if channels not in (1, 2):
            raise InputError(f"channels is 1 or 2, but it is {channels!r}.")
        first = _checked_start(start) if start is not None else int(self.t[0]) if len(self) else 0
        step = torch.div(self.t - first, dt, rounding_mode="floor")
        if steps is None:
            steps = int(step[-1]) + 1 if len(self) and int(step[-1]) >= 0 else 1
        inside = (step >= 0) & (step < steps)
        height, width = self.size
        sign = torch.where(self.p, 1.0, -1.0) if channels == 1 else torch.ones(len(self))
        channel = self.p.long() if channels == 2 else torch.zeros_like(step)
        place = ((step * channels + channel) * height + self.y) * width + self.x
        found = torch.zeros(steps * channels * height * width)
        found.index_add_(0, place[inside], sign[inside])
        return found.reshape(steps, channels, height, width)

    def sums(
        self,
        dt: int,
        steps: int | None = None,
        *,
        theta: float,
        start: int | None = None,
        first: Tensor | float = 0.0,
    ) -> Tensor:
        """The input of a network on log intensities, [F, 1, H, W]: after each step ``first``, the
        log intensities at the start, plus theta times all counts so far. It cannot drift, since
        integers are summed. Raises InputError."""
        theta = _checked_theta(theta)
        total = self.counts(dt, steps, start=start).double().cumsum(0)
        return (_checked_first(first, self.size) + theta * total).float()


# -- checks ----------------------------------------------------------------------------------------


def _index(value: Any) -> int | None:
    """An integer, also of NumPy; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _checked_size(size: Any) -> tuple[int, int]:
    found = [_index(n) for n in size] if isinstance(size, (tuple, list)) else []
    if len(found) != 2 or found[0] is None or found[1] is None or min(found[0], found[1]) < 1:
        raise InputError(f"the size of a sensor is (height, width), but it is {size!r}.")
    return found[0], found[1]


def _at_least_1(name: str, value: Any) -> int:
    found = _index(value)
    if found is None or found < 1:
        raise InputError(f"{name} is a whole number of at least 1, not {value!r}.")
    return found


def _checked_start(start: Any) -> int:
    found = _index(start)
    if found is None:
        raise InputError(f"start is a whole number of microseconds, not {start!r}.")
    return found


def _checked_interval(interval: Any) -> int:
    found = _index(interval)
    if found is None or found < 2:
        raise InputError(f"interval is a whole number of microseconds from 2, not {interval!r}.")
    return found


def _checked_theta(theta: Any) -> float:
    try:
        found = float(theta)
    except (TypeError, ValueError, RuntimeError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise InputError(f"theta is a step of log intensity above 0, but it is {theta!r}.")
    return found


def _checked_first(first: Any, size: tuple[int, int]) -> Tensor:
    """float64, which spreads over [F, 1, H, W]."""
    value = _tensor("first", first).double()
    wide = (1,) * max(0, 4 - value.dim()) + tuple(value.shape)
    fits = len(wide) == 4 and all(
        n in (1, most) for n, most in zip(wide, (1, 1, *size), strict=True)
    )
    if not fits or not bool(value.isfinite().all()):
        raise InputError(
            "first is the log intensity at the start, a finite number or [H, W] of the sensor "
            f"{list(size)}, but it is {list(value.shape) if not fits else 'not finite'}."
        )
    return value


def _aligned(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    """x, y and t as int64 and p as bool, [N] each. Raises InputError."""
    found = {name: _tensor(name, columns[name]) for name in FIELDS}
    lengths = {name: tuple(column.shape) for name, column in found.items()}
    if len(set(lengths.values())) > 1 or found["x"].dim() != 1:
        raise InputError(f"x, y, t and p of events are [N] each, but they are {lengths}.")
    whole = {name: _whole(name, found[name]) for name in ("x", "y", "t")}
    return {**whole, "p": _polarity(found["p"])}


def _whole(name: str, value: Tensor) -> Tensor:
    """int64; raises InputError for numbers that are not whole."""
    if not value.is_floating_point():
        return value.long()
    broken = (value != value.floor()).nonzero()
    if len(broken):
        n = int(broken[0, 0])
        raise InputError(
            f"{name} of event {n} is {float(value[n])}, but pixels and microseconds are whole "
            "numbers. Remove what is NaN; write seconds as (1e6 * t).round()."
        )
    if not bool(value.isfinite().all()):
        raise InputError(f"{name} of some events is infinite; remove these.")
    if bool((value.double().abs() >= 2.0**63).any()):
        raise InputError(f"{name} of some events {TOO_LARGE}")
    return value.long()


TOO_LARGE = "is 2^63 or more, too large for int64; count time from the first event."


def _polarity(value: Tensor) -> Tensor:
    """bool; of -1 and 1, 0 and 1, or bool."""
    if not bool(((value == 1) | (value == 0)).all() | ((value == 1) | (value == -1)).all()):
        raise InputError(
            "p is 0 or 1, or -1 or 1, for darker and brighter, but it is also "
            f"{float(value[(value != 1) & (value != 0)][0])}."
        )
    return value == 1


def _columns(array: Any) -> dict[str, Tensor]:
    """The four columns by the names here."""
    given = array.keys() if isinstance(array, Mapping) else getattr(array, "dtype", array)
    names = list(given) if isinstance(array, Mapping) else list(getattr(given, "names", None) or ())
    names += list(getattr(getattr(array, "dtype", None), "fields", None) or ())  # and their titles
    found = {}
    for name, known in FIELDS.items():
        name_there = next((each for each in known if each in names), None)
        if name_there is None:
            raise FormatError(
                "events are a structured array with the fields x, y, t, p, or a dict of these "
                f"columns, but {name!r} is missing; there are {', '.join(names) or 'none'}."
            )
        found[name] = _tensor(name, array[name_there])
    return found


def _tensor(name: str, column: Any) -> Tensor:
    """A column as torch has it: unsigned and big-endian numbers as int64. Raises InputError."""
    kind = getattr(getattr(column, "dtype", None), "kind", "")
    wider = {"u": "int64", "i": "int64", "b": "bool", "f": "float64"}.get(kind)
    try:
        value = torch.as_tensor(column if wider is None else column.astype(wider))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{name} of events must be numbers that torch can represent: {error}"
        ) from error
    if value.is_complex():
        raise InputError(f"{name} of events must be real numbers, but it is {value.dtype}.")
    unsigned = kind == "u" or value.dtype == torch.uint64
    value = value.long() if unsigned else value
    if unsigned and bool((value < 0).any()):  # where int64 has wrapped
        raise InputError(f"{name} of some events {TOO_LARGE}")
    return value


def _check_video(video: Any) -> None:
    if not isinstance(video, Tensor) or video.dim() != 3 or len(video) < 2:
        shown = list(getattr(video, "shape", ())) or type(video).__name__
        raise InputError(f"a video is [F, H, W] of at least two frames, but it is {shown}.")


# -- the simulated camera --------------------------------------------------------------------------


def _between(
    before: Tensor, after: Tensor, last: Tensor, theta: float, frame: int, interval: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, t, p of the events from one frame to the next; ``last``, the log intensity at the last
    event of each pixel, is moved on in place."""
    change = after - last
    number = (change.abs() / theta).floor().long()
    y, x = number.nonzero(as_tuple=True)
    times = number[y, x]
    y, x = y.repeat_interleave(times), x.repeat_interleave(times)
    ends = times.cumsum(0)
    k = torch.arange(1, len(x) + 1) - (ends - times).repeat_interleave(times)  # 1, 2, .. of a pixel
    sign = change.sign()[y, x]
    level = last[y, x] + sign * theta * k
    share = ((level - before[y, x]) / (after - before)[y, x]).clamp(0, 1)
    t = frame * interval + (share * interval).long().clamp(max=interval - 1)
    last += change.sign() * theta * number
    return x, y, t, sign > 0


# -- files -----------------------------------------------------------------------------------------

Found = tuple[Any, "tuple[int, int] | None"]  # the columns, and the size of the sensor


def _read_numpy(path: Path, key: str | None) -> Found:
    numpy = _library("numpy", "numpy")
    with path.open("rb") as file:  # which numpy.load leaves open where it fails
        try:
            content = numpy.load(file, allow_pickle=False)
        except ValueError as error:
            raise FormatError(
                f"{path} cannot be read without unpickling, which could run code: {error}. Save "
                "the columns as arrays of numbers: numpy.savez(path, x=, y=, t=, p=)."
            ) from error
        except (OSError, EOFError, BadZipFile) as error:
            raise FormatError(f"{path} is not a readable NumPy file: {error}") from error
        if hasattr(content, "files"):
            return _of_archive(path, content, key), None
    if key is not None:
        raise FormatError(f"{path} holds one unnamed array, but no {key!r}.")
    return content, None


def _of_archive(path: Path, content: Any, key: str | None) -> Any:
    """The array at a key, the only one, or all of them by name."""
    if key is None and len(content.files) == 1:
        key = content.files[0]
    try:
        return content[key] if key is not None else {k: content[k] for k in content.files}
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise FormatError(
            f"{path} has {', '.join(content.files)}, but {key!r} is not an array of events: {error}"
        ) from error


def _read_hdf5(path: Path, key: str | None) -> Found:
    h5py = _library("h5py", "h5py")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FormatError(f"{path} is not an HDF5 file: {error}") from error
    with file:
        place = next((k for k in ([key] if key else GROUPS) if k in file), None)
        if place is None and key is not None:
            raise FormatError(f"{path} has no {key!r}; it has {', '.join(file)}.")
        held = file if place is None else file[place]
        size = next((s for s in map(_size_of, (held, file)) if s), None)
        if hasattr(held, "keys"):
            fields = {name for known in FIELDS.values() for name in known}
            return {k: held[k][()] for k in held if k in fields}, size
        return held[()], size


def _size_of(held: Any) -> Any:
    """(height, width) as they stand there, which Events checks; None where they do not."""
    attributes = held.attrs
    if "height" in attributes and "width" in attributes:
        return _side(attributes["height"]), _side(attributes["width"])
    return None


def _side(value: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return value


def _read_aedat(path: Path, key: str | None) -> Found:
    numpy, aedat = _library("numpy", "numpy"), _library("aedat", "aedat")
    try:
        decoder = aedat.Decoder(str(path))
        streams = {n: s for n, s in decoder.id_to_stream().items() if s["type"] == "events"}
        chosen = next(iter(streams)) if key is None and streams else key
        packets = [p["events"] for p in decoder if "events" in p and p["stream_id"] == chosen]
    except Exception as error:  # the decoder's own type differs with its version
        raise FormatError(
            f"{path} is not an AEDAT4 file that the package aedat can read: {error}"
        ) from error
    if chosen not in streams:
        raise FormatError(f"{path} has no stream of events {key!r}; it has {list(streams)}.")
    stream = streams[chosen]
    array = numpy.concatenate(packets) if packets else numpy.zeros(0, EMPTY)
    return array, (stream["height"], stream["width"])


EMPTY = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")]
READERS = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".aedat4": _read_aedat,
}


def _library(name: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise BackendUnavailable(
            f"reading such files needs {name}: pip install {package}"
        ) from error
