"""Reads a netx file that ``write_netx`` wrote and computes what Lava computes with it, in NumPy.

Integers throughout. One step of a layer, in Lava's own units of 1/64 weight::

    u <- (0 if iDecay is 4096 else u) + 64 (weight s_before + weight_rec s_own)     spikes of t - 1
    v <- (0 if vDecay is 4096 else v) + u + 64 bias
    s  = v > 64 vThMant;   v <- 0 where s

u wraps beyond 24 bits, v is clipped to them. A synapse delivers the spikes of the step before, so
layer i (the first with weights is 1) answers the input of step t at step t + i; ``run`` takes that
latency out of what it returns.

The file (format version 1.0), beside the datasets that lava-dl's reader takes::

    /                attributes: format, format_version, profile, time_steps, steps (T and latency),
                     coding, layers, readout, provenance (JSON)
    /layer/0         type "input", shape [channels]
    /layer/i         type "dense_rec" (soft reset) or "dense" (hard reset); weight int32 [out, in],
                     weight_rec int32 [out, out], bias int32 [out], neuron/{type, iDecay, vDecay,
                     vThMant, refDelay, gradedSpike}; profile "group-graded" also neuron/members
    /layer/n         type "dense", weight int32 [classes, in], no neuron: it adds up

Needs NumPy and h5py.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import BackendUnavailable, FormatError, InputError
from ...neurons.rounding import Rounded
from ..files import Seal

FORMAT = "spikingjelly_signgd netx"
VERSION = (1, 0)
SEAL = Seal(b"\nspikingjelly_signgd netx: sha256 of all bytes before this line ")
embed = SEAL.with_certificate
PROFILES = ("group", "if-soft", "if-hard", "group-graded")
GRADED = "GROUP"  # the neuron type of the profile that needs this package's own process in Lava
LARGEST_U = 131071  # weight units; 24 bits, 6 of them after the point
LARGEST_BIAS = 4095  # 13 bits
LARGEST_MATRIX = 2**28  # weights; a damaged file may ask for any amount of memory
READOUT_THRESHOLD = 1 << 17  # what the reader gives a layer without neurons: v is clipped below it

Integers = NDArray[np.integer[Any]]


def exact(*matrices: Integers) -> bool:
    """Whether Lava computes with these very weights, [out, in]: all matrices of one layer.

    netx shifts the matrices of a layer together as far left as their largest values allow; Lava
    then clips each of them by its own signs and cuts its lowest bits.
    """
    if any(m.size == 0 for m in matrices):
        return False
    high = max(int(m.max()) for m in matrices)
    low = min(int(m.min()) for m in matrices)
    if low >= 0:
        return 0 < high <= 255
    if low < -256 or high > 254:
        return False
    room = 256 / -low if high < 0 else min(127 / max(high, 0.5), 128 / -low)
    shift = int(np.floor(np.log2(room))) + (high >= 0)
    odd = high >= 0 and shift == 0 and any(bool((m % 2).any()) for m in matrices)
    return all(
        bool(m.min() < 0 < m.max()) or (int(abs(m).max()) << shift <= 255 and not odd)
        for m in matrices
    )


@dataclass(frozen=True)
class InputCoding(Rounded):
    """Real inputs to spikes on the host, the same at each of the T steps: bit planes.

    A value x is the integer p = (x - low) / step, rounded to the nearest and kept in 0..levels,
    whose bit b is the channel b * features + j of feature j (features are in the order of the
    network's flattened input). After the planes come ``constants`` channels that fire at every
    step, for the biases, and ``starts`` channels that fire at the first alone.
    """

    features: int
    low: float
    step: float
    levels: int
    constants: int = 0
    starts: int = 0
    shape: tuple[int, ...] = ()  # of one input, whose product is ``features``

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape) or (self.features,))
        if math.prod(self.shape) != self.features:
            raise ValueError(f"an input of {self.shape} does not have {self.features} values")
        counts = self.features, self.levels, self.constants + 1, self.starts + 1
        if any(not isinstance(n, int) or not 0 < n <= LARGEST_MATRIX for n in counts):
            raise ValueError(f"an input coding cannot have the sizes {counts}")
        if not (abs(self.low) < float("inf") and 0 < self.step < float("inf")):
            raise ValueError(f"an input coding cannot begin at {self.low} with steps {self.step}")

    @property
    def bits(self) -> int:
        return self.levels.bit_length()

    @property
    def channels(self) -> int:
        return self.features * self.bits + self.constants + self.starts

    def integers(self, x: ArrayLike) -> NDArray[np.int64]:
        """p of x [B, ...], as [B, features]."""
        x = np.asarray(x, dtype=np.float64)
        if x.ndim < 2 or x.shape[1:] not in (self.shape, (self.features,)):
            raise InputError(
                f"the file takes inputs [B, {', '.join(map(str, self.shape))}], but x is "
                f"{list(x.shape)}."
            )
        if not np.isfinite(x).all():
            raise InputError("the input holds NaN or infinity; remove or fix those samples first.")
        p = np.rint((x.reshape(len(x), -1) - self.low) / self.step)
        clipped: NDArray[np.int64] = p.clip(0, self.levels).astype(np.int64)
        return clipped

    def encode(self, x: ArrayLike, time_steps: int) -> NDArray[np.uint8]:
        """x [B, ...] to spikes [B, channels, T]."""
        p = self.integers(x)
        planes = (p[:, None, :] >> np.arange(self.bits)[:, None]) & 1
        spikes = np.zeros((len(p), self.channels, time_steps), dtype=np.uint8)
        end = self.features * self.bits
        spikes[:, :end] = planes.reshape(len(p), -1, 1)
        spikes[:, end : end + self.constants] = 1
        spikes[:, end + self.constants :, :1] = 1
        return spikes


@dataclass(frozen=True, eq=False)
class NetxLayer:
    """A layer that computes. Without ``neuron`` it adds its input up: the read-out.

    ``groups`` is what its rows are: ``members`` neurons for each of ``groups`` values, then relays.
    """

    name: str
    weight: Integers  # [out, in]
    weight_rec: Integers | None  # [out, out]
    bias: Integers  # [out]
    neuron: bool
    threshold: int  # fires where v > threshold
    integrates_current: bool  # iDecay 0, vDecay 4096; else iDecay 4096, vDecay 0
    members: int
    groups: int
    counts: Integers | None = None  # graded neurons: the most that each row sends


@dataclass(frozen=True, eq=False)
class NetxRun:
    """``spikes`` of each layer with neurons, [B, out, T], the latency taken out.

    ``membrane`` [B, classes] is what the read-out added up; ``lowest`` and ``highest`` are the
    extremes of u in each layer, in weight units.
    """

    spikes: tuple[NDArray[np.int64], ...]
    membrane: NDArray[np.int64]
    lowest: tuple[int, ...]
    highest: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Netx:
    """A netx file in memory."""

    path: str
    profile: str
    time_steps: int
    coding: InputCoding
    layers: tuple[NetxLayer, ...]
    readout_scale: float  # weight units for 1.0 of the network's output
    attributes: dict[str, Any]

    @property
    def steps(self) -> int:
        """Lava's steps for one sample: T, and one more for each layer."""
        return self.time_steps + len(self.layers)

    def encode(self, x: ArrayLike) -> NDArray[np.uint8]:
        return self.coding.encode(x, self.time_steps)

    def outputs(self, membrane: Integers) -> NDArray[np.float64]:
        """The network's outputs [B, classes] from what the read-out added up."""
        return membrane / (self.readout_scale * self.time_steps)

    def counts(self, run: NetxRun) -> list[NDArray[np.int64]]:
        """How many members of each group fired, [B, groups, T] for each layer with neurons."""
        found = []
        for layer, spikes in zip(self.layers[:-1], run.spikes, strict=True):
            rows = spikes[:, : layer.groups * layer.members]
            shape = len(rows), layer.groups, layer.members, rows.shape[-1]
            found.append(rows.reshape(shape).sum(2))
        return found

    def run(self, x: ArrayLike) -> NetxRun:
        """x [B, ...], real inputs, through the whole network."""
        return self.run_spikes(self.encode(x))

    def run_spikes(self, spikes: Integers) -> NetxRun:
        """Input spikes [B, channels, T] through all layers, step by step as Lava runs them."""
        spikes = np.asarray(spikes)
        if spikes.ndim != 3 or spikes.shape[1] != self.coding.channels:
            raise InputError(
                f"the input is [B, {self.coding.channels}, T], but it is {list(spikes.shape)}."
            )
        batch, _, last = spikes.shape
        states = [_State(layer, batch) for layer in self.layers]
        sent = [np.zeros((batch, len(layer.weight))) for layer in self.layers]
        history: list[list[NDArray[np.int64]]] = [[] for _ in self.layers]
        silent = np.zeros((batch, self.coding.channels))
        before = silent
        for t in range(last + len(self.layers)):
            arrived = [before, *sent[:-1]]
            sent = [state.step(a, s) for state, a, s in zip(states, arrived, sent, strict=True)]
            before = spikes[:, :, t].astype(np.float64) if t < last else silent
            for seen, own in zip(history, sent, strict=True):
                seen.append(own.astype(np.int64))
        found = []
        for i, (layer, seen) in enumerate(zip(self.layers, history, strict=True), start=1):
            if layer.neuron:
                found.append(np.stack(seen[i : i + last], axis=-1))
        return NetxRun(
            tuple(found),
            states[-1].u >> 6,
            tuple(state.lowest for state in states),
            tuple(state.highest for state in states),
        )


class _State:
    """One layer with the u and v of a batch."""

    def __init__(self, layer: NetxLayer, batch: int) -> None:
        self.layer = layer
        # float64 sums of integers are exact here, and products of float64 are the fast ones
        self.weight = layer.weight.T.astype(np.float64)
        rec = layer.weight_rec
        self.rec = None if rec is None else rec.T.astype(np.float64)
        self.u = np.zeros((batch, len(layer.weight)), dtype=np.int64)
        self.v = np.zeros_like(self.u)
        self.lowest = self.highest = 0

    def step(self, arrived: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
        layer = self.layer
        current = np.zeros(self.u.shape)
        if arrived.any():  # most layers are silent at most steps of a short run
            current += arrived @ self.weight
        if self.rec is not None and own.any():
            current += own @ self.rec
        u = (current.astype(np.int64) << 6) + (self.u if layer.integrates_current else 0)
        self.lowest = min(self.lowest, int(u.min(initial=0)) >> 6)
        self.highest = max(self.highest, int(u.max(initial=0)) >> 6)
        if layer.counts is not None:
            return self._graded(u)
        limit = 1 << 23
        u = np.where(u > limit, u - 2 * limit, u)
        self.u = np.where(u <= -limit, u + 2 * limit, u)
        v = self.u + (layer.bias.astype(np.int64) << 6)
        if not layer.integrates_current:
            v = v + self.v
        v = v.clip(1 - limit, limit - 1)
        fires = v > (layer.threshold << 6)
        self.v = np.where(fires, 0, v)
        return fires.astype(np.float64)

    def _graded(self, u: NDArray[np.int64]) -> NDArray[np.float64]:
        """One neuron for a whole group: sends how many members fired, and keeps the rest."""
        theta = self.layer.threshold + 1
        charge = (u >> 6) + self.layer.bias
        assert self.layer.counts is not None
        n = (charge // theta).clip(0, self.layer.counts)
        self.u = u - (n * theta << 6)
        return n.astype(np.float64)


def read_netx(path: str | os.PathLike[str]) -> Netx:
    """The file in memory; raises FormatError for what ``write_netx`` does not write."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "netx files are HDF5 files and need the package 'h5py': "
            "pip install 'spikingjelly-signgd[hdf5]'"
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file '{path}'")
    SEAL.check(Path(path))
    try:
        with h5py.File(path, "r") as file:
            return _read(file, str(path))
    except FormatError:
        raise
    except Exception as error:  # h5py and NumPy raise all kinds on nonsense
        raise FormatError(
            f"'{path}' is not a whole netx file of this package ({error}); write it again with "
            "write_netx(network, path)."
        ) from error


def parse_netx(content: bytes, path: str) -> Netx:
    """``read_netx`` of a file's bytes; ``path`` is what errors call it."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        return _read(file, path)


def _read(file: Any, path: str) -> Netx:
    if file.attrs.get("format") != FORMAT:
        raise FormatError(
            f"'{path}' is an HDF5 file, but not a netx file of this package: it lacks the root "
            f"attribute format = {FORMAT!r}."
        )
    version = str(file.attrs["format_version"])
    if int(version.split(".")[0]) > VERSION[0]:
        raise FormatError(
            f"'{path}' has format version {version}, this release reads up to {VERSION[0]}.x; "
            "install a newer spikingjelly-signgd."
        )
    profile = str(file.attrs["profile"])
    if profile not in PROFILES:
        raise FormatError(f"'{path}' has the unknown profile {profile!r}.")
    coding = InputCoding(**json.loads(file.attrs["coding"]))
    described = json.loads(file.attrs["layers"])
    groups = file["layer"]
    if sorted(groups, key=int) != [str(i) for i in range(len(described) + 1)]:
        raise FormatError(f"'{path}' has the layers {', '.join(groups)}, not those it describes.")
    if _text(groups["0/type"]) != "input" or int(groups["0/shape"][0]) != coding.channels:
        raise FormatError(f"'{path}': layer/0 is not the input of {coding.channels} channels.")
    layers: list[NetxLayer] = []
    width = coding.channels
    for i, about in enumerate(described, start=1):
        layer = _read_layer(groups[str(i)], about, f"'{path}': layer/{i}", i == len(described))
        if layer.weight.shape[1] != width:
            raise FormatError(
                f"'{path}': layer/{i} takes {layer.weight.shape[1]} values, but {width} arrive."
            )
        width = len(layer.weight)
        layers.append(layer)
    if layers[-1].neuron:
        raise FormatError(f"'{path}' ends in a layer with neurons instead of a read-out.")
    time_steps = int(file.attrs["time_steps"])
    scale = float(json.loads(file.attrs["readout"])["scale"])
    if time_steps < 1 or not 0 < scale < float("inf"):
        raise FormatError(f"'{path}': time_steps = {time_steps} and scale = {scale} cannot be.")
    attributes = {key: file.attrs[key] for key in file.attrs}
    return Netx(path, profile, time_steps, coding, tuple(layers), scale, attributes)


def _read_layer(group: Any, about: dict[str, Any], where: str, last: bool) -> NetxLayer:
    kind = _text(group["type"])
    if kind not in ("dense", "dense_rec"):
        raise FormatError(f"{where} is of type {kind!r}; this package writes dense and dense_rec.")
    weight = _matrix(group["weight"], where)
    rec = _matrix(group["weight_rec"], where) if kind == "dense_rec" else None
    matrices = (weight,) if rec is None else (weight, rec)
    if rec is not None and rec.shape != (len(weight), len(weight)):
        raise FormatError(f"{where}: weight_rec is {rec.shape}, weight {weight.shape}.")
    if int(group["shape"][0]) != len(weight):
        raise FormatError(f"{where}: shape is {group['shape'][0]}, weight {weight.shape}.")
    if not exact(*matrices):
        raise FormatError(f"{where}: Lava would compute with other weights than these.")
    bias = _integers(group["bias"], where) if "bias" in group else np.zeros(len(weight), np.int64)
    if bias.shape != (len(weight),) or (abs(bias) > LARGEST_BIAS).any():
        raise FormatError(f"{where}: bias is not {len(weight)} integers within {LARGEST_BIAS}.")
    values: dict[str, Any] = dict(
        name=str(about["name"]), weight=weight, weight_rec=rec, bias=bias,
        members=int(about["members"]), groups=int(about["groups"]),
    )  # fmt: skip
    if values["members"] * values["groups"] > len(weight):
        raise FormatError(f"{where} has {len(weight)} rows, fewer than its groups need.")
    if "neuron" not in group:
        if not last or rec is not None:
            raise FormatError(f"{where} has no neurons, which only the last layer may lack.")
        return NetxLayer(
            **values, neuron=False, threshold=READOUT_THRESHOLD, integrates_current=True
        )
    neuron = group["neuron"]
    threshold = int(_integers(neuron["vThMant"], where))
    decays = int(neuron["iDecay"][()]), int(neuron["vDecay"][()])
    if decays not in ((0, 4096), (4096, 0)):
        raise FormatError(f"{where} has the decays {decays}; this package writes none that leak.")
    if not 0 <= threshold <= LARGEST_U:
        raise FormatError(f"{where}: vThMant is {threshold}, outside 0..{LARGEST_U}.")
    if threshold != int(about["theta"]) - 1:
        raise FormatError(f"{where}: vThMant is {threshold}, but theta is {about['theta']}.")
    counts = None
    if _text(neuron["type"]) == GRADED:
        counts = _integers(neuron["members"], where)
        if counts.shape != bias.shape or (counts < 1).any() or (counts > 255).any():
            raise FormatError(f"{where}: members is not {len(bias)} integers in 1..255.")
    elif _text(neuron["type"]) != "CUBA":
        raise FormatError(f"{where} has neurons of type {_text(neuron['type'])!r}, not CUBA.")
    return NetxLayer(
        **values, neuron=True, threshold=threshold, integrates_current=decays == (0, 4096),
        counts=counts,
    )  # fmt: skip


def _text(dataset: Any) -> str:
    value = np.asarray(dataset[()]).ravel()[0]
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _integers(dataset: Any, where: str) -> NDArray[np.int64]:
    if dataset.size > LARGEST_MATRIX:
        raise FormatError(f"{where}: {dataset.name} is {dataset.shape}, too large to be read.")
    if dataset.dtype.kind not in "iu":
        raise FormatError(f"{where}: {dataset.name} is {dataset.dtype}; netx truncates it.")
    values: NDArray[np.int64] = np.asarray(dataset[()]).astype(np.int64)
    return values


def _matrix(dataset: Any, where: str) -> NDArray[np.int64]:
    if len(dataset.shape) != 2 or not 0 < dataset.size <= LARGEST_MATRIX:
        raise FormatError(
            f"{where}: {dataset.name} is {dataset.shape}, not a matrix [out, in] of up to "
            f"{LARGEST_MATRIX} weights."
        )
    return _integers(dataset, where)
