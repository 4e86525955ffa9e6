"""``verify`` of a netx file: Lava itself, where LAVA_PYTHON names one, beside ``Netx``, which has
Lava's arithmetic in NumPy."""

from __future__ import annotations

from typing import Any

from ...core.network import GroupNeuron, SpikingNetwork
from ...errors import InputError
from ..hdf5.definition import run_definition
from ..verification import (
    ALONE,
    FRAMES_ALONE,
    Certificate,
    Check,
    Request,
    compare,
    compare_contents,
    content_hash,
    other_steps,
)
from . import remote
from .chains import affine_maps, float_outputs
from .netx import parse_netx, read_netx
from .writer import lower


def verify(request: Request) -> Certificate:
    netx = read_netx(request.path)
    steps = netx.time_steps
    if request.time_steps not in (None, steps):
        raise InputError(f"'{request.path}' was written for T = {steps}; write it again for more.")
    coding = netx.coding
    high = coding.low + coding.step * coding.levels
    checks, notes, versions = [], [f"profile {netx.profile}"], {}
    if request.network is not None and request.network.stream:
        request = request.of_frames(len(coding.shape))
        notes.append(FRAMES_ALONE)
    x, inputs = request.inputs(coding.shape, coding.low, high)
    run = netx.run(x.numpy())
    if request.network is not None:
        checks.append(_same_integers(netx, request.network))
        notes += other_steps(steps, request.network)
    else:
        notes.append(ALONE)
    lava = remote.available(request.python)
    if lava:
        done = remote.verify_netx(request.path, x.numpy(), python=request.python)
        checks.append(
            Check(
                "Lava and the integer runner",
                sum(done.cells),
                sum(done.wrong) + done.readouts_wrong,
                dict(
                    zip((*done.layers, "read-out"), (*done.wrong, done.readouts_wrong), strict=True)
                ),
                None,
                0.0,
                True,
                sum(done.spikes),
            )
        )
        versions["lava"] = ", ".join(done.versions)
    else:
        notes.append(
            "not run in Lava: no interpreter has it. Make one with tests/lava/install.sh and set "
            "LAVA_PYTHON"
        )
    if request.network is not None and checks[0].equal:
        maps = affine_maps(request.network, GroupNeuron, 2**26)
        exactly = float_outputs(maps, x.reshape(len(x), -1).numpy(), steps)
        rounded = netx.outputs(run.membrane)
        wanted = run_definition(request.network, x, steps).spikes
        names = [layer.name for layer in netx.layers[:-1]]
        counts = dict(zip(names, netx.counts(run), strict=True))
        before = {  # [T, B, ...] as [B, groups, T]
            name: wanted[name].flatten(2).permute(1, 2, 0).numpy() for name in names
        }
        what = "members that fire and read-outs, after and before rounding to integers"
        checks.append(compare(what, counts, before, rounded, exactly, 0.0, False))
        same = int((exactly.argmax(1) == rounded.argmax(1)).sum())
        notes.append(f"{same} of {len(x)} predictions are those of the network before rounding")
    return request.certificate(
        "lava",
        content_hash(request.path),
        inputs,
        len(x),
        steps,
        checks,
        notes,
        versions,
        complete=lava,
    )


def _same_integers(netx: Any, network: SpikingNetwork) -> Check:
    """The file's integers and coding, and those of the network lowered again."""
    coding = netx.coding
    bits = int(netx.attributes["weight_bits"])
    again = parse_netx(
        lower(
            network, netx.profile, netx.time_steps, bits, coding.low, coding.step, coding.levels
        ).content,
        netx.path,
    )
    return compare_contents(
        "integers of the file and of the network lowered again", _integers(netx), _integers(again)
    )


def _integers(netx: Any) -> dict[str, Any]:
    layers = {layer.name: dict(vars(layer)) for layer in netx.layers}
    rest = [netx.profile, netx.time_steps, netx.readout_scale, dict(vars(netx.coding))]
    return {**layers, "coding and read-out": rest}
