"""The HDF5 description of a SpikingNetwork: one writer, one reader, nothing pickled.

Layout, format version 1.0::

    /                   attributes: format, format_version, time_steps, outputs, provenance (JSON)
    /nodes/00000        one group for each node, in topological order
        attributes: kind, name, inputs, shape, and the node's other fields; what is not a string
        or a number is JSON; a text too long for an attribute is a dataset of bytes, name.json
        datasets:   the node's tensors, named as the field, or field.key for a mapping
    /statistics/00000   attribute: name; datasets: what calibration saw at that neuron

Sizes that follow the batch are strings, "3*batch". Step sizes are in units of a neuron's scale.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BackendUnavailable, FormatError
from ..network import NODES, Node, SpikingNetwork
from ..neurons.nonlinearities import NONLINEARITIES, Nonlinearity
from ..neurons.schedules import SCHEDULES, Schedule, schedule_from_dict

if TYPE_CHECKING:
    import h5py

FORMAT = "spikingjelly_signgd"
VERSION = (1, 0)
LONGEST_ATTRIBUTE = 32_000  # bytes; HDF5 ends at 64 kB for all the attributes of a group

Function = Nonlinearity | Callable[..., Tensor]


def save(network: SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write the description; the file at ``path`` is replaced only when the new one is whole.

    Raises FormatError for what the format cannot hold, BackendUnavailable without h5py.
    """
    h5 = _h5py()
    path = Path(path)
    if not isinstance(network, SpikingNetwork):
        raise FormatError(
            f"save takes the SpikingNetwork that convert returned, not {type(network).__name__}; "
            "a built module keeps it as module.network."
        )
    if not path.parent.is_dir():
        raise FormatError(f"cannot write '{path}': the folder '{path.parent}' does not exist.")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        with h5.File(temporary, "w") as file:
            _write(file, network)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(
    path: str | os.PathLike[str], *, functions: Mapping[str, Function] | None = None
) -> SpikingNetwork:
    """Read a description; the source model's code is not needed.

    ``functions`` gives the caller's own nonlinearities by name, each a row or a callable. Raises
    FormatError for a file that is not a description, is damaged, or is of a newer format.
    """
    h5 = _h5py()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file '{path}'")
    try:
        with h5.File(path, "r") as file:
            return _read(file, path, functions or {})
    except FormatError:
        raise
    except Exception as error:  # h5py and the parts of a network raise all kinds on nonsense
        raise FormatError(
            f"'{path}' is not a whole spiking-network description ({error}); write it again with "
            "save(network, path)."
        ) from error


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "descriptions are HDF5 files and need the package 'h5py': "
            "pip install 'spikingjelly-signgd[hdf5]'"
        ) from error
    return h5py


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(file: h5py.File, network: SpikingNetwork) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = ".".join(map(str, VERSION))
    file.attrs["time_steps"] = network.time_steps
    _put(file, "outputs", json.dumps(_tag(network.outputs)))
    _put(file, "provenance", _json(dict(network.provenance), "the network", "provenance"))
    for i, node in enumerate(network.nodes):
        group = file.create_group(f"nodes/{i:05}")
        group.attrs["kind"] = node.kind
        for field in fields(node):
            _write_field(group, node.name, field.name, getattr(node, field.name))
    for i, (name, values) in enumerate(network.statistics.items()):
        group = file.create_group(f"statistics/{i:05}")
        group.attrs["name"] = name
        for key, value in values.items():
            group.create_dataset(key, data=_array(value))


