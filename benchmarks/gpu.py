"""Checks the kernels on this machine's GPU, then times them: one command, below 8 minutes.

    python -m benchmarks.gpu

It needs this checkout, installed or not, torch for CUDA, CuPy, and for its networks SpikingJelly.
First every kernel is compared with its definition (gpu_checks.py), then come the times
(gpu_times.py). Figures go to benchmarks/results/gpu.json. Ends with 1 if a check fails, 2 without
a GPU. ``--host`` needs none: it runs the same on the kernels compiled for the CPU, small and
without figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"


def import_package() -> None:
    """The checkout is the package; where it is not installed it gets its name here."""
    if importlib.util.find_spec("spikingjelly_signgd") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "spikingjelly_signgd", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["spikingjelly_signgd"] = package
    spec.loader.exec_module(package)


def check(place: Any, words: list[str]) -> dict[str, str]:
    """The result of each check whose name has one of the words: ok, why not here, or the error."""
    from gpu_checks import CHECKS, Skipped

    results = {}
    for name, claim in CHECKS.items():
        if words and not any(word in name for word in words):
            continue
        torch.manual_seed(0)
        begin = time.perf_counter()
        try:
            claim(place)
            results[name] = "ok"
        except Skipped as reason:
            results[name] = f"skipped: {reason}"
        except AssertionError as error:
            results[name] = f"FAILED: {error}"
        except Exception:  # the other checks still say something
            results[name] = f"FAILED: {traceback.format_exc()}"
        print(f"{name:<34} {time.perf_counter() - begin:6.1f} s  {results[name]}", flush=True)
    return results


def measure(device: torch.device) -> dict[str, Any]:
    import gpu_times

    on_gpu = device.type == "cuda"
    steps, neurons, fewer = (32, 2**24, 2**22) if on_gpu else (4, 1001, 1001)
    if on_gpu:
        free = torch.cuda.mem_get_info(device)[0]
        while neurons > 2**18 and 4 * steps * neurons * 4 > free:  # four sequences at a time
            neurons //= 2
        fewer = min(fewer, neurons // 4)
    result: dict[str, Any] = {}
    result["kernels"] = gpu_times.kernels(device, steps, neurons)
    show(result["kernels"], on_gpu)
    result["others"] = list(shown(gpu_times.others(device, steps, fewer), on_gpu))
    if importlib.util.find_spec("spikingjelly") is None:
        print("networks: skipped, SpikingJelly is not installed")
        return result
    names = gpu_times.NETWORKS if on_gpu else gpu_times.NETWORKS[:1]
    data, batches = ("fashion", [16, 256]) if on_gpu else ("digits", [2])
    result["networks"] = []
    for batch in batches:
        rows = gpu_times.networks(device, names, data, steps, batch)
        result["networks"] += shown(rows, on_gpu)
    return result


def shown(rows: Iterable[dict[str, Any]], figures: bool) -> Iterable[dict[str, Any]]:
    for row in rows:
        show([row], figures)
        yield row


def show(rows: list[dict[str, Any]], figures: bool) -> None:
    for row in rows:
        cells = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
        cells += [str(row[key]) for key in ("failed", "neurons without kernels") if row.get(key)]
        print(f"{row['what']:<44} {', '.join(cells) if figures else 'ran'}", flush=True)


def machine(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    packages = ("cupy-cuda12x", "cupy-cuda13x", "cupy", "spikingjelly", "triton", "numpy")
    return {
        "date": date.today().isoformat(),
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]),
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "driver": _output(query).partition("\n")[0],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{name: found for name in packages if (found := _version(name))},
    }


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", action="store_true", help="without a GPU: checks alone count")
    parser.add_argument("--checks", nargs="+", default=[], help="only those with these words")
    parser.add_argument("--no-times", action="store_true", help="checks alone")
    parser.add_argument("--output", type=Path, help=f"instead of {RESULTS.relative_to(ROOT)}")
    options = parser.parse_args()
    import_package()
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    from spikingjelly_signgd.neurons.kernels import gpu

    if not options.host and (missing := gpu.missing(None) or _no_cuda()):
        print(f"{missing} With --host the checks run on the CPU.", file=sys.stderr)
        return 2
    from gpu_checks import Place

    setting: AbstractContextManager[None] = nullcontext()
    device = torch.device("cuda", 0)
    if options.host:
        from cuda_on_host import gpu_on_host

        device, setting = torch.device("cpu"), gpu_on_host()
    result: dict[str, Any] = {"machine": {} if options.host else machine(device)}
    print(json.dumps(result["machine"], indent=1))
    with setting:
        result["checks"] = check(Place(device), options.checks)
        failed = [name for name, found in result["checks"].items() if found.startswith("FAILED")]
        if not options.no_times:
            result |= measure(device)
    output = options.output or (None if options.host else RESULTS)
    if output is not None:
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"figures: {output}")
    print(f"{len(result['checks'])} checks, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _no_cuda() -> str:
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU."


if __name__ == "__main__":
    sys.exit(main())
