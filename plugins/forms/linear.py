"""Which calls are linear, determined by running them, and their linear part.

Spikes are increments of the decoded value, so in a spiking form they pass only through the linear
part of each call: a bias added at every step would be counted T times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import InputError
from .hand import Hand
from .resting import Run, close

# kinds of calls, by what they make of values that change
LINEAR = "linear"  # up to a constant
MOVES = "moves"  # linear, and what comes out came in
STEPS = "steps"  # linear, but steps are mixed, or their axis is made or taken away
NONLINEAR = "nonlinear"
STATEFUL = "stateful"
PLAIN = "plain"  # no floating-point tensor comes out: a shape, a number
FIRST = "first"  # none comes in: a table looked up by whole numbers


class Shift(nn.Module):
    """Adds a constant that no layer before could hold as its bias: x + bias."""

    bias: Tensor | None

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        return f"bias={None if self.bias is None else list(self.bias.shape)}"


def unlike_eval(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules, with their paths, that compute something else in training."""
    for path, module in net.named_modules():
        normed = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (normed or (drops(module) and module.p > 0)):
            yield path, module


def drops(module: nn.Module) -> bool:
    """Whether a module is a dropout of torch or of a simulator."""
    return any("Dropout" in cls.__name__ for cls in type(module).__mro__)


class Trials:
    """Calls of a run, each tried with random values of the inputs that ``varies`` names."""

    def __init__(self, hand: Hand, run: Run, over_time: bool) -> None:
        self.hand, self.run, self.over_time = hand, run, over_time

    def kind(self, call: fx.Node, varies: list[fx.Node]) -> str:
        """What a call is for these inputs, one of the kinds above."""
        if next(floats(self.run.env[call]), None) is None:
            return PLAIN if _plain(self.run.env[call]) else NONLINEAR
        if not any(True for n in varies for _ in floats(self.run.env[n])):
            return FIRST
        module = self.hand.module(call)
        if module is not None and self.hand.simulator.stateful(module):
            return STATEFUL
        if not self._affine(call, varies):
            return NONLINEAR
        if self.over_time and not self._keeps_steps(call, varies):
            return STEPS
        return MOVES if self._moves(call, varies) else LINEAR

    def constant(self, call: fx.Node, varies: list[fx.Node]) -> list[Tensor]:
        """What comes out where nothing comes in."""
        return self._of(call, self._inputs(varies, 0.0))

    def change(self, call: fx.Node, varies: list[fx.Node], seed: int = 1) -> list[Tensor]:
        """What comes out more where random values come in."""
        y = self._of(call, self._inputs(varies, 1.0, seed))
        return [a - b for a, b in zip(y, self.constant(call, varies), strict=True)]

    def _affine(self, call: fx.Node, varies: list[fx.Node]) -> bool:
        a, b = (self._inputs(varies, 1.0, seed) for seed in (1, 2))
        zero = self.constant(call, varies)
        ya, yb, both = (self._of(call, x) for x in (a, b, _sums(a, b)))
        sums = zip(both, ya, yb, zero, strict=True)
        if not all(close(s - z, (p - z) + (q - z), z) for s, p, q, z in sums):
            return False
        for factor in _factors(ya):
            scaled = self._of(call, _each(a, lambda x, k=factor: x * k))  # type: ignore[misc]
            products = zip(scaled, ya, zero, strict=True)
            if not all(close((s - z) / factor, p - z, z / factor) for s, p, z in products):
                return False
        return True

    def _keeps_steps(self, call: fx.Node, varies: list[fx.Node]) -> bool:
        """Whether step t of what comes out is made of step t alone."""
        steps = {len(x) for n in varies for x in floats(self.run.env[n]) if x.dim()}
        made = list(floats(self.run.env[call]))
        if any(y.dim() == 0 or {len(y)} != steps for y in made):
            return False
        x, zero = self._inputs(varies, 1.0), self.constant(call, varies)
        first = self._of(call, _each(x, _only_first))
        others = self._of(call, _each(x, _but_first))
        return all(
            close(a[1:], z[1:]) and close(b[:1], z[:1])
            for a, b, z in zip(first, others, zero, strict=True)
        )

    def _moves(self, call: fx.Node, varies: list[fx.Node]) -> bool:
        given = self._inputs(varies, 1.0)
        known = torch.cat([x.flatten() for value in given.values() for x in floats(value)])
        return all(bool(torch.isin(y, known).all()) for y in self._of(call, given))

    def _inputs(self, varies: list[fx.Node], size: float, seed: int = 1) -> dict[fx.Node, Any]:
        """Random values of each input, or zeros; the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            random = torch.randn(x.shape, generator=generator, dtype=torch.float32)
            return (random * size).to(x)

        return {n: _of_tensors(self.run.env[n], drawn) for n in varies}

    def _of(self, call: fx.Node, given: dict[fx.Node, Any]) -> list[Tensor]:
        copies = _each(given, Tensor.clone)  # a call may work in place
        return list(floats(self.run.again(call, copies)))


def _factors(y: list[Tensor]) -> tuple[float, float]:
    """Powers of two, which round nothing, beyond the bounds of clamps and thresholds."""
    most = 1024.0 if all(torch.finfo(a.dtype).max > 1e6 for a in y) else 16.0
    return most, 1 / most


def take_off(hand: Hand, trials: Trials, call: fx.Node, varies: list[fx.Node]) -> None:
    """Makes a call its linear part: biases and shifts of modules, constants that are added.

    Raises InputError where something else is added.
    """
    added, wanted = trials.constant(call, varies), trials.change(call, varies)
    module = hand.module(call)
    if module is not None:
        _without_bias(module)
    elif _nonzero(added):
        _zero_constants(hand, trials, call, varies)
    same = map(close, trials.change(call, varies), wanted, added)
    if _nonzero(trials.constant(call, varies)) or not all(same):
        raise InputError(
            f"{hand.where(call)} adds a constant that is not the bias of a torch layer, so it "
            "cannot be separated from the spikes. Add it as a layer's bias, or by x + constant "
            "in forward."
        )


def _without_bias(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for shift in (part.running_mean, part.bias):
                if shift is not None:
                    shift.data.zero_()
            if part.bias is not None:
                part.bias.requires_grad_(False)  # nor may it be learned
        elif isinstance(getattr(part, "bias", None), Tensor):
            part.register_parameter("bias", None)


def _zero_constants(hand: Hand, trials: Trials, call: fx.Node, varies: list[fx.Node]) -> None:
    """Sets to zero the arguments without which less comes out where nothing comes in."""
    for value in [n for n in call.all_input_nodes if n not in varies]:
        if isinstance(constant := trials.run.env[value], Tensor):
            with hand.graph.inserting_before(call):
                zero = hand.graph.call_function(torch.zeros_like, (value,))
            trials.run.env[zero] = torch.zeros_like(constant)
            if not _helps(
                hand, trials, call, varies, partial(call.replace_input_with, value, zero)
            ):
                hand.graph.erase_node(zero)
    for k, number in enumerate(call.args):
        if isinstance(number, (int, float)):
            _helps(hand, trials, call, varies, partial(call.update_arg, k, 0))
    for key, number in call.kwargs.items():
        if isinstance(number, (int, float)):
            _helps(hand, trials, call, varies, partial(call.update_kwarg, key, 0))


def _helps(
    hand: Hand, trials: Trials, call: fx.Node, varies: list[fx.Node], change: Callable[[], None]
) -> bool:
    """Makes a change of a call's arguments, and takes it back unless less comes out."""
    much, kept = trials.constant(call, varies), (call.args, call.kwargs)
    change()
    if _less(trials, call, varies, much):
        hand.edited = True
        return True
    call.args, call.kwargs = kept
    return False


