"""``verify``: reads a file back, compares what it holds, replays it, and certifies what it found.

With ``network``, from which the file was written, the content is compared number by number: of an
.h5 with the description of the network, of a .nir with the graph that it gives anew, of a .net with
the network lowered anew. What the file holds is then replayed:

======  ================================================  ====================================
.h5     ``Runner`` (NumPy), float64 and float32,          the pure-torch definitions
        without delays and with one a layer
.nir    ``NirRunner`` (NumPy), which knows NIR's          the pure-torch definitions
        primitives alone
.net    Lava itself, where LAVA_PYTHON names one          ``Netx`` (NumPy), Lava's arithmetic
======  ================================================  ====================================
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.network import GroupNeuron, SpikingNetwork, leaves
from ..errors import FormatError, InputError
from .files import sealed, unsealed, write_whole
from .formats import SUFFIXES
from .hdf5.definition import run_definition

if TYPE_CHECKING:
    import numpy as np

# of a NIR node: what follows from the rest, or is for people
UNSAID = ("metadata", "input_type", "output_type", "input_shape")

ALONE = "compared with itself alone; pass network=... to know that it is that network's"
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of a read-out, relative to its largest value


@dataclass(frozen=True)
class Check:
    """One comparison. ``cells`` are (sample, neuron, step), or the numbers in a file.

    ``layers`` counts those that differ by layer, ``spikes`` how many there are at all.
    ``readout_error`` is the largest difference of a read-out over its largest value. ``required``
    says that the file is wrong where anything differs; otherwise the figures tell what the format
    or the precision costs.
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


@dataclass(frozen=True)
class Certificate:
    """What ``verify`` did. ``content`` is a hash of all that the file holds but certificates."""

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

    @property
    def ok(self) -> bool:
        """Whether everything that has to be equal is, and was compared."""
        required = [check for check in self.checks if check.required]
        return self.complete and bool(required) and all(check.equal for check in required)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [
            f"{self.path} ({self.format}): {'verified' if self.ok else 'NOT verified'}, "
            f"{self.samples} samples ({self.inputs}), T = {self.time_steps}",
            *(f"  {check}" for check in self.checks),
            *(f"  note: {note}" for note in self.notes),
            f"  content {self.content}",
        ]
        return "\n".join(lines)


