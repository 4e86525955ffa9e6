"""A spiking network behind a simulated event camera: events in, no frames.

    python examples/events.py [--data fashion] [--theta 0.2] [--streams 128] [--frames 24]

Images move in front of a camera that sends an event where the log light at a pixel has changed by
theta. A small network is trained on log light, converted, and fed the events of every 4 ms: its
input is their running sum, of which each event is one increment. Measured for each speed, after the
first four steps, in which the image appears:

    events      for each pixel and step
    source      accuracy of the trained network on the light itself
    on sums     its accuracy on the running sums of events
    spiking     that of the spiking network, and how often it decides as the source on the sums
    first       additions that events make in the first layer, for each of its MACs
    all         additions that events and spikes make, for each MAC of the source
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
import torch.nn.functional as F
from data import DATA, FASHION_MEAN, FASHION_STD
from torch import Tensor, nn

import spikingjelly_signgd as sg
from spikingjelly_signgd.analysis import event_additions

FLOOR = 0.1  # light that is always there, of a white pixel's 1
INTERVAL, SHOWN = 1000, 4  # microseconds between frames of the video; frames in a step
REACH = 4  # pixels to each side
APPEARED = 4  # steps until the image is there
SPEEDS = (0.0, 0.05, 0.2, 1.0)  # pixels a step


class Clip(NamedTuple):
    light: Tensor  # [F, B, 1, H, W], log(1 + intensity / FLOOR) at the end of each step
    sums: Tensor  # the running sums of events
    number: Tensor  # of events, by pixel and step


def network(side: int) -> nn.Sequential:
    """[B, 1, side, side] to 10 classes."""
    last = -(-side // 8)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * last * last, 10),
    )


def images(data: str, part: str) -> tuple[Tensor, Tensor]:
    """Intensities [N, H, W] in [0, 1] and labels; digits are enlarged to twice their size."""
    split = getattr(DATA[data](), part)
    if data == "fashion":
        return (split.images[:, 0] * FASHION_STD + FASHION_MEAN).clamp(0, 1), split.labels
    large = F.interpolate(split.images, scale_factor=2, mode="bilinear")[:, 0]
    return F.pad(large, (2, 2, 2, 2)), split.labels


def shifted(x: Tensor, way: Tensor) -> Tensor:
    """Images [B, H, W] moved by ``way`` [B, 2] pixels; what comes in is dark."""
    theta = torch.eye(2, 3).repeat(len(x), 1, 1)
    theta[:, :, 2] = -2 * way / x.shape[-1]
    grid = F.affine_grid(theta, [len(x), 1, *x.shape[1:]], align_corners=False)
    return F.grid_sample(x[:, None], grid, align_corners=False)[:, 0]


def log_light(intensity: Tensor) -> Tensor:
    """0 in the dark."""
    return (1 + intensity / FLOOR).log()


def train(x: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> nn.Sequential:
    """A network on the log light of images that are anywhere within reach."""
    torch.manual_seed(seed)
    model = network(x.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    batches = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=batches)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            way = REACH * (2 * torch.rand(len(index), 2) - 1)
            loss = F.cross_entropy(model(log_light(shifted(x[index], way))[:, None]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# -- what the camera sees --------------------------------------------------------------------------


def videos(x: Tensor, steps: int, speed: float, seed: int = 0) -> Tensor:
    """[F, B, H, W]: dark, then each image on a way to and fro in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(len(x), generator=generator)
    start = 4 * REACH * torch.rand(len(x), generator=generator)
    frames = [torch.zeros_like(x)]
    for f in range(steps * SHOWN):
        along = (start + speed * f / SHOWN) % (4 * REACH)
        place = (along - 2 * REACH).abs() - REACH  # a triangle wave
        way = place.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
        frames.append(shifted(x, way))
    return torch.stack(frames)


def seen(video: Tensor, theta: float) -> Clip:
    """What the camera sends of each video [F, B, H, W], in steps."""
    steps, dt = (len(video) - 1) // SHOWN, SHOWN * INTERVAL
    each = []
    for one in video.unbind(1):
        events = sg.Events.simulated(one, theta, interval=INTERVAL, floor=FLOOR)
        sums = events.sums(dt, steps, theta=theta, start=0)
        number = events.counts(dt, steps, start=0, channels=2).sum(1, keepdim=True)
        each.append((sums, number))
    sums, number = (torch.stack(part, 1) for part in zip(*each, strict=True))
    return Clip(log_light(video[SHOWN::SHOWN]).unsqueeze(2), sums, number)


# -- measured --------------------------------------------------------------------------------------


@torch.no_grad()
def measured(
    model: nn.Module, spiking: sg.SpikingNetwork, clip: Clip, labels: Tensor
) -> dict[str, float]:
    """A row of the table, as it is said above."""
    shape = clip.sums.shape[:2]
    source, on_sums = (model(x.flatten(0, 1)).unflatten(0, shape).argmax(-1) for x in clip[:2])
    arriving = event_additions(spiking, clip.number) / len(labels)  # of a stream, by step
    classes, additions = [], []
    with sg.watch(sg.build(spiking)) as w:
        for frame in clip.sums:
            classes.append(w(frame).argmax(-1))
            additions.append(w.operations.synaptic)
        macs = w.operations.source_macs
    have, later = torch.stack(classes), slice(APPEARED, None)
    first = float(event_additions(spiking, torch.ones_like(clip.number[:1])).sum()) / len(labels)
    made = arriving[later].mean(), torch.tensor(additions)[later].mean()
    return {
        "events": float(clip.number[later].mean()),
        "source": float((source == labels)[later].float().mean()),
        "on sums": float((on_sums == labels)[later].float().mean()),
        "spiking": float((have == labels)[later].float().mean()),
        "same": float((have == on_sums)[later].float().mean()),
        "first": float(made[0]) / first,
        "all": float(sum(made)) / macs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(DATA), default="fashion")
    parser.add_argument("--train", type=int, default=20_000, help="images, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--theta", type=float, default=0.2, help="of log light, an event")
    parser.add_argument("--streams", type=int, default=128, help="images that move")
    parser.add_argument("--frames", type=int, default=24, help="steps of the network")
    parser.add_argument("--members", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x, labels = images(given.data, "train")
    model = train(x[: given.train], labels[: given.train], given.epochs)
    calibration = seen(videos(x[-32:], 8, 0.2, seed=1), given.theta)
    spiking = sg.convert(model, calibration.sums.flatten(0, 1), members=given.members)
    test, classes = (part[: given.streams] for part in images(given.data, "test"))
    print(f"{'pixels a step':<15}{'events':>9}{'source':>10}{'on sums':>10}{'spiking':>10}", end="")
    print(f"{'same':>10}{'first':>9}{'all':>8}")
    for speed in SPEEDS:
        clip = seen(videos(test, given.frames, speed), given.theta)
        row = measured(model, spiking, clip, classes)
        shares = (f"{100 * row[name]:>8.1f} %" for name in ("source", "on sums", "spiking", "same"))
        print(f"{speed:<15}{row['events']:>9.4f}{''.join(shares)}", end="")
        print(f"{row['first']:>9.3f}{row['all']:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
