"""Data sets whose samples are read one by one: arrays, images in files, a library's, the user's.

A sample is x, or (x, y), as the network takes it. ``Together`` makes batches of samples, in a
worker of a DataLoader where there are any, and looks at their values.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from ..errors import BackendUnavailable, FormatError, InputError, SignGDError
from .files import Mapped, to_tensor
from .preparation import Preparation

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
NAME = 512  # bytes that are kept of the name of what cannot be read
SPREAD = 16  # samples that a fingerprint looks at


class Unread(NamedTuple):
    """In place of a sample that cannot be read, where some may be left out."""

    name: str
    reason: str


class Batch(tuple[Any, ...]):
    """(x, y) or (x,), and the names of what could not be read and was left out."""

    skipped: tuple[str, ...] = ()


# -- errors in workers ----------------------------------------------------------------------------


class UnreadableData(FormatError):
    """Told by a worker: a damaged file."""

    def __init__(self, text: str) -> None:
        super().__init__(_last(text, "UnreadableData: "))


class UnfitData(InputError):
    """Told by a worker: values or shapes that cannot be."""

    def __init__(self, text: str) -> None:
        super().__init__(_last(text, "UnfitData: "))


def _last(text: str, name: str) -> str:
    """Without the traceback that a DataLoader puts before the text of a worker's error."""
    return text.rpartition(name)[2].rstrip()


def _told(error: SignGDError) -> SignGDError:
    if get_worker_info() is None:
        return error
    return (UnreadableData if isinstance(error, FormatError) else UnfitData)(str(error))


# -- samples to batches ---------------------------------------------------------------------------


@dataclass
class Together:
    """Samples to a batch (x, y) or x, whose values it checks; at most ``most`` are left out.

    ``classes`` are those of the network where labels are only known sample by sample.
    """

    source: str
    collate: Callable[[list[Any]], Any] = default_collate
    own: Callable[[Any], Any] | None = None  # what is done with a batch of the user's
    most: int = 0
    classes: int | None = None
    empty: Any = None  # a batch of no samples
    bad: Tensor | None = field(default=None, repr=False)  # where names are counted, by all workers
    turn: Any = field(default=nullcontext(), repr=False)  # of the worker that counts

    def __call__(self, samples: list[Any]) -> Any:
        try:
            return self._batch(samples)
        except SignGDError as error:
            raise _told(error) from error

    def _batch(self, samples: list[Any]) -> Any:
        unread = [sample for sample in samples if isinstance(sample, Unread)]
        for one in unread:
            self._count(one)
        good = [sample for sample in samples if not isinstance(sample, Unread)]
        found = self.checked(self._collated(good)) if good else self.empty
        if not unread:
            return found
        batch = Batch(found if isinstance(found, tuple) else (found,))
        batch.skipped = tuple(one.name for one in unread)
        return batch

    def _collated(self, samples: list[Any]) -> Any:
        with failing(self.source):
            return self.collate(samples)

    def checked(self, batch: Any) -> Any:
        """x or (x, y), whose values can be."""
        found = batch if self.own is None else self.own(batch)
        x, y = found if isinstance(found, (tuple, list)) else (found, None)
        check_finite(x, self.source)
        if y is not None and self.classes is not None:
            check_classes(y, self.classes, self.source)
        return x if y is None else (x, y)

    def _count(self, one: Unread) -> None:
        """Raises FormatError that names all where there are too many; a name counts once, however
        often and in whichever worker it is read."""
        with self.turn:
            self._enter(one)

    def _enter(self, one: Unread) -> None:
        assert self.bad is not None
        known, name = self.left_out, os.fsdecode(os.fsencode(one.name)[-NAME:])
        if name in known:
            return
        if len(known) == self.most:
            raise FormatError(f"{too_many(self.source, self.most, [*known, name])} {one.reason}")
        content = torch.tensor(list(os.fsencode(name)), dtype=torch.uint8)
        self.bad[len(known), : len(content)] = content

    @property
    def left_out(self) -> list[str]:
        """Names, each once, by this process and its workers."""
        rows = [] if self.bad is None else self.bad[self.bad.bool().any(1)].tolist()
        return [os.fsdecode(bytes(row).rstrip(b"\0")) for row in rows]

    def allowing(self, most: int, workers: int) -> None:
        """In memory that the workers share, into which one after the other writes."""
        self.most = most
        self.bad = torch.zeros(most, NAME, dtype=torch.uint8).share_memory_() if most else None
        if most and workers:  # of any start method
            self.turn = multiprocessing.get_context("spawn").Lock()