def _less(trials: Trials, call: fx.Node, varies: list[fx.Node], much: list[Tensor]) -> bool:
    try:
        left = trials.constant(call, varies)
    except Exception:  # a size, or an axis, that cannot be 0
        return False
    pairs = list(zip(left, much, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return any(float(a.abs().sum()) < float(b.abs().sum()) for a, b in pairs)


def _nonzero(values: list[Tensor]) -> bool:
    return any(bool((value != 0).any()) for value in values)


def _plain(value: Any) -> bool:
    return not any(isinstance(x, Tensor) for x in (value if isinstance(value, tuple) else [value]))


def floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of what a call gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from floats(item)
    elif isinstance(value, dict):
        yield from floats(list(value.values()))


def _of_tensors(value: Any, fn: Any) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        items = [_of_tensors(item, fn) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _each(given: dict[fx.Node, Any], fn: Any) -> dict[fx.Node, Any]:
    return {n: _of_tensors(value, fn) for n, value in given.items()}


def _sums(a: dict[fx.Node, Any], b: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    added = {n: iter([x + y for x, y in zip(floats(a[n]), floats(b[n]), strict=True)]) for n in a}
    return {
        n: _of_tensors(a[n], lambda x, n=n: next(added[n]) if x.is_floating_point() else x)
        for n in a
    }


def _only_first(x: Tensor) -> Tensor:
    kept = torch.zeros_like(x)
    kept[:1] = x[:1]
    return kept


def _but_first(x: Tensor) -> Tensor:
    kept = x.clone()
    kept[:1] = 0
    return kept
