"""Whether a network may run at other sizes of its input: it is compared with the model there.

At each size that is asked for the model is captured again, and what differs is kept as data
(``core/sizes.py``). Where nothing but shapes differs, the model is captured once more with its
sizes as symbols: if no operation takes one as an argument, the network runs at every size between
the bounds that torch.export's guards leave.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ..core.inputs import Batch, Inputs, value_of
from ..core.modes import eval_mode
from ..core.network import Constant, Function, Linear, Node, SpikingNetwork, Static, is_affine
from ..core.operations import resolve
from ..core.resizing import resized
from ..core.sizes import as_shapes, shown
from ..errors import CalibrationError, CaptureError, InputError
from .capture import _masks_unread

LARGEST = 4096  # up to which the guards of torch.export are looked at
Shape = tuple[int, ...]
Lower = Callable[[Batch], SpikingNetwork]  # the model as a network, from a batch
Field = tuple[str, str]  # ("attributes", "size")


def check_sizes(
    network: SpikingNetwork, model: nn.Module, x: Batch, sizes: Sequence[Any], lower: Lower
) -> dict[str, Any]:
    """What ``sizes``, shapes of samples, change in the network: ``provenance["sizes"]``.

    ``network`` is the model as ``lower`` makes it from x. Raises InputError, naming the node, for a
    size that the model or the network does not take.
    """
    base = {node.name: tuple(value_of(x, node.name).shape[1:]) for node in network.inputs}
    wanted = [as_shapes(list(base), (size,)) for size in sizes]
    others = [_lowered(network, x, shapes, lower) for shapes in wanted]
    fields = _differing(network, others)
    checked: list[dict[str, Any]] = [
        {
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "changes": _changes(other, fields),
        }
        for shapes, other in zip([base, *wanted], [network, *others], strict=True)
    ]
    for each, other in zip(checked[1:], others, strict=True):
        _check_equal(resized(network, each["shapes"], each["changes"]), other, each["shapes"])
    scaled = sorted(name for name in fields if _scales(name, [network, *others]))
    between = None
    if set(fields) <= set(scaled) and isinstance(x, Tensor):
        (name,) = base
        bounds = _between(model, x, [shapes[name] for shapes in wanted])
        between = {name: bounds} if bounds else None
    return {"checked": checked, "between": between, "scaled": scaled}


# -- at the sizes asked for -----------------------------------------------------------------------


def _lowered(
    network: SpikingNetwork, x: Batch, shapes: Mapping[str, Shape], lower: Lower
) -> SpikingNetwork:
    """The model captured at another size: the same nodes in the same places."""
    try:
        other = lower(_cut(x, shapes))
    except (CalibrationError, CaptureError) as error:
        resized(network, shapes, {})  # which names the node that fixes the size
        raise InputError(f"sizes: at samples {shown(shapes)} {error}") from error
    for have, want in zip(network.nodes, other.nodes, strict=False):
        if _kind(have) != _kind(want):
            _refuse(
                have,
                shapes,
                f"is {_kind(want)[0]} at this size: the model computes another function",
            )
    if len(network.nodes) != len(other.nodes):
        _refuse(
            network.nodes[-1],
            shapes,
            "is not the last at this size: the model computes another function",
        )
    return other


def _cut(x: Batch, shapes: Mapping[str, Shape]) -> Batch:
    """Two samples of other shapes, of the values that there are: ids and masks that can be."""
    if isinstance(x, Inputs):
        return Inputs({name: _tiled(value, shapes[name]) for name, value in x.tensors.items()})
    (shape,) = shapes.values()
    return _tiled(x, shape)


def _tiled(x: Tensor, shape: Shape) -> Tensor:
    for d, size in enumerate((2, *shape)):
        if d < x.dim():
            x = x.index_select(d, torch.arange(size, device=x.device) % x.shape[d])
    return x if x.dim() == 1 + len(shape) else x.new_zeros(2, *shape)


def _kind(node: Node) -> tuple[str, ...]:
    what = getattr(node, "op", "") or getattr(getattr(node, "function", None), "name", node.kind)
    return what, node.name, *node.inputs


def _refuse(node: Node, shapes: Mapping[str, Sequence[int]], why: str) -> NoReturn:
    raise InputError(
        f"sizes: the network does not run on samples {shown(shapes)}, because {node.name!r} {why}. "
        "Convert the model at that size."
    )


def _fields(node: Node) -> Iterator[tuple[Field, Any]]:
    """What a node holds besides its shape; the shape of an affine operation is but that."""
    parts: dict[str, Mapping[str, Any]] = {}
    if isinstance(node, (Linear, Static)):
        shape = {"shape"} if is_affine(node) else set()
        kept = {k: v for k, v in node.attributes.items() if k not in shape}
        parts = {"attributes": kept, "tensors": node.tensors}
    elif isinstance(node, Constant):
        parts = {"tensors": {"value": node.value}}
    elif isinstance(node, Function):
        parts = {"arguments": node.arguments}
    for part, values in parts.items():
        yield from (((part, name), value) for name, value in values.items())


def _differing(
    network: SpikingNetwork, others: Iterable[SpikingNetwork]
) -> dict[str, dict[Field, None]]:
    """The fields of each node that are not the same at all sizes."""
    found: dict[str, dict[Field, None]] = {}
    for other in others:
        for have, want in zip(network.nodes, other.nodes, strict=True):
            there = dict(_fields(want))
            for field, value in _fields(have):
                if not _same(value, there.get(field)):
                    found.setdefault(have.name, {})[field] = None
    return found


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    listed = isinstance(one, (list, tuple)) and isinstance(two, (list, tuple))
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return False
    return list(one) == list(two) if listed else bool(one == two)


def _changes(
    network: SpikingNetwork, fields: Mapping[str, Iterable[Field]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Those fields as they are in ``network``, in JSON: a tensor by its shape."""
    changes: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in fields.items():
        held = dict(_fields(network[name]))
        for part, key in own:
            value = held[part, key]
            plain = list(value.shape) if isinstance(value, Tensor) else value
            plain = list(plain) if isinstance(plain, tuple) else plain
            changes.setdefault(name, {}).setdefault(part, {})[key] = plain
    return changes


