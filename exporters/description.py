"""The HDF5 description of a SpikingNetwork: one writer, one reader, nothing pickled.

Layout, format version 1.0::

    /                   attributes: format, format_version, time_steps, outputs, provenance (JSON)
    /nodes/00000        one group for each node, in topological order
        attributes: kind, name, inputs, shape, and the node's other fields; what is not a string
        or a number is JSON
        datasets:   the node's tensors, named as the field, or field.key for a mapping
    /statistics/00000   attribute: name; datasets: what calibration saw at that neuron

Sizes that follow the batch are strings, "3*batch". Step sizes are in units of a neuron's scale.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BackendUnavailable, FormatError
from ..network import NODES, Node, SpikingNetwork
from ..neurons.nonlinearities import NONLINEARITIES, Nonlinearity
from ..neurons.schedules import schedule_from_dict

if TYPE_CHECKING:
    import h5py

FORMAT = "spikingjelly_signgd"
VERSION = (1, 0)


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
    path: str | os.PathLike[str], *, functions: Mapping[str, Nonlinearity] | None = None
) -> SpikingNetwork:
    """Read a description; the source model's code is not needed.

    ``functions`` gives the rows of the caller's own nonlinearities by name. Raises FormatError
    for a file that is not a description, is damaged, or is of a newer format.
    """
    h5 = _h5py()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file '{path}'")
    rows = {**NONLINEARITIES, **(functions or {})}
    try:
        with h5.File(path, "r") as file:
            return _read(file, path, rows)
    except FormatError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AssertionError) as error:
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
    file.attrs["outputs"] = json.dumps(_tag(network.outputs))
    file.attrs["provenance"] = json.dumps(dict(network.provenance))
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
        own = value is not NONLINEARITIES.get(value.name)
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
        group.attrs[name] = _json(plain, where, name)
        for key, item in value.items():
            if isinstance(item, Tensor):
                group.create_dataset(f"{name}.{key}", data=_array(item))
    elif hasattr(value, "to_dict"):
        group.attrs[name] = json.dumps(value.to_dict())
    else:
        group.attrs[name] = _json(value, where, name)


def _json(value: Any, where: str, name: str) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise FormatError(
            f"'{where}' holds {name} = {value!r}, which a description cannot hold ({error}); use "
            "numbers, strings, lists and tensors."
        ) from error


def _array(tensor: Tensor) -> Any:
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


def _read(file: h5py.File, path: Any, rows: Mapping[str, Nonlinearity]) -> SpikingNetwork:
    if file.attrs.get("format") != FORMAT:
        raise FormatError(f"'{path}' is an HDF5 file, but not a spiking-network description.")
    version = str(file.attrs["format_version"])
    if int(version.split(".")[0]) > VERSION[0]:
        raise FormatError(
            f"'{path}' has format version {version}, this release reads up to {VERSION[0]}.x; "
            "install a newer spikingjelly-signgd."
        )
    nodes = tuple(_read_node(file["nodes"][key], rows) for key in sorted(file["nodes"]))
    found = {}
    for key in sorted(file.get("statistics", {})):
        group = file["statistics"][key]
        found[group.attrs["name"]] = {name: _tensor(group[name]) for name in group}
    return SpikingNetwork(
        nodes,
        _untag(json.loads(file.attrs["outputs"])),
        int(file.attrs["time_steps"]),
        found,
        json.loads(file.attrs["provenance"]),
    )


def _read_node(group: h5py.Group, rows: Mapping[str, Nonlinearity]) -> Node:
    kind = group.attrs["kind"]
    if kind not in NODES:
        raise FormatError(
            f"node {group.name} is of kind {kind!r}; known: {', '.join(NODES)}. It was written by "
            "a newer release."
        )
    values: dict[str, Any] = {}
    for field in fields(NODES[kind]):
        values[field.name] = _read_field(group, field.name, rows)
    return NODES[kind](**values)


def _read_field(group: h5py.Group, name: str, rows: Mapping[str, Nonlinearity]) -> Any:
    if name in group:
        return _tensor(group[name])
    value = json.loads(group.attrs[name])
    if name == "function":
        return _row(value, rows, json.loads(group.attrs["name"]))
    if name == "schedule":
        return None if value is None else schedule_from_dict(value)
    if name in ("inputs", "shape"):
        return tuple(value)
    if isinstance(value, dict):
        prefix = f"{name}."
        tensors = {key.removeprefix(prefix): _tensor(group[key]) for key in group if key.startswith(prefix)}
        return {**value, **tensors}
    return value


def _row(data: Mapping[str, Any], rows: Mapping[str, Nonlinearity], where: str) -> Nonlinearity:
    name = data["name"]
    if name not in rows:
        raise FormatError(
            f"'{where}' uses the nonlinearity {name!r}, which is not one of this package's; pass "
            f"load(path, functions={{{name!r}: Nonlinearity({name!r}, your_function)}})."
        )
    return rows[name]


def _tensor(dataset: h5py.Dataset) -> Tensor:
    return torch.from_numpy(dataset[()].copy()) if dataset.shape else torch.tensor(dataset[()])
