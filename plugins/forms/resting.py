"""A network built by hand with its neurons at rest: the input of each neuron is the required x(0).

Modules of this package are not run here: whatever their input, they send their resting output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import InputError
from ...neurons.base import spread
from .hand import Hand
from .parts import Part

Emit = Callable[[Part, tuple[Tensor, ...]], Tensor]


def at_rest(part: Part, inputs: tuple[Tensor, ...]) -> Tensor:
    """The decoded value of a module of this package before the first step, [T, N, *] or [N, *]."""
    if part.role != "neuron":
        return torch.zeros_like(inputs[0]) if part.role == "encode" else inputs[0]
    assert part.dynamics is not None
    return _everywhere(part, inputs, part.dynamics.resting)


def one_unit(part: Part, inputs: tuple[Tensor, ...]) -> Tensor:
    """A spike of every sender, scale, which "binary" offsets are made of."""
    if part.role != "neuron":
        return torch.ones_like(inputs[0]) if part.role == "encode" else inputs[0]
    assert part.dynamics is not None
    return _everywhere(part, inputs, part.dynamics.scale)


def _everywhere(part: Part, inputs: tuple[Tensor, ...], value: float | Tensor) -> Tensor:
    """A value that broadcasts against v, in the shape of what the neurons send."""
    assert part.dynamics is not None
    like = inputs[0]
    step = tuple(x[0] for x in inputs) if part.over_time else inputs
    shape = part.dynamics.target(*step).shape
    value = spread(torch.as_tensor(value, dtype=like.dtype, device=like.device), shape, "resting")
    return value.expand(len(like), *shape) if part.over_time else value


class Run(fx.Interpreter):
    """Values of all calls for ``example``, where modules of this package send what ``emit``
    returns.

    ``example`` is what the network is called with, several inputs as a tuple.
    """

    def __init__(self, hand: Hand, example: Any, emit: Emit = at_rest) -> None:
        super().__init__(hand.root, garbage_collect_values=False, graph=hand.graph)
        self.hand, self.emit = hand, emit
        inputs = example if isinstance(example, tuple) else (example,)
        try:
            with torch.no_grad():
                self.run(*inputs, enable_io_processing=False)
        except InputError:
            raise
        except Exception as error:  # whatever a forward raises
            reason = str(error).partition("While executing")[0].strip()
            raise InputError(
                f"{hand.name} fails on the example: {type(error).__name__}: {reason}. Pass what "
                "the network is called with, [N, *], or [T, N, *] over time."
            ) from error

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        part = self.hand.simulator.part(self.hand.root.get_submodule(target))
        return super().call_module(target, args, kwargs) if part is None else self.emit(part, args)

    def inputs(self, call: fx.Node) -> tuple[Tensor, ...]:
        """The values that a module of this package is called with."""
        given: Any = call.args
        args: tuple[Tensor, ...] = fx.node.map_arg(given, lambda n: self.env[n].detach())
        return args

    @torch.no_grad()
    def again(self, call: fx.Node, given: dict[fx.Node, Any]) -> Any:
        """What a call makes of other values of these inputs."""
        args, kwargs = fx.node.map_arg(
            (call.args, call.kwargs), lambda n: given.get(n, self.env[n])
        )
        return getattr(self, call.op)(call.target, args, kwargs)


def check_example(hand: Hand, example: Any, over_time: bool) -> None:
    """Raises InputError for an example in which steps cannot be told from samples."""
    first = example[0] if isinstance(example, tuple) else example
    if over_time and (not first.dim() or len(first) < 2):
        raise InputError(
            f"{hand.name} runs over time, and the example is {list(first.shape)}. Pass at least "
            "two rows in its first dimension, so that operations that mix time steps are "
            "detected."
        )


def samples(hand: Hand, run: Run, call: fx.Node) -> tuple[float | Tensor, ...]:
    """The inputs of a module of this package, as one step of one sample: they are the same for all.

    Where it is the same along a dimension, that has size 1, and where it is everywhere, a number.
    """
    part = hand.part(call)
    assert part is not None
    inputs, leading = run.inputs(call), 2 if part.over_time else 1
    if len({x.shape[:leading] for x in inputs}) > 1:
        raise InputError(
            f"{hand.where(call)} is called with {[list(x.shape) for x in inputs]}: in a spiking "
            "form each input has the steps and samples of the others. Pass constants as "
            "constant.expand_as(x)."
        )
    return tuple(_sample(hand, call, x, part.over_time) for x in inputs)


def _sample(hand: Hand, call: fx.Node, x: Tensor, over_time: bool) -> float | Tensor:
    rows = x.flatten(0, 1) if over_time and x.dim() > 1 else x
    if not len(rows) or not close(rows, rows[:1].expand_as(rows)):
        raise InputError(
            f"the input of {hand.where(call)} at rest differs between the samples of the "
            f"example, [{', '.join(map(str, x.shape))}]. Pass an example of the shape that the "
            "network is called with: [N, *], or [T, N, *] in step_mode 'm'."
        )
    return compact(rows[0])


def compact(x: Tensor) -> float | Tensor:
    """x without the dimensions along which it is the same, a number where it is one value."""
    for k in range(x.dim()):
        if x.shape[k] and bool((x == x.narrow(k, 0, 1)).all()):
            x = x.narrow(k, 0, 1)
    while x.dim() and x.shape[0] == 1:
        x = x[0]
    return x.clone() if x.dim() else float(x)


def close(a: Tensor, b: Tensor, beside: Tensor | None = None) -> bool:
    """Whether two tensors agree but for roundings, also of ``beside``, which was taken off."""
    if a.shape != b.shape:
        return False
    if not a.numel():
        return True
    sizes = [float(x.detach().abs().max()) for x in (a, b, *(() if beside is None else (beside,)))]
    bound = torch.finfo(a.dtype).eps ** 0.5 * max(sizes)
    return bool(((a - b).abs() <= bound).all())
