"""A network built by hand as a graph of calls: traced, changed, reassembled.

A *call* is a node of a torch.fx graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn

from ...errors import InputError
from ...neurons.base import tensors_in
from .parts import Part, Simulator, simulator_of


class Hand:
    """A copy of a network by hand, its state reset, and the graph of its calls.

    ``edited`` says whether the graph says more than the modules do: a constant set to zero.
    Raises InputError for what cannot be followed.
    """

    def __init__(self, net: nn.Module) -> None:
        simulator = simulator_of(net)
        if simulator is None:
            raise InputError(
                f"{type(net).__name__} has no neurons of this package. A network by hand "
                "consists of layers and SignGDNode, or Norse's SignGD; convert(model, "
                "calibration) makes a spiking network of a trained model."
            )
        if simulator.part(net) is not None:
            net = nn.Sequential(net)
        self.simulator: Simulator = simulator
        self.name = type(net).__name__
        self.root = _copy(net, simulator)
        self.graph = simulator.graph(self.root) or _traced(self.root, simulator)
        self.edited = False

    def module(self, call: fx.Node) -> nn.Module | None:
        return self.root.get_submodule(str(call.target)) if call.op == "call_module" else None

    def called(self, call: fx.Node) -> nn.Module:
        module = self.module(call)
        assert module is not None
        return module

    def part(self, call: fx.Node) -> Part | None:
        module = self.module(call)
        return None if module is None else self.simulator.part(module)

    def parts(self) -> list[tuple[fx.Node, Part]]:
        """The calls of this package's modules that have a form, in order."""
        found = [(call, self.part(call)) for call in self.graph.nodes]
        return [(call, part) for call, part in found if part is not None]

    def neurons(self) -> list[fx.Node]:
        return [call for call, part in self.parts() if part.role == "neuron"]

    def readouts(self) -> list[fx.Node]:
        return [call for call, part in self.parts() if part.role == "readout"]

    def where(self, call: fx.Node) -> str:
        """A call as messages name it: the module's path and type, or an operation and its place."""
        module = self.module(call)
        if module is not None:
            return f"'{call.target}' ({type(module).__name__})"
        if call.op == "output":
            return "the output"
        path = call.meta.get("path")
        return f"'{path}' ({call.name})" if path else f"'{call.name}'"

    def check_calls(self) -> None:
        """Raises InputError if a module of this package is called more than once in a step."""
        calls = Counter(call.target for call, _ in self.parts())
        for call, _ in self.parts():
            if calls[call.target] > 1:
                raise InputError(
                    f"{self.where(call)} is called {calls[call.target]} times in one forward, "
                    "but it has one state. Use a separate node for each call, and leave the loop "
                    "over time to step_mode 'm' or to the caller."
                )

    def repeated(self) -> list[tuple[fx.Node, int]]:
        """The calls of neurons that stand at several places of one step, and how often each does.

        In a loop over time each neuron is called as often as the others, and none is fed by an
        earlier call of itself.
        """
        calls: dict[str, list[fx.Node]] = {}
        for call in self.neurons():
            calls.setdefault(str(call.target), []).append(call)
        fewest = min(map(len, calls.values()), default=0)
        several = [each for each in calls.values() if len(each) > fewest or before(each) & {*each}]
        return [(each[0], len(each)) for each in several]

    def mixed(self) -> list[fx.Node]:
        """The calls of this package's modules that run over time where most do not, or vice versa;
        those in a loop over time left out."""
        calls = Counter(call.target for call, _ in self.parts())
        modes = {call: p.over_time for call, p in self.parts() if calls[call.target] == 1}
        most = Counter(modes.values()).most_common(1)
        return [call for call, over_time in modes.items() if over_time != most[0][0]]

    # -- changes ----------------------------------------------------------------------------------

    def put(self, call: fx.Node, module: nn.Module) -> None:
        """Another module in the place of the one that is called."""
        self.root.set_submodule(str(call.target), module)

    def insert(self, name: str, module: nn.Module, value: fx.Node, user: fx.Node) -> fx.Node:
        """Between a value and one of its users."""
        path, k = name, 0
        while hasattr(self.root, path):
            path, k = f"{name}_{k + 1}", k + 1
        self.root.add_module(path, module)
        with self.graph.inserting_before(user):
            call = self.graph.call_module(path, (value,))
        user.replace_input_with(value, call)
        return call

    def remove(self, call: fx.Node) -> None:
        """Its users take what it took."""
        (value,) = call.all_input_nodes
        call.replace_all_uses_with(value)
        self.graph.erase_node(call)
        self.root.set_submodule(str(call.target), nn.Identity())

    def network(self) -> nn.Module:
        """The changed copy: a sequence where it was one and its modules say all, else a
        ``GraphModule``, with the module paths that it had."""
        children = None if self.edited else self._children()
        chain = None if children is None else self.simulator.chained(self.root, children)
        if chain is not None:
            return chain
        if self.simulator.graph(self.root) is not None:
            raise InputError(
                f"{self.name}: a module would have to be inserted into a nested sequence. Build "
                "the network as one SequentialState, without another in it."
            )
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, self.name)

    def _children(self) -> dict[str, nn.Module] | None:
        """The children of a sequence in their order, with what was inserted, without what was
        removed; None where something was inserted inside one of them."""
        order: list[str] = []
        for call in self.graph.nodes:
            key = _child(call)
            if call.op == "get_attr" or (key is None and call.op.startswith("call")):
                return None
            if key is not None and (not order or order[-1] != key):
                order.append(key)
        kept = self.root._modules
        # Dropped: what was removed. Of the others each stands once: nothing was put inside one
        if len(set(order)) != len(order):
            return None
        return {key: child for key in order if (child := kept[key]) is not None}


