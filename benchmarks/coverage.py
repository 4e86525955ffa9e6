"""Which models of torchvision, timm and transformers convert, and how close: docs/coverage.md.

    python benchmarks/coverage.py [SOURCE ...] [--again all | refused | failed]
    python benchmarks/coverage.py --check [SOURCE ...]     only which are refused, and why
    python benchmarks/coverage.py --print                  the tables, of the models that are there
    python benchmarks/coverage.py --write                  puts them into docs/coverage.md

SOURCE is a library (torchvision, timm, hf) or a model of one (timm:resnet18); without any, all that
zoo.py lists. Weights are random, statistics of batch norms those of smooth random images. By
default plans for 8 x 1 and 6 x 2, untuned, 16 inputs calibrate, and errors are of 16 others (of
videos 4 and 4): the relative error of the outputs, of several outputs the worst.

Each model is measured in a process of its own, which ends at --seconds of CPU or --gigabytes. It
goes to benchmarks/results/coverage/LIBRARY.json when it is measured and is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import real  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.converters import PASSES, conversion  # noqa: E402
from spikingjelly_signgd.core.module import NetworkModule  # noqa: E402
from spikingjelly_signgd.core.network import leaves  # noqa: E402

RESULTS = real.RESULTS.parent / "coverage"
PAGE = real.DOCS / "coverage.md"
PLANS = ((8, 1), (6, 2))  # members x steps
BATCH = 4
ALLOWED = 0.2  # output error of a default plan without a warning
TITLES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}


# -- one model, in a process of its own -----------------------------------------------------------


def relative(have: Any, want: Any, largest: bool = False) -> float:
    """Norm of the difference over the norm of ``want``, or by the largest value; worst output."""

    def one(a: Tensor, b: Tensor) -> float:
        a, b = a.double(), b.double()
        if largest:
            return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        return float((a - b).norm() / b.norm().clamp_min(1e-30))

    pairs = zip(leaves(have), leaves(want), strict=True)
    return max(one(a, b) for a, b in pairs if b.is_floating_point())


def joined(parts: list[Any]) -> list[Tensor]:
    return [torch.cat(same) for same in zip(*(list(leaves(p)) for p in parts), strict=True)]


@torch.no_grad()
def outputs(network: sg.SpikingNetwork, batches: list[Tensor]) -> list[Tensor]:
    snn, steps = sg.build(network), network.time_steps
    return joined([sg.run(snn, x, steps)[steps] for x in batches])


def refusal(error: sg.SignGDError) -> dict[str, Any]:
    """Why, by operation where that is what it is for."""
    text = str(error).strip().splitlines()
    blockers = getattr(error, "blockers", [])
    return {
        "kind": type(error).__name__,
        "operations": sorted({row.operation for row in blockers}),
        "reasons": [f"{row.path}: {row.operation}: {row.detail}" for row in blockers][:8]
        or [line[:300] for line in text[:2]],
    }


def checked(source: str) -> dict[str, Any]:
    case = zoo.prepared(source)
    x = case.sample(2, torch.Generator().manual_seed(1))
    try:
        report = sg.check(case.model, x)
    except sg.SignGDError as error:
        return {"refused": refusal(error)}
    if not report.ok:
        return {"refused": refusal(sg.UnsupportedOperation("", report.blockers))}
    return {"converted": True}


@contextmanager
def captured_once() -> Iterator[None]:
    """torch.export is much of the time, and the same for all plans."""
    own: Any = conversion.capture
    found: list[Any] = []

    def once(*arguments: Any, **options: Any) -> Any:
        if not found:
            found.append(own(*arguments, **options))
        return found[0]

    conversion.capture = once
    try:
        yield
    finally:
        conversion.capture = own


def measured(source: str) -> dict[str, Any]:
    """The row of a model; what it is refused for is said in it."""
    case, generator = zoo.prepared(source), torch.Generator().manual_seed(1)
    calibration, test = (
        list(case.sample(case.samples, generator).split(BATCH)) for _ in range(2)
    )  # fmt: skip
    with torch.no_grad():
        want = joined([case.model(x.clone()) for x in test])
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in case.model.parameters()),
        "input": list(test[0].shape[1:]),
        "samples": case.samples,
        **{name: {} for name in ("errors", "warnings", "seconds")},
    }
    with captured_once():
        for plan in PLANS:
            try:
                row = with_plan(row, plan, case.model, calibration, test, want)
            except sg.SignGDError as error:
                return row | {"refused": refusal(error)}
    return row | {"converted": True}


def with_plan(
    row: dict[str, Any],
    plan: tuple[int, int],
    model: nn.Module,
    calibration: list[Tensor],
    test: list[Tensor],
    want: list[Tensor],
) -> dict[str, Any]:
    """With the error, warnings and seconds of a plan; of the first also the source network's."""
    (members, steps), begun = plan, time.process_time()
    first: list[sg.SpikingNetwork] = []

    def keep(network: sg.SpikingNetwork, _: Any) -> sg.SpikingNetwork:
        first.append(network)
        return network

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = sg.convert(
            model, calibration, members=members, time_steps=steps, tune=False,
            passes=[keep, *PASSES],
        )  # fmt: skip
    seconds, told = time.process_time() - begun, [w for w in caught if ours(w.category)]
    found = {
        "errors": relative(outputs(network, test), want),
        "warnings": [str(w.message)[:400] for w in told],
        "seconds": seconds,
    }
    row = row | {name: row[name] | {f"{members}x{steps}": v} for name, v in found.items()}
    if "source" in row:
        return row
    exact, neurons = NetworkModule(first[0], {}), sum(network.count().values())
    source = relative(joined([exact.ann(x) for x in test]), want, largest=True)
    return row | {"source": source, "neurons": neurons, "layers": len(network.neurons)}


