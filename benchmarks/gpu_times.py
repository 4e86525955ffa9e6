"""How long the kernels take on a GPU, beside a copy of the same bytes, torch and SpikingJelly."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    Choice,
    ExponentialSchedule,
    GroupNeuronParameters,
    SignGDParameters,
    SignGDState,
    Surrogate,
    group_multi_step,
    group_step,
    signgd_multi_step,
    signgd_step,
)

SCHEDULE = ExponentialSchedule(0.5, 0.9)
MEMBERS = (1, 2, 4, 8, 16)
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp")
HALVES = (torch.float16, torch.bfloat16)
Row = dict[str, Any]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of runs that take a quarter of a second together, at least 5."""
    run()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.25 and len(times) < 200):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Times:
    """Kernels at [T, N]; ``rows`` has each with the bytes it must move and its share of a copy."""

    def __init__(self, device: torch.device, steps: int, neurons: int) -> None:
        self.device, self.steps, self.neurons = device, steps, neurons
        self.backend = "cupy" if device.type == "cuda" else "cpu"
        self.rows: list[Row] = []
        self.copied: dict[torch.dtype, float] = {}  # bytes moved in a second
        for dtype in (torch.float32, *HALVES):
            x = self.input(dtype)
            y = torch.empty_like(x)
            took = seconds(lambda x=x, y=y: y.copy_(x), device)  # type: ignore[misc]
            self.copied[dtype] = 2 * x.nbytes / took
            self.note(f"copy {_name(dtype)}", took, 2 * x.nbytes, dtype)

    def input(self, dtype: torch.dtype = torch.float32, neurons: int = 0) -> Tensor:
        size = (self.steps, neurons or self.neurons)
        return torch.empty(size, dtype=dtype, device=self.device).normal_()

    def note(self, what: str, took: float, moved: int, dtype: torch.dtype) -> None:
        rate = moved / took
        self.rows.append(
            {
                "what": what,
                "neurons": self.neurons,
                "ms": 1000 * took,
                "GB/s": rate / 1e9,
                "of a copy": rate / self.copied[dtype],
            }
        )

    def signgd(
        self,
        name: str,
        x: list[Tensor],
        dtype: torch.dtype,
        spikes: bool = False,
        members: int = 1,
        zone: float = 0.0,
    ) -> None:
        v = torch.zeros_like(x[0][0]).float()
        p = SignGDParameters(NONLINEARITIES[name], SCHEDULE, members=members, dead_zone=zone)
        output = "signed" if spikes else "decoded"
        start = tuple(torch.zeros_like(v) for _ in x) if spikes else None

        def run() -> object:
            return signgd_multi_step(
                x, SignGDState(v), p, x=start, output=output, dtype=dtype, backend=self.backend
            )

        moved = sum(a.nbytes for a in x) + x[0].numel() * dtype.itemsize + 2 * v.nbytes
        moved += 2 * v.nbytes * len(x) if spikes else 0
        form = f" m = {members}" if members > 1 else ""
        form += f" dead zone {zone:.2g}" if zone else ""
        what = f"signGD {name}{form}{' of spikes' if spikes else ''}, {_name(x[0].dtype)}"
        self.note(what, seconds(run, self.device), moved, x[0].dtype)

    def group(self, members: int, x: Tensor, dtype: torch.dtype, counts: bool = False) -> None:
        p, v = GroupNeuronParameters(members), torch.zeros_like(x[0]).float()

        def run() -> object:
            return group_multi_step(x, v, p, counts=counts, dtype=dtype, backend=self.backend)

        what = f"group m = {members}, {_name(x.dtype)}{' to int8 counts' if counts else ''}"
        moved = x.nbytes + x.numel() * dtype.itemsize + 2 * v.nbytes
        self.note(what, seconds(run, self.device), moved, x.dtype)


def kernels(device: torch.device, steps: int, neurons: int) -> list[Row]:
    times = Times(device, steps, neurons)
    x = times.input()
    for name in ("relu", "gelu", "sigmoid", "tanh"):
        times.signgd(name, [x], torch.float32)
    times.signgd("relu", [x], torch.float32, spikes=True)
    for members, zone in ((1, 2 / 3), (8, 0.0), (8, 2 / 3)):
        times.signgd("relu", [x], torch.float32, members=members, zone=zone)
    for members in MEMBERS:
        times.group(members, x, torch.float32)
    times.signgd("mul", [x, times.input()], torch.float32)
    for dtype in HALVES:
        x = times.input(dtype)
        times.signgd("relu", [x], dtype)
        times.signgd("gelu", [x], dtype)
        times.group(4, x, dtype)
        times.group(4, x, torch.int8, counts=True)
    return times.rows


# -- the same by others ---------------------------------------------------------------------------


