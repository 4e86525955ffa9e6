"""Data in whatever form a user has them, as one of the forms that the package goes on with.

Of tensors and NumPy arrays alike: x [N, ...], a pair (x, y), a dict of x by the names of the
model's arguments, samples one by one in a list; and a ``Dataset``, a DataLoader, or an iterable of
batches x or (x, y).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .inputs import Inputs, tensor_of

# what the parts of a data set are called
PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing"}


def given(data: Any) -> Any:
    """``data`` with tensors in place of arrays; samples in a list as a DataLoader would have them.

    Raises InputError for several data sets in one object, such as train and test.
    """
    check_one(data)
    data = tensor_of(data)
    if isinstance(data, Mapping):
        return {name: tensor_of(x) for name, x in data.items()}
    if isinstance(data, (tuple, list)) and (pair := as_pair(data)) is not None:
        return pair
    if isinstance(data, (tuple, list)):
        _check_lengths(data)
        _check_pairs(data)
    if isinstance(data, (tuple, list)) and _is_sample(data[0] if data else None):
        return _Samples(data)
    return data


def as_pair(data: Sequence[Any]) -> tuple[Any, Tensor] | None:
    """(x, y) where ``data`` is a pair for all samples, None where it is batches.

    x and y are as long as each other, and differ in the number of dimensions or in the kind of
    their numbers: two tensors that do not are two batches.
    """
    if len(data) != 2:
        return None
    x, y = tensor_of(data[0]), tensor_of(data[1])
    if isinstance(y, list) and y and all(isinstance(each, int) for each in y):
        y = torch.tensor(y)  # labels
    if isinstance(x, Mapping):
        x = {name: tensor_of(value) for name, value in x.items()}
    first = next(iter(x.values()), None) if isinstance(x, dict) else x
    if not isinstance(first, Tensor) or not isinstance(y, Tensor) or not first.dim() or not y.dim():
        return None
    unlike = isinstance(x, dict) or first.dim() != y.dim()
    unlike |= first.is_floating_point() != y.is_floating_point()
    return (x, y) if unlike and len(first) == len(y) else None


def _check_lengths(data: Sequence[Any]) -> None:
    """Raises InputError for samples and class indices that are not as many."""
    x, y = map(tensor_of, data) if len(data) == 2 else (None, None)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dim() < 2 or y.dim() != 1:
        return
    if x.is_floating_point() and not y.is_floating_point() and len(x) != len(y):
        raise InputError(
            f"x has {len(x)} samples, but y has {len(y)} labels; they belong together."
        )


def _check_pairs(data: Sequence[Any]) -> None:
    """Raises InputError for x and y of several data sets in one sequence, as train_test_split
    returns them."""
    tensors = [tensor_of(a) for a in data] if len(data) == 4 else []
    if not tensors or not all(isinstance(a, Tensor) and a.dim() for a in tensors):
        return
    samples = [i for i, a in enumerate(tensors) if a.dim() > 1 and a.is_floating_point()]
    labels = [i for i, a in enumerate(tensors) if a.dim() == 1 and not a.is_floating_point()]
    if len(samples) == len(labels) == 2:
        raise InputError(
            "the data are samples and labels of two data sets, of which all would be used, test "
            f"samples too. Pass the pair of one: (data[{samples[0]}], data[{labels[0]}])."
        )


def one_batch(data: Any) -> Any:
    """x, where ``data`` is a pair (x, y)."""
    data = given(data)
    return data[0] if is_pair(data) else data


def is_pair(data: Any) -> bool:
    """Whether what ``given`` returned is a pair (x, y) of all samples."""
    return isinstance(data, tuple) and as_pair(data) is not None


def check_one(data: Any) -> None:
    """Raises InputError where ``data`` are several data sets."""
    parts = _parts(data)
    if not parts:
        return
    name = next((n for n in parts if n.startswith("train")), parts[0])
    one = f"data[{name!r}]" if isinstance(data, Mapping) else f"data.{name}"
    one = f"data[{name}]" if name.isdigit() else one
    batches = "; batches are a list: list(data)" if name.isdigit() else ""
    raise InputError(
        f"the data are several data sets ({type(data).__name__} of {', '.join(parts)}), of which "
        f"all would be used, test samples too. Pass one of them, such as {one}{batches}."
    )


def _parts(data: Any) -> list[str]:
    """What the data sets that ``data`` hold are called; empty where it is one."""
    if isinstance(data, (Tensor, Inputs, str)):
        return []
    held, plain = _entries(data), type(data) in (tuple, list)
    found = [name for name, value in held.items() if _is_data(value, plain)]
    named = [name for name in held if name.lower() in PARTS]
    if type(data) is tuple and 2 <= len(held) <= 3 and all(map(_is_labelled, held.values())):
        return list(held)
    return found or (named if len(named) > 1 else [])


def _entries(data: Any) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return {str(name): value for name, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return dict(zip(data._fields, data, strict=True))
    if is_dataclass(data) and not isinstance(data, (type, Dataset)):
        return {each.name: getattr(data, each.name) for each in fields(data)}
    if type(data) in (tuple, list):
        return {str(i): value for i, value in enumerate(data[:4])}
    if not isinstance(data, (Dataset, Iterable)):
        return (
            {name: value for name, value in vars(data).items() if name in PARTS}
            if (hasattr(data, "__dict__"))
            else {}
        )
    return {}


def _is_data(value: Any, plain: bool) -> bool:
    """Whether an entry is a data set; one of a plain list is a batch where it could be one."""
    if isinstance(value, (Dataset, DataLoader)):
        return True
    return not plain and isinstance(value, (tuple, list)) and any(map(_is_array, value))


def _is_labelled(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and as_pair(value) is not None


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _is_sample(value: Any) -> bool:
    """Whether it is one sample (x, y) with its label, no batch."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not _is_array(value[0]):
        return False
    y = value[1]
    whole = isinstance(y, int) or (_is_array(y) and getattr(y, "ndim", 1) == 0)
    return whole and bool(getattr(value[0], "ndim", 0))


class _Samples(Dataset[Any]):
    """Samples (x, y) of a list."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]
