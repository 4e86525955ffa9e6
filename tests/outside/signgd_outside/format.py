"""A file format: a description as JSON text, which ``verify`` reads back and runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spikingjelly_signgd as sg
from spikingjelly_signgd.exporters.files import write_whole
from spikingjelly_signgd.exporters.hdf5.content import Content, Record
from spikingjelly_signgd.exporters.hdf5.definition import run_definition
from spikingjelly_signgd.exporters.hdf5.description import content_of, network_of
from spikingjelly_signgd.exporters.verification import Certificate, Request, as_arrays, compare

suffixes = (".outside",)


def write(network: sg.SpikingNetwork, path: Any, *, time_steps: int | None = None) -> str:
    content = content_of(network)
    data = {
        "nodes": [[node.kind, node.fields] for node in content.nodes],
        "outputs": content.outputs,
        "time_steps": time_steps or content.time_steps,
    }
    write_whole(path, json.dumps(data, default=_array).encode())
    return f"{len(content.nodes)} nodes as text"


def read(path: Any, *, functions: Any = None) -> sg.SpikingNetwork:
    try:
        data = json.loads(Path(path).read_text(), object_hook=_values)
        nodes = tuple(Record(kind, fields) for kind, fields in data["nodes"])
        content = Content(nodes, data["outputs"], data["time_steps"])
    except (LookupError, TypeError, ValueError) as error:
        raise sg.FormatError(f"'{path}' is no network of signgd-outside ({error}).") from error
    return network_of(content, functions or {}, path)


def verify(request: Request) -> Certificate:
    found = read(request.path, functions=request.functions)
    meant = found if request.network is None else request.network
    x, inputs = request.inputs([int(size) for size in found.input.shape[1:]])
    steps = request.time_steps or found.time_steps
    a, b = (run_definition(network, x, steps, dtype=torch.float64) for network in (found, meant))
    spikes = as_arrays(a.spikes), as_arrays(b.spikes)
    check = compare("read back and as given", *spikes, a.outputs, b.outputs, 0.0, True)
    content = hashlib.sha256(request.path.read_bytes()).hexdigest()
    return request.certificate("outside", content, inputs, len(x), steps, [check])


def embed(data: bytes, certificate: str) -> bytes:
    return json.dumps({**json.loads(data), "certificate": json.loads(certificate)}).encode()


def _array(value: Any) -> Any:
    return {"array": value.tolist(), "dtype": value.dtype.str, "shape": value.shape}


def _values(data: dict[str, Any]) -> Any:
    if "array" in data:
        return np.array(data["array"], data["dtype"]).reshape(data["shape"])
    lists = ("inputs", "shape", "kernel_size")
    return {k: tuple(v) if k in lists and isinstance(v, list) else v for k, v in data.items()}
