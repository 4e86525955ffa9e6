r"""What a frame changes, step by step: values that are kept, and the updates that silence leaves.

A ``Kept`` value lies in memory once, with the list of places where this frame changed it. A
``SilentStep`` makes a value of others. Where few of them changed it touches what they reach alone:

.. math::
    s \leftarrow s + W_{:, i} \, (v_i - v_i^{before}) \quad \text{for each changed } i, \qquad
    y = \mathrm{fl}_{32}(s)

of convolutions, linear layers and sums, with s in float64, one changed input after the other in the
order in which they lie in memory; all else is recomputed where an argument changed. A neuron
runs where an argument changed or it sent something in the frame before. ``define`` is the
definition in torch; the kernels of ``neurons/kernels/silence.h`` do the same to the bit. Where more
than ``limit`` inputs changed, torch computes the whole, and s is what it finds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..neurons.kernels import silence

ALWAYS = 2**62  # no number of changed inputs is more


class Kept:
    """A value [*shape], float32, from frame to frame; ``tensor`` may be a view of its memory."""

    def __init__(self, value: Tensor) -> None:
        self.tensor = torch.empty_like(value.detach(), dtype=torch.float32).copy_(value)
        if not is_dense(self.tensor):
            self.tensor = self.tensor.contiguous()
        self.data = self.tensor.as_strided((self.tensor.numel(),), (1,))
        self.places = torch.zeros(self.size, dtype=torch.int32)
        self.before = torch.zeros(self.size)
        pointers = self.data.data_ptr(), self.places.data_ptr(), self.before.data_ptr()
        self.struct = silence.Kept(*pointers, self.size, 0)

    @property
    def size(self) -> int:
        return self.data.numel()

    @property
    def changed(self) -> Tensor:
        """The places, rising, where this frame changed it."""
        return self.places[: self.struct.changed].long()

    def seen_as(self, tensor: Tensor) -> Kept:
        """The same memory as a tensor of another shape."""
        other = object.__new__(Kept)
        other.__dict__.update(self.__dict__, tensor=tensor)
        return other

    def put(self, places: Tensor, values: Tensor) -> None:
        """``values`` at ``places``, which rise; those that differ are the ones that changed."""
        differ = self.data[places] != values
        places, values = places[differ], values[differ]
        count = self.struct.changed
        self.places[count : count + len(places)] = places.int()
        self.before[count : count + len(places)] = self.data[places]
        self.data[places] = values
        self.struct.changed = count + len(places)

    def as_before(self) -> Tensor:
        """What it was before this frame."""
        value = self.like()
        flat = value.as_strided((self.size,), (1,)).copy_(self.data)
        flat[self.changed] = self.before[: self.struct.changed]
        return value

    def like(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor that lies in memory as the value does."""
        return torch.zeros_like(self.tensor, dtype=dtype)

    def in_order(self, value: Tensor | float) -> Tensor:
        """``value`` broadcast to the shape, float32, as the value lies in memory."""
        return self.like().copy_(torch.as_tensor(value))


def is_dense(value: Tensor) -> bool:
    """Whether its elements are a piece of memory, whatever their order."""
    reach = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1 and stride != reach:
            return False
        reach *= size
    return True


def order_of(value: Tensor) -> list[int]:
    """How it lies in memory: equal of two values of a shape whose places are the same."""
    return [s for s, size in zip(value.stride(), value.shape, strict=True) if size != 1]


@dataclass(frozen=True)
class Windows:
    """A convolution or a pooling over [N, height, width, channels], as it lies in memory."""

    channels: int
    outputs: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        return self.groups == self.channels == self.outputs

    def fill(self, struct: Any) -> None:
        struct.channels, struct.outputs, struct.groups = self.channels, self.outputs, self.groups
        struct.height, struct.width = self.size
        struct.out_height, struct.out_width = self.out_size
        for name in ("kernel", "stride", "padding", "dilation"):
            getattr(struct, name)[:] = getattr(self, name)

    def reached(self, pixel: int) -> list[tuple[int, int]]:
        """(tap, output pixel) for all that an input pixel reaches."""
        image, place = divmod(pixel, self.size[0] * self.size[1])
        at, found = divmod(place, self.size[1]), []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                steps = [self._step(at, tap, d) for d, tap in enumerate((i, j))]
                if None not in steps:
                    row = image * self.out_size[0] + steps[0]  # type: ignore[operator]
                    out = row * self.out_size[1] + steps[1]  # type: ignore[operator]
                    found.append((i * self.kernel[1] + j, out))
        return found

    def _step(self, at: tuple[int, int], tap: int, d: int) -> int | None:
        down = at[d] + self.padding[d] - tap * self.dilation[d]
        step, left = divmod(down, self.stride[d])
        return step if down >= 0 and not left and step < self.out_size[d] else None


