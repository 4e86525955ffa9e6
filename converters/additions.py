r"""Additions per multiply-accumulate of the source network, counted while a network is planned.

.. math::
    \frac{\sum_i n_i\, \mathrm{fan}_i + \text{MACs left}}{\text{MACs and products of the source}}

:math:`n_i` are the spikes that neuron i sends, nonzero digits, :math:`\mathrm{fan}_i` the weights
that each of them meets; one that meets none before a neuron counts one. MACs left are those on real
values, of the input once, of sums of spikes at every step, and products of two signals: all are
assumed to change at every step, so this bounds what real runs make (``analysis.count_operations``).
At T = 1 a static and a changing value that meet the same weight count once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.module import NetworkModule
from ..core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
)
from ..core.operations import LINEAR, resolve
from ..core.tally import Tally
from ..core.training import trained
from ..core.walk import Semantics, walk
from ..errors import InputError


class Left(NamedTuple):
    """MACs of one sample: on static values, once; on sums, on both together, and of two signals, at
    each step."""

    static: float
    sums: float
    both: float
    products: float


@dataclass(frozen=True, eq=False)
class Prices:
    """``fan_out`` by node, broadcasting against its values [B, ...]; ``fixed``, the MACs left of T
    ``steps``; ``source``, all of the source network. Of one sample."""

    fan_out: dict[str, Tensor]
    left: Left
    source: float
    steps: int

    @property
    def fixed(self) -> float:
        # at T = 1 what is static and what moves meet a weight together
        first, each = self.left.both, self.left.sums
        summed = first if self.steps == 1 else self.left.static + self.steps * each
        return summed + self.steps * self.left.products

    def at(self, steps: int) -> Prices:
        return replace(self, steps=steps)

    @staticmethod
    @torch.inference_mode(False)
    @torch.enable_grad()
    def of(network: SpikingNetwork, steps: int) -> Prices:
        paths, source = _Paths(network, False), _Paths(network, True)
        for semantics in (paths, source):
            walk(network, semantics, keep=())
        senders = list(paths.ones)
        met = torch.stack([torch.zeros((), dtype=torch.double), *paths.met]).sum()
        each = [paths.ones[name] for name in senders]
        grads = torch.autograd.grad(met, each, allow_unused=True) if paths.met and each else ()
        found = {
            name: _fitting(network[name], one, grad)
            for name, one, grad in zip(senders, each, grads, strict=True)
        }
        left = Left(paths.static, paths.sums, paths.both, paths.products)
        return Prices(found, left, source.static + source.products, steps)

    def per_mac(self, synaptic: Tensor) -> Tensor:
        return (synaptic + self.fixed) / max(1.0, self.source)


def counting(snn: NetworkModule) -> NetworkModule:
    """Turns the module of a parametrised network into one with gradients and a tally."""
    network = snn.network
    if snn.spikes != "decoded":
        raise ValueError(
            "a trainable network passes decoded values: do not pass spikes, and after training "
            'build(collect(snn), spikes="signed").'
        )
    prices = Prices.of(network, network.time_steps)
    snn.tally, snn.prices = Tally(network, prices.fan_out), prices
    return snn


def additions(snn: NetworkModule) -> Tensor:
    """Additions of one sample per multiply-accumulate of the source, with a gradient.

    Of all forward passes since the run began (a reset, in Norse a call without state): the mean
    over their batch, as the module's docstring counts it; at T = 1 what
    ``analysis.count_operations`` counts. If a run continues after a backward pass, as with detached
    states, earlier spikes still count, without a gradient. Raises InputError before a forward pass,
    and if neurons do not report their spikes.
    """
    snn = trained("additions", snn)
    tally: Any = snn.tally
    if not tally.steps:
        raise InputError(
            "additions counts the spikes of the last forward pass, on samples of the size that "
            "the network was built for; call the network first."
        )
    silent = [name for name in tally.fan_out if name not in tally.sent]
    if silent:
        raise InputError(
            f"additions: the spikes of {', '.join(silent[:5])} have no gradient; those of signGD "
            "and group neurons have one. Penalise the magnitude of activations instead."
        )
    sent = torch.stack([*tally.sent.values()]).sum() if tally.sent else torch.zeros(())
    prices: Prices = snn.prices  # type: ignore[assignment]
    found = prices.at(tally.steps).per_mac(sent / tally.samples)
    if found.requires_grad:  # backward frees the graph of what was sent until now
        before = dict(tally.sent)
        found.register_hook(lambda grad: tally.settle(before))
    return found


def _fitting(node: Node, one: Tensor, grad: Tensor | None) -> Tensor:
    """What broadcasts against the values of any batch: by value where the batch leads."""
    fan = torch.zeros_like(one[0]) if grad is None else grad[0].detach()
    led = node.shape[:1] == ("1*batch",) and not any("batch" in str(s) for s in node.shape[1:])
    return (fan if led else fan.mean()).float()


class _Signal(NamedTuple):
    """[1, 1, ...] or None: spikes that pass, and 1 where a sum changes or a value is static."""

    spikes: Tensor | None = None
    sums: Tensor | None = None
    static: Tensor | None = None


class _Paths(Semantics[_Signal]):
    """One spike from each neuron: how many connections it meets, ``met``, and the MACs left."""

    def __init__(self, network: SpikingNetwork, source: bool) -> None:
        self.network, self.source = network, source
        self.ones: dict[str, Tensor] = {}
        self.met: list[Tensor] = []
        self.sums = self.static = self.both = self.products = 0.0

    def _ones(self, node: Node) -> Tensor:
        return torch.ones(1, *resolve(node.shape, 1), dtype=torch.double)

    def input(self, node: Input) -> _Signal:
        return _Signal(static=self._ones(node))

    def constant(self, node: Constant) -> _Signal:
        return _Signal()

    def encoder(self, node: Encoder, inputs: list[_Signal]) -> _Signal:
        if self.source:
            return _Signal(static=self._ones(node))
        return _Signal(sums=self._ones(node)) if node.code is None else self._sent(node)

    def average(self, node: Average, inputs: list[_Signal]) -> _Signal:
        return _Signal(static=self._ones(node)) if self.source else inputs[0]

    def neuron(self, node: Neuron, inputs: list[_Signal]) -> _Signal:
        self._arrive(node, inputs)
        return _Signal(static=self._ones(node)) if self.source else self._sent(node)

    def function(self, node: Function, inputs: list[_Signal]) -> _Signal:
        moves = any(s.spikes is not None or s.sums is not None for s in inputs)
        if moves or self.source:
            self._arrive(node, inputs)
        return _Signal(sums=self._ones(node)) if moves else _Signal(static=self._ones(node))

    def _sent(self, node: Node) -> _Signal:
        self.ones[node.name] = self._ones(node).requires_grad_()
        return _Signal(spikes=self.ones[node.name])

    def _arrive(self, node: Function, inputs: list[_Signal]) -> None:
        self.met += [s.spikes.sum() for s in inputs if s.spikes is not None]
        self.products += float(self.network.products(node))

    def linear(self, node: Linear, inputs: list[_Signal]) -> _Signal:
        spikes, sums, static = (
            self._through(node, [s[i] for s in inputs]) for i in range(len(_Signal._fields))
        )
        if not LINEAR[node.op].weighted:
            return _Signal(spikes, _mask(sums), _mask(static))
        if spikes is not None:
            self.met.append(spikes.sum())
        moved = [_either(s.sums, s.static) for s in inputs]
        both = self._through(node, moved)
        self.sums += 0.0 if sums is None else float(sums.sum())
        self.static += 0.0 if static is None else float(static.sum())
        self.both += 0.0 if both is None else float(both.sum())
        return _Signal(sums=_either(spikes, sums), static=_mask(static))

    def _through(self, node: Linear, parts: list[Tensor | None]) -> Tensor | None:
        if all(part is None for part in parts):
            return None
        shapes = [resolve(self.network[name].shape, 1) for name in node.inputs]
        values = [
            torch.zeros(1, *shape, dtype=torch.double) if part is None else part
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return node.arriving(values, 1)


def _mask(value: Tensor | None) -> Tensor | None:
    return None if value is None else (value > 0).double()


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """1 where there is something of one of them."""
    parts = [part.detach() for part in (a, b) if part is not None]
    return _mask(sum(parts[1:], parts[0])) if parts else None
