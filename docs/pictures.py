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
# Okabe and Ito (2008), for colour-blind readers; lines differ in their style too
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#707070"
Numbers = dict[str, Any]


def decoded(
    x_seq: Tensor, function: str, schedule: Any, members: int = 1, resting: float = 0.0
) -> tuple[Tensor, Tensor]:
    """v(t) and f(x(t)), [T, ...], of signGD neurons that are handed x(t), [T, ...]."""
    p = sg.SignGDParameters(nonlinearity(function), schedule, resting=resting, members=members)
    targets = p.target(x_seq)
    v, _ = scan(signgd_decoded_step, [(x,) for x in x_seq], signgd_initial_state(targets[0], p), p)
    return v, targets


def name(axes: Any, text: str, x: float, y: float, color: str, **options: Any) -> None:
    """Beside its line, in the line's colour but for one too light to be read."""
    color = "#9A6A00" if color == ORANGE else color
    axes.text(x, y, text, color=color, fontsize=11, **options)


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
    styles = (BLUE, "-"), (RED, "-"), (ORANGE, "--")
    for (label, schedule), (color, style) in zip(schedules.items(), styles, strict=True):
        v, target = decoded(torch.full((steps, 1), x), "gelu", schedule)
        values = torch.cat([torch.zeros(1), v[:, 0]])
        axes.step(range(steps + 1), values, style, where="post", color=color, linewidth=1.8)
        found[label] = (values, float(target[-1, 0]), [schedule(t) for t in range(1, steps + 1)])
    axes.axhline(float(target[-1, 0]), color=GREY, linestyle=":")
    name(axes, "f(x) = gelu(1.2)", 24.3, float(target[-1, 0]), GREY, va="center")
    name(axes, r"$\eta(t) = 0.15 \cdot 0.95^{\,t-1}$, as published", 5.3, 0.45, BLUE)
    name(axes, r"$0.5 \cdot 0.8^{\,t-1}$", 4.4, 1.2, RED)
    name(axes, r"$0.5 \cdot 0.45^{\,t-1}$: reach too short", 10.5, 0.79, ORANGE)
    axes.set(xlabel="step t", ylabel="decoded value v(t)", xlim=(0, steps), ylim=(0, 1.3))
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
    axes.plot(t, error[:, 480], color=ORANGE, linewidth=1)
    axes.plot(t, error.amax(1), color=BLUE, linewidth=2)
    axes.plot(t, eta, color=RED, linestyle="--")
    name(axes, "largest error of 601 neurons", 6, 0.3, BLUE)
    name(axes, "step size η(t)", 26, 0.055, RED)
    name(axes, f"one neuron, f(x) = tanh({float(x[480]):.1f})", 1.6, 0.004, ORANGE)
    axes.set(xlabel="step t", ylabel="|v(t) − f(x)|", yscale="log", ylim=(1e-3, 1.3),
             xlim=(1, steps))  # fmt: skip
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
    left.axhline(target, color=GREY, linestyle=":")
    for k in range(1, m + 1):
        reach = [float(path[k] - size[k - 1]), float(path[k] + size[k - 1])]
        left.plot([k, k], reach, color=ORANGE, linewidth=6, alpha=0.5, solid_capstyle="butt")
    left.plot(range(m + 1), path, color=BLUE, marker="o", markersize=5)
    name(left, f"f(x) = {target}", 4.3, target, GREY, va="center")
    name(left, "v after k signs", 1.15, 0.3, BLUE)
    name(left, "f(x) lies in here", 1.1, 1.03, ORANGE)
    left.set(xlabel=r"sign k of one step, of size $\eta\,2^{1-k}$", ylabel="decoded value v",
             xticks=range(m + 1), ylim=(-0.05, 1.15))  # fmt: skip
    f = torch.linspace(-1.2, 1.2, 961)
    errors = {}
    for members, color, style in ((1, GREY, "-"), (2, RED, "--"), (4, BLUE, "-")):
        v, _ = decoded(f.expand(1, -1), "identity", sg.ConstantSchedule(eta), members)
        errors[members] = (v[0] - f).abs()
        right.plot(f, errors[members], style, color=color, linewidth=1.3)
        end = eta * 2.0 ** (1 - members)
        right.axhline(end, color=color, linestyle=":", linewidth=0.9)
        name(right, f"m = {members}", 1.36, end, color, va="center")
    right.set(xlabel="f(x), from v = 0 with η = 0.5", ylabel="|v − f(x)| after one step",
              ylim=(0, 0.72))  # fmt: skip
    return {"path": path, "size": size, "target": target, "f": f, "errors": errors, "eta": eta}


