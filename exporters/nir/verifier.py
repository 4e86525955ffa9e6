"""``verify`` of a NIR file: ``NirRunner``, which knows NIR's primitives alone, beside the
pure-torch definitions of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from ...core.network import GroupNeuron, SpikingNetwork
from ...core.structures import leaves
from ...errors import FormatError
from ..hdf5.definition import run_definition
from ..verification import (
    ALONE,
    FRAMES_ALONE,
    TOLERANCE,
    Certificate,
    Check,
    Request,
    as_arrays,
    compare,
    compare_contents,
    content_hash,
    other_steps,
)
from .reader import import_nir, read_graph, to_network
from .runner import NirRunner
from .writer import to_graph

# of a NIR node: what follows from the rest, or is for people
UNSAID = ("metadata", "input_type", "output_type", "input_shape")


def verify(request: Request) -> Certificate:
    nir = import_nir()
    graph = read_graph(request.path)
    metadata = graph.metadata or {}
    exact, one = (metadata.get("mode") == mode for mode in ("exact", "single step"))
    # NIR says that a neuron fires strictly above its threshold and is reset to v_reset
    runner = NirRunner(graph, ties=str(metadata.get("ties", "strict")))
    kind = "float64" if runner.dtype == np.float64 else "float32"
    notes, checks = [str(loss) for loss in str(metadata.get("losses", "")).splitlines()], []
    networks: dict[str, SpikingNetwork] = {}
    if request.network is not None:
        checks.append(_same_graph(graph, request.network))
        notes += other_steps(int(metadata.get("time_steps", 0)), request.network)
        networks["as it was written"] = request.network
    else:
        notes.append(ALONE)
    if exact:
        networks["in the file"] = to_network(graph, request.time_steps)
    if not networks:
        raise FormatError(
            f"'{request.path}' is of mode {metadata.get('mode', 'unknown')!r}, which is not read "
            "back as a network; pass verify(path, network=...) to compare it with what it was "
            "written from."
        )
    steps = request.time_steps or int(metadata.get("time_steps", 0))
    steps = steps or next(iter(networks.values())).time_steps
    shape = [int(n) for n in runner.nodes[runner.input_name].input_type["input"]]
    if metadata.get("stream") == "true":
        request = request.of_frames(len(shape))
        notes.append(FRAMES_ALONE)
    x, inputs = request.inputs(shape)
    dtype = torch.float64 if kind == "float64" else torch.float32
    names = {
        str((node.metadata or {}).get("name", key)): key
        for key, node in graph.nodes.items()
        if not isinstance(node, (nir.Input, nir.Output))
    }
    ends = {item["name"]: item for item in _parsed(metadata, "readouts", list)}
    for of, network in networks.items():
        if list(network.input.shape[1:]) != shape:
            raise FormatError(
                f"'{request.path}' takes inputs [B, {', '.join(map(str, shape))}], not those of "
                "this network; it was written from another."
            )
        neurons = network.neurons if one else network.of(GroupNeuron)
        at = _parsed(metadata, "values", dict) if one else names
        missing = [node.name for node in neurons if at.get(node.name) not in graph.nodes]
        if missing:
            raise FormatError(
                f"'{request.path}' has no nodes for {', '.join(missing)}; it was written from "
                "another network."
            )
        record = [at[node.name] for node in neurons]
        sent = runner.run(x.numpy(), steps, record=record)
        passed = {node.name: sent[at[node.name]] for node in neurons}
        if not one:  # an IF node sends spikes, a group's subgraph n theta
            passed = {
                node.name: np.rint(
                    passed[node.name] / (np.asarray(node.parameters.theta) if exact else 1.0)
                ).astype(np.int64)
                for node in network.of(GroupNeuron)
            }
        unknown = set(leaves(network.outputs)) - set(ends)
        if unknown:
            raise FormatError(
                f"'{request.path}' has no outputs {', '.join(sorted(unknown))}; it was written "
                "from another network."
            )
        readouts = [_readout(sent, ends[name]) for name in leaves(network.outputs)]
        wanted = run_definition(network, x, steps, dtype=dtype, values=one)
        checks.append(
            compare(
                f"NIR runner and definitions of the network {of}, {kind}",
                passed,
                as_arrays(wanted.spikes),
                readouts,
                leaves(wanted.outputs),
                TOLERANCE[kind],
                exact or one,
            )
        )
    if exact:
        notes.append(
            "v(0) is folded into the thresholds: if a potential equals a threshold to the last "
            "bit, rounding may move a spike although the file is correct"
        )
    elif one:
        notes.append(
            "values of neurons are compared, and their potentials lie on a threshold only where a "
            "sum does; the reader's own sums are rounded in their own order"
        )
    else:
        notes.append(
            "a platform file is not exact; the figures of the replay show the error due to NIR's "
            "own semantics"
        )
    return request.certificate(
        "nir",
        content_hash(request.path),
        inputs,
        len(x),
        steps,
        checks,
        notes,
        {"nir": version("nir")},
        complete=exact or one,
    )


def _parsed(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    """What the metadata hold as JSON, an empty ``kind`` where they do not; or FormatError."""
    text = metadata.get(key)
    if text is None:
        return kind()
    try:
        value = json.loads(text)
        of = value.values() if kind is dict else [item["name"] + item["output"] for item in value]
        sound = isinstance(value, kind) and all(isinstance(item, str) for item in of)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise FormatError(
            f"the metadata {key!r} of this NIR file are damaged; write it again with write_nir."
        )
    return value


def _same_graph(graph: Any, network: SpikingNetwork) -> Check:
    """The file's nodes, edges and metadata, and those of the network written again."""
    metadata = graph.metadata or {}
    found, best = _graph_parts(graph), None
    for options in _options(metadata):
        again, _ = to_graph(network, **options)
        check = compare_contents(
            "content of the file and of the network", found, _graph_parts(again)
        )
        best = check if best is None or check.mismatches < best.mismatches else best
    assert best is not None
    return best


