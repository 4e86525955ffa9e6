"""The HDF5 description of a SpikingNetwork (``docs/format.md``): one writer, one reader.

``layout.py`` holds the layout and the checks; here tensors become arrays, and rows and schedules
become what names them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ...core.network import NODES, Node, SpikingNetwork
from ...core.registry import look_up
from ...core.training import check_collected
from ...errors import FormatError
from ...names import named_arguments
from ...neurons.nonlinearities import NONLINEARITIES, Nonlinearity
from ...neurons.schedules import SCHEDULES, Schedule, schedule_from_dict
from ..formats import by_suffix
from .content import Content, Record
from .layout import read, require_h5py, write

Function = Nonlinearity | Callable[..., Tensor]


@named_arguments
def save(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the description; the file at ``path`` is replaced only when the new one is whole.

    ``class_names`` are those of the outputs, kept as ``provenance["class_names"]``. Raises
    FormatError for what the format cannot hold or the disk cannot take, BackendUnavailable without
    h5py.
    """
    require_h5py()
    if not isinstance(network, SpikingNetwork):
        raise FormatError(
            f"save takes the SpikingNetwork that convert returned, not {type(network).__name__}; "
            "get it from a built module as module.network, from a trainable one by "
            "collect(module)."
        )
    other = by_suffix(path)
    if other not in (None, "hdf5"):
        raise FormatError(
            f"save writes HDF5, but '{path}' ends as files of the format {other} do; write that by "
            "export(network, path), or end the file in .h5."
        )
    write(content_of(network, class_names), path)


def load(
    path: str | os.PathLike[str], *, functions: Mapping[str, Function] | None = None
) -> SpikingNetwork:
    """Read a description; the source model's code is not needed.

    ``functions`` gives the caller's own nonlinearities by name, each a row or a callable. Raises
    FormatError for a file that is not a description, is damaged, or is of a newer format.
    """
    return network_of(read(path), functions or {}, path)


def content_of(network: SpikingNetwork, class_names: Sequence[str] | None = None) -> Content:
    """The network as plain data."""
    check_collected(network)
    provenance = dict(network.provenance)
    names = provenance.pop("class_names", None) if class_names is None else class_names
    if names is not None and (
        not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names)
    ):
        raise FormatError(f"class_names is a list of strings, one per class, but it is {names!r}.")
    return Content(
        nodes=tuple(
            Record(node.kind, {f.name: _plain(node, f.name) for f in fields(node)})
            for node in network.nodes
        ),
        outputs=network.outputs,
        time_steps=network.time_steps,
        statistics={
            name: {key: _array(value, f"statistics of '{name}'") for key, value in values.items()}
            for name, values in network.statistics.items()
        },
        provenance=provenance,
        class_names=None if names is None else tuple(names),
        stream=network.stream,
        carries=dict(network.carries),
    )


def _plain(node: Node, name: str) -> Any:
    value = getattr(node, name)
    if isinstance(value, Tensor):
        return _array(value, f"'{node.name}'")
    if isinstance(value, Nonlinearity):
        return {
            "name": value.name,
            "arity": value.arity,
            "fires_at_tie": value.fires_at_tie,
            "elementwise": value.elementwise,
            "selects": value.selects,
            "own": value != NONLINEARITIES.get(value.name),
        }
    if isinstance(value, Mapping):
        return {
            key: _array(item, f"'{node.name}'") if isinstance(item, Tensor) else item
            for key, item in value.items()
        }
    if isinstance(value, Schedule):
        if not isinstance(value, tuple(SCHEDULES.values())):
            raise FormatError(
                f"'{node.name}' has the schedule {value!r}, which a description cannot hold; write "
                "its step sizes out as ListSchedule([schedule(t) for t in range(1, T + 1)])."
            )
        return value.to_dict()
    # a whole number is the float that is read where the field is not written
    return float(value) if name == "dead_zone" else value


def _array(tensor: Tensor, where: str) -> Any:
    if tensor.dtype == torch.bfloat16:
        raise FormatError(
            f"{where} holds bfloat16 tensors, which HDF5 and NumPy do not have; convert the model "
            "as model.float()."
        )
    return tensor.detach().cpu().contiguous().numpy()


def network_of(
    content: Content, functions: Mapping[str, Function], path: str | os.PathLike[str] = ""
) -> SpikingNetwork:
    """Plain data as a network; ``path`` is named in errors."""
    provenance = dict(content.provenance)
    if content.class_names is not None:
        provenance["class_names"] = list(content.class_names)
    statistics = {
        name: {key: _tensor(value) for key, value in values.items()}
        for name, values in content.statistics.items()
    }
    try:
        nodes = tuple(_node(record, functions) for record in content.nodes)
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(
            f"'{path}' is not a whole spiking-network description ({error})."
        ) from error
    return SpikingNetwork(
        nodes,
        content.outputs,
        content.time_steps,
        statistics,
        provenance,
        content.stream,
        content.carries,
    )


def _node(record: Record, functions: Mapping[str, Function]) -> Node:
    kind = look_up(NODES, record.kind)
    if kind is None:
        raise FormatError(f"'{record.name}' is of kind {record.kind!r}; known: {', '.join(NODES)}.")
    return kind(
        **{f.name: _field(f.name, record[f.name], functions, record.name) for f in fields(kind)}
    )


def _field(name: str, value: Any, functions: Mapping[str, Function], where: str) -> Any:
    if name == "function":
        return _row(value, functions, where)
    if name == "schedule":
        return None if value is None else schedule_from_dict(value)
    if isinstance(value, Mapping):
        return {k: _tensor(v) if hasattr(v, "dtype") else v for k, v in value.items()}
    return _tensor(value) if hasattr(value, "dtype") else value


def _row(data: Mapping[str, Any], functions: Mapping[str, Function], where: str) -> Nonlinearity:
    """The caller's function before the package's row; its flags are those of the network."""
    name = data["name"]
    found = functions.get(name) or (None if data["own"] else look_up(NONLINEARITIES, name))
    if found is None:
        raise FormatError(
            f"'{where}' uses the nonlinearity {name!r}, which is not one of this package's; pass "
            f"load(path, functions={{{name!r}: your_function}})."
        )
    known = ("arity", "fires_at_tie", "elementwise", "selects")  # the last came with 1.2
    flags = {key: data[key] for key in known if key in data}
    if not isinstance(found, Nonlinearity):
        return Nonlinearity(name, found, **flags)
    other = {key: getattr(found, key) for key in flags}
    if other != flags:
        raise FormatError(
            f"'{where}' was written with a nonlinearity {name!r} of {flags}, but the one given has "
            f"{other}; pass that one, or the bare function, which takes the file's."
        )
    return found


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy()) if array.shape else torch.tensor(array[()])