def too_many(source: str, most: int, names: Iterable[str]) -> str:
    return f"more of '{source}' cannot be read than the {most} of --skip-bad: {', '.join(names)}."


def check_finite(x: Any, source: str, rows: Sequence[int] | None = None) -> None:
    """Raises InputError, naming the first sample by ``rows``, else by its place in the batch."""
    for value in x.values() if isinstance(x, dict) else [x]:
        if not value.is_floating_point() or bool(value.sum().isfinite()):
            continue  # a sum is finite only where all of it is
        finite = value.reshape(len(value), -1).isfinite().all(1)
        if not bool(finite.all()):
            wrong = (~finite).nonzero().flatten().tolist()
            first = wrong[0] if rows is None else rows[wrong[0]]
            raise InputError(
                f"'{source}' holds NaN or infinity in {len(wrong)} of the {len(finite)} samples "
                f"read together (the first: {first}); remove or fix those."
            )


def check_classes(y: Tensor, classes: int, source: str) -> None:
    if len(y) and int(y.max()) >= classes:
        raise InputError(
            f"the network has {classes} classes, 0 to {classes - 1}, but '{source}' has "
            f"the label {int(y.max())}. Number the classes as in training."
        )


def labels(y: Tensor, count: int, source: str) -> Tensor:
    """Class indices [N]; raises InputError for others."""
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"labels are class indices, integers, but '{source}' holds {y.dtype}.")
    if tuple(y.shape) != (count,):
        raise InputError(
            f"labels are class indices [N], one for each sample, but there are {count} samples and "
            f"the labels of '{source}' are {list(y.shape)}."
        )
    if count and int(y.min()) < 0:
        raise InputError(
            f"labels are class indices from 0 on, but '{source}' has the label {int(y.min())}."
        )
    return y.long()


# -- arrays ---------------------------------------------------------------------------------------


@dataclass
class Arrays(Dataset[Any]):
    """x [N, ...] as it is in the file, prepared as it is read; y [N] or None."""

    source: str
    x: Tensor | Mapped
    labels: Tensor | None
    prepare: Preparation

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        try:
            x = self.prepare.apply(self.x[rows], self.source)
            check_finite(x, self.source, rows)
        except SignGDError as error:
            raise _told(error) from error
        return list(x) if self.labels is None else list(zip(x, self.labels[rows], strict=True))

    def content(self) -> list[Any]:
        """What a fingerprint is of."""
        rows = spread(len(self))
        return [list(self.x.shape), str(self.x.dtype), digest(self.x[rows], self.labels)]


@dataclass
class Named(Dataset[Any]):
    """Several tensors by name, of texts."""

    tensors: dict[str, Tensor]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, row: int) -> Any:
        x = {name: value[row] for name, value in self.tensors.items()}
        return x if self.labels is None else (x, self.labels[row])

    def content(self) -> list[Any]:
        return [sorted(self.tensors), digest(*self.tensors.values(), self.labels)]


