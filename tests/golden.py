"""The golden record: what the package computes and writes, as hashes, and how two trees differ.

    python tests/golden.py record --out FILE [--only SUBSTRING] [--jobs N]
    python tests/golden.py compare --base REV [--only SUBSTRING] [--jobs N]

A change that is to leave every number as it was is held against the revision before it. Each row is
a name and a sha256: a node of a description, the spikes of a neuron, the read-out after a step, a
table of costs, the content of a file, the type of a refusal. A *case* is one network with one
setting of ``convert``, ``digits/resnet/signgd-m1-T8``; ``--only`` chooses cases by what their name
contains. ``compare`` runs this script, as it stands here, on both trees; what it finds for the
revision is kept in .cache/golden for the next comparison. Files that the revision writes are also
run by the tree as it is: the rows ``replay/...``, which no change of a conversion's defaults moves.

All values are those of one thread. Between machines they differ, by the rounding of convolutions.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "spikingjelly_signgd"
CACHE = ROOT / ".cache" / "golden"

# rows that may differ: the beginning of their names, and why
EXCEPTIONS: dict[str, str] = {
    f"digits/vgg_avg/{setting}/decoded/op_counter/": "the spikes of the rate-coded baseline and of "
    "averaged Poisson coding are counted; they were taken for none"
    for setting in ("subgradient", "subgradient-poisson")
} | {
    f"{data}/resmlp/{setting}/{rows}": "what follows from the input and a sum that meet one weight "
    "in the first step are one multiply-accumulate; they were two"
    for data in ("digits", "fashion")
    for setting in ("signgd-m1-T8", "signgd-m4-T2", "signgd-m8-T1", "keep")
    for rows in ("decoded/operations/", "decoded/energy/", "signed/operations/", "signed/energy/",
                 "neurobench")
} | {
    f"{data}/{network}/signgd-m1-T8/hdf5/verified": "a neuron has one field more that is compared"
    for data in ("digits", "fashion")
    for network in ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit", "lava_gelu")
}  # fmt: skip

# What is no public name, and where it may lie: "module:attribute", the first that is there.
INSIDE = {
    "poisson_spikes": ("neurons:poisson_spikes", "neurons.coding:poisson_spikes"),
    "PoissonCodingParameters": (
        "neurons:PoissonCodingParameters",
        "neurons.coding:PoissonCodingParameters",
    ),
    "Runner": ("exporters:Runner", "exporters.hdf5.runner:Runner"),
    "NirRunner": ("exporters:NirRunner", "exporters.nir.runner:NirRunner"),
    "read_nir": ("exporters:read_nir", "exporters.nir:read_nir"),
    "read_netx": ("exporters:read_netx", "exporters.lava:read_netx"),
    "compare_functions": ("converters:compare_functions",),
    "count": ("plugins.op_counter:count",),
    "NeuroBenchNetwork": ("plugins.neurobench:NeuroBenchNetwork",),
    "AllSynapticOperations": ("plugins.neurobench:AllSynapticOperations",),
}


def forms_named(function: str, value: Any) -> dict[str, Any]:
    """The option of ``sg.check`` or ``sg.convert`` for forms of functions, by the tree's name."""
    import spikingjelly_signgd as sg

    known = inspect.signature(getattr(sg, function)).parameters
    return {"forms" if "forms" in known else "functions": value}


def every_sign(method: Any) -> dict[str, Any]:
    """The option of ``sg.convert`` for signGD neurons that fire at every step, which all did."""
    import spikingjelly_signgd as sg

    methods = set(method.values()) if isinstance(method, Mapping) else {method}
    known = "dead_zone" in inspect.signature(sg.convert).parameters
    return {"dead_zone": 0.0} if known and "signgd" in methods else {}


def inside(name: str) -> Any:
    missing: Exception | None = None
    for place in INSIDE[name]:
        module, attribute = place.split(":")
        try:
            return getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)
        except (ModuleNotFoundError, AttributeError) as error:
            missing = error
    raise LookupError(f"{name} is at none of {', '.join(INSIDE[name])}: {missing}")


# -- settings --------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """``options`` of convert, and ``also``: what is recorded besides, see ``_Case.run``."""

    options: dict[str, Any]
    time_steps: int
    also: tuple[str, ...] = ()


# every argument that has a default. schedule and input_scale are None: rules, which have no name
EXPLICIT: dict[str, Any] = {
    "method": "signgd",
    "preset": "default",
    "schedule": None,
    "input_coding": "exact",
    "input_scale": None,
    "scale": "channel",
    "resting": "zero",
    "momentum": 0.0,
    "members": None,
    "signed": None,
    "keep": (),
    "functions": "whole",
    "tune": False,
    "max_batches": None,
    "seed": 0,
}
PAPER = EXPLICIT | {
    "preset": "paper",
    "input_coding": None,
    "scale": None,
    "resting": None,
    "functions": None,
}


def _signgd(members: Any, time_steps: int, *also: str, **options: Any) -> Setting:
    return Setting(EXPLICIT | {"members": members} | options, time_steps, also)


def _group(members: int, time_steps: int, signed: bool, *also: str, **options: Any) -> Setting:
    # tune=False leaves thresholds unrefined, which they always were before
    options = {"method": "group", "members": members, "signed": signed, "tune": None} | options
    return Setting(EXPLICIT | options, time_steps, also)


