"""The table of docs/counters.md: operations of the digits networks, counted three ways.

    PYTHONPATH=.venv/neurobench python benchmarks/counters.py

NeuroBench lies there after `make neurobench`, or in the environment by the extra neurobench. Means
for one image of the test set; thousands of operations.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from neurobench.benchmarks import Benchmark
from neurobench.metrics.workload import SynapticOperations
from torch.utils.data import DataLoader, TensorDataset

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import count_operations
from spikingjelly_signgd.plugins import op_counter
from spikingjelly_signgd.plugins.neurobench import AllSynapticOperations, NeuroBenchNetwork

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import digits  # noqa: E402
from networks import load_network  # noqa: E402

STEPS, IMAGES = 8, 32
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet, signGD": ("resnet", {"dead_zone": 0}),
    "resnet, 4 members": ("resnet", {"method": "group", "members": 4}),
    "vgg, signGD": ("vgg", {"dead_zone": 0}),
    "convnext, signGD": ("convnext", {"dead_zone": 0}),
    "vit, signGD": ("vit", {"dead_zone": 0}),
}


def counts(name: str, options: dict[str, Any]) -> list[float]:
    data = digits()
    x, y = data.test.images[:IMAGES], data.test.labels[:IMAGES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.LevelsWarning)
        network = sg.convert(
            load_network(name, "digits"),
            data.train.images[:64],
            time_steps=STEPS,
            tune=False,
            **options,
        )
    snn = sg.build(network)
    own = count_operations(snn, x, STEPS)
    loader = DataLoader(TensorDataset(x, y), 8)
    metrics = [[], [SynapticOperations, AllSynapticOperations]]
    found = Benchmark(NeuroBenchNetwork(snn, STEPS), loader, [], [], metrics).run(quiet=True)
    signs = "method" not in options
    theirs = op_counter.count(sg.build(network, spikes="signed") if signs else snn, x, STEPS)
    row = [own.synaptic, own.input_macs + own.sum_macs + own.multiplies]
    for metric in ("AllSynapticOperations", "SynapticOperations"):
        row += [found[metric]["Effective_ACs"], found[metric]["Effective_MACs"]]
    return [*row, theirs.synaptic, theirs.macs]


def main() -> None:
    print("| network | ours | | NeuroBench, all | | NeuroBench | | SpikingJelly, rules | |")
    print("| --- |" + " ---: |" * 8)
    print("| | AC | MAC |" + " AC | MAC |" * 3)
    for title, (name, options) in NETWORKS.items():
        cells = [f"{value / 1000:.1f}" for value in counts(name, options)]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
