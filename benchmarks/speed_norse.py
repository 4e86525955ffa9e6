"""Norse: our layers against the SpikingJelly nodes and against Norse's own neurons.

    python benchmarks/speed_norse.py [--seconds 10] [--networks vgg ...] [--new-memory]

Prints the table of RESULTS.md, of ratios within one run, and writes results/speed_norse.json.
What is compared is run in turn, as in speed.py, in memory that was used before; ``--new-memory``
times only the largest layers, in a process that asks the system for every output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import norse.torch as norse
import torch
from speed import (
    NETWORKS,
    QCFS,
    RESULTS,
    STEPS,
    Call,
    cell,
    converted,
    images,
    interleaved,
    memory_to_reuse,
    ratio,
    say,
    table,
    write,
)
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.plugins.norse import (
    GroupNeuron,
    GroupNeuronParameters,
    SignGD,
    SignGDParameters,
)

SHAPES = {
    "2.1 MB": (STEPS, 64, 16, 16),
    "16.8 MB": (STEPS, 8, 64, 16, 16),
    "134 MB": (STEPS, 64, 64, 16, 16),
}
SCHEDULE = sg.ExponentialSchedule(0.5, 0.95)
SPIKINGJELLY_LIMIT, NORSE_LIMIT = 1.05, 3.0


def node(module: nn.Module, x: Tensor) -> Call:
    def run() -> object:
        functional.reset_net(module)
        return module(x)

    return run


def layers(shape: Sequence[int], seconds: float) -> dict[str, Any]:
    """Forward passes of a sequence, in one thread."""
    x = torch.randn(shape)
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {
        "group, m = 1": (GroupNeuron(GroupNeuronParameters(1)), sg.GroupNode(1, step_mode="m")),
        "group, m = 4": (GroupNeuron(GroupNeuronParameters(4)), sg.GroupNode(4, step_mode="m")),
    }
    for name in ("relu", "gelu"):
        signed: dict[str, Any] = {"spikes": "signed", "initial_input": 0.0}
        ours = SignGD(SignGDParameters(name, SCHEDULE, **signed))
        node_of = sg.SignGDNode(name, SCHEDULE, step_mode="m", **signed)
        pairs[f"signGD {name}"] = ours, node_of
    calls: dict[str, Call] = {}
    for name, (layer, theirs) in pairs.items():
        calls[f"{name}, warm-up"] = node(theirs, x)  # both then find the caches as they are left
        calls[name] = lambda layer=layer: layer(x)  # type: ignore[misc]
        calls[f"{name}, SpikingJelly"] = node(theirs, x)
    iaf, lif = norse.IAF(), norse.LIF()
    calls["IAF"] = lambda: iaf(x)
    calls["LIF"] = lambda: lif(x)
    with torch.no_grad():
        times = interleaved(calls, seconds)
    return {
        name: {
            "over SpikingJelly": ratio(times, name, f"{name}, SpikingJelly"),
            "IAF": ratio(times, "IAF", name),
            "LIF": ratio(times, "LIF", name),
        }
        for name in pairs
    }


def training(shape: Sequence[int], seconds: float) -> dict[str, Any]:
    """Forward and backward pass, with Norse's default gradient."""
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def train(module: nn.Module) -> Call:
        return lambda: torch.autograd.grad(module(x)[0], x, grad)

    ours = {f"group, m = {m}": train(GroupNeuron(GroupNeuronParameters(m))) for m in (1, 4)}
    times = interleaved(ours | {"IAF": train(norse.IAF())}, seconds, least=3)
    return {name: {"IAF": ratio(times, "IAF", name)} for name in ours}


def network(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """``run`` of both builds, and one call with a sequence, in all threads."""
    x, _ = images(batch)
    spiking = converted(name, images(256)[0])[1]
    theirs, ours = sg.build(spiking), sg.build(spiking, "norse")
    x_seq = x[:8].expand(STEPS, *x[:8].shape)
    functional.set_step_mode(theirs, "m")
    calls: dict[str, Call] = {
        "Norse": lambda: sg.run(ours, x, STEPS),
        "SpikingJelly": lambda: sg.run(theirs, x, STEPS),
        "Norse, forward": lambda: ours(x_seq),
        "SpikingJelly, forward": node(theirs, x_seq),
    }
    with torch.no_grad():
        times = interleaved(calls, seconds, least=4)
    return {
        "run": ratio(times, "Norse", "SpikingJelly"),
        "forward": ratio(times, "Norse, forward", "SpikingJelly, forward"),
    }


def show(results: Mapping[str, Any]) -> None:
    about = results["machine"]
    print(
        f"{about['date']}, commit {about['commit']}, {about['cpu']}, {about['cores']} cores, torch "
        f"{about['torch']}, norse {results['norse']}, spikingjelly {about['spikingjelly']}."
    )
    for size, found in results["layers"].items():
        rows = []
        for name, values in found.items():
            train = results["training"][size].get(name)
            rows.append(
                [
                    f"{name} ({values['over SpikingJelly']['ms']:.2f} ms)",
                    cell(values["over SpikingJelly"], SPIKINGJELLY_LIMIT),
                    cell(values["IAF"], NORSE_LIMIT, True),
                    cell(values["LIF"]),
                    cell(train["IAF"] if train else None),
                ]
            )
        head = ["over the SpikingJelly node", "Norse's IAF over it", "Norse's LIF over it"]
        table([f"{size}, one thread", *head, "IAF, forward and backward"], rows)
    rows = [
        [name, cell(found["run"], SPIKINGJELLY_LIMIT), cell(found["forward"], SPIKINGJELLY_LIMIT)]
        for name, found in results["networks"].items()
    ]
    if rows:
        table(
            ["network", "run, over SpikingJelly", "one call of 8 images, over SpikingJelly"], rows
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each set of comparisons")
    parser.add_argument("--networks", nargs="*", default=(*NETWORKS, *QCFS))
    parser.add_argument("--new-memory", action="store_true", help="the largest layers, new memory")
    parser.add_argument("--batch", type=int, default=64, help="images")
    options = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    results: dict[str, Any] = {"norse": version("norse"), "networks": {}}
    torch.set_num_threads(1)
    results["layers"], results["training"] = {}, {}
    above = None if options.new_memory else memory_to_reuse()
    for size in ("134 MB",) if options.new_memory else SHAPES:
        results["layers"][size] = layers(SHAPES[size], options.seconds)
        results["training"][size] = training(SHAPES[size], options.seconds)
        say(size)
    del above
    torch.set_num_threads(threads)
    for name in () if options.new_memory else options.networks:
        results["networks"][name] = network(name, options.batch, options.seconds)
        say(name)
    name = "norse_new_memory" if options.new_memory else "norse"
    write(name, results)
    show(json.loads((RESULTS / f"speed_{name}.json").read_text()))


if __name__ == "__main__":
    main()
