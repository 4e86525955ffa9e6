"""How close a spiking network is to its source: the table of an evaluation, over any data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, SignGDError
from ..names import named_arguments
from ..neurons.rounding import Rounded
from .dealing import batches, deal
from .distributed import ALONE, Distributed
from .inputs import Batch, Inputs, batch_of, call, tensor_of
from .metrics import METRICS, Choices, Comparison, named, paired, squared_distance, squared_norm
from .modes import eval_mode
from .module import NetworkModule
from .network import each_leaf
from .progress import progress, samples_in
from .results import ASKED, Record, ResultsFile, input_digest, model_digest
from .running import check_steps, planned_steps, run
from .states import digest
from .streams import over_frames
from .structures import plain

T = TypeVar("T")
END = "end"  # posted by a process that has no batch left
PAUSE = 0.05  # seconds between two looks for what others post


@dataclass(frozen=True)
class Evaluation(Rounded):
    """One row for each T: what ``evaluate`` measured on ``samples`` samples.

    ``accuracy`` and ``agreement`` (equal predictions) are fractions, None if labels or a reference
    are missing, or if the output is not that of a classifier (one tensor [B, classes], two or more
    classes); ``top5`` is how often the label is among the five largest of more than five classes,
    else None; ``error`` is the relative output error, the norm of the difference over the norm of
    the reference's outputs. ``outputs`` holds, for each output, each metric's values: if metrics
    were requested, or if the output is not that of a classifier. ``skipped`` are the names of
    samples that could not be read, and are not counted in any row.
    """

    time_steps: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    agreement: tuple[float | None, ...]
    error: tuple[float | None, ...]
    reference_accuracy: float | None
    samples: int
    outputs: Mapping[str, Mapping[str, tuple[float | None, ...]]] = field(default_factory=dict)
    top5: tuple[float | None, ...] = ()
    reference_top5: float | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.top5:
            object.__setattr__(self, "top5", (None,) * len(self.time_steps))

    def __add__(self, other: Evaluation) -> Evaluation:
        """The rows of both, for networks planned for different T on the same samples."""
        return Evaluation(
            self.time_steps + other.time_steps,
            self.accuracy + other.accuracy,
            self.agreement + other.agreement,
            self.error + other.error,
            self.reference_accuracy,
            self.samples,
            {
                output: {name: values + other.outputs[output][name] for name, values in own.items()}
                for output, own in self.outputs.items()
            },
            self.top5 + other.top5,
            self.reference_top5,
            self.skipped,
        )

    def to_dict(self) -> dict[str, Any]:
        found = self._totals()
        if any(value is not None for value in self.top5):
            found["reference_top5"] = self.reference_top5
            for row, value in zip(found["rows"], self.top5, strict=True):
                row["top5"] = value
        if self.skipped:
            found["skipped"] = list(self.skipped)
        if self.outputs:
            found["outputs"] = self._by_output()
        return found

    def _by_output(self) -> list[dict[str, Any]]:
        """A row for each output at each T."""
        return [
            {"T": t, "output": output, **{name: values[i] for name, values in own.items()}}
            for i, t in enumerate(self.time_steps)
            for output, own in self.outputs.items()
        ]

    def _totals(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "reference_accuracy": self.reference_accuracy,
            "rows": [
                {"T": t, "accuracy": a, "agreement": g, "error": e}
                for t, a, g, e in zip(
                    self.time_steps, self.accuracy, self.agreement, self.error, strict=True
                )
            ],
        }

    def __str__(self) -> str:
        parts = [] if self.outputs else [self._table()]
        if self.outputs:
            labelled = any(value is not None for value in self.accuracy)
            parts = [*([self._table(), ""] if labelled else []), self._table_by_output()]
        if self.skipped:
            parts.append(f"skipped  {len(self.skipped)}: {', '.join(self.skipped)}")
        return "\n".join(parts)

    def _table_by_output(self) -> str:
        names = list(dict.fromkeys(name for own in self.outputs.values() for name in own))
        rows = [
            [str(row["T"]), row["output"], *(_shown(name, row.get(name)) for name in names)]
            for row in self._by_output()
        ]
        return _aligned([["T", "output", *names], *rows])

    def _table(self) -> str:
        lines = ["     T  accuracy  agreement  output error"]
        for row in self.to_dict()["rows"]:
            lines.append(
                f"{row['T']:>6}  {_percent(row['accuracy']):>8}  {_percent(row['agreement']):>9}"
                f"  {'-' if row['error'] is None else format(row['error'], '.4f'):>12}"
            )
        if self.reference_accuracy is not None:
            lines.append(f"source  {_percent(self.reference_accuracy):>8}")
        return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _shown(metric: str, value: float | None) -> str:
    if metric in METRICS and METRICS[metric].percent:
        return _percent(value)
    return "-" if value is None else f"{value:.5g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns to the right; what an output is called to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(widths[0], 6)
    return "\n".join(
        "  ".join(f"{text:{'<' if i == 1 else '>'}{widths[i]}}" for i, text in enumerate(row))
        for row in rows
    )


@named_arguments
@torch.no_grad()
def evaluate(
    snn: NetworkModule,
    loader: Any,
    time_steps: int | Sequence[int] | None = None,
    *,
    reference: nn.Module | None = None,
    metric: Choices = None,
    chunk: int | None = None,
    keep_state: bool = False,
    distributed: Distributed | None = None,
    resume: str | Path | None = None,
    data: str | None = None,
) -> Evaluation:
    """Accuracy, agreement with ``reference`` and relative output error at each T.

    ``time_steps`` are the T that the network was planned for unless given. ``loader`` yields
    batches (x, y) or x: x [B, ...], y [B] class indices, which are used if the output is one tensor
    [B, classes]; a tensor or array [N, ...], a pair (x, y) of such, or a ``Dataset`` is cut into
    batches of 64. A batch may have an attribute ``skipped``, the names of samples that are missing
    in it. The reference is evaluated in eval mode, and its mode is restored. Batches are moved to
    the device of the network.

    ``metric`` compares outputs of any task with those of the reference, each output of tuples and
    dicts separately: names of ``METRICS`` (``core/metrics.py``), functions ``(have, want) ->
    float`` of all samples, one or several, or a dict of these by output. If the output is not that
    of a classifier, the default metrics of its shape are measured unless others are given; memory
    does not grow with the data, except for functions and ``rank_correlation``. With ``keep_state``
    the loader yields one frame [B, ...] after another of B streams, and the state is carried from
    each frame to the next; it is reset before and after. A network with feedback (``carries``) can
    then be compared only with ``snn.source``, which runs over the frames with its own memory.

    With ``distributed`` each process evaluates its own batches and all get the table, which is the
    same to the last bit for every number of them. ``resume`` is a file that gets a line for each
    finished batch; batches that an existing file contains are not computed again, also with another
    number of processes. It belongs to one network, reference, data set and set of options, and is
    refused for others: the data are compared by their number of batches, by the caller's
    description in ``data``, and by the first finished batch of each process. Only rank 0 reads and
    writes it.

    Raises InputError for an empty loader, a metric that does not fit an output, another reference
    for a network with feedback, and a results file of another evaluation; FormatError for a damaged
    one.
    """
    if metric is not None and reference is None:
        raise InputError(
            "a metric compares with the source network; pass reference=model, or "
            "reference=snn.source for the one stored in the description."
        )
    if not isinstance(snn, NetworkModule):
        raise InputError(
            f"evaluate takes the module that build(network) returns, not {type(snn).__name__}."
        )
    world = distributed or ALONE
    if keep_state and (world.size > 1 or resume is not None):
        raise InputError(
            "the state of a stream is carried from frame to frame, so frames can be neither "
            "distributed over processes nor skipped; do not pass distributed= or resume= with "
            "keep_state."
        )
    with world.together():
        steps = check_steps(planned_steps(snn) if time_steps is None else time_steps)
        loader = batches(loader)
        measure = _Measurement(snn, steps, reference, metric, chunk, keep_state, resume is not None)
        asked = {}
        if world.size > 1 or resume is not None:
            world.agree("whether there is resume=", str(resume is not None))
            asked = _asked(measure, loader, data)
            for name, value in asked.items():
                world.agree(ASKED[name], json.dumps(value))
        file = _of_first(world, lambda: None if resume is None else ResultsFile(resume, asked))
        with closing(file) if file is not None else nullcontext():
            collected = _Collected(world, measure, file)
            done, compared = collected.done, _compared(collected.done, world)
            dealt = deal(loader, world, done, again=compared)
            with measure.stream():
                for number, batch in _with_a_bar(dealt, loader, world):
                    if number in compared:
                        _check_same(batch, done[number], resume)
                    else:
                        collected.add(measure(number, batch))
            return collected.evaluation()


def _is_empty(x: Any) -> bool:
    """Whether it is a batch of no samples; what is no batch at all is refused by the network."""
    batch = isinstance(x, Inputs) or (isinstance(x, Tensor) and x.dim() > 0)
    return batch and not len(x)


def _of_first(world: Distributed, function: Callable[[], T]) -> T | None:
    """What rank 0 finds, on rank 0 alone; an error of it on all."""
    found, error = None, None
    if world.first:
        try:
            found = function()
        except SignGDError as failure:
            error = failure
    error = world.broadcast(error)
    if error is not None:
        raise error
    return found


def _compared(done: Mapping[int, str], world: Distributed) -> set[int]:
    """The first finished batch of each process, which is loaded again."""
    first: dict[int, int] = {}
    for number in sorted(done):
        first.setdefault(number % world.size, number)
    return set(first.values())


def _check_same(batch: Any, before: str, resume: str | Path | None) -> None:
    if _input_digest(batch) != before:
        raise InputError(
            f"{resume} contains results of different data: one of its batches differs from the "
            "current one. Pass the same data in the same order (with a seed if the loader "
            "shuffles), resume from another file, or delete this one."
        )


def _input_digest(batch: Any) -> str:
    x, y = _pair(batch)
    return input_digest(x, y, _skipped(batch))


def _skipped(batch: Any) -> tuple[str, ...]:
    return tuple(map(str, getattr(batch, "skipped", ())))


def _with_a_bar(
    dealt: Iterable[tuple[int, Any]], loader: Any, world: Distributed
) -> Iterator[tuple[int, Any]]:
    """With a bar on rank 0, of images: those of its own batches, times the processes."""
    if not world.first:
        return iter(dealt)

    def images(item: tuple[int, Any]) -> int:
        return world.size * len(_pair(item[1])[0])

    return progress(dealt, "evaluating", samples_in(loader), images=images)


def _asked(measure: _Measurement, loader: Any, data: str | None) -> dict[str, Any]:
    """What a results file is of (``ASKED``), and what all processes must hold alike."""
    snn, reference = measure.snn, measure.reference
    nodes = {f"{type(n).__module__}.{type(n).__qualname__}" for n in snn.neurons.values()}
    return {
        "network": digest(snn),
        "reference": None if reference is None else model_digest(reference),
        "simulator": [snn.spikes, *sorted(nodes)],
        "time_steps": list(measure.steps),
        "metric": _named(measure.metric),
        "chunk": measure.chunk,
        "data": data,
        "batches": _length(loader),
        "threads": torch.get_num_threads(),
        "device": "cpu" if measure.device is None else measure.device.type,
        "torch": torch.__version__,
    }


def _named(choice: Any) -> Any:
    if isinstance(choice, Mapping):
        return {output: _named(each) for output, each in choice.items()}
    if isinstance(choice, Sequence) and not isinstance(choice, str):
        return [_named(each) for each in choice]
    if choice is None or isinstance(choice, str):
        return choice
    return f"{getattr(choice, '__module__', '')}.{getattr(choice, '__qualname__', type(choice))}"


class _Measurement:
    """Makes the record of a batch; with ``digests`` it says of which input it is."""

    def __init__(
        self,
        snn: NetworkModule,
        steps: tuple[int, ...],
        reference: nn.Module | None,
        metric: Choices,
        chunk: int | None,
        keep_state: bool,
        digests: bool,
    ) -> None:
        self.snn, self.steps, self.metric, self.chunk = snn, steps, metric, chunk
        self.keep_state, self.digests = keep_state, digests
        self.reference = over_frames(reference, snn) if keep_state else reference
        self.comparison = Comparison(steps, metric)
        tensors = [*snn.parameters(), *snn.buffers()]
        self.device = tensors[0].device if tensors else None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The state of a stream is forgotten before and after."""
        try:
            if self.keep_state:
                self.snn.reset()
            yield
        finally:
            if self.keep_state:
                self.snn.reset()

    def __call__(self, number: int, batch: Any) -> Record:
        skipped = _skipped(batch)
        x, y = (_on(self.device, each) for each in _pair(batch))
        of_input = input_digest(x, y, skipped) if self.digests else ""
        if _is_empty(x):
            return Record(number, 0, skipped, of_input)
        one = _next_frame if self.keep_state else run
        outputs = one(self.snn, x, self.steps, chunk=self.chunk)
        classes = _classes(outputs[self.steps[0]])
        y = _labels(x, y, classes, self.metric)
        target = self._target(x, outputs)
        return Record(
            number,
            len(x),
            skipped,
            of_input,
            classes,
            **self._labelled(outputs, target, y, classes),
            **self._beside(outputs, target, classes),
        )

    def _target(self, x: Any, outputs: Mapping[int, Any]) -> Any:
        """What the reference returns; None without one."""
        if self.reference is None:
            return None
        with eval_mode(self.reference):
            # which may work in place on its input
            target = plain(call(self.reference, x.clone()))
        paired(outputs[self.steps[0]], target)
        return target

    def _labelled(
        self, outputs: Mapping[int, Any], target: Any, y: Tensor | None, classes: int
    ) -> dict[str, Any]:
        """What is counted beside labels."""
        if y is None:
            return {}
        five = classes > 5
        found: dict[str, Any] = {
            "labelled": len(y),
            "correct": tuple(int((outputs[t].argmax(1) == y).sum()) for t in self.steps),
            "top5": tuple(_in_top5(outputs[t], y) for t in self.steps) if five else (),
        }
        if target is not None:
            found["right"] = int((target.argmax(1) == y).sum())
            found["right_top5"] = _in_top5(target, y) if five else 0
        return found

    def _beside(self, outputs: Mapping[int, Any], target: Any, classes: int) -> dict[str, Any]:
        """What is compared with the reference."""
        if target is None:
            return {}
        found: dict[str, Any] = {
            "norm": squared_norm(target),
            "squared": tuple(squared_distance(outputs[t], target) for t in self.steps),
        }
        if classes:
            winner = target.argmax(1)
            found["same"] = tuple(int((outputs[t].argmax(1) == winner).sum()) for t in self.steps)
        if not classes or self.metric is not None:
            found["parts"] = self.comparison.parts(outputs, target)
            found["shapes"] = {name: tuple(x.shape) for name, x in named(target).items()}
        return found


