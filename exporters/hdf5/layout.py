"""The HDF5 layout of a description, read and written without torch (``docs/format.md``).

Two checksums guard a file. The *seal*, in the 512 bytes before the HDF5 data, is over all bytes
after them: damage is found before a byte of it is interpreted. The *checksum*, an attribute, is
over names, attributes and datasets, whatever order and compression they are stored in: it names
the network.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.checks import is_array
from ...core.registry import look_up
from ...core.structures import tagged, untagged
from ...errors import BackendUnavailable, FormatError
from ..files import Seal, write_whole
from .content import VERSION, Content, Record, check, input_coding, needs, version_of
from .kinds import FIRST, KINDS

if TYPE_CHECKING:
    import h5py
    import numpy as np

FORMAT = "spikingjelly_signgd"
LONGEST_ATTRIBUTE = 32_000  # bytes; HDF5 ends at 64 kB for all the attributes of a group
SMALLEST_COMPRESSED = 4096  # bytes; trained weights shrink by a tenth, smaller ones by nothing
LARGEST_CHUNK = 4 * 2**20
LARGEST_RATIO = 1100  # of deflate; a file that claims more is damaged
SEAL_BYTES = 512
SEAL = Seal(
    b"spikingjelly_signgd description; HDF5 from byte 512 on, with this sha256\n", SEAL_BYTES
)
SIGNATURE = b"\x89HDF\r\n\x1a\n"
READ = ("1.2", "1.3", "1.4")  # what may stand behind the kind of a node
UNCHECKED = ("checksum", "certificate")  # attributes of the root that say something of the rest

SPIKES = (
    "signgd: sigma in {-1, +1}, a receiver adds -eta(t) scale sigma times its weights to what it "
    "has integrated, with m members eta(t) scale 2 ** (1 - m) d for the odd d of its m signs; "
    "group: a count n in 0..members, worth n v_threshold / members at its step, or in "
    "-members..members if it is signed; growth: what f of the sums of its inputs has grown by; "
    "subgradient: s in {0, 1}, decoded by the schedule as v(t)"
)
SILENCE = (  # of files with a dead zone
    "; signgd with a dead_zone: sigma in {-1, 0, +1}, d any whole number, and 0 is not sent"
)
DELAY = (
    "zero: within a time step spikes pass through all layers. With a delay of one step a layer the "
    "same values arise where each neuron runs its schedule as many steps later as the longest path "
    "to it has neurons, and spikes on a shorter path are held back by the difference"
)


def require_h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "descriptions are HDF5 files and need the package 'h5py': "
            "pip install 'spikingjelly-signgd[hdf5]'"
        ) from error
    return h5py


# -- writing --------------------------------------------------------------------------------------


def write(content: Content, path: str | os.PathLike[str]) -> str:
    """Write the description whole or not at all; returns its checksum. Raises FormatError."""
    h5 = require_h5py()
    check(content)
    # in memory, so that a full disk meets plain bytes and not a library in the middle of a tree
    with h5.File(
        "description",
        "w",
        driver="core",
        backing_store=False,
        userblock_size=SEAL_BYTES,
        libver=("v110", "v110"),
    ) as file:
        _write(file, content)
        checksum = _checksum(_everything(file))
        file.attrs["checksum"] = checksum
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, SEAL.on(image))
    return checksum


def _write(file: h5py.File, content: Content) -> None:
    version = version_of(content)
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = _dotted(version)
    file.attrs["time_steps"] = content.time_steps
    file.attrs["spikes"] = SPIKES + (SILENCE if version >= (1, 3) else "")
    file.attrs["delay"] = DELAY
    file.attrs["input_coding"] = input_coding(content)
    if version >= (1, 5):
        _put(file, "stream", json.dumps(content.stream))
        _put(file, "carries", json.dumps(dict(content.carries)))
    _put(file, "outputs", json.dumps(tagged(content.outputs)))
    _put(file, "provenance", _json(dict(content.provenance), "the network", "provenance"))
    if content.class_names is not None:
        _put(file, "class_names", json.dumps(list(content.class_names)))
    for i, node in enumerate(content.nodes):
        group = file.create_group(f"nodes/{i:05}")
        since = needs(node)  # releases before it would ignore the fields that they do not know
        group.attrs["kind"] = node.kind if since == FIRST else f"{node.kind} {_dotted(since)}"
        later = KINDS[node.kind].later(version)
        for name, value in node.fields.items():
            if name not in later:
                _write_field(group, node.name, name, value)
    for i, (name, values) in enumerate(content.statistics.items()):
        group = file.create_group(f"statistics/{i:05}")
        group.attrs["name"] = name
        for key, value in values.items():
            _dataset(group, key, value)


def _write_field(group: h5py.Group, where: str, name: str, value: Any) -> None:
    if is_array(value):
        _dataset(group, name, value)
    elif isinstance(value, Mapping):
        plain = {key: item for key, item in value.items() if not is_array(item)}
        _put(group, name, _json(plain, where, name))
        for key, item in value.items():
            if is_array(item):
                _dataset(group, f"{name}.{key}", item)
    else:
        _put(group, name, _json(value, where, name))


def _dataset(group: h5py.Group, name: str, value: np.ndarray) -> None:
    packed: dict[str, Any] = {}
    if value.nbytes >= SMALLEST_COMPRESSED and value.ndim:
        # one chunk, whose index takes next to nothing, until memory speaks for several
        rows = max(1, LARGEST_CHUNK // (value.nbytes // value.shape[0]))
        chunks = (min(rows, value.shape[0]), *value.shape[1:])
        packed = {"chunks": chunks, "shuffle": True, "compression": "gzip", "compression_opts": 4}
    group.create_dataset(name, data=value, **packed)


def _put(group: h5py.Group, name: str, text: str) -> None:
    if len(text) <= LONGEST_ATTRIBUTE:
        group.attrs[name] = text
    else:
        group.create_dataset(f"{name}.json", data=list(text.encode()), dtype="u1")


def _json(value: Any, where: str, name: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"'{where}' holds {name} = {value!r}, which a description cannot hold ({error}); use "
            "numbers, strings, lists and tensors."
        ) from error


# -- checksums ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """A group, or a dataset with its ``values``, as it lies in a file."""

    path: str
    attributes: dict[str, Any]
    items: dict[str, _Item]
    values: np.ndarray | None = None

    def has(self, name: str) -> bool:
        return name in self.attributes or f"{name}.json" in self.items

    def json(self, name: str) -> Any:
        if f"{name}.json" in self.items:
            return json.loads(self.tensor(f"{name}.json").tobytes())
        return json.loads(self.attributes[name])

    def tensor(self, name: str) -> np.ndarray:
        values = self.items[name].values
        if values is None:
            raise FormatError(f"'{self.path}/{name}' is a group where a tensor belongs.")
        return values


def _everything(file: h5py.File) -> _Item:
    """The contents of the file. FormatError for external links, loops, and data that are not
    numbers."""
    h5 = require_h5py()
    seen: set[int] = set()

    def item(path: str, it: Any) -> _Item:
        address = h5.h5o.get_info(it.id).addr
        if address in seen:
            raise FormatError(f"'{path}' is linked twice; a description is a tree.")
        seen.add(address)
        attributes = {name: it.attrs[name] for name in sorted(it.attrs)}
        if isinstance(it, h5.Dataset):
            return _Item(path, attributes, {}, _values(it))
        items = {}
        for name in sorted(it):
            if not isinstance(it.get(name, getlink=True), h5.HardLink):
                raise FormatError(f"'{path}' links to {name!r} elsewhere, which is not followed.")
            items[name] = item(f"{path.rstrip('/')}/{name}", it[name])
        return _Item(path, attributes, items)

    return item("/", file["/"])


def _values(dataset: h5py.Dataset) -> np.ndarray:
    import numpy as np

    where = dataset.name
    if dataset.shape is None or dataset.dtype.kind not in "iufb":
        raise FormatError(f"'{where}' is of {dataset.dtype}; a description holds numbers alone.")
    if dataset.is_virtual or dataset.external:
        raise FormatError(f"'{where}' is stored in another file, which is not read.")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > LARGEST_RATIO * stored:
        raise FormatError(f"'{where}' claims {dataset.nbytes} bytes, of which {stored} are stored.")
    return np.asarray(dataset[()])


def _checksum(root: _Item) -> str:
    """``"sha256:..."`` of all names, attributes and datasets, however they are stored."""
    digest = hashlib.sha256()

    def feed(header: list[Any], data: bytes = b"") -> None:
        # lengths before contents, so that no two contents run into the same bytes
        digest.update(json.dumps([*header, len(data)]).encode() + b"\n" + data)

    def feed_array(name: str, value: Any) -> None:
        import numpy as np

        array = np.asarray(value)
        if array.dtype.kind not in "iufb":
            raise FormatError(f"{name!r} is of {array.dtype}; a description holds numbers alone.")
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        feed(["array", name, array.dtype.str, list(array.shape)], array.tobytes())

    def feed_item(item: _Item) -> None:
        feed(["group" if item.values is None else "dataset", item.path])
        for name, value in item.attributes.items():
            if item is root and name in UNCHECKED:
                continue
            if isinstance(value, str):
                feed(["text", name], value.encode())
            else:
                feed_array(name, value)
        if item.values is not None:
            feed_array("", item.values)
        for below in item.items.values():
            feed_item(below)

    feed_item(root)
    return f"sha256:{digest.hexdigest()}"


def _check_seal(path: Path) -> None:
    """Raises FormatError where the bytes are not those that were written; 1.0 has no seal."""
    with open(path, "rb") as file:
        head = file.read(SEAL_BYTES)
    if not head.startswith((SIGNATURE, SEAL.mark)):
        raise FormatError("not an HDF5 file, so not a spiking-network description.")
    if len(head) < SEAL_BYTES or SEAL.broken(path):
        raise FormatError(
            "the file is damaged or was changed: its bytes are not those that were written. Copy "
            "it again, or write it again with save(network, path); after a change made on "
            "purpose call exporters.hdf5.seal(path)."
        )


def seal(path: str | os.PathLike[str]) -> str:
    """New checksums after a change made on purpose, with h5py for instance; the checksum.

    A certificate, which is of the file before the change, is taken out.
    """
    h5 = require_h5py()
    buffer = io.BytesIO(SEAL.off(Path(path).read_bytes()))
    with h5.File(buffer, "r+") as file:
        checksum = _checksum(_everything(file))
        file.attrs["checksum"] = checksum
        file.attrs.pop("certificate", None)  # of what was there before
    write_whole(path, SEAL.on(buffer.getvalue()))
    return checksum


def embed(data: bytes, certificate: str) -> bytes:
    """A description's bytes with a certificate, which is no part of what its checksum is over."""
    return SEAL.with_certificate(data, certificate)


