r"""Fine-tuning: further training of a converted network as a spiking network.

.. math::
    L = \mathrm{CE}(y, \text{labels}) + \kappa\, \tau^2\, \mathrm{KL}\bigl(\mathrm{softmax}(z /
    \tau) \,\|\, \mathrm{softmax}(y / \tau)\bigr) + \lambda\, A / A_{max}

y are the outputs after T steps, z those of the source network before training, the teacher; without
labels the first term is omitted, and if the outputs are not those of a classifier the second is
their squared distance relative to the square of z. A is the number of additions per
multiply-accumulate of the source (``additions``). The weight :math:`\lambda` is adapted: it grows
while A exceeds its present limit, which falls from the initial A to :math:`A_{max}` in the first
``REACHED`` of the training, and shrinks otherwise. Gradients are the dithered ones
(``neurons/signgd/gradient.py``).

The optimiser is Adam with a one-cycle learning rate: up to ``lr`` in the first ``WARM`` of the
training, then down to 0. Parameters of neurons change by ``NEURONS`` times the rate in their own
unit (``Node.learning``): a fraction of a scale, of the finest step, of a dead zone. After each step
they are clipped to their range.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..core.given import given as one_form
from ..core.inputs import Batch, Inputs, batch_of, samples_of, tensor_of
from ..core.module import NetworkModule
from ..core.network import SpikingNetwork, leaves
from ..core.progress import progress, samples_in
from ..core.running import build
from ..core.training import collect, learned
from ..errors import FormatError, InputError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from .additions import Prices
from .additions import additions as additions_of
from .calibration import FEWEST
from .planning import CalibrationWarning

BATCH = 64
HELD_OUT, MOST_HELD_OUT = 0.1, 2000  # of tensors, where no validation= is given
WARM, REACHED = 0.2, 0.5
NEURONS = 10.0
CLIP = 5.0  # norm of a gradient
# of the weight of additions: the first, its logarithm's change in a course, and that at once
FIRST, FASTEST, PROMPT = 0.05, 8.0, 2.0


class Epoch(NamedTuple):
    """One evaluation on the held-out samples, and the training since the last one.

    ``loss`` is the mean of L without additions while training (None before), ``accuracy`` of labels
    and ``agreement`` with the source network on held-out samples, ``distance`` from its outputs
    there as in L, None where there are none of these; ``additions`` for each MAC of the source,
    None where they are not counted; ``weight`` lambda, ``seconds`` since the start.
    """

    epoch: int
    loss: float | None
    accuracy: float | None
    agreement: float | None
    distance: float | None
    additions: float | None
    weight: float
    seconds: float


@dataclass(frozen=True, eq=False)
class FineTuned(Rounded):
    """``network`` is the best on held-out samples; ``best`` is its index in ``history``."""

    network: SpikingNetwork
    history: tuple[Epoch, ...]
    best: int

    def to_dict(self) -> dict[str, Any]:
        return {"best": self.best, "history": [each._asdict() for each in self.history]}

    def __str__(self) -> str:
        lines = ["  epoch     loss  accuracy  agreement   distance  additions   seconds"]
        for k, row in enumerate(self.history):
            shares = (_percent(row.accuracy), _percent(row.agreement))
            loss, far = (_places(value, 4) for value in (row.loss, row.distance))
            lines.append(
                f"{row.epoch:>7}  {loss:>7}  {shares[0]:>8}  {shares[1]:>9}  {far:>9}  "
                f"{_places(row.additions, 3):>9}  {row.seconds:>8.1f}"
                + "  <- kept"
                * (k == self.best)
            )
        return "\n".join(lines)


def _places(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


@named_arguments
def fine_tune(
    network: SpikingNetwork,
    loader: Any,
    *,
    validation: Any = None,
    labels: bool | None = None,
    distill: float = 1.0,
    temperature: float | None = 2.0,
    additions: float | None = None,
    epochs: int = 3,
    seconds: float | None = None,
    batch_size: int = BATCH,
    lr: float = 1e-3,
    amp: bool = False,
    resume: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    simulator: str = "spikingjelly",
) -> FineTuned:
    """Trains a converted network further for its ``time_steps``; see the module's docstring.

    ``loader`` gives batches (x, y) or x, y class indices; or it is such a pair of tensors, x alone,
    or a ``Dataset``, of which batches of ``batch_size`` are drawn and, unless ``validation`` is
    given, a tenth is held out; several inputs are a dict by name. ``labels`` False ignores y; None
    uses it if there is one. ``distill`` is kappa, ``temperature`` tau; outputs [B, k] of two or
    more count as classes unless it is None: then the loss of all outputs is their squared distance,
    and accuracy is not measured. ``additions`` is A_max. Fewer than 64 samples cause a warning, if
    their number is known. ``seconds`` ends training early, with the learning rate scheduled
    accordingly. ``amp`` computes linear operations in bfloat16 while training. ``resume`` is a file
    that is written after each epoch; if it exists, training continues from it, with the same result
    (if a loader draws from torch's own generator).

    The best by held-out samples is kept (of those within ``additions``, if there are any): by
    accuracy, without labels by agreement, without a classifier by the distance from the source's
    outputs; without held-out samples the last. Raises InputError for a network or data that cannot
    be trained, FormatError for a resume file that is invalid or cannot be written.
    """
    if not isinstance(network, SpikingNetwork):
        raise InputError(
            "fine_tune takes the SpikingNetwork that convert returned, not "
            f"{type(network).__name__}; get it from a file by load(path), from a built module as "
            "module.network, from a trainable one by collect(module)."
        )
    if network.stream:
        raise InputError(
            "fine_tune trains for still inputs; the step sizes of a plan for streams are exact "
            "and training would change them; train a plan without stream=True, or the model "
            "itself."
        )
    course = Course(epochs, seconds, lr, distill, temperature, additions, amp, seed).checked()
    path = None if resume is None else _writable(Path(resume))
    data, held_out = _data(loader, validation, batch_size, seed)
    _warn_of_few(data, held_out)
    grad = torch.inference_mode(False), torch.enable_grad()  # whatever the caller is in
    with torch.random.fork_rng(devices=[]), grad[0], grad[1]:
        torch.default_generator.manual_seed(course.seed)
        tuner = _Tuner(network, data, held_out, labels, course, device, simulator)
        return tuner.run(path)


def _writable(path: Path) -> Path:
    """Raises InputError, before the first epoch, for what no file can be."""
    if (path.exists() and not path.is_file()) or not path.absolute().parent.is_dir():
        raise InputError(
            f"resume must be a file in an existing folder, but it is '{path}'; create the "
            "folder, or choose another file."
        )
    return path


@dataclass(frozen=True)
class Course:
    """How a network is fine-tuned; a resume file is of one course."""

    epochs: int
    seconds: float | None
    lr: float
    distill: float
    temperature: float | None
    additions: float | None
    amp: bool
    seed: int

    def checked(self) -> Course:
        """With Python's own numbers. Raises InputError, naming what cannot be."""
        if not isinstance(self.epochs, int) or isinstance(self.epochs, bool) or self.epochs < 1:
            raise InputError(f"epochs is an integer of at least 1, but it is {self.epochs!r}.")
        for name in ("seconds", "lr", "temperature", "additions"):
            value = getattr(self, name)
            left_out = value is None and name != "lr"
            if not left_out and not (_is_number(value) and 0 < value < math.inf):
                raise InputError(f"{name} is a positive number, but it is {value!r}.")
        if not hasattr(self.seed, "__index__"):
            raise InputError(f"seed is an integer, but it is {self.seed!r}.")
        if not (_is_number(self.distill) and 0 <= self.distill < math.inf):
            raise InputError(f"distill is a number of at least 0, but it is {self.distill!r}.")
        own: dict[str, Any] = {k: float(v) for k, v in vars(self).items() if isinstance(v, float)}
        return replace(self, **own, seed=int(self.seed))  # not NumPy's, which files cannot hold

    def rate(self, done: float) -> float:
        """The rate where ``done`` of the course is behind."""
        if done < WARM:
            return self.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * done / WARM)) / 2)
        return self.lr * (1 + math.cos(math.pi * min(1.0, (done - WARM) / (1 - WARM)))) / 2


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# -- samples --------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Tensors of which batches are drawn, in an order of torch's generator, or as they are."""

    x: Batch
    y: Tensor | None
    size: int
    shuffled: bool

    def __len__(self) -> int:  # type: ignore[override]
        return -(-len(self.x) // self.size)

    def batches(self) -> Iterator[Any]:
        n = len(self.x)
        order = torch.randperm(n) if self.shuffled else torch.arange(n)
        for pick in order.split(self.size):
            yield self.x[pick] if self.y is None else (self.x[pick], self.y[pick])


def _data(loader: Any, validation: Any, size: int, seed: int) -> tuple[Any, Any]:
    """What is trained on, and what is held out or None."""
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is an integer of at least 1, but it is {size!r}.")
    loader = one_form(loader)
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        return _of_dataset(loader, validation, size, seed)
    data = _samples(loader, size, True)
    if validation is not None:
        return data, _samples(validation, 4 * size, False)
    if not isinstance(data, Samples):
        return data, None
    n = len(data.x)
    held = min(MOST_HELD_OUT, round(HELD_OUT * n))
    if held == 0:
        return data, None
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[:held], order[held:]
    x, y = data.x, data.y
    return (
        Samples(x[rest], None if y is None else y[rest], size, True),
        Samples(x[held_out], None if y is None else y[held_out], 4 * size, False),
    )


def _warn_of_few(*data: Any) -> None:
    """Where it is known that there are fewer samples than are enough to learn from."""
    counts = [_samples_of(each) for each in data]
    total = None if counts[0] is None else sum(n or 0 for n in counts)
    if total is not None and total < FEWEST:
        warnings.warn(
            f"fine_tune has {total} samples, which may be learned by heart; pass {FEWEST} or more.",
            CalibrationWarning,
            stacklevel=3,
        )


def _samples_of(data: Any) -> int | None:
    return len(data.x) if isinstance(data, Samples) else samples_in(data)


def _of_dataset(data: Any, validation: Any, size: int, seed: int) -> tuple[Any, Any]:
    """As of tensors, but that samples are loaded as they are needed."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    held = 0 if validation is not None else min(MOST_HELD_OUT, round(HELD_OUT * len(data)))
    trained = DataLoader(Subset(data, order[held:]), size, shuffle=True)
    if validation is not None:
        return trained, _samples(validation, 4 * size, False)
    return trained, DataLoader(Subset(data, order[:held]), 4 * size) if held else None


def _samples(given: Any, size: int, shuffled: bool) -> Any:
    """Tensors as ``Samples``, a loader as it is."""
    given = one_form(given)
    x, y = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if isinstance(x, (Tensor, Inputs, Mapping)):
        return _whole(batch_of(x), y, size, shuffled)
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return DataLoader(given, size, shuffle=shuffled)
    if not isinstance(given, Iterable):
        raise InputError(
            f"a loader gives batches (x, y) or x, or is such tensors, not {type(given).__name__}."
        )
    return given


def _whole(x: Batch, y: Any, size: int, shuffled: bool) -> Samples:
    if not (y is None or isinstance(y, Tensor)):
        raise InputError(f"labels are a tensor of class indices [N], not {type(y).__name__}.")
    each = [*x.tensors.values()] if isinstance(x, Inputs) else [x]
    lengths = {len(part) if part.dim() else 0 for part in (*each, *([] if y is None else [y]))}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [list(part.shape) for part in each]
        raise InputError(
            "samples are x [N, ...] and y [N] with N >= 1, but they are "
            f"{', '.join(map(str, shapes))}" + ("." if y is None else f" and {list(y.shape)}.")
        )
    return Samples(x, y, size, shuffled)


def _batches(data: Any) -> Iterator[tuple[Any, Tensor | None]]:
    for batch in data.batches() if isinstance(data, Samples) else data:
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        if len(parts) not in (1, 2):
            raise InputError(f"a batch is x or (x, y), but the loader gives {len(parts)} values.")
        x = batch_of(parts[0])
        if not isinstance(x, (Tensor, Inputs)):
            raise InputError(f"a batch is tensors, x or (x, y), but x is {type(x).__name__}.")
        yield x, tensor_of(parts[1]) if len(parts) == 2 else None


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


# -- the course -----------------------------------------------------------------------------------


class _Tuner:
    def __init__(
        self,
        network: SpikingNetwork,
        data: Any,
        held_out: Any,
        labels: bool | None,
        course: Course,
        device: Any,
        simulator: str,
    ) -> None:
        self.network, self.data, self.held_out = network, data, held_out
        self.labels, self.course, self.device = labels, course, torch.device(device or "cpu")
        self.simulator = simulator
        self.classes = 0 if course.temperature is None else _classes(network)
        self.snn = build(network, simulator, trainable=True).to(self.device)
        self.source = NetworkModule(network, {}).to(self.device)
        check_budget(network, course.additions)
        self.learned = learned(self.snn.network)
        self.parameters = [each.parameter for each in self.learned]
        # what neurons learn moves in its own units, so that of weights is a group by itself
        weights = [p for p, how in self.learned if how.unit is None]
        neurons = [p for p, how in self.learned if how.unit is not None]
        self.adam = torch.optim.Adam([{"params": weights}, {"params": neurons}])
        self.weight, self.epoch, self.spent = FIRST, 0, 0.0
        self.history: list[Epoch] = []
        self.best = 0
        self.kept: list[Tensor] = []
        self.steps = _length(data)
        self.before: float | None = None  # additions of the network as it is

    def run(self, resume: Path | None) -> FineTuned:
        if resume is not None and resume.is_file():
            self._load(resume)
        begun = time.perf_counter() - self.spent
        if not self.history:
            self._look(None, begun)
            self.before = self.history[0].additions
        while self.epoch < self.course.epochs:
            done = self._train(begun)
            self.spent = time.perf_counter() - begun
            if resume is not None:
                self._save(resume)
            if done:
                break
        self._warn()
        return FineTuned(self._network(), tuple(self.history), self.best)

    def _train(self, begun: float) -> bool:
        """One epoch; whether the time is over."""
        losses, count, over = torch.zeros((), device=self.device), 0, False
        label = f"epoch {self.epoch + 1} of {self.course.epochs}"
        for x, y in progress(_batches(self.data), label, self.steps):
            done = self._done(count, begun)
            if done >= 1:
                over = True
                break
            losses += self._step(x, y, done)
            count += 1
        if not count and not over:
            again = " again; pass a DataLoader or tensors, not an exhausted iterator" * (
                self.epoch > 0
            )
            raise InputError(f"the loader gives no batches{again}.")
        self.steps = self.steps or count
        self.epoch += 1
        if count:
            mean = float(losses) / count
            if not math.isfinite(mean):
                raise InputError(
                    f"the loss is {mean} in epoch {self.epoch}: choose a smaller lr than "
                    f"{self.course.lr:g}, or look for NaN in the samples."
                )
            self._look(mean, begun)
        return over

    def _done(self, batches: int, begun: float) -> float:
        """The part of the course that is behind."""
        done = (
            self.epoch + batches / self.steps if self.steps else self.epoch
        ) / self.course.epochs
        if self.course.seconds is not None:
            done = max(done, (time.perf_counter() - begun) / self.course.seconds)
        return done

    def _step(self, x: Any, y: Tensor | None, done: float) -> Tensor:
        x, y = x.to(self.device), self._checked(x, y)
        rate = self.course.rate(done)
        for group, factor in zip(self.adam.param_groups, (1.0, NEURONS), strict=True):
            group["lr"] = rate * factor
        with torch.no_grad():
            want = _flat(self.source.ann(x))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.course.amp):
            have = self._outputs(x)
        loss = self._loss(have, want, y)
        whole = loss
        if self.course.additions is not None:
            spent = additions_of(self.snn)
            weight = self._weighed(float(spent.detach()), done)
            whole = loss + weight * spent / self.course.additions
        self.adam.zero_grad(set_to_none=True)
        whole.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self._move()
        self.snn.reset()
        return loss.detach()

    @torch.no_grad()
    def _move(self) -> None:
        """A step of Adam, what neurons learn in its units and within its bounds."""
        before = [None if how.unit is None else p.clone() for p, how in self.learned]
        self.adam.step()
        for (p, how), value in zip(self.learned, before, strict=True):
            if value is not None:
                unit = torch.as_tensor(how.unit).to(p) * (value if how.relative else 1.0)
                torch.addcmul(value, p - value, unit, out=p).clamp_(how.low, how.high)

    def _outputs(self, x: Any) -> list[Tensor]:
        """Each output after the last step [B, ...], float32."""
        with self.snn.for_sequences():
            outputs, _ = self.snn.advance(x, self.network.time_steps, {})
        return [value[-1].float() for value in leaves(outputs)]

    def _loss(self, have: list[Tensor], want: list[Tensor], y: Tensor | None) -> Tensor:
        parts = []
        if y is not None:
            parts.append(F.cross_entropy(have[0], y))
        if self.course.distill:
            parts.append(self.course.distill * self._distances(have, want))
        return torch.stack(parts).sum()

    def _distances(self, have: list[Tensor], want: list[Tensor]) -> Tensor:
        """The sum over the outputs."""
        pairs = zip(have, want, strict=True)
        return torch.stack([_distance(*pair, self.course.temperature) for pair in pairs]).sum()

    def _checked(self, x: Any, y: Tensor | None) -> Tensor | None:
        """y as it is learned: class indices of a classifier. Raises InputError."""
        if y is None and self.labels:
            raise InputError("labels=True, but a batch has none: pass batches (x, y).")
        if y is None or self.labels is False:
            if not self.course.distill:
                raise InputError("without labels there is nothing to learn where distill is 0.")
            return None
        classes = self.classes
        if not classes:
            raise InputError(
                "labels are learned only where the network has a single output [B, classes], "
                "with a temperature; pass labels=False to learn the source's outputs only."
            )
        if not isinstance(y, Tensor):
            raise InputError(f"labels are a tensor of class indices [B], not {type(y).__name__}.")
        if y.is_floating_point() or tuple(y.shape) != (samples_of(x),):
            raise InputError(
                f"labels are class indices [B], one for each sample, but y is {y.dtype} "
                f"{list(y.shape)} for {samples_of(x)} samples."
            )
        if not bool(((y >= 0) & (y < classes)).all()):
            raise InputError(
                f"labels are from 0 to {classes - 1}, as the network has {classes} classes, but "
                f"there are some from {int(y.min())} to {int(y.max())}."
            )
        return y.to(self.device, torch.int64)

    def _weighed(self, spent: float, done: float) -> float:
        """lambda in this step: what has grown, and at once more where more is spent."""
        budget = self.course.additions
        assert budget is not None
        before = max(self.before or 0.0, budget)
        aim = budget * (before / budget) ** max(0.0, 1 - done / REACHED)
        beyond = max(-1.0, min(1.0, 5 * (spent / aim - AIM)))
        step = FASTEST * beyond / (self.course.epochs * (self.steps or 400))
        self.weight = min(100.0, max(1e-3, self.weight * math.exp(step)))
        return self.weight * math.exp(PROMPT * beyond)

    # -- what is kept -----------------------------------------------------------------------------

    @torch.no_grad()
    def _look(self, loss: float | None, begun: float) -> None:
        """Measures the network on held-out samples, and keeps it where it is the best."""
        found = self._measured()
        epoch = Epoch(self.epoch, loss, *found, self.weight, time.perf_counter() - begun)
        self.history.append(epoch)
        first = len(self.history) == 1 or self.held_out is None
        if first or self._rank(epoch) > self._rank(self.history[self.best]):
            self.best = len(self.history) - 1
            self.kept = [p.detach().clone() for p in self.parameters]

    def _measured(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Accuracy, agreement, distance, additions, on held-out samples or else a first batch."""
        n, labelled, right, same, far = 0, 0, 0, 0, 0.0
        spent: float | None = 0.0
        batches = _batches(self.data if self.held_out is None else self.held_out)
        for x, y in batches:
            x, y = x.to(self.device), self._checked(x, y)
            have, want = self._outputs(x), _flat(self.source.ann(x))
            each = self._additions()
            spent = None if each is None or spent is None else spent + each * samples_of(x)
            self.snn.reset()
            n += samples_of(x)
            far += float(self._distances(have, want)) * samples_of(x)
            if self.classes:
                guess = have[0].argmax(1)
                same += int((guess == want[0].argmax(1)).sum())
                right += int((guess == y).sum()) if y is not None else 0
                labelled += samples_of(x) if y is not None else 0
            if self.held_out is None:
                break
        if not n:
            raise InputError("the held-out samples, or the loader, give no batches.")
        spent = None if spent is None else spent / n
        if self.held_out is None:
            return None, None, None, spent
        shares = right / labelled if labelled else None, same / n if self.classes else None
        return *shares, far / n, spent

    def _additions(self) -> float | None:
        """None where they cannot be counted, which a budget alone asks for."""
        try:
            return float(additions_of(self.snn).detach())
        except InputError:
            if self.course.additions is not None:
                raise
            return None

    def _rank(self, epoch: Epoch) -> tuple[float, ...]:
        budget = self.course.additions
        beyond = 0.0 if budget is None else max(0.0, (epoch.additions or 0.0) - budget)
        assert epoch.distance is not None  # of held-out samples
        worth = epoch.accuracy if epoch.accuracy is not None else epoch.agreement
        return -beyond, -epoch.distance if worth is None else worth, -epoch.distance

    def _network(self) -> SpikingNetwork:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(value)
        network = collect(self.snn)
        course = {**vars(self.course), "best": self.history[self.best]._asdict()}
        return network.replace(provenance={**network.provenance, "fine_tuning": course})

    def _warn(self) -> None:
        budget, found = self.course.additions, self.history[self.best].additions
        if budget is not None and found is not None and found > budget:
            warnings.warn(
                f"fine_tune: {found:.3g} additions per MAC of the source remain, more than "
                f"additions={budget:g}. Train for more epochs, or start from a network with "
                "fewer members.",
                stacklevel=4,
            )

    # -- the resume file --------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        """A whole file in the place of the one before; ``torch.load`` reads it weights_only."""
        found = {
            "of": fingerprint(self.network),
            "course": self._settings(),
            "parameters": [p.detach().cpu() for p in self.parameters],
            "kept": [value.cpu() for value in self.kept],
            "adam": self.adam.state_dict(),
            "rng": torch.get_rng_state(),
            "history": [list(epoch) for epoch in self.history],
            **{name: getattr(self, name) for name in _NUMBERS},
        }
        beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            torch.save(found, beside)
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:  # the second is torch's
            raise FormatError(f"'{path}' cannot be written ({error}).") from error
        finally:
            beside.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        """All that the result depends on beside the network; of a loader its length alone."""
        size = self.data.size if isinstance(self.data, Samples) else None
        return {
            **vars(self.course),
            "samples": _described(self.data),
            "validation": _described(self.held_out),
            "batch_size": size,
            "labels": self.labels,
            "simulator": self.simulator,
        }

    def _load(self, path: Path) -> None:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            other = self._other(found["of"], found["course"])
            if other is None:
                self._set(found)
        except Exception as error:  # whatever torch raises for another file
            raise FormatError(
                f"'{path}' was not written by fine_tune(resume=); choose another file, or delete "
                "it."
            ) from error
        if other is not None:
            raise InputError(f"'{path}' is of {other}choose another file, or delete it.")

    def _other(self, network: str, course: dict[str, Any]) -> str | None:
        """What a file is of, where that is not what is trained now."""
        if network != fingerprint(self.network):
            return "another network; "
        now = self._settings()
        changed = [f"{k}={course[k]!r}" for k, value in now.items() if course[k] != value]
        return f"a training with {', '.join(changed)}; continue with these, " if changed else None

    @torch.no_grad()
    def _set(self, found: dict[str, Any]) -> None:
        """Raises what it may for values that ``_save`` did not write."""
        self.adam.load_state_dict(found["adam"])
        torch.set_rng_state(found["rng"])
        self.history = [Epoch(*row) for row in found["history"]]
        for name, kinds in _NUMBERS.items():
            setattr(self, name, _of(kinds, found[name]))
        self.kept = [value.to(self.device) for value in found["kept"]]
        pairs = [*zip(self.parameters, found["parameters"], strict=True)]
        for parameter, value in pairs + [*zip(self.parameters, self.kept, strict=True)]:
            _of_shape(parameter.shape, value)
        for moved, state in self.adam.state.items():
            _of_shape(moved.shape, state["exp_avg"], state["exp_avg_sq"])
        for parameter, value in pairs:
            parameter.copy_(value)
        self.history[self.best]


def _of(kinds: Any, value: Any) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r} is of another type")
    return value