def settings(kind: str, data: str, network: str) -> dict[str, Setting]:
    """The settings for networks of a kind: "gelu", "relu", with "avg" in place of max pooling, or
    "qcfs"."""
    import spikingjelly_signgd as sg

    part = PARTS[network]

    real = {"input_coding": "real", "input_scale": 1.0}
    always = {
        "signgd-m1-T8": _signgd(1, 8, "more"),
        "signgd-m4-T2": _signgd(4, 2),
        "signgd-m8-T1": _signgd(8, 1),
    }
    further = {
        "real": _signgd(1, 6, **real),
        "spike": _signgd(1, 6, **real | {"input_coding": "spike"}),
        "poisson": _signgd(1, 6, **real | {"input_coding": "poisson"}),
        "momentum": _signgd(
            1, 6, momentum=0.5, schedule=sg.ExponentialSchedule(0.15, 0.95), **real
        ),
        "paper": Setting(PAPER, 6),
        "local": _signgd(1, 4, functions="local"),
        "mean-tensor": _signgd(2, 3, resting="mean", scale="tensor"),
        "unit-list": _signgd(1, 4, scale="unit", schedule=sg.ListSchedule((1.0, 0.5, 0.3, 0.2))),
        "published-inverse": _signgd(
            1, 4, scale="published", schedule=sg.InverseSchedule(1.0, 1.0)
        ),
        "constant": _signgd(1, 3, schedule=sg.ConstantSchedule(0.25)),
        "keep": _signgd(1, 4, keep=(part,)),
        "members": _signgd({"": 1, part: 4}, 4),
    }
    group = {
        "group-m4-T2": _group(4, 2, False, "more"),
        "group-m1-T8": _group(1, 8, False, "dialects"),
    }
    mixed = {
        "signed-m4-T2": _group(4, 2, True, "more"),
        "signed-m2-T4": _group(2, 4, True),
        "group-poisson": _group(4, 3, False, input_coding="poisson", input_scale=1.0),
        "group-published": _group(4, 2, False, scale="published"),
        "mixed": _signgd({"": 1, part: 4}, 4, method={"": "signgd", part: "group"}, signed=True),
        "mixed-group": _signgd(
            {"": 4, part: 2}, 2, method={"": "group", part: "signgd"}, signed=False
        ),
    }
    baseline = {
        "subgradient": Setting(EXPLICIT | {"method": "subgradient"}, 6),
        "subgradient-poisson": Setting(
            EXPLICIT | {"method": "subgradient", "input_coding": "poisson", "input_scale": 1.0}, 6
        ),
    }
    if kind == "qcfs":
        group |= {"group-m8-T1": _group(8, 1, False), "signed-m4-T2": _group(4, 2, True, "more")}
        chosen = {**group, "signgd-m4-T2": always["signgd-m4-T2"], "mixed": mixed["mixed"]}
        return chosen if data == "digits" else {"group-m4-T2": group["group-m4-T2"]}
    if kind == "avg":  # what max pooling refuses: the rate-coded baseline, and NIR
        return group | baseline | {"signed-m4-T2": mixed["signed-m4-T2"]}
    if data != "digits":
        return always if kind == "gelu" else always | {"signed-m4-T2": mixed["signed-m4-T2"]}
    further = {name: further[name] for name in FURTHER.get(network, further)}
    refused = {"subgradient": baseline["subgradient"]}
    if kind == "gelu":
        return always | further | refused | {"group": _group(4, 2, False)}
    few = {name: mixed[name] for name in ("signed-m4-T2", "mixed")}
    return always | further | (group | mixed if network == "resnet" else few) | refused


def lava_settings(network: str) -> dict[str, Setting]:
    if network == "gelu":
        return {
            "signgd-m1-T8": _signgd(1, 8, "more"),
            "double": _signgd(1, 8, "double"),
            "tuned": _signgd(2, 3, "tune"),
            "functions": _signgd(1, 3, "functions"),
        }
    return {
        "group-m4-T1": _group(4, 1, False, "lava"),
        "group-m2-T2": _group(2, 2, False, "lava"),
        "group-m1-T4": _group(1, 4, False, "lava", "dialects"),
        "signgd-m1-T8": _signgd(1, 8),
    }


PARTS = {
    "vgg": "2",
    "resnet": "layer1",
    "convnext": "stage1",
    "mixer": "blocks.0",
    "resmlp": "blocks.0",
    "vit": "blocks.0",
}
# of the further settings those of networks that do not have them all; conversions take the time
FURTHER = {
    "vgg": ("poisson", "paper", "local", "keep"),
    "resnet": ("real", "published-inverse", "members"),
    "mixer": ("paper", "mean-tensor", "members"),
    "resmlp": ("real", "momentum", "keep"),
    "vit": ("paper", "local"),
}
LAVA = ("mlp", "conv", "gelu")
# of each data set; sorted so that workers that take every n-th have about the same to do
MODELS = [
    *(f"digits/{name}" for name in PARTS),
    *(f"fashion/{name}" for name in PARTS),
    *(f"{d}/{n}_qcfs{k}" for d in ("digits", "fashion") for n in ("vgg", "resnet") for k in (4, 8)),
    *(f"digits/lava_{name}" for name in LAVA),
    "digits/vgg_avg",
]
DIAGNOSED = (
    "digits/vgg/signgd-m4-T2",
    "digits/convnext/signgd-m1-T8",
    "digits/resnet/signed-m4-T2",
)


