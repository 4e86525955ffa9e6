"""The commands: from options to a document, its text and an exit code."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.distributed import Distributed
from ..core.evaluating import evaluate
from ..core.inputs import call
from ..core.modes import eval_mode
from ..core.module import NetworkModule
from ..core.network import SpikingNetwork
from ..core.registry import FORMATS, look_up
from ..core.running import build, run
from ..errors import BackendUnavailable, FormatError, InputError, SignGDError
from ..exporters.files import write_whole
from ..exporters.verification import CONTRADICTED, NOT_CHECKED, Certificate, shown_state
from .data import Data, Reading, load_data, shape_of
from .models import load_model
from .preparation import Preparation
from .results import check_results_file, counted, rows, said, write_results

OK, USAGE, UNSUPPORTED, UNVERIFIED, BELOW, UNCHECKED, INTERRUPTED = 0, 2, 3, 4, 5, 6, 130


# options that are arguments of sg.convert as they are
CONVERSION = (
    "time_steps signed preset tune tune_seconds objective keep scale resting momentum forms "
    "input_coding input_scale"
).split()
# of sg.fine_tune
FINE_TUNING = "additions epochs seconds lr batch_size amp resume distill temperature".split()
# and of sg.search
SEARCHING = (
    "spikes additions agreement methods iterations "
    "keep scale resting forms input_coding input_scale"
).split()
COUNTED = 32  # samples on which what a network sends is counted
# and of a format's writer, where it takes them
EXPORTING = (
    "time_steps mode dialect pooling reader strict "
    "profile weight_bits input_levels input_range max_weights".split()
)


class Refused(SignGDError):
    """An error with an exit code of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Result:
    """``document`` is what --json prints, ``text`` what a person reads."""

    document: dict[str, Any]
    text: str
    code: int = OK


OF_ANOTHER = Result({}, "")  # of a process that is not the first, which alone prints and writes


# -- the commands ---------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> Result:
    from ..plugins.forms import check as run_check

    if options.input is not None and options.data is not None:
        raise InputError("--input and --data both say what a sample is; leave one of them out.")
    model = load_model(options.model, options.weights)
    if options.data is None:
        generator = torch.Generator().manual_seed(options.seed)
        x = torch.rand(2, *options.input, generator=generator)
    else:
        options.samples = min(options.samples or 2, 2)
        x = _data(options).first(2)
    report = run_check(model, x, forms=options.forms)
    return Result(report.to_dict(), str(report), OK if report.ok else UNSUPPORTED)


def convert(options: argparse.Namespace) -> Result:
    from ..converters import Tuning
    from ..converters import convert as run_convert
    from ..exporters import save

    output = _output(options, (".h5", ".hdf5"))
    given = _given(options, CONVERSION)
    if options.method is not None:
        given["method"] = _by_path("--method", options.method, str)
    if options.members is not None:
        given["members"] = _by_path("--members", options.members, int)
    if options.sizes is not None:
        given["sizes"] = options.sizes
    if options.dead_zone is not None:
        given["dead_zone"] = _by_path("--dead-zone", options.dead_zone, _part)
    clip = options.stream and options.motion is None
    if options.stream:
        given |= _streams(options)
    model = load_model(options.model, options.weights)
    data = _data(options, clip)
    samples = data.x if options.stream else data.loader()
    network = run_convert(
        model,
        samples,
        seed=options.seed,
        max_batches=None,
        distributed=options.distributed,
        **given,
    )
    _check_left_out(data, options.world)
    if not options.world.first:
        return OF_ANOTHER
    network = _with_command(network, options)
    save(network, output, class_names=data.class_names)
    if options.stream:
        moving = data.x if clip else given["stream"].clips(data.first(COUNTED))
        cost, sends = _stream_cost(network, moving)
    else:
        cost, sends = _cost(network, data.first(COUNTED))
    tuning = Tuning.of(network)
    lines = [repr(network), *sends]
    if tuning is not None:
        before, after = tuning.error
        lines.append(
            f"tuned: output error {before:.4f} -> {after:.4f} on {tuning.held_out} samples"
        )
    elif isinstance(network.provenance.get("tuning"), dict):
        lines.append(f"not tuned: {network.provenance['tuning'].get('none', '')}")
    lines.append(f"written to {output}")
    document = {
        "ok": True,
        "path": str(output),
        "network": _described(network),
        "calibration_samples": data.x.shape[1] if clip else data.total,
        "tuning": None if tuning is None else tuning.to_dict(),
        "cost": cost,
        "provenance": dict(network.provenance),
    }
    return Result(document, "\n".join(lines))