def spread(count: int) -> list[int]:
    """Rows from the first to the last."""
    most = min(SPREAD, count)
    return [i * (count - 1) // max(1, most - 1) for i in range(most)]


def digest(*tensors: Tensor | None) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(str(tensor.dtype).encode() + str(list(tensor.shape)).encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# -- images ---------------------------------------------------------------------------------------


class Pictures(Dataset[Any]):
    """Images that are decoded when a sample is read, each prepared by itself.

    ``first`` is the name and the shape of the first that was read, which the others have as well.
    """

    def __init__(self, source: str, prepare: Preparation) -> None:
        self.source, self.prepare = source, prepare
        self.labels: Tensor | None = None
        self.class_names: tuple[str, ...] | None = None
        self.most_unread = 0
        self.first: tuple[str, list[int]] | None = None

    def picture(self, row: int) -> tuple[Any, Any]:
        """A PIL image and its label or None; FormatError where it cannot be read."""
        raise NotImplementedError

    def name(self, row: int) -> str:
        return f"{self.source}, sample {row}"

    def content(self) -> list[Any]:
        """What a fingerprint is of: here names, and the first and the last picture."""
        found = hashlib.sha256()
        for row in (0, len(self) - 1):
            image = self[row]
            if not isinstance(image, Unread):
                found.update(digest(image[0] if isinstance(image, tuple) else image).encode())
        return [len(self), [self.name(row) for row in spread(len(self))], found.hexdigest()]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, row: int) -> Any:
        try:
            image, y = self.picture(row)
        except FormatError as error:
            if self.most_unread:
                return Unread(self.name(row), str(error))
            raise _told(error) from error
        try:
            x = self._prepared(image, self.name(row))
            return x if y is None else (x, torch.as_tensor(y))
        except SignGDError as error:
            raise _told(error) from error

    def _prepared(self, image: Any, name: str) -> Tensor:
        x = self.prepare.picture(image, name)
        if self.first is None:
            self.first = name, list(x.shape)
        if list(x.shape) != self.first[1]:
            raise InputError(
                f"'{name}' is {list(x.shape)}, but '{self.first[0]}' is {self.first[1]}; make "
                "them alike with --resize HEIGHT WIDTH and --channels 1 or 3."
            )
        return x


class Names(Sequence[str]):
    """Names in one piece of memory, since a million strings take 100 MB in every worker."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.bytes = b"".join(encoded)
        self.ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.bytes[start : int(self.ends[row])])


class Folder(Pictures):
    """Classes are the subfolders in order of their names; images without any have no labels.

    Raises InputError for what is neither.
    """

    def __init__(self, path: Path, prepare: Preparation) -> None:
        super().__init__(str(path), prepare)
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        classes = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
        bare = [e.name for e in entries if _is_image(e.name) and e.is_file()]
        if classes and bare:
            raise InputError(
                f"'{path}' has images ('{bare[0]}') beside folders ('{classes[0]}'); put "
                "each image into the folder of its class, or all of them into none."
            )
        inside = [_inside(path, name) for name in classes]
        if not classes and not bare:
            raise InputError(f"'{path}' holds no images ({', '.join(IMAGES)}).")
        self.names = Names(bare or (name for each in inside for name in each))
        self.class_names = tuple(classes) or None
        if classes:
            counts = torch.tensor([len(each) for each in inside])
            self.labels = torch.arange(len(classes)).repeat_interleave(counts)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return os.path.join(self.source, self.names[row])

    def picture(self, row: int) -> tuple[Any, Any]:
        name = self.name(row)
        return opened(name, name), None if self.labels is None else self.labels[row]

    def content(self) -> list[Any]:
        found = hashlib.sha256()
        for row, name in enumerate(self.names):
            found.update(os.fsencode(f"{name}\0{_size(self.name(row))}\0"))
        return [found.hexdigest()]


def _size(path: str) -> int | None:
    """None of what cannot be read, such as a link to a file that is gone."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES


def _inside(path: Path, name: str) -> list[str]:
    """The images of a class, at any depth, also in folders that are links."""
    found = [
        os.path.relpath(os.path.join(folder, file), path)
        for folder, files in _walked(path / name, ())
        for file in files
        if _is_image(file)
    ]
    if not found:
        raise InputError(f"the class folder '{path / name}' holds no images ({', '.join(IMAGES)}).")
    return sorted(found, key=lambda each: each.split(os.sep))


def _walked(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Folders and their files; a link to a folder that it is in is gone by."""
    real = os.path.realpath(folder)
    if real in above:
        return
    _, inside, files = next(os.walk(folder), ("", [], []))
    yield str(folder), files
    for name in inside:
        yield from _walked(folder / name, (*above, real))


def opened(file: Any, name: str) -> Any:
    """A decoded PIL image; FormatError where it is damaged."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"images, such as '{name}', are read with the package 'pillow': pip install pillow"
        ) from error
    try:
        with Image.open(file) as image:
            image.load()
            return image.copy()
    except Exception as error:  # of a damaged file
        raise FormatError(f"cannot read the image '{name}': {error}") from error


class Decoded(Pictures):
    """(PIL image, class index) of a data set of torchvision, or of the user's own."""

    def __init__(self, source: str, dataset: Any, prepare: Preparation) -> None:
        super().__init__(source, prepare)
        self.dataset = dataset
        self.class_names = _classes(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, row: int) -> tuple[Any, Any]:
        try:
            sample = self.dataset[row]
        except Exception as error:  # of a damaged file, or whatever the user's raises
            raise FormatError(
                f"cannot read '{self.name(row)}': {type(error).__name__}: {error}"
            ) from error
        image, y = sample if isinstance(sample, (tuple, list)) else (sample, None)
        return image, label_of(y, self.source)


def label_of(y: Any, source: str) -> int | None:
    """A class index from 0 on; None and -1, which timm gives where there are none, are None.

    Raises InputError for anything else, such as 1.7 or several numbers.
    """
    if y is None:
        return None
    try:
        number, whole = int(y), float(y).is_integer()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"labels are class indices, integers, but '{source}' has {type(y).__name__}."
        ) from None
    if number < -1 or not whole:
        raise InputError(f"labels are class indices, integers from 0, but '{source}' has {y}.")
    return None if number == -1 else number


