"""Calibration: the distribution of the values of each nonlinearity, on data of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.dealing import batches, deal
from ..core.distributed import ALONE, Distributed
from ..core.given import one_batch
from ..core.inputs import Inputs, batch_of
from ..core.module import NetworkModule, Source
from ..core.network import Function, SpikingNetwork
from ..core.operations import follows_batch
from ..core.progress import progress
from ..core.samples import Spread
from ..core.walk import walk
from ..errors import CalibrationError
from . import sketch

Calibration = Tensor | Mapping[str, Tensor] | Iterable[Any] | Dataset[Any]
FEWEST = 64  # samples of all that learns from them: tune, search, fine_tune
PLACES = 256  # of each channel and sample that are counted
FEW_CHANNELS = 4096  # of all channels together, where they are few
QUANTILE = 0.9995
SAMPLES, BYTES = 4096, 2**30  # that are kept, at most
EVERY = 32  # batches of a process, after which sums are added
VALUES = 2**25  # of all nodes of the samples that are run at once
BATCH = 64


def batches_of(calibration: Calibration, most: int | None = None) -> list[Any]:
    """Batches x [B, ...] of a tensor [N, ...], or of an iterable of x or (x, y); of many samples
    those that ``Batches`` keeps.

    Where the model takes several arguments x is a dict of tensors by their names, and a batch is
    ``Inputs``. Whole numbers (token ids, masks) stay what they are.

    Raises CalibrationError for data that is empty, no tensors, or not finite.
    """
    return list(Batches(calibration, most))


class Batches(Sequence[Any]):
    """Calibration data of any length, read once by ``each``; as a sequence, batches of the samples
    that are kept: all if they are few, otherwise a subset spread evenly over the data.

    Up to 4,096 samples and 1 GiB are kept unchanged. Of more data that many are kept, in batches of
    64 (``core.samples``). ``first`` is the first batch. Each process of ``world`` goes through
    batches of its own; what is known and kept afterwards is that of all. Raises CalibrationError as
    ``batches_of`` does, for few samples of one process at once.
    """

    def __init__(
        self, calibration: Calibration, most: int | None = None, world: Distributed = ALONE
    ) -> None:
        self.data, self.most, self.world = _iterable(calibration), most, world
        self.first: Any = None
        self._own: Any = None  # the last batch that was read
        self._shapes: set[Any] = set()
        self._kept, self._done = Spread(SAMPLES, BYTES), False
        self._skipped = 0
        self._reach: dict[str, float] = {}
        self._meet: Callable[[], None] | None = None
        self._items = self._read()
        self._ahead: list[tuple[int, Any]] = []
        ahead = 0
        while self.first is None or (world.size == 1 and ahead <= self._kept.count):
            item = next(self._items, None)
            if item is None:
                break
            self._ahead.append(item)
            ahead += len(item[1])
        if self.first is None:
            raise CalibrationError(
                "the calibration data is empty; a few dozen representative samples are enough."
            )
        self._check_shapes()

    def each(self, meet: Callable[[], None] | None = None) -> Iterator[tuple[int, Any]]:
        """(number, batch) of this process's batches. ``meet`` is called on all processes now and
        then, when they are done with the same batches, and at the end."""
        self._meet = meet
        for i, (number, x) in enumerate(self._again() if self._done else self._through()):
            yield number, x
            if meet is not None and self.world.size == 1 and not (i + 1) % EVERY:
                meet()
        if meet is not None:
            meet()

    def _through(self) -> Iterator[tuple[int, Any]]:
        """Once, keeping what is kept."""
        while item := self._ahead.pop(0) if self._ahead else next(self._items, None):
            self._check_shapes()
            self._look(*item)
            yield item
        self._kept.gather(self.world)
        self._skipped = sum(self.world.gather(self._skipped))
        for reach in self.world.gather(self._reach):
            self._reach = {k: max(v, self._reach.get(k, 0.0)) for k, v in reach.items()}
        self._done = True

    def _again(self) -> Iterator[tuple[int, Any]]:
        if not self._kept.over:
            own = enumerate(self._kept.batches())
            yield from (each for each in own if self.world.mine(each[0]))
        elif isinstance(self.data, Iterator):
            raise CalibrationError(
                "the calibration data can be iterated only once, and an earlier pass has read "
                "it; pass a list, a Dataset or a DataLoader."
            )
        else:
            yield from self._read()

    def _read(self) -> Iterator[tuple[int, Any]]:
        for number, item in deal(self.data, self.world, most=self.most, after=self._after):
            x = batch_of(item[0] if isinstance(item, (tuple, list)) else item)
            self._own = None
            self._skipped += 0 if self._done else len(getattr(item, "skipped", ()))
            if not _check_batch(x, number):
                continue
            self._own = x = x.clone() if any(v.is_inference() for v in _tensors(x)) else x
            self._shapes.add(_shapes(x))
            yield number, x

    def _look(self, number: int, x: Any) -> None:
        for name, value in _named(x).items():
            if value.is_floating_point():
                self._reach[name] = max(self._reach.get(name, 0.0), float(value.abs().max()))
        self._kept.add(number, x)

    def _after(self, number: int) -> None:
        """All processes are done with a batch."""
        world = self.world
        if self.first is None:
            own = self._own if world.mine(number) else None
            own = own.clone() if own is not None and world.size > 1 else own
            self.first = next((x for x in world.gather(own) if x is not None), None)
            if self.first is not None:
                self._shapes.add(_shapes(self.first))
                self._kept.begin(self.first)
        if self._meet is not None and world.size > 1 and not (number + 1) % (EVERY * world.size):
            self._meet()

    def _check_shapes(self) -> None:
        if len(self._shapes) > 1:
            shapes = sorted(self._shapes)
            raise CalibrationError(f"the calibration samples differ in shape: {shapes}.")

    @property
    def own_batches(self) -> int | None:
        """How many of the batches are this process's; None where the data do not say."""
        try:
            length = len(self.data)  # type: ignore[arg-type]
        except TypeError:
            return None
        of_all = length if self.most is None else min(length, self.most)
        return len(range(self.world.rank, of_all, self.world.size))

    # -- what is known when all batches have been seen ---------------------------------------------

    def _end(self) -> None:
        if not self._done:
            for _ in self.each():
                pass

    @property
    def samples(self) -> int:
        """How many there were."""
        self._end()
        return self._kept.seen

    @property
    def skipped(self) -> int:
        """Samples that the batches say they left out, as their files could not be read."""
        self._end()
        return self._skipped

    @property
    def reach(self) -> Mapping[str, float]:
        """The largest absolute value of each floating-point input, by name; "" is that of one."""
        self._end()
        return self._reach

    def __len__(self) -> int:
        self._end()
        return len(self._kept.batches())

    def __getitem__(self, index: Any) -> Any:
        self._end()
        return self._kept.batches()[index]

    def __iter__(self) -> Iterator[Any]:
        self._end()
        return iter(self._kept.batches())


