"""The speed and memory tables of RESULTS.md, all of them ratios within one run.

    python benchmarks/speed.py neurons [--seconds 20] [--no-compile]
    python benchmarks/speed.py called [--seconds 20]
    python benchmarks/speed.py networks [--networks vgg ...] [--batch 64] [--profile]
    python benchmarks/speed.py plans [--networks vgg ...] [--batch 64] [--seconds 20]
    python benchmarks/speed.py memory [--networks vgg ...]
    python benchmarks/speed.py tables

What is compared is run in turn, A B C A B C ..., so that a machine that slows down slows all of
it. A ratio is given of the fastest calls and, in brackets, as the median over the rounds. Figures
go to benchmarks/results/speed_*.json; ``tables`` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core import network as nodes  # noqa: E402
from spikingjelly_signgd.core.operations import apply, resolve  # noqa: E402
from spikingjelly_signgd.core.running import default_chunk  # noqa: E402
from spikingjelly_signgd.neurons import (  # noqa: E402
    group_multi_step,
    signgd_multi_step,
)
from spikingjelly_signgd.neurons.group import group_step  # noqa: E402
from spikingjelly_signgd.neurons.kernels import cpu  # noqa: E402
from spikingjelly_signgd.neurons.scan import scan  # noqa: E402
from spikingjelly_signgd.neurons.signgd import SignGDState  # noqa: E402
from spikingjelly_signgd.neurons.surrogate import Surrogate  # noqa: E402

RESULTS = Path(__file__).parent / "results"
STEPS = 32
Call = Callable[[], object]
Times = dict[str, list[float]]  # seconds of a call, round by round


# -- measuring ------------------------------------------------------------------------------------


def interleaved(calls: Mapping[str, Call], seconds: float, least: int = 5) -> Times:
    """Each call in turn until the seconds are over, a short one several times in its turn.

    With one thread its processor time is taken, which other programs do not add to.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        repeats[name] = max(1, int(2e-3 / (clock() - start)))
    times: Times = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    gc.collect()
    gc.disable()
    try:
        while rounds < least or time.perf_counter() < end:
            for name, call in calls.items():
                start = clock()
                for _ in range(repeats[name]):
                    call()
                times[name].append((clock() - start) / repeats[name])
            rounds += 1
    finally:
        gc.enable()
    return times


def ratio(times: Times, above: str, below: str, scale: float = 1.0) -> dict[str, float]:
    """How many times as long a call of ``above`` takes as one of ``below``, times ``scale``."""
    rounds = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return {
        "min": scale * min(times[above]) / min(times[below]),
        "median": scale * median(rounds),
        "ms": 1e3 * min(times[above]),
    }


