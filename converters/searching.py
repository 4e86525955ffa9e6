"""Searching: the steps and the members of each layer, for a spike budget or a target agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, InputError
from ..network import SignGDNeuron, SpikingNetwork
from ..neurons.signgd import MOST_MEMBERS
from .calibration import Calibration, batches_of
from .conversion import convert
from .planning import default_schedule, relative_depths
from .tuning import BATCH, FEWEST, Measure, Simulation, default_choices, samples_of, tune

BUDGETS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # m T tried for a target
QUICK = 30  # iterations that tell the splits of a budget apart
ROUNDS = 4  # of exchanges of members between layers


def search(
    model: nn.Module,
    calibration: Calibration,
    *,
    spikes: int | None = None,
    agreement: float | None = None,
    iterations: int | None = None,
    max_batches: int | None = 32,
    seed: int = 0,
    **options: Any,
) -> SpikingNetwork:
    """``convert`` with signGD neurons, the steps T and the members m of each layer chosen by error.

    Parameters
    ----------
    calibration
        As for ``convert``; on a fifth of the samples the agreement is measured, with the others,
        64 at least, plans are chosen and tuned.
    spikes
        A budget: on average so many spikes of each neuron for one input. Of its splits m T each is
        tuned for a moment, the best at length; then members are exchanged between layers
        (``allocate``), which keeps the number of spikes of the whole network.
    agreement
        A target instead: the fewest spikes whose agreement with the source network's predictions,
        on the samples kept for it, is at least that. So those choose the budget, and the agreement
        on them is a little better than on others.
    iterations
        Of the tuning of the best split, as ``tune`` has them.
    options
        Of ``convert``, but for time_steps, members, method, schedule and tune.

    ``provenance["search"]`` holds every plan tried with its error, and the agreement of the result.
    Raises InputError for contradictory arguments and for an agreement that no budget up to 64
    reaches, and what ``convert`` raises.
    """
    if (spikes is None) == (agreement is None):
        raise InputError("search takes spikes=, a budget, or agreement=, a target: one of them.")
    chosen = {"time_steps", "members", "method", "schedule", "tune"} & set(options)
    if chosen:
        raise InputError(f"search chooses {', '.join(sorted(chosen))} itself; leave it out.")
    if spikes is not None and (not isinstance(spikes, int) or spikes is True or spikes < 1):
        raise InputError(f"spikes is a whole number of at least 1, but it is {spikes!r}.")
    if agreement is not None and not 0 < agreement < 1:
        raise InputError(f"agreement is a fraction between 0 and 1, but it is {agreement!r}.")
    x = torch.cat(batches_of(calibration, max_batches))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x = x[order.to(x.device)]
    apart, rest = x[: len(x) // 5], x[len(x) // 5 :]
    if len(rest) < FEWEST:
        raise CalibrationError(
            f"search takes {math.ceil(FEWEST * 5 / 4)} calibration samples or more, but there are "
            f"{len(x)}."
        )
    options = {"time_steps": 1, "tune": False, "max_batches": None, "seed": seed, **options}
    plain = convert(model, rest, **options)
    if agreement is not None and _agreement(plain, apart[:1]) is None:
        raise InputError(
            "an agreement is that of predictions, but the outputs are not [B, classes]."
        )
    tried: list[dict[str, Any]] = []
    for budget in (spikes,) if spikes is not None else BUDGETS:
        network = _within(plain, rest, budget, iterations, seed, tried)
        found = _agreement(network, apart)
        reached = agreement is None or found is None or found >= agreement
        if reached:
            break
    if not reached:
        raise InputError(
            f"no budget up to {BUDGETS[-1]} spikes reaches an agreement of {agreement}; the last "
            f"has {found}."
        )
    record = {"tried": tried, "agreement": found, "samples": len(apart), "spikes": budget}
    return network.replace(provenance={**network.provenance, "search": record})


def replanned(network: SpikingNetwork, time_steps: int, members: int) -> SpikingNetwork:
    """A network of signGD neurons with the default plan of other steps and members."""
    depths = relative_depths(network.nodes)
    nodes = tuple(
        replace(
            node,
            schedule=default_schedule(time_steps, depths[node.name], members),
            members=members,
        )
        if isinstance(node, SignGDNeuron)
        else node
        for node in network.nodes
    )
    return network.replace(nodes=nodes, time_steps=time_steps)


def _within(
    plain: SpikingNetwork,
    x: Tensor,
    budget: int,
    iterations: int | None,
    seed: int,
    tried: list[dict[str, Any]],
) -> SpikingNetwork:
    """The best network of ``budget`` signs from each neuron."""
    splits = [(m, budget // m) for m in range(1, MOST_MEMBERS + 1) if budget % m == 0]
    best: tuple[float, SpikingNetwork] | None = None
    for members, steps in splits:
        start = replanned(plain, steps, members)
        few = min(QUICK, iterations or QUICK)
        quick = tune(start, x, iterations=few, max_batches=None, seed=seed)
        error = quick.provenance["tuning"]["error"][1]
        tried.append({"members": members, "time_steps": steps, "error": error})
        if best is None or error < best[0]:
            best = error, start
    assert best is not None
    network = tune(best[1], x, iterations=iterations, max_batches=None, seed=seed)
    mixed = allocate(network, x)
    error = network.provenance["tuning"]["error"][1]
    tried.append(_row(network, error))
    if mixed is network:
        return network
    mixed = tune(mixed, x, iterations=iterations, max_batches=None, seed=seed)
    after = mixed.provenance["tuning"]["error"][1]
    tried.append(_row(mixed, after))
    return mixed if after < error else network


def _row(network: SpikingNetwork, error: float) -> dict[str, Any]:
    members = {n.name: n.members for n in network.neurons if isinstance(n, SignGDNeuron)}
    return {"members": members, "time_steps": network.time_steps, "error": error}


@torch.no_grad()
def allocate(network: SpikingNetwork, calibration: Calibration) -> SpikingNetwork:
    """``network`` with members moved to the layers where they lower the output error most.

    A member more refines a layer's steps, one less leaves the finest sign out; its price is the
    layer's neurons times T. The member that lowers the error most for its price is paid for by
    those that raise it least, as long as the error falls and no more spikes are sent than before.
    Returns the network itself where no exchange helps.
    """
    x = torch.cat(batches_of(calibration, None))[: 4 * BATCH]
    samples = samples_of(network, x)
    counts = network.count()
    most = sum(counts[name] * m for name, m in _members(network).items())
    error_of = _errors(network, samples)
    members = _members(network)
    error = error_of(members)
    for _ in range(ROUNDS):
        price = {name: counts[name] for name in members}
        gains = {
            name: (error - error_of({**members, name: m + 1})) / price[name]
            for name, m in members.items()
            if m < MOST_MEMBERS
        }
        losses = {
            name: (error_of({**members, name: m - 1}) - error) / price[name]
            for name, m in members.items()
            if m > 1
        }
        changed = _exchanged(members, gains, losses, price, most)
        if changed is None:
            break
        found = error_of(changed)
        if found >= error:
            break
        members, error = changed, found
    if members == _members(network):
        return network
    nodes = tuple(
        replace(node, members=members[node.name]) if isinstance(node, SignGDNeuron) else node
        for node in network.nodes
    )
    return network.replace(nodes=nodes)


def _members(network: SpikingNetwork) -> dict[str, int]:
    return {n.name: n.members for n in network.neurons if isinstance(n, SignGDNeuron)}


def _errors(network: SpikingNetwork, samples: Any) -> Callable[[Mapping[str, int]], float]:
    def error_of(members: Mapping[str, int]) -> float:
        nodes = tuple(
            replace(node, members=members[node.name]) if isinstance(node, SignGDNeuron) else node
            for node in network.nodes
        )
        changed = network.replace(nodes=nodes)
        simulation = Simulation(changed, network.time_steps)
        return Measure(simulation, samples)(default_choices(changed, samples))[0]

    return error_of


def _exchanged(
    members: Mapping[str, int],
    gains: Mapping[str, float],
    losses: Mapping[str, float],
    price: Mapping[str, int],
    most: int,
) -> dict[str, int] | None:
    """One member more for the layer that gains most, paid for by others; None if none gains."""
    better = max(gains, key=lambda name: gains[name], default=None)
    if better is None or gains[better] <= 0:
        return None
    changed = {**members, better: members[better] + 1}
    for name in sorted(losses, key=lambda name: losses[name]):
        spent = sum(changed[n] * price[n] for n in changed)
        if spent <= most:
            break
        if name != better:
            changed[name] -= 1
    return changed if sum(changed[n] * price[n] for n in changed) <= most else None


@torch.no_grad()
def _agreement(network: SpikingNetwork, x: Tensor) -> float | None:
    samples = samples_of(network, x)
    measure = Measure(Simulation(network, network.time_steps), samples)
    return measure(default_choices(network, samples))[1]