def _iterable(calibration: Calibration) -> Iterable[Any]:
    given = batch_of(one_batch(calibration))
    if isinstance(given, Inputs):
        _check_batch(given, 0)
        return given.split(BATCH)
    if isinstance(given, Tensor):
        return given.split(BATCH) if given.dim() else ()
    if isinstance(given, (Dataset, Iterable)):
        return batches(given, BATCH)
    raise CalibrationError(
        "calibration data is a tensor [N, ...] or an iterable of batches x or (x, y), not "
        f"{type(calibration).__name__}."
    )


def _named(x: Any) -> Mapping[str, Tensor]:
    return x.tensors if isinstance(x, Inputs) else {"": x}


def _tensors(x: Any) -> list[Tensor]:
    return list(_named(x).values())


def _shapes(x: Any) -> tuple[Any, ...]:
    """Of one sample, by name where there are several inputs."""
    if isinstance(x, Inputs):
        return tuple((name, tuple(value.shape[1:])) for name, value in x.tensors.items())
    return tuple(x.shape[1:])


def _check_batch(x: Any, number: int) -> bool:
    """Whether a batch holds anything; raises CalibrationError."""
    for value in _tensors(x):
        if not isinstance(value, Tensor):
            raise CalibrationError(
                f"a calibration batch is a tensor x or a pair (x, y), not {type(value).__name__}."
            )
        if value.dim() == 0:
            raise CalibrationError("a calibration batch is [B, ...], but one is a single number.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CalibrationError(
                f"batch {number} of the calibration data holds NaN or infinity; remove those "
                "samples or fix the preprocessing."
            )
    lengths = {len(value) for value in _tensors(x)}
    if len(lengths) != 1:
        raise CalibrationError(
            "the inputs of a batch must have the same number of samples, but they have "
            f"{lengths}: {x}."
        )
    return all(value.numel() for value in _tensors(x))


