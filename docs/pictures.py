"""The pictures of docs/mathematics.md, drawn from what the package computes.

    python docs/pictures.py

Each function draws on a figure and returns the numbers that it drew; the tests hold these against
the theorems that the page states.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import spikingjelly_signgd as sg
from spikingjelly_signgd.neurons import (
    SignedGroupState,
    group_initial_v,
    group_step,
    nonlinearity,
    scan,
    signed_group_step,
    signgd_decoded_step,
    signgd_initial_state,
)
from spikingjelly_signgd.neurons.qcfs import qcfs

FOLDER = Path(__file__).parent / "pictures"
BLUE, ORANGE, GREEN, RED, GREY = "#3f51b5", "#e07b00", "#2e8b57", "#c0392b", "#8a8f98"
Numbers = dict[str, Any]


def decoded(
    x_seq: Tensor, function: str, schedule: Any, members: int = 1, resting: float = 0.0
) -> tuple[Tensor, Tensor]:
    """v(t) and f(x(t)), [T, ...], of signGD neurons that are handed x(t), [T, ...]."""
    p = sg.SignGDParameters(nonlinearity(function), schedule, resting=resting, members=members)
    targets = p.target(x_seq)
    v, _ = scan(signgd_decoded_step, [(x,) for x in x_seq], signgd_initial_state(targets[0], p), p)
    return v, targets


def convergence(figure: Figure) -> Numbers:
    """One neuron on its way to f(x), by three schedules."""
    steps, x = 24, 1.2
    schedules = {
        "0.15 · 0.95^(t−1), as published": sg.ExponentialSchedule(0.15, 0.95),
        "0.5 · 0.8^(t−1)": sg.ExponentialSchedule(0.5, 0.8),
        "0.5 · 0.45^(t−1): reach too short": sg.ExponentialSchedule(0.5, 0.45),
    }
    axes = figure.subplots()
    found: Numbers = {}
    for (label, schedule), color in zip(schedules.items(), (BLUE, GREEN, ORANGE), strict=True):
        v, target = decoded(torch.full((steps, 1), x), "gelu", schedule)
        values = torch.cat([torch.zeros(1), v[:, 0]])
        axes.step(range(steps + 1), values, where="post", color=color, label=label)
        found[label] = (values, float(target[-1, 0]), [schedule(t) for t in range(1, steps + 1)])
    axes.axhline(float(target[-1, 0]), color=GREY, linestyle="--", label="f(x) = gelu(1.2)")
    axes.set(xlabel="step t", ylabel="decoded value v(t)", xlim=(0, steps))
    axes.legend(fontsize="small", loc="lower right")
    return found


def bound(figure: Figure) -> Numbers:
    """|v − f(x)| of many neurons over time, and the step size that bounds it."""
    steps = 48
    x = torch.linspace(-1.5, 1.5, 601)
    axes = figure.subplots()
    schedule = sg.ExponentialSchedule(0.15, 0.95)
    v, targets = decoded(x.expand(steps, -1), "tanh", schedule)
    error = (v - targets).abs()
    eta = torch.tensor([schedule(t) for t in range(1, steps + 1)])
    t = range(1, steps + 1)
    for k in range(0, 601, 60):
        axes.plot(t, error[:, k], color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(t, error.amax(1), color=BLUE, label="largest |v(t) − f(x)| of 601 inputs")
    axes.plot(t, eta, color=RED, linestyle="--", label="η(t)")
    axes.set(xlabel="step t", yscale="log", ylim=(1e-3, 1.3), xlim=(1, steps))
    axes.legend(fontsize="small", loc="lower left")
    return {"error": error, "eta": eta, "reached": error <= eta[:, None]}


def signs(figure: Figure) -> Numbers:
    """Four binary-weighted signs of one step, and what is left for each target."""
    left, right = figure.subplots(1, 2)
    m, eta, target = 4, 0.5, 0.62
    path = torch.tensor([0.0])
    for k in range(1, m + 1):  # the first k signs of a step are those of a group of k members
        v, _ = decoded(torch.full((1, 1), target), "identity", sg.ConstantSchedule(eta), k)
        path = torch.cat([path, v[0]])
    size = eta * 2.0 ** -torch.arange(m)
    left.axhline(target, color=GREY, linestyle="--", label=f"f(x) = {target}")
    for k in range(1, m + 1):
        reach = [float(path[k] - size[k - 1]), float(path[k] + size[k - 1])]
        left.plot([k, k], reach, color=ORANGE, linewidth=5, alpha=0.35, solid_capstyle="butt",
                  label="f(x) lies here" if k == 1 else None)  # fmt: skip
    left.plot(range(m + 1), path, color=BLUE, marker="o", markersize=4, label="v after k signs")
    left.set(xlabel="sign k of one step, size η 2^(1−k)", xticks=range(m + 1), ylim=(-0.05, 1.45))
    left.legend(fontsize="x-small", loc="upper left")
    f = torch.linspace(-1.2, 1.2, 961)
    errors = {}
    for members, color in ((1, GREY), (2, ORANGE), (4, BLUE)):
        v, _ = decoded(f.expand(1, -1), "identity", sg.ConstantSchedule(eta), members)
        errors[members] = (v[0] - f).abs()
        right.plot(f, errors[members], color=color, label=f"m = {members}", linewidth=1)
        right.axhline(eta * 2.0 ** (1 - members), color=color, linestyle=":", linewidth=0.8)
    right.set(xlabel="f(x), from v = 0 with η = 0.5", ylabel="|v − f(x)| after one step")
    right.legend(fontsize="x-small", loc="upper center")
    return {"path": path, "size": size, "target": target, "f": f, "errors": errors, "eta": eta}


def staircase(figure: Figure) -> Numbers:
    """A group neuron at T = 1 is the QCFS activation."""
    axes = figure.subplots()
    x = torch.linspace(-0.4, 1.4, 1801)
    p = sg.GroupNeuronParameters(members=4)
    one, _ = group_step(x, group_initial_v(x, p), p)
    single = sg.GroupNeuronParameters(members=1)
    four, _ = scan(group_step, x.expand(4, -1), group_initial_v(x, single), single)
    activation = qcfs(x, torch.tensor(1.0), 4)
    axes.plot(x, x.clamp(0, 1), color=GREY, linestyle="--", label="ReLU, clipped at v_th")
    axes.plot(x, activation, color=ORANGE, linewidth=5, alpha=0.45, label="QCFS, L = 4")
    axes.plot(x, one, color=BLUE, linewidth=1.2, label="group neuron, m = 4, T = 1")
    axes.plot(x, four.mean(0), color=RED, linestyle=":", label="m = 1, T = 4, even input")
    axes.set(xlabel="membrane current x", ylabel="output, mean over the steps")
    axes.legend(fontsize="small", loc="upper left")
    return {"x": x, "group": one, "qcfs": activation, "if": four.mean(0)}


def unevenness(figure: Figure) -> Numbers:
    """Spikes that went out early: kept by one neuron, taken back by the other."""
    axes = figure.subplots()
    x = torch.tensor([0.9, 0.9, -1.0, -0.3, 0.1, 0.1])[:, None]
    p = sg.GroupNeuronParameters(members=2, v_threshold=1.0)
    signed = sg.GroupNeuronParameters(members=2, v_threshold=1.0, signed=True)
    v = group_initial_v(x[0], p)
    plain, _ = scan(group_step, x, v, p)
    taken, _ = scan(signed_group_step, x, SignedGroupState(v, torch.zeros_like(v)), signed)
    theta = float(p.theta)
    counts = {
        "plain": torch.cat([torch.zeros(1), plain.cumsum(0)[:, 0] / theta]),
        "signed": torch.cat([torch.zeros(1), taken.cumsum(0)[:, 0] / theta]),
    }
    ideal = torch.floor(x.cumsum(0)[:, 0] / theta + 0.5).clamp(min=0)
    t = range(7)
    axes.step(t, torch.cat([torch.zeros(1), ideal]), where="post", color=GREY, linewidth=5,
              alpha=0.5, label="floor(S(t) / θ + 1/2), at least 0")  # fmt: skip
    axes.step(t, counts["plain"], where="post", color=RED, label="spikes sent, unsigned")
    axes.step(t, counts["signed"], where="post", color=BLUE, linestyle="--",
              label="spikes sent, signed")  # fmt: skip
    for step, value in enumerate(x[:, 0]):
        axes.annotate(f"{float(value):+.1f}", (step + 0.5, -0.42), ha="center", fontsize="small",
                      color=GREY)  # fmt: skip
    axes.set(xlabel="step t; below the lines the current that arrives", ylabel="spikes N(t)",
             ylim=(-0.6, 6.4), xlim=(0, 6))  # fmt: skip
    axes.legend(fontsize="small", loc="upper right")
    return {**counts, "ideal": ideal, "x": x[:, 0]}


PICTURES: dict[str, tuple[Callable[[Figure], Numbers], float]] = {
    "convergence": (convergence, 6.4),
    "bound": (bound, 6.4),
    "signs": (signs, 8.4),
    "staircase": (staircase, 6.4),
    "unevenness": (unevenness, 6.4),
}


def draw(name: str, folder: Path = FOLDER) -> Numbers:
    """Write ``folder/name.svg``; returns what was drawn."""
    make, width = PICTURES[name]
    style = {
        "svg.hashsalt": name,  # the same file from the same numbers
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, 3.5), layout="constrained")
        numbers = make(figure)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    return numbers


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for picture in PICTURES:
        draw(picture)
