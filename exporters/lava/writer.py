"""Writes networks of group neurons as netx HDF5 files, which lava-dl's own reader loads.

Profiles, each a stock file unless said otherwise:

``group``
    m integrate-and-fire neurons for each group neuron; a lateral block of -theta makes their reset
    the group's own, exactly.
``if-soft``
    the same for m = 1: integrate-and-fire with soft reset.
``if-hard``
    reset to zero in place of a subtraction, for m = 1: smaller and not the same network; the report
    says how many spikes differ.
``group-graded``
    one neuron for each group neuron, whose spikes carry a count. Its neuron is this package's own
    Lava process: the file runs by ``plugins.lava`` alone, and says so.

The layout of the file and its arithmetic are in ``netx``, the lowering in
``chains``; docs/lava.md lists what is exact, lossy and refused.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...core.network import GroupNeuron, SpikingNetwork
from ...errors import BackendUnavailable, FormatError, InputError
from ...neurons.rounding import Rounded
from ..files import write_whole
from .chains import (
    LARGEST_WEIGHT,
    AffineMap,
    IntegerLayer,
    affine_maps,
    by_neuron,
    check_output,
    float_outputs,
    integer_counts,
    quantise,
    refuse,
)
from .netx import (
    FORMAT,
    GRADED,
    LARGEST_BIAS,
    LARGEST_U,
    PROFILES,
    SEAL,
    VERSION,
    InputCoding,
    Netx,
    NetxLayer,
    exact,
    parse_netx,
)

BLOCK = 128  # samples at once while the report is measured
MESSAGE_BITS = 8  # of a spike that carries a count
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LayerReport(Rounded):
    """The result for one layer.

    ``theta`` is the integer threshold of one member (0: the read-out). The errors are relative, the
    norm of the rounding over the norm of the weights; ``rounded_to_zero`` is the fraction of
    non-zero weights that vanished. ``u`` is bounded by ``u_bound`` for any input; ``u_seen`` is the
    largest on the samples. ``spike_error`` is the number of spikes that come or stay away because
    the reset is another one, over the number of spikes (None: no samples). Both are counted for
    each neuron over the T steps.
    """

    name: str
    inputs: int
    neurons: int  # rows in the file: members and relays
    members: int
    theta: int
    scale: float | tuple[float, ...]  # of each value where thresholds differ
    weight_error: float
    bias_error: float
    rounded_to_zero: float
    u_bound: int
    u_seen: int | None
    spike_error: float | None


@dataclass(frozen=True)
class LavaReport(Rounded):
    """The report of ``write_netx``, with the effect of integer rounding on ``samples`` samples.

    ``agreement``: equal predictions of the network before and after; ``output_error``: the norm of
    the difference of the outputs over the norm of the outputs before. Accuracies are None without
    labels, all four without samples.
    """

    path: str
    profile: str
    time_steps: int
    steps: int  # of Lava for one sample
    coding: InputCoding
    layers: tuple[LayerReport, ...]
    samples: int = 0
    accuracy_float: float | None = None
    accuracy_integer: float | None = None
    agreement: float | None = None
    output_error: float | None = None
    input_error: float | None = None  # the largest rounding of an input of the samples

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [
            f"{self.path}: profile {self.profile}, T = {self.time_steps}, {self.steps} steps of "
            f"Lava a sample, {self.coding.channels} input channels ({self.coding.bits} bit planes)",
            f"{'layer':<{width}}  neurons  m  theta  weight error  bound of u  spike error",
        ]
        for layer in self.layers:
            error = "-" if layer.spike_error is None else f"{100 * layer.spike_error:.2f} %"
            theta = layer.theta or "-"
            lines.append(
                f"{layer.name:<{width}}  {layer.neurons:>7}  {layer.members}  {theta:>5}"
                f"  {100 * layer.weight_error:>10.2f} %  {layer.u_bound:>10}  {error:>11}"
            )
        if self.agreement is not None:
            lines.append(
                f"{self.samples} samples: agreement {100 * self.agreement:.2f} %, output error "
                f"{self.output_error:.4f}, largest input error {self.input_error:.3g}"
            )
        if self.accuracy_float is not None and self.accuracy_integer is not None:
            lines.append(
                f"accuracy: {100 * self.accuracy_float:.2f} % before, "
                f"{100 * self.accuracy_integer:.2f} % in integers"
            )
        return "\n".join(lines)


def write_netx(
    network: SpikingNetwork,
    path: str | os.PathLike[str],
    *,
    profile: str = "group",
    time_steps: int | None = None,
    weight_bits: int = 8,
    input_levels: int = 255,
    input_range: tuple[float, float] | None = None,
    calibration: Tensor | None = None,
    samples: Tensor | tuple[Tensor, Tensor] | None = None,
    max_weights: int = 2**26,
) -> LavaReport:
    """Lower ``network`` to integers and write it for lava-dl's reader, or refuse.

    Parameters
    ----------
    network
        One chain of linear operations and group neurons, ``convert(..., method="group")``.
    profile
        "group", "if-soft", "if-hard" or "group-graded", see above.
    time_steps
        T; by default the network's.
    weight_bits
        2 to 8 bits for each weight.
    input_levels, input_range
        The input is rounded to ``input_levels`` + 1 equidistant values from ``input_range[0]`` to
        ``input_range[1]`` (by default the smallest and largest value of the calibration), which the
        host sends as bit planes. Images of 16 grey levels from 0 to 1 are exact with
        ``input_levels=16``.
    calibration
        Inputs [N, ...]: the input range, and whether u stays within its 24 bits where that cannot
        be proved from the weights.
    samples
        Inputs [N, ...], or (inputs, labels), for the report's figures.
    max_weights
        The most weights in one matrix: convolutions are unrolled.

    Every limit is checked before anything is written. Raises FormatError naming the layer, the
    limit and the fix; InputError for arguments that cannot be.
    """
    _check_arguments(profile, time_steps, weight_bits, input_levels, max_weights)
    check_output(network)
    given, labels = samples if isinstance(samples, tuple) else (samples, None)
    for name, x in (("calibration", calibration), ("samples", given)):
        _check_inputs(name, x, network)
    steps = network.time_steps if time_steps is None else time_steps
    low, step = _input_range(input_range, calibration, given, input_levels)
    lowered = lower(network, profile, steps, weight_bits, low, step, input_levels, max_weights)
    maps, layers, coding, expanded, content = lowered
    written = parse_netx(content, str(path))
    bounds = [_bound(e, written, i) for i, e in enumerate(expanded)]
    seen = _ranges(written, [x for x in (calibration, given) if x is not None], bounds)
    report = LavaReport(
        str(path),
        profile,
        steps,
        written.steps,
        coding,
        tuple(
            _layer_report(layer, e, bound, None if seen is None else seen[i])
            for i, (layer, e, bound) in enumerate(zip(layers, expanded, bounds, strict=True))
        ),
    )
    if given is not None:
        report = _measure(report, written, maps, layers, given, labels)
    write_whole(path, SEAL.on(content))
    return report


class Lowered(NamedTuple):
    """A network in integers, and the file's bytes."""

    maps: list[AffineMap[GroupNeuron]]
    layers: list[IntegerLayer]
    coding: InputCoding
    expanded: list[NetxLayer]
    content: bytes


