"""NirRunner: any NIR graph, one step at a time, in NumPy.

It knows only NIR's primitives and uses no information about the writer. NIR is continuous in time
and leaves the discrete step to its reader; here a step of ``dt`` is

- ``I``:  v += dt r x, added edge by edge in the order of edges; sends v.
- ``IF``: v += dt r x; fires where v > v_threshold; v = v_reset there.
- ``LI``, ``LIF``: v += dt / tau ((v_leak - v) + r x), then as above.
- ``Threshold``: 1 where x > threshold. All others as their formula.

A step passes through all nodes without delay, but for feedback edges, which carry the value of the
step before (zero at first). A feedback edge is one that closes a cycle at the one node by which the
cycle is entered; where a cycle is entered by several, NIR does not say where its delay lies, and
the graph is refused.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ...errors import FormatError, InputError
from .reader import read_graph

Array = NDArray[Any]
Edges = list[tuple[str, str]]


class NirRunner:
    """Runs a NIR file or ``nir.NIRGraph``; arithmetic is in the type of its arrays.

    What readers of IF and LIF nodes choose differently can be chosen: ``ties="fire"`` fires at
    v >= v_threshold, ``reset="subtract"`` takes v_threshold off. ``dt`` defaults to that of the
    file's metadata, else 1. Nodes of inner graphs are called "outer/inner".
    """

    def __init__(
        self,
        source: Any,
        *,
        ties: str = "strict",
        reset: str = "v_reset",
        dt: float | None = None,
    ) -> None:
        if ties not in ("strict", "fire") or reset not in ("v_reset", "subtract"):
            raise ValueError(
                f'ties is "strict" or "fire" and reset "v_reset" or "subtract", not {ties!r} and '
                f"{reset!r}."
            )
        if isinstance(source, (str, os.PathLike)):
            source = read_graph(source)
        self.ties, self.subtract = ties, reset == "subtract"
        self.dt = _step(source) if dt is None else dt
        self.nodes: dict[str, Any] = {}
        edges: Edges = []
        self.aliases: dict[str, str] = {}  # an inner graph's name, for what it sends
        _unnest(source, "", self.nodes, edges, self.aliases)
        self.input_name, self.output_names = _ends(source)
        for name, node in self.nodes.items():
            if type(node).__name__ not in STEPS:
                raise FormatError(
                    f"node '{name}' is a nir.{type(node).__name__}, which this runner does not "
                    f"know; it runs {', '.join(STEPS)}."
                )
        feedback = _feedback(self.nodes, edges)
        self.order = _sorted(self.nodes, [edge for edge in edges if edge not in feedback])
        self.inputs: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        for source_name, target in edges:
            self.inputs[target].append((source_name, (source_name, target) in feedback))
        for name, node in self.nodes.items():
            if name != self.input_name and not self.inputs[name]:
                raise FormatError(f"node '{name}' has no input; add an edge to it or remove it.")
            _check_arrays(name, node)
        self.delayed = {source_name for source_name, _ in feedback}
        self.dtype = np.result_type(*(_floats(self.nodes) or [np.dtype(np.float32)]))
        self.reset()

    def reset(self) -> None:
        """Before the first step: potentials and what feedback edges carry are zero."""
        self.state: dict[str, Array] = {}
        self.before: dict[str, Array] = {}

    def step(self, x: Any) -> dict[str, Array]:
        """One step of the input [B, ...]; what every node sends, by name."""
        x = np.asarray(x, self.dtype)
        shape = tuple(int(n) for n in self.nodes[self.input_name].input_type["input"])
        if x.shape[1:] != shape:
            raise InputError(
                f"the input is [B, {', '.join(map(str, shape))}], not {list(x.shape)}."
            )
        values: dict[str, Array] = {}
        for name in self.order:
            node = self.nodes[name]
            if name == self.input_name:
                values[name] = x
                continue
            arriving = [
                self.before.get(source) if delayed else values[source]
                for source, delayed in self.inputs[name]
            ]
            currents = [value for value in arriving if value is not None]
            try:
                values[name] = STEPS[type(node).__name__](self, name, node, currents)
            except (ValueError, IndexError, TypeError, MemoryError) as error:
                sizes = " and ".join(str(list(v.shape)) for v in currents)
                raise FormatError(
                    f"node '{name}' (nir.{type(node).__name__}) does not fit its input of shape "
                    f"{sizes}: {error}"
                ) from error
        self.before = {name: values[name] for name in self.delayed}
        return values

    def run(
        self, x: Any, time_steps: int, *, record: Iterable[str] = (), sequence: bool = False
    ) -> dict[str, Array]:
        """From a fresh state: what the outputs, and the nodes ``record``, send, [T, B, ...].

        x is [B, ...], the same at each step, or [T, B, ...] with ``sequence=True``. The decoded
        output of a network is the mean over the first axis.
        """
        names = [*self.output_names, *record]
        for name in names:
            if self.aliases.get(name, name) not in self.nodes:
                raise KeyError(f"no node is called {name!r}; there are: {', '.join(self.names())}")
        self.reset()
        kept: dict[str, list[Array]] = {name: [] for name in names}
        for t in range(time_steps):
            values = self.step(x[t] if sequence else x)
            for name in names:
                kept[name].append(values[self.aliases.get(name, name)])
        self.reset()
        return {name: np.stack(seen) for name, seen in kept.items()}

    def names(self) -> list[str]:
        """The nodes of the outermost graph, which ``record`` takes."""
        return [name for name in (*self.nodes, *self.aliases) if "/" not in name]

    def fire(self, v: Array, threshold: Array) -> Array:
        above = v >= threshold if self.ties == "fire" else v > threshold
        return above.astype(v.dtype)

    def spike(self, name: str, node: Any, v: Array) -> Array:
        """Fires and resets; keeps the potential."""
        z = self.fire(v, node.v_threshold)
        after = v - z * node.v_threshold if self.subtract else np.where(z > 0, node.v_reset, v)
        self.state[name] = after.astype(v.dtype)
        return z


# -- what a node does in one step ---------------------------------------------------------------


def _total(currents: Sequence[Array]) -> Array:
    total = currents[0]
    for current in currents[1:]:
        if current.shape != total.shape:
            raise ValueError("edges of different shapes lead into it")
        total = total + current
    return total


def _pass(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    return _total(x)


def _integrator(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    v = run.state.get(name, np.zeros_like(x[0]))
    for current in x:
        _elementwise(node.r, current)
        v = v + current * node.r * run.dtype.type(run.dt)
    run.state[name] = v
    return v


def _integrate_and_fire(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    return run.spike(name, node, _integrator(run, name, node, x))


def _leaky(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    current = _total(x)
    _elementwise(node.r, current)
    v = run.state.get(name, np.zeros_like(current))
    # computed in float64: a leak below float32's rounding is not lost before it is multiplied
    change = run.dt / np.float64(node.tau) * ((node.v_leak - v) + node.r * current)
    v = (v + change).astype(run.dtype)
    run.state[name] = v
    return v


def _leaky_fire(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    return run.spike(name, node, _leaky(run, name, node, x))


def _threshold(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    total = _total(x)
    _elementwise(node.threshold, total)
    return (total > node.threshold).astype(total.dtype)


def _scale(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    total = _total(x)
    _elementwise(node.scale, total)
    return total * node.scale


def _affine(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    total = _total(x)
    if node.weight.ndim != 2 or total.ndim != 2:
        raise ValueError("a matrix acts on one dimension")
    out = total @ node.weight.T
    return out + node.bias if hasattr(node, "bias") else out


def _conv(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    total, weight = _total(x), np.asarray(node.weight)
    spatial = weight.ndim - 2
    if total.ndim != spatial + 2:
        raise ValueError(f"its weight is {list(weight.shape)}")
    stride, dilation = _sizes(node.stride, spatial), _sizes(node.dilation, spatial)
    padding = _padding(node.padding, weight.shape[2:], dilation)
    return convolve(
        total, weight, np.asarray(node.bias), stride, padding, dilation, int(node.groups)
    )


def _avg_pool(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    kernel = _sizes(node.kernel_size, 2)
    return _sum_pool(run, name, node, x) / run.dtype.type(kernel[0] * kernel[1])


def _sum_pool(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    kernel, stride, padding = (_sizes(v, 2) for v in (node.kernel_size, node.stride, node.padding))
    seen = windows(_total(x), kernel, stride, [(p, p) for p in padding], [1, 1])
    return seen.sum((-2, -1))


def _flatten(run: NirRunner, name: str, node: Any, x: Sequence[Array]) -> Array:
    """Dimensions count without the batch."""
    total = _total(x)
    shape, rank = total.shape[1:], total.ndim - 1
    start, end = (int(d) % rank for d in (node.start_dim, node.end_dim))
    return total.reshape(len(total), *shape[:start], -1, *shape[end + 1 :])


Step = Callable[[NirRunner, str, Any, Sequence[Array]], Array]
STEPS: dict[str, Step] = {
    "Input": _pass,
    "Output": _pass,
    "I": _integrator,
    "IF": _integrate_and_fire,
    "LI": _leaky,
    "LIF": _leaky_fire,
    "Threshold": _threshold,
    "Scale": _scale,
    "Affine": _affine,
    "Linear": _affine,
    "Conv1d": _conv,
    "Conv2d": _conv,
    "AvgPool2d": _avg_pool,
    "SumPool2d": _sum_pool,
    "Flatten": _flatten,
}


def windows(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Array:
    """[B, C, *size] to [B, C, *positions, *kernel], a view of the padded array."""
    spatial = len(kernel)
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    seen = sliding_window_view(x, reach, axis=tuple(range(2, 2 + spatial)))
    positions = [slice(None, None, s) for s in stride]
    inside = [slice(None, None, d) for d in dilation]
    view: Array = seen[(slice(None), slice(None), *positions, *inside)]
    return view


def convolve(
    x: Array,
    weight: Array,
    bias: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Cross-correlation as torch's: x [B, C, *size], weight [O, C / groups, *kernel]."""
    if x.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise ValueError(f"its weight is {list(weight.shape)} in {groups} groups")
    seen = windows(x, weight.shape[2:], stride, padding, dilation)
    spatial = len(stride)
    batch, size = len(x), seen.shape[2 : 2 + spatial]
    # [groups, B * positions, C / groups * kernel] @ [groups, C / groups * kernel, O / groups]
    grouped = seen.reshape(batch, groups, -1, *size, *weight.shape[2:])
    axes = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
    columns = grouped.transpose(axes).reshape(groups, batch * int(np.prod(size)), -1)
    matrix = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    out = (columns @ matrix).reshape(groups, batch, *size, -1)
    out = np.moveaxis(out, (0, -1), (1, 2)).reshape(batch, len(weight), *size)
    return out + bias.reshape(-1, *[1] * spatial)


