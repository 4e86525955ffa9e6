"""How close outputs are to those of the source network, for any task.

A metric is a name of ``METRICS`` or a function ``(have, want) -> float`` of all samples. An output
is one tensor of what the network returns: ``"output"`` if there is only one, otherwise its position
in tuples and dicts, such as ``"0"``, ``"logits"`` or ``"boxes.1"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..names import near
from .registry import look_up
from .structures import leaves

Shape = Sequence[int]
Function = Callable[[Tensor, Tensor], Any]  # (have, want), [N, ...] each, to a number
Choice = str | Function | Sequence[str | Function]
Choices = Choice | Mapping[str, Choice] | None


@dataclass(frozen=True)
class Metric:
    """A row of ``METRICS``. To add a metric is to add a row::

        METRICS["bias"] = Metric(lambda have, want: (have - want).double().flatten(1), torch.mean)

    ``part(have, want)``, [B, ...] each, is the contribution of one batch: rows, which are
    concatenated and kept until the end, or with ``sums`` numbers that add up. ``merge`` combines
    the parts of earlier and later batches in another way; memory then does not grow with the data.
    ``value`` computes one number from all parts; it is not finite if undefined. ``fits`` tests the
    shapes that the metric is for, ``of`` describes them in words.
    """

    part: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Any]
    of: str = "outputs of any shape"
    fits: Callable[[Shape], bool] = lambda shape: True
    sums: bool = False
    percent: bool = False  # how it is shown
    merge: Callable[[Tensor, Tensor], Tensor] | None = None

    def merged(self, before: Tensor, part: Tensor) -> Tensor:
        """Of all batches so far and the next one."""
        return before + part if self.merge is None else self.merge(before, part)

    @property
    def rows(self) -> bool:
        """Whether its parts are rows, all of which are kept."""
        return self.merge is None and not self.sums


# -- the numbers ----------------------------------------------------------------------------------


def _squares(have: Tensor, want: Tensor) -> Tensor:
    have, want = have.double(), want.double()
    return torch.stack([(have - want).square().sum(), want.square().sum()])


def _each(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """What the distances of the values [B, values] of each sample bring."""
    return lambda have, want: distance(_flat((have.double() - want.double()).abs()), _flat(want))


def _mean(x: Tensor) -> Tensor:
    """A sum, and of how many numbers."""
    return torch.stack([x.sum(), torch.tensor(x.numel(), dtype=x.dtype, device=x.device)])


def _flat(x: Tensor) -> Tensor:
    """[B, values]; what has no batch counts as one sample."""
    return x.double().reshape(len(x) if x.dim() else 1, -1)


def _relative(far: Tensor, size: Tensor) -> Tensor:
    """Sums of |y - z| / |z| and how many those are, without pixels where z is 0."""
    size = size.abs()
    return torch.stack([(far / size)[size > 0].sum(), (size > 0).sum()])


def _both(have: Tensor, want: Tensor) -> Tensor:
    return torch.stack([have, want], 1)


def _moments(have: Tensor, want: Tensor) -> Tensor:
    """[4, values]: samples, mean and squared deviations of want, squared distances of have."""
    have, want = _flat(have), _flat(want)
    # about a sample: of values that never change the mean is exactly that value
    mean = want[0] + (want - want[0]).mean(0)
    samples = torch.full_like(mean, len(want))
    return torch.stack(
        [samples, mean, (want - mean).square().sum(0), (have - want).square().sum(0)]
    )


def _merged_moments(before: Tensor, part: Tensor) -> Tensor:
    """Source: Chan, Golub and LeVeque, 1979, of two sets of samples."""
    (n, mean, squares, left), (m, other, more, further) = before, part
    both, apart = n + m, other - mean
    squares = squares + more + apart.square() * n * m / both
    return torch.stack([both, mean + apart * m / both, squares, left + further])


def _r2(moments: Tensor) -> Tensor:
    """1 - residual / total sum of squares, the mean over the values of an output.

    A value that never changes counts 1 where it is met, else 0, as in scikit-learn.
    """
    _, _, total, left = moments
    constant = torch.where(left == 0, 1.0, 0.0).double()
    return torch.where(total > 0, 1 - left / total, constant).mean()


def _agreeing(dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    def part(have: Tensor, want: Tensor) -> Tensor:
        same = have.argmax(dim) == want.argmax(dim)
        return torch.tensor([int(same.sum()), same.numel()]).double()

    return part


def _confusion(have: Tensor, want: Tensor) -> Tensor:
    """How often the source's class (row) became which class (column), [C, C]."""
    classes = want.shape[1]
    pairs = want.argmax(1) * classes + have.argmax(1)
    return pairs.flatten().bincount(minlength=classes**2).reshape(classes, classes).double()


def _mean_iou(confusion: Tensor) -> Tensor:
    """Intersection over union, the mean over the classes that one of both gives."""
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return (both / either)[either > 0].mean()