def cases_of(model: str) -> dict[str, Setting]:
    data, name = model.split("/")
    if name.startswith("lava_"):
        found = lava_settings(name.removeprefix("lava_"))
    else:
        base, _, variant = name.partition("_")
        kinds = {"": "relu" if base in ("vgg", "resnet") else "gelu", "avg": "avg"}
        kind = kinds.get(variant, "qcfs")
        found = settings(kind, data, base)
    return {f"{model}/{setting}": value for setting, value in found.items()}


# -- rows ------------------------------------------------------------------------------------------


@dataclass
class Record:
    """``rows`` name -> sha256; ``values`` what can be read, of small tables; ``notes``."""

    rows: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        assert name not in self.rows, name
        self.rows[name] = digest(value)
        shown = readable(value)
        if len(json.dumps(shown)) <= 1000:
            self.values[name] = shown

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A refusal is a row, and so is a crash: one that the other tree does not have is seen."""
        import spikingjelly_signgd as sg

        try:
            yield
        except (sg.SignGDError, ValueError) as error:
            self.add(f"{name}/refused", type(error).__name__)
        except Exception as error:
            self.add(f"{name}/crashed", type(error).__name__)
            self.notes.append(f"{name} crashed: {type(error).__name__}: {error}")

    def merge(self, other: Record) -> None:
        self.rows |= other.rows
        self.values |= other.values
        self.notes += [note for note in other.notes if note not in self.notes]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        return cls(**json.loads(path.read_text()))

    def chosen(self, only: str) -> Record:
        def wanted(name: str) -> bool:
            return only in "/".join(name.removeprefix("replay/").split("/")[:3])

        rows = {name: value for name, value in self.rows.items() if wanted(name)}
        values = {name: value for name, value in self.values.items() if name in rows}
        return Record(rows, values, self.notes)


def plain(value: Any) -> Any:
    """Dicts, lists, numbers, strings and arrays, without names of classes or modules."""
    if hasattr(value, "detach"):
        value = value.detach()
        return value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    if hasattr(value, "parameters") and hasattr(value, "fires_at_tie"):  # a nonlinearity
        return {
            f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name != "function"
        }
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        found = {name: item for name, item in found.items() if not new_and_off(name, item)}
        kind = getattr(value, "kind", None)
        return found if kind is None else {"kind": kind, **found}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)) or hasattr(value, "dtype"):
        return value
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"the record has no form for {type(value).__name__}")


# Fields that came later, and what they are where nobody asked for them
OFF = {"dead_zone": 0.0, "dtype": "float"}


def new_and_off(name: str, value: Any) -> bool:
    return name in OFF and type(value) is type(OFF[name]) and value == OFF[name]


# what is told beside the counts and energies of earlier revisions, and what is told no more
NEWER = ("additions_per_mac", "parts_per_mac", "dense", "int8", "break_even_int8")
OLDER = ("break_even", "break_even_whole", "break_even_limit")  # in T; now in additions


def without(table: Any, names: Sequence[str]) -> Any:
    """Nested tables without the entries of these names, changed in place."""
    for name in names if isinstance(table, dict) else ():
        table.pop(name, None)
    for each in table.values() if isinstance(table, dict) else ():
        without(each, names)
    return table


def counts_shown(text: str) -> str:
    """Counts and energies as text, without additions for each MAC, points of break-even and the
    quantised source, whose bits were those of equal spikes."""
    text = text.replace("at every step, together", "in all steps together").replace(
        "the spikes of a step handed on whole, a small integer times the weight",
        "all spikes of a step sent as one integer, which multiplies the weight",
    )
    text = re.sub(r"T=\d+: additions per MAC (.+\n)+\n", "", text)
    text = re.sub(r"additions per MAC .*\n|.*nothing here is sparse.*\n", "", text)
    text = re.sub(r"the source with activations (of|quantised) .*\n(.+\n)+", "", text)
    kept, in_t = [], False
    for line in text.split("\n"):
        in_t = bool(line) and (in_t or line.endswith("break-even T"))
        kept.append(re.sub(r" {2,}(\S+ )?\S+$", "", line) if in_t else line)
    return "\n".join(kept)


def in_newer_words(text: str) -> str:
    """What is told, with the words that have been others before."""
    for older, newer in (("mended", "fixed"), ("mends", "fixes"), ("mend", "fix")):
        text = re.sub(rf"\b{older}\b", newer, text)
    return text


def digest(value: Any) -> str:
    found = hashlib.sha256()

    def put(value: Any) -> None:
        if isinstance(value, Mapping):
            found.update(f"dict {len(value)}\n".encode())
            for key in sorted(value):
                found.update(f"{key!r}\n".encode())
                put(value[key])
        elif isinstance(value, list):
            found.update(f"list {len(value)}\n".encode())
            for item in value:
                put(item)
        elif hasattr(value, "dtype") and value.dtype.kind != "O":
            found.update(f"array {value.dtype.str} {value.shape}\n".encode())
            found.update(value.tobytes())
        elif hasattr(value, "dtype"):
            put([str(value.shape), *(text(item) for item in value.ravel().tolist())])
        else:
            found.update(f"{value!r}\n".encode())

    put(plain(value))
    return found.hexdigest()


def readable(value: Any) -> Any:
    value = plain(value)

    def shown(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shown(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shown(item) for item in value]
        if hasattr(value, "dtype"):
            small = value.size <= 40 and value.dtype.kind in "biuf"
            return value.tolist() if small else f"{value.dtype} {list(value.shape)}"
        return value

    return shown(value)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# what a file says of when, by what and by which release it was written
UNDATED = ("certificate", "checksum", "version")


def file_content(path: Path) -> dict[str, Any]:
    """All of an HDF5 file, by the paths in it, without dates and versions of packages."""
    import h5py

    found: dict[str, Any] = {}

    def undated(name: str, value: Any) -> Any:
        if name.split(".")[0] != "provenance":
            return value
        raw = value.tobytes() if getattr(value, "dtype", None) == "u1" else value
        return _undated(json.loads(text(getattr(raw, "item", lambda: raw)())))

    def visit(name: str, item: Any) -> None:
        for key in sorted(item.attrs):
            if key not in UNDATED:
                found[f"{name}@{key}"] = undated(key, item.attrs[key])
        last = name.rpartition("/")[2]
        if isinstance(item, h5py.Dataset) and last not in UNDATED:
            value = undated(last, item[()])
            found[name] = value.hex() if isinstance(value, bytes) else value

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


def _undated(provenance: Any) -> Any:
    """Without the versions of packages, and the seconds that something took."""
    if isinstance(provenance, Mapping):
        left_out = ("torch", "versions", "seconds")
        return {k: _undated(v) for k, v in provenance.items() if k not in left_out}
    if isinstance(provenance, (list, tuple)):
        return [_undated(item) for item in provenance]
    return provenance


# -- one case --------------------------------------------------------------------------------------


class Images(NamedTuple):
    x: Any  # [3, 1, size, size], of the test images
    labels: Any
    calibration: Any
    more: Any  # a second set, larger


class _Case:
    """A network with a setting: everything that is recorded of it.

    ``files`` is the folder for the files it writes, ``replayed`` that of files to run.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        setting: Setting,
        images: Images,
        record: Record,
        files: Path,
        replayed: Path,
    ) -> None:
        self.name, self.model, self.setting, self.record = name, model, setting, record
        self.x, self.labels, self.calibration, self.more = images
        self.steps = tuple(range(1, setting.time_steps + 1))
        self.file = f"{name.replace('/', '__')}.h5"
        self.files, self.replayed = files, replayed

    def run(self) -> None:
        import torch

        torch.manual_seed(0)
        also = self.setting.also
        if "double" in also:
            self.model, self.x = self.model.double(), self.x.double()
            self.calibration = self.calibration.double()
        with self.record.attempt(self.name):
            network = self.converted()
            self.described(self.name, network)
            self.simulated(network)
            self.counted(network)
            self.written(network)
            if "more" in also:
                self.anytime(network)
            if "dialects" in also:
                self.nir_dialects(network)
            if self.name.endswith("/signgd-m4-T2"):  # the same with every setting
                self.checked()
            if "lava" in also:
                self.lava(network)
            if self.name in DIAGNOSED:
                self.diagnosed(network)
            if "functions" in also:
                self.compared_functions()
        self.replay()

    def converted(self) -> Any:
        import spikingjelly_signgd as sg

        options = self.setting.options
        calibration = self.calibration
        if self.name.startswith("fashion") and options["method"] == "group":
            calibration = calibration[:8]  # the search for thresholds takes long on 28 x 28
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network = sg.convert(
                self.model,
                calibration,
                time_steps=self.setting.time_steps,
                neurons=sg.NEURONS,
                **every_sign(options.get("method", "signgd")),
                **options,
            )
        own = (sg.LevelsWarning, sg.SaturationWarning)
        given = [w.category.__name__ for w in caught if issubclass(w.category, own)]
        self.record.add(f"{self.name}/warnings", given)
        if "tune" in self.setting.also:
            network = sg.tune(
                network,
                self.more,
                iterations=3,
                seconds=None,
                learn=("steps", "scales", "resting"),
                max_batches=None,
                seed=0,
            )
        return network

    def described(self, name: str, network: Any) -> None:
        add = self.record.add
        for node in network.nodes:
            add(f"{name}/node/{node.name}", node)
        add(f"{name}/outputs", network.outputs)
        add(f"{name}/time_steps", network.time_steps)
        add(f"{name}/statistics", network.statistics)
        add(f"{name}/provenance", _undated(plain(network.provenance)))
        add(f"{name}/counts", [network.count(1), network.kept(1), repr(network)])

    def simulated(self, network: Any) -> None:
        import torch

        import spikingjelly_signgd as sg

        for backend in ("spikingjelly", "norse"):
            for view in ("decoded", "signed"):
                name = f"{self.name}/{backend}-{view}"
                with self.record.attempt(name):
                    snn = sg.build(network, backend, spikes=view, kernels="auto")
                    self.ran(name, snn)
        rest = f"{self.name}/spikingjelly"
        with self.record.attempt(f"{rest}-torch"):
            snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="torch")
            self.ran(f"{rest}-torch", snn)
        with self.record.attempt(f"{rest}-sequence"):
            snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto")
            x_seq = torch.stack([self.x * (1 - t / 16) for t in self.steps])
            found = sg.run(snn, x_seq, self.steps, sequence=True, chunk=2)
            self.read_out(f"{rest}-sequence", found)
        with self.record.attempt(f"{rest}-single"), torch.no_grad():
            snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto", step_mode="s")
            self.read_out(f"{rest}-single", {t: snn(self.x) for t in self.steps})
        with self.record.attempt(f"{self.name}/norse-single"), torch.no_grad():
            norse = sg.build(network, "norse", spikes="decoded", kernels="auto")
            state, found = None, {}
            for t in self.steps:
                found[t], state = norse(self.x, state)
            self.read_out(f"{self.name}/norse-single", found)

    def ran(self, name: str, snn: Any) -> None:
        """Read-outs of every step, and the spikes and decoded values of every neuron."""
        import spikingjelly_signgd as sg

        self.read_out(name, sg.run(snn, self.x, self.steps, sequence=False, chunk=3))
        found = sg.analysis.record(snn, self.x, self.setting.time_steps, None)
        for neuron, spikes in found.spikes.items():
            self.record.add(f"{name}/spikes/{neuron}", spikes)
            self.record.add(f"{name}/decoded/{neuron}", found.decoded[neuron])
            self.record.add(f"{name}/source/{neuron}", found.source[neuron])
        chosen = snn.choices(self.x)
        self.record.add(f"{name}/backends", {key: choice[0] for key, choice in chosen.items()})

    def read_out(self, name: str, outputs: Mapping[int, Any]) -> None:
        for t, value in outputs.items():
            self.record.add(f"{name}/readout/{t}", value)

    def counted(self, network: Any) -> None:
        import spikingjelly_signgd as sg

        for view in ("decoded", "signed"):
            name = f"{self.name}/{view}"
            with self.record.attempt(f"{name}/operations"):
                snn = sg.build(network, "spikingjelly", spikes=view, kernels="auto")
                steps = sorted({1, self.setting.time_steps})
                found = sg.analysis.count_operations(snn, self.x, steps)
                for t, operations in found.items():
                    table = operations.to_dict(each=True)
                    layers = without(table, NEWER).pop("layers")
                    self.record.add(f"{name}/operations/{t}", table)
                    self.record.add(f"{name}/operations/{t}/layers", layers)
                    shown = counts_shown(str(operations))
                    self.record.add(f"{name}/operations/{t}/shown", shown)
            with self.record.attempt(f"{name}/energy"):
                steps = sorted({1, self.setting.time_steps})
                snn = sg.build(network, "spikingjelly", spikes=view, kernels="auto")
                tables = sg.analysis.TABLES
                energy = sg.analysis.estimate_energy(snn, self.x, steps, tables=tables)
                table = without(energy.to_dict(), (*NEWER, *OLDER))
                del table["bits"], table["quantised"]
                self.record.add(f"{name}/energy/table", table)
                self.record.add(f"{name}/energy/shown", counts_shown(str(energy)))
            with self.record.attempt(f"{name}/op_counter"):
                snn = sg.build(network, "spikingjelly", spikes=view, kernels="auto")
                for events in (False, True):
                    counts = inside("count")(snn, self.x, self.setting.time_steps, events=events)
                    self.record.add(f"{name}/op_counter/{events}", counts._asdict())
        if "more" in self.setting.also:
            with self.record.attempt(f"{self.name}/neurobench"):
                self.benchmarked(network)

    def benchmarked(self, network: Any) -> None:
        if not all(map(importlib.util.find_spec, ("neurobench", "snntorch"))):
            self.note("NeuroBench is not installed: there are no rows of its adapter.")
            return
        from neurobench.benchmarks import Benchmark
        from neurobench.metrics.workload import SynapticOperations
        from torch.utils.data import DataLoader, TensorDataset

        import spikingjelly_signgd as sg

        snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto")
        model = inside("NeuroBenchNetwork")(snn, self.setting.time_steps)
        batches = DataLoader(TensorDataset(self.x, self.labels), len(self.x))
        metrics = [[], [SynapticOperations, inside("AllSynapticOperations")]]
        found = Benchmark(model, batches, [], [lambda out: out.argmax(1)], metrics).run(quiet=True)
        self.record.add(f"{self.name}/neurobench", found)

    def written(self, network: Any) -> None:
        import spikingjelly_signgd as sg

        path = self.files / self.file
        name = f"{self.name}/hdf5"
        with self.record.attempt(name):
            sg.save(network, path)
            self.record.add(f"{name}/content", file_content(path))
            again = sg.load(path)
            self.record.add(f"{name}/loaded", [again.nodes, again.outputs, again.time_steps])
            self.runner(name, again, path)
        if "more" in self.setting.also:
            with self.record.attempt(f"{name}/verified"):
                found = sg.verify(
                    path,
                    self.x,
                    network=network,
                    format="hdf5",
                    time_steps=self.setting.time_steps,
                    samples=2,
                    seed=0,
                    functions=None,
                    python=None,
                    embed=False,
                ).to_dict()
                dated = ("path", "content", "versions")
                self.record.add(
                    f"{name}/verified", {k: v for k, v in found.items() if k not in dated}
                )
        for mode in ("exact", "platform"):
            self.nir(network, mode, "nir", "pool")

    def runner(self, name: str, network: Any, path: Path) -> None:
        """The NumPy runner: both precisions and views, and the delays of a chip."""
        for dtype in ("float32", "float64"):
            run = inside("Runner")(path, dtype, None)
            for view in ("spike", "decoded", "delay")[: 2 if dtype == "float32" else 3]:
                where = f"{name}/runner-{dtype}-{view}"
                with self.record.attempt(where):
                    found = run.run(
                        self.x.numpy(),
                        self.steps,
                        delay=view == "delay",
                        sequence=False,
                        view=run.view if view == "delay" else view,
                        record=True,
                        values=True,
                        input_spikes=self.poisson(network),
                    )
                    self.read_out(where, found.outputs)
                    for neuron, spikes in found.spikes.items():
                        both = [spikes, found.values[neuron]]
                        self.record.add(f"{where}/spikes/{neuron}", both)
                    self.record.add(f"{where}/lags", [found.lags, found.output_lag, found.steps])

    def poisson(self, network: Any) -> Any:
        """The draws of a Poisson encoder, which the NumPy runner is given."""
        import torch

        for node in network.nodes:
            if node.kind == "encoder" and node.coding == "poisson":
                p = inside("PoissonCodingParameters")(scale=node.scale, seed=node.seed)
                draw = inside("poisson_spikes")
                return torch.stack([draw(self.x, t, p) for t in self.steps]).numpy()
        return None

    def nir(self, network: Any, mode: str, dialect: str, pooling: str) -> None:
        import spikingjelly_signgd as sg

        name = f"{self.name}/nir-{mode}-{dialect}-{pooling}"
        path = self.files / f"{self.file}-{mode}-{dialect}-{pooling}.nir"
        with self.record.attempt(name):
            report = sg.export(
                network,
                path,
                "nir",
                mode=mode,
                dialect=dialect,
                pooling=pooling,
                time_steps=self.setting.time_steps,
                strict=False,
            )
            self.record.add(f"{name}/report", report)
            self.record.add(f"{name}/content", file_content(path))
            if mode == "exact":
                again = inside("read_nir")(path, time_steps=None)
                self.record.add(f"{name}/read", [again.nodes, again.outputs, again.time_steps])
            run = inside("NirRunner")(path, ties="strict", reset="v_reset", dt=None)
            sent = run.run(self.x[:1].numpy(), min(2, self.setting.time_steps), record=run.names())
            for node, value in sent.items():
                self.record.add(f"{name}/sent/{node}", value)

    def nir_dialects(self, network: Any) -> None:
        for dialect in ("legacy", "lif"):
            self.nir(network, "platform", dialect, "pool")
        for mode in ("exact", "platform"):
            self.nir(network, mode, "nir", "conv")

    def lava(self, network: Any) -> None:
        import spikingjelly_signgd as sg

        for profile in ("group", "group-graded", "if-soft", "if-hard"):
            name = f"{self.name}/netx-{profile}"
            path = self.files / f"{self.file}-{profile}.net"
            with self.record.attempt(name):
                report = sg.export(
                    network,
                    path,
                    "lava",
                    profile=profile,
                    time_steps=self.setting.time_steps,
                    weight_bits=8,
                    input_levels=16,
                    input_range=(0.0, 1.0),
                    calibration=self.calibration,
                    samples=(self.x, self.labels),
                    max_weights=2**22,
                )
                table = report.to_dict()
                table.pop("path")
                self.record.add(f"{name}/report", table)
                self.record.add(f"{name}/content", file_content(path))
                found = inside("read_netx")(path).run(self.x.numpy())
                for i, spikes in enumerate(found.spikes):
                    self.record.add(f"{name}/spikes/{i}", spikes)
                self.record.add(f"{name}/readout", found.membrane)
                self.record.add(f"{name}/extremes", [found.lowest, found.highest])

    def anytime(self, network: Any) -> None:
        import spikingjelly_signgd as sg

        steps = self.setting.time_steps
        for backend in ("spikingjelly", "norse"):
            name = f"{self.name}/{backend}"
            with self.record.attempt(f"{name}/stream"):
                snn = sg.build(network, backend, spikes="decoded", kernels="auto")
                for step in sg.stream(snn, self.x, steps, sequence=False):
                    found = [step.outputs, step.spikes, step.prediction, step.margin]
                    self.record.add(f"{name}/stream/{step.t}", found)
            with self.record.attempt(f"{name}/exit"):
                snn = sg.build(network, backend, spikes="decoded", kernels="auto")
                left = sg.early_exit(snn, self.more[:8], 2.0, steps, sequence=False)
                self.record.add(f"{name}/exit", left)
                rule = sg.calibrate_exit(snn, [self.more[:16]], None, 0.9, steps)
                self.record.add(f"{name}/exit-rule", rule)
        with self.record.attempt(f"{self.name}/evaluated"):
            snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto")
            batch = [(self.x, self.labels)]
            measured = sg.evaluate(snn, batch, self.steps, reference=self.model, chunk=3)
            self.record.add(f"{self.name}/evaluated", [measured.to_dict(), str(measured)])

    def checked(self) -> None:
        import spikingjelly_signgd as sg

        for functions in ("whole", "local"):
            with self.record.attempt(f"{self.name}/check-{functions}"):
                forms = forms_named("check", functions)
                check = sg.check(self.model, self.x, neurons=sg.NEURONS, **forms)
                table = check.to_dict()
                for row in table["rows"]:  # under its older name alone
                    row.pop("fix", None)
                shown = in_newer_words(str(check))
                self.record.add(f"{self.name}/check-{functions}", [table, shown])

    def diagnosed(self, network: Any) -> None:
        import spikingjelly_signgd as sg

        for kind, reference in (("model", self.model), ("alone", None)):
            name = f"{self.name}/doctor-{kind}"
            with self.record.attempt(name):
                snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto")
                found = sg.analysis.diagnose(
                    snn,
                    self.more[:8],
                    None,
                    reference=reference,
                    time_steps=(1, self.setting.time_steps),
                    neurons=sg.NEURONS,
                )
                table = json.loads(in_newer_words(json.dumps(found.to_dict())))
                table["notes"] = [note for note in table["notes"] if "dead_zone=2/3" not in note]
                for row in table.pop("layers"):
                    self.record.add(f"{name}/layer/{row['name']}", row)
                self.record.add(f"{name}/table", table)
                shown = re.sub(r"\n.*dead_zone=2/3.*", "", in_newer_words(str(found)))
                self.record.add(f"{name}/shown", shown)
                self.described(f"{name}/mended", found.apply())

    def compared_functions(self) -> None:
        name = f"{self.name}/functions"
        with self.record.attempt(name):
            options = {k: v for k, v in self.setting.options.items() if k != "functions"}
            options |= every_sign(options["method"])
            steps = self.setting.time_steps
            found = inside("compare_functions")(
                self.model, self.calibration, steps, samples=8, **options
            )
            self.record.add(name, [str(found), list(found.rows)])

    def replay(self) -> None:
        """A file that was written before, run as it is."""
        import spikingjelly_signgd as sg

        path, name = self.replayed / self.file, f"replay/{self.name}"
        if not path.exists():
            return
        with self.record.attempt(name):
            network = sg.load(path, functions=None)
            for node in network.nodes:
                self.record.add(f"{name}/node/{node.name}", node)
            snn = sg.build(network, "spikingjelly", spikes="decoded", kernels="auto")
            self.ran(f"{name}/spikingjelly", snn)
            snn = sg.build(network, "norse", spikes="decoded", kernels="auto")
            self.read_out(f"{name}/norse", sg.run(snn, self.x, self.steps, chunk=64))
            run = inside("Runner")(path, "float32", None)
            found = run.run(
                self.x.numpy(),
                self.steps,
                delay=False,
                sequence=False,
                view="decoded",
                record=True,
                values=True,
                input_spikes=self.poisson(network),
            )
            self.read_out(f"{name}/runner", found.outputs)
            for neuron, spikes in found.spikes.items():
                self.record.add(f"{name}/runner/spikes/{neuron}", spikes)

    def note(self, words: str) -> None:
        if words not in self.record.notes:
            self.record.notes.append(words)