def search(options: argparse.Namespace) -> Result:
    from ..converters import search as run_search
    from ..exporters import save

    output = _output(options, (".h5", ".hdf5"))
    given = _given(options, SEARCHING)
    if options.dead_zone is not None:
        given["dead_zone"] = _by_path("--dead-zone", options.dead_zone, _part)
    model = load_model(options.model, options.weights)
    data = _data(options)
    network = run_search(
        model,
        data.loader(),
        seed=options.seed,
        max_batches=None,
        distributed=options.distributed,
        **given,
    )
    _check_left_out(data, options.world)
    if not options.world.first:
        return OF_ANOTHER
    network = _with_command(network, options)
    save(network, output, class_names=data.class_names)
    cost, sends = _cost(network, data.first(COUNTED))
    found = network.provenance["search"]
    agrees = "none" if found["agreement"] is None else f"{100 * found['agreement']:.2f} %"
    tried = (
        f"{len(found['tried'])} networks tried; agreement {agrees} on {found['samples']} samples"
    )
    document = {
        "ok": True,
        "path": str(output),
        "network": _described(network),
        "calibration_samples": data.total,
        "search": found,
        "cost": cost,
        "provenance": dict(network.provenance),
    }
    return Result(document, "\n".join([repr(network), tried, *sends, f"written to {output}"]))


def fine_tune(options: argparse.Namespace) -> Result:
    from ..converters import fine_tune as run_fine_tune
    from ..exporters import save

    output = _output(options, (".h5", ".hdf5"))
    network, data = _network_and_data(options)
    outputs: dict[str, Any] = {"temperature": None, "labels": False} if options.no_classes else {}
    found = run_fine_tune(
        network,
        data.x if data.y is None else (data.x, data.y),
        validation=_held_out(options, network),
        seed=options.seed,
        simulator=options.simulator,
        **_given(options, FINE_TUNING),
        **outputs,
    )
    tuned = _with_command(found.network, options)
    save(tuned, output, class_names=data.class_names)
    cost, sends = _cost(tuned, data.first(COUNTED))
    document = {
        "ok": True,
        "path": str(output),
        "network": _described(tuned),
        "training_samples": data.total,
        "fine_tuning": found.to_dict(),
        "cost": cost,
        "provenance": dict(tuned.provenance),
    }
    lines = [str(found), *sends, f"written to {output}"]
    return Result(document, "\n".join(lines))


def _held_out(options: argparse.Namespace, network: SpikingNetwork) -> Any:
    """--validation, prepared as --data is; None unless given."""
    if options.validation is None:
        return None
    given = argparse.Namespace(**vars(options))
    given.data, given.labels, given.samples = options.validation, options.validation_labels, None
    data = _fitting(given, network)
    return data.x if data.y is None else (data.x, data.y)


