"""Five networks by hand with a fault: what they give, and what ``check`` names.

Linear(64, 128), gelu, Linear(128, 128), gelu, Linear(128, 10) as torch initialises them, with
single signs and step sizes 0.5 * 0.9^(t-1). ``to_spikes`` makes the sound one; each of the others
is spoiled as a new user may. Columns are the error of the output after T steps, the root mean
square over that of the source's outputs, the mean over three seeds, in SpikingJelly and in Norse,
and the module paths that ``check`` names in both.

    python benchmarks/forms_by_hand.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from norse.torch import SequentialState
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd import SignGDNode
from spikingjelly_signgd.plugins.norse import SignGDCell, SignGDParameters

SCHEDULE = sg.ExponentialSchedule(0.5, 0.9)
OTHER = sg.ExponentialSchedule(0.5, 0.8)
Modules = list[nn.Module]


class SpikingJelly:
    make = nn.Sequential

    @staticmethod
    def node(schedule: Any = SCHEDULE, **options: Any) -> nn.Module:
        return SignGDNode("gelu", schedule, **options)

    @staticmethod
    def run(net: Any, x: Tensor, steps: int) -> Tensor:
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        return [net(x) for _ in range(steps)][-1]


class Norse:
    make = SequentialState

    @staticmethod
    def node(schedule: Any = SCHEDULE, **options: Any) -> nn.Module:
        return SignGDCell(SignGDParameters("gelu", schedule, **options))

    @staticmethod
    def run(net: Any, x: Tensor, steps: int) -> Tensor:
        state = None
        for _ in range(steps):
            y, state = net(x, state)
        return y  # type: ignore[no-any-return]


def biased(modules: Modules, layers: Modules, simulator: Any) -> Modules:
    return [modules[0], layers[0], modules[2], layers[1], modules[4], layers[2], modules[6]]


def mixed(modules: Modules, layers: Modules, simulator: Any) -> Modules:
    return [*modules[:4], simulator.node(spikes="decoded", members=1), *modules[5:]]


def rescheduled(modules: Modules, layers: Modules, simulator: Any) -> Modules:
    options = {"spikes": "ternary", "initial_input": layers[1].bias.detach(), "members": 1}  # type: ignore[operator]
    return [*modules[:4], simulator.node(OTHER, **options), *modules[5:]]


# the form, and what is made of [Encode, layer, node, layer, node, layer, Readout]
SPOILED: dict[str, tuple[str, Callable[[Modules, Modules, Any], Modules]]] = {
    "sound": ("signed", lambda modules, layers, simulator: modules),
    "biases left in the layers": ("signed", biased),
    "Encode left out": ("signed", lambda modules, layers, simulator: modules[1:]),
    "Readout left out": ("signed", lambda modules, layers, simulator: modules[:-1]),
    "one node of the decoded form": ("signed", mixed),
    "another schedule, ternary spikes": ("ternary", rescheduled),
}


@torch.no_grad()
def measured(name: str, simulator: Any, seed: int, steps: int) -> tuple[float, list[str]]:
    torch.manual_seed(seed)
    layers: Modules = [nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)]
    x = torch.randn(200, 64)
    source = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])(x)
    form, spoil = SPOILED[name]
    nodes = [simulator.node(spikes="decoded", members=1) for _ in range(2)]
    decoded = simulator.make(layers[0], nodes[0], layers[1], nodes[1], layers[2])
    modules = list(sg.to_spikes(decoded, x, form).children())
    net = simulator.make(*spoil(modules, layers, simulator))
    y = simulator.run(net, x, steps)
    error = float((y - source).square().mean().sqrt() / source.square().mean().sqrt())
    return error, [row.path for row in sg.check(net, x).blockers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'':34}{'SpikingJelly':>14}{'Norse':>10}   named")
    for name in SPOILED:
        errors, named = [], set()
        for simulator in (SpikingJelly, Norse):
            found = [measured(name, simulator, k, options.steps) for k in range(options.seeds)]
            errors.append(sum(error for error, _ in found) / len(found))
            named |= {", ".join(paths) for _, paths in found}
        print(f"{name:34}{errors[0]:14.4f}{errors[1]:10.4f}   {' / '.join(named) or '-'}")


if __name__ == "__main__":
    main()