# -- a tree ----------------------------------------------------------------------------------------


def work(models: Sequence[str], only: str, files: Path, replayed: Path) -> Record:
    """What the package that is imported here computes for ``models``."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # also fills fresh buffers with NaN
    package = Path(importlib.import_module(PACKAGE).__file__ or "").parent
    sys.path.insert(0, str(package / "examples"))
    networks, data, lava = map(importlib.import_module, ("networks", "data", "lava_digits"))
    record = Record()
    sets: dict[str, Any] = {}
    for model in models:
        cases = {name: s for name, s in cases_of(model).items() if only in name}
        which, network = model.split("/")
        if cases and which not in sets:
            try:
                sets[which] = data.DATA[which]()
            except FileNotFoundError as error:
                sets[which] = None
                record.notes.append(f"no rows of {which}: {error}")
        if not cases or sets[which] is None:
            continue
        for name, setting in cases.items():
            torch.manual_seed(0)
            if network.startswith("lava_"):
                loaded = lava.load(network.removeprefix("lava_"))
            elif network == "vgg_avg":
                loaded = networks.vgg(networks.SIZES[which], pool="avg").eval()
                loaded.load_state_dict(networks.load_network("vgg", which).state_dict())
            else:
                base, _, levels = network.partition("_qcfs")
                loaded = networks.load_network(base, which, int(levels) if levels else None)
            train, validation, test = sets[which]
            count = 3 if which == "digits" else 2
            images = Images(
                test.images[:count],
                test.labels[:count],
                train.images[:32],
                validation.images[:80],
            )
            _Case(name, loaded, setting, images, record, files, replayed).run()
    return record


def recorded(tree: Path, only: str, jobs: int, files: Path, replayed: Path | None) -> Record:
    """The record of the package at ``tree``, by ``jobs`` processes of their own."""
    files.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / PACKAGE).symlink_to(tree)
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        running = []
        for i in range(jobs):
            out = folder / f"{i}.json"
            command = [sys.executable, __file__, "work", "--out", str(out), "--only", only]
            command += ["--files", str(files), "--replayed", str(replayed or files)]
            command += ["--tree", str(tree), "--models", ",".join(MODELS[i::jobs])]
            running.append((out, subprocess.Popen(command, env=environment)))
        try:
            codes = [process.wait() for _, process in running]
        finally:
            for _, process in running:
                process.kill()  # those that an interruption leaves
        if any(codes):
            raise SystemExit(f"the record of {tree} failed; its processes ended with {codes}.")
        record = Record()
        for out, _ in running:
            record.merge(Record.load(out))
    return record


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The tree of a revision in a folder of its own, with the CPU kernels that belong to it."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / PACKAGE
        _git("worktree", "add", "--detach", str(tree), revision)
        try:
            _put_kernels(tree, revision)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


KERNELS = "neurons/kernels"
SOURCES = (
    *(f"{KERNELS}/*.{ending}" for ending in ("cuh", "cpp", "h")),
    *(f"{KERNELS}/build.py", "neurons/nonlinearities.py"),
)


def _put_kernels(tree: Path, revision: str) -> None:
    """This tree's library where the sources are the same, else one built anew; none where this
    tree has none: then torch computes on both."""
    built = sorted((ROOT / KERNELS).glob("_cpu*.so"))
    if not built:
        return
    if not _git("diff", "--name-only", revision, "--", *SOURCES):
        for library in built:
            (tree / KERNELS / library.name).symlink_to(library)
        return
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True)
    if done.returncode or not list((tree / KERNELS).glob("_cpu*.so")):
        raise SystemExit(f"the CPU kernels of {revision} are not built:\n{done.stderr}")


def baseline(revision: str, only: str, jobs: int) -> tuple[Record, Path]:
    """The record of a revision and the folder of its files, kept for the next time."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    key = digest([commit, Path(__file__).read_text(), _machine()])[:16]
    folder = CACHE / f"{commit[:10]}-{key}"
    kept = folder / "record.json"
    part = folder / f"{digest(only)[:16]}.json"
    if kept.exists():
        return Record.load(kept).chosen(only), folder / "files"
    if only and part.exists():
        return Record.load(part), folder / "files"
    with checkout(commit) as tree:
        record = recorded(tree, only, jobs, folder / "files", None)
    record.save(part if only else kept)
    return record, folder / "files"