def _cosines(have: Tensor, want: Tensor) -> Tensor:
    return torch.cosine_similarity(have.double(), want.double(), dim=-1).flatten()


def _rank_correlation(rows: Tensor) -> Tensor:
    """Spearman's, of the cosine similarities of all pairs of samples: all rows are kept for it."""
    have, want = (_ranks(_similarities(each)) for each in rows.double().unbind(1))
    have, want = have - have.mean(), want - want.mean()
    return (have * want).sum() / (have.square().sum() * want.square().sum()).sqrt()


def _similarities(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x, dim=1)
    first, second = torch.triu_indices(len(x), len(x), 1)
    # what rounding alone tells apart has one rank
    return (unit @ unit.T)[first, second].round(decimals=12)


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 1; those of equal values are their mean."""
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def _itself(value: Tensor) -> Tensor:
    return value


def _ratio(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]


def _rank(*ranks: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) in ranks


def _classes(shape: Shape) -> bool:
    return len(shape) > 1 and shape[1] > 1


_VECTORS = "vectors [B, D] or [B, tokens, D]"

METRICS: dict[str, Metric] = {
    # the norm of the difference over the norm of the source's outputs
    "error": Metric(_squares, lambda sums: _ratio(sums).sqrt(), sums=True),
    "max_abs": Metric(_each(lambda far, size: far.max()), _itself, merge=torch.maximum),
    "mean_abs": Metric(_each(lambda far, size: _mean(far.mean(1))), _ratio, sums=True),
    "abs_rel": Metric(_each(_relative), _ratio, sums=True),
    "r2": Metric(_moments, _r2, merge=_merged_moments),
    "agreement": Metric(
        _agreeing(1), _ratio, "classes [B, classes, ...]", _classes, sums=True, percent=True
    ),
    "token_agreement": Metric(
        _agreeing(-1), _ratio, "classes [B, tokens, classes]", _rank(3), sums=True, percent=True
    ),
    "mean_iou": Metric(
        _confusion,
        _mean_iou,
        "maps of classes [B, classes, ...]",
        lambda shape: len(shape) > 2 and _classes(shape),
        sums=True,
        percent=True,
    ),
    "cosine": Metric(
        lambda have, want: _mean(_cosines(have, want)), _ratio, _VECTORS, _rank(2, 3), sums=True
    ),
    "worst_cosine": Metric(
        lambda have, want: _cosines(have, want).min(),
        _itself,
        _VECTORS,
        _rank(2, 3),
        merge=torch.minimum,
    ),
    "rank_correlation": Metric(_both, _rank_correlation, "vectors [B, D]", _rank(2)),
}


def usual(shape: Shape) -> tuple[str, ...]:
    """The default metrics of an output by its shape.

    Class scores and embeddings, both [B, D], are measured as class scores, since they cannot be
    distinguished.
    """
    if len(shape) == 3:
        return "error", "cosine", "worst_cosine"
    if not _classes(shape):
        return ("error", "mean_abs", "max_abs", "abs_rel" if len(shape) > 3 else "r2")
    return ("error", "agreement", "mean_iou")[: 2 if len(shape) == 2 else 3]


# -- the outputs ----------------------------------------------------------------------------------


def named(structure: Any, place: str = "") -> dict[str, Any]:
    """What a structure of outputs holds, by place."""
    if isinstance(structure, Mapping):
        items = list(structure.items())
    elif isinstance(structure, (list, tuple)):
        items = list(enumerate(structure))
    else:
        return {place or "output": structure}
    found: dict[str, Any] = {}
    for key, item in items:
        found |= named(item, f"{place}.{key}" if place else str(key))
    return found


Parts = Mapping[str, Mapping[str, list[Tensor]]]  # of a batch: by output and metric, at each T


class Comparison:
    """Outputs beside the source's, batch by batch: ``result`` is, by output and metric, the values
    at each of ``steps``. ``add`` is ``fold`` of the ``parts`` of a batch, which may be another
    process's; what is folded in the same order gives the same bits.

    Memory does not grow with the data but for ``rank_correlation`` and functions of the caller's,
    which need all rows.
    """

    def __init__(self, steps: Sequence[int], choices: Choices = None) -> None:
        self.steps, self.choices = tuple(steps), choices
        self.chosen: dict[str, dict[str, Metric]] = {}
        self.folded: dict[tuple[str, str, int], Tensor] = {}
        self._rows: dict[tuple[str, str, int], list[Tensor]] = {}

    def add(self, outputs: Mapping[int, Any], target: Any) -> None:
        """A batch: what the network returns at each T, and what the source returns."""
        self.fold(self.parts(outputs, target))

    def choose(self, shapes: Mapping[str, Shape]) -> None:
        """The metrics of outputs of these shapes, where they are not chosen yet."""
        if not self.chosen:
            self.chosen = _chosen(self.choices, shapes)

    def parts(self, outputs: Mapping[int, Any], target: Any) -> Parts:
        """What one batch brings, at each T."""
        want = named(target)
        self.choose({name: value.shape for name, value in want.items()})
        have = [paired(outputs[t], target) for t in self.steps]
        return {
            output: {
                name: [metric.part(each[output], want[output]).cpu() for each in have]
                for name, metric in metrics.items()
            }
            for output, metrics in self.chosen.items()
        }

    def fold(self, parts: Parts) -> None:
        for output, metrics in parts.items():
            for name, values in metrics.items():
                for t, part in zip(self.steps, values, strict=True):
                    self._fold((output, name, t), self.chosen[output][name], part)

    def _fold(self, key: tuple[str, str, int], metric: Metric, part: Tensor) -> None:
        if metric.rows:  # put together once, at the end
            self._rows.setdefault(key, []).append(part)
        elif key in self.folded:
            self.folded[key] = metric.merged(self.folded[key], part)
        else:
            self.folded[key] = part

    def result(self) -> dict[str, dict[str, tuple[float | None, ...]]]:
        return {
            output: {
                name: tuple(self._value(output, name, metric, t) for t in self.steps)
                for name, metric in metrics.items()
            }
            for output, metrics in self.chosen.items()
        }

    def _value(self, output: str, name: str, metric: Metric, t: int) -> float | None:
        key = output, name, t
        found = metric.value(torch.cat(self._rows[key]) if metric.rows else self.folded[key])
        try:
            number = float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the metric {name!r} of the output {output!r} must be a number, but it is "
                f"{type(found).__name__}; return a float from (have, want)."
            ) from error
        return number if math.isfinite(number) else None


def paired(outputs: Any, target: Any) -> dict[str, Tensor]:
    """The network's outputs by place; raises InputError where the source's are others."""
    have = named(outputs)
    for each in (have, named(target)):
        wrong = [name for name, value in each.items() if not isinstance(value, Tensor)]
        if wrong:
            raise InputError(
                f"outputs are tensors, but {wrong[0]!r} is {type(each[wrong[0]]).__name__}; the "
                "reference must return tensors only."
            )
    shapes, expected = (
        {name: list(value.shape) for name, value in each.items()} for each in (have, named(target))
    )
    if shapes != expected:
        raise InputError(
            f"the reference returns {expected} where the network returns {shapes}; pass the model "
            "that it was converted from."
        )
    return have


def _chosen(choices: Choices, outputs: Mapping[str, Shape]) -> dict[str, dict[str, Metric]]:
    by_output = choices if isinstance(choices, Mapping) else dict.fromkeys(outputs, choices)
    unknown = [name for name in by_output if name not in outputs]
    if unknown:
        raise InputError(
            f"metric: there is no output {unknown[0]!r}; the outputs are: {', '.join(outputs)}."
        )
    return {
        output: _metrics(by_output.get(output), output, shape) for output, shape in outputs.items()
    }


def _metrics(choice: Choice | None, output: str, shape: Shape) -> dict[str, Metric]:
    if choice is None:
        choice = usual(shape)
    elif isinstance(choice, str) or not isinstance(choice, Sequence):
        choice = (choice,)
    found: dict[str, Metric] = {}
    for each in choice:
        name, metric = (each, _row(each, output, shape)) if isinstance(each, str) else _own(each)
        while name in found:  # two functions of one name, such as <lambda>
            name += "'"
        found[name] = metric
    return found


def _row(name: str, output: str, shape: Shape) -> Metric:
    metric = look_up(METRICS, name)
    if metric is None:
        raise InputError(
            f"no metric is called {name!r}; known: {', '.join(METRICS)}.{near(name, METRICS)}"
        )
    if not metric.fits(shape):
        fit = ", ".join(known for known, row in METRICS.items() if row.fits(shape))
        raise InputError(
            f"the metric {name!r} is for {metric.of}, but the output {output!r} is "
            f"[B{''.join(f', {size}' for size in shape[1:])}]; metrics for that shape: {fit}."
        )
    return metric


def _own(function: Any) -> tuple[str, Metric]:
    if not callable(function):
        raise InputError(
            f"a metric is a name or a function (have, want) -> float, not {function!r}; known: "
            f"{', '.join(METRICS)}."
        )
    name = getattr(function, "__name__", type(function).__name__)
    return name, Metric(_both, lambda rows: function(*rows.unbind(1)))


def squared_norm(outputs: Any) -> float:
    """Of all outputs together."""
    return sum(float(x.double().square().sum()) for x in leaves(outputs))


def squared_distance(outputs: Any, target: Any) -> float:
    pairs = zip(leaves(outputs), leaves(target), strict=True)
    return sum(float((x.double() - y.double()).square().sum()) for x, y in pairs)