def verify(
    path: str | os.PathLike[str],
    x: Tensor | None = None,
    *,
    network: SpikingNetwork | None = None,
    format: str | None = None,
    time_steps: int | None = None,
    samples: int = 8,
    seed: int = 0,
    functions: Mapping[str, Any] | None = None,
    python: str | os.PathLike[str] | None = None,
    embed: bool = True,
) -> Certificate:
    """Replay the file on x [B, ...] and compare spikes cell by cell, and read-outs.

    Without x, ``samples`` inputs are drawn with ``seed``: uniform in [0, 1), or in the range that a
    netx file codes. With ``network``, from which the file was written, its whole content is
    compared as well: without, a file of another network is as good as this one. ``format`` is by
    default what the suffix says, ``time_steps`` are the file's. ``functions`` are the caller's own
    nonlinearities in an .h5 file, torch functions by name. ``python`` is an interpreter that has
    Lava, by default that of LAVA_PYTHON. ``embed`` writes the certificate into the file; where that
    cannot be, its notes say so. Raises FormatError for a file that cannot be read, or that is of a
    network with other layers or shapes; InputError.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower(), "") if format is None else format
    if format not in VERIFIERS:
        raise FormatError(
            f"cannot verify '{path}': format is one of {', '.join(VERIFIERS)}, not {format!r}. "
            f"Name one, or end the file in {', '.join(SUFFIXES)}."
        )
    if samples < 1 or (time_steps is not None and time_steps < 1):
        raise InputError(f"samples and time_steps are at least 1, not {samples} and {time_steps}.")
    if network is not None and not isinstance(network, SpikingNetwork):
        raise InputError(
            f"network is the SpikingNetwork that convert returned, not {type(network).__name__}."
        )
    request = _Request(path, x, network, time_steps, samples, seed, functions or {}, python)
    before = path.read_bytes() if path.is_file() else b""
    certificate = VERIFIERS[format](request)
    return _embedded(path, format, certificate, before) if embed else certificate


def _embedded(path: Path, format: str, certificate: Certificate, before: bytes) -> Certificate:
    """Writes the certificate into the file that was verified, or says why not."""
    text, why = json.dumps(certificate.to_dict()), ""
    if not os.access(path, os.W_OK):
        why = "the file is read-only"
    elif path.read_bytes() != before:
        why = "the file was changed in the meantime"
    else:
        try:
            write_whole(path, EMBEDDERS[format](before, text))
        except (FormatError, OSError) as error:
            why = str(error)
    if not why:
        return certificate
    return replace(certificate, notes=(*certificate.notes, f"not written into the file: {why}"))


@dataclass(frozen=True, eq=False)
class _Request:
    path: Path
    x: Tensor | None
    network: SpikingNetwork | None
    time_steps: int | None
    samples: int
    seed: int
    functions: Mapping[str, Any]
    python: str | os.PathLike[str] | None

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
            digest = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
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
        )


def compare(
    what: str,
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    readouts: Any,
    expected_readouts: Any,
    tolerance: float,
    required: bool,
) -> Check:
    """Spikes by layer, arrays or tensors of one shape, and read-outs in one structure.

    Spikes and counts are compared exactly. What growth sends are differences of sums, numbers of
    floating point: they differ where they do by more than ``tolerance`` of the layer's largest.
    """
    import numpy as np

    if set(actual) != set(expected):
        odd = sorted(set(actual) ^ set(expected))
        raise FormatError(f"{what}: the two have other layers: {', '.join(odd)}.")
    cells, spikes, layers = 0, 0, {}
    for name, fired in expected.items():
        have, want = np.asarray(actual[name]), np.asarray(fired)
        if have.shape != want.shape:
            raise FormatError(
                f"{what}: '{name}' is {list(have.shape)} in one, {list(want.shape)} in the other."
            )
        cells, spikes = cells + want.size, spikes + _sent(want)
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


def _sent(fired: np.ndarray) -> int:
    """How many spikes: of members either way, of signs those that are +1, of growth all but 0."""
    import numpy as np

    if fired.dtype == np.uint8:
        return int(np.unpackbits(fired.ravel()).sum())
    return int(np.count_nonzero(fired) if fired.dtype.kind == "f" else np.abs(fired).sum())


def _contents(what: str, found: Any, expected: Any) -> Check:
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


def _spikes(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in found.items()}


# -- .h5 ------------------------------------------------------------------------------------------


def _verify_hdf5(request: _Request) -> Certificate:
    from .hdf5.description import content_of, load
    from .hdf5.layout import read
    from .hdf5.runner import Runner

    content = read(request.path)
    network = load(request.path, functions=request.functions)
    steps = request.time_steps or network.time_steps
    x, inputs = request.inputs(network.input.shape[1:])  # type: ignore[arg-type]
    own = {name: _of_arrays(function) for name, function in request.functions.items()}
    checks = []
    if request.network is not None:
        meant = content_of(request.network)
        checks.append(
            _contents("content of the file and of the network", _parts(content), _parts(meant))
        )
    notes = ["read-outs are compared after the last step, spikes at all of them"]
    if request.network is None:
        notes.append(ALONE)
    for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
        runner = Runner(content, kind, own)
        view = "signed" if runner.view == "spike" else "decoded"
        coded = _poisson_spikes(network, x.to(dtype), steps)
        options: dict[str, Any] = {} if coded is None else {"input_spikes": coded}
        given = x.to(dtype).numpy()
        found = runner.run(given, steps, **options)
        exactly = kind == "float64"
        wanted = run_definition(network, x, steps, spikes=view, dtype=dtype)
        checks.append(
            compare(
                f"NumPy runner and definitions, {kind}",
                found.spikes,
                _spikes(wanted.spikes),
                found.outputs[steps],
                wanted.outputs,
                TOLERANCE[kind],
                exactly,
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
    import numpy as np

    def run(*x: Any, **arguments: Any) -> Any:
        tensors = {
            key: torch.as_tensor(a) if isinstance(a, np.ndarray) else a
            for key, a in arguments.items()
        }
        return function(*(torch.as_tensor(a) for a in x), **tensors).numpy()

    return run


def _poisson_spikes(network: SpikingNetwork, x: Tensor, steps: int) -> Any:
    from ..core.network import Encoder
    from ..neurons.coding import PoissonCodingParameters, poisson_spikes

    for node in network.nodes:
        if isinstance(node, Encoder) and node.coding == "poisson":
            p = PoissonCodingParameters(node.scale, node.seed)
            return torch.stack([poisson_spikes(x, t, p) for t in range(1, steps + 1)]).numpy()
    return None


def _embed_hdf5(data: bytes, certificate: str) -> bytes:
    from .hdf5.layout import with_certificate

    return with_certificate(data, certificate)


# -- .nir -----------------------------------------------------------------------------------------


def _verify_nir(request: _Request) -> Certificate:
    import numpy as np

    from .nir.reader import import_nir, read_graph, to_network
    from .nir.runner import NirRunner

    nir = import_nir()
    graph = read_graph(request.path)
    metadata = graph.metadata or {}
    exact = metadata.get("mode") == "exact"
    # NIR says that a neuron fires strictly above its threshold and is reset to v_reset
    runner = NirRunner(graph)
    kind = "float64" if runner.dtype == np.float64 else "float32"
    notes, checks = [str(loss) for loss in str(metadata.get("losses", "")).splitlines()], []
    networks: dict[str, SpikingNetwork] = {}
    if request.network is not None:
        checks.append(_same_graph(graph, request.network))
        notes += _other_steps(int(metadata.get("time_steps", 0)), request.network)
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
    x, inputs = request.inputs(shape)
    dtype = torch.float64 if kind == "float64" else torch.float32
    names = {
        str((node.metadata or {}).get("name", key)): key
        for key, node in graph.nodes.items()
        if not isinstance(node, (nir.Input, nir.Output))
    }
    ends = {item["name"]: item for item in json.loads(metadata.get("readouts", "[]"))}
    for of, network in networks.items():
        if list(network.input.shape[1:]) != shape:
            raise FormatError(
                f"'{request.path}' takes inputs [B, {', '.join(map(str, shape))}], not those of "
                "this network; it was written from another."
            )
        neurons = [node for node in network.nodes if isinstance(node, GroupNeuron)]
        missing = [node.name for node in neurons if node.name not in names]
        if missing:
            raise FormatError(
                f"'{request.path}' has no nodes for {', '.join(missing)}; it was written from "
                "another network."
            )
        record = [names[node.name] for node in neurons]
        sent = runner.run(x.numpy(), steps, record=record)
        # an IF node sends spikes, a group's subgraph n theta
        counts = {
            node.name: np.rint(
                sent[names[node.name]] / (np.asarray(node.parameters.theta) if exact else 1.0)
            ).astype(np.int64)
            for node in neurons
        }
        unknown = set(leaves(network.outputs)) - set(ends)
        if unknown:
            raise FormatError(
                f"'{request.path}' has no outputs {', '.join(sorted(unknown))}; it was written "
                "from another network."
            )
        readouts = [_readout(sent, ends[name]) for name in leaves(network.outputs)]
        wanted = run_definition(network, x, steps, dtype=dtype)
        found = _leaves_of(network.outputs, wanted.outputs)
        checks.append(
            compare(
                f"NIR runner and definitions of the network {of}, {kind}",
                counts,
                _spikes(wanted.spikes),
                readouts,
                found,
                TOLERANCE[kind],
                exact,
            )
        )
    if exact:
        notes.append(
            "v(0) is folded into the thresholds: where a potential lies on one to the last bit, "
            "rounding may move a spike of a file that is right"
        )
    else:
        notes.append(
            "a platform file is no exact one; the figures of the replay tell what NIR's own "
            "semantics cost"
        )
    return request.certificate(
        "nir",
        content_hash(request.path),
        inputs,
        len(x),
        steps,
        checks,
        notes,
        _version("nir"),
        complete=exact,
    )


def _same_graph(graph: Any, network: SpikingNetwork) -> Check:
    """The file's nodes, edges and what it says of itself, and those of the network written anew."""
    from .nir import to_graph

    metadata = graph.metadata or {}
    found, best = _graph_parts(graph), None
    for pooling in ("pool", "conv"):
        again, _ = to_graph(
            network,
            mode=str(metadata.get("mode", "exact")),
            dialect=str(metadata.get("dialect", "nir")),
            pooling=pooling,
            time_steps=int(metadata["time_steps"]) if "time_steps" in metadata else None,
        )
        check = _contents("content of the file and of the network", found, _graph_parts(again))
        best = check if best is None or check.mismatches < best.mismatches else best
    assert best is not None
    return best


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
            **{key: _plain_array(value) for key, value in sorted(kept.items())},
        }
    said = ("mode", "dialect", "time_steps", "dt", "readouts", "outputs", "neurons")
    metadata = graph.metadata or {}
    parts[f"{where}edges"] = sorted([str(a), str(b)] for a, b in graph.edges)
    if not where:
        parts["metadata"] = {key: str(metadata.get(key, "")) for key in said}
    return parts


