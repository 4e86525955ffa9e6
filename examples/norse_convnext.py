"""Convert a trained ConvNeXt and run it in Norse.

python examples/norse_convnext.py [--data digits | fashion] [--samples N]
"""

from __future__ import annotations

import argparse

import norse.torch as norse
import torch
from data import DATA
from networks import load_network

import spikingjelly_signgd as sg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=tuple(DATA), default="digits")
    parser.add_argument("--samples", type=int, default=10_000, help="test images, at most")
    options = parser.parse_args()
    data = DATA[options.data]()
    images, labels = (part[: options.samples] for part in data.test)
    model = load_network("convnext", options.data)
    network = sg.convert(model, data.train.images[:256], time_steps=32, tune=False)
    snn = sg.build(network, "norse")  # forward(x, state=None) -> (output, state)

    batches = list(zip(images.split(100), labels.split(100), strict=True))
    print(sg.evaluate(snn, batches, (4, 8, 16, 32), reference=model))

    with torch.no_grad():  # the same, step by step as any Norse model, inside one of Norse's
        chain = norse.SequentialState(snn, norse.LI())
        x, state = images[:100], None
        for _ in range(32):
            output, state = snn(x, state)
        potentials, _ = chain(x.expand(32, *x.shape))
    assert state is not None
    agree = (output.argmax(1) == model(x).argmax(1)).float().mean()
    print(f"step by step, {len(x)} images: {100 * float(agree):.2f} % agree with the source")
    print(f"states of {len(state.neurons)} layers; LI behind the network: {list(potentials.shape)}")


if __name__ == "__main__":
    main()