def machine() -> dict[str, Any]:
    import spikingjelly

    try:
        info = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        info = []
    parts = (line.partition(":") for line in reversed(info))
    fields = {key.strip(): value.strip() for key, _, value in parts}
    wanted = ("avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq")
    found = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    kernels = "v4" if "avx512dq" in found else "v3" if "avx2" in found else "any"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "flags": found,
        "instruction set of the kernels": kernels,
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spikingjelly": getattr(spikingjelly, "__version__", "2.0.0"),
        "spikingjelly_signgd": sg.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def write(name: str, results: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"speed_{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- neurons --------------------------------------------------------------------------------------

SHAPES = {"2.1 MB": (STEPS, 64, 16, 16), "134 MB": (STEPS, 64, 64, 16, 16)}
MEMBERS = (1, 2, 4, 8, 16)
FUNCTIONS = ("relu", "gelu", "tanh", "silu", "exp", "softplus")
SCHEDULE = sg.ExponentialSchedule(0.3, 0.9)


@contextmanager
def given_memory(y: Mapping[torch.dtype, Tensor]) -> Iterator[None]:
    """Kernels write into y, by type, as ``copy_`` does: fresh memory costs more than they do."""
    empty_strided = torch.empty_strided

    def given(size: Any, stride: Any, **options: Any) -> Tensor:
        found = y.get(options.get("dtype", torch.float32))
        fits = found is not None and tuple(size) == tuple(found.shape)
        return found if found is not None and fits else empty_strided(size, stride, **options)

    torch.empty_strided = given  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty_strided = empty_strided


def kernel_alone(call: Call) -> Call:
    """The one launch of ``call`` again, on the same memory: without its Python."""
    launches: list[Any] = []
    run = cpu.run
    cpu.run = lambda *arguments: launches.append(arguments)
    try:
        with FlopCounterMode(display=False):  # a mode, past which nothing prepared is run
            outputs = call()
    finally:
        cpu.run = run
    (arguments,) = launches

    def launch_again() -> object:
        run(*arguments)
        return outputs  # which the arguments point into

    return launch_again


def signgd(name: str, *x_seq: Tensor, **options: Any) -> Call:
    p = sg.SignGDParameters(sg.NONLINEARITIES[name], SCHEDULE)
    state = SignGDState(torch.zeros(x_seq[0].shape[1:]))
    return partial(signgd_multi_step, x_seq, state, p, **options)


def group(members: int, x: Tensor, **options: Any) -> Call:
    p, v = sg.GroupNeuronParameters(members), torch.zeros(x.shape[1:])
    return partial(group_multi_step, x, v, p, **options)


def kernels(shape: Sequence[int], seconds: float) -> dict[str, Any]:
    """Each kernel over a copy of as many tensors of its type, called in three ways.

    "kernel": the launch alone, "call": as users call it, both into given memory; "new": as users
    call it, into memory that the process does not have yet.
    """
    x, z = torch.randn(shape), torch.rand(shape) + 0.1
    half = x.half()
    y = {dtype: torch.empty(shape, dtype=dtype) for dtype in (x.dtype, half.dtype, torch.int8)}
    out = y[x.dtype]
    copies: dict[str, tuple[Call, Call]] = {
        "copy": (lambda: out.copy_(x), x.clone),
        "copy, three tensors": (lambda: torch.add(x, z, out=out), lambda: torch.add(x, z)),
        "copy, half": (lambda: y[half.dtype].copy_(half), half.clone),
    }
    rows = {f"group, m = {m}": ("copy", group(m, x)) for m in MEMBERS}
    rows |= {f"signGD {name}": ("copy", signgd(name, x)) for name in FUNCTIONS}
    rows |= {
        "signGD x / sqrt(y)": ("copy, three tensors", signgd("divide_by_sqrt", x, z)),
        "signGD relu, spikes in int8": (
            "copy",
            signgd("relu", x, output="sigma", dtype=torch.int8),
        ),
        "signGD relu, float16": ("copy, half", signgd("relu", half)),
        "group, m = 4, float16": ("copy, half", group(4, half)),
    }
    given, new = ({name: pair[k] for name, pair in copies.items()} for k in (0, 1))
    calls = {name: call for name, (_, call) in rows.items()}
    times: dict[str, Times] = {}
    with given_memory(y):
        alone = {name: kernel_alone(call) for name, call in calls.items()}
        times["kernel"] = interleaved(given | alone, seconds)
        times["call"] = interleaved(given | calls, seconds)
    times["new"] = interleaved(new | calls, seconds)
    return {
        "copy": {way: 1e3 * min(found["copy"]) for way, found in times.items()},
        "rows": {
            name: {way: ratio(found, name, copy) for way, found in times.items()}
            for name, (copy, _) in rows.items()
        },
    }


def memory_to_reuse(size: int = 4 * 2**30) -> Tensor:
    """Makes the process have so much memory that what is freed is not returned to the system.

    It is free, and below what is returned. Where the system's new pages would be a part of both
    times that are compared, they would hide the rest.
    """
    torch.ones(31 * 2**20 // 4)  # once freed, glibc takes blocks up to this size from its heap
    piece = 24 * 2**20
    return [torch.ones(piece // 4) for _ in range(size // piece)][-1]


def compiled(function: Callable[..., Any], *inputs: Tensor) -> tuple[Call, float]:
    """``function(*inputs)`` compiled for these shapes, and the seconds that took, from scratch."""
    run = torch.compile(function, fullgraph=True, dynamic=False)
    start = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):
        run(*inputs)
    return partial(run, *inputs), time.perf_counter() - start


def rivals(shape: Sequence[int], seconds: float, compile_too: bool) -> dict[str, Any]:
    """How many times as long other implementations of the same forward pass take."""
    from spikingjelly.activation_based import functional, neuron

    x, v = torch.randn(shape), torch.zeros(shape[1:])
    if_node = neuron.IFNode(v_reset=None, step_mode="m").eval()
    lif_node = neuron.LIFNode(v_reset=None, step_mode="m").eval()

    def run_node(node: Any) -> object:
        functional.reset_net(node)
        return node(x)

    def if_sequence(x: Tensor, v: Tensor) -> Any:
        return if_node.multi_step_functional_forward((x,), (v,))

    def definition(x: Tensor, v: Tensor, p: sg.GroupNeuronParameters) -> Any:
        return scan(group_step, x, v, p)

    calls: dict[str, Call] = {
        "SpikingJelly IFNode": partial(run_node, if_node),
        "SpikingJelly LIFNode": partial(run_node, lif_node),
        "definition, m = 1": group(1, x, backend="torch"),
        "definition, m = 4": group(4, x, backend="torch"),
    }
    to_compile: dict[str, Callable[..., Any]] = {
        "SpikingJelly IFNode, compiled": if_sequence,
        "definition, m = 1, compiled": partial(definition, p=sg.GroupNeuronParameters(1)),
        "definition, m = 4, compiled": partial(definition, p=sg.GroupNeuronParameters(4)),
    }
    compile_seconds = {}
    if compile_too:
        torch._dynamo.reset()
        for name, function in to_compile.items():
            calls[name], compile_seconds[name] = compiled(function, x, v)
            say(f"{name}: compiled in {compile_seconds[name]:.0f} s")
    names = list(calls)
    for m in (1, 4):
        calls[f"m = {m}, call"] = group(m, x)
        with given_memory({x.dtype: torch.empty_like(x)}):
            calls[f"m = {m}, kernel"] = kernel_alone(group(m, x))
    times = interleaved(calls, seconds)
    found: dict[str, Any] = {}
    for name in names:
        of = "m = 4" if "m = 4" in name else "m = 1"
        found[name] = {way: ratio(times, name, f"{of}, {way}") for way in ("kernel", "call")}
        found[name]["compile"] = compile_seconds.get(name)
    return found


def training(shape: Sequence[int], seconds: float) -> dict[str, Any]:
    """How many times as long others take for the forward and the backward pass."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    node = neuron.IFNode(v_reset=None, step_mode="m", surrogate_function=surrogate.Sigmoid())

    def train(members: int, backend: str) -> Call:
        call = group(members, x, backend=backend, surrogate=Surrogate("sigmoid", 4.0))
        return lambda: torch.autograd.grad(call().y, x, grad)  # type: ignore[attr-defined]

    def train_node() -> object:
        functional.reset_net(node)
        return torch.autograd.grad(node(x), x, grad)

    calls = {f"m = {m}": train(m, "auto") for m in (1, 4)}
    calls |= {f"definition, m = {m}": train(m, "torch") for m in (1, 4)}
    times = interleaved(calls | {"SpikingJelly IFNode": train_node}, seconds, least=3)
    return {
        "definition, m = 1": ratio(times, "definition, m = 1", "m = 1"),
        "definition, m = 4": ratio(times, "definition, m = 4", "m = 4"),
        "SpikingJelly IFNode": ratio(times, "SpikingJelly IFNode", "m = 1"),
        "ms": {m: 1e3 * min(times[m]) for m in ("m = 1", "m = 4")},
    }


def neurons(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {"kernels": {}, "rivals": {}, "training": {}}
    for size, shape in SHAPES.items():
        with torch.no_grad():
            results["kernels"][size] = kernels(shape, options.seconds)
        write("neurons", results)
        say(f"{size}: kernels")
    above = memory_to_reuse()
    for size, shape in SHAPES.items():
        with torch.no_grad():
            results["rivals"][size] = rivals(shape, options.seconds, not options.no_compile)
        write("neurons", results)
        say(f"{size}: other implementations")
        results["training"][size] = training(shape, options.seconds)
        write("neurons", results)
        say(f"{size}: training")
    del above


# -- neurons as they are called -------------------------------------------------------------------

CALLED = {"small": (STEPS, 8, 4, 4), "2.1 MB": (STEPS, 64, 16, 16)}
DEAD_ZONES = {"dense": 0.0, "silent": 2 / 3}


def called_of(x: Tensor) -> dict[str, Call]:
    """What users write: a SpikingJelly node after a reset, which a Norse layer needs not."""
    from spikingjelly_signgd.plugins import norse

    found: dict[str, Call] = {}

    def both(name: str, node: nn.Module, layer: nn.Module) -> None:
        def call() -> object:
            node.reset()  # type: ignore[operator]
            return node(x)

        found[f"SpikingJelly, {name}"] = call
        found[f"Norse, {name}"] = partial(layer, x)

    both(
        "group, m = 8",
        sg.GroupNode(8, step_mode="m"),
        norse.GroupNeuron(norse.GroupNeuronParameters(8)),
    )
    for spikes in ("decoded", "signed"):
        for m in (1, 8):
            for zone, theta in DEAD_ZONES.items():
                options: dict[str, Any] = {"spikes": spikes, "members": m, "dead_zone": theta}
                options["initial_input"] = 0.0
                both(
                    f"signGD relu, m = {m}, {spikes}, {zone}",
                    sg.SignGDNode("relu", SCHEDULE, step_mode="m", **options),
                    norse.SignGD(norse.SignGDParameters("relu", SCHEDULE, **options)),
                )
    return found


def called(options: argparse.Namespace) -> None:
    """Calls of nodes and layers over a copy, and SpikingJelly's IFNode over them, one thread."""
    from spikingjelly.activation_based import functional, neuron

    torch.set_num_threads(1)
    torch.manual_seed(0)
    above = memory_to_reuse()
    if_node = neuron.IFNode(v_reset=None, step_mode="m").eval()
    results: dict[str, Any] = {}
    for size, shape in CALLED.items():
        x = torch.randn(shape)

        def run_if(x: Tensor = x) -> object:
            functional.reset_net(if_node)
            return if_node(x)

        calls: dict[str, Call] = {"copy": x.clone, "IFNode": run_if, **called_of(x)}
        with torch.no_grad():
            times = interleaved(calls, options.seconds)
        results[size] = {
            name: {"copy": ratio(times, name, "copy"), "IFNode": ratio(times, "IFNode", name)}
            for name in calls
        }
        write("called", {"called": results})
        say(size)
    del above


# -- networks -------------------------------------------------------------------------------------

NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp")
QCFS = {"vgg, group": "vgg", "resnet, group": "resnet"}
LEVELS = 8


class PublishedLoop:
    """A model of how the published implementation runs a network, one time step after another.

    Made from the description of ``convert(..., preset="paper")``, whose decomposition is that of
    the published code: max pooling as a chain of maxima of two, layer norm as square and
    x / sqrt(y), sigmoid GELU, real-valued input coding. At every step all layers run densely, in
    float32 and with their bias, on spikes in {0, 1}; each neuron takes I to 2 I - offset, does a
    step of SGD on its input, compares, and does one on its output, each operation a torch operation
    that makes a new tensor, about 15 for a neuron layer. Offsets and biases are found by probing
    with spikes that are all one and all zero. Rows that do not fire at a tie compare by
    ``torch.heaviside``, which is slow on a CPU; ``heaviside=False`` compares by ``>`` instead.

    It leaves out what would make it slower still: SpikingJelly's modules and hooks, the progress
    bar, the momentum buffers, the tensor pairs. Its outputs are those of ``preset="paper"``.
    """

    def __init__(self, network: sg.SpikingNetwork, heaviside: bool = True) -> None:
        self.network = network
        self.heaviside = heaviside
        zero, one = self._probe(0.0), self._probe(1.0)
        self.offset = {key: zero[key] + one[key] for key in zero}  # W 1 + 2 b
        self.bias = zero

    @torch.no_grad()
    def run(self, x: Tensor, steps: int) -> Tensor:
        """The decoded output after ``steps`` steps of x [B, ...]."""
        self.x: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}
        for t in range(1, steps + 1):
            out = self._step(x, t)
        return out

    def _step(self, x: Tensor, t: int) -> Tensor:
        values: dict[str, Tensor] = {}
        for node in self.network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, nodes.Encoder):
                values[node.name] = self._encode(node, x, t)
            elif isinstance(node, nodes.SignGDNeuron):
                values[node.name] = self._spikes(node, inputs, t)
            else:
                values[node.name] = self._affine(node, inputs, x)
        name = self.network.outputs
        change = 2 * values[name] - self.offset[name]
        self.v[name] = self.v.get(name, self.bias[name]) - self._eta(t) * change
        return self.v[name]

    def _affine(self, node: nodes.Node, inputs: Sequence[Tensor], x: Tensor) -> Tensor:
        if isinstance(node, nodes.Input):
            return x
        if isinstance(node, nodes.Constant):
            return node.value
        assert isinstance(node, nodes.Linear)
        return apply(node.op, inputs, node.attributes, node.tensors, x.shape[0])

    def _encode(self, node: nodes.Encoder, x: Tensor, t: int) -> Tensor:
        v = self.v.get(node.name)
        gradient = (torch.zeros_like(x) if v is None else v) - x
        self.v[node.name] = (torch.zeros_like(x) if v is None else v) - self._eta(t) * gradient
        return (1 + gradient) / 2

    def _spikes(self, node: nodes.SignGDNeuron, inputs: Sequence[Tensor], t: int) -> Tensor:
        eta, arguments = self._eta(t), []
        for k, current in enumerate(inputs):
            key = f"{node.name}/{k}"
            change = 2 * (current / node.scale) - self.offset[key]  # charge
            before = self.x[key] if key in self.x else self.bias[key]
            self.x[key] = before - eta * change
            arguments.append(self.x[key])
        v = self.v.get(node.name)
        v = torch.zeros_like(arguments[0]) if v is None else v
        spikes = self._fire(node, arguments, v)
        self.v[node.name] = v - eta * (2 * spikes - 1)  # reset
        return spikes * node.scale

    def _fire(self, node: nodes.SignGDNeuron, x: Sequence[Tensor], v: Tensor) -> Tensor:
        name = node.function.name
        if name == "relu":
            return (v >= torch.where(x[0] >= 0, x[0], torch.zeros_like(x[0]))).to(v.dtype)
        if node.function.fires_at_tie:
            return (v >= node.function(*x, **node.arguments)).to(v.dtype)
        if name == "divide_by_sqrt":
            v, target = torch.sqrt(x[1]) * v, x[0]
        else:
            target = node.function(*x, **node.arguments)
        if self.heaviside:
            return torch.heaviside(v - target, torch.zeros(()))
        return (v > target).to(v.dtype)

    def _eta(self, t: int) -> float:
        return 0.15 * 0.95 ** (t - 1)

    @torch.no_grad()
    def _probe(self, spike: float) -> dict[str, Tensor]:
        """What each neuron and the output receive of a batch of one, the batch left out."""
        x = torch.full([1, *resolve(self.network.input.shape[1:], 1)], spike)
        values: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for node in self.network.nodes:
            inputs = [values[name] for name in node.inputs]
            if isinstance(node, nodes.SignGDNeuron):
                received = [i / node.scale for i in inputs]
                found |= {f"{node.name}/{k}": i[0] for k, i in enumerate(received)}
                shape = torch.broadcast_shapes(*(i.shape for i in inputs))
                values[node.name] = torch.full(shape, spike) * node.scale
            elif isinstance(node, nodes.Encoder):
                values[node.name] = x
            else:
                values[node.name] = self._affine(node, inputs, x)
        return found | {self.network.outputs: values[self.network.outputs][0]}


def images(count: int) -> tuple[Tensor, str]:
    """Training images; noise where Fashion-MNIST is not there, which takes as long."""
    try:
        return fashion_mnist().train.images[:count], "fashion"
    except FileNotFoundError:
        return torch.randn(count, 1, 28, 28), "noise"


def converted(name: str, x: Tensor, preset: str = "default") -> tuple[nn.Module, Any]:
    """The source network and what it is converted to, for STEPS steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # m T away from L, and ranges that saturate, as published
        if name in QCFS:
            model = load_network(QCFS[name], "fashion", qcfs=LEVELS)
            return model, sg.convert(model, x, method="group", time_steps=STEPS)
        model = load_network(name, "fashion")
        zone: dict[str, Any] = {} if preset == "paper" else {"dead_zone": 0.0}
        return model, sg.convert(model, x, preset=preset, time_steps=STEPS, tune=False, **zone)


def network(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for an image and a step over those of other ways to run the network."""
    torch.manual_seed(0)
    pool, data = images(256)
    model, spiking = converted(name, pool)
    snn, batch = sg.build(spiking), options.batch
    block = min(STEPS, default_chunk(spiking, batch))
    x = pool.repeat(-(-block * batch // len(pool)), 1, 1, 1)[: block * batch].contiguous()
    last = load_network(QCFS.get(name, name), "fashion", qcfs=LEVELS if name in QCFS else None)
    last = last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.clone(memory_format=torch.channels_last)
    calls: dict[str, Call] = {
        "snn": lambda: sg.run(snn, x[:batch], STEPS),
        "source": lambda: model(x),
        "source, channels last": lambda: last(x_last),
        "source, one batch": lambda: model(x[:batch]),
    }
    result: dict[str, Any] = {"data": data, "batch": batch, "block": block, "steps": STEPS}
    loop_steps = 4
    if name not in QCFS:
        paper = converted(name, pool, "paper")[1]
        loop, quicker = PublishedLoop(paper), PublishedLoop(paper, heaviside=False)
        ours = sg.run(sg.build(paper), x[:batch], STEPS)[STEPS]
        distance = (loop.run(x[:batch], STEPS) - ours).norm() / ours.norm()
        result["published loop, distance to preset paper"] = float(distance)
        calls["published loop"] = lambda: loop.run(x[:batch], loop_steps)
        calls["published loop without heaviside"] = lambda: quicker.run(x[:batch], loop_steps)
    with torch.no_grad():
        times = interleaved(calls, options.seconds, least=4)
    per = batch * STEPS
    result["us for an image and a step"] = 1e6 * min(times["snn"]) / per
    result["over source"] = ratio(times, "snn", "source", block / STEPS)
    result["over source, channels last"] = ratio(
        times, "snn", "source, channels last", block / STEPS
    )
    result["over T source forwards"] = ratio(times, "snn", "source, one batch", 1 / STEPS)
    for loop_name in times:
        if loop_name.startswith("published"):
            result[f"{loop_name} over snn"] = ratio(times, loop_name, "snn", STEPS / loop_steps)
    if options.profile:
        result["profile"] = profile(calls["snn"])
    return result


CLASSES = {
    "convolutions": ("conv", "mkldnn_convolution"),
    "matrix products": ("mm", "linear", "matmul", "bmm", "einsum"),
    "neurons": ("spikingjelly_signgd",),
    "pooling": ("pool", "maximum"),
    "layout and copies": ("copy_", "clone", "contiguous", "cat", "stack", "im2col"),
    "sums and means": ("mean", "sum"),
    "additions and products": ("add", "sub", "mul", "div"),
    "memory": ("empty", "resize", "fill_", "zero_", "full"),
}


def profile(call: Call) -> dict[str, float]:
    """Shares of the time by class of operation, as torch's profiler sees the calling thread."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with torch.no_grad():
        call()
        start = time.perf_counter()
        with profiler(activities=[ProfilerActivity.CPU]) as found:
            call()
        total = 1e6 * (time.perf_counter() - start)
    shares = dict.fromkeys(CLASSES, 0.0)
    shares["other operations"] = 0.0
    for event in found.key_averages():
        home = (c for c, words in CLASSES.items() if any(w in event.key for w in words))
        shares[next(home, "other operations")] += event.self_cpu_time_total / total
    shares["Python and what the profiler adds"] = 1 - sum(shares.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def networks(options: argparse.Namespace) -> None:
    path = RESULTS / "speed_networks.json"
    known = json.loads(path.read_text())["networks"] if path.exists() else {}
    for name in options.networks or (*NETWORKS, *QCFS):
        known[name] = network(name, options)
        write("networks", {"networks": known})
        say(f"{name}: {known[name]['us for an image and a step']:.1f} us for an image and a step")
        for part, share in known[name].get("profile", {}).items():
            say(f"    {100 * share:5.1f} %  {part}")


# -- networks of some plans -----------------------------------------------------------------------

PLANS = {"1 x 16": (1, 16), "4 x 2": (4, 2), "8 x 1": (8, 1)}


def plan_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Source forwards for an image and a step, of each plan, without and with a dead zone."""
    torch.manual_seed(0)
    x, data = images(options.batch)
    model = load_network(name, "fashion").eval()
    calls: dict[str, Call] = {"source": lambda: model(x)}
    for plan, (members, steps) in PLANS.items():
        for zone, theta in DEAD_ZONES.items():
            asked: dict[str, Any] = {
                "members": members,
                "time_steps": steps,
                "dead_zone": theta,
                "tune": False,
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                snn = sg.build(sg.convert(model, x, **asked))
            calls[f"{plan}, {zone}"] = partial(sg.run, snn, x, steps)
    with torch.no_grad():
        times = interleaved(calls, options.seconds)
    over = {
        f"{plan}, {zone}": ratio(times, f"{plan}, {zone}", "source", 1 / steps)
        for plan, (_, steps) in PLANS.items()
        for zone in DEAD_ZONES
    }
    return {"data": data, "batch": options.batch, "ms": 1e3 * min(times["source"]), "plans": over}


def plans(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in options.networks or ("vgg", "resnet", "resmlp", "mixer", "convnext", "vit"):
        results[name] = plan_of(name, options)
        write("plans", {"plans": results})
        found = ", ".join(f"{k}: {v['min']:.2f}" for k, v in results[name]["plans"].items())
        say(f"{name}: {found}")


# -- memory ---------------------------------------------------------------------------------------

LENGTHS = {8: 2, 256: 2, 1024: 1}  # steps of a run, and how many runs
CHUNK = 4
# glibc returns what is freed at once: what is measured is what a run holds, not what is kept back
ALLOCATORS = {"held": {"MALLOC_MMAP_THRESHOLD_": str(2**18)}, "glibc's default": {}}


def peak() -> float:
    """The most memory that this program has had, MiB.

    Where there is no /proc, as ``ru_maxrss``, which begins with that of the process that started
    this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 2**10
    except OSError:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_of_run(path: str, steps: int, batch: int) -> None:
    """In a process of its own: prints what a run adds to the memory there was before, MiB."""
    snn = sg.build(sg.load(path))
    x = torch.randn(batch, 1, 28, 28)
    sg.run(snn, x[:1], 2 * CHUNK, chunk=CHUNK)  # loads what torch loads when it first computes
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak()
    sg.run(snn, x, steps, chunk=CHUNK)
    print(peak() - before)


def memory(options: argparse.Namespace) -> None:
    results: dict[str, Any] = {}
    for name in options.networks or (*NETWORKS, *QCFS):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "network.h5")
            sg.save(converted(name, images(64)[0])[1], path)
            command = [sys.executable, __file__, "memory", "--of", path]
            command += ["--batch", str(options.batch), "--steps"]
            found: dict[str, dict[str, list[float]]] = {}
            for allocator, variables in ALLOCATORS.items():
                run = partial(subprocess.run, check=True, stdout=subprocess.PIPE, text=True)
                environment = {**os.environ, **variables}
                found[allocator] = {
                    str(steps): [
                        float(run([*command, str(steps)], env=environment).stdout)
                        for _ in range(repeats)
                    ]
                    for steps, repeats in LENGTHS.items()
                }
        results[name] = {"batch": options.batch, "block": CHUNK, "MiB": found}
        write("memory", {"memory": results})
        for allocator, runs in found.items():
            each = ", ".join(f"T = {t}: {median(m):.1f} MiB" for t, m in runs.items())
            say(f"{name}, {allocator}: {each}")


# -- tables ---------------------------------------------------------------------------------------

# what is asked of each row: at most for kernels and networks, at least for speed-ups
KERNEL_LIMITS = {
    "2.1 MB": {"group": 1.5, "signGD relu": 1.5, "signGD gelu": 8.0, "signGD x / sqrt(y)": 4.0},
    "134 MB": {"group": 1.5, "signGD relu": 1.5, "signGD gelu": 4.0, "signGD x / sqrt(y)": 4.0},
}
RIVAL_LIMITS = {
    "2.1 MB": {"SpikingJelly IFNode": 10, "definition, m = 1": 10, "definition, m = 4": 10},
    "134 MB": {"SpikingJelly IFNode": 8, "definition, m = 1": 8, "definition, m = 4": 8},
}
COMPILED_LIMIT, TRAINING_LIMIT, FLAT = 2, 8, 1.3
NETWORK_LIMITS = {"vgg": 1.5, "resnet": 1.5, "vgg, group": 1.5, "resnet, group": 1.5}
NETWORK_LIMIT, PUBLISHED_LIMIT, MEMORY_LIMIT = 2.0, 3, 1.05


def cell(value: Mapping[str, float] | None, limit: float | None = None, least: bool = False) -> str:
    """The ratio, the median in brackets, and what is asked, in bold where it is missed."""
    if value is None:
        return "–"
    text = f"{value['min']:.2f} ({value['median']:.2f})"
    if limit is None:
        return text
    missed = value["min"] < limit if least else value["min"] > limit
    asked = f"{'≥' if least else '≤'} {limit:g}"
    return f"**{text}**, {asked}" if missed else f"{text}, {asked}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def print_neurons(results: Mapping[str, Any]) -> None:
    for size, found in results["kernels"].items():
        copy, rows = found["copy"], []
        for name, ways in found["rows"].items():
            limit = KERNEL_LIMITS[size].get("group" if name.startswith("group") else name)
            limit = None if name.endswith("float16") else limit
            rows.append(
                [name, cell(ways["kernel"], limit), *(cell(ways[w]) for w in ("call", "new"))]
            )
        ways = {"kernel": "kernel alone", "call": "as called", "new": "as called, new memory"}
        head = [f"{text} ({copy[way]:.3f} ms)" for way, text in ways.items()]
        table([f"{size}, over a copy", *head], rows)
        times = [found["rows"][f"group, m = {m}"]["kernel"]["ms"] for m in MEMBERS]
        print(f"\nSlowest over fastest m: {max(times) / min(times):.2f}, ≤ {FLAT}")

    sizes = list(results["rivals"])
    rows = []
    for name in results["rivals"].get("2.1 MB", {}):
        seconds = results["rivals"]["2.1 MB"][name]["compile"]
        row = [f"{name} in {seconds:.0f} s" if seconds else name]
        for size in sizes:
            limit = RIVAL_LIMITS[size].get(name)
            limit = COMPILED_LIMIT if "m = " in name and "compiled" in name else limit
            ways = results["rivals"][size][name]
            row += [cell(ways["call"], limit, True), cell(ways["kernel"])]
        rows.append(row)
    ways_of = ("as called", "kernel alone")
    table(["over group neurons", *(f"{s}, {way}" for s in sizes for way in ways_of)], rows)

    sizes = list(results["training"])
    milliseconds = [results["training"][s]["ms"]["m = 1"] for s in sizes]
    head = [f"{s} ({ms:.2f} ms)" for s, ms in zip(sizes, milliseconds, strict=True)]
    rows = [
        [name, *(cell(results["training"][s][name], TRAINING_LIMIT, True) for s in sizes)]
        for name in results["training"].get("2.1 MB", {})
        if name != "ms"
    ]
    table(["forward and backward, over group neurons", *head], rows)


def print_networks(results: Mapping[str, Any]) -> None:
    rows = []
    for name, found in results["networks"].items():
        limit = NETWORK_LIMITS.get(name, NETWORK_LIMIT)
        rows.append(
            [
                name,
                f"{found['batch']} x {found['block']}",
                f"{found['us for an image and a step']:.1f}",
                cell(found["over source"], limit),
                cell(found["over source, channels last"]),
                cell(found["over T source forwards"]),
                cell(found.get("published loop over snn"), PUBLISHED_LIMIT, True),
                cell(found.get("published loop without heaviside over snn")),
            ]
        )
    table(
        [
            *("network", "B x K", "us for an image and a step", "over the source"),
            *("over the source, channels last", "over T forwards of B"),
            *("published loop over this", "without heaviside"),
        ],
        rows,
    )
    for name, found in results["networks"].items():
        if "profile" in found:
            parts = (f"{100 * v:.0f} % {k}" for k, v in found["profile"].items() if v > 0.005)
            print(f"\n{name}: {', '.join(parts)}")


def print_memory(results: Mapping[str, Any]) -> None:
    rows = []
    for name, found in results["memory"].items():
        row = [name, f"{found['batch']} x {found['block']}"]
        for allocator, runs in found["MiB"].items():
            peaks = {steps: median(values) for steps, values in runs.items()}
            relative = peaks["256"] / peaks["8"]
            row += [f"{value:.1f}" for value in peaks.values()]
            if allocator == "held":
                text = f"{relative:.3f}, ≤ {MEMORY_LIMIT}"
                row.append(f"**{text}**" if relative > MEMORY_LIMIT else text)
        rows.append(row)
    lengths = [f"T = {t}" for t in LENGTHS]
    kept = [f"{length}, glibc's default" for length in lengths]
    table(["peak, MiB", "B x K", *lengths, "256 over 8", *kept], rows)


CALLED_LIMITS = {"copy": 1.8, "IFNode": 10.0, "us": 60.0}
PLAN_LIMITS = {"1 x 16": 1.0, "8 x 1": 1.3}


def print_called(results: Mapping[str, Any]) -> None:
    small, large = (results["called"][size] for size in CALLED)
    rows = []
    for name in (each for each in large if each not in ("copy", "IFNode")):
        us = 1e3 * small[name]["copy"]["ms"]
        asked = f"{us:.0f}, ≤ {CALLED_LIMITS['us']:.0f}"
        rows.append(
            [
                name,
                f"**{asked}**" if us > CALLED_LIMITS["us"] else asked,
                f"{1e3 * large[name]['copy']['ms']:.0f}",
                cell(large[name]["copy"], CALLED_LIMITS["copy"]),
                cell(large[name]["IFNode"], CALLED_LIMITS["IFNode"], True),
            ]
        )
    head = [f"{list(shape)}, us" for shape in CALLED.values()]
    table(["as called", *head, "over a copy, 2.1 MB", "IFNode over it, 2.1 MB"], rows)


def print_plans(results: Mapping[str, Any]) -> None:
    found = results["plans"]
    columns = list(next(iter(found.values()))["plans"])
    rows = [
        [f"{name} ({each['ms']:.1f} ms)"]
        + [cell(each["plans"][c], PLAN_LIMITS.get(c.partition(",")[0])) for c in columns]
        for name, each in found.items()
    ]
    table(["source forwards for an image and a step", *columns], rows)


PRINTERS = {
    "neurons": print_neurons,
    "called": print_called,
    "networks": print_networks,
    "plans": print_plans,
    "memory": print_memory,
}
WORDS = {
    "neurons": """\
One thread, float32, T = 32, [32, 64, 16, 16] (2.1 MB) and [32, 64, 64, 16, 16] (134 MB); the
fastest calls, in brackets the median over the rounds, in bold what misses what is asked. The copy
reads and writes what the neuron does: for x / sqrt(y) it is a sum of two tensors, for spikes in
int8 that of float32. "kernel alone" leaves out the Python of a call; it and "as called" write into
memory that is there, as `copy_` does. "new memory" is of a process that has to ask for it, as
`clone` does, which takes longer than the neurons. In the tables of other implementations everyone
allocates, from memory that was used before; `compiled` is `torch.compile` of the same 32 steps.""",
    "networks": """\
Fashion-MNIST networks, T = 32, time for an image and a step over the time that the source network
takes for an image when it is given as many at once as are in flight in a block of K steps of B
images. The source runs as it was trained and, more favourably, with channels last. The T forwards
are of B images. The published loop is our model of the published implementation's (`PublishedLoop`
says what it leaves out), on its own decomposition of the network, at the same B, as published and
with `>` in place of `torch.heaviside`, of which torch has no vectorised code on a CPU. Unlike the
source, the spiking networks have batch norm folded in, and what the constant input alone decides,
such as the first convolution, is computed once.""",
    "called": """\
One thread, float32, T = 32. A call of a SpikingJelly node after ``reset``, and of a Norse layer,
as users write it, everybody allocating from memory that was used before, as the copy does, which is
``x.clone()``. The dead zone is 2/3 ("silent") or none ("dense").""",
    "plans": """\
One thread, Fashion-MNIST networks, not tuned: the time of ``run`` for an image and a step over the
time that one forward pass of the source takes for an image, both given 64 images at once; m x T of
the plan, without a dead zone and with 2/3.""",
    "memory": """\
What a run adds at its peak to the memory of a process that has run the network before, for blocks
of K steps of B images. With glibc's defaults the heap also keeps what it cannot return.""",
}


def print_tables() -> None:
    for name, show in PRINTERS.items():
        path = RESULTS / f"speed_{name}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        about = results["machine"]
        threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
        print(f"\n## Speed: {name}\n\n`python benchmarks/speed.py {name}`\n\n{WORDS[name]}\n")
        print(
            f"{about['date']}, commit {about['commit']}, {about['cpu']}, {about['cores']} cores, "
            f"{threads}, kernels {about['instruction set of the kernels']}, torch "
            f"{about['torch']} ({about['instruction set of torch']}), spikingjelly "
            f"{about['spikingjelly']}."
        )
        show(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*PRINTERS, "tables"))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each set of comparisons")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--networks", nargs="+", default=None)
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--profile", action="store_true", help="where a network's time goes")
    parser.add_argument("--of", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "tables":
        print_tables()
    elif options.of:
        memory_of_run(options.of, options.steps, options.batch)
    else:
        globals()[options.what](options)


if __name__ == "__main__":
    main()