def evaluate_(options: argparse.Namespace) -> Result:
    if options.min_accuracy is not None and options.labels is None:
        _may_have_labels(options.data)
    results = _results_file(options)
    network, data = _network_and_data(options, clips=True)
    if data.clip and (options.resume or options.world.size > 1):
        raise InputError(
            "frames of a clip follow each other, so that one process evaluates them from the first "
            "to the last; leave --resume away, and start the command without torchrun."
        )
    if network.carries and options.reference is not None:
        raise InputError(
            f"--reference: the network feeds {', '.join(network.carries)} itself, and is compared "
            "with the source in its file, which is run with its own memory. Leave --reference out."
        )
    snn = build(network, options.simulator)
    reference, origin = _reference(options, snn, data)
    steps = _steps(options, network)
    resumed = options.resume is not None and _has_lines(options.resume)
    begun = time.perf_counter()
    table = evaluate(
        snn,
        data.loader(options.batch_size),
        steps,
        reference=reference,
        metric=_metrics(options.metric),
        keep_state=data.clip,
        distributed=options.distributed,
        resume=options.resume,
        data=data.fingerprint if options.world.size > 1 or options.resume else None,
    )
    seconds = time.perf_counter() - begun
    data.check_skipped(table.skipped)
    if results is not None:
        sent = counted(snn, data, table.time_steps, options.counted)
        images = None if resumed else table.samples
        write_results(results, rows(table, said(options, network, seconds, images), sent))
    last = table.time_steps.index(max(table.time_steps))
    failed = []
    for name, values in (("agreement", table.agreement), ("accuracy", table.accuracy)):
        least, found = getattr(options, f"min_{name}"), values[last]
        if least is None:
            continue
        if found is None and name == "agreement":
            each = [own["agreement"][last] for own in table.outputs.values() if "agreement" in own]
            found = min((value for value in each if value is not None), default=None)
        if found is None:
            if table.outputs and not isinstance(network.outputs, str):
                raise InputError(f"--min-{name}: no output was measured so; see --metric.")
            if table.error[last] is not None and (name == "agreement" or data.labelled):
                raise InputError(
                    f"--min-{name}: the network has one class only, so there is no prediction."
                )
            raise InputError(
                f"--min-{name} needs labels: '{options.data}' has none; give --labels."
            )
        if found < least:
            failed.append(
                f"{name} {found:.4f} at T = {max(table.time_steps)} is below --min-{name} {least:g}"
            )
    text = f"{table}\n{data.counted(table.samples)} of {options.data}; agreement with {origin}"
    document = {
        **table.to_dict(),
        **({"frames": len(data.x)} if data.clip else {}),
        "reference": origin,
        "simulator": options.simulator,
        "backend": options.simulator,  # its name before; goes with the next release
        "ok": not failed,
        "failed": failed,
    }
    return Result(document, "\n".join([text, *failed]), BELOW if failed else OK)


def _has_lines(file: str) -> bool:
    """Whether there is a file to resume from."""
    return os.path.isfile(file) and os.path.getsize(file) > 0


def _results_file(options: argparse.Namespace) -> Path | None:
    """--results-file, where it can be written and nothing else is replaced; None of a process that
    is not the first."""
    if options.results_file is None or not options.world.first:
        return None
    path = _writable("--results-file", options.results_file)
    check_results_file(path)
    return path


def doctor(options: argparse.Namespace) -> Result:
    from ..analysis.doctor import diagnose
    from ..exporters import save

    output = _output(options, (".h5", ".hdf5")) if options.apply else None
    network, data = _network_and_data(options)
    snn = build(network)
    reference, _ = _reference(options, snn, data)
    steps = options.time_steps
    diagnosis = diagnose(
        snn,
        *_whole_or_batches(data),
        reference=None if options.reference is None else reference,
        time_steps=None if steps is None else tuple(sorted(set(steps))),
    )
    document = {"ok": True, **diagnosis.to_dict()}
    lines = [str(diagnosis)]
    if output is not None:
        applied = [finding for finding in diagnosis.findings if finding.applicable]
        save(diagnosis.apply(), output)
        what = f"{len(applied)} fixed" if applied else "nothing to apply, the network is unchanged"
        lines.append(f"{what}; written to {output}")
        document["applied"] = [finding.text for finding in applied]
        document["path"] = str(output)
    return Result(document, "\n".join(lines))


def export(options: argparse.Namespace) -> Result:
    from ..exporters import export as run_export

    output = _output(options)
    format, writer = _format(output, options.format)
    network = _network(options.network)
    allowed = inspect.signature(writer.write).parameters
    given = {
        name: getattr(options, name) for name in EXPORTING if getattr(options, name) is not None
    }
    if options.data is not None and "calibration" not in allowed:
        given["data"] = options.data
    wrong = [f"--{name.replace('_', '-')}" for name in given if name not in allowed]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: not of the format {format}; leave it out.")
    if "input_range" in given:
        given["input_range"] = tuple(given["input_range"])
    if options.data is not None:
        data = _fitting(options, network)
        given["calibration"] = data.x
        given["samples"] = data.x if data.y is None else (data.x, data.y)
    try:
        report = run_export(network, output, format, **given)
    except FormatError as error:
        raise Refused(str(error), UNSUPPORTED) from error
    document = {"ok": True, "path": str(output), "format": format, "report": _of_report(report)}
    text = f"{report}\n" if report is not None else ""
    return Result(document, f"{text}written to {output}")


