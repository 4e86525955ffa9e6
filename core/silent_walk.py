"""The walk of a stream's first frame, which plans what the frames after it run (``silent_steps``).

How what changed passes an operation is in ``UPDATES``, and for functions of more than their own
place in ``FUNCTIONS``; what is in neither is computed whole by torch wherever an input changed.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..neurons.choice import uncompiled
from ..neurons.kernels import arguments, launch, silence
from ..neurons.signgd import SignGDParameters, SignGDState, signgd_choice
from ..neurons.spikes import Told, hear, joined
from .module import LinearOperation, NetworkModule, from_step_0, key
from .network import ANEW, KEPT, Constant, Encoder, Function, Input, Linear, Neuron, Node, Timed
from .operations import apply_linear, moves
from .silent_steps import (
    ALWAYS,
    Kept,
    NeuronKernel,
    Program,
    SilentStep,
    Windows,
    is_dense,
    order_of,
)
from .spikes import Sent
from .walk import Semantics

Compute = Callable[[], Tensor]
WHOLE_BY_TORCH = ("conv", "sum", "largest", "norm")  # kinds of steps, where much changed
MOST_CONNECTIONS = 2**22  # of a sum that is not given by a formula


class _Stepped:
    """A neuron or an encoder by its definition; v is that after a frame with these inputs."""

    def __init__(self, node: Timed, inputs: Sequence[Kept], v: Tensor | None) -> None:
        self.node, self.inputs = node, inputs
        self.state = node.start(self.given)
        if v is not None:
            self.state = self.state._replace(v=v)
        self.told: Told = []

    @property
    def given(self) -> tuple[Tensor, ...]:
        return tuple(x.tensor for x in self.inputs)

    def __call__(self) -> Tensor:
        anew = self.node.frame == ANEW
        before = self.node.start(self.given) if anew else from_step_0(self.state)
        with hear() as self.told:
            y, self.state = self.node.step(self.given, before)
        return y


class SilentWalk(Semantics[Kept]):
    """Values that are kept: the walk computes those of the first frame x [B, ...], and collects the
    steps that the frames after it run."""

    outputs: Mapping[str, Kept]

    def __init__(
        self, module: NetworkModule, x: Tensor, v: Mapping[str, Tensor], kernels: bool
    ) -> None:
        self.network, self.x, self.batch, self.kernels = module.network, x, len(x), kernels
        self.operations, self.functions = module.operations, module.functions
        self.simulated, self.after = module.neurons, v
        self.steps: list[SilentStep] = []
        self.stepped: dict[str, _Stepped] = {}
        self.tracked: dict[str, tuple[Neuron, SilentStep]] = {}
        self.laid: dict[tuple[object, ...], Kept] = {}

    # -- frames ------------------------------------------------------------------------------------

    def finish(self, break_even: float | None) -> None:
        """All steps are known: every neuron is awake, since the first frame moved it."""
        self.program = Program(self.steps, self.kernels)
        for step, struct in zip(self.steps, self.program.structs, strict=True):
            if step.kind in WHOLE_BY_TORCH:
                if break_even is not None:
                    step.limit = ALWAYS if break_even == 1 else int(break_even * step.size)
                elif self.kernels:
                    step.limit = measured(step, struct)
                struct.limit = step.limit
        for step in self.steps:
            if step.awake:
                step.out.places.copy_(torch.arange(step.out.size))
                step.out.struct.changed = step.out.size

    def show(self, x: Tensor) -> None:
        """One more frame [B, ...]."""
        self.given.fresh.copy_(x)
        self.program.run()

    def states(self) -> dict[str, Tensor]:
        """v of the neurons that go on, by name."""
        found = {name: step.out.tensor for name, (_, step) in self.tracked.items()}
        stepped = {k: each.state.v for k, each in self.stepped.items() if each.node.frame == KEPT}
        return {**found, **stepped}

    def sent(self) -> list[Sent]:
        """What was sent in the frame that is shown."""
        steps = {step.name: step for step in self.steps}
        found: dict[str, Sent] = {}
        for name, (node, step) in self.tracked.items():
            given = tuple(x.tensor.unsqueeze(0) for x in step.inputs)
            with hear() as told:
                y, _ = node.sequence(given, SignGDState(step.out.as_before()))
            found[name] = Sent(node, y, partial(joined, told))
        for name, run in self.stepped.items():
            told = run.told if steps[name].ran else []
            found[name] = Sent(run.node, steps[name].out.tensor.unsqueeze(0), partial(joined, told))
        return [found[node.name] for node in self.network.nodes if node.name in found]

    # -- nodes -------------------------------------------------------------------------------------

    def add(self, step: SilentStep) -> Kept:
        self.steps.append(step)
        return step.out

    def hop(
        self, node: Node, inputs: Sequence[Kept], compute: Compute, awake: bool = False
    ) -> Kept:
        """What torch computes wherever an input changed."""
        out = Kept(compute())
        return self.add(SilentStep("hop", inputs, out, compute, node.name, awake))

    def input(self, node: Input) -> Kept:
        convolved = any(n.op == "conv" and n.tensors["weight"].dim() == self.x.dim()
                        for n in self.network.of(Linear))  # fmt: skip
        out = Kept(channels_last(self.x) if convolved else self.x.contiguous())
        self.given = SilentStep("settle", (), out, None, node.name)
        return self.add(self.given)

    def constant(self, node: Constant) -> Kept:
        return Kept(self.operations[key(node.name)].value)  # type: ignore[arg-type]

    def linear(self, node: Linear, inputs: list[Kept]) -> Kept:
        operation: Any = self.operations[key(node.name)]
        given = [x.tensor for x in inputs]
        compute = partial(operation, *given, batch=self.batch)
        value: Tensor = compute()
        if moves(node.op, node.attributes):
            return self._moved(node, inputs, value, operation)
        make = UPDATES.get(node.op)
        step = make(self, operation, inputs, value) if make is not None else None
        if step is None:
            return self.hop(node, inputs, compute)
        return self.add(replace(step, compute=compute, name=node.name))

    def function(self, node: Function, inputs: list[Kept]) -> Kept:
        function: Any = self.functions[key(node.name)]
        return self.hop(node, inputs, partial(function, *[x.tensor for x in inputs]))

    def timed(self, node: Timed, inputs: list[Kept]) -> Kept:
        v = self.after.get(node.name)
        run = self.stepped[node.name] = _Stepped(node, inputs, v)
        out = Kept(run() if v is None else v)
        return self.add(SilentStep("hop", inputs, out, run, node.name, awake=True))

    def encoder(self, node: Encoder, inputs: list[Kept]) -> Kept:
        return self.timed(node, inputs)

    def neuron(self, node: Neuron, inputs: list[Kept]) -> Kept:
        if key(node.name) not in self.simulated:
            return self.function(node, inputs)
        p: SignGDParameters | None = node.tracks
        if p is None or signgd_choice("auto", inputs[0].tensor, p).backend != "cpu":
            return self.timed(node, inputs)
        if not _in_kernel(p, inputs, self.after[node.name]):
            inputs, p = [self._target(node, p, inputs)], replace_function(p)
        inputs = [self.relaid(x, inputs[0].tensor) for x in inputs]
        return self._tracked(node, p, inputs)

    def _tracked(self, node: Neuron, p: SignGDParameters, inputs: list[Kept]) -> Kept:
        """A neuron whose places are those of its arguments."""
        out = Kept(inputs[0].like().copy_(self.after[node.name]))
        follow = replace(node, function=p.function, arguments=dict(p.arguments))
        given = tuple(x.tensor for x in inputs)

        def advance() -> Tensor:
            return follow.step(given, SignGDState(out.tensor))[0]

        step = SilentStep("neuron", inputs, out, None, node.name, awake=True, advance=advance)
        if self.kernels:
            step.kernel = neuron_kernel(p, step)
        self.tracked[node.name] = follow, step
        return self.add(step)

    def _target(self, node: Neuron, p: SignGDParameters, inputs: list[Kept]) -> Kept:
        """f of its arguments, which neurons then follow."""
        compute = partial(p.target, *[x.tensor for x in inputs])
        name = f"{node.name}.f"
        make = FUNCTIONS.get(p.function.name)
        step = make(self, p.arguments, inputs, compute()) if make is not None else None
        if step is None:
            return self.hop(replace(node, name=name), inputs, compute)
        return self.add(replace(step, compute=compute, name=name))

    # -- moves -------------------------------------------------------------------------------------

    def _moved(
        self, node: Linear, inputs: list[Kept], value: Tensor, operation: LinearOperation
    ) -> Kept:
        if len(inputs) == 1 and _same_memory(inputs[0].tensor, value):
            return inputs[0].seen_as(value)
        numbers = numbered(inputs)
        tensors = {k: v for k, v in operation._tensors.items() if k != "bias"}
        found = apply_linear(node.op, numbers, operation.attributes, tensors, self.batch)
        return self.add(replace(moving(inputs, Kept(value), found), name=node.name))

    def relaid(self, x: Kept, like: Tensor) -> Kept:
        """The same value in memory as ``like`` is, of its shape."""
        order = order_of(like)
        if order_of(x.tensor) == order:
            return x
        # views of one memory may be of one shape: a square matrix and its transpose
        known = x.data.data_ptr(), x.tensor.shape, tuple(order_of(x.tensor)), tuple(order)
        if known not in self.laid:
            out = Kept(torch.empty_like(like, dtype=torch.float32).copy_(x.tensor))
            step = replace(moving([x], out, numbered([x])[0]), name="in another order")
            self.laid[known] = self.add(step)
        return self.laid[known]


def _same_memory(x: Tensor, value: Tensor) -> bool:
    """Whether ``value`` is a view of all of x, in its order."""
    return value.data_ptr() == x.data_ptr() and value.numel() == x.numel() and is_dense(value)


def replace_function(p: SignGDParameters) -> SignGDParameters:
    """Neurons that are handed f(x)."""
    function = replace(p.function, function=_itself, arity=1, elementwise=True, code="x",
                       parameters={})  # fmt: skip
    return replace(p, function=function, arguments={})


def _itself(x: Tensor) -> Tensor:
    return x


def _in_kernel(p: SignGDParameters, inputs: Sequence[Kept], v: Tensor) -> bool:
    """Whether the kernel of its own function runs a part of the neurons."""
    if p.in_c is None or any(x.tensor.shape != v.shape for x in inputs):
        return False
    few = len(inputs) + len(p.in_c.tensors) <= launch.ARGUMENTS
    return few and len(p.in_c.numbers) <= launch.PARAMETERS and not uncompiled(p.in_c.key, "cpu")


def neuron_kernel(p: SignGDParameters, step: SilentStep) -> NeuronKernel:
    """What runs all neurons of a step, or some that are laid side by side."""
    function = launch.IDENTITY if p.in_c is None else launch.function_of(p.in_c.key)
    laid = [step.out.in_order(value) for value in (*p.read, *p.sizes)]
    far = [*[x.tensor for x in step.inputs], *laid[: len(p.read)], step.out.tensor]
    far += laid[len(p.read) :]
    near = [torch.zeros_like(each) for each in far]
    of_all, of_some = (neuron_arguments(p, each, step.fresh) for each in (far, near))
    return NeuronKernel(silence.range_of(function), of_all, of_some, far, near)


def neuron_arguments(p: SignGDParameters, read: Sequence[Tensor], fresh: Tensor) -> Any:
    """Those of the kernels for one step to ``fresh``: of the arguments of f, v, and where they are
    tensors scale and dead zone."""
    sizes = len(p.sizes)
    x, v = read[: len(read) - sizes - 1], read[len(read) - sizes - 1]
    constant = [(each, False) for each in read[len(x) :]]
    space, found = arguments.describe(v, [*[(each.unsqueeze(0), True) for each in x], *constant])
    a = arguments.SignGD(space=space)
    a.x[: len(x)] = found[: len(x)]
    a.v = found[len(x)]
    scaled, zoned = (isinstance(value, Tensor) for value in (p.scale, p.dead_zone))
    if scaled:
        a.scale = found[len(x) + 1]
    if zoned:
        a.zones = found[-1]
    theta = 0.0 if zoned else float(p.dead_zone)
    a.zone, a.sparse = theta, 2 if zoned else int(theta > 0)
    a.y = a.v_last = fresh.data_ptr()
    a.steps, a.signs, a.fires_at_tie = 1, p.members, p.function.fires_at_tie
    numbers = () if p.in_c is None else p.in_c.numbers
    a.parameters[: len(numbers)] = numbers
    a.eta[0] = p.schedule(1) * (1.0 if scaled else float(p.scale))
    return a


# -- where values go -------------------------------------------------------------------------------


def channels_last(value: Tensor) -> Tensor:
    """[N, C, *] in memory as [N, *, C]."""
    return value.movedim(1, -1).contiguous().movedim(-1, 1)


def numbered(inputs: Sequence[Kept]) -> list[Tensor]:
    """Each element of all inputs by its number, from 1 on, in the order of memory."""
    found, first = [], 1
    for x in inputs:
        found.append(x.like(torch.double))
        flat = found[-1].as_strided((x.size,), (1,))
        flat.copy_(torch.arange(first, first + x.size))
        first += x.size
    return found


def sources_of(out: Kept, found: Tensor) -> Tensor:
    """Numbers ``found`` for the elements of a value, less 1, in the order of its memory."""
    return out.like(torch.double).copy_(found).as_strided((out.size,), (1,)).long() - 1


def moving(inputs: Sequence[Kept], out: Kept, found: Tensor) -> SilentStep:
    """The step that moves elements as ``numbered`` ones were ``found`` to go."""
    source, first, maps = sources_of(out, found), 0, []
    for x in inputs:
        ends = ((source >= first) & (source < first + x.size)).nonzero().squeeze(1)
        maps.append(reached(source[ends] - first, ends, x.size)[:2])
        first += x.size
    sources = source.int() if len(inputs) == 1 else None
    return SilentStep("move", inputs, out, maps=maps, sources=sources)


def reached(sources: Tensor, ends: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Connections by their source: starts [size + 1], ends in that order, and the order."""
    order = sources.argsort(stable=True)
    starts = torch.zeros(size + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(sources, minlength=size).cumsum(0)
    return starts, ends[order].int(), order


# -- the updates of linear operations --------------------------------------------------------------


def _conv(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    a, weight = op.attributes, op._tensors["weight"]
    n = len(a["stride"])
    if n > 2 or inputs[0].tensor.dim() != n + 2:
        return None
    given = plan.relaid(inputs[0], channels_last(inputs[0].tensor))
    out = Kept(channels_last(value))

    kernel, dilation, padding = list(weight.shape[2:]), a["dilation"], a["padding"]
    if padding == "valid":
        padding = [0] * n
    if padding == "same":  # what is odd goes behind
        padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    windows = Windows(
        channels=given.tensor.shape[1],
        outputs=value.shape[1],
        size=_two(given.tensor.shape[2:], 1),
        out_size=_two(value.shape[2:], 1),
        kernel=_two(kernel, 1),
        stride=_two(a["stride"], 1),
        padding=_two(padding, 0),
        dilation=_two(dilation, 1),
        groups=a["groups"],
    )
    return SilentStep("conv", [given], out, windows=windows, columns=by_inputs(weight, windows))


def _two(sizes: Sequence[int], one: int) -> tuple[int, int]:
    """Of one spatial dimension the second."""
    first, second = (one, *sizes)[-2:]
    return first, second


def by_inputs(weight: Tensor, windows: Windows) -> Tensor:
    """[outputs, inputs / groups, *kernel] to [inputs, taps, outputs / groups], or [taps, channels]
    where every channel is a group of its own, in float64."""
    weight = weight.double()
    w = weight.detach().flatten(2) if weight.dim() > 2 else weight.detach().unsqueeze(-1)
    if windows.depthwise:
        return w[:, 0].t().contiguous()
    w = w.reshape(windows.groups, -1, *w.shape[1:]).permute(0, 2, 3, 1)
    return w.flatten(0, 1).contiguous()


def _rows(plan: SilentWalk, weight: Tensor, inputs: list[Kept], value: Tensor) -> Any:
    """Each row of the last dimension by ``weight`` [outputs, inputs]."""
    given = plan.relaid(inputs[0], inputs[0].tensor.contiguous())
    rows = given.size // weight.shape[1]
    windows = Windows(weight.shape[1], weight.shape[0], (1, rows), (1, rows))
    out = Kept(value.contiguous())
    return SilentStep("conv", [given], out, windows=windows, columns=by_inputs(weight, windows))


def _linear(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    return _rows(plan, op._tensors["weight"], inputs, value)


def _matmul(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    weight = op._tensors["weight"]
    if op.attributes["side"] == "left" or weight.dim() != 2:
        return None
    return _rows(plan, weight.t(), inputs, value)


def _affine(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    (x,) = inputs
    if x.tensor.shape != value.shape:
        return None
    out = Kept(x.like().copy_(value))
    weight, shift = (op._tensors.get(name) for name in ("weight", "bias"))
    laid = [None if each is None else out.in_order(each.detach()) for each in (weight, shift)]
    return SilentStep("affine", inputs, out, weight=laid[0], shift=laid[1])


def _add(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    """Of coefficients whose products are exact: torch rounds a sum with others once."""
    coefficients = op.attributes["coefficients"]
    shapes = {x.tensor.shape for x in inputs}
    if shapes != {value.shape} or any(abs(c) != 1 for c in coefficients):
        return None
    given = [plan.relaid(x, inputs[0].tensor) for x in inputs]
    out = Kept(given[0].like().copy_(value))
    return SilentStep("add", given, out, coefficients=tuple(coefficients))


def _mean(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    """Means and sums over whole dimensions."""
    (x,), a = inputs, op.attributes
    dims = a["dim"] if "dim" in a else list(range(-len(a["output_size"]), 0))
    if not dims or any(size != 1 for size in a.get("output_size", ())):
        return None
    out = Kept(value)
    numbers = numbered([out])[0]
    if not a.get("keepdim", "output_size" in a):
        for dim in sorted(d % x.tensor.dim() for d in dims):
            numbers = numbers.unsqueeze(dim)
    ends = sources_of(x, numbers)
    count = prod(x.tensor.shape[d] for d in dims)
    share = 1.0 if op.op == "sum" else 1.0 / count
    return _summed(x, out, torch.arange(x.size), ends, torch.full((x.size,), share).double())


def _summed(x: Kept, out: Kept, sources: Tensor, ends: Tensor, factors: Tensor) -> SilentStep:
    starts, ends, order = reached(sources, ends, x.size)
    return SilentStep("sum", [x], out, maps=[(starts, ends)], factors=factors[order].double())


def _any_sum(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    """An operation of one input, by the outputs of each of its elements, where they are few."""
    (x,), out = inputs, Kept(value)
    if x.size * max(x.size, out.size) > MOST_CONNECTIONS:
        return None
    one = torch.eye(x.size, dtype=torch.double)
    tensors = {k: v.double() for k, v in op._tensors.items() if k != "bias"}
    columns = []
    for row in one:
        given = x.like(torch.double)
        given.as_strided((x.size,), (1,)).copy_(row)
        found = apply_linear(op.op, [given], op.attributes, tensors, plan.batch)
        columns.append(out.like(torch.double).copy_(found).as_strided((out.size,), (1,)))
    sources, ends = (found := torch.stack(columns)).nonzero(as_tuple=True)
    return _summed(x, out, sources, ends, found[sources, ends])


def _pooled(plan: SilentWalk, op: LinearOperation, inputs: list[Kept], value: Tensor) -> Any:
    step = _mean(plan, op, inputs, value)
    return _any_sum(plan, op, inputs, value) if step is None else step


# how what changed passes an operation; what is not here is computed whole wherever an input changed
UPDATES: dict[str, Callable[[SilentWalk, LinearOperation, list[Kept], Tensor], Any]] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "affine": _affine,
    "add": _add,
    "mean": _mean,
    "sum": _mean,
    "adaptive_avg_pool": _pooled,
    "avg_pool": _any_sum,
    "upsample": _any_sum,
    "conv_transpose": _any_sum,
    "einsum": _any_sum,
}


# -- functions of more than their own place --------------------------------------------------------


def _max_pool(plan: SilentWalk, a: Mapping[str, Any], inputs: list[Kept], value: Tensor) -> Any:
    (x,) = inputs
    if len(a["kernel_size"]) != 2 or x.tensor.dim() != 4:
        return None
    given = plan.relaid(x, channels_last(x.tensor))
    windows = Windows(
        channels=value.shape[1],
        outputs=value.shape[1],
        size=_two(x.tensor.shape[2:], 1),
        out_size=_two(value.shape[2:], 1),
        kernel=_two(a["kernel_size"], 1),
        stride=_two(a["stride"], 1),
        padding=_two(a["padding"], 0),
        dilation=_two(a["dilation"], 1),
    )
    return SilentStep("largest", [given], Kept(channels_last(value)), windows=windows)


def _layer_norm(plan: SilentWalk, a: Mapping[str, Any], inputs: list[Kept], value: Tensor) -> Any:
    if a["dims"] != 1:
        return None
    given = plan.relaid(inputs[0], inputs[0].tensor.contiguous())
    width = value.shape[-1]
    windows = Windows(width, width, (1, 1), (1, 1))
    return SilentStep("norm", [given], Kept(value.contiguous()), windows=windows, epsilon=a["eps"])


FUNCTIONS: dict[str, Callable[[SilentWalk, Mapping[str, Any], list[Kept], Tensor], Any]] = {
    "max_pool": _max_pool,
    "layer_norm": _layer_norm,
}


# -- break-even ------------------------------------------------------------------------------------

_MEASURED: dict[Any, int] = {}


def measured(step: SilentStep, struct: silence.Step) -> int:
    """The number of changed inputs from which torch is faster, by the clock, on this machine."""
    sizes = tuple(x.size for x in step.inputs), step.out.size, torch.get_num_threads()
    known = (step.kind, step.windows, *sizes, tuple(order_of(step.inputs[0].tensor)))
    if known not in _MEASURED:
        _MEASURED[known] = _break_even(step, struct)
    return _MEASURED[known]


def _break_even(step: SilentStep, struct: silence.Step) -> int:
    run, one = silence.runner(), (silence.Step * 1).from_address(ctypes.addressof(struct))
    struct.limit, count = ALWAYS, 0
    for x in step.inputs:
        channels = step.windows.channels if step.windows else 16
        places = torch.arange(x.size)
        some = (places // channels % 4 == 0) & (places % channels % 4 == 0)
        places = places[some]
        x.places[: len(places)] = places.int()
        x.before[: len(places)] = x.data[places]
        x.struct.changed, count = len(places), count + len(places)

    def whole() -> None:
        step.by_torch(struct)
        run(one, 0, 1, 1)

    by_events, by_torch = _seconds(lambda: run(one, 0, 1, 0)), _seconds(whole)
    for x in (*step.inputs, step.out):
        x.struct.changed = 0
    return int(count * by_torch / by_events)


def _seconds(call: Callable[[], Any], times: int = 5) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)
