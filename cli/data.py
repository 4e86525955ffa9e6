"""Data specs: ``.npz``, ``.npy`` and IDX files, a folder of images, ``module:loader``.

What is read is samples [N, ...] as the network takes them. Nothing about the values is guessed:
pixels from 0 to 255 are scaled, and images resized or turned grey, where an option says so.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..converters.sources import Preprocessing, preprocessing, takes_texts
from ..core.inputs import Inputs
from ..errors import BackendUnavailable, FormatError, InputError, SignGDError
from .models import attribute, call

FORMS = (
    "a file .npz (also file.npz:images,labels), .npy or IDX (as Fashion-MNIST has, also .gz), a "
    "folder of images, a .txt of texts, or package.module:loader"
)
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # of Pillow, to what they are read as
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


@dataclass(frozen=True, eq=False)
class Data:
    """Samples ``x`` [N, ...] float, or ``Inputs``; ``y`` [N] class indices or None.

    Of a ``clip`` x is [F, N, ...], the frames of N streams, and y [F, N].
    """

    source: str
    x: Any
    y: Tensor | None
    class_names: tuple[str, ...] | None = None
    clip: bool = False

    @property
    def frames(self) -> list[Any]:
        """One after the other, x or (x, y)."""
        return list(self.x) if self.y is None else list(zip(self.x, self.y, strict=True))

    @property
    def counted(self) -> str:
        if self.clip:
            return f"{len(self.x)} frames of {self.x.shape[1]} streams"
        return f"{len(self.x)} samples"

    def batches(self, size: int) -> list[Any]:
        if self.y is None:
            return list(self.x.split(size))
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def check_shape(self, shape: Sequence[Any], streams: bool = False) -> None:
        """Raises InputError unless samples are of this shape, that of the input of a network, which
        may be one of ``streams``."""
        if isinstance(self.x, Inputs):  # which the network checks by name
            return
        if self.clip and tuple(self.x.shape[2:]) != tuple(shape):
            raise InputError(
                "the network is one of streams: it takes clips [F, N, "
                f"{', '.join(map(str, shape))}], F frames of N streams, but '{self.source}' is "
                f"{list(self.x.shape)}. --resize HEIGHT WIDTH and --channels 1 or 3 change images."
            )
        if streams and not self.clip and tuple(self.x.shape[2:]) == tuple(shape):
            raise InputError(
                f"'{self.source}' is {list(self.x.shape)}, which may be a clip. The network is one "
                "of streams, but this command runs it on stills [N, "
                f"{', '.join(map(str, shape))}], each begun anew; evaluate, verify and energy take "
                "clips."
            )
        if not self.clip and tuple(self.x.shape[1:]) != tuple(shape):
            raise InputError(
                f"the network takes samples {list(shape)}, but those of '{self.source}' are "
                f"{list(self.x.shape[1:])}. --resize HEIGHT WIDTH and --channels 1 or 3 change "
                "images; save other data in the shape that the network takes."
            )

    def check_labels(self, classes: int) -> None:
        if self.y is not None and int(self.y.max()) >= classes:
            raise InputError(
                f"the network has {classes} classes, 0 to {classes - 1}, but '{self.source}' has "
                f"the label {int(self.y.max())}. Number the classes as in training."
            )


@dataclass(frozen=True)
class Preparation:
    """What the options say is done with the values, in this order."""

    scale_pixels: bool = False
    channels: int | None = None
    resize: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    model: str | None = None  # whose own preprocessing takes the place of all others
    tokens: int | None = None  # of a text

    def __post_init__(self) -> None:
        given = {
            "--scale-pixels": self.scale_pixels or None,
            "--resize": self.resize,
            "--mean": self.mean,
            "--std": self.std,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if self.model is not None and wrong:
            raise InputError(
                f"--preprocess {self.model} does all that the model's makers did with images; "
                f"leave {', '.join(wrong)} out."
            )

    @cached_property
    def _own(self) -> Preprocessing:
        assert self.model is not None
        return preprocessing(self.model, self.tokens)

    def texts(self, lines: Sequence[str], source: str) -> Inputs:
        """Token ids and masks."""
        if self.model is None:
            raise InputError(
                f"'{source}' holds texts; --preprocess hf:PATH_OR_NAME says whose tokenizer makes "
                "token ids of them."
            )
        if not takes_texts(self.model):
            raise InputError(f"--preprocess {self.model} is of images, but '{source}' holds texts.")
        return Inputs(self._own(lines))

    def apply(self, x: Tensor, source: str) -> Tensor:
        if self.model is not None:
            return self._as_its_makers_did(x, source)
        x = self._floats(x, source)
        if self.channels is not None:
            x = _with_channels(x, self.channels, source)
        if self.resize is not None:
            if x.dim() != 4:
                raise InputError(
                    f"--resize is for images [N, C, H, W], but those of '{source}' are "
                    f"{list(x.shape)}."
                )
            x = torch.nn.functional.interpolate(
                x, size=tuple(self.resize), mode="bilinear", antialias=True, align_corners=False
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            number = torch.tensor(values, dtype=x.dtype)
            if len(values) > 1 and (x.dim() < 2 or x.shape[1] != len(values)):
                raise InputError(
                    f"--{name} has {len(values)} values, one for each channel, but the samples of "
                    f"'{source}' are {list(x.shape[1:])}."
                )
            number = number.reshape(-1, *[1] * max(x.dim() - 2, 0))
            x = x - number if name == "mean" else x / number
        return x

    def _as_its_makers_did(self, x: Tensor, source: str) -> Tensor:
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise InputError(
                f"--preprocess is for images [N, C, H, W] of 8 bits, but those of '{source}' are "
                f"{list(x.shape)} of {x.dtype}."
            )
        if self.channels is not None:
            x = _with_channels(x, self.channels, source).to(x.dtype)
        own = self._own
        try:
            found: Tensor = own(x)
        except (ValueError, RuntimeError, TypeError) as error:  # of the model's library
            raise InputError(
                f"--preprocess {self.model} fails on images {list(x.shape[1:])} of '{source}': "
                f"{error}. Grey images for a model of colours need --channels 3."
            ) from error
        return found

    def _floats(self, x: Tensor, source: str) -> Tensor:
        if x.is_complex() or x.dtype == torch.bool:
            raise InputError(f"'{source}' holds {x.dtype}; a network takes real numbers.")
        if x.is_floating_point():
            if self.scale_pixels:
                raise InputError(
                    f"--scale-pixels divides integers from 0 to 255 by 255, but '{source}' holds "
                    f"{x.dtype}; leave it out."
                )
            return x.float()
        if not self.scale_pixels:
            raise InputError(
                f"'{source}' holds integers ({x.dtype}), and what they were in training cannot be "
                "known. Say --scale-pixels (x / 255; --mean and --std apply after it), or save "
                "the samples as floats as in training."
            )
        if x.numel() and (int(x.min()) < 0 or int(x.max()) > 255):
            raise InputError(
                f"--scale-pixels takes integers from 0 to 255, but those of '{source}' go from "
                f"{int(x.min())} to {int(x.max())}."
            )
        return x.float() / 255


def load_data(
    spec: str,
    *,
    labels: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    prepare: Preparation | None = None,
    clip: bool = False,
) -> Data:
    """What ``spec`` names: ``samples`` of it, drawn with ``seed`` (of a loader the first).

    With ``clip`` that is frames [F, N, ...], of which N are drawn, in a .npy, .npz or a loader.
    Raises InputError, FormatError and BackendUnavailable.
    """
    prepare = prepare or Preparation()
    path = Path(spec)
    if clip and (path.is_dir() or path.suffix.lower() == ".txt" or _is_idx(path)):
        raise InputError(
            f"--data: clips [F, N, ...], F frames of N streams, are read from .npy and .npz files "
            f"and from package.module:loader, not from '{spec}'."
        )
    if path.is_dir():
        if labels is not None:
            raise InputError(f"--labels: those of '{spec}' are the names of its folders.")
        return _checked(_folder(path, samples, seed, prepare))
    if path.suffix.lower() == ".txt":
        return _texts(path, labels, samples, seed, prepare)
    names: Sequence[str] = ()
    if not path.exists() and ".npz:" in spec:
        file, _, rest = spec.rpartition(":")
        path, names = Path(file), rest.split(",")
    if path.suffix.lower() in (".npz", ".npy") or _is_idx(path):
        x, y = _arrays(path, names)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        x, y = _from_loader(spec, None if clip else samples)
        if labels is None and samples is not None and not clip:
            x, y = x[:samples], None if y is None else y[:samples]
    else:
        missing = "" if path.exists() else f"there is no file '{path}', and "
        raise InputError(f"--data: {missing}'{spec}' is not one of: {FORMS}.")
    if labels is not None:
        y = _of_labels(labels)
    if clip:
        return _clip(Data(spec, x, y, clip=True), labels or spec, samples, seed, prepare)
    y = None if y is None else _labels(y, len(x) if x.dim() else 0, labels or spec)
    if not x.dim() or not len(x):
        raise InputError(f"'{spec}' holds no samples.")
    x, y = _some(x, y, samples, seed)
    return _checked(Data(spec, prepare.apply(x, spec), y))


def _clip(data: Data, labels: str, samples: int | None, seed: int, prepare: Preparation) -> Data:
    """Frames [F, N, ...], with a label for each, or one for each stream."""
    x, y, spec = data.x, data.y, data.source
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
            f"labels of '{labels}' are {list(y.shape)}."
        )
    if y is not None:
        y = _labels(y.flatten(), frames * streams, labels).view(frames, streams)
    if samples is not None and samples < streams:
        rows = _rows(streams, samples, seed)
        x, y = x[:, rows], None if y is None else y[:, rows]
    each = _checked(Data(spec, prepare.apply(x.flatten(0, 1), spec), None))
    return Data(spec, each.x.unflatten(0, x.shape[:2]), y, clip=True)


def _of_labels(spec: str) -> Tensor:
    file, _, name = spec.rpartition(":") if ".npz:" in spec else (spec, "", "")
    # of a .npz without a name: y, which _arrays gives second
    found, second = _arrays(Path(file), [name] if name else ())
    return found if second is None else second


def _texts(
    path: Path, labels: str | None, samples: int | None, seed: int, prepare: Preparation
) -> Data:
    """One a line."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data: cannot read the texts of '{path}': {error}") from error
    if not lines:
        raise InputError(f"'{path}' holds no texts.")
    y = None if labels is None else _labels(_of_labels(labels), len(lines), labels)
    if samples is not None and samples < len(lines):
        rows = _rows(len(lines), samples, seed)
        lines, y = [lines[i] for i in rows.tolist()], None if y is None else y[rows]
    return Data(str(path), prepare.texts(lines, str(path)), y)