def staircase(figure: Figure) -> Numbers:
    """A group neuron at T = 1 is the QCFS activation."""
    axes = figure.subplots()
    x = torch.linspace(-0.4, 1.4, 1801)
    p = sg.GroupNeuronParameters(members=4)
    one, _ = group_step(x, group_initial_v(x, p), p)
    activation = qcfs(x, torch.tensor(1.0), 4)
    axes.plot(x, x.clamp(0, 1), color=GREY, linestyle="--")
    axes.plot(x, activation, color=ORANGE, linewidth=7, alpha=0.5)
    axes.plot(x, one, color=BLUE, linewidth=1.6)
    name(axes, "ReLU, clipped at $v_{th}$", 0.05, 0.42, GREY, ha="right")
    axes.annotate("", (0.34, 0.36), (0.07, 0.435), arrowprops={"arrowstyle": "-", "color": GREY})
    name(axes, "QCFS with L = 4 levels (broad)", 0.68, 0.6, ORANGE)
    name(axes, "group neuron, m = 4, T = 1", 0.68, 0.5, BLUE)
    axes.set(xlabel="membrane current x", ylabel="output of one step")
    return {"x": x, "group": one, "qcfs": activation}


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
    axes.step(t, torch.cat([torch.zeros(1), ideal]), where="post", color=ORANGE, linewidth=7,
              alpha=0.5)  # fmt: skip
    axes.step(t, counts["plain"], "--", where="post", color=RED, linewidth=1.8)
    axes.step(t, counts["signed"], where="post", color=BLUE, linewidth=1.8)
    name(axes, "unsigned neuron: spikes stay sent", 3.1, 4.15, RED)
    name(axes, "signed neuron: negative spikes", 3.3, 2.25, BLUE)
    name(axes, r"$\lfloor S(t)/\theta + 1/2 \rfloor$, at least 0 (broad)", 4.1, 1.25, ORANGE)
    for step, value in enumerate(x[:, 0]):
        axes.annotate(f"{float(value):+.1f}".replace("-", "−"), (step + 0.5, -1.0), ha="center",
                      fontsize=10, color=GREY)  # fmt: skip
    name(axes, "current that arrives in the step:", 0.05, -0.5, GREY)
    axes.set(xlabel="step t", ylabel="spikes sent, N(t)", ylim=(-1.2, 5), xlim=(0, 6),
             yticks=range(6))  # fmt: skip
    return {**counts, "ideal": ideal, "x": x[:, 0]}


PICTURES: dict[str, tuple[Callable[[Figure], Numbers], float]] = {
    "convergence": (convergence, 6.4),
    "bound": (bound, 6.4),
    "signs": (signs, 8.4),
    "staircase": (staircase, 6.4),
    "unevenness": (unevenness, 6.4),
}


def draw(name: str, folder: Path = FOLDER) -> Numbers:
    """Write ``folder/name.svg`` and ``name.png``; returns what was drawn."""
    make, width = PICTURES[name]
    style = {
        "svg.hashsalt": name,  # the same file from the same numbers
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "font.size": 11,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, 3.5), layout="constrained")
        numbers = make(figure)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")
    return numbers


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for picture in PICTURES:
        draw(picture)
