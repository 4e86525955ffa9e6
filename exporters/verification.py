"""``verify``: reads a file back, replays it by an independent runner, and certifies what it found.

==========  =======================================  ============================================
format      replayed by                              compared with
==========  =======================================  ============================================
.h5         ``Runner`` (NumPy), float64 and float32,  the pure-torch definitions of the network
            without delays and with one a layer      that ``load`` reads
.nir        ``NirRunner`` (NumPy), which knows NIR's  the definitions of the network that
            primitives alone                         ``read_nir`` reads, and of ``network``
.net        ``Netx`` (NumPy, integers), and Lava      each other; ``network`` for what rounding cost
            itself where LAVA_PYTHON names one
==========  =======================================  ============================================
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import FormatError, InputError
from ..network import GroupNeuron, SpikingNetwork, leaves
from .definition import run_definition
from .files import write_whole
from .formats import SUFFIXES

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = {"float64": 1e-9, "float32": 1e-3}  # of read-outs, relative to the largest of them


@dataclass(frozen=True)
class Check:
    """One comparison. ``cells`` are (sample, neuron, step); ``layers`` holds those that differ.

    ``readout_error`` is the largest difference of a read-out over the largest read-out.
    ``required`` says that the file is wrong where anything differs; otherwise the figures tell what
    the format or the precision costs.
    """

    what: str
    cells: int
    mismatches: int
    layers: Mapping[str, int]
    readout_error: float
    tolerance: float
    required: bool

    @property
    def equal(self) -> bool:
        return self.mismatches == 0 and self.readout_error <= self.tolerance

    def __str__(self) -> str:
        wrong = ", ".join(f"{name} {count}" for name, count in self.layers.items() if count)
        verdict = "equal" if self.equal else "NOT EQUAL" if self.required else "differs"
        return (
            f"{verdict}: {self.what}: {self.mismatches} of {self.cells} cells differ"
            f"{f' ({wrong})' if wrong else ''}, read-outs within {self.readout_error:.2g}"
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

    @property
    def ok(self) -> bool:
        """Whether everything that has to be equal is; False where nothing was compared."""
        required = [check for check in self.checks if check.required]
        return bool(required) and all(check.equal for check in required)

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
    time_steps: int | None = None,
    samples: int = 8,
    seed: int = 0,
    functions: Mapping[str, Any] | None = None,
    python: str | os.PathLike[str] | None = None,
    embed: bool = True,
) -> Certificate:
    """Replay the file on x [B, ...] and compare spikes cell by cell, and read-outs.

    Without x, ``samples`` inputs are drawn with ``seed``: uniform in [0, 1), or in the range that a
    netx file codes. ``network`` is what the file was written from, to be compared with as well;
    ``time_steps`` are by default the file's. ``functions`` are the caller's own nonlinearities in
    an .h5 file, torch functions by name. ``python`` is an interpreter that has Lava, by default
    that of LAVA_PYTHON. ``embed`` writes the certificate into the file. Raises FormatError for a
    file that cannot be read, InputError.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower(), "")
    if format not in VERIFIERS:
        raise FormatError(
            f"cannot verify '{path}': its name ends in none of {', '.join(SUFFIXES)}."
        )
    if samples < 1:
        raise InputError(f"samples is at least 1, but it is {samples!r}.")
    request = _Request(path, x, network, time_steps, samples, seed, functions or {}, python)
    certificate = VERIFIERS[format](request)
    if embed:
        EMBEDDERS[format](path, json.dumps(certificate.to_dict()))
    return certificate


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
    """Spikes by layer, arrays or tensors of one shape, and read-outs in one structure."""
    import numpy as np

    cells, layers = 0, {}
    for name, spikes in expected.items():
        have, want = np.asarray(actual[name]), np.asarray(spikes)
        if have.shape != want.shape:
            raise FormatError(
                f"'{name}' is {list(have.shape)} in the file, not {list(want.shape)}."
            )
        cells += want.size
        layers[name] = int((have != want).sum())
    pairs = list(zip(_arrays(readouts), _arrays(expected_readouts), strict=True))
    largest = max((float(np.abs(b).max(initial=0)) for _, b in pairs), default=0.0)
    error = max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0)
    error = error / largest if largest else error
    return Check(what, cells, sum(layers.values()), layers, error, tolerance, required)


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
    from .description import load
    from .hdf5 import read
    from .runner import Runner

    content = read(request.path)
    network = load(request.path, functions=request.functions)
    steps = request.time_steps or network.time_steps
    x, inputs = request.inputs(network.input.shape[1:])  # type: ignore[arg-type]
    own = {name: _of_arrays(function) for name, function in request.functions.items()}
    checks = []
    notes = ["read-outs are compared after the last step, spikes at all of them"]
    for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
        runner = Runner(content, kind, own)
        view = "signed" if runner.view == "spike" else "decoded"
        coded = _poisson_spikes(network, x.to(dtype), steps)
        options: dict[str, Any] = {} if coded is None else {"input_spikes": coded}
        given = x.to(dtype).numpy()
        found = runner.run(given, steps, **options)
        exactly = kind == "float64"
        for of, meant in (("as it was saved", request.network), ("in the file", network)):
            if meant is None:
                continue
            wanted = run_definition(meant, x, steps, spikes=view, dtype=dtype)
            checks.append(
                compare(
                    f"NumPy runner and definitions of the network {of}, {kind}",
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
    from ..network import Encoder
    from ..neurons.coding import PoissonCodingParameters, poisson_spikes

    for node in network.nodes:
        if isinstance(node, Encoder) and node.coding == "poisson":
            p = PoissonCodingParameters(node.scale, node.seed)
            return torch.stack([poisson_spikes(x, t, p) for t in range(1, steps + 1)]).numpy()
    return None


def _embed_hdf5(path: Path, certificate: str) -> None:
    import h5py

    from .hdf5 import seal

    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+") as file:
        file.attrs["certificate"] = certificate
    write_whole(path, image.getvalue())
    seal(path)


# -- .nir -----------------------------------------------------------------------------------------


def _verify_nir(request: _Request) -> Certificate:
    import numpy as np

    from .nir_reader import import_nir, read_graph, to_network
    from .nir_runner import NirRunner

    nir = import_nir()
    graph = read_graph(request.path)
    metadata = graph.metadata or {}
    exact = metadata.get("mode") == "exact"
    # NIR says that a neuron fires strictly above its threshold and is reset to v_reset
    runner = NirRunner(graph)
    kind = "float64" if runner.dtype == np.float64 else "float32"
    notes, checks = [str(loss) for loss in str(metadata.get("losses", "")).splitlines()], []
    networks = {"as it was written": request.network}
    if exact:
        networks["in the file"] = to_network(graph, request.time_steps)
    meant = [network for network in networks.values() if network is not None]
    if not meant:
        raise FormatError(
            f"'{request.path}' is of mode {metadata.get('mode', 'unknown')!r}, which is not read "
            "back as a network; pass verify(path, network=...) to compare it with what it was "
            "written from."
        )
    steps = request.time_steps or meant[0].time_steps
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
        if network is None:
            continue
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
                sent[names[node.name]] / (node.parameters.theta if exact else 1.0)
            ).astype(np.int64)
            for node in neurons
        }
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
    if not exact:
        notes.append(
            "a platform file is no exact one; the figures tell what NIR's own semantics cost. "
            "Nothing in it has to be equal"
        )
    return request.certificate(
        "nir", content_hash(request.path), inputs, len(x), steps, checks, notes, _version("nir")
    )


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