def shape_of(x: Any) -> str:
    """Of a batch, by name where it is of several inputs."""
    return str(x) if isinstance(x, Inputs) else str(list(x.shape))


def _checked(data: Data) -> Data:
    finite = data.x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        wrong = (~finite).nonzero().flatten().tolist()
        raise InputError(
            f"'{data.source}' holds NaN or infinity in {len(wrong)} of the {len(finite)} samples "
            f"used (the first: {wrong[0]}); remove or fix those."
        )
    return data


def _some(
    x: Tensor, y: Tensor | None, samples: int | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Drawn, since files are often sorted by class."""
    if samples is None or samples >= len(x):
        return x, y
    rows = _rows(len(x), samples, seed)
    return x[rows], None if y is None else y[rows]


def _rows(count: int, samples: int, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:samples].sort().values


def _labels(y: Tensor, count: int, source: str) -> Tensor:
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


# -- files ----------------------------------------------------------------------------------------


def _numpy() -> Any:
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "data files are read with the package 'numpy': pip install numpy"
        ) from error
    return numpy


def _is_idx(path: Path) -> bool:
    name = path.name.lower()
    name = name.removesuffix(".gz")
    return name.endswith("ubyte") or name.endswith(".idx") or bool(re.search(r"\.idx\d$", name))


def _arrays(path: Path, names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """The arrays of a .npz, .npy or IDX file; of a .npz ``names``, else x and y."""
    if not path.is_file():
        raise InputError(f"--data: there is no file '{path}'.")
    np = _numpy()
    try:
        if _is_idx(path):
            return _tensor(_idx(path, np), str(path)), None
        found = np.load(path, allow_pickle=False)
        if path.suffix.lower() == ".npy":
            return _tensor(found, str(path)), None
        with found:
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
            return _tensor(found["y"], f"{path}:y"), None
        raise InputError(
            f"'{path}' holds the arrays {', '.join(found.files) or 'none'}"
            f"{', not ' + ' and '.join(absent) if absent else ''}; name those of the samples and "
            f"of the labels: {path}:images,labels."
        )
    tensors = [_tensor(found[name], f"{path}:{name}") for name in asked]
    return tensors[0], tensors[1] if len(tensors) > 1 else None


def _tensor(array: Any, where: str) -> Tensor:
    np = _numpy()
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


# -- a folder of images ---------------------------------------------------------------------------


def _folder(path: Path, samples: int | None, seed: int, prepare: Preparation) -> Data:
    """Classes are the subfolders in order of their names; images without any have no labels."""
    classes = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    bare = [f for f in sorted(path.iterdir()) if f.suffix.lower() in IMAGES and f.is_file()]
    if classes and bare:
        raise InputError(
            f"'{path}' has images ('{bare[0].name}') beside folders ('{classes[0].name}'); put "
            "each image into the folder of its class, or all of them into none."
        )
    files = [(f, None) for f in bare] if not classes else []
    found: list[tuple[Path, int | None]] = list(files)
    for i, folder in enumerate(classes):
        inside = [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in IMAGES]
        if not inside:
            raise InputError(f"the class folder '{folder}' holds no images ({', '.join(IMAGES)}).")
        found += [(f, i) for f in inside]
    if not found:
        raise InputError(f"'{path}' holds no images ({', '.join(IMAGES)}).")
    if samples is not None and samples < len(found):
        found = [found[i] for i in _rows(len(found), samples, seed).tolist()]
    images, first = [], None
    for file, _ in found:
        image = prepare.apply(_image(file)[None], str(file))[0]
        if first is not None and image.shape != images[0].shape:
            raise InputError(
                f"'{file}' is {list(image.shape)}, but '{first}' is {list(images[0].shape)}; make "
                "them alike with --resize HEIGHT WIDTH and --channels 1 or 3."
            )
        first = first or file
        images.append(image)
    y = torch.tensor([i for _, i in found]) if classes else None
    names = tuple(folder.name for folder in classes) or None
    return Data(str(path), torch.stack(images), y, names)


def _image(path: Path) -> Tensor:
    """[C, H, W] uint8, with one channel or three."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"images, such as '{path}', are read with the package 'pillow': pip install pillow"
        ) from error
    np = _numpy()
    try:
        with Image.open(path) as image:
            mode, transparent = image.mode, "transparency" in image.info
            if mode in MODES and not transparent:
                array = np.array(image.convert(MODES[mode]))
    except Exception as error:  # of a damaged file
        raise FormatError(f"cannot read the image '{path}': {error}") from error
    if mode not in MODES or transparent:
        what = "transparency" if transparent or "A" in mode else f"the mode {mode!r}"
        raise InputError(
            f"'{path}' has {what}; save it with 8 bits a channel, grey or in colours, opaque."
        )
    tensor = torch.from_numpy(array)
    return tensor[None] if tensor.dim() == 2 else tensor.permute(2, 0, 1).contiguous()


