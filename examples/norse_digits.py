"""Train a Norse model of group neurons and Norse's own LIF neurons on digits, by gradients.

    python examples/norse_digits.py [--epochs 15] [--seed 0] [--save model.pt]

Every neuron is a Norse layer on [T, B, ...]; surrogate gradients are those of Norse's thresholds.
The epoch is chosen on validation images, the test split is read once.
"""

from __future__ import annotations

import argparse
import copy

import norse.torch as norse
import torch
import torch.nn.functional as F
from data import Split, digits
from torch import Tensor, nn

from spikingjelly_signgd.plugins.norse import GroupNeuron, GroupNeuronParameters

TIME_STEPS = 16
BATCH = 32


def make_model() -> norse.SequentialState:
    lif = norse.LIFParameters(v_th=torch.as_tensor(0.5))
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 16, 3, padding=1)),
        GroupNeuron(GroupNeuronParameters(members=4)),  # 0, 1/4, ..., 1 a step
        norse.Lift(nn.AvgPool2d(2)),
        norse.Lift(nn.Conv2d(16, 32, 3, padding=1)),
        norse.LIF(lif),
        norse.Lift(nn.AvgPool2d(2)),
        nn.Flatten(2),
        nn.Linear(128, 64),
        GroupNeuron(GroupNeuronParameters(members=2)),
        nn.Linear(64, 10),
        norse.LI(),
    )


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """[B, 1, 8, 8], shown for TIME_STEPS steps, to the read-out's mean potential [B, 10]."""
    potentials, _ = model(images.expand(TIME_STEPS, *images.shape))
    mean: Tensor = potentials.mean(0)
    return mean


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Percent."""
    hits = (logits(model, split.images).argmax(1) == split.labels).sum()
    return 100 * float(hits) / len(split.labels)


def train(epochs: int, seed: int) -> tuple[nn.Module, float]:
    """The model of the best epoch and its validation accuracy."""
    torch.manual_seed(seed)
    data, model = digits(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    steps = epochs * -(-len(data.train.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    best, weights = -1.0, model.state_dict()
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.train.labels)).split(BATCH):
            optimizer.zero_grad()
            out = logits(model, data.train.images[rows])
            F.cross_entropy(10 * out, data.train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
        reached = accuracy(model, data.validation)
        print(f"epoch {epoch + 1:2}: validation accuracy {reached:.2f} %", flush=True)
        if reached > best:
            best, weights = reached, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return model, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="write the trained weights there")
    options = parser.parse_args()
    model, best = train(options.epochs, options.seed)
    test = accuracy(model, digits().test)
    print(f"seed {options.seed}: validation {best:.2f} %, test {test:.2f} %")
    if options.save:
        torch.save(model.state_dict(), options.save)


if __name__ == "__main__":
    main()
