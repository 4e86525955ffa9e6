"""The default step sizes of signGD neurons built by hand: what candidates make of a small network.

Linear(64, 128), f, Linear(128, 10) as torch initialises them, on normal inputs of three sizes, the
activation as signGD neurons in the decoded form. A row is a choice of step sizes, members and dead
zone. Columns are the error of the last output after T steps of a constant input, the root mean
square over that of the source network's outputs; the same at the last step of each of five
inputs, one after the other without a reset; and spikes of a neuron in 50 steps of a constant
input. All are means over relu and gelu and the three sizes.

    python benchmarks/by_hand.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from spikingjelly_signgd.neurons import (
    NONLINEARITIES,
    ConstantSchedule,
    ExponentialSchedule,
    ListSchedule,
    Schedule,
    SignGDParameters,
    signgd_initial_state,
    signgd_multi_step,
)
from spikingjelly_signgd.neurons.by_hand import MEMBERS, SINGLE, default_schedule
from spikingjelly_signgd.neurons.spikes import hear

STEPS = (1, 4, 8, 16, 50)
LASTS = 10  # steps of each input of a stream
SIZES = (0.5, 1.0, 3.0)  # standard deviation of inputs
CANDIDATES: dict[str, tuple[Schedule, int]] = {
    "published, 0.15 * 0.95^(t-1), m = 1": (ExponentialSchedule(0.15, 0.95), 1),
    "0.7^(t-1), m = 1": (ExponentialSchedule(1.0, 0.7), 1),
    "0.8^(t-1), m = 1 (single signs)": (SINGLE, 1),
    "0.9^(t-1), m = 1": (ExponentialSchedule(1.0, 0.9), 1),
    "2 * 0.8^(t-1), m = 1": (ExponentialSchedule(2.0, 0.8), 1),
    "2 * 0.8^(t-1), m = 4": (ExponentialSchedule(2.0, 0.8), 4),
    "2 * 0.8^(t-1), m = 8": (ExponentialSchedule(2.0, 0.8), 8),
    "2, m = 4": (ConstantSchedule(2.0), 4),
    "2, m = 8": (ConstantSchedule(2.0), 8),
    "4, m = 8": (ConstantSchedule(4.0), 8),
    "4, m = 10": (ConstantSchedule(4.0), 10),
    "1, then 0.25, m = 2 (default of 2)": (default_schedule(2), 2),
    "4, then 1, m = 4": (ListSchedule((4.0, 1.0), tail=1.0), 4),
    "2, then 0.5, m = 4 (default of 4)": (default_schedule(4), 4),
    "1, then 0.25, m = 4": (ListSchedule((1.0, 0.25), tail=1.0), 4),
    "4, then 1, m = 6 (default of 6)": (default_schedule(6), 6),
    "4, then 1, m = 8 (default)": (default_schedule(MEMBERS), MEMBERS),
    "4, then 0.25, m = 8": (ListSchedule((4.0, 0.25), tail=1.0), 8),
}


def error(y: Tensor, expected: Tensor) -> float:
    return float(((y - expected).square().mean() / expected.square().mean()).sqrt())


def measured(function: str, size: float, p: SignGDParameters, samples: int) -> Tensor:
    """The columns of the table, [len(STEPS) + 2]."""
    before, behind = nn.Linear(64, 128), nn.Linear(128, 10)
    x = size * torch.randn(5, samples, 64)
    target = p.target(before(x))
    held = before(x[:1]).expand(STEPS[-1], samples, 128)
    start = signgd_initial_state(held[0], p)
    with hear() as told:
        v = signgd_multi_step((held,), start, p).y
    spikes = float(told[0]().spikes.float().sum()) / held[0].numel()
    stream = before(x).repeat_interleave(LASTS, 0)
    last = signgd_multi_step((stream,), start, p).y[LASTS - 1 :: LASTS]
    errors = [error(behind(v[t - 1]), behind(target[0])) for t in STEPS]
    return torch.tensor([*errors, error(behind(last), behind(target)), spikes])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    print(f"{'':36} zone " + "".join(f"{f'T = {t}':>9}" for t in STEPS) + "  changing  spikes")
    for name, (schedule, members) in CANDIDATES.items():
        for zone in (0.0, 0.5, 2 / 3):
            if members > 8 and not zone:
                continue
            found = []
            for function in ("relu", "gelu"):
                for k, size in enumerate(SIZES):
                    torch.manual_seed(k)
                    row = NONLINEARITIES[function]
                    p = SignGDParameters(row, schedule, members=members, dead_zone=zone)
                    found.append(measured(function, size, p, options.samples))
            *errors, spikes = torch.stack(found).mean(0).tolist()
            print(
                f"{name:36} {zone:4.2f} " + "".join(f"{e:9.4f}" for e in errors), f"{spikes:8.2f}"
            )


if __name__ == "__main__":
    main()