def _options(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``to_graph`` may have been called with for a file that says this of itself."""
    if "reader" in metadata:
        return [{"reader": str(metadata["reader"])}]
    known: dict[str, Any] = {
        "mode": str(metadata.get("mode", "exact")),
        "dialect": str(metadata.get("dialect", "nir")),
        "time_steps": int(metadata["time_steps"]) if "time_steps" in metadata else None,
    }
    return [known | {"pooling": pooling} for pooling in ("pool", "conv")]


def _graph_parts(graph: Any, where: str = "") -> dict[str, Any]:
    """Arrays by node, edges, and the metadata that say how the graph is meant."""
    parts: dict[str, Any] = {}
    for name, node in sorted(graph.nodes.items()):
        if hasattr(node, "nodes"):
            parts |= _graph_parts(node, f"{where}{name}/")
            continue
        kept = {k: v for k, v in vars(node).items() if k not in UNSAID}
        parts[f"{where}{name}"] = {
            "type": type(node).__name__,
            **{key: _comparable(value) for key, value in sorted(kept.items())},
        }
    said = ("mode", "dialect", "time_steps", "dt", "readouts", "outputs", "neurons")
    metadata = graph.metadata or {}
    parts[f"{where}edges"] = sorted([str(a), str(b)] for a, b in graph.edges)
    if not where:
        known = [*said, *(key for key in ("stream", "reader", "ties", "values") if key in metadata)]
        parts["metadata"] = {key: str(metadata.get(key, "")) for key in known}
    return parts


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _comparable(v) for k, v in value.items()}
    if isinstance(value, (str, type(None))):
        return value
    array = np.asarray(value)
    return array if array.dtype.kind == "f" else array.astype(str).ravel().tolist()


def _readout(sent: Mapping[str, np.ndarray], end: Mapping[str, str]) -> np.ndarray:
    values = sent[end["output"]].astype("float64")
    return values.mean(0) if end["readout"] == "mean" else values[-1]  # type: ignore[no-any-return]
