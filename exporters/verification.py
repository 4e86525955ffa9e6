"""``verify``: reads a file back, compares its contents, replays it, and certifies the result.

With ``network``, from which the file was written, the content is compared number by number. The
file is then replayed by an independent program. Both are done by the format's own ``verify``, in a
file beside its writer and reader; the shared parts are here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.given import one_batch
from ..core.inputs import Batch, Inputs, batch_of
from ..core.module import given_to
from ..core.network import Input, SpikingNetwork
from ..core.progress import working
from ..core.samples import is_whole, some
from ..errors import FormatError, InputError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from .files import write_whole
from .formats import find_format

if TYPE_CHECKING:
    import numpy as np

ALONE = "compared only with itself; pass network=... to check that it is that network's file"
FRAMES_ALONE = "each frame is replayed separately: group neurons restart at every frame of a stream"
VERIFIED, CONTRADICTED, NOT_CHECKED = "verified", "contradicted", "not checked"
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of a read-out, relative to its largest value
MOVED = 0.05  # of a drawn frame, the part that changes in the next


@dataclass(frozen=True)
class Check(Rounded):
    """One comparison. ``cells`` are (sample, neuron, step), or the numbers in a file.

    ``layers`` counts those that differ by layer, ``spikes`` how many there are at all.
    ``readout_error`` is the largest difference of a read-out over its largest value. ``required``
    says that the file is wrong if anything differs; otherwise the figures show the error due to the
    format or the precision.
    """

    what: str
    cells: int
    mismatches: int
    layers: Mapping[str, int]
    readout_error: float | None  # None where read-outs are no part of it
    tolerance: float
    required: bool
    spikes: int = 0

    @property
    def equal(self) -> bool:
        return self.mismatches == 0 and (self.readout_error or 0.0) <= self.tolerance

    def __str__(self) -> str:
        wrong = ", ".join(f"{name} {count}" for name, count in self.layers.items() if count)
        verdict = "equal" if self.equal else "NOT EQUAL" if self.required else "differs"
        return (
            f"{verdict}: {self.what}: {self.mismatches} of {self.cells} cells differ"
            f"{f' ({wrong})' if wrong else ''}"
            + (f", {self.spikes} spikes" if self.spikes else "")
            + ("" if self.readout_error is None else f", read-outs within {self.readout_error:.2g}")
        )


def shown_state(state: str) -> str:
    return {CONTRADICTED: "CONTRADICTED", NOT_CHECKED: "not checked in full"}.get(state, state)


@dataclass(frozen=True)
class Certificate(Rounded):
    """The result of ``verify``. ``content`` is a hash of the file without its certificates.

    ``samples`` are streams, of ``frames`` frames each, where the plan is one for streams.
    """

    path: str
    format: str
    content: str
    inputs: str
    samples: int
    time_steps: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True  # False where a comparison that belongs to it could not be made
    frames: int | None = None  # of a stream

    @property
    def ok(self) -> bool:
        """Whether everything that must be equal was compared and is equal."""
        return self.state == VERIFIED

    @property
    def state(self) -> str:
        """One of "verified"; "contradicted", if anything that must be equal is not; or "not
        checked", if no difference was seen, but a comparison that belongs to it could not be made,
        which ``notes`` name."""
        required = [check for check in self.checks if check.required]
        if not all(check.equal for check in required):
            return CONTRADICTED
        return VERIFIED if self.complete and required else NOT_CHECKED

    def to_dict(self) -> dict[str, Any]:
        said = asdict(self)
        if self.frames is None:
            del said["frames"]
        return {**said, "ok": self.ok, "state": self.state}

    def __str__(self) -> str:
        several = f"{self.samples} samples"
        if self.frames is not None:
            several = f"{self.frames} frames of {self.samples} streams"
        lines = [
            f"{self.path} ({self.format}): {shown_state(self.state)}, "
            f"{several} ({self.inputs}), T = {self.time_steps}",
            *(f"  {check}" for check in self.checks),
            *(f"  note: {note}" for note in self.notes),
            f"  content {self.content}",
        ]
        return "\n".join(lines)


@named_arguments
def verify(
    path: str | os.PathLike[str],
    x: Any = None,
    *,
    network: SpikingNetwork | None = None,
    format: str | None = None,
    time_steps: int | None = None,
    samples: int = 8,
    seed: int = 0,
    functions: Mapping[str, Any] | None = None,
    python: str | os.PathLike[str] | None = None,
    embed: bool = False,
) -> Certificate:
    """Replay the file on x [B, ...] and compare spikes cell by cell, and read-outs.

    Of several inputs x is a dict by their names; of a ``Dataset``, a DataLoader or batches
    ``samples`` from all over are taken. Of a plan for streams it is a clip [F, B, ...] of
    two frames or more, whose state is kept from frame to frame.

    Without x, ``samples`` inputs are drawn with ``seed``: uniform in [0, 1), or in the range that a
    netx file codes; for streams clips of six frames, the fourth a scene cut, the last equal to the
    one before. With ``network``, from which the file was written, its whole content is compared as
    well; without it, the file of another network would also pass. ``format`` is by default what the
    suffix says, ``time_steps`` are the file's. ``functions`` are the caller's own nonlinearities in
    an .h5 file, torch functions by name. ``python`` is an interpreter that has Lava, by default
    that of LAVA_PYTHON. The file is not changed, unless ``embed`` asks for the certificate to be
    written into it; if that is not possible, its notes say so. Raises FormatError for a file that
    cannot be read, or that is of a network with other layers or shapes; InputError.
    """
    path = Path(path)
    format, found = find_format("verify", path, format)
    if getattr(found, "verify", None) is None:
        raise FormatError(f"cannot verify '{path}': the format {format} has no verifier.")
    if samples < 1 or (time_steps is not None and time_steps < 1):
        raise InputError(f"samples and time_steps are at least 1, not {samples} and {time_steps}.")
    if network is not None and not isinstance(network, SpikingNetwork):
        raise InputError(
            f"network is the SpikingNetwork that convert returned, not {type(network).__name__}."
        )
    x = None if x is None else _examined(x, samples)
    request = Request(path, x, network, time_steps, samples, seed, functions or {}, python)
    before = path.read_bytes() if path.is_file() else b""
    with working(f"verifying {path.name}"):
        certificate: Certificate = found.verify(request)
    return _embedded(path, found, certificate, before) if embed else certificate


def _examined(x: Any, samples: int) -> Any:
    """x as it is where it is one batch, or a dict of such; of other data so many samples."""
    x = one_batch(x)
    if isinstance(x, Mapping) or is_whole(x):
        return x
    kept = some(x, samples).x
    return kept.tensors if isinstance(kept, Inputs) else kept


def _embedded(path: Path, format: Any, certificate: Certificate, before: bytes) -> Certificate:
    """Writes the certificate into the file that was verified, or says why not."""
    text, why = json.dumps(certificate.to_dict()), ""
    if not os.access(path, os.W_OK):
        why = "the file is read-only"
    elif getattr(format, "embed", None) is None:
        why = "the format cannot hold it"
    elif path.read_bytes() != before:
        why = "the file was changed in the meantime"
    else:
        try:
            write_whole(path, format.embed(before, text))
        except (FormatError, OSError) as error:
            why = str(error)
    if not why:
        return certificate
    return replace(certificate, notes=(*certificate.notes, f"not written into the file: {why}"))


@dataclass(frozen=True, eq=False)
class Request:
    """What a format's ``verify`` is asked; ``x`` and ``time_steps`` are None where left to it."""

    path: Path
    x: Any  # a tensor, a dict of tensors by input, or None
    network: SpikingNetwork | None
    time_steps: int | None
    samples: int
    seed: int
    functions: Mapping[str, Any]
    python: str | os.PathLike[str] | None

    def inputs_of(self, network: SpikingNetwork) -> tuple[Batch, str]:
        """``inputs`` for each input of the network; ids within their vocabulary, other integers and
        booleans 0 or 1."""
        if network.plain:
            return self.inputs(network.input.shape[1:])  # type: ignore[arg-type]
        if self.x is not None:
            x = Inputs(given_to(network, self.x))
            found = {n.name: replace(self, x=x.tensors[n.name]) for n in network.inputs}
            digest = hashlib.sha256()
            for name, request in found.items():
                request.inputs(network[name].shape[1:])  # type: ignore[arg-type]
                given = x.tensors[name].detach().cpu().contiguous()
                digest.update(given.view(torch.uint8).numpy().tobytes())
            return x.to(torch.float64), f"given, sha256 {digest.hexdigest()[:16]}"
        generator = torch.Generator().manual_seed(self.seed)
        drawn = {n.name: _drawn(network, n, self.samples, generator) for n in network.inputs}
        return Inputs(drawn), f"uniform, whole numbers within their vocabulary, seed {self.seed}"

    def clip_of(self, network: SpikingNetwork) -> tuple[Batch, str]:
        """Frames [F, B, ...] in float64 of what the network does not feed itself, and what to say
        of them."""
        nodes = [node for node in network.inputs if node.name not in network.carries]
        if self.x is None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = {n.name: _clip(network, n, self.samples, generator) for n in nodes}
            told = f"uniform in [0, 1), a cut at frame 4, seed {self.seed}"
            return (drawn[nodes[0].name] if network.plain else Inputs(drawn)), told
        given = _by_name(self.x, [node.name for node in nodes])
        digest = hashlib.sha256()
        for node in nodes:
            _check_clip(node, given[node.name])
            digest.update(given[node.name].detach().cpu().contiguous().numpy().tobytes())
        clip = Inputs(given).cpu().to(torch.float64)
        told = f"given, sha256 {digest.hexdigest()[:16]}"
        return (clip.tensors[nodes[0].name] if network.plain else clip), told

    def of_frames(self, dimensions: int) -> Request:
        """Each frame of a clip [F, B, ...] a sample; a sample has so many ``dimensions``."""
        clip = isinstance(self.x, Tensor) and self.x.dim() == dimensions + 2
        return replace(self, x=self.x.flatten(0, 1)) if clip else self

    def inputs(
        self, shape: Sequence[int], low: float = 0.0, high: float = 1.0
    ) -> tuple[Tensor, str]:
        """x [B, *shape] in float64, and what to say of it."""
        if self.x is not None:
            x = self.x.detach().cpu()
            if tuple(x.shape[1:]) != tuple(shape) or not len(x):
                raise InputError(
                    f"the file takes inputs [B, {', '.join(map(str, shape))}], but x is "
                    f"{list(x.shape)}."
                )
            digest = hashlib.sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            return x.double(), f"given, sha256 {digest[:16]}"
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.rand(self.samples, *shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * x, f"uniform in [{low:g}, {high:g}), seed {self.seed}"

    def certificate(
        self,
        format: str,
        content: str,
        inputs: str,
        samples: int,
        steps: int,
        checks: Sequence[Check],
        notes: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        complete: bool = True,
        frames: int | None = None,
    ) -> Certificate:
        import numpy as np

        from .. import __version__

        known = {
            "spikingjelly_signgd": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        return Certificate(
            self.path.name,
            format,
            content,
            inputs,
            samples,
            steps,
            tuple(checks),
            tuple(notes),
            known | dict(versions or {}),
            complete,
            frames,
        )


def _drawn(
    network: SpikingNetwork, node: Input, samples: int, generator: torch.Generator
) -> Tensor:
    shape = (samples, *node.shape[1:])
    if node.coded:
        return torch.rand(shape, generator=generator, dtype=torch.float64)  # type: ignore[arg-type]
    read = [n for n in network.statics if n.op == "embedding" and node.name in n.inputs]
    rows = min((len(n.tensors["weight"]) for n in read), default=2)
    drawn = torch.randint(rows, shape, generator=generator)  # type: ignore[arg-type]
    return drawn.bool() if node.dtype == "boolean" else drawn


def _by_name(x: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """What is given for the inputs ``names``."""
    x = batch_of(x)
    given = x.tensors if isinstance(x, Inputs) else {names[0]: x}
    if set(given) != set(names):
        raise InputError(
            f"the file takes clips of {', '.join(names)}, but x holds {', '.join(given)}."
        )
    return dict(given)


def _check_clip(node: Input, x: Tensor) -> None:
    shape = tuple(node.shape[1:])
    if not isinstance(x, Tensor) or tuple(x.shape[2:]) != shape or 0 in x.shape[:2]:
        shown = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            "the file holds a plan for streams and takes clips [F, B, "
            f"{', '.join(map(str, shape))}], but {node.name!r} is {shown}."
        )
    if len(x) < 2:
        raise InputError(
            "a clip of one frame keeps no state from one to the next, which is what a plan for "
            "streams is verified for; pass two frames or more."
        )


def _clip(network: SpikingNetwork, node: Input, streams: int, generator: torch.Generator) -> Tensor:
    """[6, B, ...]: a start, two small changes, a cut, a small change, and the same once more."""
    start, cut = (_drawn(network, node, streams, generator) for _ in range(2))
    if not node.coded:
        return torch.stack([start] * 6)
    noise = [MOVED * _drawn(network, node, streams, generator) for _ in range(3)]
    moved = [(1 - MOVED) * x + dx for x, dx in zip((start, start, cut), noise, strict=True)]
    return torch.stack([start, moved[0], moved[1], cut, moved[2], moved[2]])


def compare(
    what: str,
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    readouts: Any,
    expected_readouts: Any,
    tolerance: float,
    required: bool,
    codes: Collection[str] = (),
) -> Check:
    """Spikes by layer, arrays or tensors of one shape, and read-outs in one structure.

    Spikes and counts are compared exactly. What growth sends are differences of sums, numbers of
    floating point: they differ where they do by more than ``tolerance`` of the layer's largest.
    ``codes`` names the neurons with a dead zone, whose spikes are the bits of an int32.
    """
    import numpy as np

    if set(actual) != set(expected):
        odd = sorted(set(actual) ^ set(expected))
        raise FormatError(f"{what}: the two have different layers: {', '.join(odd)}.")
    cells, spikes, layers = 0, 0, {}
    for name, fired in expected.items():
        have, want = np.asarray(actual[name]), np.asarray(fired)
        if have.shape != want.shape:
            raise FormatError(
                f"{what}: '{name}' is {list(have.shape)} in one, {list(want.shape)} in the other."
            )
        cells, spikes = cells + want.size, spikes + _sent(want, name in codes)
        if want.dtype.kind == "f":
            same = np.abs(have - want) <= tolerance * np.abs(want).max(initial=0)
            layers[name] = int((~same).sum())
        else:
            layers[name] = int((have != want).sum())
    left, right = _arrays(readouts), _arrays(expected_readouts)
    if [a.shape for a in left] != [b.shape for b in right]:
        raise FormatError(
            f"{what}: the outputs are {[list(a.shape) for a in left]} in one and "
            f"{[list(b.shape) for b in right]} in the other."
        )
    error = 0.0
    for a, b in zip(left, right, strict=True):
        largest = float(np.abs(b).max(initial=0)) or 1.0
        here = float(np.abs(a - b).max(initial=0)) / largest
        error = max(error, here if np.isfinite(here) else float("inf"))
    wrong = sum(layers.values())
    return Check(what, cells, wrong, layers, error, tolerance, required, spikes)


def _sent(fired: np.ndarray, code: bool) -> int:
    """How many spikes: of members either way, of signs those that are +1, of signs that may be
    silent all others, of growth all but 0."""
    import numpy as np

    if code or fired.dtype == np.uint8:
        return int(np.unpackbits(np.ascontiguousarray(fired).view(np.uint8)).sum())
    return int(np.count_nonzero(fired) if fired.dtype.kind == "f" else np.abs(fired).sum())


def compare_contents(what: str, found: Any, expected: Any) -> Check:
    """Two contents, structures of plain values and arrays, number by number."""
    cells, layers = 0, {}
    for name in dict.fromkeys([*expected, *found]):
        a, b = found.get(name), expected.get(name)
        count, wrong = _differences(a, b)
        cells += count
        layers[name] = wrong
    return Check(what, cells, sum(layers.values()), layers, None, 0.0, True)


def _differences(a: Any, b: Any) -> tuple[int, int]:
    """How many numbers and texts are in b, and in how many a differs."""
    import numpy as np

    if isinstance(b, Mapping) and isinstance(a, Mapping):
        pairs = [_differences(a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])]
        return sum(n for n, _ in pairs) + 1, sum(wrong for _, wrong in pairs)
    if isinstance(b, (list, tuple)) and isinstance(a, (list, tuple)) and len(a) == len(b):
        pairs = [_differences(x, y) for x, y in zip(a, b, strict=True)]
        return sum(n for n, _ in pairs) + 1, sum(wrong for _, wrong in pairs)
    if isinstance(b, np.ndarray) and isinstance(a, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return b.size, max(b.size, 1)
        same = (a == b) | ((a != a) & (b != b))
        return b.size, int((~same).sum())
    return 1, int(type(a) is not type(b) or bool(a != b))


def _arrays(structure: Any) -> list[np.ndarray]:
    import numpy as np

    if isinstance(structure, Mapping):
        return [array for item in structure.values() for array in _arrays(item)]
    if isinstance(structure, (list, tuple)):
        return [array for item in structure for array in _arrays(item)]
    return [np.asarray(structure, dtype=np.float64)]


def as_arrays(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in found.items()}


def other_steps(steps: int, network: SpikingNetwork) -> list[str]:
    """Files may be written for another T than the network was planned for."""
    if steps == network.time_steps:
        return []
    return [f"the file is for T = {steps}, the network for T = {network.time_steps}"]


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 over names, attributes and datasets of an HDF5 file, but for certificates."""
    import h5py
    import numpy as np

    digest = hashlib.sha256()

    def feed(name: str, value: Any) -> None:
        array = np.asarray(value)
        texts = array.dtype.kind in "OUS"
        digest.update(f"{name} {array.shape} {'text' if texts else array.dtype.str} ".encode())
        raw = json.dumps([str(t) for t in array.ravel()]).encode() if texts else array.tobytes()
        digest.update(raw)

    def visit(group: Any, where: str) -> None:
        for name in sorted(group.attrs):
            if name != "certificate":
                feed(f"{where}@{name}", group.attrs[name])
        for name in sorted(group):
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item, f"{where}/{name}")
            else:
                feed(f"{where}/{name}", item.asstr()[()] if _is_text(item) else item[()])

    with h5py.File(path, "r") as file:
        visit(file, "")
    return digest.hexdigest()


def _is_text(dataset: Any) -> bool:
    import h5py

    return h5py.check_string_dtype(dataset.dtype) is not None
