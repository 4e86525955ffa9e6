"""The walk through the captured graph, and the nodes that handlers make with it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...core.inputs import kind_of
from ...core.network import Constant, Function, Input, Linear, Node, Static
from ...core.operations import Size, follows_batch, resolve
from ...core.operations.statics import MOVING
from ...errors import CaptureError
from ...neurons.nonlinearities import NONLINEARITIES, Nonlinearity
from ..capture import Captured, size_of
from ..constants import (
    SAMPLES,
    BatchConstant,
    Masked,
    Unsettled,
    batch_constant,
    for_batch,
    of_batches,
)
from ..rules import Entry, NotConvertible, Operation, Rule, find_rule
from ..uses import used
from .options import Coverage, Options
from .statics import INDEXES, as_float, check_even, exactly
from .tables import (
    ASSERTIONS,
    BROADCASTING,
    HANDLERS,
    IDENTITY,
    LEAF_NAMES,
    LOCAL,
    MOVES,
    OTHERWISE,
    TAKES_MASKED,
    VIEWS,
    no_neuron,
)
from .values import (
    Name,
    Value,
    broadcast,
    compressed,
    flat,
    has_node,
    holds,
    map_structure,
    one_for_all_samples,
    reduced,
)


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
        self.exact: dict[str, str] = {}  # values that depend on whole numbers alone: their dtype
        self.absorbed: set[str] = set()  # functions that attention computes in their place
        self._env: dict[fx.Node, Value] = {}
        self.here: fx.Node
        self._batch: Any = None
        for node in captured.graph.nodes:
            self._visit(node)
        self.outputs = map_structure(captured.outputs, self._output)
        self._report_absorbed()

    def _visit(self, node: fx.Node) -> None:
        self.here = node
        if node.op == "placeholder":
            if node.name in self._captured.inputs:
                self._batch = node.meta["val"].shape[0].node.expr
                self._env[node] = self._input(node, self._captured.inputs[node.name])
            else:
                self._env[node] = self._captured.constants.get(node.name)
        elif node.op == "call_function":
            if node.target is operator.getitem:
                self._env[node] = self._item(node)
            elif isinstance(node.target, OpOverload) and "sym_" not in node.target.name():
                self._lower(node, node.target)

    def _input(self, node: fx.Node, name: str) -> str:
        dtype = kind_of(node.meta["val"].dtype)
        if dtype != "float":
            self.exact[name] = dtype
        return self._emit(Input(name=name, shape=self.shape(node), dtype=dtype))

    def _output(self, node: fx.Node) -> str:
        self.here = node
        try:
            return self.name_of(as_float(self, self._env[node]))
        except NotConvertible as problem:
            why, _, fix = str(problem).partition("; ")
            self._report("unsupported", why, fix)
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
            why, _, fix = str(problem).partition("; ")
            self._report("unsupported", why, fix)
            value = self._placeholder(node)
        else:
            self._classify(self.nodes[before:], value)
        self._env[node] = value

    def _value(self, node: fx.Node, target: OpOverload, args: Any, kwargs: Any) -> Value:
        packet = target.overloadpacket
        if packet in ASSERTIONS:
            return None
        if not has_node((args, kwargs)):
            return self._fold(target, args, kwargs)
        if packet not in INDEXES:
            for value in flat((args, kwargs)):
                check_even(value)
        args, kwargs, value = exactly(self, packet, args, kwargs)
        if value is not None:
            return value
        if packet in BROADCASTING:
            args, kwargs = fx.node.map_aggregate(  # type: ignore[assignment]
                (args, kwargs), one_for_all_samples
            )
        if holds(Masked, (args, kwargs)):
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
        return OTHERWISE[0](self)

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
            self._report("neuron", listed(functions))
        elif value is None or isinstance(value, (Tensor, BatchConstant, Unsettled)):
            self._report("constant")
        elif isinstance(value, str) and (value in self.exact or _exact(made)):
            self._report("exact", ", ".join(n.op for n in made if isinstance(n, Static)))
        else:
            ops = [n.op for n in made if isinstance(n, Linear)]
            self._report("linear", ", ".join(ops) or "identity")

    def _report_absorbed(self) -> None:
        seen = {node.name for node in used(self.nodes, self.outputs)}
        for row, functions in self._made.items():
            left = [n for n in functions if n.name in seen or n.name not in self.absorbed]
            detail = listed(left) or "part of attention"
            self.coverage[row] = replace(self.coverage[row], detail=detail)

    def _report(self, becomes: str, detail: str = "", fix: str = "") -> None:
        path, module = module_of(self.here)
        operation = str(self.here.target)
        self.coverage.append(Coverage(path, operation, module, becomes, detail, fix))

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
        """Of constants a constant, computed for one, two and three samples where that matters."""
        if target in VIEWS:  # a constant need not lie in memory as it does in the model
            target = torch.ops.aten.reshape.default
        if not holds((BatchConstant, Unsettled, Masked, fx.Node), (args, kwargs)):
            value = target(*args, **kwargs)
            return list(value) if isinstance(value, (list, tuple)) else value

        def compute(samples: int) -> Any:
            def given(value: Any) -> Any:
                if isinstance(value, fx.Node):
                    return self.number(value.meta["val"], samples)
                return for_batch(value, samples)

            here_args, here_kwargs = fx.node.map_aggregate((args, kwargs), given)  # type: ignore[misc]
            return target(*here_args, **here_kwargs)

        values = [compute(samples) for samples in SAMPLES]
        if isinstance(values[0], (list, tuple)):
            return [of_batches(each, target) for each in zip(*values, strict=True)]
        return of_batches(values, target)

    def _identity(self, value: Value) -> Value:
        result = self.here.meta["val"]
        if not result.dtype.is_floating_point:
            raise NotConvertible(
                f"{self.here.target} converts the network's signals to {result.dtype}; keep them "
                "floating-point"
            )
        return value

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

    def number(self, size: Any, samples: int) -> int:
        """A size of the source network, as a number for a batch of ``samples``."""
        return size if isinstance(size, int) else int(size.node.expr.subs(self._batch, samples))

    def value(self, node: fx.Node) -> Value:
        """What an argument became; a size that follows the batch stays a node of the graph."""
        return self._env.get(node, node)

    def arguments(self, samples: int, signals: Mapping[fx.Node, Tensor]) -> Any:
        """Those of the operation being lowered, for a batch of ``samples``: (args, kwargs)."""

        def given(node: fx.Node) -> Any:
            value = self.value(node)
            if node in signals:
                return signals[node]
            if isinstance(value, fx.Node):
                return self.number(value.meta["val"], samples)
            value = for_batch(value, samples)
            return value.double() if _is_floating(value) else value

        return fx.node.map_arg((self.here.args, self.here.kwargs), given)

    def with_channel(self, name: str, channel: int | None) -> str:
        """The node, its channels along another dimension."""
        self._channel[name] = channel
        return name

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
        check_even(value)
        if isinstance(value, fx.Node):
            raise NotConvertible(
                "a size that depends on the batch is used as a number; compute it outside the model"
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
                "number, -inf is supported only in the mask of a softmax"
            )
        name = self._unique("constant")
        return self._emit(Constant(name=name, shape=tuple(value.shape), value=value))

    def fixed(self, value: Tensor) -> str:
        """A constant of the type that it has, for what is computed exactly."""
        name = self._unique("constant")
        return self._emit(Constant(name=name, shape=tuple(value.shape), value=value))

    def _spread_over_batch(self, value: BatchConstant) -> str:
        shape = value.sizes
        if value.tensor is not None:
            return self.linear("expand", [compressed(value.tensor)], shape, shape=list(shape))
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
        if op in MOVING and all(name in self.exact for name in names):
            return self.static(op, names, shape, self.exact[names[0]], tensors, **attributes)
        node = Linear(
            name=self._unique(self._path(op)),
            inputs=names,
            shape=tuple(shape),
            op=op,
            attributes=attributes,
            tensors={k: v.detach() for k, v in (tensors or {}).items() if v is not None},
        )
        return self._emit(node, channel)

    def static(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Sequence[Size],
        dtype: str,
        tensors: Mapping[str, Tensor | None] | None = None,
        /,
        **attributes: Any,
    ) -> str:
        """What is computed exactly, of whole numbers alone; ``dtype`` says what it makes."""
        node = Static(
            name=self._unique(self._path(op)),
            inputs=tuple(str(self.name_of(value)) for value in inputs),
            shape=tuple(shape),
            dtype=dtype,
            op=op,
            attributes=attributes,
            tensors={k: v.detach() for k, v in (tensors or {}).items() if v is not None},
        )
        if op != "embedding" or dtype != "float":  # which the network sees as its signals
            self.exact[node.name] = dtype
        return self._emit(node)

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
        channel = self.channel_without(x, dims, keepdim)
        return self.linear(
            op, [x], shape, channel, dim=[d - rank for d in dims], keepdim=bool(keepdim)
        )

    def channel_without(self, x: Value, dims: Sequence[int], keepdim: bool) -> int | None:
        """The channels of ``x`` once ``dims``, counted from the front, are reduced."""
        channel, rank = self.channel_of(x), len(self.shape_of(x))
        if channel is None or channel % rank in dims:
            return None
        return channel if keepdim else channel + sum(1 for d in dims if d > channel % rank)

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

    def _emit(self, node: Node, channel: int | None = None) -> str:
        self.nodes.append(node)
        self._by_name[node.name] = node
        self._channel[node.name] = channel
        return Name(node.name)

    def _path(self, suffix: str) -> str:
        path, module = module_of(self.here)
        name = str(getattr(self.here.target, "overloadpacket", suffix)).split(".")[-1]
        if module.startswith("torch.nn.") and path:
            return path if suffix in LEAF_NAMES.get(name, (name,)) else f"{path}.{suffix}"
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
            raise NotConvertible(no_neuron(self.here.target))
        try:
            arguments = rule.arguments(*rest, **kwargs)
        except TypeError as error:
            raise NotConvertible(
                f"{self.here.target} has arguments that its rule does not accept ({error}); pass "
                "a converters.Rule whose `arguments` reads them"
            ) from error
        if row.name in LOCAL and not self.options.whole(row.name):
            return self.result(LOCAL[row.name](self, inputs[0], **arguments))
        if row.name == "amax":
            arguments["dim"] = reduced(arguments["dim"], len(self.shape_of(inputs[0])))
        channel = next((c for c in map(self.channel_of, inputs) if c is not None), None)
        if row.name == "amax":
            channel = None
        return self.result(self.function(row, inputs, self.shape(), channel, **arguments))


def is_row(node: Node, *rows: str) -> TypeGuard[Function]:
    """Whether it computes the function of one of these rows."""
    known = [NONLINEARITIES[row] for row in rows]
    return isinstance(node, Function) and any(node.function is row for row in known)


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


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def listed(functions: Sequence[Function]) -> str:
    return ", ".join(node.function.name for node in functions)


def _exact(made: Sequence[Node]) -> bool:
    return any(isinstance(node, Static) for node in made)