def _machine() -> list[str]:
    """What rounding depends on besides the package."""
    packages = ("torch", "numpy", "spikingjelly", "norse", "nir", "h5py", "neurobench")
    found = [platform.platform(), platform.python_version()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    except OSError:
        found.append(platform.processor())
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    library = sorted(path.name for path in (ROOT / KERNELS).glob("_cpu*.so"))
    return [*found, *library, os.environ.get("FASHION_MNIST", "")]


# -- comparing -------------------------------------------------------------------------------------


class Difference(NamedTuple):
    row: str
    what: str  # "differs", "missing" or "new"
    excepted: str = ""  # why it may


def differences(
    base: Mapping[str, str], current: Mapping[str, str], exceptions: Mapping[str, str]
) -> list[Difference]:
    found = []
    for row in sorted(base.keys() | current.keys()):
        if base.get(row) == current.get(row):
            continue
        what = "new" if row not in base else "missing" if row not in current else "differs"
        why = next((why for prefix, why in exceptions.items() if row.startswith(prefix)), "")
        found.append(Difference(row, what, why))
    return found


def told(found: Iterable[Difference], base: Record, current: Record) -> Iterator[str]:
    """Lines that name the rows, and what can be read of both sides."""
    for row, what, why in found:
        yield f"{what:8}  {row}" + (f"  (allowed: {why})" if why else "")
        for side, record in (("base", base), ("here", current)):
            if row in record.values and what == "differs":
                yield f"          {side} {json.dumps(record.values[row])}"


def compare(revision: str, only: str, jobs: int, out: Path | None) -> int:
    base, files = baseline(revision, only, jobs)
    with tempfile.TemporaryDirectory() as scratch:
        current = recorded(ROOT, only, jobs, Path(scratch), files)
    if out is not None:
        current.save(out)
    found = differences(base.rows, current.rows, EXCEPTIONS)
    counted = [d for d in found if not d.excepted]
    lines = [*told(found, base, current), *dict.fromkeys([*base.notes, *current.notes])]
    lines.append(
        f"{len(current.rows)} rows, {len(base.rows)} of {revision}: {len(counted)} differences, "
        f"{len(found) - len(counted)} more that are allowed"
    )
    _say(*lines)
    if not base.rows:
        raise SystemExit(f"there is no case whose name contains {only!r}.")
    return int(bool(counted))


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "compare", "work"):
        command = commands.add_parser(name)
        command.add_argument("--only", default="", help="cases whose names contain this")
        command.add_argument("--jobs", type=int, default=1, help="processes")
        command.add_argument("--out", type=Path, required=name != "compare", help="a JSON file")
        if name == "compare":
            command.add_argument("--base", required=True, help="a revision")
        if name == "work":  # one process of the other two
            for option in ("--models", "--files", "--replayed", "--tree"):
                command.add_argument(option, required=True)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no worktree behind
    if given.command == "compare":
        return compare(given.base, given.only, given.jobs, given.out)
    if given.command == "record":
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            record = recorded(ROOT, given.only, given.jobs, Path(scratch), None)
        record.save(given.out)
        seconds = time.monotonic() - start
        _say(*record.notes, f"{len(record.rows)} rows in {seconds:.0f} s: {given.out}")
        return 0
    imported = Path(importlib.import_module(PACKAGE).__file__ or "").resolve().parent
    if imported != Path(given.tree).resolve():
        raise SystemExit(f"{PACKAGE} is imported from {imported}, not from {given.tree}.")
    models = given.models.split(",")
    work(models, given.only, Path(given.files), Path(given.replayed)).save(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
