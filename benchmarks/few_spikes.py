"""Codes of few spikes side by side: error against spikes, on what the layers of networks see.

    python benchmarks/few_spikes.py [--values 20000] [--iterations 1500]

For each function the arguments are those that neurons of the example networks get on validation
images of Fashion-MNIST (GELU: mixer, resmlp, convnext, vit; ReLU: vgg, resnet; SiLU and sigmoid,
which none of them has, get those of GELU), a random sample of each layer. A code has one table, or
one scale, for a layer, fitted on half of the sample; error and spikes are of the other half: the
error is the root mean square over that of f(x), the spikes are those of one value.

sign or silence  m members of signGD neurons in one step, ``signgd_step`` itself, theta = 2/3 or 1/2
signs            the same without a dead zone
FS               SpikingJelly's ``FewSpikeNode`` (Stöckl & Maass 2021), one table of K thresholds,
                 resets and outputs, fitted by Adam with the node's surrogate from four starts
cascade          thresholds of halved size, silent below, all of one sign, a sign bit for negative
                 values (as in H-MT): the plain binary digits of |f(x)|, rounded down
binary           the same, rounded to the nearest
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.neuron import FewSpikeNode, FewSpikeTable
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from data import fashion_mnist  # noqa: E402
from networks import load_network  # noqa: E402

import spikingjelly_signgd as sg  # noqa: E402
from spikingjelly_signgd.core.module import NetworkModule  # noqa: E402
from spikingjelly_signgd.core.network import SignGDNeuron  # noqa: E402
from spikingjelly_signgd.neurons import (  # noqa: E402
    SignGDParameters,
    SignGDState,
    nonlinearity,
    signgd_step,
    weighted_spike,
)
from spikingjelly_signgd.neurons.signgd.step import signs  # noqa: E402

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}
LIKE = {"silu": "gelu", "sigmoid": "gelu"}
NETWORKS = ("vgg", "resnet", "convnext", "mixer", "resmlp", "vit")
SCALES = 40  # tried for a layer, between a tenth of its largest value and all of it
STARTS = 4


class Code(NamedTuple):
    """``fit`` chooses for x [N] and its f(x); what it returns makes (decoded, spikes) of others."""

    name: str
    fit: Callable[[Tensor, Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]


def layers(values: int) -> dict[str, list[Tensor]]:
    """Arguments of each layer's neurons, by function."""
    found: dict[str, list[Tensor]] = {"relu": [], "gelu": []}
    images = fashion_mnist().validation.images
    generator = torch.Generator().manual_seed(0)
    for name in NETWORKS:
        network = sg.convert(load_network(name, "fashion"), images[:64], tune=False)
        seen = NetworkModule(network, {}).all_activations(images[64:192])
        for node in network.of(SignGDNeuron):
            if node.function.name in found:
                x = seen[node.inputs[0]].flatten()
                pick = torch.randint(len(x), (values,), generator=generator)
                found[node.function.name].append(x[pick])
    return found