def verify(options: argparse.Namespace) -> Result:
    from ..exporters import verify as run_verify

    path, output = Path(options.file), None
    if options.output is not None:
        output = _output(options, (".json",))
    if not path.is_file():
        raise InputError(f"there is no file '{path}'.")
    _format(path, options.format)
    network = None if options.network is None else _network(options.network)
    x = None
    if options.data is not None and network is not None:
        x = _fitting(options, network, network.takes_clips).x
    elif options.data is not None:
        x = _data(options, _takes_clips(path)).x
    try:
        certificate = run_verify(
            path,
            x,
            network=network,
            format=options.format,
            time_steps=options.time_steps,
            samples=options.samples,
            seed=options.seed,
            python=options.python,
            embed=options.embed,
        )
    except FormatError as error:
        raise Refused(str(error), UNVERIFIED) from error
    document = certificate.to_dict()
    if output is not None:
        write_whole(output, (json.dumps(plain(document), indent=2) + "\n").encode())
    return Result(document, str(certificate), _code([certificate]))


def energy(options: argparse.Namespace) -> Result:
    from ..analysis.energy import TABLES, estimate_energy
    from ..analysis.over_time import costs_over_time

    wrong = [name for name in options.table or () if look_up(TABLES, name) is None]
    if wrong:
        raise InputError(f"--table: there is no {wrong[0]!r}; known: {', '.join(TABLES)}.")
    network, data = _network_and_data(options, clips=True)
    tables = {name: TABLES[name] for name in options.table or TABLES}
    if data.clip:
        costs = costs_over_time(build(network), data.x, tables=tables)
        return Result({"ok": True, **costs.to_dict()}, str(costs))
    steps = _steps(options, network)
    found = estimate_energy(build(network), data.loader(), steps, tables=tables)
    return Result({"ok": True, **found.to_dict()}, str(found))


def bench(options: argparse.Namespace) -> Result:
    network, data = _network_and_data(options)
    snn = build(network, options.simulator)
    reference, origin = _reference(options, snn, data)
    steps, x, samples = options.time_steps or network.time_steps, data.x, len(data.x)

    def source() -> None:
        with eval_mode(reference), torch.no_grad():
            call(reference, x.clone())

    spiking = _times(lambda: run(snn, x, steps), options.repeats)
    ann = _times(source, options.repeats)
    # the choice goes by type and device of what the neurons get, which are those of the input
    kernels = {
        name: {"runs": choice.backend, "reason": choice.reason}
        for name, choice in snn.choices(x.to(network.dtype)).items()
    }
    document = {
        "ok": True,
        "samples": samples,
        "time_steps": steps,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "simulator": options.simulator,
        "backend": options.simulator,  # its name before; goes with the next release
        "spiking": _seconds(spiking, samples, steps),
        "source": {"of": origin, **_seconds(ann, samples, 1)},
        "ratio": statistics.median(spiking) / statistics.median(ann),
        "kernels": kernels,
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
    }
    lines = [
        f"{samples} images at once, T = {steps}, {options.simulator}, "
        f"{torch.get_num_threads()} threads, {options.repeats} runs after one that is not timed",
        f"{'':<10}  {'min':>12}  {'median':>12}  ms an image",
    ]
    for name, times in (("spiking", spiking), ("one step", spiking), ("source", ann)):
        each = 1e3 / samples / (steps if name == "one step" else 1)
        low, middle = min(times) * each, statistics.median(times) * each
        lines.append(f"{name:<10}  {low:>12.4f}  {middle:>12.4f}")
    lines.append(f"{document['ratio']:.1f} times the forward pass of {origin}")
    groups: dict[str, list[str]] = {}
    for name, kernel in kernels.items():
        groups.setdefault(": ".join(filter(None, kernel.values())), []).append(name)
    for runs, names in groups.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{runs} runs {len(names)} of {len(kernels)} layers of neurons: {shown}")
    return Result(document, "\n".join(lines))