def lower(
    network: SpikingNetwork,
    profile: str,
    time_steps: int,
    weight_bits: int,
    low: float,
    step: float,
    input_levels: int,
    max_weights: int = 2**26,
) -> Lowered:
    """What ``write_netx`` writes, for inputs low, low + step, ...; the same for the same arguments.

    Raises FormatError.
    """
    maps = affine_maps(network, GroupNeuron, max_weights)
    _check_profile(maps, profile)
    planes = [step * 2**b for b in range(input_levels.bit_length())]
    # where the threshold is no weight, it may be larger than one
    free = profile in ("if-hard", "group-graded")
    largest_theta = 2 * LARGEST_BIAS if free else LARGEST_WEIGHT
    layers = quantise(
        maps, planes, low, weight_bits, largest_theta, lambda layer: _fits(layer, profile)
    )
    shape: tuple[int, ...] = network.input.shape[1:]  # type: ignore[assignment]
    coding = InputCoding(maps[0].weight.shape[1], low, step, input_levels, shape=shape)
    coding, expanded = _expand(layers, coding, profile)
    _check_expanded(expanded, max_weights)
    attributes = {
        "profile": profile,
        "time_steps": time_steps,
        "steps": time_steps + len(expanded),
        "coding": json.dumps(asdict(coding)),
        "layers": json.dumps([_about(layer, e) for layer, e in zip(layers, expanded, strict=True)]),
        "readout": json.dumps({"scale": layers[-1].scale, "name": layers[-1].name}),
        "requires_process": GRADED if profile == "group-graded" else "",
        "weight_bits": weight_bits,
        "provenance": json.dumps(dict(network.provenance)),
    }
    return Lowered(maps, layers, coding, expanded, _serialise(coding, expanded, attributes))