def _plain_array(value: Any) -> Any:
    import numpy as np

    if isinstance(value, Mapping):
        return {str(k): _plain_array(v) for k, v in value.items()}
    if isinstance(value, (str, type(None))):
        return value
    array = np.asarray(value)
    return array if array.dtype.kind == "f" else array.astype(str).ravel().tolist()


def _readout(sent: Mapping[str, np.ndarray], end: Mapping[str, str]) -> np.ndarray:
    values = sent[end["output"]].astype("float64")
    return values.mean(0) if end["readout"] == "mean" else values[-1]  # type: ignore[no-any-return]


def _leaves_of(structure: Any, values: Any) -> list[Any]:
    if isinstance(structure, str):
        return [values]
    if isinstance(structure, Mapping):
        return [a for key, item in structure.items() for a in _leaves_of(item, values[key])]
    return [
        a for item, value in zip(structure, values, strict=True) for a in _leaves_of(item, value)
    ]


def _embed_nir(data: bytes, certificate: str) -> bytes:
    from .nir.reader import SEAL

    return _with_attribute(data, certificate, SEAL)


def _with_attribute(data: bytes, certificate: str, seal: bytes) -> bytes:
    """The certificate at the root, where readers of NIR and netx do not look."""
    import h5py

    image = io.BytesIO(unsealed(data, seal))
    with h5py.File(image, "r+") as file:
        file.attrs["certificate"] = certificate
    return sealed(image.getvalue(), seal)


