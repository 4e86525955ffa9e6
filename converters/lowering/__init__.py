"""Lowering: the captured ATen graph to the nodes of a network, nonlinearities still functions.

Every operation ends as linear, neuron, constant or unsupported; nothing is taken for linear
because nobody looked. ``HANDLERS`` holds one function for each linear or compound operation,
``rules.NEURONS`` the nonlinearities. A compound operation becomes linear parts and neuron
functions, as ``Options.functions`` says: LayerNorm one neuron for an output and an affine
operation, or mean, difference, square, mean, x / sqrt(y).

Minus infinity, with which masks are written, never becomes a value: ``Masked`` carries the mask to
the softmax that it is meant for.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...core.network import Constant, Function, Input, Linear, Node
from ...core.operations import Size, follows_batch, resolve
from ...errors import CaptureError, InputError
from ...neurons.nonlinearities import NONLINEARITIES, Nonlinearity
from ..capture import Captured, size_of
from ..constants import BatchConstant, Masked, batch_constant, for_batch
from ..graph import used
from ..rules import Entry, NotConvertible, Operation, Rule, aten, find_rule, power


class Name(str):
    """A node's name, told apart from the strings among an operation's arguments."""


# Name: a node's;  Masked: a node's with -inf in places;  Tensor, BatchConstant: a constant;
# list: of values; else a Python number
Value = Any


@dataclass(frozen=True)
class Coverage:
    """What one operation of the source network becomes: a row of the report."""

    path: str  # module path
    operation: str  # aten.gelu.default
    module: str  # torch.nn.GELU
    becomes: str  # "linear" | "neuron" | "constant" | "unsupported"
    detail: str = ""  # the neuron functions, or why not
    fix: str = ""

    @property
    def mend(self) -> str:
        """The older name of ``fix``."""
        warnings.warn("Coverage.mend is called fix now.", DeprecationWarning, stacklevel=2)
        return self.fix


COMPOUND = ("max_pool", "norm", "softmax", "matmul", "attention")
FORMS = ("whole", "local")
Functions = str | Mapping[str, str]


def forms(functions: Functions, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """``functions`` for each compound operation; a mapping changes ``base``, by default "whole".

    Raises InputError for other names.
    """
    if isinstance(functions, str):
        functions = dict.fromkeys(COMPOUND, functions)
    if not isinstance(functions, Mapping):
        raise InputError(
            f"forms is one of {', '.join(FORMS)}, or a dict from {', '.join(COMPOUND)} to "
            f"these, but it is {functions!r}."
        )
    for name, form in functions.items():
        if name not in COMPOUND:
            raise InputError(f"forms has an entry for {name!r}; known are {', '.join(COMPOUND)}.")
        if form not in FORMS:
            raise InputError(f"forms is one of {', '.join(FORMS)}, but it is {form!r}.")
    return {**dict.fromkeys(COMPOUND, "whole"), **(base or {}), **functions}


@dataclass(frozen=True)
class Options:
    """``functions`` "whole": one neuron for an output of max pooling, a norm, softmax, a product of
    two values, and attention (softmax and both products at once, where these are whole too).

    "local": the published decompositions into neurons of one and two arguments. A mapping chooses
    for each of ``COMPOUND``. ``guard`` keeps x / sqrt(y) finite while a decoded y is below the
    norm's eps, and exp(x - max) below 1.
    """

    functions: Functions = "whole"
    guard: bool = True

    def whole(self, compound: str) -> bool:
        return forms(self.functions)[compound] == "whole"


class Lowering:
    """Walks the graph once; ``nodes``, ``coverage`` and ``outputs`` are the result."""

    def __init__(
        self, captured: Captured, neurons: Mapping[Operation, Entry], options: Options
    ) -> None:
        self.options = options
        self.nodes: list[Node] = []
        self.coverage: list[Coverage] = []
        self._captured = captured
        self._neurons = neurons
        self._by_name: dict[str, Node] = {}
        self._channel: dict[str, int | None] = {}
        self._made: dict[int, list[Function]] = {}  # a row of the report to its functions
        self.absorbed: set[str] = set()  # functions that attention computes in their place
        self._env: dict[fx.Node, Value] = {}
        self.here: fx.Node
        self._batch: Any = None
        for node in captured.graph.nodes:
            self._visit(node)
        self.outputs = _map_structure(captured.outputs, self._output)
        self._report_absorbed()

    # -- walking ------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        self.here = node
        if node.op == "placeholder":
            if node.name == self._captured.input_name:
                self._batch = node.meta["val"].shape[0].node.expr
                self._env[node] = self._emit(Input(name="input", shape=self.shape(node)))
            else:
                self._env[node] = self._captured.constants.get(node.name)
        elif node.op == "call_function":
            if node.target is operator.getitem:
                self._env[node] = self._item(node)
            elif isinstance(node.target, OpOverload) and "sym_" not in node.target.name():
                self._lower(node, node.target)

    def _output(self, node: fx.Node) -> str:
        self.here = node
        try:
            return self.name_of(self._env[node])
        except NotConvertible as problem:
            why, _, mend = str(problem).partition("; ")
            self._report("unsupported", why, mend)
            return str(self._placeholder(node))

    def _item(self, node: fx.Node) -> Value:
        source, index = node.args
        values = self._env.get(source)  # type: ignore[arg-type]
        if not isinstance(values, list):
            return values
        if isinstance(index, int) and index < len(values):
            return values[index]
        self._report(
            "unsupported",
            f"result {index} of {source}, such as the positions of a maximum",
            "only values can be converted, not positions or statistics",
        )
        return self._placeholder(node)

    def _lower(self, node: fx.Node, target: OpOverload) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._env.get(n, n))
        before = len(self.nodes)
        try:
            value = self._value(node, target, args, kwargs)
        except (NotConvertible, CaptureError) as problem:
            why, _, mend = str(problem).partition("; ")
            self._report("unsupported", why, mend)
            value = self._placeholder(node)
        else:
            self._classify(self.nodes[before:], value)
        self._env[node] = value

    def _value(self, node: fx.Node, target: OpOverload, args: Any, kwargs: Any) -> Value:
        packet = target.overloadpacket
        if packet in ASSERTIONS:
            return None
        if not _has_node((args, kwargs)):
            return self._fold(target, args, kwargs)
        if packet in BROADCASTING:
            args, kwargs = fx.node.map_aggregate(  # type: ignore[assignment]
                (args, kwargs), _one_for_all_samples
            )
        if _holds(Masked, (args, kwargs)):
            return self._masked(target, args, kwargs)
        return self._run(target, args, kwargs)

    def _run(self, target: OpOverload, args: Any, kwargs: Any) -> Value:
        handler = HANDLERS.get(target) or HANDLERS.get(target.overloadpacket)
        rule = find_rule(target, self._neurons)
        if target.overloadpacket in IDENTITY:
            return self._identity(args[0])
        if rule is not None:
            return self._neuron(rule, args, kwargs)
        if handler is not None:
            return handler(self, *args, **kwargs)
        raise NotConvertible(_no_neuron(target))

    def _masked(self, target: OpOverload, args: Any, kwargs: Any) -> Value:
        """An operation on values of which some are -inf."""
        packet = target.overloadpacket
        if packet in TAKES_MASKED:
            return self._run(target, args, kwargs)
        if packet not in MOVES:
            raise NotConvertible(
                f"values of -inf reach {target}; mask the logits right before their softmax, or "
                "fill with a finite number"
            )
        finite = fx.node.map_aggregate(
            (args, kwargs), lambda a: a.value if isinstance(a, Masked) else a
        )
        mask = self._for_batches(target, args, kwargs)
        return Masked(self.name_of(self._run(target, *finite)), mask)  # type: ignore[misc]

    def masked(self, value: Value, *masks: Value) -> Value:
        """``value`` with -inf where one of the masks, which broadcast to its shape, is True."""
        if isinstance(value, Masked):
            value, masks = value.value, (*masks, value.mask)
        found = [mask for mask in masks if mask is not None]
        if not found:
            return value
        shape = self.shape_of(value)
        one, two = (
            torch.stack([for_batch(m, n).expand(resolve(shape, n)) for m in found]).any(0)
            for n in (1, 2)
        )
        return Masked(self.name_of(value), batch_constant(one, two, self.here.target))

    def _classify(self, made: Sequence[Node], value: Value) -> None:
        functions = [n for n in made if isinstance(n, Function)]
        if functions:
            self._made[len(self.coverage)] = functions
            self._report("neuron", _listed(functions))
        elif value is None or isinstance(value, (Tensor, BatchConstant)):
            self._report("constant")
        else:
            ops = [n.op for n in made if isinstance(n, Linear)]
            self._report("linear", ", ".join(ops) or "identity")

    def _report_absorbed(self) -> None:
        seen = {node.name for node in used(self.nodes, self.outputs)}
        for row, functions in self._made.items():
            left = [n for n in functions if n.name in seen or n.name not in self.absorbed]
            detail = _listed(left) or "part of attention"
            self.coverage[row] = replace(self.coverage[row], detail=detail)

    def _report(self, becomes: str, detail: str = "", mend: str = "") -> None:
        path, module = module_of(self.here)
        operation = str(self.here.target)
        self.coverage.append(Coverage(path, operation, module, becomes, detail, mend))

    def placeholder(self) -> Value:
        return self._placeholder(self.here)

    def _placeholder(self, node: fx.Node) -> Value:
        """Stands for the result of an unsupported operation, so that the walk finds them all."""
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return [self._emit(Input(name=self._unique("unsupported"))) for _ in value]
        return self._emit(Input(name=self._unique("unsupported"), shape=self.shape(node, False)))

    def _fold(self, target: OpOverload, args: Any, kwargs: Any) -> Value:
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise NotConvertible(
                f"{target} draws random numbers; compute them outside the model, or switch the "
                "randomness off in eval mode"
            )
        return self._for_batches(target, args, kwargs)

    def _for_batches(self, target: OpOverload, args: Any, kwargs: Any) -> Value:
        """Of constants a constant, computed for one sample and for two where that matters."""
        if not _holds((BatchConstant, Masked, fx.Node), (args, kwargs)):
            value = target(*args, **kwargs)
            return list(value) if isinstance(value, (list, tuple)) else value

        def compute(samples: int) -> Any:
            def given(value: Any) -> Any:
                if isinstance(value, fx.Node):
                    size = value.meta["val"]
                    return int(size.node.expr.subs(self._batch, samples))
                return for_batch(value, samples)

            here_args, here_kwargs = fx.node.map_aggregate((args, kwargs), given)  # type: ignore[misc]
            return target(*here_args, **here_kwargs)

        one, two = compute(1), compute(2)
        if isinstance(one, (list, tuple)):
            return [batch_constant(a, b, target) for a, b in zip(one, two, strict=True)]
        return batch_constant(one, two, target)

    def _identity(self, value: Value) -> Value:
        result = self.here.meta["val"]
        if not result.dtype.is_floating_point:
            raise NotConvertible(
                f"{self.here.target} makes {result.dtype} values out of the network's signals; "
                "keep them floating-point"
            )
        return value

    # -- what handlers use --------------------------------------------------------------------

    def shape(self, node: fx.Node | None = None, strict: bool = True) -> tuple[Size, ...]:
        """Shape of the result of ``node`` (the one being lowered), sizes that follow the batch
        as ``"3*batch"``."""
        node = node or self.here
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            value = value[0]
        return self.sizes(value.shape, strict)

    def sizes(self, shape: Sequence[Any], strict: bool = True) -> tuple[Size, ...]:
        try:
            return tuple(size_of(s, self._batch, module_of(self.here)[0]) for s in shape)
        except CaptureError:
            if strict:
                raise
            return ()

    def shape_of(self, value: Value) -> tuple[Size, ...]:
        if isinstance(value, Tensor):
            return tuple(value.shape)
        if isinstance(value, BatchConstant):
            return value.sizes
        if isinstance(value, Masked):
            value = value.value
        return self._by_name[value].shape if isinstance(value, str) else ()

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the result; half precision is converted in float32."""
        value = self.here.meta["val"]
        dtype = (value if isinstance(value, Tensor) else value[0]).dtype
        half = dtype in (torch.float16, torch.bfloat16)
        return dtype if dtype.is_floating_point and not half else torch.get_default_dtype()

    def node_of(self, name: str) -> Node:
        return self._by_name[name]

    def channel_of(self, value: Value) -> int | None:
        return self._channel.get(value) if isinstance(value, str) else None

    def name_of(self, value: Value) -> str:
        """The node that holds a value; a constant becomes one."""
        if isinstance(value, str):
            return value
        if isinstance(value, Masked):
            raise NotConvertible(
                f"values of -inf reach {self.here.target}; mask the logits right before their "
                "softmax, or fill with a finite number"
            )
        if isinstance(value, fx.Node):
            raise NotConvertible(
                "a size that follows the batch is used as a number; compute it outside the model"
            )
        if isinstance(value, (int, float)):
            value = torch.tensor(float(value), dtype=self.dtype)
        if isinstance(value, BatchConstant):
            return self._spread_over_batch(value)
        if not value.is_floating_point():
            value = value.to(self.dtype)
        if not bool(value.isfinite().all()):
            raise NotConvertible(
                f"a constant of {self.here.target} holds NaN or infinity; fill with a finite "
                "number, -inf is understood in the mask of a softmax alone"
            )
        name = self._unique("constant")
        return self._emit(Constant(name=name, shape=tuple(value.shape), value=value))

    def _spread_over_batch(self, value: BatchConstant) -> str:
        shape = value.sizes
        if value.tensor is not None:
            return self.linear("expand", [_compressed(value.tensor)], shape, shape=list(shape))
        split = value.split_sizes(shape)
        spread = self.linear("expand", [value.split], split, shape=list(split))
        return self.linear("reshape", [spread], shape, shape=list(shape))

    def linear(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Sequence[Size],
        channel: int | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        /,
        **attributes: Any,
    ) -> str:
        """A linear node made of the operation being lowered."""
        names = tuple(self.name_of(value) for value in inputs)
        node = Linear(
            name=self._unique(self._path(op)),
            inputs=names,
            shape=tuple(shape),
            op=op,
            attributes=attributes,
            tensors={k: v.detach() for k, v in (tensors or {}).items() if v is not None},
        )
        return self._emit(node, channel)

    def function(
        self,
        row: str | Nonlinearity,
        inputs: Sequence[Value],
        shape: Sequence[Size],
        channel: int | None = None,
        /,
        **arguments: Any,
    ) -> str:
        """A nonlinearity, to become a neuron."""
        row = NONLINEARITIES[row] if isinstance(row, str) else row
        if channel is not None and follows_batch(shape[channel]):
            channel = None
        node = Function(
            name=self._unique(self._path(row.name)),
            inputs=tuple(self.name_of(value) for value in inputs),
            shape=tuple(shape),
            function=row,
            arguments=arguments,
            channel=channel,
            module=module_of(self.here)[0],
        )
        return self._emit(node, channel)

    def affine(
        self, x: Value, weight: Tensor | float | None = None, bias: Tensor | float | None = None
    ) -> str:
        """x * weight + bias, broadcasting."""
        tensors = {
            name: value
            if isinstance(value, Tensor) and value.is_floating_point()
            else torch.as_tensor(value, dtype=self.dtype)
            for name, value in (("weight", weight), ("bias", bias))
            if value is not None
        }
        shape = self.shape_of(x)
        for tensor in tensors.values():
            shape = broadcast(shape, tuple(tensor.shape))
        return self.linear("affine", [x], shape, self.channel_of(x), tensors, shape=list(shape))

    def reshape(self, x: Value, shape: Sequence[Size]) -> Value:
        old, shape = self.shape_of(x), tuple(shape)
        if old == shape:
            return x
        channel = self.channel_of(x)
        if channel is not None and (len(shape) < -channel or shape[channel:] != old[channel:]):
            channel = None
        return self.linear("reshape", [x], shape, channel, shape=list(shape))

    def permute(self, x: Value, dims: Sequence[int]) -> str:
        rank = len(self.shape_of(x))
        dims = [d % rank for d in dims]
        channel = self.channel_of(x)
        if channel is not None:
            channel = dims.index(channel % rank) - rank
        shape = [self.shape_of(x)[d] for d in dims]
        return self.linear("permute", [x], shape, channel, dims=dims)

    def reduce(self, op: str, x: Value, dims: Sequence[int] | None, keepdim: bool) -> str:
        """Mean or sum over dimensions, counted from the end."""
        old = self.shape_of(x)
        rank = len(old)
        dims = sorted(d % rank for d in (dims if dims else range(rank)))
        shape = [1 if d in dims else s for d, s in enumerate(old) if keepdim or d not in dims]
        channel = self.channel_of(x)
        if channel is not None and channel % rank in dims:
            channel = None
        if channel is not None and not keepdim:
            channel = channel + sum(1 for d in dims if d > channel % rank)
        return self.linear(
            op, [x], shape, channel, dim=[d - rank for d in dims], keepdim=bool(keepdim)
        )

    def slice(self, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        old = self.shape_of(x)
        dim = dim % len(old)
        if follows_batch(old[dim]):
            if start == 0 and step == 1:
                return x
            raise NotConvertible(
                f"a slice cuts through the batch (dimension {dim}); cut the input before the model"
            )
        size = old[dim]
        assert isinstance(size, int)
        start, stop, step = slice(start, stop, step).indices(size)
        if (start, stop, step) == (0, size, 1):
            return x
        shape = list(old)
        shape[dim] = len(range(start, stop, step))
        return self.linear(
            "slice",
            [x],
            shape,
            self.channel_of(x),
            dim=dim - len(old),
            start=start,
            stop=stop,
            step=step,
        )

    def constant(self, value: Value, what: str) -> Tensor | None:
        """A weight: it must not depend on the input."""
        if value is None or isinstance(value, Tensor):
            return value
        raise NotConvertible(
            f"{what} of {self.here.target} is computed from the input; only weights that are "
            "fixed after training can be converted"
        )

    def result(self, value: Value) -> Value:
        """The value, as the first of several where the operation returns several."""
        return [value] if isinstance(self.here.meta["val"], (list, tuple)) else value

    # -- naming -------------------------------------------------------------------------------

    def _emit(self, node: Node, channel: int | None = None) -> str:
        self.nodes.append(node)
        self._by_name[node.name] = node
        self._channel[node.name] = channel
        return Name(node.name)

    def _path(self, suffix: str) -> str:
        path, module = module_of(self.here)
        name = str(getattr(self.here.target, "overloadpacket", suffix)).split(".")[-1]
        if module.startswith("torch.nn.") and path:
            return path if suffix in _LEAF_NAMES.get(name, (name,)) else f"{path}.{suffix}"
        return f"{path}.{suffix}" if path else suffix

    def _unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self._by_name:
            n += 1
            candidate = f"{name}_{n}"
        return candidate

    def _neuron(self, rule: Rule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
        row, n = rule.row, rule.tensors
        if n is None:
            n = sum(isinstance(value, (str, Tensor)) for value in args)
        inputs, rest = list(args[:n]), args[n:]
        if not all(isinstance(value, (str, Tensor)) for value in inputs):
            raise NotConvertible(_no_neuron(self.here.target))
        try:
            arguments = rule.arguments(*rest, **kwargs)
        except TypeError as error:
            raise NotConvertible(
                f"{self.here.target} has arguments that its rule does not take ({error}); give "
                "a converters.Rule whose `arguments` reads them"
            ) from error
        if row.name == "max_pool" and not self.options.whole("max_pool"):
            return self.result(_max_chain(self, inputs[0], **arguments))
        if row.name == "amax":
            arguments["dim"] = _reduced(arguments["dim"], len(self.shape_of(inputs[0])))
        channel = next((c for c in map(self.channel_of, inputs) if c is not None), None)
        if row.name == "amax":
            channel = None
        return self.result(self.function(row, inputs, self.shape(), channel, **arguments))


_LEAF_NAMES = {
    "_native_batch_norm_legit_no_training": ("affine",),
    "batch_norm": ("affine",),
    **{f"conv{n}d": ("conv",) for n in (1, 2, 3)},
    **{f"max_pool{n}d": ("max_pool",) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": ("avg_pool",) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": ("adaptive_avg_pool",) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("conv_transpose",) for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": ("adaptive_max_pool",) for n in (1, 2, 3)},
    "_prelu_kernel": ("prelu",),
    "hardtanh": ("clamp",),
    "layer_norm": ("divide_by_sqrt", "layer_norm"),
    "group_norm": ("divide_by_sqrt", "layer_norm"),
    "rms_norm": ("divide_by_sqrt", "rms_norm"),
    "view": ("reshape",),
}


def module_of(node: fx.Node) -> tuple[str, str]:
    """(path, class) of the innermost module an operation was called in."""
    stack = [
        entry
        for entry in (node.meta.get("nn_module_stack") or {}).values()
        if not str(entry[1]).startswith("_empty")
    ]
    if not stack:
        return "", ""
    path, cls = stack[-1]
    path = str(path).removeprefix("L['self']").strip(".")
    name = cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"
    parts = name.split(".")
    if parts[:2] == ["torch", "nn"]:  # torch.nn.modules.activation.GELU is known as torch.nn.GELU
        name = f"torch.nn.{parts[-1]}"
    return path, name


def _holds(kind: Any, tree: Any) -> bool:
    if isinstance(tree, Mapping):
        return any(_holds(kind, v) for v in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_holds(kind, v) for v in tree)
    return isinstance(tree, kind)


def _has_node(tree: Any) -> bool:
    return _holds((Name, Masked), tree)


def _one_for_all_samples(value: Any) -> Any:
    """A constant of every sample as a tensor that broadcasts to them."""
    tensor = value.tensor if isinstance(value, BatchConstant) else None
    return value if tensor is None else tensor


def _compressed(value: Tensor) -> Tensor:
    """Size 1 along every dimension in which the values do not differ."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            first = value.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(value), value):
                value = first
    return value.clone()


def _map_structure(structure: Any, function: Callable[[fx.Node], str]) -> Any:
    if isinstance(structure, fx.Node):
        return function(structure)
    if isinstance(structure, dict):
        return {k: _map_structure(v, function) for k, v in structure.items()}
    return type(structure)(_map_structure(v, function) for v in structure)


def _listed(functions: Sequence[Function]) -> str:
    return ", ".join(node.function.name for node in functions)


def _reduced(dims: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple((d % rank) - rank for d in (dims or range(rank)))


def broadcast(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...]:
    """The shape two shapes broadcast to; a size that follows the batch meets 1 or itself."""
    rank = max(len(a), len(b))
    a = (1,) * (rank - len(a)) + tuple(a)
    b = (1,) * (rank - len(b)) + tuple(b)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _no_neuron(target: Any) -> str:
    comparison = (
        "a mask or a choice that is computed from the input has no spiking form; compute it from "
        "constants or buffers (a causal mask, a padding mask that is a buffer), or add it to the "
        "logits as a number"
    )
    known = {
        "bernoulli": "switch the randomness off in eval mode",
        "argmax": "return the logits and take the argmax of the decoded output",
        **dict.fromkeys(COMPARISONS, comparison),
    }
    name = str(getattr(target, "overloadpacket", target)).split(".")[-1]
    mend = known.get(
        name,
        "if it acts on each element, pass neurons=NEURONS | "
        f"{{torch.ops.{target}: a function}}; otherwise write it with supported operations",
    )
    return f"no neuron or linear operation for {target}; {mend}"


# -- linear and compound operations -----------------------------------------------------------

Handler = Callable[..., Value]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, function))
        return function

    return register


def _names(*names: str) -> list[Any]:
    """The packets of these names that this torch has."""
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


COMPARISONS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_not", "logical_and"),
    *("logical_or", "bitwise_not", "bitwise_and", "bitwise_or"),
)
ASSERTIONS = set(
    _names("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
)
IDENTITY = set(
    _names(
        "clone",
        "contiguous",
        "alias",
        "detach",
        "detach_",
        "lift_fresh_copy",
        "_to_copy",
        "to",
        "type_as",
    )
)


MOVES = IDENTITY | set(  # change places, not values
    _names("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
    + _names("expand", "expand_as", "permute", "transpose", "t", "slice", "select", "repeat")
    + _names("flip", "roll", "index_select", "dropout")
)
TAKES_MASKED = set(
    _names("add", "sub", "mul", "div", "true_divide", "where", "masked_fill")
    + _names("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax")
)
BROADCASTING = TAKES_MASKED | set(
    _names("rsub", "addcmul", "maximum", "minimum", "matmul", "mm", "bmm", "baddbmm")
    + _names("scaled_dot_product_attention")
)


def _spread(value: Any, n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


@handles(*_names("conv1d", "conv2d", "conv3d"))
def _conv(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    weight, bias = low.constant(weight, "the weight"), low.constant(bias, "the bias")
    n = weight.dim() - 2
    return low.linear(
        "conv",
        [x],
        low.shape(),
        -n - 1,
        {"weight": weight, "bias": bias},
        stride=_spread(stride, n),
        padding=padding if isinstance(padding, str) else _spread(padding, n),
        dilation=_spread(dilation, n),
        groups=groups,
    )


@handles(*_names("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
def _conv_transpose(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    weight, bias = low.constant(weight, "the weight"), low.constant(bias, "the bias")
    n = weight.dim() - 2
    return low.linear(
        "conv_transpose",
        [x],
        low.shape(),
        -n - 1,
        {"weight": weight, "bias": bias},
        stride=_spread(stride, n),
        padding=_spread(padding, n),
        output_padding=_spread(output_padding, n),
        groups=groups,
        dilation=_spread(dilation, n),
    )


@handles(aten.convolution)
def _convolution(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed:
        return _conv_transpose(
            low, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _conv(low, x, weight, bias, stride, padding, dilation, groups)


@handles(aten.linear)
def _linear(low: Lowering, x: Value, weight: Value, bias: Value = None) -> Value:
    if isinstance(weight, str):
        rank = len(low.shape_of(weight))
        out = _matmul(low, x, low.permute(weight, [*range(rank - 2), rank - 1, rank - 2]))
        return out if bias is None else _add(low, out, bias)
    bias = low.constant(bias, "the bias")
    return low.linear("linear", [x], low.shape(), -1, {"weight": weight, "bias": bias})


@handles(aten.matmul, aten.mm, aten.bmm)
def _matmul(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x @ y
    if isinstance(y, Tensor):
        channel = -1 if y.dim() > 1 else None
        shape = _matmul_shape(low.shape_of(x), tuple(y.shape))
        return low.linear("matmul", [x], shape, channel, {"weight": y}, side="right")
    if isinstance(x, Tensor):
        channel = -2 if len(low.shape_of(y)) > 1 else None
        shape = _matmul_shape(tuple(x.shape), low.shape_of(y))
        return low.linear("matmul", [y], shape, channel, {"weight": x}, side="left")
    a, b = low.shape_of(x), low.shape_of(y)
    if len(a) < 2 or len(b) < 2:
        raise NotConvertible(
            "a matrix product of a vector that depends on the input; add a dimension of size 1"
        )
    if follows_batch(a[-1]) or follows_batch(b[-2]):
        raise NotConvertible("a matrix product that sums over the batch mixes samples; use means")
    out = _whole_attention(low, x, y)
    if out is not None:
        return out
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    x, y = low.reshape(x, a), low.reshape(y, b)
    if low.options.whole("matmul"):
        shape = _matmul_shape(a, b)
        return low.function("matmul", [x, y], shape, _head(shape))
    # every product of scalars is a neuron, their sum is linear
    left = low.reshape(x, (*a, 1))
    right = low.reshape(y, (*b[:-2], 1, *b[-2:]))
    shape = broadcast((*a, 1), (*b[:-2], 1, *b[-2:]))
    return low.reduce("sum", low.function("mul", [left, right], shape), [-2], False)


def _head(shape: Sequence[Size]) -> int:
    """The channel of [B, heads, rows, columns]: the heads; of other products the columns."""
    return -3 if len(shape) > 3 and not follows_batch(shape[-3]) and shape[-3] != 1 else -1


def _matmul_shape(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...]:
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*broadcast(a[:-2], b[:-2]), *rows, *columns)


@handles(aten.addmm)
def _addmm(
    low: Lowering, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1
) -> Value:
    product = _matmul(low, x, y)
    product = product if alpha == 1 else low.affine(product, float(alpha))
    return _add(low, product, bias, alpha=beta)


@handles(*_names("baddbmm"))
def _baddbmm(
    low: Lowering, start: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1
) -> Value:
    return _addmm(low, start, x, y, beta, alpha)


@handles(aten.einsum)
def _einsum(low: Lowering, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    operands = [_one_for_all_samples(value) for value in operands]
    fixed = [isinstance(value, Tensor) for value in operands]
    if len(operands) == 2 and not any(fixed):
        return _einsum_of_two(low, equation, operands[0], operands[1])
    if len(operands) != 2 or sum(fixed) != 1:
        raise NotConvertible(
            f"einsum '{equation}' of values that all depend on the input; write it as products of "
            "two"
        )
    position = fixed.index(False)
    return low.linear(
        "einsum",
        [operands[position]],
        low.shape(),
        None,
        {"weight": operands[1 - position]},
        equation=equation,
        position=position,
    )


def _einsum_of_two(low: Lowering, equation: str, x: Value, y: Value) -> Value:
    """As one matrix product: what both have and the result keeps leads, what it lacks is summed."""
    terms, arrow, out = equation.replace(" ", "").partition("->")
    a, comma, b = terms.partition(",")
    if not arrow or "." in equation or any(len(set(t)) < len(t) for t in (a, b, out)):
        raise NotConvertible(
            f"einsum '{equation}' of two values that depend on the input; write each index once "
            "in every term, the result after ->, without an ellipsis, or use @"
        )
    x, a = _summed(low, x, a, b + out)
    y, b = _summed(low, y, b, a + out)
    sizes = dict(zip(a + b, low.shape_of(x) + low.shape_of(y), strict=True))
    lead = [c for c in out if c in a and c in b]
    inner = [c for c in a if c in b and c not in out]
    rows, columns = [c for c in out if c not in b], [c for c in out if c not in a]

    def as_matrices(value: Value, term: str, first: list[str], second: list[str]) -> Value:
        value = low.permute(value, [term.index(c) for c in (*lead, *first, *second)])
        merged = [_product([sizes[c] for c in group], equation) for group in (first, second)]
        return low.reshape(value, (*(sizes[c] for c in lead), *merged))

    product = _matmul(low, as_matrices(x, a, rows, inner), as_matrices(y, b, inner, columns))
    order = (*lead, *rows, *columns)
    product = low.reshape(product, [sizes[c] for c in order])
    return low.permute(product, [order.index(c) for c in out])


def _summed(low: Lowering, x: Value, term: str, others: str) -> tuple[Value, str]:
    """Without the indices that nothing else has."""
    x = low.name_of(x)
    dims = [d for d, c in enumerate(term) if c not in others]
    if not dims:
        return x, term
    return low.reduce("sum", x, dims, False), "".join(c for c in term if c in others)


def _product(sizes: Sequence[Size], equation: str) -> Size:
    if sum(map(follows_batch, sizes)) > 1:
        raise NotConvertible(f"einsum '{equation}' has a product of samples with samples; use @")
    number = math.prod(map(_count, sizes))
    return f"{number}*batch" if any(map(follows_batch, sizes)) else number


def _as_channels(tensor: Tensor, rank: int) -> Tensor:
    """[C] to [C, 1, ...], which broadcasts against [B, C, ...] of that rank."""
    return tensor.reshape(-1, *[1] * (rank - 2))


def _by_channel(tensor: Tensor | None, rank: int) -> Tensor | None:
    return None if tensor is None else _as_channels(tensor, rank)


@handles(aten._native_batch_norm_legit_no_training)
def _batch_norm_eval(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    momentum: float,
    eps: float,
) -> Value:
    deviation = torch.sqrt(var.double() + eps)
    factor = (torch.ones_like(deviation) if weight is None else weight.double()) / deviation
    shift = (0.0 if bias is None else bias.double()) - mean.double() * factor
    rank = len(low.shape_of(x))
    dtype = mean.dtype
    name = low.affine(x, _as_channels(factor, rank).to(dtype), _as_channels(shift, rank).to(dtype))
    return [name]


@handles(aten.batch_norm)
def _batch_norm(
    low: Lowering, x: Value, weight: Value, bias: Value, mean: Value, var: Value, *rest: Any
) -> Value:
    if mean is None or (rest and rest[0] is True):
        return _batch_norm_batch(low)
    return _batch_norm_eval(low, x, weight, bias, mean, var, 0.0, rest[-2])[0]


@handles(aten._native_batch_norm_legit)
def _batch_norm_batch(low: Lowering, *args: Any, **kwargs: Any) -> Value:
    raise NotConvertible(
        "batch norm that uses the statistics of the batch in eval mode mixes samples; train with "
        "track_running_stats=True"
    )


def _normalise(low: Lowering, center: Value, variance: Value, eps: float) -> str:
    floor = {"floor": float(eps)} if low.options.guard and eps > 0 else {}
    return low.function(
        "divide_by_sqrt",
        [center, low.affine(variance, bias=float(eps))],
        low.shape_of(center),
        low.channel_of(center),
        **floor,
    )


def _whole_norm(low: Lowering, row: str, x: Value, dims: int, eps: float) -> Value:
    shape = low.shape_of(x)
    if any(map(follows_batch, shape[-dims:])):
        raise NotConvertible("a norm over the batch mixes samples; use batch norm")
    channel = low.channel_of(x) or -1
    return low.function(row, [x], shape, channel, dims=dims, eps=float(eps))


def _scale_and_shift(low: Lowering, x: Value, weight: Value, bias: Value) -> Value:
    return x if weight is None and bias is None else low.affine(x, weight, bias)


@handles(aten.layer_norm, aten.native_layer_norm)
def _layer_norm(
    low: Lowering,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    dims = list(range(-len(normalized_shape), 0))
    if low.options.whole("norm"):
        out = _whole_norm(low, "layer_norm", x, len(dims), eps)
        return low.result(_scale_and_shift(low, out, weight, bias))
    center = low.linear(
        "add",
        [x, low.reduce("mean", x, dims, True)],
        low.shape_of(x),
        low.channel_of(x) or -1,
        coefficients=[1.0, -1.0],
    )
    square = low.function("square", [center], low.shape_of(x), low.channel_of(center))
    z = _normalise(low, center, low.reduce("mean", square, dims, True), eps)
    out = _scale_and_shift(low, z, weight, bias)
    return low.result(out)


@handles(*_names("rms_norm", "_fused_rms_norm"))
def _rms_norm(
    low: Lowering,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value = None,
    eps: float | None = None,
) -> Value:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    if low.options.whole("norm"):
        out = _whole_norm(low, "rms_norm", x, len(dims), eps)
        return low.result(_scale_and_shift(low, out, weight, None))
    square = low.function("square", [x], low.shape_of(x), low.channel_of(x))
    z = _normalise(low, x, low.reduce("mean", square, dims, True), eps)
    out = _scale_and_shift(low, z, weight, None)
    return low.result(out)


@handles(aten.group_norm)
def _group_norm(
    low: Lowering,
    x: Value,
    groups: int,
    weight: Value = None,
    bias: Value = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    shape = low.shape_of(x)
    rank, channels = len(shape), shape[1]
    inner = math.prod(shape[2:])  # type: ignore[arg-type]
    channels = _fixed(channels)
    grouped = (shape[0], groups, channels // groups * inner)
    if low.options.whole("norm"):
        flat = low.reshape(x, grouped)
        z = low.function("layer_norm", [flat], grouped, -2, dims=1, eps=float(eps))
        z = low.reshape(z, shape)
        return _scale_and_shift(low, z, *(_by_channel(t, rank) for t in (weight, bias)))
    spread = (shape[0], groups, channels // groups, 1)
    by_channel = (shape[0], channels, *[1] * (rank - 2))

    def group_mean(value: Value) -> Value:
        mean = low.reduce("mean", low.reshape(value, grouped), [-1], True)
        mean = low.reshape(mean, (shape[0], groups, 1, 1))
        if channels != groups:
            mean = low.linear("expand", [mean], spread, shape=list(spread))
        return low.reshape(mean, by_channel)

    center = low.linear("add", [x, group_mean(x)], shape, 1 - rank, coefficients=[1.0, -1.0])
    square = low.function("square", [center], shape, 1 - rank)
    z = _normalise(low, center, group_mean(square), eps)
    return _scale_and_shift(low, z, *(_by_channel(t, rank) for t in (weight, bias)))


@handles(aten.native_group_norm)
def _native_group_norm(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    n: Any,
    c: Any,
    hw: Any,
    groups: int,
    eps: float,
) -> Value:
    return [_group_norm(low, x, groups, weight, bias, eps)]


@handles(aten.instance_norm)
def _instance_norm(
    low: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Value:
    if not use_input_stats:
        return _batch_norm_eval(low, x, weight, bias, mean, var, momentum, eps)[0]
    return _group_norm(low, x, _fixed(low.shape_of(x)[1]), weight, bias, eps)


@handles(aten.var.correction)
def _var(
    low: Lowering,
    x: Value,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    rank = len(low.shape_of(x))
    dims = [d % rank for d in (dim if dim else range(rank))]
    sizes = [low.shape_of(x)[d] for d in dims]
    if any(follows_batch(s) for s in sizes):
        raise NotConvertible("a variance over the batch mixes samples; use running statistics")
    count = math.prod(map(_count, sizes))
    mean = low.reduce("mean", x, dims, True)
    center = low.linear(
        "add", [x, mean], low.shape_of(x), low.channel_of(x), coefficients=[1.0, -1.0]
    )
    square = low.function("square", [center], low.shape_of(x), low.channel_of(x))
    out = low.reduce("mean", square, dims, keepdim)
    correction = 1.0 if correction is None else float(correction)
    return out if correction == 0 else low.affine(out, count / (count - correction))


@handles(aten.var.default, aten.var.dim)
def _var_unbiased(
    low: Lowering, x: Value, dim: Any = None, unbiased: bool = True, keepdim: bool = False
) -> Value:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    return _var(low, x, dim, correction=float(unbiased), keepdim=keepdim)


@handles(aten.std.correction)
def _std(low: Lowering, x: Value, dim: Any = None, **options: Any) -> Value:
    return _root(low, _var(low, x, dim, **options))


@handles(aten.std.default, aten.std.dim)
def _std_unbiased(low: Lowering, x: Value, *args: Any, **options: Any) -> Value:
    return _root(low, _var_unbiased(low, x, *args, **options))


def _root(low: Lowering, variance: Value) -> Value:
    return low.function("sqrt", [variance], low.shape_of(variance), low.channel_of(variance))


def _number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sum_channel(low: Lowering, x: Value, y: Value) -> int | None:
    channel = low.channel_of(x)
    return low.channel_of(y) if channel is None else channel


@handles(aten.add)
def _add(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    """x + alpha y; where a constant of them is -inf the sum is masked."""
    if alpha != 1 and (_number(y) or isinstance(y, (Tensor, BatchConstant))):
        y, alpha = _times(y, alpha), 1
    if isinstance(y, Masked) and alpha <= 0:
        raise NotConvertible(f"{low.here.target} takes -inf away; add masks to the logits")
    (x, mask), (y, other) = _finite(low, x), _finite(low, y)
    return low.masked(_sum_of(low, x, y, alpha), mask, other)


def _sum_of(low: Lowering, x: Value, y: Value, alpha: float) -> Value:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x + alpha * y
    if _number(y) or isinstance(y, Tensor):
        return low.affine(x, bias=y)
    if _number(x) or isinstance(x, Tensor):
        return low.affine(y, None if alpha == 1 else float(alpha), x)
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.linear(
        "add", [x, y], shape, _sum_channel(low, x, y), coefficients=[1.0, float(alpha)]
    )


def _times(value: Value, factor: float) -> Value:
    if isinstance(value, BatchConstant):
        return replace(value, one=value.one * factor, two=value.two * factor)
    return value * factor


def _finite(low: Lowering, value: Value) -> tuple[Value, Value]:
    """A value without its -inf, and where they are (None: nowhere)."""
    if isinstance(value, Masked):
        return value.value, value.mask
    if isinstance(value, BatchConstant):
        parts = [_finite(low, v) for v in (value.one, value.two)]
        (one, mask), (two, other) = parts
        if mask is None:
            return value, None
        return replace(value, one=one, two=two), replace(value, one=mask, two=other)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value, None
    mask = value == -math.inf
    finite = value.masked_fill(mask, 0.0)
    if not bool(finite.isfinite().all()):
        raise NotConvertible(
            f"a constant of {low.here.target} holds NaN or +inf; only -inf is understood, in masks"
        )
    return (finite, mask) if bool(mask.any()) else (value, None)


@handles(aten.sub)
def _sub(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    return _add(low, x, y, alpha=-alpha)


@handles(aten.rsub)
def _rsub(low: Lowering, x: Value, y: Value, alpha: float = 1) -> Value:
    return _add(low, y, x, alpha=-alpha)


@handles(aten.neg)
def _neg(low: Lowering, x: Value) -> Value:
    return low.affine(x, -1.0)


def _positive(low: Lowering, factor: Value) -> Value:
    if _number(factor) and factor > 0:
        return factor
    if isinstance(factor, Tensor) and bool((factor > 0).all()):
        return factor
    raise NotConvertible(
        f"{low.here.target} of values of -inf; scale the logits, by a positive constant, before "
        "they are masked"
    )


@handles(aten.mul)
def _mul(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Masked):
        return low.masked(_mul(low, x.value, _positive(low, y)), x.mask)
    if isinstance(y, Masked):
        return _mul(low, y, x)
    if _number(y) or isinstance(y, Tensor):
        return low.affine(x, y)
    if _number(x) or isinstance(x, Tensor):
        return low.affine(y, x)
    if x == y:
        return low.function("square", [x], low.shape_of(x), low.channel_of(x))
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.function("mul", [x, y], shape, _sum_channel(low, x, y))


@handles(aten.addcmul)
def _addcmul(low: Lowering, x: Value, first: Value, second: Value, value: float = 1) -> Value:
    fixed = isinstance(first, Tensor) and isinstance(second, Tensor)
    product = first * second if fixed else _mul(low, first, second)
    return _add(low, x, product, alpha=value)


@handles(aten.div.Tensor, aten.div.Scalar, aten.true_divide)
def _div(low: Lowering, x: Value, y: Value) -> Value:
    if isinstance(x, Masked):
        return low.masked(_div(low, x.value, _positive(low, y)), x.mask)
    if isinstance(y, Masked):
        raise NotConvertible(f"{low.here.target} by values of -inf; mask after the division")
    if isinstance(y, (int, float, Tensor)):
        return low.affine(x, 1.0 / y)
    if isinstance(x, (int, float)):
        inverse = low.function("reciprocal", [y], low.shape_of(y), low.channel_of(y))
        return inverse if x == 1 else low.affine(inverse, x)
    shape = broadcast(low.shape_of(x), low.shape_of(y))
    return low.function("div", [x, y], shape, _sum_channel(low, x, y))


@handles(aten.pow.Tensor_Scalar)
def _pow(low: Lowering, x: Value, exponent: float) -> Value:
    if exponent == 1:
        return x
    rule = power(exponent)
    return low.function(rule.row, [x], low.shape_of(x), low.channel_of(x), **rule.arguments())


@handles(aten.pow.Scalar)
def _pow_base(low: Lowering, base: float, x: Value) -> Value:
    if base <= 0:
        raise NotConvertible(f"{base} ** x is not real for every x; use a positive base")
    return _exp_of(low, low.affine(x, math.log(base)))


def _exp_of(low: Lowering, x: Value) -> Value:
    return low.function("exp", [x], low.shape_of(x), low.channel_of(x))


@handles(aten.exp2)
def _exp2(low: Lowering, x: Value) -> Value:
    return _exp_of(low, low.affine(x, math.log(2.0)))


@handles(aten.expm1)
def _expm1(low: Lowering, x: Value) -> Value:
    return low.affine(_exp_of(low, x), bias=-1.0)


@handles(aten.prelu, *_names("_prelu_kernel"))
def _prelu(low: Lowering, x: Value, weight: Value) -> Value:
    weight = low.constant(weight, "the slope")
    rank = len(low.shape_of(x))
    if weight.dim() == 1 and rank > 1 and weight.numel() > 1:
        weight = _as_channels(weight, rank)
    return low.function("prelu", [x], low.shape(), low.channel_of(x), weight=weight)


@handles(aten.glu)
def _glu(low: Lowering, x: Value, dim: int = -1) -> Value:
    size = _fixed(low.shape_of(x)[dim])
    a, b = low.slice(x, dim, 0, size // 2), low.slice(x, dim, size // 2, size)
    gate = low.function("sigmoid", [b], low.shape_of(b), low.channel_of(b))
    return _mul(low, a, gate)


@handles(*_names("avg_pool1d", "avg_pool2d", "avg_pool3d"))
def _avg_pool(
    low: Lowering,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    packet = str(low.here.target.overloadpacket)  # type: ignore[union-attr]
    n = int(packet[-2])
    kernel = _spread(kernel_size, n)
    return low.linear(
        "avg_pool",
        [x],
        low.shape(),
        low.channel_of(x),
        kernel_size=kernel,
        stride=_spread(stride, n) if stride else kernel,
        padding=_spread(padding, n),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


@handles(*_names("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"))
@handles(*_names("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"))
def _adaptive_avg_pool(low: Lowering, x: Value, output_size: Sequence[int]) -> Value:
    return low.linear(
        "adaptive_avg_pool",
        [x],
        low.shape(),
        low.channel_of(x),
        output_size=[int(s) for s in output_size],
    )


@handles(aten.mean)
def _mean(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return low.reduce("mean", x, _dims(dim), keepdim)


@handles(aten.sum)
def _sum(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return low.reduce("sum", x, _dims(dim), keepdim)


def _dims(dim: Any) -> list[int] | None:
    return [dim] if isinstance(dim, int) else (list(dim) if dim is not None else None)


@handles(*_names("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"))
@handles(*_names("view_as", "reshape_as", "squeeze_copy", "_reshape_alias"))
def _reshape(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    return low.reshape(low.name_of(x), low.shape())


@handles(*_names("expand", "expand_as", "broadcast_to"))
def _expand(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    x = low.name_of(x)
    shape = low.shape()
    if shape == low.shape_of(x):
        return x
    return low.linear("expand", [x], shape, low.channel_of(x), shape=list(shape))


@handles(aten.repeat)
def _repeat(low: Lowering, x: Value, repeats: Sequence[Any]) -> Value:
    x = low.name_of(x)
    shape = low.shape()
    old = (1,) * (len(shape) - len(low.shape_of(x))) + low.shape_of(x)
    pairs: list[tuple[Size, Size, Size]] = []  # (1, old, times)
    for size, result in zip(old, shape, strict=True):
        if follows_batch(result) and not follows_batch(size):
            times: Size = f"{int(str(result).split('*')[0]) // int(size)}*batch"
        else:
            times = _count(result) // max(_count(size), 1)
        pairs.append((1, size, times))
    split = [s for one, size, _ in pairs for s in (one, size)]
    spread = [s for _, size, times in pairs for s in (times, size)]
    value = low.linear("expand", [low.reshape(x, split)], spread, shape=list(spread))
    out = low.reshape(value, shape)
    return out


def _fixed(size: Size) -> int:
    if not isinstance(size, int):
        raise NotConvertible(f"a dimension of {size} samples where channels are expected")
    return size


def _count(size: Size) -> int:
    return size if isinstance(size, int) else int(size.split("*")[0])


@handles(aten.full_like, aten.zeros_like, aten.ones_like)
@handles(*_names("new_full", "new_zeros", "new_ones"))
def _full(low: Lowering, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A constant of the shape of a value."""
    name = str(low.here.target.overloadpacket).split(".")[-1]  # type: ignore[union-attr]
    fill = args[-1] if "full" in name else float("ones" in name)
    dtype, shape = low.here.meta["val"].dtype, low.shape()
    one, two = (torch.full(resolve(shape, n), fill, dtype=dtype) for n in (1, 2))
    return batch_constant(one, two, low.here.target)


@handles(aten.permute)
def _permute(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    return low.permute(low.name_of(x), dims)


@handles(aten.transpose.int)
def _transpose(low: Lowering, x: Value, first: int, second: int) -> Value:
    x = low.name_of(x)
    dims = list(range(len(low.shape_of(x))))
    dims[first], dims[second] = dims[second], dims[first]
    return low.permute(x, dims)


@handles(aten.t, *_names("mT"))
def _t(low: Lowering, x: Value) -> Value:
    return _transpose(low, x, -1, -2)


@handles(aten.cat)
def _cat(low: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    shape = low.shape()
    return _cat_values(low, values, dim, shape)


def _cat_values(low: Lowering, values: Sequence[Value], dim: int, shape: Sequence[Size]) -> Value:
    channels = {low.channel_of(value) for value in values if isinstance(value, str)}
    channel = channels.pop() if len(channels) == 1 else None
    return low.linear("cat", list(values), shape, channel, dim=dim % len(shape) - len(shape))


@handles(aten.stack)
def _stack(low: Lowering, values: Sequence[Value], dim: int = 0) -> Value:
    shape = low.shape()
    dim = dim % len(shape)
    one = [1 if d == dim else s for d, s in enumerate(shape)]
    return _cat_values(low, [low.reshape(low.name_of(v), one) for v in values], dim, shape)


def _pieces(low: Lowering, x: Value, dim: int) -> list[Value]:
    """Slices of the sizes that the operation's results have."""
    rank = len(low.shape_of(x))
    start, pieces = 0, []
    for value in low.here.meta["val"]:
        size = low.sizes(value.shape)[dim % rank]
        if not isinstance(size, int):
            raise NotConvertible("a split through the batch; split the input before the model")
        pieces.append(low.slice(x, dim, start, start + size))
        start += size
    return pieces


@handles(*_names("split", "split_with_sizes", "chunk", "tensor_split"))
def _split(low: Lowering, x: Value, sizes: Any, dim: int = 0) -> Value:
    return _pieces(low, x, dim)


@handles(aten.unbind)
def _unbind(low: Lowering, x: Value, dim: int = 0) -> Value:
    shape = low.shape_of(x)
    dim = dim % len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("unbind over the batch; loop over the samples outside the model")
    return [_select(low, x, dim, i) for i in range(_count(shape[dim]))]


@handles(aten.slice)
def _slice(
    low: Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    x = low.name_of(x)
    first = start if isinstance(start, int) else 0
    if start is not None and not isinstance(start, int):
        raise NotConvertible("a slice whose start depends on the batch; use fixed positions")
    last = end if isinstance(end, int) else 2**63 - 1
    size = low.shape_of(x)[dim]
    if follows_batch(size) and low.shape()[dim] != size:
        raise NotConvertible("a slice cuts through the batch; cut the input before the model")
    return low.slice(x, dim, first, last, step)


@handles(aten.select.int)
def _select(low: Lowering, x: Value, dim: int, index: int) -> Value:
    x = low.name_of(x)
    shape = low.shape_of(x)
    dim = dim % len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("one sample of the batch is selected; select it outside the model")
    index = index % _count(shape[dim])
    piece = low.slice(x, dim, index, index + 1)
    return low.reshape(piece, shape[:dim] + shape[dim + 1 :])


def _take(low: Lowering, x: Value, dim: int, index: Tensor) -> Value:
    shape = list(low.shape_of(x))
    if follows_batch(shape[dim]):
        raise NotConvertible("samples of the batch are reordered; do it outside the model")
    size = _count(shape[dim])
    shape[dim] = index.numel()
    return low.linear(
        "index",
        [x],
        shape,
        low.channel_of(x),
        {"index": index.reshape(-1) % size},
        dim=dim % len(shape) - len(shape),
    )


@handles(aten.index_select)
def _index_select(low: Lowering, x: Value, dim: int, index: Value) -> Value:
    if not isinstance(index, Tensor):
        raise NotConvertible("indices that depend on the input; only fixed ones can be converted")
    return _take(low, x, dim, index)


@handles(aten.index.Tensor)
def _index(low: Lowering, x: Value, indices: Sequence[Value]) -> Value:
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(used) != 1 or not isinstance(used[0][1], Tensor) or used[0][1].dtype == torch.bool:
        raise NotConvertible(
            "indexing with several tensors, a mask, or one that depends on the input; use "
            "index_select with fixed indices, one dimension at a time"
        )
    dim, index = used[0]
    return low.reshape(_take(low, x, dim, index), low.shape())


@handles(aten.flip)
def _flip(low: Lowering, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        size = low.shape_of(x)[dim]
        x = _take(low, x, dim, torch.arange(_count(size) - 1, -1, -1))
    return x


@handles(aten.roll)
def _roll(low: Lowering, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        raise NotConvertible("roll over the flattened tensor; name its dimensions")
    for shift, dim in zip(shifts, dims, strict=True):
        x = _take(low, x, dim, (torch.arange(_count(low.shape_of(x)[dim])) - shift))
    return x


@handles(aten.constant_pad_nd)
def _constant_pad(low: Lowering, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    return _pad(low, x, pad, "constant", value)


@handles(aten.pad)
def _pad(
    low: Lowering,
    x: Value,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    attributes = {"pad": list(pad), "mode": mode, "value": float(value or 0.0)}
    shape = list(low.shape_of(x))
    for i in range(len(pad) // 2):
        size = shape[-1 - i]
        if follows_batch(size):
            if pad[2 * i] or pad[2 * i + 1]:
                raise NotConvertible("padding of the batch; pad the input before the model")
        else:
            shape[-1 - i] = _count(size) + pad[2 * i] + pad[2 * i + 1]
    return low.linear("pad", [x], shape, low.channel_of(x), **attributes)


@handles(*_names("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"))
def _reflect(low: Lowering, x: Value, pad: Sequence[int]) -> Value:
    return _pad(low, x, pad, "reflect")


@handles(*_names("replication_pad1d", "replication_pad2d", "replication_pad3d"))
def _replicate(low: Lowering, x: Value, pad: Sequence[int]) -> Value:
    return _pad(low, x, pad, "replicate")


@handles(*_names("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"))
def _upsample_nearest(low: Lowering, x: Value, size: Any = None, *scales: Any) -> Value:
    _check_whole_factors(low, x, scales)
    return _upsample(low, x, "nearest", None)


@handles(aten.upsample_bilinear2d, aten.upsample_linear1d, aten.upsample_trilinear3d)
def _upsample_linear(low: Lowering, x: Value, size: Any, align: bool, *scales: Any) -> Value:
    _check_whole_factors(low, x, scales)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(low.shape())]
    return _upsample(low, x, mode, bool(align))


def _check_whole_factors(low: Lowering, x: Value, scales: Sequence[Any]) -> None:
    """A factor that gives no whole size places its samples by the factor, not by the size."""
    flat = [
        f for s in scales for f in (s if isinstance(s, (list, tuple)) else [s]) if f is not None
    ]
    sizes = zip(low.shape_of(x)[2:], low.shape()[2:], flat, strict=False)
    if any(_count(old) * factor != _count(new) for old, new, factor in sizes):
        raise NotConvertible(
            f"upsampling by {flat} does not give a whole size; pass size= instead of scale_factor="
        )


def _upsample(low: Lowering, x: Value, mode: str, align: bool | None) -> Value:
    shape = low.shape()
    attributes: dict[str, Any] = {"size": list(shape[2:]), "mode": mode}
    if align is not None:
        attributes["align_corners"] = align
    return low.linear("upsample", [x], shape, low.channel_of(x), **attributes)


@handles(aten.dropout, *_names("native_dropout", "alpha_dropout", "feature_dropout"))
def _dropout(low: Lowering, x: Value, p: float, train: bool = True) -> Value:
    if train and p > 0:
        raise NotConvertible(
            "dropout that stays active in eval mode makes the source network random; pass "
            "training=self.training to F.dropout"
        )
    return x


def _qcfs(low: Lowering, x: Value, threshold: Value, levels: int) -> Value:
    threshold = low.constant(threshold, "the threshold")
    return low.function(
        "qcfs",
        [x],
        low.shape(),
        low.channel_of(x),
        v_threshold=float(threshold),
        levels=int(levels),
    )


HANDLERS[torch.ops.spikingjelly_signgd.qcfs] = _qcfs


PUBLISHED_PADDING = -200.0  # the published max pooling pads with it


def _max_chain(
    low: Lowering,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Value:
    """Max pooling as a chain of two-argument maxima, last dimension last, as published."""
    n = len(kernel_size)
    target = low.shape()
    for axis in range(-n, 0):
        k, s = kernel_size[axis], stride[axis]
        p, d = padding[axis], dilation[axis]
        size, out = low.shape_of(x)[axis], target[axis]
        assert isinstance(size, int) and isinstance(out, int)
        right = max(0, (out - 1) * s + (k - 1) * d + 1 - size - p)
        if p or right:
            pad = [0] * (2 * -axis)
            pad[-2:] = [p, right]
            x = _pad(low, x, pad, "constant", PUBLISHED_PADDING)
        stop = (out - 1) * s + 1
        best = low.slice(x, axis, 0, stop, s)
        for i in range(1, k):
            other = low.slice(x, axis, i * d, i * d + stop, s)
            best = low.function("maximum", [best, other], low.shape_of(best), low.channel_of(x))
        x = best
    return x


# -- masks, softmax, attention ----------------------------------------------------------------


@handles(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(low: Lowering, condition: Value, x: Value, y: Value) -> Value:
    """x where a constant condition is True, y elsewhere: linear; -inf in one of them masks."""
    if isinstance(condition, str):
        if condition.startswith("unsupported"):  # already reported
            return low.placeholder()
        raise NotConvertible(
            f"the condition of {low.here.target} is computed from the input; only a constant one "
            "is linear"
        )
    chosen, otherwise = condition, _not(condition)
    total: Value = None
    masks = []
    for value, taken in ((x, chosen), (y, otherwise)):
        if _number(value):
            value = torch.tensor(float(value), dtype=low.dtype)
        value, mask = _finite(low, value)
        if mask is not None:
            masks.append((mask, taken))
        if isinstance(value, Tensor) and not bool(value.any()):
            continue
        part = _taken(low, value, taken, filled=bool(masks))
        total = part if total is None else _sum_of(low, total, part, 1)
    if isinstance(total, Tensor):  # the other was -inf or 0 where it is chosen
        raise NotConvertible(f"{low.here.target} does not depend on the input; make it a buffer")
    shape = low.shape()
    if low.shape_of(total) != shape:
        total = low.linear("expand", [total], shape, shape=list(shape))
    both = [_both(low, mask, taken, shape) for mask, taken in masks]
    return low.masked(total, *both)


def _taken(low: Lowering, value: Value, taken: Value, filled: bool) -> Value:
    """A value times where it is taken."""
    if isinstance(value, Tensor) and isinstance(taken, Tensor):
        return value * taken
    if filled and isinstance(value, str):  # elsewhere it is masked
        return value
    if not isinstance(taken, Tensor):
        raise NotConvertible(
            f"a mask of {low.here.target} differs along a dimension that holds samples too; give "
            "the heads a dimension of their own"
        )
    return low.affine(value, taken.to(low.dtype))


def _not(mask: Value) -> Value:
    if isinstance(mask, BatchConstant):
        return replace(mask, one=~mask.one.bool(), two=~mask.two.bool())
    return ~mask.bool()


def _both(low: Lowering, mask: Value, other: Value, shape: Sequence[Size]) -> Value:
    one, two = (
        for_batch(mask, n).bool().expand(resolve(shape, n)) & for_batch(other, n).bool()
        for n in (1, 2)
    )
    return batch_constant(one, two, low.here.target)


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(low: Lowering, x: Value, mask: Value, value: Value) -> Value:
    return _where(low, mask, value, x)


@handles(aten.softmax.int, aten._softmax)
def _softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    return _softmax_over(low, x, dim)


@handles(*_names("_safe_softmax"))
def _safe_softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    return _softmax_over(low, x, dim, empty_rows=True)


def _softmax_over(low: Lowering, x: Value, dim: int, empty_rows: bool = False) -> Value:
    """Masked weights are exactly 0: their neurons, which end near 0, are multiplied by 0."""
    if isinstance(x, Tensor):
        return torch.softmax(x, dim)
    mask = x.mask if isinstance(x, Masked) else None
    x = x.value if isinstance(x, Masked) else x
    shape = low.shape_of(x)
    dim = dim % len(shape) - len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("a softmax over the batch mixes samples; take it of each sample")
    if isinstance(mask, BatchConstant) and mask.tensor is None:  # of samples and heads together
        split = mask.split_sizes(shape)
        if dim + len(shape) <= mask.dim:
            dim -= 1
        out = _softmax_of(low, low.reshape(x, split), dim, mask.split, empty_rows)
        return low.reshape(out, shape)
    tensor = mask.tensor if isinstance(mask, BatchConstant) else mask
    return _softmax_of(low, x, dim, tensor, empty_rows)


def _softmax_of(low: Lowering, x: Value, dim: int, mask: Tensor | None, empty_rows: bool) -> Value:
    keep = empty = None
    if mask is not None and bool(mask.any()):
        mask = _compressed(mask)
        keep, empty = (~mask).to(low.dtype), mask.all(dim, keepdim=True)
        if bool(empty.any()) and not empty_rows:
            raise NotConvertible(
                f"a row of the mask of {low.here.target} is -inf everywhere, where softmax is NaN; "
                "let every row keep one position"
            )
    shape = low.shape_of(x)
    channel = low.channel_of(x) if low.channel_of(x) is not None else _head(shape)
    if low.options.whole("softmax"):
        masked = {} if keep is None else {"keep": keep}
        out = low.function("softmax", [x], shape, channel, dim=dim, **masked)
        return out if keep is None else low.affine(out, keep)
    one, taken = _exponentials(low, x, dim, keep, empty)
    total = low.reduce("sum", taken, [dim], True)
    out = low.function("div", [taken, total], shape, channel)
    return out if keep is None else low.affine(out, keep)


BELOW_ALL_LOGITS = -1e30


def _exponentials(
    low: Lowering, x: Value, dim: int, keep: Tensor | None, empty: Tensor | None
) -> tuple[Value, Value]:
    """(x - max(x), its exponentials): none is above 1, and one is 1, whatever the logits are."""
    if keep is not None and empty is not None:
        keep = torch.where(empty, torch.ones_like(keep), keep)  # zeroed at the end
        x = low.affine(x, keep, (1 - keep) * BELOW_ALL_LOGITS)
    shape = low.shape_of(x)
    position = dim % len(shape)
    row = (*shape[:position], 1, *shape[position + 1 :])
    channel = low.channel_of(x) if low.channel_of(x) is not None else _head(shape)
    largest = low.function(
        "amax", [x], row, None if channel == dim else channel, dim=(dim,), keepdim=True
    )
    shifted = low.linear("add", [x, largest], shape, channel, coefficients=[1.0, -1.0])
    ceiling = {"ceiling": 0.0} if low.options.guard else {}
    weights = low.function("exp", [shifted], shape, channel, **ceiling)
    return shifted, weights if keep is None else low.affine(weights, keep)


@handles(aten.log_softmax.int, aten._log_softmax)
def _log_softmax(low: Lowering, x: Value, dim: int, *dtype: Any) -> Value:
    if isinstance(x, Masked):
        raise NotConvertible(f"{low.here.target} of values of -inf is -inf; leave out the mask")
    shape = low.shape_of(x)
    dim = dim % len(shape) - len(shape)
    if follows_batch(shape[dim]):
        raise NotConvertible("a softmax over the batch mixes samples; take it of each sample")
    if low.options.whole("softmax"):
        return low.function("log_softmax", [x], shape, low.channel_of(x), dim=dim)
    shifted, weights = _exponentials(low, x, dim, None, None)
    total = low.reduce("sum", weights, [dim], True)
    floor = {"floor": 0.5} if low.options.guard else {}  # it is 1 or more
    logarithm = low.function("log", [total], low.shape_of(total), low.channel_of(total), **floor)
    return low.linear(
        "add", [shifted, logarithm], shape, low.channel_of(x), coefficients=[1.0, -1.0]
    )


@handles(*_names("scaled_dot_product_attention"))
def _attention(
    low: Lowering,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p > 0:
        raise NotConvertible(
            "attention with dropout that stays active in eval mode makes the source network "
            "random; pass dropout_p=self.p if self.training else 0.0"
        )
    if enable_gqa:
        heads = _fixed(low.shape_of(q)[-3])
        k, v = _for_heads(low, k, heads), _for_heads(low, v, heads)
    scale = 1.0 / math.sqrt(_fixed(low.shape_of(q)[-1])) if scale is None else float(scale)
    scores = _matmul(low, _mul(low, q, scale), _swapped(low, k))
    if is_causal:
        rows, columns = low.shape_of(scores)[-2:]
        attn_mask = torch.ones(_fixed(rows), _fixed(columns), dtype=torch.bool).tril()
    if isinstance(attn_mask, (Tensor, BatchConstant)):
        if for_batch(attn_mask, 1).dtype == torch.bool:
            scores = low.masked(low.name_of(scores), _not(attn_mask))
        else:
            scores = _add(low, scores, attn_mask)
    elif attn_mask is not None:
        scores = _add(low, scores, attn_mask)
    weights = _softmax_over(low, scores, -1, empty_rows=True)
    return _matmul(low, weights, v)


def _whole_attention(low: Lowering, weights: Value, v: Value) -> Value:
    """The product of softmax(scale q k + bias) with v, as one function of the three.

    The neurons for the logits and for the weights stay where others use them, and are removed with
    all that is unused where not.
    """
    if not low.options.whole("attention") or not isinstance(weights, str):
        return None
    softmax = low.node_of(weights)
    if isinstance(softmax, Linear) and softmax.op == "affine":  # zeros where it is masked
        masked = low.node_of(softmax.inputs[0])
        keep = masked.arguments.get("keep") if isinstance(masked, Function) else None
        if keep is None or set(softmax.tensors) != {"weight"}:
            return None
        if not torch.equal(softmax.tensors["weight"], keep) or masked.shape != softmax.shape:
            return None
        softmax = masked
    if not _is(softmax, "softmax") or softmax.arguments["dim"] != -1:
        return None
    scale, bias = 1.0, None
    logits = low.node_of(softmax.inputs[0])
    while isinstance(logits, Linear) and logits.op == "affine":
        factor, shift = logits.tensors.get("weight"), logits.tensors.get("bias")
        before = low.node_of(logits.inputs[0])
        if before.shape != logits.shape or (factor is not None and factor.numel() != 1):
            return None
        if shift is not None:
            bias = scale * shift if bias is None else bias + scale * shift
        scale, logits = scale * (1.0 if factor is None else float(factor)), before
    v_shape, rank = low.shape_of(v), len(logits.shape)
    if not _is(logits, "matmul") or len(v_shape) > rank:
        return None
    low.absorbed |= {logits.name, softmax.name}
    v = low.reshape(v, (1,) * (rank - len(v_shape)) + v_shape)
    shape = _matmul_shape(softmax.shape, low.shape_of(v))
    arguments = {"bias": bias, "keep": softmax.arguments.get("keep")}
    given = {name: value for name, value in arguments.items() if value is not None}
    inputs = [*map(Name, logits.inputs), v]
    return low.function("attention", inputs, shape, _head(shape), scale=scale, **given)


def _is(node: Node, row: str) -> TypeGuard[Function]:
    return isinstance(node, Function) and node.function is NONLINEARITIES[row]


def _swapped(low: Lowering, x: Value) -> Value:
    if isinstance(x, Tensor):
        return x.transpose(-1, -2)
    rank = len(low.shape_of(x))
    return low.permute(low.name_of(x), [*range(rank - 2), rank - 1, rank - 2])


def _for_heads(low: Lowering, x: Value, heads: int) -> Value:
    """[..., few, S, D] to [..., heads, S, D]: each head of keys serves several of queries."""
    shape = low.shape_of(x)
    few = _fixed(shape[-3])
    if few == heads:
        return x
    x = low.name_of(x)
    split = (*shape[:-2], 1, *shape[-2:])
    spread = (*shape[:-2], heads // few, *shape[-2:])
    each = low.linear("expand", [low.reshape(x, split)], spread, shape=list(spread))
    return low.reshape(each, (*shape[:-3], heads, *shape[-2:]))
