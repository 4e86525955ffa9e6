"""What every neuron decoded to, and sent, in each step of a run, beside the source's activations.

The values are those that ``run`` computes: the network itself is run, and its neurons are listened
to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.module import NetworkModule
from ..core.network import (
    GroupNeuron,
    Growth,
    Node,
    SignGDNeuron,
    SpikingNetwork,
    SubgradientNeuron,
)
from ..core.operations import resolve
from ..core.running import check_run, check_steps, default_chunk
from ..errors import InputError
from ..neurons import running_sum
from ..neurons.protocol import at_least_float32, like, running_mean
from ..neurons.signgd import signgd_initial_state, step_size

LARGEST = 2**30  # bytes of what is recorded


@dataclass(frozen=True, eq=False)
class Recording:
    """By neuron: what was decoded, what was sent, and what the source network has there.

    ``decoded``
        [T, B, *], what receivers have decoded after each step: v of signGD neurons and of the
        rate-coded baseline, for group neurons and their growth the mean of the steps so far.
    ``spikes``
        [T, B, *], the spikes of each step. Of signGD neurons sigma, the sum of the m signs
        weighted 1, 1/2, 1/4, ...: with m = 1 it is +1 (v goes down by a step) or -1 (v goes up).
        Of group neurons how many members fired, negative where spikes were taken back, and of their
        growth what was passed on, in the same unit (where it has one; else the sign). Of the
        rate-coded baseline 0 or 1.
    ``source``
        [B, *], the value of the source network's activation.
    """

    time_steps: int
    decoded: dict[str, Tensor]
    spikes: dict[str, Tensor]
    source: dict[str, Tensor]


@torch.no_grad()
def record(
    snn: NetworkModule,
    x: Tensor,
    time_steps: int | None = None,
    names: Iterable[str] | None = None,
) -> Recording:
    """Runs x [B, ...], one static input, and records the neurons ``names``, all unless given.

    ``time_steps`` are those that the network was planned for unless given. ``mode`` is "snn"; both
    views of a network are recorded. States are reset before and after. Raises InputError for an
    unknown name, for what ``run`` refuses, and where the record were larger than 1 GiB.
    """
    network = snn.network if isinstance(snn, NetworkModule) else None
    if time_steps is None:
        time_steps = network.time_steps if network else 1
    (steps,) = check_steps((time_steps,))
    x = check_run("record", snn, x, steps, False)
    assert network is not None
    chosen = _chosen(network, names)
    _check_size(network, chosen, x, steps)
    heard: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def listen(node: Node, y: Tensor) -> None:
        if node.name in heard:
            heard[node.name].append(y.clone())

    before, snn.on_fire = snn.on_fire, listen
    chunk = default_chunk(network, len(x), x.device.type)
    static: dict[str, Tensor] = {}
    state = None
    snn.reset()
    try:
        with snn.for_sequences():
            for start in range(0, steps, chunk):
                _, state = snn.advance(x, min(chunk, steps - start), static, state)
    finally:
        snn.reset()
        snn.on_fire = before
    thresholds = _thresholds(network)
    decoded, spikes = {}, {}
    for name in chosen:
        y = torch.cat(heard.pop(name))
        node = network[name]
        if isinstance(node, SignGDNeuron):
            decoded[name], spikes[name] = _signgd(node, y, snn.spikes)
        elif isinstance(node, SubgradientNeuron):
            decoded[name], spikes[name] = y, _subgradient(node, y)
        else:
            decoded[name] = running_mean(y, torch.zeros_like(at_least_float32(y[0])), 0)[0]
            theta = thresholds.get(name)
            spikes[name] = y.sign() if theta is None else (y / like(theta, y)).round()
    source = snn.activations(x, keep=chosen)
    return Recording(steps, decoded, spikes, {name: source[name] for name in chosen})


def _chosen(network: SpikingNetwork, names: Iterable[str] | None) -> list[str]:
    known = network.names()
    if names is None:
        return known
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(
            f"no neuron is called {unknown[0]!r}; the neurons are: {', '.join(known) or 'none'}."
        )
    return [name for name in known if name in wanted]


def _check_size(network: SpikingNetwork, names: list[str], x: Tensor, steps: int) -> None:
    values = sum(count_values(network[name], len(x)) for name in names)
    size = 2 * steps * values * max(x.element_size(), 4)
    if size > LARGEST:
        raise InputError(
            f"record would keep {size / 2**30:.1f} GiB: {len(names)} neuron layers, {len(x)} "
            f"samples and {steps} steps. Choose layers by names=[...], or fewer samples or steps, "
            f"to stay below {LARGEST / 2**30:.0f} GiB."
        )


def count_values(node: Node, batch: int) -> int:
    """How many values a node makes for a batch."""
    count = 1
    for size in resolve(node.shape, batch):
        count *= size
    return count


def _signgd(node: SignGDNeuron, y: Tensor, view: str) -> tuple[Tensor, Tensor]:
    """v and sigma of all steps, of what the neuron made: v, or in the spike view its changes."""
    p = node.parameters
    rest = signgd_initial_state(at_least_float32(y[0]), p).v
    wide = y.to(rest.dtype)
    v = wide if view == "decoded" else running_sum(wide, rest)
    sent, before, buffer = torch.empty_like(wide), rest, torch.zeros_like(rest)
    finest = 2.0 ** (1 - node.members)
    for t in range(len(y)):
        change = v[t] - before if view == "decoded" else wide[t]
        moved = -change / step_size(v[t], t + 1, p)
        # the nearest of the odd multiples of the finest sign: v was rounded
        sigma = moved - p.momentum * buffer if t else moved
        sigma = (2 * (sigma / finest / 2 - 0.5).round() + 1) * finest
        sent[t] = sigma.clamp(finest - 2, 2 - finest)
        buffer = p.momentum * buffer + sent[t] if t else sent[t].clone()
        before = v[t]
    return v.to(y.dtype), sent.to(y.dtype)


def _subgradient(node: SubgradientNeuron, y: Tensor) -> Tensor:
    """Whether v went up: v(t) - (1 - eta) v(t-1) is eta c where the neuron fired, else 0."""
    p = node.parameters
    fires, before = torch.empty_like(y), torch.zeros_like(y[0])
    for t in range(len(y)):
        eta = p.schedule(t + 1)
        fires[t] = (y[t] - (1 - eta) * before) > eta * like(p.scale, y) / 2
        before = y[t]
    return fires


def _thresholds(network: SpikingNetwork) -> dict[str, Any]:
    """theta of each group neuron, and of the growth of what group neurons of one theta sent."""
    found: dict[str, Any] = {}
    for node in network.nodes:
        if isinstance(node, GroupNeuron):
            found[node.name] = node.parameters.theta
        elif isinstance(node, Growth):
            known = [found.get(name) for name in node.inputs]
            theta = known[0] if known else None
            same = all(other is theta for other in known)
            pools = "pool" in node.function.name  # channels stay where they were
            if same and theta is not None and (pools or not isinstance(theta, Tensor)):
                found[node.name] = theta
    return found
