"""Data sets that torchvision and timm know by name, ``pip install 'spikingjelly-signgd[vision]'``.

    torchvision:NAME[:ROOT]    a class of torchvision.datasets, such as torchvision:CIFAR10:data
    torch/NAME[:ROOT]          and hfds/, hfids/, wds/, tfds/: the names of timm's create_dataset

ROOT is the folder where they are, by default the working folder. Their images are decoded here:
timm takes the next image in place of one that it cannot read.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..converters.sources import imported
from ..errors import BackendUnavailable, FormatError, InputError
from .datasets import Decoded, Pictures, label_of, opened
from .preparation import Preparation

TIMM = re.compile(r"(torch|hfds|hfids|wds|tfds)/[^:]+(:.+)?", re.IGNORECASE)
TORCHVISION = re.compile(r"torchvision:(\w+)(?::(.+))?")
TRAINING = ("train", "training")


def is_library(spec: str) -> bool:
    return bool(TIMM.fullmatch(spec) or TORCHVISION.fullmatch(spec))


def load_library(spec: str, split: str | None, download: bool, prepare: Preparation) -> Pictures:
    """Raises InputError where it is not there, BackendUnavailable without the library."""
    found = TORCHVISION.fullmatch(spec)
    if found is not None:
        return _torchvision(spec, found[1], found[2] or ".", split, download, prepare)
    return _timm(spec, split or "validation", download, prepare)


def _library(spec: str, name: str) -> Any:
    return imported(spec, name.partition(".")[0], name, "'spikingjelly-signgd[vision]'")


@contextmanager
def _read(spec: str, download: bool) -> Iterator[None]:
    """Nothing is downloaded unless that was asked for."""
    try:
        with _offline(not download):
            yield
    except (InputError, BackendUnavailable):
        raise
    except (Exception, SystemExit) as error:  # whatever a library raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        hint = "" if download else " Nothing is downloaded without --download."
        raise InputError(
            f"'{spec}' cannot be read: {type(error).__name__}: {first}.{hint}"
        ) from error


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """For Hugging Face, which downloads without being asked."""
    before, name = os.environ.get("HF_HUB_OFFLINE"), "HF_HUB_OFFLINE"
    modules = [sys.modules.get(m) for m in ("huggingface_hub.constants", "datasets.config")]
    held = [(m, getattr(m, name)) for m in modules if wanted and hasattr(m, name)]
    try:
        if wanted:
            os.environ[name] = "1"
        for module, _ in held:
            setattr(module, name, True)
        yield
    finally:
        for module, old in held:
            setattr(module, name, old)
        if wanted:
            os.environ.pop(name) if before is None else os.environ.update({name: before})


# -- torchvision ----------------------------------------------------------------------------------


def _torchvision(
    spec: str, name: str, root: str, split: str | None, download: bool, prepare: Preparation
) -> Pictures:
    module = _library(spec, "torchvision.datasets")
    make = getattr(module, name, None)
    if name not in module.__all__ or make is None:
        near = difflib.get_close_matches(name, module.__all__, n=4, cutoff=0.4)
        raise InputError(f"torchvision has no data set {name!r}. Similar names: {', '.join(near)}.")
    taken = inspect.signature(make).parameters
    given: dict[str, Any] = {"root": root} if "root" in taken else {}
    if "download" in taken:
        given["download"] = download
    given |= _split_of(spec, taken, split)
    with _read(spec, download):
        return Decoded(spec, make(**given), prepare)


def _split_of(spec: str, taken: Any, split: str | None) -> dict[str, Any]:
    if "train" in taken:  # the test set, unless the training set is asked for
        return {"train": split in TRAINING}
    name = next((n for n in ("split", "image_set") if n in taken), None)
    if name is None and split is not None:
        raise InputError(f"--split: '{spec}' has no splits; leave it out.")
    if name is not None and split is None:
        usual = taken[name].default
        known = "" if usual is inspect.Parameter.empty else f", such as {usual}"
        raise InputError(f"'{spec}' has splits; say which with --split NAME{known}.")
    return {} if name is None else {name: split}


# -- timm -----------------------------------------------------------------------------------------


class _Read(Pictures):
    """What a reader of timm finds, opened here: timm takes another image for a damaged one."""

    def __init__(self, source: str, reader: Any, prepare: Preparation) -> None:
        super().__init__(source, prepare)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, row: int) -> str:
        try:
            return f"{self.source}, {self.reader.filename(row) or f'sample {row}'}"
        except Exception:  # a reader without names
            return super().name(row)

    def picture(self, row: int) -> tuple[Any, Any]:
        try:
            file, y, *_ = self.reader[row]
        except Exception as error:
            raise FormatError(f"cannot read '{self.name(row)}': {error}") from error
        with file:
            return opened(file, self.name(row)), label_of(y, self.source)


class Streamed:
    """An iterable data set of timm: (image, label) one by one, all of them on each rank."""

    def __init__(self, source: str, dataset: Any, prepare: Preparation) -> None:
        self.source, self.dataset, self.prepare = source, dataset, prepare
        self.class_names = None
        # timm deals samples to ranks by itself and pads; batches are dealt here
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1

    def __iter__(self) -> Iterator[Any]:
        number = 0
        with _read(self.source, True):
            for image, y in self.dataset:
                x = self.prepare.picture(image, f"{self.source}, sample {number}")[None]
                label, number = label_of(y, self.source), number + 1
                yield x if label is None else (x, torch.tensor([label]))
        wanted = len(self.dataset)
        if wanted and number < wanted:
            raise FormatError(
                f"'{self.source}' has {wanted} samples, but timm gave {number}: it leaves out what "
                "it cannot read, and does not name it."
            )


def _timm(spec: str, split: str, download: bool, prepare: Preparation) -> Any:
    name, _, root = spec.partition(":")
    data = _library(spec, "timm.data")
    if not download and ("://" in spec or "pipe:" in spec):
        raise InputError(f"'{spec}' is fetched from elsewhere, which --download allows.")
    with _read(spec, download):
        options = {"download": True} if download else {}
        try:
            found = data.create_dataset(
                name, root=root or None if name.lower().startswith("hf") else root or ".",
                split=split, input_img_mode=None, **options,
            )  # fmt: skip
        except ImportError as error:  # of datasets, webdataset, tensorflow_datasets
            raise BackendUnavailable(
                f"'{spec}' needs the package {error.name!r}: pip install {error.name}"
            ) from error
    reader = getattr(found, "reader", None)
    if reader is None:  # one of torchvision
        return Decoded(spec, found, prepare)
    if hasattr(found, "__getitem__") and not isinstance(found, torch.utils.data.IterableDataset):
        return _Read(spec, reader, prepare)
    return Streamed(spec, found, prepare)