# -- reading --------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Content:
    """The description at ``path``, checked.

    Raises FormatError for a file that is not a description, is damaged, or is of a newer format.
    """
    h5 = require_h5py()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'")
    try:
        _check_seal(path)
        with h5.File(path, "r") as file:
            version = _version(file)
            root = _everything(file)
        content = _content(root, version)
        check(content)
    except FormatError as error:
        raise FormatError(f"'{path}': {error}") from error
    except Exception as error:  # h5py raises all kinds on nonsense
        raise FormatError(
            f"'{path}' is not a whole spiking-network description ({error}); write it again with "
            "save(network, path)."
        ) from error
    return content


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _parts(version: str) -> tuple[int, int]:
    major, minor = (int(part) for part in version.split("."))
    return major, minor


def _version(file: h5py.File) -> tuple[int, int]:
    if file.attrs.get("format") != FORMAT:
        raise FormatError("this is an HDF5 file, but not a spiking-network description.")
    text = str(file.attrs["format_version"])
    major, minor = _parts(text)
    if major > VERSION[0]:
        raise FormatError(
            f"the file has format version {text}, this release reads up to {VERSION[0]}.x; install "
            "a newer spikingjelly-signgd."
        )
    if (major, minor) < (1, 0):
        raise FormatError(f"the file has format version {text}, but the first one is 1.0.")
    return major, minor