def report(options: argparse.Namespace) -> Result:
    from ..analysis.report import write_report
    from ..plugins.forms import check as run_check

    output = _output(options, (".html", ".htm"))
    network, data = _network_and_data(options)
    snn = build(network)
    reference, _ = _reference(options, snn, data)
    certificates = [_certificate(Path(f), network, options) for f in options.certificate or ()]
    given = options.reference is not None
    written = write_report(
        output,
        snn,
        *_whole_or_batches(data),
        reference=reference if given else None,
        check=run_check(reference, data.first(2)) if given else None,
        time_steps=None if options.time_steps is None else tuple(sorted(set(options.time_steps))),
        certificates=certificates,
        command=" ".join(["spikingjelly-signgd", *options.arguments]),
    )
    size = os.path.getsize(written)
    failed = [c.path for c in certificates if not c.ok]
    text = f"written to {written} ({size / 1e6:.2f} MB)"
    for state in (CONTRADICTED, NOT_CHECKED):
        of = [c.path for c in certificates if c.state == state]
        text += f"; {shown_state(state)}: {', '.join(of)}" if of else ""
    document = {"ok": not failed, "path": str(written), "bytes": size, "not_verified": failed}
    return Result(document, text, _code(certificates))


COMMANDS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "check": check,
    "convert": convert,
    "search": search,
    "fine-tune": fine_tune,
    "evaluate": evaluate_,
    "doctor": doctor,
    "export": export,
    "verify": verify,
    "energy": energy,
    "bench": bench,
    "report": report,
}


# -- what they share ------------------------------------------------------------------------------


WHOLE = 1024  # samples that are read at once, where some are looked at again and again


def _whole_or_batches(data: Data) -> tuple[Any, Any]:
    """x and y of few samples; of more, batches (x, y) and None."""
    few = data.total is not None and data.total <= WHOLE
    return (data.x, data.y) if few else (data.loader(), None)


def plain(value: Any) -> Any:
    """As JSON has it: no tuples, no NaN, no tensors, keys that are strings."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (Tensor,)) or hasattr(value, "__array__"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options of these names that were given."""
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _check_left_out(data: Data, world: Distributed) -> None:
    """Raises FormatError on all processes where they left out more than --skip-bad together."""
    data.check_skipped([name for own in world.gather(data.together.left_out) for name in own])


def _with_command(network: SpikingNetwork, options: argparse.Namespace) -> SpikingNetwork:
    command = " ".join(["spikingjelly-signgd", *options.arguments])
    return network.replace(provenance={**network.provenance, "command": command})


def _cost(network: SpikingNetwork, x: Tensor) -> tuple[dict[str, Any] | None, list[str]]:
    """What the network sends for x, as a document and as lines; a simulator counts."""
    from ..analysis.cost import count_operations

    try:
        found = count_operations(build(network), x)
    except BackendUnavailable as error:
        return None, [f"spikes and additions are not counted: {error}"]
    if not found.neurons:
        return None, []
    spikes, ratio = found.spikes / found.neurons, found.additions_per_mac
    text = f"{spikes:.2f} spikes a neuron, {ratio:.2f} additions a MAC of the source"
    document = {
        "samples": len(x),
        "spikes": spikes,
        "additions_per_mac": ratio,
        "parts_per_mac": found.parts_per_mac,
    }
    return document, [f"{text}, on {len(x)} samples"]


def _streams(options: argparse.Namespace) -> dict[str, Any]:
    """What --stream, --motion and --noise say to sg.convert."""
    from ..converters import Motion

    noise = {} if options.noise is None else {"noise": options.noise}
    if options.motion is None:
        return {"stream": True, **noise}
    reach = max(Motion.reach, options.motion)
    return {"stream": Motion(pixels=options.motion, reach=reach, **noise), **noise}


def _stream_cost(network: SpikingNetwork, clip: Tensor) -> tuple[dict[str, Any] | None, list[str]]:
    """As ``_cost``, of the frames of a clip after the first, which is a start."""
    from ..analysis.over_time import costs_over_time

    clip = clip[:, :COUNTED]
    try:
        found = costs_over_time(build(network), clip, tables={})
    except BackendUnavailable as error:
        return None, [f"spikes and additions are not counted: {error}"]
    neurons, later = found.frames[0].neurons, len(found) - 1
    if not neurons:
        return None, []
    first, *spikes = [frame.spikes / neurons for frame in found.frames]
    begun, mean, ratio = found.additions_per_mac[0], sum(spikes) / later, found.mean(1)
    document = {
        "frames": len(clip),
        "samples": clip.shape[1],
        "spikes": mean,
        "additions_per_mac": ratio,
        "first_frame": {"spikes": first, "additions_per_mac": begun},
    }
    return document, [
        f"{mean:.2f} spikes a neuron and frame, {ratio:.2f} additions a MAC of the source, on "
        f"{later} frames of {clip.shape[1]} streams; {first:.2f} and {begun:.2f} in the first frame"
    ]