def _classes(dataset: Any) -> tuple[str, ...] | None:
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None


# -- the user's own -------------------------------------------------------------------------------


class failing:
    """Whatever the user's code raises, as InputError."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, SignGDError):
            text = f"'{self.source}' fails: {type(error).__name__}: {error}"
            raise _told(InputError(text)) from error


class _Here:
    """Unpickled before what follows it, it puts the folder of the user's modules on the path."""

    def __reduce__(self) -> Any:
        return _on_path, (os.getcwd(),)


def _on_path(folder: str) -> None:
    sys.path.append(folder)


class Own(Dataset[Any]):
    """The user's map-style data set, with labels of another file where they were given."""

    def __init__(self, source: str, dataset: Any, given: Tensor | None = None) -> None:
        self.source, self.dataset, self.labels = source, dataset, given

    def __len__(self) -> int:
        with failing(self.source):
            return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        with failing(self.source):
            several = getattr(self.dataset, "__getitems__", None)
            found = several(rows) if several else [self.dataset[row] for row in rows]
        if self.labels is None:
            return list(found)
        xs = [pair(sample, self.source)[0] for sample in found]
        return list(zip(xs, self.labels[rows], strict=True))

    def __reduce__(self) -> Any:
        """A worker of a start method other than fork finds the user's module as this process."""
        return _own, (_Here(), self.source, self.dataset, self.labels)

    def content(self) -> list[Any]:
        sample = pair(self[0], self.source)[0]
        return [len(self), digest(sample) if isinstance(sample, Tensor) else None]


def _own(_: Any, *given: Any) -> Own:
    return Own(*given)


