"""The decoded value and the spikes of every neuron at each step, and the source's activations.

The values are those that ``run`` computes: the network itself is run, and the events of its neurons
are recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.module import NetworkModule
from ..core.network import Neuron, Node, SpikingNetwork
from ..core.operations import resolve
from ..core.running import check_run, check_steps, default_chunk
from ..core.spikes import Sent, listening
from ..errors import InputError
from ..neurons import running_sum
from ..neurons.base import spread
from ..neurons.protocol import at_least_float32, like, running_mean
from ..neurons.rounding import Rounded

LARGEST = 2**30  # bytes of what is recorded


@dataclass(frozen=True, eq=False)
class Recording(Rounded):
    """By neuron: decoded values, spikes, and the activations of the source network.

    ``decoded``
        [T, B, *], what receivers have decoded after each step: v of signGD neurons and of the
        rate-coded baseline, for group neurons and their growth the mean of the steps so far.
    ``spikes``
        [T, B, *], the spikes of each step. Of signGD neurons sigma, the sum of the m signs
        weighted 1, 1/2, 1/4, ...: with m = 1 it is +1 (v goes down by a step) or -1 (v goes up);
        with a dead zone 0 where all are silent. Of group neurons the number of members that fired,
        negative for negative spikes, and of their growth what was passed on, in the same unit
        (where it has one; else the sign). Of the rate-coded baseline 0 or 1.
    ``sent``
        [T, B, *], of how many spikes those are made: of m signs the ones that are not silent, of
        group neurons the size of their number.
    ``source``
        [B, *], the value of the source network's activation.
    """

    time_steps: int
    decoded: dict[str, Tensor]
    spikes: dict[str, Tensor]
    source: dict[str, Tensor]
    sent: dict[str, Tensor] = field(default_factory=dict)


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
    values: dict[str, list[Tensor]] = {name: [] for name in chosen}
    numbers: dict[str, list[Tensor]] = {name: [] for name in chosen}
    counted: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def listen(sent: Sent) -> None:
        if sent.node.name in values:
            assert sent.events is not None
            values[sent.node.name].append(sent.value.clone())
            numbers[sent.node.name].append(sent.events.number.to(sent.value.dtype))
            counted[sent.node.name].append(sent.events.spikes.to(torch.int16))

    chunk = default_chunk(network, len(x), x.device.type)
    static: dict[str, Tensor] = {}
    state = None
    snn.reset()
    try:
        with snn.for_sequences(), listening(snn, listen):
            for start in range(0, steps, chunk):
                _, state = snn.advance(x, min(chunk, steps - start), static, state)
    finally:
        snn.reset()
    decoded, spikes, sent = {}, {}, {}
    for node in (each for each in network.neurons if each.name in chosen):
        y = torch.cat(values.pop(node.name))
        decoded[node.name] = _decoded(node, y, snn.spikes)
        spikes[node.name] = torch.cat(numbers.pop(node.name)) * node.finest
        sent[node.name] = torch.cat(counted.pop(node.name))
    source = snn.activations(x, keep=chosen)
    return Recording(steps, decoded, spikes, {name: source[name] for name in chosen}, sent)


def _decoded(node: Neuron, y: Tensor, view: str) -> Tensor:
    """What receivers have decoded after each step, of what the neuron made."""
    first = at_least_float32(y[0])
    if not node.decoded:
        return running_mean(y, torch.zeros_like(first), 0)[0]
    if view == "decoded":
        return y
    rest = spread(like(getattr(node, "resting", 0.0), first), first.shape, "resting")
    return running_sum(y.to(first.dtype), rest).to(y.dtype)


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
    size = steps * values * (2 * max(x.element_size(), 4) + 2)
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
