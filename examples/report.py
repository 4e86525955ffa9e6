"""The report of a converted ConvNeXt on digits: one HTML file, to be opened in a browser.

    python examples/report.py [--path report.html] [--network convnext] [--time-steps 16]

Nothing is trained and nothing is fetched: the weights lie in examples/weights.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from data import digits
from networks import NETWORKS, load_network

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import write_report

ITERATIONS = 25  # of tuning; left to itself it takes more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="report.html")
    parser.add_argument("--network", choices=NETWORKS, default="convnext")
    parser.add_argument("--time-steps", type=int, default=16)
    options = parser.parse_args()
    data, model = digits(), load_network(options.network, "digits")
    images = data.train.images[:256]
    network = sg.convert(model, images, time_steps=options.time_steps, tune=False)
    network = sg.tune(network, images, iterations=ITERATIONS)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / f"{options.network}.h5"
        sg.save(network, exported)
        certificate = sg.verify(exported, data.test.images[:8], network=network)
    path = write_report(
        options.path,
        sg.build(network, "spikingjelly"),
        data.test.images,
        data.test.labels,
        reference=model,
        check=sg.check(model, images[:2]),
        certificates=[certificate],
        command=shlex.join(["python", *sys.argv]),
        title=f"{options.network} on digits as a spiking network",
    )
    print(f"report: {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