def others(device: torch.device, steps: int, neurons: int) -> Iterator[Row]:
    """Kernels, torch and SpikingJelly on the same [T, N] of float32: milliseconds."""
    kernel = "cupy" if device.type == "cuda" else "cpu"
    x = torch.empty(steps, neurons, device=device).normal_()
    v = torch.zeros(neurons, device=device)
    p, q = SignGDParameters(NONLINEARITIES["relu"], SCHEDULE), GroupNeuronParameters(4)

    def signgd(backend: str) -> object:
        return signgd_multi_step([x], SignGDState(v), p, backend=backend)

    def group(backend: str, members: int = 4) -> object:
        return group_multi_step(x, v, GroupNeuronParameters(members), backend=backend)

    def signgd_loop(x: Tensor, v: Tensor) -> Tensor:
        state, y = SignGDState(v), []
        for a in x:
            _, state = signgd_step((a,), state, p)
            y.append(state.v)
        return torch.stack(y)

    def group_loop(x: Tensor, v: Tensor) -> Tensor:
        y = []
        for a in x:
            out, v = group_step(a, v, q)
            y.append(out)
        return torch.stack(y)

    def train(backend: str, members: int) -> Callable[[], None]:
        leaf = x.clone().requires_grad_()

        def run() -> None:
            y = group_multi_step(
                leaf,
                v,
                GroupNeuronParameters(members),
                surrogate=Surrogate("sigmoid"),
                backend=backend,
            ).y
            y.backward(y.detach())
            leaf.grad = None

        return run

    mode = "inductor" if device.type == "cuda" else "eager"
    runs: list[tuple[str, Callable[[], object]]] = [
        ("signGD relu, kernel", lambda: signgd(kernel)),
        ("signGD relu, torch", lambda: signgd("torch")),
        ("signGD relu, torch.compile", _compiled(signgd_loop, mode, x, v)),
        ("group m = 4, kernel", lambda: group(kernel)),
        ("group m = 4, torch", lambda: group("torch")),
        ("group m = 4, torch.compile", _compiled(group_loop, mode, x, v)),
        *((f"group m = {m}, forward and backward, kernel", train(kernel, m)) for m in MEMBERS),
        *((f"group m = {m}, forward and backward, torch", train("torch", m)) for m in (1, 4)),
        ("group m = 1, kernel", lambda: group(kernel, 1)),
        *_spikingjelly(x),
    ]
    for what, run in runs:
        row: Row = {"what": what, "steps": steps, "neurons": neurons}
        try:
            yield row | {"ms": 1000 * seconds(run, device)}
        except Exception as error:  # of others: a figure less
            if "kernel" in what:
                raise
            yield row | {"failed": f"{type(error).__name__}: {error}"[:300]}


def _compiled(function: Callable[..., Tensor], mode: str, *inputs: Tensor) -> Callable[[], object]:
    by_torch = torch.compile(function, backend=mode)
    return lambda: by_torch(*inputs)


def _spikingjelly(x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """IFNode with soft reset, which is the group neuron of one member."""
    try:
        from spikingjelly.activation_based import functional, neuron
    except ImportError:
        return
    made = {}
    for options in ({}, {"backend": "cupy"}, {"backend": "triton"}):  # 2.0.0 chooses by itself
        try:
            node = neuron.IFNode(v_reset=None, step_mode="m", **options).to(x.device)
        except Exception:  # this version has no such backend here
            continue
        made[options.get("backend", "as it is")] = node
    for backend, node in made.items():

        def run(node: Any = node) -> None:
            functional.reset_net(node)
            with torch.no_grad():
                node(x)

        yield f"SpikingJelly's IFNode, {backend}", run


# -- networks -------------------------------------------------------------------------------------


def networks(
    device: torch.device, names: Iterable[str], data: str, steps: int, batch: int
) -> Iterator[Row]:
    """Time per image and step of each network, and that of its source per image with as many
    images in flight: in a chunk of steps every step of an image counts as one."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    import networks as examples

    import spikingjelly_signgd as sg
    from spikingjelly_signgd.core.running import default_chunk

    size = examples.SIZES[data]
    for name in names:
        try:
            model, weights = examples.load_network(name, data), "trained"
        except ImportError:  # safetensors
            model, weights = examples.make_network(name, data).eval(), "random"
        images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of calibration with images of noise
            network = sg.convert(model, images[:64], time_steps=steps, tune=False)
        snn, source, x = sg.build(network).to(device), model.to(device), images.to(device)
        choices: dict[str, Choice] = snn.choices(x)  # type: ignore[operator]
        by_torch = [f"{n} ({c.reason})" for n, c in choices.items() if c.backend == "torch"]
        chunk = min(steps, default_chunk(network, batch))
        many = x.repeat(chunk, 1, 1, 1)
        with torch.no_grad():
            ours = seconds(lambda s=snn, x=x: sg.run(s, x, steps), device)  # type: ignore[misc]
            theirs = seconds(lambda m=source, x=many: m(x), device)  # type: ignore[misc]
        a, b = 1e6 * ours / (batch * steps), 1e6 * theirs / len(many)
        yield {
            "what": f"{name}, {data}",
            "steps": steps,
            "images": batch,
            "steps at once": chunk,
            "weights": weights,
            "us per image and step": a,
            "us of the source per image": b,
            "ratio": a / b,
            "neurons without kernels": by_torch,
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
