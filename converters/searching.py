"""Searching: steps, members and methods by layer, for a budget or a target agreement.

Networks of neurons with dead zones are searched along one parameter, from fine to coarse:
``thrift``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.distributed import Distributed, together
from ..core.network import GroupNeuron, Node, SignGDNeuron, SpikingNetwork
from ..core.progress import progress
from ..errors import CalibrationError, InputError
from ..names import named_arguments
from ..neurons.signgd import MOST_MEMBERS
from . import thresholds
from .budget import Budget
from .calibration import FEWEST, Calibration
from .conversion import convert
from .mixing import Choices, joined, may_be_group, measured, real, spikes_sent
from .planning import PlanWarning, default_schedule, relative_depths
from .shared import agreed, ended, samples
from .thrift import MEMBERS, Path, thrifty
from .tunable import BATCH, Measure, Samples, Tunable, default_choices, samples_of
from .tuning import tuned

BUDGETS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # m T tried for a target
QUICK = 30  # iterations that tell the splits of a budget apart
ROUNDS = 4  # of exchanges of members between layers
HELD_OUT = 256  # samples at most that mixed plans are compared on
TRIES = 4  # at a mixed plan that sends no more than it may
METHODS = (("signgd",), ("signgd", "group"), ("group", "signgd"))


@named_arguments
@together
def search(
    model: nn.Module,
    calibration: Calibration,
    *,
    spikes: float | None = None,
    agreement: float | None = None,
    additions: float | None = None,
    methods: Sequence[str] = ("signgd",),
    iterations: int | None = None,
    max_batches: int | None = 32,
    seed: int = 0,
    distributed: Distributed | None = None,
    **options: Any,
) -> SpikingNetwork:
    """``convert`` with the plan chosen by output error, for a budget or a target.

    Neurons with dead zones get one step of eight members, and are tuned for
    fewer and fewer additions (``converters/thrift.py``); for others, or where
    ``methods`` are two, T and the members m of each layer are chosen.

    Parameters
    ----------
    calibration
        As for ``convert``; 64 samples or more, of which a fifth measures the
        agreement and what neurons with dead zones send, and the others choose
        and tune plans.
    spikes
        A budget: on average so many spikes of each neuron for one input, with
        dead zones those really sent. Without, of its splits m T each is tuned
        for a moment, the best at length; then members are exchanged between
        layers (``allocate``), which keeps the number of spikes of the network.
    agreement
        A target instead: the fewest spikes whose agreement with the source
        network's predictions, on the samples kept for it, is at least that (a
        little more than on others). With dead zones the fewest additions.
    additions
        A budget, for neurons with dead zones: so many for each MAC of the source.
    methods
        ("signgd",), or ("signgd", "group") to choose also the method of each
        layer of ReLUs or QCFS activations, with the pooling of what it sends,
        by output error per spike really sent (``converters/mixing.py``). The
        budget is then one of the whole network: on the calibration samples it
        sends no more than ``spikes`` times its neurons, where a group neuron
        counts by what it sends and not by m T. At T = 1 and at the best T of
        signGD neurons alone; the least error on samples held out, a quarter,
        wins, signGD neurons alone among them; of two sets of thresholds the
        better one is chosen there too.
    distributed
        Processes that share the trials: the same network, bit for bit, for any
        number of them (as ``tune`` has it).
    iterations, options
        Of the tuning of the best split, as ``tune`` has them; of ``convert``,
        but for time_steps, members, method, schedule, tune and objective.

    Takes some minutes for the example networks.

    ``provenance["search"]`` holds every plan tried with its error, and the
    result's agreement; with group neurons also "sent", the mean spikes of a
    neuron, "changed", the layers that are of group neurons, "layers", error and
    mean spikes of each choice for one layer, and "tuning", that of the signGD
    neurons, both while the others were real-valued. The same seed, machine and
    threads give the same result.

    Raises InputError for contradictory arguments and for an agreement that no
    budget up to 64 reaches, CalibrationError, and what ``convert`` raises.
    """
    if sum(asked is not None for asked in (spikes, agreement, additions)) != 1:
        raise InputError(
            "search takes either a budget (spikes= or additions=) or a target (agreement=)."
        )
    chosen = {"time_steps", "members", "method", "schedule", "tune", "objective"} & set(options)
    if chosen:
        raise InputError(f"search chooses {', '.join(sorted(chosen))} itself; leave it out.")
    for name, budget in (("spikes", spikes), ("additions", additions)):
        if budget is not None and not (_number(budget) and 0 < budget < math.inf):
            raise InputError(f"{name} is a positive number, but it is {budget!r}.")
    if agreement is not None and not 0 < agreement < 1:
        raise InputError(f"agreement is a fraction between 0 and 1, but it is {agreement!r}.")
    if not isinstance(methods, (tuple, list)) or tuple(methods) not in METHODS:
        known = " or ".join(map(str, METHODS[:2]))
        raise InputError(
            f"methods is {known}, but it is {methods!r}; for group neurons only, use "
            "convert(method='group')."
        )
    mix = len(methods) > 1
    work = Budget(None, distributed)
    x = samples(calibration, max_batches, distributed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x = x[order.to(x.device)]
    apart, rest = x[: len(x) // 5], x[len(x) // 5 :]
    held = min(HELD_OUT, len(rest) // 4) if mix else 0
    if len(x) < FEWEST:
        raise CalibrationError(
            f"search takes {FEWEST} calibration samples or more, but there are {len(x)}."
        )
    options = {"time_steps": 1, "tune": False, "max_batches": None, "seed": seed, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)  # of what the search begins with
        # a quantile serves every number of members and steps
        plain = convert(model, rest, distributed=distributed, **{"scale": "channel", **options})
    if distributed is not None:
        asked = {"spikes": spikes, "agreement": agreement, "additions": additions}
        given = {**asked, "methods": methods, "iterations": iterations, "seed": seed}
        agreed("search", plain, given, distributed)
    if additions is not None and (mix or not thrifty(plain)):
        raise InputError(
            "additions= is a budget for neurons with dead zones; pass dead_zone=2 / 3 without "
            "methods=, or use spikes=."
        )
    if agreement is not None and _agreement(plain, apart[:1], work) is None:
        raise InputError(
            "agreement compares predicted classes, but the outputs are not [B, classes]."
        )
    if thrifty(plain) and not mix:
        path = Path(replanned(plain, 1, MEMBERS), rest, apart, iterations, seed, work)
        return ended("search", _along(path, spikes, agreement, additions), distributed)
    if spikes is not None and (not isinstance(spikes, int) or spikes < 1):
        raise InputError(
            "spikes for neurons without dead zones, and for group neurons, is an integer of at "
            f"least 1, but it is {spikes!r}."
        )
    tried: list[dict[str, Any]] = []
    seen = rest[held:]
    mixer = _Mixer(plain, x, seen, rest[:held], iterations, seed, tried, work) if mix else None
    budgets = (spikes,) if spikes is not None else BUDGETS
    for budget in progress(budgets, lambda b: f"searching: {b} spikes a neuron", len(budgets)):
        network = _within(plain, seen, budget, iterations, seed, tried, work)
        if mixer is not None:
            network = mixer.best(network, budget)
        found = _agreement(network, apart, work)
        reached = agreement is None or found is None or found >= agreement
        if reached:
            break
    if not reached:
        raise InputError(
            f"no budget up to {BUDGETS[-1]} spikes reaches an agreement of {agreement}; the "
            f"largest has {found}."
        )
    record = {"tried": tried, "agreement": found, "samples": len(apart), "spikes": budget}
    provenance = dict(network.provenance)
    if mixer is not None:
        record |= mixer.record(network) | {"tuning": provenance.pop("search tuning", None)}
    network = network.replace(provenance={**provenance, "search": record})
    return ended("search", network, distributed)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _along(
    path: Path, spikes: float | None, agreement: float | None, additions: float | None
) -> SpikingNetwork:
    if agreement is not None:
        point = path.cheapest(agreement)
    elif additions is not None:
        point = path.within("additions", additions)
    else:
        assert spikes is not None
        point = path.within("spikes", spikes)
    found = {name: getattr(point, name) for name in ("agreement", "additions", "spikes")}
    record = {"tried": path.tried, "samples": len(path.apart), **found}
    return point.network.replace(provenance={**point.network.provenance, "search": record})


def replanned(network: SpikingNetwork, time_steps: int, members: int) -> SpikingNetwork:
    """A network of signGD neurons with the default plan of other steps and members."""
    depths = relative_depths(network.nodes)
    changed = {
        node.name: replace(
            node,
            schedule=default_schedule(
                time_steps, depths[node.name], members, node.widest_dead_zone
            ),
            members=members,
        )
        for node in network.of(SignGDNeuron)
    }
    return network.with_nodes(changed).replace(time_steps=time_steps)


def _within(
    plain: SpikingNetwork,
    x: Tensor,
    budget: int,
    iterations: int | None,
    seed: int,
    tried: list[dict[str, Any]],
    work: Budget,
) -> SpikingNetwork:
    """The best network of ``budget`` signs from each neuron."""
    splits = [(m, budget // m) for m in range(1, MOST_MEMBERS + 1) if budget % m == 0]
    starts = [replanned(plain, steps, members) for members, steps in splits]
    given: dict[str, Any] = {"seed": seed}

    def quick(start: SpikingNetwork) -> float:
        few = min(QUICK, iterations or QUICK)
        found = tuned(start, x, iterations=few, **given)
        return float(found.provenance["tuning"]["error"][1])

    errors = work.dealt("quick", starts, quick)
    tried += [
        {"members": members, "time_steps": steps, "error": error}
        for (members, steps), error in zip(splits, errors, strict=True)
    ]
    given |= {"iterations": iterations, "distributed": work.distributed}
    network = tuned(starts[errors.index(min(errors))], x, **given)
    mixed = allocate(network, x, distributed=work.distributed)
    error = network.provenance["tuning"]["error"][1]
    tried.append(_row(network, error))
    if mixed is network:
        return network
    mixed = tuned(mixed, x, **given)
    after = mixed.provenance["tuning"]["error"][1]
    tried.append(_row(mixed, after))
    return mixed if after < error else network


def _row(network: SpikingNetwork, error: float) -> dict[str, Any]:
    return {"members": _members(network), "time_steps": network.time_steps, "error": error}


class _Mixer:
    """Plans of signGD and group neurons beside one of signGD neurons alone."""

    def __init__(
        self,
        plain: SpikingNetwork,
        x: Tensor,  # all samples, on which spikes are counted
        seen: Tensor,  # chosen and tuned on
        held: Tensor,  # compared on
        iterations: int | None,
        seed: int,
        tried: list[dict[str, Any]],
        work: Budget,
    ) -> None:
        self.plain, self.x, self.seen = plain, x, seen
        self.iterations, self.seed, self.tried, self.work = iterations, seed, tried, work
        self.held = samples_of(plain, held, work)
        self.choices: dict[int, Choices] = {}  # by T
        self.tuned: dict[Any, SpikingNetwork] = {}  # by T and the members of signGD neurons

    def best(self, alone: SpikingNetwork, budget: int) -> SpikingNetwork:
        best, least = alone, self._compared(alone)
        if not any(map(may_be_group, alone.of(SignGDNeuron))):
            return best
        for steps in dict.fromkeys((1, alone.time_steps)):
            network = self._within(budget * sum(alone.count().values()), steps)
            if network is not None and (error := self._compared(network)) < least:
                best, least = network, error
        return best

    def record(self, network: SpikingNetwork) -> dict[str, Any]:
        return {
            "sent": self._sent(network),
            "changed": {
                node.name: {"method": "group", "members": node.members}
                for node in network.of(GroupNeuron)
            },
            "layers": [row for choices in self.choices.values() for row in choices.tried],
        }

    def _sent(self, network: SpikingNetwork) -> float:
        return spikes_sent(network, self.x, self.work) / max(1, sum(network.count().values()))

    def _compared(self, network: SpikingNetwork) -> float:
        error, agreement = measured(network, self.held, self.work)
        nodes = [n for n in network.neurons if hasattr(n, "members")]
        self.tried.append(
            {
                "method": {node.name: node.kind for node in nodes},
                "members": {node.name: node.members for node in nodes},
                "time_steps": network.time_steps,
                "error": error,
                "agreement": agreement,
                "samples": len(self.held),
                "spikes": self._sent(network),
            }
        )
        return error

    def _within(self, spikes: float, steps: int) -> SpikingNetwork | None:
        if steps not in self.choices:
            start = replanned(self.plain, steps, 1)
            self.choices[steps] = Choices(start, self.seen, steps, self.seed, self.work)
        allowed = spikes
        for _ in range(TRIES):
            chosen = self.choices[steps].within(allowed)
            if chosen is None:
                return None
            network = self._made(chosen, steps)
            sent = spikes_sent(network, self.x, self.work)
            if sent <= spikes:
                return network
            allowed *= 0.995 * spikes / sent  # all together they send more than one by one
        return None

    def _made(self, chosen: dict[str, Node], steps: int) -> SpikingNetwork:
        """Its signGD neurons tuned while the others are real-valued, then the others' thresholds
        chosen on what they get from those."""
        plain = self.plain.replace(time_steps=steps)
        signs = [node for node in chosen.values() if isinstance(node, SignGDNeuron)]
        groups = [node for node in chosen.values() if isinstance(node, GroupNeuron)]
        method = {"": "signgd", **{node.name: "group" for node in groups}}
        provenance: dict[str, Any] = {**plain.provenance, "method": method}
        if signs:
            tuned = self._tuned(plain, chosen, signs)
            chosen = {**chosen, **{node.name: tuned[node.name] for node in signs}}
            provenance["tuning"] = tuned.provenance["tuning"]
        if groups:
            reason = {"none": "only the signGD neurons were tuned; see search."}
            provenance |= {"search tuning": provenance.get("tuning"), "tuning": reason}
        network = joined(plain, chosen).replace(provenance=provenance)
        return self._fitted(network, [n.name for n in groups if not n.trained])

    def _tuned(
        self, plain: SpikingNetwork, chosen: dict[str, Node], signs: Sequence[SignGDNeuron]
    ) -> SpikingNetwork:
        key = plain.time_steps, tuple((node.name, node.members) for node in signs)
        if key not in self.tuned:
            names = {node.name for node in signs}
            others = real(plain, [name for name in chosen if name not in names])
            start = joined(others, {node.name: node for node in signs})
            self.tuned[key] = tuned(
                start,
                self.seen,
                iterations=self.iterations,
                seed=self.seed,
                distributed=self.work.distributed,
            )
        return self.tuned[key]

    def _fitted(self, network: SpikingNetwork, names: Sequence[str]) -> SpikingNetwork:
        if not names:
            return network
        images, _, more = thresholds.images_of(network, [self.seen], self.seed)
        fitted = thresholds.choose(
            network, network.statistics, images, more, names, self.seed, self.work
        )
        pair = network, fitted
        errors = [measured(one, self.held, self.work)[0] for one in pair]
        return pair[errors[1] <= errors[0]]


@together
@torch.no_grad()
def allocate(
    network: SpikingNetwork, calibration: Calibration, *, distributed: Distributed | None = None
) -> SpikingNetwork:
    """``network`` with members moved to the layers where they lower the output error most.

    A member more refines a layer's steps, one less leaves the finest sign out; its price is the
    layer's neurons times T. The member that lowers the error most for its price is paid for by
    those that raise it least, as long as the error falls and no more spikes are sent than before.
    Returns the network itself where no exchange helps. What one member more or less does is found
    by one of the processes that are ``distributed``, which all get the same network.
    Raises CalibrationError.
    """
    work = Budget(None, distributed)
    x = samples(calibration, None, distributed)[: 4 * BATCH]
    seen = samples_of(network, x, work)
    counts = network.count()
    most = sum(counts[name] * m for name, m in _members(network).items())
    members = _members(network)

    def errors_of(*plans: Mapping[str, int]) -> list[float]:
        return work.dealt("members", plans, lambda plan: _error(network, plan, seen))

    (error,) = errors_of(members)
    for _ in range(ROUNDS):
        price = {name: counts[name] for name in members}
        more = {name: {**members, name: m + 1} for name, m in members.items() if m < MOST_MEMBERS}
        less = {name: {**members, name: m - 1} for name, m in members.items() if m > 1}
        errors = errors_of(*more.values(), *less.values())
        pairs = zip([*more, *less], errors, strict=True)
        change = [(error - one) / price[name] for name, one in pairs]
        gains = dict(zip(more, change[: len(more)], strict=True))
        losses = dict(zip(less, (-each for each in change[len(more) :]), strict=True))
        changed = _exchanged(members, gains, losses, price, most)
        if changed is None:
            break
        (found,) = errors_of(changed)
        if found >= error:
            break
        members, error = changed, found
    if members == _members(network):
        return network
    return _with_members(network, members)


def _members(network: SpikingNetwork) -> dict[str, int]:
    return {node.name: node.members for node in network.of(SignGDNeuron)}


def _with_members(network: SpikingNetwork, members: Mapping[str, int]) -> SpikingNetwork:
    nodes = network.of(SignGDNeuron)
    return network.with_nodes({n.name: replace(n, members=members[n.name]) for n in nodes})


def _error(network: SpikingNetwork, members: Mapping[str, int], samples: Samples) -> float:
    changed = _with_members(network, members)
    simulation = Tunable(changed, network.time_steps)
    return Measure(simulation, samples)(default_choices(changed, samples)).error


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
def _agreement(network: SpikingNetwork, x: Tensor, work: Budget) -> float | None:
    apart = samples_of(network, x, work)
    if network.of(GroupNeuron):
        return measured(network, apart, work)[1]
    measure = Measure(Tunable(network, network.time_steps), apart, work)
    return measure(default_choices(network, apart))[1]