def _with_channels(x: Tensor, channels: int, source: str) -> Tensor:
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise InputError(
            f"--channels is for images [N, 1 or 3, H, W], but those of '{source}' are "
            f"{list(x.shape)}."
        )
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return (x * torch.tensor(GREY).reshape(3, 1, 1)).sum(1, keepdim=True)


# -- the user's own -------------------------------------------------------------------------------


def _from_loader(spec: str, samples: int | None) -> tuple[Tensor, Tensor | None]:
    """Of a tensor, a pair (x, y), a torch Dataset, an iterable of batches, or what returns one."""
    found = attribute(spec, "data", "package.module:loader")
    known = isinstance(found, (Tensor, tuple, list, Dataset)) or hasattr(found, "__array__")
    if not known and callable(found):
        found = call(spec, found)
    if isinstance(found, Tensor) or hasattr(found, "__array__"):
        return _value(found, spec), None
    if isinstance(found, tuple):
        x, y = _pair(found, spec)
        return _value(x, spec), None if y is None else _value(y, spec)
    if isinstance(found, Dataset):
        found = DataLoader(found, batch_size=64)
    if not isinstance(found, Iterable):
        raise InputError(
            f"'{spec}' gives {type(found).__name__}; data are a tensor x, a pair (x, y), a torch "
            "Dataset, or an iterable of batches x or (x, y)."
        )
    return _collected(spec, found, samples)