def ours(category: type[Warning]) -> bool:
    return category.__module__.startswith(sg.__name__)


def safely(source: str, check: bool) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    try:
        return checked(source) if check else measured(source)
    except Exception as error:  # a bug of ours, which the table shows
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


# -- all of them ----------------------------------------------------------------------------------


def rows(results: Path, library: str) -> dict[str, Any]:
    return real.cells(results / f"{library}.json")


def sources(asked: list[str]) -> list[str]:
    names = {
        "torchvision": zoo.torchvision_names,
        "timm": lambda: list(zoo.TIMM),
        "hf": zoo.transformers_names,
    }
    every = asked or list(names)
    return [
        found
        for one in every
        for found in ([f"{one}:{n}" for n in names[one]()] if one in names else [one])
    ]


def again(row: Mapping[str, Any] | None, which: str | None) -> bool:
    if row is None or which == "all":
        return True
    return (which == "refused" and "refused" in row) or (
        which == "failed" and ("failed" in row or "stopped" in row)
    )


def measure(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    wanted = sources(given.sources)
    for library in {source.partition(":")[0] for source in wanted}:
        import_module(TITLES[library])  # once, and not in each process
    for source in wanted:
        library, _, name = source.partition(":")
        if not again(rows(given.results, library).get(name), given.again):
            continue
        limits = {"seconds": given.seconds, "gigabytes": given.gigabytes}
        row = real.apart(safely, source, given.check, **limits)
        real.keep(given.results / f"{library}.json", name, row)
        print(source, brief(row), flush=True)


def brief(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        found = row["refused"]
        return f"refused: {', '.join(found['operations']) or found['reasons'][0][:160]}"
    if "failed" in row or "stopped" in row:
        return str(row.get("failed") or row["stopped"])
    if "errors" not in row:
        return "ok"
    errors = " ".join(f"{plan} {error:.4f}" for plan, error in row["errors"].items())
    return f"source {row['source']:.1e} {errors} {row['wall']:.0f} s {row['peak'] / 2**30:.1f} GB"


# -- the tables -----------------------------------------------------------------------------------


def tables(results: Path) -> Iterator[str]:
    yield from summary(results)
    yield from refusals(results)
    for library, title in TITLES.items():
        found = rows(results, library)
        if found:
            yield f"\n## {title}\n"
            yield "| model | source network | 8 x 1 | 6 x 2 | convert, CPU s | peak GB | |"
            yield "|---|---:|---:|---:|---:|---:|---|"
            yield from (line(name, row) for name, row in sorted(found.items()))


def summary(results: Path) -> Iterator[str]:
    heads = "library | models | converted | source equal to 1e-5 | refused | other"
    yield f"| {heads} | plans with an error above {ALLOWED}, of these without a warning |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for library, title in TITLES.items():
        every = rows(results, library).values()
        good = [row for row in every if row.get("converted")]
        equal = sum(row.get("source", 1) <= 1e-5 for row in good)
        refused = sum("refused" in row for row in every)
        high = [(row, plan) for row in good for plan in row.get("errors", {}) if loud(row, plan)]
        silent = sum(not row["warnings"][plan] for row, plan in high)
        other = len(every) - len(good) - refused
        counts = f"{len(every)} | {len(good)} | {equal} | {refused} | {other}"
        yield f"| {title} | {counts} | {len(high)}, {silent} |"


def loud(row: Mapping[str, Any], plan: str) -> bool:
    """Whether a plan's error is above the allowed, or no number."""
    return not row["errors"][plan] <= ALLOWED


def refusals(results: Path) -> Iterator[str]:
    """What is to be done: by operation, or by the kind of error, the models that wait for it."""
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    for library, title in TITLES.items():
        for name, row in rows(results, library).items():
            if "refused" in row:
                found = row["refused"]
                for reason in found["operations"] or [found["kind"]]:
                    waiting[reason].append(f"{title}:{name}")
    yield "\n## Refused, by operation\n"
    yield "| operation | models | |"
    yield "|---|---:|---|"
    for reason, names in sorted(waiting.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        yield f"| `{reason}` | {len(names)} | {shown} |"


def line(name: str, row: Mapping[str, Any]) -> str:
    peak = f"{row['peak'] / 2**30:.1f}" if "peak" in row else "–"
    if not row.get("converted") or "errors" not in row:
        return f"| {name} | – | – | – | – | {peak} | {why(row)} |"
    errors = " | ".join(f"{error:.4f}" for error in row["errors"].values())
    equal = f"{row['source']:.0e}"
    seconds = f"{row['seconds']['8x1']:.0f}"
    return f"| {name} | {equal} | {errors} | {seconds} | {peak} | {told(row)} |"


def why(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        found = row["refused"]
        text = ", ".join(f"`{o}`" for o in found["operations"]) or found["reasons"][0]
        return "refused: " + text.replace("|", "\\|")[:200]
    return str(row.get("failed") or row.get("stopped") or "can be converted").replace("|", "\\|")


def told(row: Mapping[str, Any]) -> str:
    """Of how many warnings, and in which plans."""
    found = Counter({plan: len(texts) for plan, texts in row["warnings"].items() if texts})
    return f"warned: {', '.join(found)}" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--again", choices=("all", "refused", "failed"))
    parser.add_argument("--check", action="store_true", help="convert nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--write", action="store_true", help="the tables into docs/coverage.md")
    given = parser.parse_args()
    if given.write:
        real.into(PAGE, "benchmarks/coverage.py --print", tables(given.results))
    elif given.print:
        print("\n".join(tables(given.results)))
    else:
        measure(given)


if __name__ == "__main__":
    main()