def _of_report(report: Any) -> Any:
    """A writer's report as plain data."""
    if hasattr(report, "to_dict"):
        return report.to_dict()
    return dict(vars(report)) if hasattr(report, "__dict__") else report


def _data(options: argparse.Namespace, clip: bool = False) -> Data:
    prepare = Preparation(
        options.scale_pixels,
        options.channels,
        options.resize,
        options.mean,
        options.std,
        options.preprocess,
        options.tokens,
    )
    reading = Reading(options.workers, options.skip_bad, options.split, options.download)
    return load_data(
        options.data,
        labels=options.labels,
        samples=options.samples,
        seed=options.seed,
        prepare=prepare,
        clip=clip,
        limit=options.limit,
        reading=reading,
    )


def _takes_clips(path: Path) -> bool:
    """Whether a file holds a network of streams."""
    try:
        return _network(str(path)).takes_clips
    except SignGDError:  # of a .net, or damaged, which verify says
        return False


def _network(file: str) -> SpikingNetwork:
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file '{path}'; a network is a file that convert wrote.")
    from ..exporters import formats, load

    name = formats.by_suffix(path)
    if name is not None and getattr(FORMATS.find(name), "read", None) is not None:
        return load(path)
    raise InputError(
        f"'{path}' is not a network: networks are .h5 files that convert wrote, and exact .nir "
        "files."
    )


def _format(path: Path, name: str | None) -> tuple[str, Any]:
    """The format of --format, or of the suffix."""
    from ..exporters import formats

    name = name or formats.by_suffix(path)
    if name is None:
        raise InputError(
            f"'{path}' does not say its format: it ends in none of "
            f"{', '.join(formats.suffixes())}; give --format."
        )
    return name, FORMATS.find(name)


def _network_and_data(
    options: argparse.Namespace, clips: bool = False
) -> tuple[SpikingNetwork, Data]:
    """The network at the size of the data, if it was converted for several; with ``clips`` the
    data of a network of streams are one."""
    network = _network(options.network)
    data = _data(options, clips and network.takes_clips)
    if "sizes" in network.provenance:
        network = network.at_size(*data.shape[2 * data.clip :])
    return network, _checked(data, network)


def _fitting(options: argparse.Namespace, network: SpikingNetwork, clip: bool = False) -> Data:
    return _checked(_data(options, clip), network)


def _checked(data: Data, network: SpikingNetwork) -> Data:
    if network.carries and not data.clip:
        raise InputError(
            f"the network feeds {', '.join(network.carries)} itself, so that it runs only on "
            "clips [F, N, ...], which evaluate, verify and energy take. In Python: run(..., "
            "sequence=True, keep_state=True)."
        )
    given = [node for node in network.inputs if node.name not in network.carries]
    data.check_shape((given or network.inputs)[0].shape[1:], network.takes_clips)
    if isinstance(network.outputs, str):
        shape = network[network.outputs].shape
        if len(shape) == 2 and isinstance(shape[1], int):
            data.check_labels(shape[1])
    return data


def _may_have_labels(spec: str) -> None:
    if spec.lower().endswith(".npy"):
        raise InputError(f"--min-accuracy needs labels: '{spec}' has none; give --labels.")


def _reference(
    options: argparse.Namespace, snn: NetworkModule, data: Data
) -> tuple[nn.Module, str]:
    """The source model, and what to call it."""
    if options.reference is None:
        return snn.source, "the source network in the file"
    model = load_model(options.reference, options.weights)
    x = data.first(1)[0] if data.clip else data.first(2)
    try:
        with eval_mode(model), torch.no_grad():
            have = call(model, x.clone())
    except Exception as error:  # whatever the user's model raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"--reference '{options.reference}' itself fails on a batch {shape_of(x)}: {first}"
        ) from error
    want = snn.ann(x)
    if isinstance(want, Tensor) and (not isinstance(have, Tensor) or have.shape != want.shape):
        found = list(have.shape) if isinstance(have, Tensor) else type(have).__name__
        raise InputError(
            f"--reference '{options.reference}' returns {found} where the network returns "
            f"{list(want.shape)}; it is not the source of '{options.network}'."
        )
    return model, options.reference