def _child(call: fx.Node) -> str | None:
    """The child of the network that a call belongs to."""
    path = str(call.target) if call.op == "call_module" else str(call.meta.get("path", ""))
    return path.partition(".")[0] or None


def _copy(net: nn.Module, simulator: Simulator) -> nn.Module:
    """A deep copy, its state reset; what a run with gradients has left is no obstacle."""
    copy = deepcopy(net, {id(x): x.detach() for x in _recorded(net)})
    simulator.reset(copy)
    return copy


def _recorded(net: nn.Module) -> Iterator[Tensor]:
    """The tensors of states that are of a graph, which cannot be copied."""
    for module in net.modules():
        states = [*vars(module).values(), *getattr(module, "_memories", {}).values()]
        for state in states:
            yield from [x for x in tensors_in(state) if x.grad_fn is not None]


def before(calls: Sequence[fx.Node]) -> set[fx.Node]:
    """The calls that one of these depends on."""
    found: set[fx.Node] = set()
    ahead = [n for call in calls for n in call.all_input_nodes]
    while ahead:
        call = ahead.pop()
        if call not in found:
            found.add(call)
            ahead += call.all_input_nodes
    return found


def after(calls: Sequence[fx.Node]) -> set[fx.Node]:
    """These calls and those that depend on one of them."""
    found: set[fx.Node] = set()
    ahead = list(calls)
    while ahead:
        call = ahead.pop()
        if call not in found:
            found.add(call)
            ahead += list(call.users)
    return found


# -- tracing --------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Modules of torch and of the simulators are calls, those of the user are followed."""

    def __init__(self, ours: set[nn.Module]) -> None:
        super().__init__()
        self.ours, self.within = ours, [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.ours:
            return True
        if any(part in self.ours for part in m.modules()):
            return False
        library = type(m).__module__.partition(".")[0] in ("spikingjelly", "spikingjelly_signgd")
        return library or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.within.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.within.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self.within[-1]
        return node


def _traced(net: nn.Module, simulator: Simulator) -> fx.Graph:
    # looked up before: while tracing, reading a parameter is recorded
    ours = {module for module in net.modules() if simulator.part(module) is not None}
    try:
        graph = _Tracer(ours).trace(net)
    except Exception as error:  # whatever a forward raises for proxies
        raise InputError(
            f"{type(net).__name__} cannot be traced by torch.fx: {type(error).__name__}: {error}. "
            "A network by hand is an nn.Sequential, or a module whose forward calls the same "
            "modules whatever the values are: without branches on values, and without a loop over "
            "time."
        ) from error
    graph._tracer_cls = None  # a module of it is loaded by torch's own
    return graph