def at_once(network: SpikingNetwork) -> int:
    """Samples that fit into memory together."""
    return max(1, VALUES // max(1, sum(node.values for node in network.nodes)))


@torch.no_grad()
def statistics(
    network: SpikingNetwork, batches: Iterable[Tensor | Inputs] | Batches, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """For each function: by channel "maximum", "minimum", "mean", "quantile" (99.95 %, of the
    absolute value) and "counts" (``sketch``), for the whole tensor "tensor_quantile", the number of
    "samples", and "element_maximum" (batch sizes are 1).

    One pass, in memory that does not depend on how many batches there are. The counts are integers:
    the same samples give the same counts in any order and in batches of any size. Of ``Batches`` of
    several processes each counts its own; the result is that of one, to the bit.
    """
    given = batches if isinstance(batches, Batches) else Batches(batches)
    module = NetworkModule(network, {})
    seen = {node.name: _Seen(node, seed) for node in network.of(Function)}
    sums = _Sums(seen, given.world)
    for number, batch in progress(given.each(sums.fold), "calibrating", given.own_batches):
        for x in batch.split(at_once(network)):
            walk(network, _Watched(module, module.check_input(x), seen), ())
        sums.take(number)
    for one in seen.values():
        one.merge(given.world)
    return {name: one.summary() for name, one in seen.items()}


class _Sums:
    """Sums of values, which round: those of each batch are added in the order of the batches, on
    however many processes they were made."""

    def __init__(self, seen: Mapping[str, _Seen], world: Distributed) -> None:
        self.seen, self.world = seen, world
        self.waiting: dict[int, dict[str, list[Tensor]]] = {}

    def take(self, number: int) -> None:
        """The batch that was just seen."""
        self.waiting[number] = {name: one.sums for name, one in self.seen.items()}
        for one in self.seen.values():
            one.sums = []

    def fold(self) -> None:
        for batch in self.world.in_order(self.waiting):
            for name, sums in batch.items():
                for each in sums:
                    total = self.seen[name].total
                    self.seen[name].total = each if total is None else total + each
        self.waiting.clear()


class _Watched(Source):
    """The source network, whose functions' values are counted."""

    def __init__(self, module: NetworkModule, x: Tensor | Inputs, seen: Mapping[str, _Seen]):
        super().__init__(module, x)
        self.seen = seen

    def function(self, node: Function, inputs: list[Tensor]) -> Tensor:
        value = super().function(node, inputs)
        self.seen[node.name].add(value, inputs, self.batch)
        return value


def _has_floor(node: Function) -> bool:
    """Roots and quotients: undefined or endless at and below zero."""
    if node.function.name == "pow":
        exponent = node.arguments["exponent"]
        return exponent < 0 or exponent != int(exponent)
    return node.function.name in ("sqrt", "rsqrt", "reciprocal", "div")


def _at_zero(node: Function) -> bool:
    """Defined at zero, though not below."""
    return node.function.name == "sqrt" or node.arguments.get("exponent", -1) > 0


class _Seen:
    """What calibration keeps of one function's values."""

    def __init__(self, node: Function, seed: int) -> None:
        self.node, self.seed = node, seed
        self.samples, self.count = 0, 0
        self.sums: list[Tensor] = []  # by channel, of parts of a batch
        self.total: Tensor | None = None  # of all
        self.most: Tensor  # and the least, by channel
        self.least: Tensor
        self.floor: float | None = None  # the least divisor

    def add(self, value: Tensor, inputs: list[Tensor], samples: int) -> None:
        node = self.node
        if _has_floor(node):
            divisor = float(inputs[-1].min())
            self.floor = divisor if self.floor is None else min(self.floor, divisor)
        if not bool(value.isfinite().all()):
            raise CalibrationError(
                f"{node.function.name} at '{node.name}' is NaN or infinite on the calibration "
                "data; the source network itself is not finite there."
            )
        batch_dims = [d for d, size in enumerate(node.shape) if follows_batch(size)]
        element = value.amax(batch_dims, keepdim=True) if batch_dims else value
        channels = value.movedim(node.channel, 0) if node.channel else value.unsqueeze(0)
        by_channel = channels.flatten(1)
        most, least = by_channel.amax(1), by_channel.amin(1)
        self.sums.append(by_channel.sum(1, dtype=torch.float64))
        counts = sketch.counts(self._some(channels, samples))
        if not self.samples:
            self.most, self.least, self.element, self.counts = most, least, element, counts
        else:
            self._extend(most, least, element, counts)
        self.samples += samples
        self.count += by_channel.shape[1]

    def _extend(self, most: Tensor, least: Tensor, element: Tensor, counts: Tensor) -> None:
        self.most, self.least = torch.maximum(self.most, most), torch.minimum(self.least, least)
        self.element, self.counts = torch.maximum(self.element, element), self.counts + counts

    def merge(self, world: Distributed) -> None:
        """With what the other processes have seen, all but sums."""
        if world.size == 1:
            return
        found = world.gather((self.samples, self.count, self.floor))
        own = (self.most, self.least, self.element, self.counts) if self.samples else None
        parts = [part for part in world.gather(own) if part is not None]
        self.most, self.least, self.element, self.counts = parts[0]
        for part in parts[1:]:
            self._extend(*part)
        self.samples, self.count = (sum(each[i] for each in found) for i in (0, 1))
        self.floor = min((f for *_, f in found if f is not None), default=None)

    def _some(self, channels: Tensor, samples: int) -> Tensor:
        """Values [C, n] of some places of every sample, the same for all samples."""
        shape = self.node.shape
        # where the batch comes first, what a sample has lies together
        by_sample = bool(shape) and follows_batch(shape[0]) and self.node.channel != -len(shape)
        each = channels.reshape(len(channels), samples if by_sample else 1, -1)
        most = max(PLACES, FEW_CHANNELS // len(channels))
        if each.shape[2] > most:
            generator = torch.Generator().manual_seed(self.seed)
            pick = torch.randperm(each.shape[2], generator=generator)[:most].sort().values
            each = each[..., pick.to(each.device)]
        return each.flatten(1)

    def summary(self) -> dict[str, Tensor]:
        shape, dtype, least = channel_shape(self.node), self.most.dtype, self.floor
        assert self.total is not None
        # which of -0 and 0 is the larger depends on who comes first
        most, lowest, element = (
            x + torch.zeros_like(x) for x in (self.most, self.least, self.element)
        )
        floor = {}
        if least is not None and (least > 0 or (least == 0 and _at_zero(self.node))):
            floor = {"floor": torch.tensor(least, dtype=dtype) / 2}
        seen = {
            "maximum": most.reshape(shape),
            "minimum": lowest.reshape(shape),
            "mean": (self.total / self.count).to(dtype).reshape(shape),
            "element_maximum": element,
            "counts": self.counts,
            "samples": torch.tensor(self.samples),
            **floor,
        }
        return with_quantiles(seen, QUANTILE)


def with_quantiles(seen: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """What was seen, with the quantiles of |values| below which this share lies."""
    counts, most = seen["counts"], torch.maximum(seen["maximum"].abs(), seen["minimum"].abs())
    together = counts.sum(0, keepdim=True)
    by_channel = sketch.quantile(counts, share, most)
    whole = sketch.quantile(together, share, most.max())
    quantiles = {
        "quantile": by_channel.to(most.dtype).reshape(most.shape),
        "tensor_quantile": whole.to(most.dtype)[0],
    }
    return {**seen, **quantiles}


def channel_shape(node: Function) -> tuple[int, ...]:
    """Broadcasts a value for each channel against the function's output."""
    if node.channel is None:
        return ()
    return (-1, *[1] * (-node.channel - 1))
