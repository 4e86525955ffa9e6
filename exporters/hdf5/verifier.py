"""``verify`` of a description: the NumPy runner beside the pure-torch definitions.

In float64 and float32, without delays and with one a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...core.inputs import Batch, Inputs, samples_of, value_of
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
from .definition import DefinitionRun, run_clip_by_definition, run_definition
from .description import content_of, load
from .kinds import sparse
from .layout import read
from .runner import Result, Runner


def verify(request: Request) -> Certificate:
    content = read(request.path)
    network = load(request.path, functions=request.functions)
    steps = request.time_steps or network.time_steps
    stream = network.takes_clips
    x, inputs = request.clip_of(network) if stream else request.inputs_of(network)
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
    if stream:
        notes = ["read-outs are compared after each frame, spikes at all steps"]
    if request.network is None:
        notes.append(ALONE)
    for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
        runner = Runner(content, kind, own)
        replay = _Replay(network, runner, x.to(dtype), steps, stream)
        found, exactly = replay.found(), kind == "float64"
        wanted = replay.wanted(x, dtype)
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
        if exactly and not network.carries:  # which are there a frame later
            late = replay.found(delay=True)
            shifted = {
                name: late.spikes[name][lag : lag + replay.duration]
                for name, lag in late.lags.items()
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
    frames = samples_of(x) if stream else None
    samples = samples_of(x, int(stream))
    return request.certificate(
        "hdf5", str(content.checksum), inputs, samples, steps, checks, notes, frames=frames
    )


class _Replay:
    """One input, or one clip whose state is kept from frame to frame, in both programs."""

    def __init__(
        self, network: SpikingNetwork, runner: Runner, x: Batch, steps: int, stream: bool
    ) -> None:
        self.network, self.runner, self.steps, self.stream = network, runner, steps, stream
        self.duration = steps * (samples_of(x) if stream else 1)
        coded = None if stream else _poisson_spikes(network, x, steps)
        self.options: dict[str, Any] = {} if coded is None else {"input_spikes": coded}
        if stream:
            self.options = {"sequence": True, "keep_state": True}
        self.x: Any = (
            {name: value.numpy() for name, value in x.tensors.items()}
            if isinstance(x, Inputs)
            else x.numpy()
        )

    def found(self, **options: Any) -> Result:
        self.runner.reset()
        return self.runner.run(self.x, self.steps, **self.options, **options)

    def wanted(self, x: Batch, dtype: torch.dtype) -> DefinitionRun:
        spikes = self.runner.view == "spike" and (self.network.stream or not self.stream)
        run = run_clip_by_definition if self.stream else run_definition
        view = "signed" if spikes else "decoded"
        return run(self.network, x, self.steps, spikes=view, dtype=dtype)


def _parts(content: Any) -> dict[str, Any]:
    """A description by node; not where it comes from and what calibration saw."""
    nodes = {record.name: {"kind": record.kind, **record.fields} for record in content.nodes}
    order = {"the network": [list(nodes), content.outputs, content.time_steps]}
    if content.stream or content.carries:
        order["the network"] += [content.stream, dict(content.carries)]
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