def _check_equal(
    have: SpikingNetwork, want: SpikingNetwork, shapes: Mapping[str, Sequence[int]]
) -> None:
    for one, two in zip(have.nodes, want.nodes, strict=True):
        there = dict(_fields(two))
        for (_, key), value, other in ((f, v, there.get(f)) for f, v in _fields(one)):
            if not _same(value, other):
                _refuse(one, shapes, f"has another {key} at this size, computed from it")
        if one.shape != two.shape:
            _refuse(one, shapes, f"makes {list(one.shape)} where the model gives {list(two.shape)}")


def _scales(name: str, networks: Sequence[SpikingNetwork]) -> bool:
    """Whether an upsampling is by the same whole factors at all sizes."""
    ratios = set()
    for network in networks:
        node = network[name]
        if not isinstance(node, Linear) or node.op != "upsample":
            return False
        size = node.attributes["size"]
        before = resolve(network[node.inputs[0]].shape, 1)[-len(size) :]
        whole = all(n % b == 0 for n, b in zip(size, before, strict=True))
        ratios.add(tuple(n // b for n, b in zip(size, before, strict=True)) if whole else name)
    return len(ratios) == 1 and name not in ratios


# -- at all sizes between bounds ------------------------------------------------------------------


def _between(model: nn.Module, x: Tensor, wanted: Sequence[Shape]) -> list[list[int]] | None:
    """The smallest and largest of each size, if no operation of the model reads one."""
    base = tuple(x.shape[1:])
    if any(len(s) != len(base) for s in wanted) or all(prod(s) == prod(base) for s in wanted):
        return None
    free = [d for d in range(len(base)) if any(shape[d] != base[d] for shape in wanted)]
    program = _symbolic(model, x, free)
    if program is None:
        return None
    (sample,) = [n.meta["val"] for n in program.graph.nodes if n.name in _inputs(program)]
    symbols = [size.node.expr if not isinstance(size, int) else None for size in sample.shape]
    own = {d: symbols[1 + d] for d in free}
    plain = all(getattr(s, "is_symbol", False) for s in own.values())
    if not plain or len({*own.values(), symbols[0]}) <= len(free) or _reads(program, symbols[0]):
        return None
    guards = sample.fake_mode.shape_env.guards
    return _bounds([str(guard.expr) for guard in guards], str(symbols[0]), own, base)


def _symbolic(model: nn.Module, x: Tensor, free: Sequence[int]) -> Any:
    """The model exported with those sizes as symbols; None where that fails."""
    dynamic: dict[int, Any] = {1 + d: torch.export.Dim.DYNAMIC for d in free}
    dynamic[0] = torch.export.Dim("batch")
    sample = torch.cat([x[:1], x[:1]])
    try:
        with eval_mode(model), _masks_unread(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (sample,), dynamic_shapes=(dynamic,), strict=False)
            return program.run_decompositions({})
    except Exception:  # torch has many; without the proof only the sizes asked for are allowed
        return None


def _inputs(program: Any) -> list[str]:
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT"]


def _reads(program: Any, batch: Any) -> bool:
    """Whether an operation takes a size other than the batch as an argument."""
    for node in program.graph.nodes:
        if node.op == "call_function" and _computes(node):
            sizes = [n.meta.get("val") for n in node.all_input_nodes]
            numbers = [s for s in sizes if isinstance(s, (torch.SymInt, torch.SymFloat))]
            if any(s.node.expr.free_symbols - {batch} for s in numbers):
                return True
    return False


def _computes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and "sym_" not in node.target.name()


def _bounds(
    guards: Sequence[str], batch: str, own: Mapping[int, Any], base: Shape
) -> list[list[int]] | None:
    """Around the base, as far as all guards hold; None where they hold not for all together."""
    holds = [compile(guard, "guard", "eval") for guard in guards]
    start = {str(symbol): base[d] for d, symbol in own.items()}

    def fits(sizes: Mapping[str, int]) -> bool:
        names = {"Ne": _not_equal, "Eq": _equal, "Mod": _modulo, "Max": max, "Min": min}
        try:
            return all(eval(guard, {**names, batch: 2, **sizes}) for guard in holds)
        except (NameError, TypeError, ArithmeticError):  # a function of torch's that is new here
            return False

    if not fits(start):
        return None
    found = [[n, n] for n in base]
    for d, symbol in own.items():
        for end, step in ((0, -1), (1, 1)):
            while 1 <= found[d][end] + step <= LARGEST and fits(
                {**start, str(symbol): found[d][end] + step}
            ):
                found[d][end] += step
    corners = product(*(found[d] for d in own))
    together = all(fits(dict(zip(map(str, own.values()), at, strict=True))) for at in corners)
    return found if together else None


def _not_equal(one: int, two: int) -> bool:
    return one != two


def _equal(one: int, two: int) -> bool:
    return one == two


def _modulo(one: int, two: int) -> int:
    return one % two