def _check_inputs(name: str, x: Tensor | None, network: SpikingNetwork) -> None:
    expected = tuple(network.input.shape[1:])
    if isinstance(x, Tensor) and x.dim() > 0 and tuple(x.shape[1:]) != expected:
        raise InputError(
            f"{name} is {list(x.shape)}, but the network takes [B, "
            f"{', '.join(map(str, expected))}]."
        )


def _check_arguments(
    profile: str, time_steps: int | None, weight_bits: int, input_levels: int, max_weights: int
) -> None:
    if profile not in PROFILES:
        raise InputError(f"profile is one of {', '.join(PROFILES)}, but it is {profile!r}.")
    ranges = (
        ("time_steps", 1 if time_steps is None else time_steps, 1, 2**16),
        ("weight_bits", weight_bits, 2, 8),
        ("input_levels", input_levels, 1, 2**12),
        ("max_weights", max_weights, 1, 2**40),
    )
    for name, value, least, most in ranges:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{name} is an integer in {least}..{most}, but it is {value!r}.")


def _check_profile(maps: Sequence[AffineMap[GroupNeuron]], profile: str) -> None:
    refuse(list(_against_profile(maps, profile)), f"the profile {profile!r} has no place for:")


def _against_profile(maps: Sequence[AffineMap[GroupNeuron]], profile: str) -> Iterator[str]:
    for m in maps:
        if m.neuron is None:
            continue
        members, charge = m.neuron.members, by_neuron(m.neuron, m.neuron.initial_charge)
        if m.neuron.signed:
            yield (
                f"'{m.name}' is signed, but Lava's integrate-and-fire neurons fire no negative "
                "spikes; set signed=False, or save the network as a description (.h5)."
            )
        if profile.startswith("if-") and members != 1:
            yield (
                f"'{m.name}' has {members} members, but the profile {profile!r} is for "
                'integrate-and-fire neurons (m = 1); use profile="group", or convert with '
                "members=1 and more time_steps."
            )
        if profile == "group-graded" and members >= 2**MESSAGE_BITS:
            yield (
                f"'{m.name}' has {members} members, more than a spike of {MESSAGE_BITS} bits "
                'counts; use fewer members, or profile="group".'
            )
        if not ((charge >= 0) & (charge < 1)).all():
            outside = charge[(charge < 0) | (charge >= 1)]
            yield (
                f"'{m.name}' starts with a membrane potential of {outside[0]} thresholds; the "
                "files hold 0 <= initial_charge < 1. Choose one below 1 (0.5 rounds to the "
                "nearest level)."
            )