# -- .net -----------------------------------------------------------------------------------------


def _verify_netx(request: _Request) -> Certificate:
    from ..plugins import lava_remote
    from .lava.chains import affine_maps, float_outputs
    from .lava.netx import read_netx

    netx = read_netx(request.path)
    steps = netx.time_steps
    if request.time_steps not in (None, steps):
        raise InputError(f"'{request.path}' was written for T = {steps}; write it again for more.")
    coding = netx.coding
    high = coding.low + coding.step * coding.levels
    x, inputs = request.inputs(coding.shape, coding.low, high)
    run = netx.run(x.numpy())
    checks, notes, versions = [], [f"profile {netx.profile}"], {}
    if request.network is not None:
        checks.append(_same_integers(netx, request.network))
        notes += _other_steps(steps, request.network)
    else:
        notes.append(ALONE)
    lava = lava_remote.available(request.python)
    if lava:
        done = lava_remote.verify_netx(request.path, x.numpy(), python=request.python)
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


def _other_steps(steps: int, network: SpikingNetwork) -> list[str]:
    """Files may be written for another T than the network was planned for."""
    if steps == network.time_steps:
        return []
    return [f"the file is for T = {steps}, the network for T = {network.time_steps}"]


def _same_integers(netx: Any, network: SpikingNetwork) -> Check:
    """The file's integers and coding, and those of the network lowered anew."""
    from .lava.netx import parse_netx
    from .lava.writer import lower

    coding = netx.coding
    bits = int(netx.attributes["weight_bits"])
    again = parse_netx(
        lower(
            network, netx.profile, netx.time_steps, bits, coding.low, coding.step, coding.levels
        ).content,
        netx.path,
    )
    return _contents(
        "integers of the file and of the network lowered anew", _integers(netx), _integers(again)
    )


def _integers(netx: Any) -> dict[str, Any]:
    layers = {layer.name: dict(vars(layer)) for layer in netx.layers}
    rest = [netx.profile, netx.time_steps, netx.readout_scale, dict(vars(netx.coding))]
    return {**layers, "coding and read-out": rest}


def _embed_netx(data: bytes, certificate: str) -> bytes:
    from .lava.netx import SEAL

    return _with_attribute(data, certificate, SEAL)


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


def _version(package: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package)}


VERIFIERS = {"hdf5": _verify_hdf5, "nir": _verify_nir, "lava": _verify_netx}
EMBEDDERS = {"hdf5": _embed_hdf5, "nir": _embed_nir, "lava": _embed_netx}