def _of_shape(shape: torch.Size, *values: Tensor) -> None:
    if any(value.shape != shape for value in values):
        raise ValueError(f"values of another shape than {list(shape)}")


_NUMBERS: dict[str, Any] = {
    "weight": float,
    "epoch": int,
    "spent": float,
    "best": int,
    "steps": (int, type(None)),
    "before": (float, type(None)),
}
AIM = 0.95  # of what additions may be, so that held-out samples stay within it


def fingerprint(network: SpikingNetwork) -> str:
    """Of the nodes and all numbers of a network."""
    nodes = [
        [node.kind, {each.name: getattr(node, each.name) for each in fields(node)}]
        for node in network.nodes
    ]
    return digest([*nodes, [network.outputs, network.time_steps]])


def _described(data: Any) -> str | None:
    """How many samples there are, and a digest of their numbers; of a loader its batches."""
    if data is None:
        return None
    if isinstance(data, Samples):
        x = data.x.tensors if isinstance(data.x, Inputs) else data.x
        return f"{len(data.x)} of {digest([x, data.y])[:16]}"
    return f"a loader of {_length(data)} batches"


def digest(values: Any) -> str:
    found = hashlib.sha256()

    def put(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for name, item in value.items():
                found.update(str(name).encode())
                put(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                put(item)
        else:  # of a row the name: its function has an address
            found.update(str(getattr(value, "name", value)).encode())

    put(values)
    return found.hexdigest()


def _flat(outputs: Any) -> list[Tensor]:
    return [value.float() for value in leaves(outputs)]


def _classes(network: SpikingNetwork) -> int:
    """How many classes a classifier's one output has, 0 of another."""
    if not isinstance(network.outputs, str):
        return 0
    shape = network[network.outputs].shape
    last = shape[1] if len(shape) == 2 else 0
    return last if isinstance(last, int) and last > 1 else 0


def _distance(have: Tensor, want: Tensor, temperature: float | None) -> Tensor:
    if temperature is not None and have.dim() == 2 and have.shape[1] > 1:
        log = F.log_softmax(have / temperature, 1)
        aim = F.log_softmax(want / temperature, 1)
        kl = F.kl_div(log, aim, reduction="batchmean", log_target=True)
        return temperature**2 * kl
    return (have - want).square().mean() / want.square().mean().clamp(min=1e-12)


def check_budget(network: SpikingNetwork, additions: float | None) -> None:
    """Raises InputError where additions cannot come down to the budget."""
    if additions is None:
        return
    prices = Prices.of(network, network.time_steps)
    left = prices.fixed / max(1.0, prices.source)
    if additions <= left:
        raise InputError(
            f"additions={additions:g} cannot be reached: {left:.3g} per MAC of the source are "
            "products of real values (of the input and of functions), which remain however few "
            "spikes are sent."
        )