def scaled(make: Callable[[float], Callable[[Tensor], tuple[Tensor, Tensor]]], owner: str) -> Code:
    """A code with one number for a layer: the one of the least error."""

    def fit(x: Tensor, y: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        most = float(y.abs().max())
        tried = [most * (0.1 + 0.9 * k / (SCALES - 1)) for k in range(SCALES)]
        return make(min(tried, key=lambda s: float((make(s)(x)[0] - y).square().mean())))

    return Code(owner, fit)


def signgd(f: str, members: int, theta: float) -> Code:
    def make(largest: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        step = largest / (2 - 2.0 ** (1 - members))
        p = SignGDParameters(
            nonlinearity(f), sg.ConstantSchedule(1.0), step, members=members, dead_zone=theta
        )

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            code, after = signgd_step((x,), SignGDState(torch.zeros_like(x)), p)
            return weighted_spike(code, after, p), signs(code, members).spikes

        return run

    zone = {0.0: "signs", 0.5: "sign or silence, 1/2"}.get(theta, "sign or silence, 2/3")
    return scaled(make, f"{zone}, m = {members}")


def cascade(f: str, members: int, nearest: bool) -> Code:
    def make(largest: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        unit = largest / (2**members - 1)

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            y = FUNCTIONS[f](x)
            n = (y.abs() / unit + (0.5 if nearest else 0.0)).floor().clamp(max=2**members - 1).int()
            count = sum((n >> k & 1 for k in range(members)), torch.zeros_like(n))
            return n * unit * y.sign(), count

        return run

    return scaled(make, f"{'binary' if nearest else 'cascade'}, m = {members}")


def few_spikes(f: str, steps: int, iterations: int) -> Code:
    def fit(x: Tensor, y: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(steps)
        nodes = [_fitted(start, x, y, iterations) for start in _starts(x, y, steps, generator)]
        return min(nodes, key=lambda run: float((run(x)[0] - y).square().mean()))

    return Code(f"FS, K = {steps}", fit)


def _starts(x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> Iterator[Any]:
    """Binary tables over the range of x, and others near them."""
    halves = 2.0 ** -torch.arange(1, steps + 1, dtype=torch.float32)
    for k in range(STARTS):
        noise = 1 + 0.2 * torch.randn(3, steps, generator=generator) * (k > 0)
        ratio = 0.6 if k % 2 else 0.5  # of one step and the next
        sizes = ratio ** torch.arange(1, steps + 1) if k % 2 else halves
        low = float(x.min()) if k > 1 else 0.0
        theta = sizes * float(x.max() - low) * noise[0]
        theta[0] = theta[0] + low
        h, d = sizes * float(x.max() - low) * noise[1], sizes * float(y.max()) * noise[2]
        yield theta, h, d


def _fitted(start: Any, x: Tensor, y: Tensor, iterations: int) -> Any:
    from spikingjelly.activation_based import surrogate

    width = float(x.std())
    tables = [nn.Parameter(each.clone()) for each in start]
    adam = torch.optim.Adam(tables, 0.02 * width)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    best, least = [t.detach().clone() for t in tables], float("inf")
    for i in range(iterations):
        sharp = (4 + 60 * i / iterations) / width
        node = FewSpikeNode(FewSpikeTable(*start), surrogate.Sigmoid(alpha=sharp))
        part = torch.randint(len(x), (2048,))
        loss = (node._run_table(x[part], *tables, return_sequence=False) - y[part]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        course.step()
        if i % 50 == 49:
            with torch.no_grad():
                now = float((_run(tables, x)[0] - y).square().mean())
            if now < least:
                best, least = [t.detach().clone() for t in tables], now
    return lambda given: _run(best, given)


@torch.no_grad()
def _run(tables: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the node itself, whose sequence says which step fired."""
    node = FewSpikeNode(FewSpikeTable(*(t.detach() for t in tables)), step_mode="m")
    sequence = node(torch.cat([x.unsqueeze(0), x.new_zeros(node.K - 1, *x.shape)]))
    fired = (sequence != 0) & (node.d != 0).view(-1, *[1] * x.dim())
    return sequence.sum(0), fired.sum(0)


def codes(f: str, iterations: int) -> list[Code]:
    return [
        *(signgd(f, m, 2 / 3) for m in (4, 5, 6, 8)),
        *(signgd(f, m, 1 / 2) for m in (4, 6, 8)),
        *(signgd(f, m, 0.0) for m in (4, 6, 8)),
        *(few_spikes(f, k, iterations) for k in (8, 16) if f != "relu"),
        *(cascade(f, m, False) for m in (4, 6, 8)),
        *(cascade(f, m, True) for m in (4, 6, 8)),
    ]


def measured(code: Code, f: str, xs: list[Tensor]) -> tuple[float, float]:
    """Error and spikes, the means over the layers."""
    errors, spikes = [], []
    for x in xs:
        half = len(x) // 2
        y = FUNCTIONS[f](x)
        have, sent = code.fit(x[:half], y[:half])(x[half:])
        error = (have - y[half:]).square().mean() / y[half:].square().mean()
        errors.append(float(error.sqrt()))
        spikes.append(float(sent.double().mean()))
    return sum(errors) / len(errors), sum(spikes) / len(spikes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=20_000, help="of each layer")
    parser.add_argument("--iterations", type=int, default=1500, help="of the fit of an FS table")
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    seen = layers(options.values)
    print("| function | code | error | spikes |\n|---|---|---:|---:|")
    for f in options.functions:
        for code in codes(f, options.iterations):
            error, spikes = measured(code, f, seen[LIKE.get(f, f)])
            print(f"| {f} | {code.name} | {error:.4f} | {spikes:.2f} |", flush=True)


if __name__ == "__main__":
    main()
