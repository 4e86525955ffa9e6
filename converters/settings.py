"""The options of ``convert``, checked when created; a preset provides the defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from ..core.distributed import Distributed
from ..core.network import Function, Node
from ..errors import InputError
from ..names import near, spelled
from ..neurons.schedules import ConstantSchedule, ExponentialSchedule, Schedule
from ..neurons.signgd import DEAD_ZONE
from .calibration import Batches
from .carried import Path
from .clips import Motion
from .lowering import Forms, Options, forms
from .objectives import weight_of
from .planning import AVERAGING, METHODS
from .rules import NEURONS, Entry, Operation

CODINGS = ("exact", "real", "spike", "poisson")
QUANTILES = ("channel", "tensor")  # of 99.95 %, or as "channel:0.999" says
SCALES = ("fitted", "channel", "tensor", "published", "unit")
RESTING = ("zero", "mean")
TIME_STEPS = 32  # of single signs, and of other neurons
MEMBERS = 8  # of neurons with dead zones, in one step
# a plan for streams: every step alike, in units of the scale, and the input coded by differences
STREAM: dict[str, Any] = {"schedule": ConstantSchedule(1.0), "input_coding": "spike"}
PRESETS: dict[str, dict[str, Any]] = {
    # what the published implementation computes (snn_signgd, its example configuration)
    "paper": {
        "schedule": ExponentialSchedule(0.15, 0.95),
        "input_coding": "real",
        "scale": "published",
        "gelu": "sigmoid",
        "forms": forms("local"),
        "guard": False,
        "resting": "zero",
        "input_scale": 1.0,
        "dead_zone": 0.0,
    },
    "default": {
        "schedule": None,  # it depends on the depth of each neuron
        "input_coding": "exact",
        "scale": "fitted",
        "gelu": "source",
        "forms": forms("whole"),
        "guard": True,
        "resting": "zero",
        "input_scale": None,  # the calibration says
        "dead_zone": DEAD_ZONE,
    },
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of ``convert``, as they were given: None is the preset's choice.

    ``chosen`` holds the resolved values. A user's pass reads them at ``context.settings``.

    Parameters
    ----------
    method
        "signgd", "group" (for QCFS and ReLU) or "subgradient" (the rate-coded baseline for ReLU),
        a name added to ``converters.METHODS``, or a dict from module paths to these; the
        entry "" is the default of the others.
    time_steps
        T that the network is planned for: the default schedule and the members follow it. By
        default 1 for signGD neurons with dead zones of several members, and for group neurons of
        a model with QCFS activations (``convert`` sees the model), else 32.
    preset
        "paper" computes what the published implementation does (learning rate 0.15, decay 0.95,
        real-valued input, ReLU scaled by its maximum, sigmoid GELU, local forms). Every other
        argument that is given overrides it.
    schedule
        Step sizes in units of each neuron's scale, one schedule for all neurons. The default
        depends on ``time_steps`` and on each neuron's depth: ``converters.default_schedule``.
    input_coding
        "exact": the first layers see the input itself; "real": real-valued increments;
        "spike": signs, within ``input_scale`` times the sum of the schedule; "poisson".
    input_scale
        Amplitude of coded inputs; by default the largest absolute input of the calibration.
    scale
        "fitted": the range of each channel where the expected error of the neuron's code is least
        (``converters/fitting.py``), and for several steps step sizes measured on the calibration
        data, unless they are worse (``converters/residuals.py``), for single signs of functions
        without a bound the quantile; "channel" or "tensor": the
        99.95 % quantile of the calibration, another one as "channel:0.999"; "published"; "unit"; or
        a number, the range. For group neurons of a ReLU the thresholds of the least error
        (``converters/thresholds.py``), except with the last three. Also a dict from module paths to
        these; the entry "" is the default of the others.
    resting
        v(0): "zero" or the calibration's "mean".
    momentum
        Of the step rule, for signGD neurons and their coding, in [0, 1).
    members
        m of signGD neurons, the signs of one step, 1 to 8, with a dead zone to 12, by default 1,
        with a dead zone and no ``time_steps`` 8;
        and of group neurons, by default m T = L, with L = 8 for a ReLU that was trained without
        levels. Also a dict from module paths to m; the entry "" is the default of the others.
    dead_zone
        theta of signGD neurons, a fraction of the step size in [0, 1): a sign is sent only if the
        neuron is further than that from its target (``neurons/signgd/sparse.py``). 0: a sign at
        every step, as in the paper, the only choice with ``preset="paper"`` or momentum. Also a
        dict from module paths to theta; the entry "" is the default of the others.
    signed
        Whether group neurons may fire negative spikes (``neurons/group.py``). By default those of a
        ReLU do if T > 1, those of a QCFS activation do not.
    keep
        Module paths whose nonlinearities stay real-valued, computed at every step of what has been
        decoded; ``network.kept()`` says what they cost.
    forms
        "whole": one neuron for an output of max pooling, a norm, softmax, a matrix product of two
        values or attention; "local": their published decompositions into neurons of one and two
        arguments; or a dict from "max_pool", "norm", "softmax", "matmul" and "attention" to these.
        By default "whole" ("local" with ``preset="paper"``). ``converters.compare_functions``
        measures both.
    objective
        The objective of tuning: "error" of the outputs; "additions", which adds the number of
        additions per multiply-accumulate of the source, for neurons with dead zones; or their
        weight (``converters/tuning.py``).
    tune
        Whether step sizes, scales, resting values and dead zones of signGD neurons are learned on
        the calibration data (``converters.tune``), up to a minute for the example networks. By
        default they are under these conditions: at least 64 samples (fewer cause a warning), m T
        below 128, neither ``schedule`` nor ``resting``, ``scale`` nor ``preset`` given, not for
        networks that would take minutes, and not for one step of 8 members with dead zones, the
        default plan, whose error is small and can only be reduced by more additions. False also
        leaves the thresholds of group neurons as they are chosen layer by layer
        (``converters/refinement.py``). ``provenance["tuning"]`` says what was done, or why tuning
        was skipped.
    tune_seconds
        A time limit for tuning, which also turns tuning on if it is possible; None: as many steps
        of descent as the size of the network suggests.
    neurons
        The neuron of each operation; the caller's entries take precedence (``NEURONS | {...}``).
    sizes
        Other shapes of samples, such as (3, 96, 80), that the network is to run at. At each the
        model is captured again and compared (``converters/sizes.py``); see ``network.at_size``.
    stream
        A plan for streams (``converters/tracking.py``): the calibration are clips [F, N, ...], or
        stills that move as a ``Motion`` says. One step per frame, all of the same sizes; step sizes
        and members are chosen on the clips, for the price of an addition given by ``objective``, by
        default 0.008, and the input is coded by differences; ``members`` applies to all other
        neurons.
    noise
        For a stream: the standard deviation of the sensor's noise, in units of the input, below
        which the input stays silent. 0: noise in the clips is treated as signal.
    max_batches
        The largest number of calibration batches (of clips for a stream); None: all. Data of any
        length are read once, a batch at a time: statistics use all samples, while thresholds,
        plans, checks and tuning run repeatedly on up to 4,096 of them that fit in 1 GiB, spread
        evenly over the data (``core/samples.py``). All clips are kept in memory.
    seed
        The random seed: of samples for quantiles, held-out samples, Poisson input.
    carries
        For each argument of forward that is fed back, the position of the output that feeds it in
        the next frame: ``{"h": 1}`` for ``forward(x, h) -> (y, h)``, a key, or a tuple of these for
        nested outputs. The calibration data must then be a clip (``converters/carried.py``).

    Raises InputError for options that are out of range, contradictory, or not used by any neuron.
    """

    method: str | Mapping[str, str] = "signgd"
    time_steps: int | None = None
    preset: str | None = None
    schedule: Schedule | None = None
    input_coding: str | None = None
    input_scale: float | None = None
    scale: str | float | Mapping[str, str | float] | None = None
    resting: str | None = None
    momentum: float = 0.0
    members: int | Mapping[str, int] | None = None
    dead_zone: float | Mapping[str, float] | None = None
    signed: bool | None = None
    keep: Sequence[str] = ()
    forms: Forms | None = None
    tune: bool | None = None
    tune_seconds: float | None = None
    objective: str | float = "error"
    neurons: Mapping[Operation, Entry] | None = None
    sizes: Sequence[Sequence[int]] = ()
    stream: bool | Motion = False
    noise: float = 0.0
    max_batches: int | None = 32
    seed: int = 0
    carries: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.time_steps is not None:
            check_time_steps(self.time_steps)
        for name in ("method", "members", "dead_zone", "scale"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and list(value) == [""]:
                object.__setattr__(self, name, value[""])
        self._spell()
        self._check_choices()
        self._check_dead_zone()
        self._check_stream()
        self._plan()
        self._check_scale()
        self._check_numbers()
        _check("tune", self.tune, self.tune in (None, True, False), "True, False or None")
        self._check_objective()
        self._check_seconds()
        _check("signed", self.signed, self.signed in (None, True, False), "True, False or None")
        paths = not isinstance(self.keep, str) and all(isinstance(p, str) and p for p in self.keep)
        _check("keep", self.keep, paths, "a list of module paths, such as ['head']")
        object.__setattr__(self, "keep", tuple(self.keep))
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        most = self.max_batches
        _check("max_batches", most, most is None or most >= 1, "at least 1")
        _check("seed", self.seed, isinstance(self.seed, int), "an integer")
        self._check_read()

    def _spell(self) -> None:
        """Names of another case are the same names: "signGD"."""
        known: dict[str, Iterable[str]] = {"method": METHODS, "scale": SCALES, "preset": PRESETS}
        known |= {"input_coding": CODINGS, "resting": RESTING}
        for argument, names in known.items():
            value = getattr(self, argument)
            if isinstance(value, Mapping):
                value = {path: spelled(each, names) for path, each in value.items()}
            object.__setattr__(self, argument, spelled(value, names))

    def _plan(self) -> None:
        """T and m where they are not given: one step of several members where silence is free."""
        chosen = self.chosen
        exact = chosen["input_coding"] == "exact" and chosen["schedule"] is None
        one = self.method == "signgd" and exact and _any(chosen["dead_zone"])
        if self.time_steps is not None:
            return
        if self.streams:  # as many members as the clips need
            object.__setattr__(self, "time_steps", 1)
            return
        if one and self.members is None:
            object.__setattr__(self, "members", MEMBERS)
        if one and isinstance(self.members, Mapping):
            object.__setattr__(self, "members", {"": MEMBERS, **self.members})
        several = one and self.members != 1
        object.__setattr__(self, "time_steps", 1 if several else TIME_STEPS)

    @property
    def streams(self) -> bool:
        """Whether the plan is one for streams."""
        return self.stream is not False

    @property
    def motion(self) -> Motion | None:
        """How stills move that stand for clips."""
        return self.stream if isinstance(self.stream, Motion) else None

    @property
    def steps(self) -> int:
        """T."""
        assert self.time_steps is not None
        return self.time_steps

    @cached_property
    def chosen(self) -> Mapping[str, Any]:
        """Schedule, codings, scales, forms and the like: the preset's where none is given."""
        chosen = dict(PRESETS[self.preset or "default"])
        chosen |= STREAM if self.streams else {}
        chosen["forms"] = forms({} if self.forms is None else self.forms, chosen["forms"])
        if self.method == "subgradient":
            chosen["schedule"] = AVERAGING
        for name in ("schedule", "input_coding", "input_scale", "scale", "resting", "dead_zone"):
            if getattr(self, name) is not None:
                chosen[name] = getattr(self, name)
        usual = 0.0 if self.momentum else PRESETS[self.preset or "default"]["dead_zone"]
        if self.dead_zone is None:
            chosen["dead_zone"] = usual
        elif isinstance(self.dead_zone, Mapping):
            chosen["dead_zone"] = {"": usual, **self.dead_zone}
        return chosen

    @property
    def options(self) -> Options:
        """Of lowering."""
        return Options(self.chosen["forms"], guard=self.chosen["guard"])

    @property
    def rows(self) -> Mapping[Operation, Entry]:
        """Which operation is which neuron."""
        return NEURONS if self.neurons is None else self.neurons

    def method_of(self, node: Function) -> str:
        if isinstance(self.method, str):
            return self.method
        return by_path(self.method, node) or "signgd"

    def members_of(self, node: Function) -> int | None:
        """The m asked for at a neuron, None where the choice is the planner's."""
        return by_path(self.members, node) if isinstance(self.members, Mapping) else self.members

    def dead_zone_of(self, node: Function) -> float:
        theta = self.chosen["dead_zone"]
        return float(by_path(theta, node) if isinstance(theta, Mapping) else theta)

    def keeps(self, node: Function) -> bool:
        return any(belongs(node, path) for path in self.keep)

    def _check_choices(self) -> None:
        if not isinstance(self.method, (str, Mapping)):
            raise InputError(
                f"method is a name or a dict from module paths to names, but it is {self.method!r}."
            )
        methods = [self.method] if isinstance(self.method, str) else self.method.values()
        choices: list[tuple[str, Any, Iterable[str]]] = [
            *(("method", m, METHODS) for m in methods),
            ("preset", self.preset or "default", PRESETS),
            ("input_coding", self.input_coding or "exact", CODINGS),
            ("resting", self.resting or "zero", RESTING),
        ]
        for name, value, known in choices:
            _check(name, value, value in tuple(known), f"one of {', '.join(known)}", known)

    def scale_of(self, node: Function) -> str | float:
        scale = self.chosen["scale"]
        found = by_path({"": "fitted", **scale}, node) if isinstance(scale, Mapping) else scale
        return found  # type: ignore[no-any-return]

    def _check_scale(self) -> None:
        given = self.scale if isinstance(self.scale, Mapping) else {"": self.scale}
        for value in given.values():
            if isinstance(value, str):
                name, _, share = value.partition(":")
                fits = name in SCALES and (not share or name in QUANTILES and _is_share(share))
            else:
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                fits = value is None or (number and 0 < value < math.inf)
            known = f"one of {', '.join(SCALES)}, channel:0.999 or a positive number"
            _check("scale", value, fits, known, SCALES)

    def _check_numbers(self) -> None:
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise InputError(
                "schedule is ExponentialSchedule(0.15, 0.95) or another schedule, not "
                f"{self.schedule!r}."
            )
        try:
            if self.schedule is not None:
                self.schedule(self.steps)
        except ValueError as error:
            raise InputError(
                f"the schedule ends before time_steps = {self.time_steps}: {error}"
            ) from error
        members = self.members.values() if isinstance(self.members, Mapping) else (self.members,)
        fits = all(m is None or (isinstance(m, int) and m is not True and m >= 1) for m in members)
        range_ = "an integer of at least 1, or a dict from module paths to integers"
        _check("members", self.members, fits, range_)
        scale = self.input_scale
        _check("input_scale", scale, scale is None or 0 < scale < math.inf, "positive and finite")

    def _check_dead_zone(self) -> None:
        if self.dead_zone is None:
            return
        by_path = (
            {"": self.dead_zone} if not isinstance(self.dead_zone, Mapping) else self.dead_zone
        )
        given = tuple(by_path.values())
        for theta in given:
            # read in float32, where what is nearer to 1 is 1
            fits = isinstance(theta, (int, float)) and 0 <= theta < 1 - 2**-25
            _check("dead_zone", theta, fits, "a fraction of the step size, in [0, 1)")
        if not any(given):
            return
        other = "preset='paper'" if self.preset == "paper" else f"momentum={self.momentum!r}"
        if self.preset == "paper" or self.momentum:
            raise InputError(
                f"neurons with {other} fire at every step, but dead_zone is {self.dead_zone!r}; "
                "leave one of them out."
            )

    def _check_stream(self) -> None:
        """What has no place in a plan for streams."""
        known = isinstance(self.stream, (bool, Motion))
        _check("stream", self.stream, known, "True, False or sg.Motion(pixels=0.2)")
        number = isinstance(self.noise, (int, float)) and not isinstance(self.noise, bool)
        fits = number and 0 <= self.noise < math.inf
        _check("noise", self.noise, fits, "a number from 0 on")
        if not self.streams:
            if self.noise:
                raise InputError(
                    f"noise is {self.noise!r}, the noise of a stream's sensor; pass stream=True "
                    "and clips [F, N, ...], or leave it out."
                )
            return
        methods = [self.method] if isinstance(self.method, str) else self.method.values()
        silent = self.chosen["dead_zone"]
        zones = silent.values() if isinstance(silent, Mapping) else [silent]
        reasons = {
            "preset='paper' is planned for still inputs": self.preset == "paper",
            "momentum carries over from one frame to the next": self.momentum != 0,
            "the rate-coded baseline averages over a still input": "subgradient" in methods,
            "Poisson coding draws new spikes for each frame": self.input_coding == "poisson",
            "a neuron without a dead zone fires in every frame; choose dead_zone=2 / 3": not all(
                zones
            ),
            "all steps of a stream have the same size; leave schedule out, and pass scale": (
                self.schedule is not None
            ),
            "step sizes are chosen on the clips, not learned; leave tune and tune_seconds out, "
            "and pass objective=0.016 for fewer additions": bool(self.tune or self.tune_seconds),
        }
        for why, holds in reasons.items():
            if holds:
                raise InputError(f"stream={self.stream!r}: {why}.")

    def _check_objective(self) -> None:
        """Raises InputError for an objective that has no effect."""
        if not weight_of(self.objective):
            return
        reason = {
            "tune is False, so nothing is learned": self.tune is False and not self.streams,
            "the additions of neurons without dead zones do not depend on what is learned; pass "
            "dead_zone=2 / 3": not _any(self.chosen["dead_zone"]),
        }
        for why, holds in reason.items():
            if holds:
                raise InputError(f"objective is {self.objective!r}, but {why}.")

    def _check_seconds(self) -> None:
        seconds = self.tune_seconds
        fits = isinstance(seconds, (int, float)) and 0 < seconds < math.inf
        fits = seconds is None or (fits and not isinstance(seconds, bool))
        _check("tune_seconds", seconds, fits, "positive and finite, or None for no limit")
        if seconds is not None and self.tune is False:
            raise InputError(
                f"tune_seconds is {seconds!r}, but tune is False, so nothing is learned. Leave one "
                "of them out."
            )

    def _check_read(self) -> None:
        """Raises InputError for an argument that no neuron of the chosen methods uses."""
        method, coding = self.method, self.chosen["input_coding"]
        methods = {method} if isinstance(method, str) else {method.get("", "signgd")}
        methods |= set() if isinstance(method, str) else set(method.values())
        given = {
            "schedule": self.schedule is not None,
            "momentum": self.momentum != 0,
            "resting": self.chosen["resting"] == "mean",
            "members": self.members is not None,
            "dead_zone": self.dead_zone is not None,
            "signed": self.signed is not None,
        }
        coded = {"spike": ("schedule", "momentum", "dead_zone"), "real": ("schedule", "momentum")}
        for name in (
            name
            for name, is_given in given.items()
            if is_given and name not in coded.get(coding, ())
        ):
            readers = sorted(m for m, row in METHODS.items() if name in row.reads)
            if not methods & set(readers):
                raise InputError(
                    f"{name} has no meaning for method={method!r} with input_coding={coding!r}; "
                    f"it applies to {' and '.join(readers)} neurons. Leave it out."
                )


@dataclass(frozen=True, eq=False)
class Context:
    """The context of a pass besides the network: the model that was passed in, the settings, and
    the calibration data, batches [B, ...], ``Inputs`` where the model takes several tensors.

    ``batches`` are, of much data, samples from all over it; ``data`` is what goes through all of
    it. Where ``distributed`` is given all processes have the same network, settings and batches.
    """

    model: nn.Module
    settings: Settings
    batches: Sequence[Any]
    clips: Sequence[Any] = ()  # of a stream [F, N, ...]; the batches are their frames
    distributed: Distributed | None = None

    @cached_property
    def data(self) -> Batches:
        return self.batches if isinstance(self.batches, Batches) else Batches(self.batches)

    @property
    def first(self) -> Any:
        """The first batch."""
        return self.data.first

    @property
    def samples(self) -> int:
        return self.data.samples

    @property
    def input_scale(self) -> float:
        """The amplitude of coded inputs."""
        scale: float | None = self.settings.chosen["input_scale"]
        carried = self.settings.carries
        reach = [most for name, most in self.data.reach.items() if name not in carried]
        return scale or max(reach) or 1.0


def check_time_steps(time_steps: Any) -> None:
    if not isinstance(time_steps, int) or isinstance(time_steps, bool) or time_steps < 1:
        raise InputError(f"time_steps is an integer of at least 1, but it is {time_steps!r}.")


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _check(name: str, value: Any, fits: bool, range_: str, known: Iterable[str] = ()) -> None:
    if not fits:
        raise InputError(f"{name} is {range_}, but it is {value!r}.{near(value, known)}")


def _any(theta: float | Mapping[str, float]) -> bool:
    """Whether some neurons may have a dead zone."""
    if not isinstance(theta, Mapping):
        return bool(theta)
    return any({"": DEAD_ZONE, **theta}.values())  # neurons that no path names have the default


def belongs(node: Node, path: str) -> bool:
    """Whether a node is at, or below, a module path; a module called twice has several."""
    places = (node.name, getattr(node, "module", ""))
    return bool(path) and any(where == path or where.startswith(f"{path}.") for where in places)


def by_path(entries: Mapping[str, Any], node: Function) -> Any:
    """The entry of the longest module path that a neuron belongs to, else that of ""; or None."""
    matches = [path for path in entries if belongs(node, path)]
    return entries[max(matches, key=len)] if matches else entries.get("")
