"""Data specifications: the data that ``--data`` names, as batches that are read on demand.

Samples are [N, ...] as the network takes them. Nothing about the values is guessed: pixels from 0
to 255 are scaled, and images resized or turned grey, where an option says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..core.inputs import Inputs
from ..core.samples import some
from ..errors import FormatError, InputError
from .datasets import (
    Arrays,
    Decoded,
    Folder,
    Named,
    Own,
    OwnBatches,
    Pictures,
    Stream,
    Together,
    Unread,
    check_classes,
    check_finite,
    digest,
    failing,
    pair,
    too_many,
    value,
)
from .datasets import (
    labels as checked_labels,
)
from .files import Mapped, arrays, is_idx, labels_of, whole
from .libraries import is_library, load_library
from .models import attribute, call
from .preparation import Preparation

FORMS = (
    "a file .npz (also file.npz:images,labels), .npy or IDX (as Fashion-MNIST has, also .gz), a "
    "folder of images, a .txt of texts, torchvision:NAME[:ROOT], timm's torch/NAME, hfds/NAME, "
    "wds/NAME or tfds/NAME, or package.module:loader"
)
BATCH = 64
REPEATS = 10
VALIDATION = ("val", "valid", "validation", "eval", "evaluation", "test")


@dataclass(frozen=True, eq=False)
class Data:
    """Samples of ``dataset``, or of a ``Stream`` of the user's, read as they are needed.

    A clip alone, x [F, N, ...], the frames of N streams, and y [F, N], is held in memory: each of
    its frames has all streams.
    """

    source: str
    dataset: Any  # map-style, a Stream, or None of a clip
    together: Together
    labels: Tensor | None = None  # [N], where they are known before the samples are read
    class_names: tuple[str, ...] | None = None
    cuts: Sequence[list[int]] | None = None  # the batches of the user's own DataLoader
    workers: int = 0
    held: tuple[Tensor, Tensor | None] | None = None  # of a clip
    described: dict[str, Any] = field(default_factory=dict)  # options that say which samples

    @property
    def clip(self) -> bool:
        return self.held is not None

    def loader(self, batch_size: int = BATCH, workers: int | None = None) -> Iterable[Any]:
        """Batches x or (x, y), as often as they are asked for; of a clip its frames.

        A DataLoader where samples have numbers. The user's own DataLoader keeps its batches.
        """
        if self.held is not None:
            return self.frames
        if isinstance(self.dataset, Stream):
            return self.dataset.of(batch_size)
        sizes: dict[str, Any] = {"batch_size": batch_size}
        if self.cuts is not None:
            sizes = {"batch_sampler": self.cuts}
        return DataLoader(
            self.dataset,
            collate_fn=self.together,
            num_workers=self.workers if workers is None else workers,
            generator=torch.Generator(),  # its own: torch's would go on by one number
            **sizes,
        )

    @property
    def frames(self) -> list[Any]:
        """Of a clip, one after the other, x or (x, y)."""
        assert self.held is not None
        x, y = self.held
        return list(x) if y is None else list(zip(x, y, strict=True))

    def __len__(self) -> int:
        """How many samples; TypeError where that is known at the end alone."""
        if self.total is None:
            raise TypeError(f"how many samples '{self.source}' has is not known yet")
        return self.total

    @property
    def total(self) -> int | None:
        """Samples, in all frames of a clip; of an iterable None until it was gone through once."""
        if self.held is not None:
            return self.held[0].shape[0] * self.held[0].shape[1]
        if isinstance(self.dataset, Stream):
            return self.dataset.known.get("samples")
        return len(self.dataset) if self.cuts is None else sum(map(len, self.cuts))

    @property
    def labelled(self) -> bool:
        """Whether batches are (x, y)."""
        return isinstance(next(iter(self.loader(1, 0))), (tuple, list))

    def counted(self, samples: int) -> str:
        """How ``samples`` of these are called."""
        if self.held is not None:
            return "{} frames of {} streams".format(*self.held[0].shape)
        return f"{samples} samples"

    def first(self, count: int) -> Any:
        """The first ``count`` samples x, or all where there are fewer; of a clip frames."""
        if self.held is not None:
            return self.held[0][:count]
        found = _joined(self._until(count))[0]
        return found[:count]

    def some(self, count: int) -> Any:
        """``count`` samples x spread evenly over the data, or all (``core.samples``)."""
        return some(self.loader(), count).x

    def _until(self, count: int | None) -> Iterator[Any]:
        known = 0
        few = count is not None and count <= BATCH  # for which no worker starts
        for batch in self.loader(min(count or BATCH, BATCH), 0 if few else None):
            yield batch
            known += len(_x(batch))
            if count is not None and known >= count:
                return

    @cached_property
    def _all(self) -> tuple[Any, Tensor | None]:
        return self.held or _joined(self._until(None))

    @property
    def x(self) -> Any:
        """All samples in memory, a tensor or ``Inputs``: for commands that take a few."""
        return self._all[0]

    @property
    def y(self) -> Tensor | None:
        return self._all[1]

    @cached_property
    def sample(self) -> Any:
        """The first, [1, ...]; of a clip the first frame."""
        return self.first(1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample; of a clip [F, N, ...]."""
        return tuple(self.held[0].shape) if self.held else tuple(self.sample.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of what the samples are: of files by their names and sizes, of arrays by
        shape, type and a spread of values."""
        if self.held is not None:
            content: list[Any] = [digest(*self.held)]
        else:
            content = _inner(self.dataset).content()
        text = json.dumps([self.described, content], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_skipped(self, names: Collection[str]) -> None:
        """Raises FormatError for more than may be left out, each process having counted its own."""
        if len(set(names)) > self.together.most:
            raise FormatError(too_many(self.source, self.together.most, names))

    # -- against a network --------------------------------------------------------------------

    def check_shape(self, shape: Sequence[Any], streams: bool = False) -> None:
        """Raises InputError unless samples are of this shape, that of the input of a network, which
        may be one of ``streams``."""
        if not self.clip and isinstance(self.sample, Inputs):  # which the network checks by name
            return
        have, sizes = self.shape, ", ".join(map(str, shape))
        if self.clip and have[2:] != tuple(shape):
            raise InputError(
                f"the network is one of streams: it takes clips [F, N, {sizes}], F frames of N "
                f"streams, but '{self.source}' is {list(have)}. --resize HEIGHT WIDTH and "
                "--channels 1 or 3 change images."
            )
        if streams and not self.clip and have[1:] == tuple(shape):
            shown = [self.total or "N", *have]
            raise InputError(
                f"'{self.source}' is [{', '.join(map(str, shown))}], which may be a clip. The "
                f"network is one of streams, but this command runs it on stills [N, {sizes}], "
                "each from the initial state; evaluate, verify and energy take clips."
            )
        if not self.clip and have != tuple(shape):
            raise InputError(
                f"the network takes samples {list(shape)}, but those of '{self.source}' are "
                f"{list(have)}. --resize HEIGHT WIDTH and --channels 1 or 3 change "
                "images; save other data in the shape that the network takes."
            )

    def check_labels(self, classes: int) -> None:
        """Raises InputError for labels beyond; those that are not known yet are looked at as they
        are read."""
        self.together.classes = classes
        known = self.held[1] if self.held else self.labels
        if known is not None:
            check_classes(known.flatten(), classes, self.source)


def _x(batch: Any) -> Any:
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    return Inputs(x) if isinstance(x, dict) else x


def _joined(batches: Iterable[Any]) -> tuple[Any, Tensor | None]:
    xs, ys = [], []
    for batch in batches:
        xs.append(_x(batch))
        ys += [batch[1]] if isinstance(batch, (tuple, list)) and len(batch) == 2 else []
    return torch.cat(xs), torch.cat(ys) if ys else None


def shape_of(x: Any) -> str:
    """Of a batch, by name where it is of several inputs."""
    return str(x) if isinstance(x, Inputs) else str(list(x.shape))


# -- what a spec names ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Which of the samples: the first ``limit``, of those ``samples`` drawn with ``seed``."""

    limit: int | None = None
    samples: int | None = None
    seed: int = 0

    @property
    def first(self) -> int | None:
        """Of what is not drawn from: a loader of the user's."""
        given = [n for n in (self.limit, self.samples) if n is not None]
        return min(given, default=None)

    def rows(self, count: int) -> list[int] | None:
        """None for all. They are drawn, since files are often sorted by class."""
        among = count if self.limit is None else min(self.limit, count)
        if self.samples is not None and self.samples < among:
            order = torch.randperm(among, generator=torch.Generator().manual_seed(self.seed))
            return order[: self.samples].sort().values.tolist()
        return None if among == count else list(range(among))

    def described(self, count: int | None) -> dict[str, Any]:
        among = count if count is None or self.limit is None else min(self.limit, count)
        drawn = self.samples is not None and among is not None and self.samples < among
        return {"limit": self.limit, "samples": self.samples, "seed": self.seed if drawn else None}


@dataclass(frozen=True)
class Reading:
    """How: in how many workers, how many may be left out, which part, whether it is fetched."""

    workers: int = 0
    skip_bad: int = 0
    split: str | None = None
    download: bool = False


def load_data(
    spec: str,
    *,
    labels: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    prepare: Preparation | None = None,
    clip: bool = False,
    limit: int | None = None,
    reading: Reading | None = None,
) -> Data:
    """What ``spec`` names: the first ``limit``, of which ``samples`` are drawn with ``seed`` (of a
    loader the first).

    The first sample is read here, the others when they are asked for. With ``clip`` these are
    frames [F, N, ...], of which N are drawn, in a .npy, .npz or a loader. Raises InputError,
    FormatError and BackendUnavailable, here or where a sample is read that cannot be.
    """
    prepare, reading = prepare or Preparation(), reading or Reading()
    choice = Choice(limit, samples, seed)
    if clip:
        _check_of_clip(spec, reading)
        return _clip(spec, labels, choice, prepare)
    data = _found(spec, labels, choice, prepare, reading)
    return _begun(replace(data, workers=reading.workers or data.workers), reading.skip_bad)


def _found(
    spec: str, labels: str | None, choice: Choice, prepare: Preparation, reading: Reading
) -> Data:
    path, names = _path(spec)
    if is_library(spec) or path.is_dir():
        if labels is not None:
            raise InputError(f"--labels: those of '{spec}' are the names of its folders.")
        if is_library(spec):
            found = load_library(spec, reading.split, reading.download, prepare)
        else:
            found = Folder(_of_split(path, reading.split), prepare)
        if not isinstance(found, Pictures):  # of timm, one after the other
            stream = _stream(spec, found, OwnBatches(spec, Preparation()), choice.first)
            described = _described(choice, prepare) | {"spec": spec}
            return Data(spec, stream, stream.together, described=described)
        return _chosen(spec, found, choice, prepare, found.class_names)
    if reading.split is not None:
        raise InputError(
            f"--split is of a folder and of the data sets of libraries; '{spec}' has no splits."
        )
    if path.suffix.lower() == ".txt":
        return _texts(path, labels, choice, prepare)
    if path.suffix.lower() in (".npz", ".npy") or is_idx(path):
        x, y = arrays(path, names)
        return _arrays(spec, x, y, labels, choice, prepare)
    if spec.startswith("folder:"):
        raise InputError(f"--data: there is no folder '{path}'.")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        return _own(spec, labels, choice, prepare)
    missing = "" if path.exists() else f"there is no file '{path}', and "
    raise InputError(f"--data: {missing}'{spec}' is not one of: {FORMS}.")


def _path(spec: str) -> tuple[Path, Sequence[str]]:
    """The file or folder, and the names of arrays in it."""
    if spec.startswith("folder:"):
        return Path(spec.removeprefix("folder:")), ()
    if not Path(spec).exists() and ".npz:" in spec:
        file, _, rest = spec.rpartition(":")
        return Path(file), rest.split(",")
    return Path(spec), ()


def _of_split(path: Path, split: str | None) -> Path:
    """The subfolder of a part, by any of the names that validation sets have."""
    if split is None:
        return path
    names = [split, *VALIDATION] if split in VALIDATION else [split]
    found = next((path / name for name in names if (path / name).is_dir()), None)
    if found is None:
        known = ", ".join(sorted(f.name for f in path.iterdir() if f.is_dir())[:5]) or "none"
        raise InputError(f"--split: '{path}' has no folder '{split}'; it has {known}.")
    return found


def _chosen(
    spec: str,
    dataset: Any,
    choice: Choice,
    prepare: Preparation,
    class_names: tuple[str, ...] | None = None,
) -> Data:
    if not len(dataset):
        raise InputError(f"'{spec}' holds no samples.")
    rows, known, described = choice.rows(len(dataset)), dataset.labels, _described(choice, prepare)
    described |= choice.described(len(dataset))
    if rows is not None:
        dataset = Subset(dataset, rows)
        known = None if known is None else known[rows]
    return Data(spec, dataset, Together(spec), known, class_names, described=described)


def _inner(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, Subset) else dataset


def _described(choice: Choice, prepare: Preparation | None) -> dict[str, Any]:
    return {**choice.described(None), "prepared": None if prepare is None else asdict(prepare)}


def _begun(data: Data, skip_bad: int) -> Data:
    """With the first sample that can be read, whose shape the others have as well."""
    data.together.allowing(skip_bad, data.workers)
    dataset = data.dataset
    if isinstance(dataset, Stream):
        next(iter(data.loader()))  # raises
        return data
    inner = _inner(dataset)
    if isinstance(inner, Pictures):
        inner.most_unread = skip_bad
    for row in range(len(dataset)) if data.cuts is None else data.cuts[0][:1]:
        sample = dataset[row]
        found = data.together([sample])
        if not isinstance(sample, Unread):
            x, y = found if isinstance(found, tuple) else (found, None)
            x = {k: v[:0] for k, v in x.items()} if isinstance(x, dict) else x[:0]
            data.together.empty = x if y is None else (x, y[:0])
            return data
    raise FormatError(f"none of '{data.source}' can be read.")


# -- arrays and texts -----------------------------------------------------------------------------


def _arrays(
    spec: str,
    x: Tensor | Mapped,
    y: Tensor | None,
    given: str | None,
    choice: Choice,
    prepare: Preparation,
) -> Data:
    y = y if given is None else labels_of(given)
    y = None if y is None else checked_labels(y, len(x) if x.dim() else 0, given or spec)
    if not x.dim() or not len(x):
        raise InputError(f"'{spec}' holds no samples.")
    return _chosen(spec, Arrays(spec, x, y, prepare), choice, prepare)


def _texts(path: Path, given: str | None, choice: Choice, prepare: Preparation) -> Data:
    """One a line; their token ids are held, padded to the longest of those that are used."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data: cannot read the texts of '{path}': {error}") from error
    if not lines:
        raise InputError(f"'{path}' holds no texts.")
    y = None if given is None else checked_labels(labels_of(given), len(lines), given)
    rows = choice.rows(len(lines))
    if rows is not None:
        lines, y = [lines[i] for i in rows], None if y is None else y[rows]
    found = Named(prepare.texts(lines, str(path)).tensors, y)
    return _chosen(str(path), found, Choice(), prepare)


# -- clips ----------------------------------------------------------------------------------------


def _check_of_clip(spec: str, reading: Reading) -> None:
    given = {
        "--split": reading.split is not None,
        "--skip-bad": reading.skip_bad,
        "--workers": reading.workers,
        "--download": reading.download,
    }
    if wrong := [name for name, value in given.items() if value]:
        raise InputError(
            f"{', '.join(wrong)}: does not apply to clips, which are held in memory as '{spec}' "
            "gives them; leave it out."
        )


def _clip(spec: str, given: str | None, choice: Choice, prepare: Preparation) -> Data:
    """Frames [F, N, ...], with a label for each, or one for each stream."""
    x, y = _whole(spec, prepare)
    x, y = whole(x), y if given is None else labels_of(given)
    if x.dim() < 3 or not x.shape[0] or not x.shape[1]:
        raise InputError(
            f"streams are clips [F, N, ...], F frames of N streams, but '{spec}' is "
            f"{list(x.shape)}; a single stream is x[:, None]."
        )
    frames, streams = x.shape[:2]
    if y is not None and y.dim() == 1 and len(y) == streams:
        y = y.expand(frames, streams)
    if y is not None and tuple(y.shape) != (frames, streams):
        raise InputError(
            "streams are clips [F, N, ...], F frames of N streams, with class indices "
            f"[F, N], or [N] where a stream keeps its own, but '{spec}' is {list(x.shape)} and the "
            f"labels of '{given or spec}' are {list(y.shape)}."
        )
    if y is not None:
        y = checked_labels(y.flatten(), frames * streams, given or spec).view(frames, streams)
    rows = choice.rows(streams)
    if rows is not None:
        x, y = x[:, rows], None if y is None else y[:, rows]
    each = prepare.apply(x.flatten(0, 1), spec)
    check_finite(each, spec)
    described = _described(choice, prepare)
    held = each.unflatten(0, x.shape[:2]), y
    return Data(spec, None, Together(spec), held=held, described=described)


def _whole(spec: str, prepare: Preparation) -> tuple[Tensor | Mapped, Tensor | None]:
    path, names = _path(spec)
    if path.is_dir() or path.suffix.lower() == ".txt" or is_idx(path) or is_library(spec):
        raise InputError(
            "--data: clips [F, N, ...], F frames of N streams, are read from .npy and .npz files "
            f"and from package.module:loader, not from '{spec}'."
        )
    if path.suffix.lower() in (".npz", ".npy"):
        return arrays(path, names)
    found = _given(spec)
    if isinstance(found, tuple):
        return found
    stream = _stream(spec, found, OwnBatches(spec, None))
    return _joined(stream)


# -- the user's own -------------------------------------------------------------------------------


def _given(spec: str) -> Any:
    """(x, y) of tensors, a torch Dataset, an iterable of batches, or a function that makes one."""
    found = attribute(spec, "data", "package.module:loader")
    known = isinstance(found, (Tensor, tuple, list, Dataset)) or hasattr(found, "__array__")
    make = None
    if not known and callable(found):
        make, found = found, call(spec, found)
    if isinstance(found, Tensor) or hasattr(found, "__array__"):
        return value(found, spec), None
    if isinstance(found, tuple):
        x, y = pair(found, spec)
        return value(x, spec), None if y is None else value(y, spec)
    if not isinstance(found, (Dataset, Iterable)):
        raise InputError(
            f"'{spec}' gives {type(found).__name__}; data are a tensor x, a pair (x, y), a torch "
            "Dataset, or an iterable of batches x or (x, y)."
        )
    # an iterator is at its end after once: what made it makes another
    return partial(call, spec, make) if make is not None and isinstance(found, Iterator) else found


def _own(spec: str, given: str | None, choice: Choice, prepare: Preparation) -> Data:
    found = _given(spec)
    first = Choice(limit=choice.first)
    if isinstance(found, tuple):
        x, y = found
        return _arrays(spec, x, y, given, first, prepare)
    extra = None if given is None else labels_of(given)
    own = OwnBatches(spec, prepare)
    if isinstance(found, DataLoader) and _by_index(found):
        return _loaded(spec, found, extra, first, own)
    if not isinstance(found, Dataset) or isinstance(found, IterableDataset):
        stream = _stream(spec, found, own, first.limit)
        stream.given = extra
        described = _described(choice, prepare) | {"spec": spec}
        return Data(spec, stream, stream.together, described=described)
    data = _chosen(spec, _samples(spec, found, extra, prepare), first, prepare)
    data.together.own = None if isinstance(_inner(data.dataset), Pictures) else own
    return data


def _samples(spec: str, found: Any, given: Tensor | None, prepare: Preparation) -> Any:
    """The user's data set; one of images is decoded by themselves."""
    dataset = Own(spec, found, given)
    if given is not None:
        checked_labels(given, len(dataset), spec)
    if not len(dataset):
        raise InputError(f"'{spec}' gives no batches.")
    x = pair(dataset[0], spec)[0]
    return Decoded(spec, found, prepare) if hasattr(x, "getbands") else dataset


def _loaded(
    spec: str, loader: DataLoader[Any], given: Tensor | None, first: Choice, own: OwnBatches
) -> Data:
    """With the loader's own batches, drawn once."""
    dataset = Own(spec, loader.dataset, given)
    with failing(spec):
        cuts = _cut(loader.batch_sampler or (), first.limit, _most(spec, loader))
    if not cuts:
        raise InputError(f"'{spec}' gives no batches.")
    together = Together(spec, loader.collate_fn, own)
    described = _described(first, own.prepare) | {"spec": spec}
    return Data(spec, dataset, together, cuts=cuts, workers=loader.num_workers, described=described)


def _most(spec: str, loader: DataLoader[Any]) -> Callable[[int], None]:
    """Refuses what a sampler of unknown length gives beyond ``REPEATS`` times its data set: most
    likely it has no end."""
    try:
        known = len(loader.batch_sampler) >= 0  # type: ignore[arg-type]
    except TypeError:
        known = False
    bound = REPEATS * len(loader.dataset)  # type: ignore[arg-type]

    def check(count: int) -> None:
        if not known and count > bound:
            raise InputError(
                f"the batch sampler of '{spec}' does not end: it gave more than {REPEATS} times "
                "the samples of its data set. Say how many to take with --limit, or give it a "
                "length (__len__)."
            )

    return check


def _cut(
    batches: Iterable[list[int]], most: int | None, check: Callable[[int], None]
) -> list[list[int]]:
    """Lists of indices, of ``most`` in all; ``check`` is told how many there are so far."""
    found: list[list[int]] = []
    known = 0
    for rows in batches:
        if most is None:
            check(known)
        rows = list(rows) if most is None else list(rows)[: most - known]
        found += [rows] if rows else []
        known += len(rows)
        if known == most:
            break
    return found


def _by_index(loader: DataLoader[Any]) -> bool:
    return (
        type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _stream(spec: str, found: Any, own: OwnBatches, most: int | None = None) -> Stream:
    if isinstance(found, Dataset):
        found = DataLoader(found, batch_size=BATCH)
    if isinstance(found, Iterator):  # which cannot be iterated again
        found = _kept(spec, found, most)
    stream = Stream(Together(spec, own=own), found if callable(found) else lambda: found)
    stream.most = most
    return stream


def _kept(spec: str, batches: Iterator[Any], most: int | None) -> list[Any]:
    """Of ``most`` samples or more."""
    found: list[Any] = []
    known = 0
    with failing(spec):
        for batch in batches:
            found.append(batch)
            known += len(value(pair(batch, spec)[0], spec))
            if most is not None and known >= most:
                break
    return found