@dataclass
class SilentStep:
    """How ``out`` is made of ``inputs``; ``compute`` is the whole by torch, as it lies in memory
    or not. What else there is depends on ``kind``, one of ``silence.KINDS``."""

    kind: str
    inputs: Sequence[Kept]
    out: Kept
    compute: Callable[[], Tensor] | None = None
    name: str = ""
    awake: bool = False  # runs again where its own value changed in the frame before
    limit: int = ALWAYS
    windows: Windows | None = None
    columns: Tensor | None = None  # of a convolution, in float64 (``by_inputs``)
    weight: Tensor | None = None
    shift: Tensor | None = None
    maps: Sequence[tuple[Tensor, Tensor]] = ()  # of each input: starts [size + 1], ends
    sources: Tensor | None = None  # of a move of one input, where each output is from, or -1
    factors: Tensor | None = None  # of a sum, by which its ends are reached
    coefficients: tuple[float, float] = (1.0, 1.0)
    epsilon: float = 0.0
    kernel: Any = None  # neurons: ``NeuronKernel``
    advance: Callable[[], Tensor] | None = None  # neurons: v after a step of all, by definition
    sums: Tensor | None = field(default=None, init=False)
    found: Tensor | None = field(default=None, init=False)  # by torch, whose memory is read
    pointers: list[Any] = field(default_factory=list, init=False)
    ran: bool = field(default=True, init=False)  # what runs by definition, in the last frame

    def __post_init__(self) -> None:
        self.fresh = self.out.like()
        if self.kind in ("conv", "sum"):
            self.sums = self.out.tensor.double()
        self.marks = torch.zeros(self.out.size + 8, dtype=torch.uint8)

    @property
    def size(self) -> int:
        """How many inputs it has."""
        return sum(each.size for each in self.inputs)

    @property
    def changed(self) -> int:
        """How many of them the last frame changed."""
        return sum(each.struct.changed for each in self.inputs)

    # -- as the kernels read it --------------------------------------------------------------------

    def fill(self, struct: silence.Step) -> None:
        self.pointers = [
            _addresses([ctypes.addressof(each.struct) for each in self.inputs]),
            _addresses([starts.data_ptr() for starts, _ in self.maps]),
            _addresses([ends.data_ptr() for _, ends in self.maps]),
        ]
        for name, each in zip(("inputs", "starts", "ends"), self.pointers, strict=True):
            setattr(struct, name, ctypes.addressof(each))
        struct.out = ctypes.addressof(self.out.struct)
        struct.marks = self.marks.data_ptr()
        for name in ("fresh", "sums", "columns", "weight", "shift", "sources", "factors"):
            value = getattr(self, name)
            setattr(struct, name, None if value is None else value.data_ptr())
        if self.kernel is not None:
            self.kernel.fill(struct)
        struct.kind, struct.count = silence.KINDS.index(self.kind), len(self.inputs)
        struct.limit, struct.awake = self.limit, self.awake
        struct.first, struct.second = self.coefficients
        struct.epsilon = self.epsilon
        if self.windows is not None:
            self.windows.fill(struct)

    def by_torch(self, struct: silence.Step) -> None:
        """Has torch compute all of it; ``struct.fresh`` is where it lies."""
        assert self.compute is not None
        value = self.compute()
        if value.dtype != torch.float32 or order_of(value) != order_of(self.out.tensor):
            value = self.fresh.copy_(value)
        self.found = value
        struct.fresh = value.data_ptr()

    # -- the definition ----------------------------------------------------------------------------

    def define(self) -> None:
        """The step in torch: the definition of the kernels."""
        before, self.out.struct.changed = self.out.changed, 0
        changed = self.changed + (len(before) if self.awake else 0)
        self.ran = bool(changed)
        if self.kind == "settle":
            self.settle(self.fresh)
        elif changed and (self.kind == "hop" or changed > self.limit or not self._finite()):
            assert self.compute is not None
            self.settle(self.compute())
        elif changed:
            getattr(self, f"_{self.kind}")(before)

    def settle(self, value: Tensor) -> None:
        """All of it was recomputed."""
        self.out.struct.changed = 0
        flat = _flat(self.out.like().copy_(value))
        self.out.put(torch.arange(self.out.size), flat)
        if self.sums is not None:
            _flat(self.sums).copy_(flat)

    def _finite(self) -> bool:
        """Infinity less infinity would stay in a sum for ever."""
        return self.sums is None or bool(self._changes().isfinite().all())

    def _changes(self) -> Tensor:
        (given,) = self.inputs
        before = given.before[: given.struct.changed]
        return given.data[given.changed].double() - before.double()

    def _conv(self, _: Tensor) -> None:
        w, given = self.windows, self.inputs[0]
        assert w is not None and self.sums is not None and self.columns is not None
        sums = _flat(self.sums).view(-1, w.groups, w.outputs // w.groups)
        touched: set[int] = set()
        for place, change in zip(given.changed.tolist(), self._changes(), strict=True):
            pixel, channel = divmod(place, w.channels)
            group = channel // (w.channels // w.groups)
            for tap, to in w.reached(pixel):
                at = (tap, channel) if w.depthwise else (channel, tap)
                sums[to, group] += self.columns[at] * change
                touched.add(to)
        rows = torch.tensor(sorted(touched), dtype=torch.long)
        places = (rows.unsqueeze(1) * w.outputs + torch.arange(w.outputs)).flatten()
        self.out.put(places, _flat(self.sums)[places].float())

    def _move(self, _: Tensor) -> None:
        fresh, touched = self.out.data.clone(), [torch.empty(0, dtype=torch.long)]
        for given, (starts, ends) in zip(self.inputs, self.maps, strict=True):
            for place in given.changed.tolist():
                reached = ends[starts[place] : starts[place + 1]].long()
                fresh[reached] = given.data[place]
                touched.append(reached)
        places = torch.cat(touched).sort().values
        self.out.put(places, fresh[places])

    def _sum(self, _: Tensor) -> None:
        assert self.sums is not None and self.factors is not None
        sums, (starts, ends), touched = _flat(self.sums), self.maps[0], set()
        for place, change in zip(self.inputs[0].changed.tolist(), self._changes(), strict=True):
            for e in range(int(starts[place]), int(starts[place + 1])):
                sums[ends[e]] += self.factors[e] * change
                touched.add(int(ends[e]))
        places = torch.tensor(sorted(touched), dtype=torch.long)
        self.out.put(places, sums[places].float())

    def _affine(self, _: Tensor) -> None:
        places = self.inputs[0].changed
        y = self.inputs[0].data[places]
        y = y if self.weight is None else y * _flat(self.weight)[places]
        self.out.put(places, y if self.shift is None else y + _flat(self.shift)[places])

    def _add(self, _: Tensor) -> None:
        a, b = self.inputs
        places = torch.cat([a.changed, b.changed]).unique()
        first, second = self.coefficients
        self.out.put(places, a.data[places] * first + b.data[places] * second)

    def _neuron(self, before: Tensor) -> None:
        assert self.advance is not None
        places = torch.cat([before, *[each.changed for each in self.inputs]]).unique()
        v = _flat(self.out.like().copy_(self.advance()))
        self.out.put(places, v[places])

    def _largest(self, _: Tensor) -> None:
        assert self.compute is not None
        value = _flat(self.out.like().copy_(self.compute()))
        self.out.put(torch.arange(self.out.size), value)

    def _norm(self, _: Tensor) -> None:
        width = self.out.tensor.shape[-1]
        rows = (self.inputs[0].changed // width).unique()
        x = self.inputs[0].data.view(-1, width)[rows].double()
        centred = x - _totals(x) / width
        variance = _totals(centred.square()) / width
        y = centred * (1 / (variance + self.epsilon).sqrt())
        places = rows.unsqueeze(1) * width + torch.arange(width)
        self.out.put(places.flatten(), y.float().flatten())


@dataclass
class NeuronKernel:
    """What the kernel of neurons reads, of each ``far``, and where it is laid of some of them."""

    range: int
    arguments: Any
    of_some: Any
    far: Sequence[Tensor]
    near: Sequence[Tensor]

    def fill(self, struct: silence.Step) -> None:
        self.some = torch.zeros(self.far[0].numel() + 8, dtype=torch.int32)
        self.pointers = [_addresses([x.data_ptr() for x in of]) for of in (self.far, self.near)]
        struct.range, struct.read, struct.some = self.range, len(self.far), self.some.data_ptr()
        struct.far, struct.near = map(ctypes.addressof, self.pointers)
        struct.arguments = ctypes.addressof(self.arguments)
        struct.arguments_of_some = ctypes.addressof(self.of_some)


def _addresses(found: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(found))(*found)


def _totals(x: Tensor) -> Tensor:
    """[rows, width] to [rows, 1]: eight sums, each one after the other, and then those."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 8)).unflatten(1, (-1, 8))
    return padded.cumsum(1)[:, -1].cumsum(1)[:, -1:]


def _flat(value: Tensor) -> Tensor:
    return value.as_strided((value.numel(),), (1,))


class Program:
    """Steps that run one after the other, by kernels, by torch where a step asks for it."""

    def __init__(self, steps: Sequence[SilentStep], kernels: bool) -> None:
        self.steps = list(steps)
        self.structs = (silence.Step * len(steps))()
        for step, struct in zip(steps, self.structs, strict=True):
            step.fill(struct)
        self.hops = [step for step in steps if step.kind == "hop"]
        self.run = self._by_kernels if kernels else self._by_definition

    def _by_definition(self) -> None:
        for step in self.steps:
            step.define()

    def _by_kernels(self) -> None:
        run, count = silence.runner(), len(self.steps)
        for step in self.hops:
            step.ran = False
        i = run(self.structs, 0, count, 0)
        while i < count:
            self.steps[i].ran = True
            self.steps[i].by_torch(self.structs[i])
            i = run(self.structs, i, count, 1)