def _write_field(group: h5py.Group, where: str, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        group.create_dataset(name, data=_array(value))
    elif isinstance(value, Nonlinearity):
        own = value != NONLINEARITIES.get(value.name)
        group.attrs[name] = json.dumps(
            {
                "name": value.name,
                "arity": value.arity,
                "fires_at_tie": value.fires_at_tie,
                "elementwise": value.elementwise,
                "own": own,
            }
        )
    elif isinstance(value, Mapping):
        plain = {key: item for key, item in value.items() if not isinstance(item, Tensor)}
        _put(group, name, _json(plain, where, name))
        for key, item in value.items():
            if isinstance(item, Tensor):
                group.create_dataset(f"{name}.{key}", data=_array(item))
    elif isinstance(value, Schedule):
        if not isinstance(value, tuple(SCHEDULES.values())):
            raise FormatError(
                f"'{where}' has the schedule {value!r}, which a description cannot hold; write its "
                "step sizes out as ListSchedule([schedule(t) for t in range(1, T + 1)])."
            )
        _put(group, name, json.dumps(value.to_dict()))
    else:
        _put(group, name, _json(value, where, name))


def _put(group: h5py.Group, name: str, text: str) -> None:
    if len(text) <= LONGEST_ATTRIBUTE:
        group.attrs[name] = text
    else:
        group.create_dataset(f"{name}.json", data=list(text.encode()), dtype="u1")


def _get(group: h5py.Group, name: str) -> Any:
    if f"{name}.json" in group:
        return json.loads(bytes(group[f"{name}.json"][()]))
    return json.loads(group.attrs[name])


def _json(value: Any, where: str, name: str) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise FormatError(
            f"'{where}' holds {name} = {value!r}, which a description cannot hold ({error}); use "
            "numbers, strings, lists and tensors."
        ) from error


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise FormatError(
            "the network holds bfloat16 tensors, which HDF5 and NumPy do not have; convert the "
            "model as model.float()."
        )
    return tensor.detach().cpu().contiguous().numpy()


def _tag(structure: Any) -> Any:
    """Outputs as JSON that keeps lists, tuples and dicts apart."""
    if isinstance(structure, str):
        return structure
    if isinstance(structure, Mapping):
        return {"dict": {key: _tag(value) for key, value in structure.items()}}
    return {type(structure).__name__: [_tag(value) for value in structure]}


def _untag(data: Any) -> Any:
    if isinstance(data, str):
        return data
    (kind, items), *_ = data.items()
    if kind == "dict":
        return {key: _untag(value) for key, value in items.items()}
    return {"list": list, "tuple": tuple}[kind](_untag(value) for value in items)


def _read(file: h5py.File, path: Any, functions: Mapping[str, Function]) -> SpikingNetwork:
    if file.attrs.get("format") != FORMAT:
        raise FormatError(f"'{path}' is an HDF5 file, but not a spiking-network description.")
    version = str(file.attrs["format_version"])
    if int(version.split(".")[0]) > VERSION[0]:
        raise FormatError(
            f"'{path}' has format version {version}, this release reads up to {VERSION[0]}.x; "
            "install a newer spikingjelly-signgd."
        )
    nodes = tuple(_read_node(file["nodes"][key], functions) for key in sorted(file["nodes"]))
    found = {}
    for key in sorted(file.get("statistics", {})):
        group = file["statistics"][key]
        found[group.attrs["name"]] = {name: _tensor(group[name]) for name in group}
    return SpikingNetwork(
        nodes,
        _untag(_get(file, "outputs")),
        int(file.attrs["time_steps"]),
        found,
        _get(file, "provenance"),
    )


def _read_node(group: h5py.Group, functions: Mapping[str, Function]) -> Node:
    kind = group.attrs["kind"]
    if kind not in NODES:
        raise FormatError(
            f"node {group.name} is of kind {kind!r}; known: {', '.join(NODES)}. It was written by "
            "a newer release."
        )
    values: dict[str, Any] = {}
    for field in fields(NODES[kind]):
        values[field.name] = _read_field(group, field.name, functions)
    return NODES[kind](**values)


def _read_field(group: h5py.Group, name: str, functions: Mapping[str, Function]) -> Any:
    if name in group:
        return _tensor(group[name])
    value = _get(group, name)
    if name == "function":
        return _row(value, functions, _get(group, "name"))
    if name == "schedule":
        return None if value is None else schedule_from_dict(value)
    if name in ("inputs", "shape"):
        return tuple(value)
    if isinstance(value, dict):
        prefix = f"{name}."
        tensors = {
            key.removeprefix(prefix): _tensor(group[key])
            for key in group
            if key.startswith(prefix) and key != f"{name}.json"
        }
        if name == "arguments":  # of a function; JSON has no tuples
            value = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        return {**value, **tensors}
    return value


def _row(data: Mapping[str, Any], functions: Mapping[str, Function], where: str) -> Nonlinearity:
    """The caller's function before the package's row; its flags are those of the network."""
    name = data["name"]
    found = functions.get(name) or (None if data["own"] else NONLINEARITIES.get(name))
    if found is None:
        raise FormatError(
            f"'{where}' uses the nonlinearity {name!r}, which is not one of this package's; pass "
            f"load(path, functions={{{name!r}: your_function}})."
        )
    flags = {key: data[key] for key in ("arity", "fires_at_tie", "elementwise")}
    if not isinstance(found, Nonlinearity):
        return Nonlinearity(name, found, **flags)
    other = {key: getattr(found, key) for key in flags}
    if other != flags:
        raise FormatError(
            f"'{where}' was written with a nonlinearity {name!r} of {flags}, but the one given has "
            f"{other}; pass that one, or the bare function, which takes the file's."
        )
    return found


def _tensor(dataset: h5py.Dataset) -> Tensor:
    return torch.from_numpy(dataset[()].copy()) if dataset.shape else torch.tensor(dataset[()])
