"""Reads NIR graphs, with checks, and turns them back into networks of group neurons.

A group neuron is recognised by its structure, never by metadata alone: one integrator, thresholds
that read it, one negative scale that feeds their sum back and one positive that sends it on.
Metadata only restore names and what does not spike, and only where they agree with the arrays.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.network import Average, GroupNeuron, Input, Linear, Node, SpikingNetwork
from ...core.operations import apply
from ...core.structures import fill, leaves, untagged
from ...errors import BackendUnavailable, FormatError
from ...neurons.group import GroupNeuronParameters
from ...neurons.nonlinearities import NONLINEARITIES
from ..files import Seal
from .graph import (
    Array,
    group_thresholds,
    in_type,
    negative_thresholds,
    unpacked,
)

DEEPEST = 32  # groups of HDF5 within groups, two for each graph
MOST_NODES = 100_000
MOST_VALUES = 2**31  # of one node
INFLATION = 1100  # deflate makes at most 1032 bytes of one
SMALL = 64 * 2**20  # bytes that any file may hold
SEAL = Seal(b"\nspikingjelly_signgd: sha256 of all bytes before this line ")
embed = SEAL.with_certificate


def import_nir() -> Any:
    try:
        import nir
    except ModuleNotFoundError as error:
        if error.name not in ("nir", "h5py"):
            raise
        raise BackendUnavailable(
            "NIR files need the package 'nir': pip install 'spikingjelly-signgd[nir]'"
        ) from error
    return nir


def read_graph(path: str | os.PathLike[str]) -> Any:
    """``nir.read`` with errors that say what is wrong, and a bound on memory.

    A file of ``write_nir`` is sealed: one whose bytes changed is refused. Shapes are left to who
    uses the graph: nir's own check refuses grouped convolutions and kernels that are not square.
    """
    nir = import_nir()
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'")
    SEAL.check(path)
    try:
        with h5py.File(path, "r") as file:
            _survey(file, path, set(nir.ir.__all__))
            if file["node/type"][()] != b"NIRGraph":
                raise FormatError(f"'{path}' holds a single node, not a graph.")
        graph = nir.read(path, type_check=False)
    except FormatError:
        raise
    except Exception as error:  # h5py and nir raise all kinds on nonsense, some without a word
        raise FormatError(
            f"'{path}' is not a whole NIR file ({error or type(error).__name__}); write it again."
        ) from error
    return graph


def _survey(file: Any, path: Path, known: set[str]) -> None:
    """Before anything is read: types that nir knows, and arrays that the file can hold."""
    import h5py

    if not isinstance(file.get("node"), h5py.Group):
        raise FormatError(f"'{path}' has no group /node, so it is not a NIR file.")
    allowed = max(SMALL, INFLATION * path.stat().st_size)
    groups, total, count = [(file["node"], "", 0)], 0, 0
    while groups:
        group, where, depth = groups.pop()
        count += 1
        if depth > DEEPEST or count > MOST_NODES:
            raise FormatError(f"'{path}' nests graphs without an end, or holds too many nodes.")
        for key in group:
            item = group.get(key)
            if isinstance(item, h5py.Dataset):
                total += item.nbytes
            elif isinstance(item, h5py.Group):
                groups.append((item, f"{where}{key}/" if key != "nodes" else where, depth + 1))
        if total > allowed:
            raise FormatError(
                f"'{path}' declares arrays of more than {allowed} bytes, which a file of its size "
                "cannot hold; it is damaged."
            )
        kind = group.get("type")
        if isinstance(kind, h5py.Dataset) and kind.shape == () and "metadata/" not in where:
            name = _text(kind[()])
            if name not in known:
                raise FormatError(
                    f"node '{where.rstrip('/')}' of '{path}' is of type {name!r}, which nir does "
                    "not have; read it with the tool that wrote it."
                )


def to_network(graph: Any, time_steps: int | None = None) -> SpikingNetwork:
    """The network that a graph computes; FormatError names nodes without a counterpart."""
    data = graph.metadata or {}
    try:
        steps = int(data["time_steps"] if time_steps is None else time_steps)
    except (KeyError, TypeError, ValueError):
        steps = 0
    if steps < 1:
        raise FormatError(
            "this NIR file does not say for how many time steps it was made; pass "
            "load(path, time_steps=...)."
        )
    try:
        return _Reader(graph, steps).network()
    except FormatError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise FormatError(f"this NIR graph is inconsistent ({e}); write it again.") from e


class _Reader:
    def __init__(self, graph: Any, time_steps: int) -> None:
        self.graph, self.time_steps = graph, time_steps
        self.inputs: dict[str, list[str]] = defaultdict(list)
        for source, target in graph.edges:
            for end in (source, target):
                if end not in graph.nodes:
                    raise FormatError(
                        f"the edge {(source, target)} names '{end}', which is no node."
                    )
            self.inputs[target].append(source)
        self.nodes: list[Node] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # by the network's names, without the batch
        self.names: dict[str, str] = {}  # what became of each NIR node
        self.taken: set[str] = set()

    def network(self) -> SpikingNetwork:
        import nir

        data = self.graph.metadata or {}
        described = {
            item["output"]: item
            for item in _json(data, "readouts", [])
            if isinstance(item, dict) and {"output", "readout", "name"} <= set(item)
        }
        outputs: list[str] = []
        of_output: dict[str, str] = {}
        for key in self.order():
            node = self.graph.nodes[key]
            if isinstance(node, nir.Input):
                shape = _shape(node.input_type["input"], key)
                self.emit(key, Input(name=self.unique("input"), shape=_sized(shape)), shape)
                continue
            x = self.summed(key)
            if not isinstance(node, nir.Output):
                self.read(key, node, x)
                continue
            item = described.get(key, {"readout": "last", "name": x})
            if item["readout"] == "mean":
                name = self.unique(item["name"])
                shape = self.shapes[x]
                self.nodes.append(Average(name=name, inputs=(x,), shape=_sized(shape)))
                x = name
            outputs.append(x)
            of_output[item["name"]] = x
        starts = [node for node in self.graph.nodes.values() if isinstance(node, nir.Input)]
        if len(starts) != 1 or not outputs:
            raise FormatError("a network has one nir.Input and at least one nir.Output.")
        structure = _json(data, "outputs", None)
        structure = None if structure is None else untagged(structure)
        if structure is None or not set(leaves(structure)) <= set(of_output):
            structure = outputs[0] if len(outputs) == 1 else outputs
        else:
            structure = fill(structure, of_output)
        provenance = _json(data, "provenance", {})
        stream = data.get("stream") == "true"
        return SpikingNetwork(tuple(self.nodes), structure, self.time_steps, {}, provenance, stream)

    def order(self) -> Iterator[str]:
        """Topological; of those that could be next, the first in the file's order."""
        waiting = {key: len(self.inputs[key]) for key in self.graph.nodes}
        readers: dict[str, list[str]] = defaultdict(list)
        for source, target in self.graph.edges:
            readers[source].append(target)
        ready = [key for key, n in waiting.items() if n == 0]
        done = 0
        while ready:
            key = ready.pop(0)
            done += 1
            yield key
            for target in readers[key]:
                waiting[target] -= 1
                if waiting[target] == 0:
                    ready.append(target)
        if done < len(waiting):
            left = [key for key, n in waiting.items() if n > 0]
            raise FormatError(
                f"the nodes {', '.join(map(repr, left[:5]))} lie on or behind a cycle outside of a "
                "group neuron's subgraph, and a SpikingNetwork has none. Run the file with "
                "NirRunner(path)."
            )

    def summed(self, key: str) -> str:
        """Several edges into one node are added, in their order."""
        sources = [self.names[source] for source in self.inputs[key]]
        if not sources:
            raise FormatError(f"node '{key}' has no input; add an edge to it or remove it.")
        total = sources[0]
        for source in sources[1:]:
            if self.shapes[source] != self.shapes[total]:
                raise FormatError(
                    f"edges of shapes {list(self.shapes[total])} and {list(self.shapes[source])} "
                    f"lead into node '{key}', and only equal shapes add up."
                )
            name = self.unique(f"{key}.sum")
            attributes = {"coefficients": [1.0, 1.0]}
            self.linear(name, "add", (total, source), attributes, {})
            total = name
        return total

    def read(self, key: str, node: Any, x: str) -> None:
        import nir

        if isinstance(node, nir.NIRGraph):
            self.neuron(key, node, x)
            return
        made = NODES.get(type(node).__name__)
        if made is None:
            raise FormatError(
                f"node '{key}' is a nir.{type(node).__name__}, which has no counterpart in a "
                "SpikingNetwork (its neurons subtract their threshold, NIR's are set to "
                'v_reset). Run the file with NirRunner(path), or write it with mode="exact".'
            )
        try:
            op, attributes, tensors = made(node, self.shapes[x])
            name = self.named(key, node)
            self.linear(name, op, (x,), attributes, tensors)
        except FormatError as error:
            raise FormatError(f"node '{key}' (nir.{type(node).__name__}): {error}") from error
        except (RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise FormatError(
                f"node '{key}' (nir.{type(node).__name__}) does not fit its input of shape "
                f"{list(self.shapes[x])}: {error}"
            ) from error
        self.names[key] = name

    def neuron(self, key: str, graph: Any, x: str) -> None:
        p, shape = group_parameters(key, graph)
        if shape != self.shapes[x]:
            raise FormatError(
                f"the group neurons '{key}' are {list(shape)}, but read {list(self.shapes[x])}."
            )
        data = graph.metadata or {}
        function = NONLINEARITIES.get(str(data.get("function")))
        arguments = _json(data, "arguments", None)
        if function is None or not _numbers(arguments):  # what it computes of a constant input
            function = NONLINEARITIES["qcfs"]
            levels = p.members * self.time_steps
            arguments = {"v_threshold": p.v_threshold, "levels": levels}
            if isinstance(p.v_threshold, Tensor):  # qcfs has one for all
                function, arguments = NONLINEARITIES["relu"], {}
        channel = _json(data, "channel", None)
        node = GroupNeuron(
            name=self.named(key, graph),
            inputs=(x,),
            shape=_sized(shape),
            function=function,
            arguments=arguments,
            channel=channel if isinstance(channel, int) else None,
            module=str(data.get("module", "")),
            members=p.members,
            v_threshold=p.v_threshold,
            initial_charge=p.initial_charge,
            signed=p.signed,
        )
        self.emit(key, node, shape)

    def linear(
        self,
        name: str,
        op: str,
        inputs: tuple[str, ...],
        attributes: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Appends the node; its shape is what torch makes of one input, without computing it."""
        dtype = next((t.dtype for t in tensors.values()), torch.float32)
        arguments = [
            torch.empty(1, *self.shapes[source], dtype=dtype, device="meta") for source in inputs
        ]
        weights = {key: value.to("meta") for key, value in tensors.items()}
        shape = tuple(apply(op, arguments, attributes, weights, 1).shape[1:])
        node = Linear(
            name=name,
            inputs=inputs,
            shape=_sized(shape),
            op=op,
            attributes=attributes,
            tensors=tensors,
        )
        self.nodes.append(node)
        self.shapes[name] = shape

    def emit(self, key: str, node: Node, shape: tuple[int, ...]) -> None:
        self.nodes.append(node)
        self.names[key] = node.name
        self.shapes[node.name] = shape

    def named(self, key: str, node: Any) -> str:
        return self.unique(str((node.metadata or {}).get("name", key)))

    def unique(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


# -- group neurons ----------------------------------------------------------------------------


def group_parameters(where: str, graph: Any) -> tuple[GroupNeuronParameters, tuple[int, ...]]:
    """The parameters of a group-neuron subgraph and the shape of its neurons.

    Raises FormatError where the graph is another, which it says.
    """
    parts = _signed_parts(graph) or _parts(where, graph)
    nodes = graph.nodes
    shape = _shape(nodes[parts.integrator].r.shape, where)
    arrays = {
        name: value
        for name, node in nodes.items()
        for key in ("r", "scale", "threshold")
        if (value := getattr(node, key, None)) is not None
    }
    if any(tuple(a.shape) != shape for a in arrays.values()):
        raise _not_a_group(where, "its arrays differ in shape")
    if not all(np.isfinite(a).all() for a in arrays.values()):
        raise FormatError(f"'{where}': its arrays are not finite. Write the file again.")
    theta = arrays[parts.send]
    if any((arrays[name] != 1).any() for name in parts.integrators) or not (theta > 0).all():
        raise _not_a_group(where, "r is not 1, or its output scale is not positive")
    if (arrays[parts.inhibit] != -theta).any():
        raise _not_a_group(
            where,
            "the value that it sends and the value that it subtracts from the potential differ",
        )
    found = np.sort(np.stack([arrays[name] for name in parts.members]), 0)
    below = None
    if parts.negatives:
        below = np.sort(np.stack([arrays[name] for name in parts.negatives]), 0)
        unders = np.sort(np.stack([arrays[name] for name in parts.unders]), 0)
        k = np.arange(1, len(unders) + 1).reshape(-1, *[1] * len(shape))
        mirrored = all((arrays[name] == -1).all() for name in parts.mirrors)
        if not mirrored or not ((k - 1 <= unders) & (unders < k)).all():
            raise _not_a_group(where, "it does not count what it has sent")
    signed, members, kind = below is not None, len(found), found.dtype
    for p in _candidates(graph.metadata or {}, theta, found, signed):
        same = (_spread(group_thresholds(p, kind), found) == found).all()
        if below is not None:
            same = same and (_spread(negative_thresholds(p, kind), below) == below).all()
        if same:
            return p, shape
    wide = theta.astype(np.float64)
    v_threshold, charge = (_plain(v) for v in (wide * members, 1 - found[0] / wide))
    nearest = in_type(GroupNeuronParameters(members, v_threshold, charge, signed), kind)
    off = np.abs(_spread(group_thresholds(nearest, kind), found) - found)
    if below is not None:
        off = np.maximum(off, np.abs(_spread(negative_thresholds(nearest, kind), below) - below))
    if (off > 8 * members * theta * np.finfo(kind).eps).any():
        raise _not_a_group(where, "its thresholds are not spaced by theta")
    return nearest, shape


@dataclass(frozen=True)
class _Roles:
    """The nodes of a group neuron's subgraph by what they do; the second half of signed ones."""

    integrator: str
    integrators: tuple[str, ...]
    members: list[str]
    inhibit: str
    send: str
    negatives: list[str] = field(default_factory=list)
    unders: list[str] = field(default_factory=list)
    mirrors: tuple[str, ...] = ()


def _parts(where: str, graph: Any) -> _Roles:
    kinds = _kinds(graph)
    counts = {kind: len(names) for kind, names in kinds.items()}
    members = counts.pop("Threshold", 0)
    if members < 1 or counts != {"Input": 1, "I": 1, "Scale": 2, "Output": 1}:
        raise _not_a_group(where, f"its nodes are {dict(sorted(counts.items()))} and {members} "
                           "Threshold")  # fmt: skip
    (start,), (integrator,), (out,) = kinds["Input"], kinds["I"], kinds["Output"]
    names = kinds["Threshold"]
    first, second = kinds["Scale"]
    inhibit, send = (first, second) if (first, integrator) in graph.edges else (second, first)
    edges = {(start, integrator), (inhibit, integrator), (send, out)}
    for name in names:
        edges |= {(integrator, name), (name, inhibit), (name, send)}
    if set(graph.edges) != edges or len(graph.edges) != len(edges):
        raise _not_a_group(where, "its edges differ")
    return _Roles(integrator, (integrator,), names, inhibit, send)


def _signed_parts(graph: Any) -> _Roles | None:
    """The roles of a signed group neuron, None where the edges are others."""
    kinds = _kinds(graph)
    thresholds = len(kinds["Threshold"])
    counts = {kind: len(names) for kind, names in kinds.items() if kind != "Threshold"}
    if thresholds % 3 or counts != {"Input": 1, "I": 2, "Scale": 5, "Output": 1}:
        return None
    (start,), (out,) = kinds["Input"], kinds["Output"]
    readers: dict[str, list[str]] = defaultdict(list)
    for source, target in graph.edges:
        readers[source].append(target)
    scales = set(kinds["Scale"])
    try:
        (integrator,) = readers[start]
        (number,) = set(kinds["I"]) - {integrator}
        (mirror,) = scales & set(readers[integrator])
        (number_mirror,) = readers[number]
        (inhibit,) = [name for name in scales if readers[name] == [integrator]]
        (send,) = [name for name in scales if readers[name] == [out]]
        (total,) = scales - {mirror, number_mirror, inhibit, send}
    except ValueError:
        return None
    members = [name for name in readers[integrator] if name != mirror]
    negatives, unders = readers[mirror], readers[number_mirror]
    edges = {(start, integrator), (inhibit, integrator), (send, out), (number, number_mirror)}
    edges |= {(integrator, name) for name in (mirror, *members)}
    edges |= {(mirror, name) for name in negatives} | {(name, total) for name in negatives}
    edges |= {(number_mirror, name) for name in unders}
    counted = (*members, total, *unders)
    edges |= {(name, reader) for name in counted for reader in (inhibit, send, number)}
    if set(graph.edges) != edges or len(graph.edges) != len(edges):
        return None
    if not len(members) == len(negatives) == len(unders):
        return None
    mirrors = (mirror, number_mirror, total)
    return _Roles(
        integrator, (integrator, number), members, inhibit, send, negatives, unders, mirrors
    )


def _kinds(graph: Any) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, node in graph.nodes.items():
        kinds[type(node).__name__].append(name)
    return kinds


def _candidates(
    data: Mapping[str, Any], theta: Array, thresholds: Array, signed: bool
) -> Iterator[GroupNeuronParameters]:
    """Parameters that may have made these arrays: as the metadata say, else as computed."""
    members = len(thresholds)
    charge = 1 - thresholds[0].astype(np.float64) / theta
    tries: list[tuple[Any, Any]] = []
    try:
        tries.append((unpacked(data["v_threshold"]), unpacked(data["initial_charge"])))
    except (KeyError, RuntimeError, TypeError, ValueError):
        pass
    wide = theta.astype(np.float64) * members
    tries += [(_plain(wide), _plain(np.round(charge * 64) / 64)), (_plain(wide), _plain(charge))]
    for v_threshold, initial in tries:
        try:
            p = in_type(GroupNeuronParameters(members, v_threshold, initial, signed), theta.dtype)
            same = np.isclose(np.broadcast_to(np.asarray(p.theta), theta.shape), theta, rtol=1e-6)
        except (TypeError, ValueError):
            continue
        if same.all() and np.isfinite(np.asarray(p.initial_charge)).all():
            yield p


def _plain(values: Array) -> float | Tensor:
    """A number where all are equal."""
    unique = np.unique(values)
    return float(unique[0]) if unique.size == 1 else torch.from_numpy(np.array(values))


def _spread(made: Array, found: Array) -> Array:
    """Thresholds [m, ...] with ones in between, so that they broadcast to [m, *shape]."""
    return made.reshape(len(made), *[1] * (found.ndim - made.ndim), *made.shape[1:])


def _not_a_group(where: str, what: str) -> FormatError:
    return FormatError(
        f"the subgraph '{where}' is not a group neuron: {what}. A group neuron is one I, m "
        "Thresholds that read it, a negative Scale back to it and a positive one to the output. "
        "Run the file with NirRunner(path)."
    )


# -- linear nodes -----------------------------------------------------------------------------

Made = tuple[str, dict[str, Any], dict[str, Tensor]]


def _affine(node: Any, shape: tuple[int, ...]) -> Made:
    if node.weight.ndim != 2 or len(shape) != 1:
        raise FormatError("only matrices that act on one dimension are read.")
    tensors = {"weight": _tensor(node.weight)}
    if hasattr(node, "bias"):
        tensors["bias"] = _tensor(node.bias)
    return "linear", {}, tensors


def _scale(node: Any, shape: tuple[int, ...]) -> Made:
    if tuple(np.shape(node.scale)) != shape:
        raise FormatError(f"its scale is {list(np.shape(node.scale))}, its input {list(shape)}.")
    return "affine", {"shape": ["1*batch", *shape]}, {"weight": _tensor(node.scale)}


def _conv(node: Any, shape: tuple[int, ...]) -> Made:
    spatial = node.weight.ndim - 2
    if len(shape) != spatial + 1 or spatial not in (1, 2):
        raise FormatError(f"its input is {list(shape)}.")
    if isinstance(node.padding, (str, bytes)):
        raise FormatError("its padding is a word; write it as numbers.")
    attributes: dict[str, Any] = {
        key: _sizes(getattr(node, key), spatial) for key in ("stride", "padding", "dilation")
    }
    attributes["groups"] = int(node.groups)
    return "conv", attributes, {"weight": _tensor(node.weight), "bias": _tensor(node.bias)}


def _avg_pool(node: Any, shape: tuple[int, ...]) -> Made:
    attributes: dict[str, Any] = {
        key: _sizes(getattr(node, key), 2) for key in ("kernel_size", "stride", "padding")
    }
    attributes |= {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    return "avg_pool", attributes, {}


def _sum_pool(node: Any, shape: tuple[int, ...]) -> Made:
    op, attributes, tensors = _avg_pool(node, shape)
    return op, attributes | {"divisor_override": 1}, tensors


def _flatten(node: Any, shape: tuple[int, ...]) -> Made:
    start, end = (int(d) % len(shape) for d in (node.start_dim, node.end_dim))
    merged = int(np.prod(shape[start : end + 1]))
    return "reshape", {"shape": ["1*batch", *shape[:start], merged, *shape[end + 1 :]]}, {}


NODES: dict[str, Callable[[Any, tuple[int, ...]], Made]] = {
    "Affine": _affine,
    "Linear": _affine,
    "Scale": _scale,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "AvgPool2d": _avg_pool,
    "SumPool2d": _sum_pool,
    "Flatten": _flatten,
}


def _tensor(value: Any) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise FormatError("its arrays hold NaN, infinity, or something that is not a number.")
    return torch.from_numpy(array.copy())


def _sizes(value: Any, spatial: int) -> list[int]:
    sizes = np.broadcast_to(np.asarray(value).reshape(-1), spatial)
    return [int(v) for v in sizes]


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        raise FormatError(f"node '{where}' does not say its shape.")
    shape = tuple(int(v) for v in np.asarray(value).reshape(-1))
    if any(size < 1 for size in shape) or prod(shape) > MOST_VALUES:
        raise FormatError(f"node '{where}' has the shape {list(shape)}, which no network has.")
    return shape


def _sized(shape: tuple[int, ...]) -> tuple[int | str, ...]:
    return ("1*batch", *shape)


def _text(value: Any) -> str:
    return value.decode("utf8", "replace") if isinstance(value, bytes) else str(value)


def _json(data: Mapping[str, Any], name: str, default: Any) -> Any:
    """Metadata may be anyone's: what does not parse counts as absent."""
    try:
        return json.loads(_text(data[name]))
    except (KeyError, ValueError):
        return default


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())