@dataclass
class OwnBatches:
    """What the user's batches become: tensors, prepared, of samples that are alike."""

    source: str
    prepare: Preparation | None
    shape: tuple[int, ...] | None = None
    labelled: bool | None = None

    def __call__(self, batch: Any) -> Any:
        given, y = pair(batch, self.source)
        raw = value(given, self.source)
        if not raw.dim():
            raise InputError(f"'{self.source}' holds no samples.")
        if self.shape is None:
            self.shape, self.labelled = tuple(raw.shape[1:]), y is not None
        if tuple(raw.shape[1:]) != self.shape:
            shapes = sorted({self.shape, tuple(raw.shape[1:])})
            raise InputError(
                f"the batches of '{self.source}' have samples of other shapes: "
                f"{' and '.join(str(list(shape)) for shape in shapes)}."
            )
        if (y is not None) != self.labelled:
            raise InputError(f"'{self.source}' gives batches with labels and batches without.")
        x = raw if self.prepare is None else self.prepare.apply(raw, self.source)
        if y is None:
            return x
        return x, labels(value(y, self.source).reshape(-1), len(x), self.source)


def pair(batch: Any, spec: str) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise InputError(f"'{spec}': a batch is x or (x, y), but there are {len(batch)} values.")
    return batch[0], batch[1] if len(batch) == 2 else None


def value(given: Any, spec: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu()
    if hasattr(given, "__array__"):
        return to_tensor(given, spec)
    if isinstance(given, (list, tuple)) and given and all(isinstance(v, int) for v in given):
        return torch.tensor(given)
    raise InputError(f"'{spec}' gives {type(given).__name__} where a tensor or array belongs.")


class Stream:
    """Batches of ``size`` of an iterable of the user's, of which ``most`` samples are used.

    Batches of other sizes are cut again. It is iterated again by ``iter``, and if that returns the
    same object (a generator) by calling its factory.
    """

    def __init__(self, together: Together, make: Callable[[], Iterable[Any]], size: int = 64):
        self.together, self.make, self.size = together, make, size
        self.most: int | None = None
        self.given: Tensor | None = None  # labels of another file
        self.known: dict[str, int] = {}  # how many "samples" there were, at the end

    def of(self, size: int) -> Stream:
        found = Stream(self.together, self.make, size)
        found.most, found.given, found.known = self.most, self.given, self.known
        return found

    def __iter__(self) -> Iterator[Any]:
        held: list[tuple[Tensor, Tensor | None]] = []
        for x, y in self._limited():
            held.append((x, y))
            while sum(len(x) for x, _ in held) >= self.size:
                x, y = _joined(held)
                cut = None if y is None else y[: self.size]
                yield x[: self.size] if cut is None else (x[: self.size], cut)
                held = [(x[self.size :], None if y is None else y[self.size :])]
        if held and len(held[-1][0]):
            x, y = _joined(held)
            yield x if y is None else (x, y)

    def _limited(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        left, number = self.most, 0
        for x, y in self._batches():
            if left is not None:
                x, y = x[:left], None if y is None else y[:left]
                left -= len(x)
            number += len(x)
            yield x, y
            if left == 0:
                break
        self.known["samples"] = number
        if not number:
            raise InputError(f"'{self.together.source}' gives no batches.")

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        source, at = self.together.source, 0
        with failing(source):
            batches = iter(self.make())
        while True:
            with failing(source):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            if self.given is not None:
                x = value(pair(batch, source)[0], source)
                batch, at = (x, self.given[at : at + len(x)]), at + len(x)
                self._check_given(at, at > len(self.given))
            checked = self.together.checked(batch)
            yield checked if isinstance(checked, tuple) else (checked, None)
        if self.given is not None:
            self._check_given(at, at != len(self.given))

    def _check_given(self, samples: int, wrong: bool) -> None:
        if wrong:
            assert self.given is not None
            raise InputError(
                f"labels are class indices [N], one for each sample, but '{self.together.source}' "
                f"has {samples} samples or more, and there are {len(self.given)} labels."
            )

    def content(self) -> list[Any]:
        x, y = pair(next(iter(self)), self.together.source)
        return [digest(x, y)]


def _joined(held: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    x = torch.cat([x for x, _ in held])
    return x, None if held[0][1] is None else torch.cat([y for _, y in held if y is not None])
