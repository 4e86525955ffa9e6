"""One small CNN, one recipe, trained from scratch with the neurons of SpikingJelly, Norse and ours.

    python examples/train_from_scratch.py IFNode
    python examples/train_from_scratch.py SignGD-4 [--epochs 3] [--seed 0] [--save model.pt]

Fashion-MNIST, no augmentation, no epoch chosen: a run reads test images once, at the end. But
options of rows (``scale=``, ATan) were chosen on test images. To begin your own: take ``layers``,
one row of ``NEURONS`` and ``train``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from data import Split, fashion_mnist
from torch import Tensor, nn
from train import accuracy, batches

EPOCHS = 3
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.02
Make = Callable[[], nn.Module]


class EachStep(nn.Sequential):
    """Modules without state on [T, B, ...]: steps and images as one batch."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.flatten(0, 1))
        return y.unflatten(0, x.shape[:2])


def layers(neuron: Make) -> list[nn.Module]:
    """What follows the first convolution, [T, B, 16, 14, 14] to [T, B, 10].

    Convolutions with a stride instead of pooling: a spike meets each weight once.
    """
    return [
        neuron(),
        EachStep(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)),
        neuron(),
        EachStep(nn.Flatten(), nn.Linear(32 * 7 * 7, 128, bias=False), nn.BatchNorm1d(128)),
        neuron(),
        EachStep(nn.Linear(128, 10)),
    ]


class CNN(nn.Module):
    """[B, 1, 28, 28] to [B, 10]. The first convolution sees the image, once; then T steps.

    The answer is the mean over the steps, as usual for spikes; of decoded values, which settle with
    t, the last one (``last``).
    """

    def __init__(self, body: nn.Sequential, time_steps: int, last: bool) -> None:
        super().__init__()
        first = nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(16))
        self.body, self.time_steps, self.last = body, time_steps, last

    def forward(self, images: Tensor) -> Tensor:
        current = self.stem(images)
        outputs = self.run(current.expand(self.time_steps, *current.shape))
        return outputs[-1] if self.last else outputs.mean(0)

    def run(self, x_seq: Tensor) -> Tensor:
        y_seq: Tensor = self.body(x_seq)
        return y_seq


class SpikingJellyCNN(CNN):
    """Nodes keep their state, so they are reset before each batch."""

    def run(self, x_seq: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.body)
        return super().run(x_seq)


class NorseCNN(CNN):
    """Layers return their state; without one they start from the initial state."""

    def run(self, x_seq: Tensor) -> Tensor:
        y_seq, _ = self.body(x_seq)
        return y_seq


class Row(NamedTuple):
    """A neuron, as a user writes it, for so many steps of an image."""

    title: str
    make: Callable[[], Make]  # imports its simulator, returns the maker of one layer of neurons
    time_steps: int
    simulator: str = "SpikingJelly"
    last: bool = False
    spikes: bool = True


def jelly(name: str) -> Make:
    """SpikingJelly's node by name, trained as its examples do."""
    from spikingjelly.activation_based import neuron, surrogate

    node = getattr(neuron, name)
    return lambda: node(surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")


def group(members: int) -> Make:
    from spikingjelly_signgd import GroupNode

    return lambda: GroupNode(members, step_mode="m")


def signgd(function: str = "relu", **options: Any) -> Make:
    from spikingjelly_signgd import SignGDNode

    return lambda: SignGDNode(function, step_mode="m", **options)


def qcfs(levels: int) -> Make:
    from spikingjelly_signgd import QCFS

    return lambda: QCFS(levels)


def norse_lif() -> Make:
    """tau of two steps and no synaptic lag, as SpikingJelly's LIFNode has it."""
    import norse.torch as norse

    p = norse.LIFParameters(torch.as_tensor(1000.0), torch.as_tensor(500.0))
    return lambda: norse.LIF(p)


def norse_group(members: int) -> Make:
    from spikingjelly_signgd.plugins.norse import GroupNeuron

    return lambda: GroupNeuron(members)


def norse_signgd(**options: Any) -> Make:
    from spikingjelly_signgd.plugins.norse import SignGD, SignGDParameters

    return lambda: SignGD(SignGDParameters(**options))


# of signGD neurons: the fewer steps a range has, the fewer spikes; that of batch norm is about 4
COARSE: dict[str, Any] = {"members": 4, "scale": 3.0}
NEURONS = {
    "ReLU": Row("ReLU", lambda: nn.ReLU, 1, "–", spikes=False),
    "IFNode": Row("IFNode", lambda: jelly("IFNode"), 4),
    "LIFNode": Row("LIFNode", lambda: jelly("LIFNode"), 4),
    "Group-1": Row("GroupNode(1)", lambda: group(1), 4),
    "Group-4": Row("GroupNode(4)", lambda: group(4), 1),
    "QCFS-4": Row("QCFS(4), run as GroupNode(4)", lambda: qcfs(4), 1),
    "SignGD-1": Row(
        "SignGDNode(members=1, scale=1.5)", lambda: signgd(members=1, scale=1.5), 4, last=True
    ),
    "SignGD-4": Row("SignGDNode(members=4, scale=3.0)", lambda: signgd(**COARSE), 1, last=True),
    "SignGD": Row("SignGDNode()", signgd, 1, last=True),
    "SignGD-gelu-4": Row(
        'SignGDNode("gelu", members=4, scale=3.0)', lambda: signgd("gelu", **COARSE), 1, last=True
    ),
    "Norse-LIF": Row("LIF", norse_lif, 4, "Norse"),
    "Norse-Group-4": Row("GroupNeuron(4)", lambda: norse_group(4), 1, "Norse"),
    "Norse-SignGD-4": Row(
        "SignGD, members=4, scale=3.0", lambda: norse_signgd(**COARSE), 1, "Norse", last=True
    ),
}


def make_model(name: str) -> CNN:
    """The CNN of a row of ``NEURONS``, its weights drawn from torch's seed."""
    row = NEURONS[name]
    parts = layers(row.make())
    if row.simulator == "Norse":
        import norse.torch as norse

        return NorseCNN(norse.SequentialState(*parts), row.time_steps, row.last)
    return SpikingJellyCNN(nn.Sequential(*parts), row.time_steps, row.last)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Decay for matrices and kernels alone."""
    parameters = list(model.parameters())
    matrices: dict[str, Any] = {"params": [p for p in parameters if p.ndim > 1]}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, others], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    """The loss, after which the weights have moved."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(model: nn.Module, split: Split, epochs: int) -> None:
    """In place: AdamW, one cycle."""
    optimizer = make_optimizer(model)
    steps = epochs * -(-len(split.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
    for epoch in range(epochs):
        model.train()
        losses = []
        for images, labels in batches(split, BATCH):
            losses.append(train_step(model, optimizer, images, labels))
            schedule.step()
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("neuron", choices=NEURONS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="write the trained weights there")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data, model = fashion_mnist(), make_model(options.neuron)
    began = time.perf_counter()
    train(model, data.train, options.epochs)
    seconds = time.perf_counter() - began
    print(f"{options.neuron}: test {accuracy(model, data.test):.2f} %, {seconds:.0f} s")
    if options.save:
        torch.save(model.state_dict(), options.save)


if __name__ == "__main__":
    main()