def _collected(
    spec: str, batches: Iterable[Any], samples: int | None
) -> tuple[Tensor, Tensor | None]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    count = 0
    try:
        for batch in batches:
            x, y = _pair(batch, spec)
            xs.append(_value(x, spec))
            if y is not None:
                ys.append(_value(y, spec).reshape(-1))
            count += len(xs[-1])
            if samples is not None and count >= samples:
                break
    except SignGDError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's loader raises
        raise InputError(f"'{spec}' fails: {type(error).__name__}: {error}") from error
    if ys and len(ys) != len(xs):
        raise InputError(f"'{spec}' gives batches with labels and batches without.")
    if not xs:
        raise InputError(f"'{spec}' gives no batches.")
    shapes = {tuple(x.shape[1:]) for x in xs}
    if len(shapes) > 1:
        raise InputError(
            f"the batches of '{spec}' have samples of other shapes: "
            f"{' and '.join(str(list(shape)) for shape in sorted(shapes)[:3])}."
        )
    return torch.cat(xs), torch.cat(ys) if ys else None


def _pair(batch: Any, spec: str) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)):
        return batch, None
    if len(batch) not in (1, 2):
        raise InputError(f"'{spec}': a batch is x or (x, y), but there are {len(batch)} values.")
    return batch[0], batch[1] if len(batch) == 2 else None


def _value(value: Any, spec: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if hasattr(value, "__array__"):
        return _tensor(value, spec)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return torch.tensor(value)
    raise InputError(f"'{spec}' gives {type(value).__name__} where a tensor or array belongs.")
