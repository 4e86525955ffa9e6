r"""The search for neurons with dead zones: the weight of additions that meets a budget or a target.

All neurons get T = 1 and eight members: leading zeros cost nothing, so the learned step sizes alone
determine the resolution of a value, and with one step a network never has to correct what it has
sent. Starting from the finest network, w in L = E + w A (``objectives.py``) is doubled, each
network tuned from the one before, until the budget is met or the agreement is missed; then the last
interval is halved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.network import SpikingNetwork
from ..core.progress import progress
from ..errors import InputError
from .budget import Budget
from .mixing import spikes_sent
from .settings import MEMBERS
from .tunable import Measure, Tunable, default_choices, samples_of
from .tuning import tuned

WEIGHTS = tuple(0.002 * 2.0**i for i in range(9))
HALVINGS = 2  # of the last interval of w
MISSES = 2  # of a target one after the other: a few samples more or less may be chance
ITERATIONS = 60  # of each network


@dataclass(frozen=True, eq=False)
class Point:
    """A tuned network, and what it does on samples that it was not tuned on."""

    network: SpikingNetwork
    weight: float
    error: float
    additions: float
    spikes: float  # of a neuron
    agreement: float | None

    def row(self) -> dict[str, Any]:
        """JSON-able, for ``provenance["search"]["tried"]``."""
        names = ("weight", "error", "additions", "spikes", "agreement")
        plan = {"members": MEMBERS, "time_steps": self.network.time_steps}
        return plan | {name: getattr(self, name) for name in names}


class Path:
    """Networks tuned for one w after the other, from ``start`` on, whose T is 1; each by all
    processes of ``budget``."""

    def __init__(
        self,
        start: SpikingNetwork,
        seen: Tensor,
        apart: Tensor,
        iterations: int | None,
        seed: int,
        budget: Budget | None = None,
    ) -> None:
        self.seen, self.iterations, self.seed = seen, iterations or ITERATIONS, seed
        self.budget = budget or Budget()
        self.apart = samples_of(start, apart, self.budget)
        self.tried: list[dict[str, Any]] = []
        self.start = self._point(start, 0.0)

    def cheapest(self, agreement: float) -> Point:
        """The fewest additions whose agreement is at least that. Raises InputError."""
        return self._last(lambda p: (p.agreement or 0.0) >= agreement, f"agreement={agreement}")

    def within(self, name: str, most: float) -> Point:
        """The least error whose ``name``, "additions" or "spikes", is at most that.

        Raises InputError.
        """
        return self._first(lambda p: getattr(p, name) <= most, f"{name}={most}")

    def _last(self, holds: Callable[[Point], bool], asked: str) -> Point:
        point = good = self.start
        if not holds(good):
            raise self._unreached(asked, good)
        missed: list[Point] = []
        for weight in progress(WEIGHTS, _priced, len(WEIGHTS)):
            point = self._tuned(point, weight)
            if holds(point):
                good, missed = point, []
            else:
                missed.append(point)
            if len(missed) == MISSES:
                break
        return self._halved(good, missed[0], holds) if missed else good

    def _first(self, holds: Callable[[Point], bool], asked: str) -> Point:
        point = self.start
        if holds(point):  # the error is all that is left to lower
            tuned = self._tuned(point, 0.0)
            return tuned if holds(tuned) and tuned.error < point.error else point
        for weight in progress(WEIGHTS, _priced, len(WEIGHTS)):
            before, point = point, self._tuned(point, weight)
            if holds(point):
                return self._halved(point, before, holds)
        raise self._unreached(asked, point)

    def _halved(self, good: Point, bad: Point, holds: Callable[[Point], bool]) -> Point:
        """Between one that holds and one that does not, nearer to the latter, which is better."""
        for _ in progress(range(HALVINGS), lambda _: "searching between two prices", HALVINGS):
            point = self._tuned(min(good, bad, key=lambda p: p.weight), _between(good, bad))
            good, bad = (point, bad) if holds(point) else (good, point)
        return good

    def _tuned(self, start: Point, weight: float) -> Point:
        options: dict[str, Any] = {"objective": weight, "seed": self.seed}
        options |= {"iterations": self.iterations, "distributed": self.budget.distributed}
        network = tuned(start.network, self.seen, **options)
        return self._point(network, weight)

    def _point(self, network: SpikingNetwork, weight: float) -> Point:
        simulation = Tunable(network, network.time_steps)
        simulation.count_additions()
        measure = Measure(simulation, self.apart, self.budget)
        found = measure(default_choices(network, self.apart))
        assert found.additions is not None
        spikes = spikes_sent(network, self.apart.x, self.budget)
        spikes /= max(1, sum(network.count().values()))
        point = Point(network, weight, found.error, found.additions, spikes, found.agreement)
        self.tried.append(point.row())
        return point

    def _unreached(self, asked: str, last: Point) -> InputError:
        return InputError(
            f"search(..., {asked}) cannot be reached in one step of {MEMBERS} members: the last "
            f"network tried has {last.additions:.3g} additions per multiply-accumulate, "
            f"{last.spikes:.3g} spikes per neuron, agreement {last.agreement} on "
            f"{len(self.apart)} samples."
        )


def _priced(weight: float) -> str:
    return f"searching: price {weight:.3g} of additions"


def _between(good: Point, bad: Point) -> float:
    low, high = sorted((good.weight, bad.weight))
    return float((max(low, WEIGHTS[0] / 2) * high) ** 0.5)


def thrifty(network: SpikingNetwork) -> bool:
    """Whether all neurons may be silent, which is what there is to save."""
    return bool(network.neurons) and not any(node.steady for node in network.neurons)