def _on(device: torch.device | None, x: Any) -> Any:
    """A batch where the network is: loaders give it on the CPU."""
    return x if device is None or not isinstance(x, (Tensor, Inputs)) else x.to(device)


def _in_top5(scores: Tensor, y: Tensor) -> int:
    """Of equal scores the first counts as larger, as for argmax."""
    largest = scores.argsort(dim=1, descending=True, stable=True)[:, :5]
    return int((largest == y[:, None]).any(1).sum())


class _Totals:
    """Records in order of the batches, added up: what is summed is the same for every number of
    processes."""

    def __init__(self, measure: _Measurement) -> None:
        self.measure, steps = measure, measure.steps
        self.comparison = Comparison(steps, measure.metric)
        self.correct, self.top5, self.same = [0] * len(steps), [0] * len(steps), [0] * len(steps)
        self.squared = [0.0] * len(steps)
        self.norm, self.samples, self.labelled = 0.0, 0, 0
        self.right, self.right_top5, self.classes = 0, 0, 0
        self.skipped: list[str] = []

    def add(self, record: Record) -> None:
        self.skipped += record.skipped
        if not record.samples:
            return
        self.samples += record.samples
        self.classes = record.classes
        self.labelled += record.labelled
        self.right += record.right
        self.right_top5 += record.right_top5
        self.norm += record.norm
        for name in ("correct", "top5", "same", "squared"):
            total, values = getattr(self, name), getattr(record, name)
            for i, value in enumerate(values):
                total[i] += value
        if record.parts:
            self.comparison.choose(record.shapes)
            self.comparison.fold(record.parts)

    def evaluation(self) -> Evaluation:
        if self.samples == 0:
            raise InputError("the loader is empty; nothing can be evaluated.")
        referenced = self.measure.reference is not None
        five = self.classes > 5
        return Evaluation(
            self.measure.steps,
            tuple(_share(n, self.labelled) for n in self.correct),
            tuple(_share(n, self.samples if referenced and self.classes else 0) for n in self.same),
            tuple((d / self.norm) ** 0.5 if self.norm else None for d in self.squared),
            _share(self.right, self.labelled if referenced else 0),
            self.samples,
            self.comparison.result(),
            tuple(_share(n, self.labelled if five else 0) for n in self.top5),
            _share(self.right_top5, self.labelled if referenced and five else 0),
            tuple(self.skipped),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


class _Collected:
    """The records of all processes, on rank 0: added up in order of the batches as they come, and
    kept in the results file where there is one. ``done`` are the digests of those that it held."""

    def __init__(self, world: Distributed, measure: _Measurement, file: ResultsFile | None) -> None:
        self.world, self.file, self.keeping = world, file, measure.digests
        self.totals = _Totals(measure)
        self.waiting: dict[int, Record] = {} if file is None else dict(file.done)
        found = {number: record.input for number, record in self.waiting.items()}
        # what an evaluation that failed on all left behind; nobody posts before the broadcast
        if world.first:
            world.posted()
        self.done: dict[int, str] = world.broadcast(found)
        self.next, self.left = 0, world.size - 1  # the batch to be added; processes at work

    def add(self, record: Record) -> None:
        if not self.world.first:
            self.world.post(record.to_json())
            return
        if self.file is not None:
            self.file.add(record.to_json())
        self.waiting[record.batch] = record
        self.read()

    def read(self) -> None:
        """What came from the other processes so far."""
        for text in self.world.posted():
            if text == END:
                self.left -= 1
                continue
            if self.file is not None:
                self.file.add(text)
            record = Record.from_json(text)
            self.waiting[record.batch] = record
        while self.next in self.waiting:
            self.totals.add(self.waiting.pop(self.next))
            self.next += 1

    def evaluation(self) -> Evaluation:
        """When this process is finished: waits for the others. The same on all."""
        if self.world.first:
            self.read()
            while self.left:
                self.world.look()
                time.sleep(PAUSE)
                self.read()
            assert not self.waiting, f"batch {self.next} is missing"
        else:
            self.world.post(END)
        found = _of_first(self.world, self.totals.evaluation)
        return self.world.broadcast(found)  # type: ignore[no-any-return]


def _next_frame(
    snn: NetworkModule, x: Any, steps: Sequence[int], chunk: int | None
) -> dict[int, Any]:
    """The outputs [B, ...] of the next frame [B, ...] of streams, after each of ``steps``."""
    tensors = x.tensors if isinstance(x, Inputs) else None
    frame = x[None] if tensors is None else {k: v.unsqueeze(0) for k, v in tensors.items()}
    found = run(snn, frame, steps, sequence=True, keep_state=True, chunk=chunk)
    return {t: each_leaf(y, lambda leaf: leaf[0]) for t, y in found.items()}


def _classes(output: Any) -> int:
    """How many classes a classifier's output [B, classes] has; 0 for other outputs."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return 0
    return output.shape[1]


def _labels(x: Batch, y: Any, classes: int, metric: Choices) -> Tensor | None:
    """y where it is labels: of a classifier, and not what a metric's output is trained for."""
    if y is None or not classes or (metric is not None and y.is_floating_point()):
        return None
    if tuple(y.shape) != (len(x),):
        shown = x if isinstance(x, Inputs) else list(x.shape)
        raise InputError(
            f"labels are class indices [B], one for each sample, but x is {shown} and y is "
            f"{list(y.shape)}. Targets of other tasks are ignored where metric= is given."
        )
    if len(y) and not (0 <= int(y.min()) and int(y.max()) < classes):
        raise InputError(
            f"labels are class indices from 0 to {classes - 1}, as many as the outputs, but y has "
            f"{int(y.min())} to {int(y.max())}. Number the classes as in training."
        )
    return y  # type: ignore[no-any-return]


def _pair(batch: Any) -> tuple[Any, Tensor | None]:
    """(x, y) of a loader's batch: x, (x,) or (x, y); x a tensor or a dict of tensors."""
    if not isinstance(batch, (tuple, list)):
        return batch_of(batch), None
    if len(batch) not in (1, 2):
        raise InputError(f"a batch is x or (x, y), but the loader gives {len(batch)} values.")
    return batch_of(batch[0]), tensor_of(batch[1]) if len(batch) == 2 else None


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None
