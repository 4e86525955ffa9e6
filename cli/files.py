"""Files of arrays: ``.npz``, ``.npy`` and IDX. Nothing about their values is guessed."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendUnavailable, FormatError, InputError, SignGDError

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def numpy_() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "data files are read with the package 'numpy': pip install numpy"
        ) from error
    return numpy


def is_idx(path: Path) -> bool:
    name = path.name.lower()
    name = name.removesuffix(".gz")
    return name.endswith("ubyte") or name.endswith(".idx") or bool(re.search(r"\.idx\d$", name))


class Mapped:
    """The array of a .npy file, of which rows are read as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def array(self) -> Any:
        np = numpy_()
        try:
            return np.load(self.path, allow_pickle=False, mmap_mode="r")
        except ValueError:  # of an empty one, or one that is refused
            return np.load(self.path, allow_pickle=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        return to_tensor(self.array[rows], str(self.path))

    def __getstate__(self) -> dict[str, Path]:
        """Without the values: a worker opens the file itself."""
        return {"path": self.path}


def arrays(path: Path, names: Sequence[str]) -> tuple[Tensor | Mapped, Tensor | None]:
    """The arrays of a .npz, .npy or IDX file, as they are there; of a .npz ``names``, else x and
    y."""
    if not path.is_file():
        raise InputError(f"--data: there is no file '{path}'.")
    np = numpy_()
    try:
        if is_idx(path):
            return to_tensor(_idx(path, np), str(path)), None
        if path.suffix.lower() == ".npy":
            found = Mapped(path)
            to_tensor(found.array[:0] if found.dim() else found.array, str(path))
            return found, None
        with np.load(path, allow_pickle=False) as found:
            return _of_npz(found, path, names)
    except SignGDError:
        raise
    except Exception as error:  # of a damaged file, or one of pickled objects
        raise FormatError(f"cannot read '{path}': {error}") from error


def _of_npz(found: Any, path: Path, names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    if len(names) > 2:
        raise InputError(
            f"'{path}:{','.join(names)}' names {len(names)} arrays; name the samples and the "
            "labels, as file.npz:images,labels."
        )
    asked = names or [name for name in ("x", "y") if name in found.files]
    absent = [name for name in asked if name not in found.files]
    if absent or not asked or (not names and "x" not in asked):
        # labels alone are asked for as y
        if not names and asked == ["y"]:
            return to_tensor(found["y"], f"{path}:y"), None
        raise InputError(
            f"'{path}' holds the arrays {', '.join(found.files) or 'none'}"
            f"{', not ' + ' and '.join(absent) if absent else ''}; name those of the samples and "
            f"of the labels: {path}:images,labels."
        )
    tensors = [to_tensor(found[name], f"{path}:{name}") for name in asked]
    return tensors[0], tensors[1] if len(tensors) > 1 else None


def to_tensor(array: Any, where: str) -> Tensor:
    np = numpy_()
    array = np.asarray(array)
    if array.dtype.kind not in "iufb":
        raise InputError(f"'{where}' holds {array.dtype}; arrays of numbers are read.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise InputError(f"'{where}' holds integers above those of 64 bits.")
        array = array.astype(np.int64)
    native = array.dtype.newbyteorder("=")
    if native.kind == "f" and native.itemsize not in (2, 4, 8):
        native = np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def _idx(path: Path, np: Any) -> Any:
    """IDX: 0, 0, the type, the number of dimensions; big-endian sizes; the values.

    Images in three dimensions, [N, H, W], become [N, 1, H, W].
    """
    opened: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not head[3]:
            raise FormatError(f"'{path}' begins with {head!r}, which is not IDX.")
        sizes = file.read(4 * head[3])
        shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * head[3], 4)]
        dtype = np.dtype(IDX_TYPES[head[2]])
        wanted = prod(shape) * dtype.itemsize
        content = file.read(wanted + 1)
    if len(content) != wanted or len(sizes) != 4 * head[3]:
        raise FormatError(
            f"'{path}' says that it holds {shape}, {wanted} bytes, but there are "
            f"{'more' if len(content) > wanted else len(content)}. Fetch the file again."
        )
    array = np.frombuffer(content, dtype=dtype).reshape(shape)
    return array[:, None] if array.ndim == 3 else array


def labels_of(spec: str) -> Tensor:
    """Those of a file, of a .npz by name, or its y."""
    file, _, name = spec.rpartition(":") if ".npz:" in spec else (spec, "", "")
    # of a .npz without a name: y, which arrays gives second
    found, second = arrays(Path(file), [name] if name else ())
    return whole(found) if second is None else second


def whole(x: Tensor | Mapped) -> Tensor:
    return x[...] if isinstance(x, Mapped) else x
