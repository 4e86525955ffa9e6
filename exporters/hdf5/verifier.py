"""``verify`` of a description: the NumPy runner beside the pure-torch definitions.

In float64 and float32, without delays and with one a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...core.inputs import Batch, Inputs, value_of
from ...core.network import Encoder, SpikingNetwork
from ...neurons.coding import PoissonCodingParameters, poisson_spikes
from ..verification import (
    ALONE,
    TOLERANCE,
    Certificate,
    Request,
    as_arrays,
    compare,
    compare_contents,
)
from .definition import run_definition
from .description import content_of, load
from .kinds import sparse
from .layout import read
from .runner import Runner


def verify(request: Request) -> Certificate:
    content = read(request.path)
    network = load(request.path, functions=request.functions)
    steps = request.time_steps or network.time_steps
    x, inputs = request.inputs_of(network)
    codes = {node.name for node in content.of("signgd") if sparse(node)}
    own = {name: _of_arrays(function) for name, function in request.functions.items()}
    checks = []
    if request.network is not None:
        meant = content_of(request.network)
        checks.append(
            compare_contents(
                "content of the file and of the network", _parts(content), _parts(meant)
            )
        )
    notes = ["read-outs are compared after the last step, spikes at all of them"]
    if request.network is None:
        notes.append(ALONE)
    for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
        runner = Runner(content, kind, own)
        view = "signed" if runner.view == "spike" else "decoded"
        batch = x.to(dtype)
        coded = _poisson_spikes(network, batch, steps)
        options: dict[str, Any] = {} if coded is None else {"input_spikes": coded}
        given: Any = (
            {name: value.numpy() for name, value in batch.tensors.items()}
            if isinstance(batch, Inputs)
            else batch.numpy()
        )
        found = runner.run(given, steps, **options)
        exactly = kind == "float64"
        wanted = run_definition(network, x, steps, spikes=view, dtype=dtype)
        checks.append(
            compare(
                f"NumPy runner and definitions, {kind}",
                found.spikes,
                as_arrays(wanted.spikes),
                found.outputs[steps],
                wanted.outputs,
                TOLERANCE[kind],
                exactly,
                codes,
            )
        )
        if exactly:
            late = runner.run(given, steps, delay=True, **options)
            shifted = {
                name: late.spikes[name][lag : lag + steps] for name, lag in late.lags.items()
            }
            checks.append(
                compare(
                    "NumPy runner with one step of delay a layer, shifted, and without",
                    shifted,
                    found.spikes,
                    late.outputs[steps],
                    found.outputs[steps],
                    0.0,
                    True,
                    codes,
                )
            )
    return request.certificate("hdf5", str(content.checksum), inputs, len(x), steps, checks, notes)


def _parts(content: Any) -> dict[str, Any]:
    """A description by node; not where it comes from and what calibration saw."""
    nodes = {record.name: {"kind": record.kind, **record.fields} for record in content.nodes}
    order = {"the network": [list(nodes), content.outputs, content.time_steps]}
    return {**nodes, **order}


def _of_arrays(function: Any) -> Any:
    """A function of tensors as one of arrays."""

    def run(*x: Any, **arguments: Any) -> Any:
        tensors = {
            key: torch.as_tensor(a) if isinstance(a, np.ndarray) else a
            for key, a in arguments.items()
        }
        return function(*(torch.as_tensor(a) for a in x), **tensors).numpy()

    return run


def _poisson_spikes(network: SpikingNetwork, batch: Batch, steps: int) -> Any:
    for node in network.of(Encoder):
        if node.coding == "poisson":
            x = value_of(batch, node.inputs[0])
            p = PoissonCodingParameters(node.scale, node.seed)
            return torch.stack([poisson_spikes(x, t, p) for t in range(1, steps + 1)]).numpy()
    return None