def _sizes(value: Any, spatial: int) -> list[int]:
    return [int(v) for v in np.broadcast_to(np.asarray(value).reshape(-1), spatial)]


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and after; "same" puts the odd one after, as torch does."""
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        return [(p, p) for p in _sizes(value, len(kernel))]
    if value == "valid":
        return [(0, 0)] * len(kernel)
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [(n // 2, n - n // 2) for n in total]


def _elementwise(parameter: Any, x: Array) -> None:
    if tuple(np.shape(parameter)) != x.shape[1:]:
        raise ValueError(f"its parameters are {list(np.shape(parameter))}")


def _check_arrays(name: str, node: Any) -> None:
    for key, value in vars(node).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            if not np.isfinite(value).all():
                raise FormatError(f"node '{name}' holds NaN or infinity in {key}; write it again.")


def _floats(nodes: dict[str, Any]) -> list[np.dtype[Any]]:
    arrays = (value for node in nodes.values() for value in vars(node).values())
    return [a.dtype for a in arrays if isinstance(a, np.ndarray) and a.dtype.kind == "f"]


# -- the graph ----------------------------------------------------------------------------------


def _step(graph: Any) -> float:
    try:
        return float((graph.metadata or {}).get("dt", 1.0))
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"the file's dt is not a number ({error}); pass NirRunner(path, dt=...)."
        ) from error


def _ends(graph: Any) -> tuple[str, list[str]]:
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    inputs = [name for name, kind in kinds.items() if kind == "Input"]
    outputs = [name for name, kind in kinds.items() if kind == "Output"]
    if len(inputs) != 1 or not outputs:
        raise FormatError(
            f"a graph that runs has one Input and at least one Output, not {len(inputs)} and "
            f"{len(outputs)}."
        )
    return inputs[0], outputs


def _unnest(
    graph: Any, prefix: str, nodes: dict[str, Any], edges: Edges, aliases: dict[str, str]
) -> None:
    """Inner graphs become part of the outer one; their ends are nodes that pass values on."""
    entries, exits = {}, {}
    for name, node in graph.nodes.items():
        full = prefix + name
        if type(node).__name__ == "NIRGraph":
            inside, outside = _ends(node)
            if len(outside) > 1:
                raise FormatError(f"the inner graph '{full}' has {len(outside)} outputs, not one.")
            entries[name], exits[name] = f"{full}/{inside}", f"{full}/{outside[0]}"
            aliases[full] = exits[name]
            _unnest(node, f"{full}/", nodes, edges, aliases)
        else:
            nodes[full] = node
            entries[name] = exits[name] = full
    for source, target in graph.edges:
        if source not in exits or target not in entries:
            raise FormatError(f"the edge {(source, target)} names a node that is not there.")
        edges.append((exits[source], entries[target]))


def _feedback(names: Iterable[str], edges: Edges) -> set[tuple[str, str]]:
    """The edges that close cycles, each at the node where its cycle is entered."""
    found: set[tuple[str, str]] = set()
    parts = [(set(names), edges)]
    while parts:
        inside, links = parts.pop()
        for component in _components(inside, links):
            own = [(a, b) for a, b in links if a in component and b in component]
            if not own:
                continue
            entered = {b for a, b in links if b in component and a not in component}
            if not entered:  # seen from further out, the entry has been cut already
                entered = {b for a, b in edges if b in component and a not in component}
            if len(entered) != 1:
                raise FormatError(
                    f"the cycle through {', '.join(map(repr, sorted(component)[:4]))} is entered "
                    f"at {len(entered)} nodes, so NIR does not say where its delay lies. Enter it "
                    "at one."
                )
            (head,) = entered
            back = {(a, b) for a, b in own if b == head}
            found |= back
            parts.append((component, [edge for edge in own if edge not in back]))
    return found


def _components(names: Iterable[str], edges: Edges) -> list[set[str]]:
    """Strongly connected components (Tarjan), without recursion."""
    readers: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        readers[source].append(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    components = []
    for root in names:
        if root in index:
            continue
        work = [(root, iter(readers[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            name, rest = work[-1]
            for target in rest:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(readers[target])))
                    break
                if target in on_stack:
                    low[name] = min(low[name], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    component = set()
                    while name not in component:
                        component.add(stack.pop())
                    on_stack -= component
                    components.append(component)
    return components


def _sorted(names: Iterable[str], edges: Edges) -> list[str]:
    waiting = dict.fromkeys(names, 0)
    readers: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        waiting[target] += 1
        readers[source].append(target)
    order = [name for name, n in waiting.items() if n == 0]
    for name in order:
        for target in readers[name]:
            waiting[target] -= 1
            if waiting[target] == 0:
                order.append(target)
    assert len(order) == len(waiting), "without its feedback edges the graph has no cycle"
    return order