def _input_range(
    asked: tuple[float, float] | None,
    calibration: Tensor | None,
    samples: Tensor | None,
    levels: int,
) -> tuple[float, float]:
    """(low, step) of the input coding."""
    for name, x in (("calibration", calibration), ("samples", samples)):
        if x is not None and (not isinstance(x, Tensor) or x.dim() < 2 or not len(x)):
            raise InputError(f"{name} is a tensor [N, ...] with at least one sample.")
        if x is not None and not bool(x.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinity; remove or fix those samples first.")
    if asked is None:
        x = calibration if calibration is not None else samples
        if x is None:
            raise InputError(
                "the range of the input is not known; pass input_range=(lowest, highest) or "
                "calibration=inputs."
            )
        asked = float(x.min()), float(x.max())
        if asked[0] == asked[1]:
            asked = asked[0], asked[0] + 1.0
    low, high = map(float, asked)
    if not -math.inf < low < high < math.inf:
        raise InputError(f"input_range is (lowest, highest), but it is {asked!r}.")
    return low, (high - low) / levels


def _numpy(x: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x.detach().cpu().numpy()
    return array


def _lines(values: Integers) -> int:
    """How many channels of weights within the limit bring these values."""
    return -(-int(np.abs(values).max(initial=0)) // LARGEST_WEIGHT)


def _split(values: Integers, lines: int) -> Integers:
    """Values [out] as weights [out, lines] within the limit that add up to them."""
    parts = np.zeros((len(values), lines), dtype=np.int64)
    rest = values.copy()
    for i in range(lines):
        parts[:, i] = rest.clip(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        rest -= parts[:, i]
    assert not rest.any()
    return parts


def _fits(layer: IntegerLayer, profile: str) -> bool:
    """``exact`` from the extremes of the layer's matrices, before they are unrolled."""
    parts = _split(layer.bias, _lines(layer.bias))
    w = layer.weight
    own = np.array([[w.min(), w.max(), parts.min(initial=0), parts.max(initial=0), 0]])
    if layer.readout or profile in ("if-hard", "group-graded"):
        return exact(own)
    return exact(own, np.array([[-layer.theta, 0]]))


def _expand(
    layers: Sequence[IntegerLayer], coding: InputCoding, profile: str
) -> tuple[InputCoding, list[NetxLayer]]:
    """The layers with their members and relays, and the coding with the channels that begin them.

    A relay passes a constant on, one step later in each layer: the biases so arrive with the data.
    """
    starts = profile == "if-hard"  # v cannot be given a first value where it integrates
    graded = profile == "group-graded"
    # constant and start channels into each layer; those a later layer needs pass through all
    constants, firsts = [0] * len(layers), [0] * len(layers)
    for i, layer in reversed(list(enumerate(layers))):
        fires = _lines(np.array([layer.theta]))  # lines that bring a relay to its threshold
        last = i + 1 == len(layers)
        constants[i] = max(_lines(layer.bias), 0 if last or not constants[i + 1] else fires)
        if starts and not layer.readout:
            lines = _lines(layer.charge)
            firsts[i] = max(lines, fires if firsts[i + 1] else 0)
    coding = replace(coding, constants=constants[0], starts=firsts[0])
    expanded = []
    copies = 1  # of each value in the layer before
    for i, layer in enumerate(layers):
        weight = np.repeat(layer.weight, copies, axis=1)
        charge = layer.charge if firsts[i] else np.zeros_like(layer.charge)
        blocks = [weight, _split(layer.bias, constants[i]), _split(charge, firsts[i])]
        block = np.concatenate(blocks, axis=1)
        members = 1 if graded else layer.members
        block = np.repeat(block, members, axis=0)
        relays = 0 if layer.readout else constants[i + 1] + firsts[i + 1]
        rows = np.zeros((relays, block.shape[1]), dtype=np.int64)
        if relays:
            middle, end = weight.shape[1], weight.shape[1] + constants[i]
            drive = np.full(relays, layer.theta)
            own = constants[i + 1]
            rows[:own, middle:end] = _split(drive[:own], constants[i])
            rows[own:, end:] = _split(drive[own:], firsts[i])
        expanded.append(_with_neurons(layer, np.concatenate([block, rows]), members, profile))
        copies = members
    return coding, expanded


def _with_neurons(layer: IntegerLayer, weight: Integers, members: int, profile: str) -> NetxLayer:
    groups = len(layer.weight)
    rows = len(weight)
    common: dict[str, Any] = dict(name=layer.name, weight=weight, members=members, groups=groups)
    if layer.readout:
        return NetxLayer(
            **common,
            weight_rec=None,
            bias=np.zeros(rows, dtype=np.int64),
            neuron=False,
            threshold=0,
            integrates_current=True,
        )
    bias = np.zeros(rows, dtype=np.int64)
    rec, counts = None, None
    if profile != "if-hard":
        first = layer.charge[:, None] - layer.theta * np.arange(members)
        bias[: groups * members] = first.ravel()
    if profile == "group-graded":
        counts = np.ones(rows, dtype=np.int64)
        counts[:groups] = layer.members
    elif profile != "if-hard":
        rec = np.zeros((rows, rows), dtype=np.int64)
        member = np.arange(groups * members).reshape(groups, members)
        rec[member[:, :, None], member[:, None, :]] = -layer.theta
        relay = np.arange(groups * members, rows)
        rec[relay, relay] = -layer.theta
    return NetxLayer(
        **common,
        weight_rec=rec,
        bias=bias,
        neuron=True,
        threshold=layer.theta - 1,
        integrates_current=profile != "if-hard",
        counts=counts,
    )


def _check_expanded(layers: Sequence[NetxLayer], max_weights: int) -> None:
    for layer in layers:
        matrices = [layer.weight] + ([] if layer.weight_rec is None else [layer.weight_rec])
        for matrix in matrices:
            if matrix.size > max_weights:
                raise FormatError(
                    f"'{layer.name}': {matrix.shape[0]} x {matrix.shape[1]} weights are more than "
                    f"max_weights = {max_weights}; use fewer members, a smaller network, or raise "
                    "max_weights where memory allows."
                )
        if not exact(*matrices):
            low, high = min(m.min() for m in matrices), max(m.max() for m in matrices)
            raise FormatError(
                f"'{layer.name}': Lava would compute with other weights than these (range "
                f"{low}..{high}); change weight_bits, or the layer's scale."
            )
        if int(np.abs(layer.bias).max(initial=0)) > LARGEST_BIAS:
            raise FormatError(
                f"'{layer.name}': an initial charge of {int(np.abs(layer.bias).max())} is beyond "
                f"the 13 bits of a bias ({LARGEST_BIAS}); use fewer members."
            )
        if not 0 <= layer.threshold <= LARGEST_U:
            raise FormatError(
                f"'{layer.name}': the threshold {layer.threshold} is outside 0..{LARGEST_U}."
            )


def _bound(layer: NetxLayer, netx: Netx, i: int) -> int:
    """The largest |u| (where v integrates, |v|) that any input can reach in the run."""
    counts = netx.layers[i - 1].counts if i else None
    weight = layer.weight if counts is None else layer.weight * counts
    positive = int(weight.clip(min=0).sum(1).max())
    negative = int(-weight.clip(max=0).sum(1).min())
    reset = layer.members * (layer.threshold + 1) if layer.neuron else 0
    if layer.counts is not None:
        reset = int(layer.counts.max()) * (layer.threshold + 1)
    return max(netx.steps * positive, netx.steps * negative + reset)


def _ranges(netx: Netx, inputs: Sequence[Tensor], bounds: Sequence[int]) -> list[int] | None:
    """The largest |u| of each layer on the inputs; raises where u may leave its 24 bits."""
    proved = all(bound <= LARGEST_U for bound in bounds)
    seen = [0] * len(bounds) if inputs else None
    for x in inputs[:1] if proved else inputs:
        assert seen is not None
        for block in x.split(BLOCK):
            run = netx.run(_numpy(block))
            for i, (low, high) in enumerate(zip(run.lowest, run.highest, strict=True)):
                seen[i] = max(seen[i], -low, high)
    for i, bound in enumerate(bounds):
        if bound <= LARGEST_U:
            continue
        where = (
            f"'{netx.layers[i].name}': u of Lava has 24 bits, {LARGEST_U} in weight units, and "
            f"some input could bring it to {bound} in {netx.steps} steps"
        )
        if seen is None:
            raise FormatError(
                f"{where}; pass calibration=inputs, on which it is then measured, or use fewer "
                "time_steps or weight_bits."
            )
        if 2 * seen[i] > LARGEST_U:
            raise FormatError(
                f"{where}, and your inputs bring it to {seen[i]}, more than half of that; use "
                "fewer time_steps, or less than 8 weight_bits."
            )
    return seen


def _about(layer: IntegerLayer, expanded: NetxLayer) -> dict[str, Any]:
    """What the root attribute ``layers`` says of one layer."""
    return {
        "name": layer.name,
        "members": expanded.members,
        "groups": expanded.groups,
        "relays": len(expanded.weight) - expanded.groups * expanded.members,
        "theta": layer.theta,
        "scale": layer.scale if isinstance(layer.scale, float) else layer.scale.tolist(),
        "group_members": layer.members,
    }


def _layer_report(
    layer: IntegerLayer, expanded: NetxLayer, bound: int, seen: int | None
) -> LayerReport:
    nonzero = layer.wanted != 0
    return LayerReport(
        layer.name,
        expanded.weight.shape[1],
        len(expanded.weight),
        layer.members,
        layer.theta,
        layer.scale if isinstance(layer.scale, float) else tuple(layer.scale.tolist()),
        _relative(layer.weight, layer.wanted),
        _relative(layer.bias, layer.wanted_bias),
        float((layer.weight[nonzero] == 0).mean()) if nonzero.any() else 0.0,
        bound,
        seen,
        None,
    )


def _relative(have: NDArray[Any], want: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(want))
    return float(np.linalg.norm(have - want)) / norm if norm else 0.0


def _measure(
    report: LavaReport,
    netx: Netx,
    maps: Sequence[AffineMap[GroupNeuron]],
    layers: Sequence[IntegerLayer],
    samples: Tensor,
    labels: Tensor | None,
) -> LavaReport:
    """The report with the figures of the samples; checks the file against the lowered layers."""
    coding = netx.coding
    moved = [0] * (len(layers) - 1)
    total = [0] * (len(layers) - 1)
    exactly: list[NDArray[np.float64]] = []
    rounded: list[NDArray[np.float64]] = []
    largest, same_spikes = 0.0, True
    for block in samples.split(BLOCK):
        x = _numpy(block)
        run = netx.run(x)
        p = coding.integers(x)
        flat = x.reshape(len(x), -1).astype(np.float64)
        largest = max(largest, float(np.abs(p * coding.step + coding.low - flat).max()))
        planes = coding.encode(x, 1)[:, : coding.features * coding.bits, 0]
        wanted, _ = integer_counts(layers, planes, report.time_steps)
        for i, (n, m) in enumerate(zip(netx.counts(run), wanted, strict=True)):
            same_spikes &= bool((n == m).all())
            moved[i] += int(np.abs(n.sum(-1) - m.sum(-1)).sum())
            total[i] += int(m.sum())
        exactly.append(float_outputs(maps, flat, report.time_steps))
        rounded.append(netx.outputs(run.membrane))
    assert netx.profile == "if-hard" or same_spikes, "the file is not the lowered network"
    before, after = np.concatenate(exactly), np.concatenate(rounded)
    errors = [m / n if n else float(m > 0) for m, n in zip(moved, total, strict=True)]
    same = before.argmax(1) == after.argmax(1)
    if labels is not None:
        if labels.shape != samples.shape[:1]:
            raise InputError(
                f"labels are class indices [N], one for each sample, but samples are "
                f"{list(samples.shape)} and labels {list(labels.shape)}."
            )
        y = _numpy(labels)
    return replace(
        report,
        layers=tuple(
            replace(layer, spike_error=error)
            for layer, error in zip(report.layers, [*errors, None], strict=True)
        ),
        samples=len(samples),
        accuracy_float=None if labels is None else float((before.argmax(1) == y).mean()),
        accuracy_integer=None if labels is None else float((after.argmax(1) == y).mean()),
        agreement=float(same.mean()),
        output_error=_relative(after, before),
        input_error=largest,
    )


def _serialise(
    coding: InputCoding, layers: Sequence[NetxLayer], attributes: dict[str, Any]
) -> bytes:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "netx files are HDF5 files and need the package 'h5py': "
            "pip install 'spikingjelly-signgd[hdf5]'"
        ) from error
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = ".".join(map(str, VERSION))
        for name, value in attributes.items():
            file.attrs[name] = value
        _write_head(file.create_group("layer/0"), "input", coding.channels)
        for i, layer in enumerate(layers, start=1):
            _write_layer(file.create_group(f"layer/{i}"), layer)
    return memory.getvalue()


def _write_head(group: Any, kind: str, size: int) -> None:
    group.create_dataset("type", data=np.array([kind.encode()], dtype="S10"))
    group.create_dataset("shape", data=np.array([size], dtype=np.int64))


def _write_layer(group: Any, layer: NetxLayer) -> None:
    rec = layer.weight_rec
    _write_head(group, "dense" if rec is None else "dense_rec", len(layer.weight))
    # netx does not read these two, slayer does
    group.create_dataset("inFeatures", data=np.int64(layer.weight.shape[1]))
    group.create_dataset("outFeatures", data=np.int64(len(layer.weight)))
    packed = {"compression": "gzip", "shuffle": True}
    group.create_dataset("weight", data=layer.weight.astype(np.int32), **packed)
    if rec is not None:
        group.create_dataset("weight_rec", data=rec.astype(np.int32), **packed)
    if not layer.neuron:
        return
    if layer.bias.any():
        group.create_dataset("bias", data=layer.bias.astype(np.int32))
    neuron = group.create_group("neuron")
    neuron.create_dataset("type", data="CUBA" if layer.counts is None else GRADED)
    decays = (0, 4096) if layer.integrates_current else (4096, 0)
    neuron.create_dataset("iDecay", data=np.int64(decays[0]))
    neuron.create_dataset("vDecay", data=np.int64(decays[1]))
    neuron.create_dataset("vThMant", data=np.int64(layer.threshold))
    neuron.create_dataset("refDelay", data=np.int64(1))
    neuron.create_dataset("gradedSpike", data=layer.counts is not None)
    if layer.counts is not None:
        neuron.create_dataset("members", data=layer.counts.astype(np.int32))