def _content(root: _Item, version: tuple[int, int]) -> Content:
    checksum = _checksum(root)
    written = root.attributes.get("checksum", "none")
    if version >= (1, 1) and written != checksum:
        raise FormatError(
            f"the file is damaged or was changed: its content has the {checksum}, but {written} "
            "is written. Write it again with save(network, path); after a change made on purpose "
            "call exporters.hdf5.seal(path)."
        )
    return Content(
        nodes=tuple(_read_node(item, version) for item in root.items["nodes"].items.values()),
        outputs=untagged(root.json("outputs")),
        time_steps=int(root.attributes["time_steps"]),
        statistics={
            str(item.attributes["name"]): {name: item.tensor(name) for name in item.items}
            for item in root.items["statistics"].items.values()
        }
        if "statistics" in root.items
        else {},
        provenance=root.json("provenance"),
        class_names=tuple(root.json("class_names")) if root.has("class_names") else None,
        stream=root.json("stream") if root.has("stream") else False,
        carries=root.json("carries") if root.has("carries") else {},
        version=version,
        checksum=checksum,
        certificate=root.json("certificate") if root.has("certificate") else None,
    )


def _read_node(item: _Item, version: tuple[int, int]) -> Record:
    written = item.attributes["kind"]
    kind, _, since = written.partition(" ")
    row = look_up(KINDS, kind)
    if row is None or since not in ("", *READ):
        raise FormatError(
            f"node {item.path} is of kind {written!r}; known: {', '.join(KINDS)}, and of these "
            f"what came with {', '.join(READ)}. It was written by a newer release; install one."
        )
    present = [name for name in row.fields if name in item.items or item.has(name)]
    fields = {name: _read_field(item, name) for name in present}
    written_in = max(version, _parts(since)) if since else version
    return Record(kind, {**({} if since else row.implied), **row.later(written_in), **fields})


def _read_field(item: _Item, name: str) -> Any:
    if name in item.items:
        return item.tensor(name)
    value = item.json(name)
    if name in ("inputs", "shape") and isinstance(value, Sequence):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if name == "arguments":  # of a function; JSON has no tuples
        value = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    tensors = [key for key in item.items if key.startswith(f"{name}.") and key != f"{name}.json"]
    return {**value, **{key.removeprefix(f"{name}."): item.tensor(key) for key in tensors}}