def _embed_nir(path: Path, certificate: str) -> None:
    import h5py

    from .nir_reader import SEAL, sealed

    content = path.read_bytes()
    end = content.rfind(SEAL)
    image = io.BytesIO(content if end < 0 else content[:end])
    with h5py.File(image, "r+") as file:
        # beside the graph, where readers of NIR do not look
        file.attrs["certificate"] = certificate
    write_whole(path, sealed(image.getvalue()))


# -- .net -----------------------------------------------------------------------------------------


def _verify_netx(request: _Request) -> Certificate:
    from ..plugins import lava_remote
    from .lava_lowering import affine_maps, float_outputs
    from .netx_runner import read_netx

    netx = read_netx(request.path)
    steps = netx.time_steps
    if request.time_steps not in (None, steps):
        raise InputError(f"'{request.path}' was written for T = {steps}; write it again for more.")
    coding = netx.coding
    high = coding.low + coding.step * coding.levels
    shape = request.x.shape[1:] if request.x is not None else [coding.features]
    x, inputs = request.inputs(shape, coding.low, high)
    run = netx.run(x.numpy())
    found = {layer.name: spikes for layer, spikes in zip(netx.layers[:-1], run.spikes, strict=True)}
    checks, versions = [], {}
    notes = [f"profile {netx.profile}; spikes are those of every row, members and relays"]
    if lava_remote.available(request.python):
        spikes, membrane = lava_remote.run_netx(
            request.path, netx.encode(x.numpy()), python=request.python
        )
        of_lava = {layer.name: s for layer, s in zip(netx.layers[:-1], spikes, strict=True)}
        checks.append(
            compare("Lava and the integer runner", of_lava, found, membrane, run.membrane, 0, True)
        )
        versions["lava"] = "lava-nc 0.10.0, lava-dl 0.6.0"
    else:
        notes.append(
            "not run in Lava: no interpreter has it. Make one with tests/lava/install.sh and set "
            "LAVA_PYTHON"
        )
    if request.network is not None:
        maps = affine_maps(request.network, GroupNeuron, 2**26)
        flat = x.reshape(len(x), -1).numpy()
        exactly = float_outputs(maps, flat, steps)
        rounded = netx.outputs(run.membrane)
        wanted = run_definition(request.network, x, steps).spikes
        counts = dict(zip(found, netx.counts(run), strict=True))
        before = {  # [T, B, ...] as [B, groups, T]
            name: wanted[name].flatten(2).permute(1, 2, 0).numpy() for name in counts
        }
        checks.append(
            compare(
                "members that fire and read-outs, after and before rounding to integers",
                counts,
                before,
                rounded,
                exactly,
                0.0,
                False,
            )
        )
        same = int((exactly.argmax(1) == rounded.argmax(1)).sum())
        notes.append(f"{same} of {len(x)} predictions are those of the network before rounding")
    return request.certificate(
        "lava", content_hash(request.path), inputs, len(x), steps, checks, notes, versions
    )


def _embed_netx(path: Path, certificate: str) -> None:
    import h5py

    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "r+") as file:
        file.attrs["certificate"] = certificate
    write_whole(path, image.getvalue())


def content_hash(path: str | os.PathLike[str]) -> str:
    """sha256 over names, attributes and datasets of an HDF5 file, but for certificates."""
    import h5py
    import numpy as np

    digest = hashlib.sha256()

    def feed(name: str, value: Any) -> None:
        array = np.asarray(value)
        raw = array.astype("S") if array.dtype.kind in "OU" else array
        digest.update(f"{name} {array.shape} {raw.dtype.str} ".encode())
        digest.update(np.ascontiguousarray(raw).tobytes())

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