def _steps(options: argparse.Namespace, network: SpikingNetwork) -> tuple[int, ...]:
    if options.time_steps is not None:
        return tuple(sorted(set(options.time_steps)))
    last = network.time_steps
    return (*(t for t in (2**k for k in range(last.bit_length())) if t < last), last)


def _output(options: argparse.Namespace, suffixes: Sequence[str] = ()) -> Path:
    path = Path(options.output)
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"-o '{path}': the file that is written ends in {suffixes[0]}.")
    # the first process writes it, and other machines may not have the folder
    return _writable("-o", options.output) if options.world.first else path


def _writable(option: str, file: str) -> Path:
    """Before the work, since a minute of it is lost where nothing can be written."""
    path = Path(file)
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise InputError(f"{option} '{path}' is a folder; name a file in it.")
    if not folder.is_dir():
        raise InputError(f"{option} '{path}': the folder '{path.parent}' does not exist.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} '{path}': the folder '{path.parent}' cannot be written.")
    return path


def _by_path(option: str, values: Sequence[str], kind: Callable[[str], Any]) -> Any:
    """``NAME`` for all, ``PATH=NAME`` for a module: one value, or a dict by path."""
    found: dict[str, Any] = {}
    for text in values:
        path, _, value = text.rpartition("=")
        try:
            found[path] = kind(value)
        except (ValueError, ZeroDivisionError):
            raise InputError(f"{option} {text}: {value!r} is not a number.") from None
    return found[""] if list(found) == [""] else found


def _metrics(values: Sequence[str] | None) -> Any:
    """``NAME`` for every output, ``OUTPUT=NAME`` for one: a list, or a dict of lists."""
    if values is None:
        return None
    found: dict[str, list[str]] = {}
    for text in values:
        output, _, name = text.rpartition("=")
        found.setdefault(output, []).append(name)
    if "" in found and len(found) > 1:
        raise InputError("--metric: name metrics for every output, or as OUTPUT=NAME, not both.")
    return found.get("", found)


def _part(text: str) -> float:
    """``0.5``, or ``2/3`` as messages have it."""
    return float(Fraction(text.replace(" ", "")))


def _described(network: SpikingNetwork) -> dict[str, Any]:
    counts = network.count()
    kinds: dict[str, int] = {}
    for node in network.neurons:
        kinds[node.kind] = kinds.get(node.kind, 0) + 1
    return {
        "time_steps": network.time_steps,
        "nodes": len(network.nodes),
        "layers": kinds,
        "neurons": sum(counts.values()),
        "by_layer": counts,
        "kept": network.kept(),
    }


def _code(certificates: Sequence[Certificate]) -> int:
    """The exit code of files that were verified: that of the worst."""
    states = {each.state for each in certificates}
    if CONTRADICTED in states:
        return UNVERIFIED
    return UNCHECKED if NOT_CHECKED in states else OK


def _certificate(path: Path, network: SpikingNetwork, options: argparse.Namespace) -> Any:
    """Of an exported file, verified now: an older certificate may be of another network."""
    from ..exporters import verify as run_verify
    from ..exporters.formats import by_suffix, suffixes

    if not path.is_file():
        raise InputError(f"--certificate: there is no file '{path}'.")
    if by_suffix(path) is None:
        raise InputError(
            f"--certificate takes exported files ({', '.join(suffixes())}), which are verified "
            f"against the network of the report; '{path}' is not one."
        )
    try:
        return run_verify(path, network=network, seed=options.seed)
    except FormatError as error:
        raise Refused(str(error), UNVERIFIED) from error


def _times(function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each run, after one that is not timed."""
    function()
    found = []
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        found.append(time.perf_counter() - before)
    return found


def _seconds(times: Sequence[float], samples: int, steps: int) -> dict[str, Any]:
    middle = statistics.median(times)
    return {
        "runs": list(times),
        "min": min(times),
        "median": middle,
        "image": middle / samples,
        "image_and_step": middle / samples / steps,
    }
