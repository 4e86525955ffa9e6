"""A network of group neurons as layers of integers, [out, in], ready for netx.

Between two neuron layers lies an affine map, however many convolutions, pools and reshapes compute
it; it is unrolled by applying them to the unit vectors, in float64. In units of the receiver's
quantum theta = v_threshold / m a layer is

    h = v + W n_before + b;   n = clip(floor(h), 0, m);   v = h - n,      v(0) = the initial charge

with n_before the number of members that fired. Times an integer V, and rounded, that is what
Lava computes: W becomes multiples of 2 ** (9 - weight_bits) within +-254, V and b even, V <= 254.
Thresholds that differ from channel to channel are so in the weights: W is that of the operations
times theta_before (by column) over theta (by row).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.network import (
    Average,
    Constant,
    Encoder,
    Function,
    GroupNeuron,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
)
from ...core.operations import apply, apply_linear, follows_batch
from ...core.training import check_collected
from ...core.walk import Semantics, visits
from ...errors import FormatError
from .netx import LARGEST_BIAS

LARGEST_WEIGHT = 254  # even integers within it are what 8 bits hold
SMALLEST_V = 6  # below, a threshold has no room between its neighbours
TRIED = 64  # thresholds
LONGEST_BIAS = 16 * LARGEST_WEIGHT
ONE_CHAIN = (
    "what runs on Lava here is one chain of layers; save the network as a description (.h5), or "
    "train one without branches and products of activations (examples: vgg)."
)

CODES = (
    "codes the input, but a netx file is fed bit planes of the input itself; convert with "
    'input_coding="exact".'
)
# neurons that are refused whatever function they have
REFUSED = {
    "signgd identity": CODES,
    "subgradient": "is a subgradient neuron, which no Lava process computes; convert with "
    'method="group".',
    "group": "is a group neuron among signGD neurons; convert by one method.",
}
POOL = "train with average pooling, which is folded into the weights"
RUN = (
    "run it by plugins.lava.SignGDNetwork (a custom Lava process), or convert a QCFS network with "
    'method="group"'
)
SAVE = "save the network as a description (.h5), or train without this operation"
# the others by kind: what they are called, and the fix
CALLED = {"signgd": ("a signGD neuron of", RUN), "growth": ("the growth of", POOL)}

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
AnyNeuron = TypeVar("AnyNeuron", bound=Neuron)


@dataclass(frozen=True, eq=False)
class AffineMap(Generic[AnyNeuron]):
    """One neuron layer's input, or the read-out: ``weight`` [out, in] and ``bias`` [out].

    ``neuron`` is None for the read-out; ``name`` is the neuron's, or the output's.
    """

    name: str
    weight: Floats
    bias: Floats
    neuron: AnyNeuron | None


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer in integers. ``scale``: weight units for 1.0 of a membrane, or of the output; [out]
    where the thresholds of the layer differ.

    ``theta`` and ``charge`` are 0 for the read-out.
    """

    name: str
    weight: Integers  # [out, in]; what one spike of the layer before adds
    bias: Integers  # [out]; what every step adds
    members: int
    theta: int
    charge: Integers  # [out]
    scale: float | Floats
    wanted: Floats  # the weights before rounding, in the same units
    wanted_bias: Floats

    @property
    def readout(self) -> bool:
        return self.theta == 0


def affine_maps(
    network: SpikingNetwork, neurons: type[AnyNeuron], largest: int
) -> list[AffineMap[AnyNeuron]]:
    """The maps before each neuron layer and before the output.

    Raises FormatError for a network that is not one chain of linear operations and ``neurons``, or
    whose maps have more than ``largest`` weights.
    """
    check_output(network)
    refuse(_refused(network, neurons), "Lava cannot run this network:")
    chain = _Chain(network, neurons, largest)
    for _ in visits(network, chain, {}):
        pass
    if not chain.maps:
        raise FormatError(
            "the network has no spiking neurons, so there is nothing to run on Lava; convert a "
            "model with activations."
        )
    if neurons is GroupNeuron and not chain.averaged and network.time_steps > 1:
        raise FormatError(
            f"the output of the network is that of its last step of {network.time_steps}, but "
            "Lava's read-out sums over all steps; end the network with an average over the "
            "steps, as convert(..., method='group') does, or make it for one step."
        )
    chain.end(str(network.outputs), None)
    return chain.maps


def _refused(network: SpikingNetwork, neurons: type[AnyNeuron]) -> list[str]:
    """For each node that cannot be a link of a chain, the reason."""
    found: list[str] = []
    links = _Links(network, neurons, 0)
    for node in network.nodes:
        if len(node.inputs) > 1:
            found.append(_joins(node))
            continue
        try:
            node.visit(links, [None] * len(node.inputs))
        except FormatError as error:
            found.append(str(error))
    if not any(len(node.inputs) > 1 for node in network.nodes):
        found += _not_sequential(network)
    return found


def refuse(reasons: Sequence[str], head: str) -> None:
    """Raises FormatError of all reasons, if there are any."""
    lines = list(dict.fromkeys(reasons))
    if lines:
        raise FormatError("\n  ".join(lines if len(lines) == 1 else [head, *lines]))


class _Chain(Semantics[None], Generic[AnyNeuron]):
    """Collects the maps of a network; what is no link of a chain is refused."""

    def __init__(self, network: SpikingNetwork, neurons: type[AnyNeuron], largest: int) -> None:
        self.links = {node.name: node for node in network.of(neurons)}
        self.largest = largest
        self.maps: list[AffineMap[AnyNeuron]] = []
        self.operations: list[Linear] = []
        self.source: Node = network.input
        self.averaged = False

    def input(self, node: Input) -> None:
        if not node.coded:
            raise FormatError(
                f"'{node.name}' computes with token ids or a mask, which Lava files cannot hold; "
                "save the network as HDF5."
            )

    def constant(self, node: Constant) -> None:
        raise FormatError(
            f"'{node.name}' is a constant that joins the chain; fold it into a bias of the model."
        )

    def linear(self, node: Linear, inputs: list[None]) -> None:
        self.operations.append(node)

    def average(self, node: Average, inputs: list[None]) -> None:
        self.averaged = True  # the mean of affine maps is the map of the mean

    def encoder(self, node: Encoder, inputs: list[None]) -> None:
        raise FormatError(f"'{node.name}' {CODES}")

    def function(self, node: Function, inputs: list[None]) -> None:
        raise FormatError(f"'{node.name}' {_refusal(node)}")

    def neuron(self, node: Neuron, inputs: list[None]) -> None:
        link = self.links.get(node.name)
        if link is None:
            return self.function(node, inputs)
        if self.averaged:
            raise FormatError(
                f"'{node.name}' follows a running mean; convert all neurons by one method."
            )
        self.end(node.inputs[0], link)
        self.operations, self.source = [], node

    def end(self, value: str, neuron: AnyNeuron | None) -> None:
        self.maps.append(_compose(self.operations, self.source, value, neuron, self.largest))


class _Links(_Chain[AnyNeuron]):
    """The same without the maps: what is no link is refused."""

    def end(self, value: str, neuron: AnyNeuron | None) -> None:
        pass


def check_output(network: SpikingNetwork) -> None:
    if not isinstance(network, SpikingNetwork):
        raise FormatError(
            f"Lava takes the SpikingNetwork that convert returned, not {type(network).__name__}; "
            "get it from a built module as module.network, from a trainable one by "
            "collect(module)."
        )
    check_collected(network)
    last = network.nodes[-1].name
    if network.outputs != last:
        raise FormatError(
            f"netx has one output, the last layer '{last}', but the network returns "
            f"{network.outputs!r}; convert a model that returns one tensor."
        )


def _joins(node: Node) -> str:
    """The refusal of a node of several inputs."""
    values = " and ".join(f"'{name}'" for name in node.inputs)
    return f"'{node.name}' is {node.visit(_Words(), [])} of {values}, but {ONE_CHAIN}"


class _Words(Semantics[str]):
    """What joins several values."""

    def linear(self, node: Linear, inputs: list[str]) -> str:
        kinds = {"add": "a residual sum", "cat": "a concatenation"}
        return kinds.get(node.op, f"the operation {node.op}")

    def function(self, node: Function, inputs: list[str]) -> str:
        return f"a {node.function.name}"

    neuron = function


def _not_sequential(network: SpikingNetwork) -> list[str]:
    """netx layers follow one another: a value goes to one layer, and a layer takes one."""
    users: dict[str, list[str]] = {}
    for node in network.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node.name)
    found, current = [], network.input.name
    for node in network.nodes:
        if node.inputs and (node.inputs != (current,) or len(users[current]) != 1):
            readers = ", ".join(f"'{name}'" for name in users.get(current, [])) or "nothing"
            found.append(f"'{current}' is read by {readers}, but {ONE_CHAIN}")
        current = node.name
    return found


def _refusal(node: Function) -> str:
    name = node.function.name
    refused = REFUSED.get(f"{node.kind} {name}") or REFUSED.get(node.kind)
    if refused:
        return refused
    called, fix = CALLED.get(node.kind, ("the function", SAVE))
    if name in ("max_pool", "amax"):
        fix = POOL
    elif node.function.arity != 1:
        fix = SAVE
    return f"is {called} {name}, but Lava's own neurons compute only integrate-and-fire; {fix}."


def _compose(
    chain: Sequence[Linear],
    source: Node,
    value: str,
    neuron: AnyNeuron | None,
    largest: int,
) -> AffineMap[AnyNeuron]:
    name = neuron.name if neuron is not None else value
    for node in chain:
        if node.shape[0] != "1*batch" or any(map(follows_batch, node.shape[1:])):
            raise FormatError(
                f"'{node.name}' mixes the samples of a batch with one another, and Lava runs one "
                "sample; keep the batch in the first dimension."
            )
    entering = _size(source)
    leaving = _size(chain[-1]) if chain else entering
    if entering * leaving > largest:
        raise FormatError(
            f"'{name}': its unrolled weights would be {leaving} x {entering}, more than "
            f"max_weights = {largest}; use a smaller network, stride instead of resolution, or "
            "raise max_weights where memory allows."
        )
    shape = source.shape[1:]

    def through(run: Callable[..., Tensor], x: Tensor) -> Tensor:
        batch = len(x)
        x = x.reshape(batch, *shape)  # type: ignore[arg-type]
        for node in chain:
            tensors = {
                key: t.double() if t.is_floating_point() else t for key, t in node.tensors.items()
            }
            x = run(node.op, [x], node.attributes, tensors, batch)
        return x.reshape(batch, -1)

    units = torch.eye(entering, dtype=torch.float64)
    rows = max(1, 2**22 // max(1, entering, leaving))
    columns = [through(apply_linear, block) for block in units.split(rows)]
    weight = torch.cat(columns).T.contiguous().numpy()
    bias = through(apply, torch.zeros(1, entering, dtype=torch.float64))[0].numpy()
    for what, values in (("weights", weight), ("bias", bias)):
        if not np.isfinite(values).all():
            raise FormatError(
                f"'{name}': its {what} hold NaN or infinity, which netx would silently turn into "
                "the largest negative weight; fix the model first."
            )
    x = torch.rand(3, entering, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(through(apply, x).numpy(), x.numpy() @ weight.T + bias), name
    return AffineMap(name, weight, bias, neuron)


def _size(node: Node) -> int:
    return math.prod(size for size in node.shape[1:] if isinstance(size, int))


def quantise(
    maps: Sequence[AffineMap[GroupNeuron]],
    planes: Sequence[float],
    low: float,
    weight_bits: int,
    largest_theta: int,
    fits: Callable[[IntegerLayer], bool],
) -> list[IntegerLayer]:
    """Each map in integers, the first with a column for each bit plane of the input.

    A plane is worth ``planes[b]`` of the input, which starts at ``low``. V of a layer, at most
    ``largest_theta``, is the one with the smallest weight error of those that ``fits`` accepts.
    Raises FormatError.
    """
    first = maps[0]
    columns = np.concatenate([first.weight * worth for worth in planes], axis=1)
    shifted = first.bias + first.weight.sum(1) * low
    layers: list[IntegerLayer] = []
    incoming = np.ones(1)  # what one spike of the layer before is worth
    for i, m in enumerate(maps):
        weight, bias = (columns, shifted) if i == 0 else (m.weight * incoming, m.bias)
        if not weight.any():
            raise FormatError(
                f"'{m.name}': all weights are zero, which netx cannot load; the network's output "
                "does not depend on its input."
            )
        if m.neuron is None:
            layers.append(_readout(m.name, weight, bias, weight_bits, fits))
        else:
            layers.append(_neurons(m.neuron, weight, bias, weight_bits, largest_theta, fits))
            incoming = by_neuron(m.neuron, m.neuron.v_threshold) / m.neuron.members
    return layers


def by_neuron(neuron: GroupNeuron, value: float | Tensor) -> Floats:
    """A parameter of each neuron, [N]."""
    wide = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    out: Floats = wide.expand((1, *neuron.shape[1:])).reshape(-1).numpy()  # type: ignore[arg-type]
    return out


def _rounded(weight: Floats, weight_bits: int) -> Integers:
    step = 2 ** (9 - weight_bits)
    rounded: Integers = (np.rint(weight / step) * step).astype(np.int64)
    return rounded


def _largest(weight_bits: int) -> int:
    """The largest weight on the grid of this many bits."""
    return int(2 ** (9 - weight_bits)) * (2 ** (weight_bits - 1) - 1)


def _neurons(
    neuron: GroupNeuron,
    weight: Floats,
    bias: Floats,
    weight_bits: int,
    largest_theta: int,
    fits: Callable[[IntegerLayer], bool],
) -> IntegerLayer:
    thetas = by_neuron(neuron, neuron.v_threshold) / neuron.members
    charges = by_neuron(neuron, neuron.initial_charge)
    relative, relative_bias = weight / thetas[:, None], bias / thetas
    largest = float(np.abs(relative).max())
    top = largest_theta
    added = float(np.abs(relative_bias).max())
    if added * top > LONGEST_BIAS:  # no channels by the hundred for a finer threshold
        top = max(min(top, LARGEST_WEIGHT), int(LONGEST_BIAS / added))
    if largest * top > _largest(weight_bits):
        top = int(_largest(weight_bits) / largest)
    best: tuple[float, IntegerLayer] | None = None
    # a larger V rounds finer: the best is among the largest
    for theta in range(top - top % 2, max(SMALLEST_V, top // 2) - 2, -2)[:TRIED]:
        if theta & (theta - 1) == 0:
            continue  # Lava would use -255 for the feedback of a power of two
        charge = np.rint(charges * theta).astype(np.int64)
        if max(charge.max(), (neuron.members - 1) * theta - charge.min()) > LARGEST_BIAS:
            continue
        wanted, wanted_bias = relative * theta, relative_bias * theta
        rounded = _rounded(wanted, weight_bits)
        error = float(np.square((rounded - wanted) / theta).sum())
        if best is not None and error >= best[0]:
            continue
        layer = IntegerLayer(
            neuron.name,
            rounded,
            _rounded(wanted_bias, 8),
            neuron.members,
            theta,
            charge,
            theta / thetas if isinstance(neuron.v_threshold, Tensor) else theta / float(thetas[0]),
            wanted,
            wanted_bias,
        )
        if fits(layer):
            best = error, layer
    if best is None:
        raise FormatError(
            f"'{neuron.name}': no integer threshold between {SMALLEST_V} and {largest_theta} "
            f"leaves its weights within +-{_largest(weight_bits)}: one spike adds up to "
            f"{largest:.3g} thresholds (v_threshold / members), and {neuron.members} members need "
            f"initial charges within {LARGEST_BIAS}. Use fewer members, a larger v_threshold "
            "(clip the outlying weights), more weight_bits, or one threshold for all channels: "
            "convert(..., scale='tensor')."
        )
    return best[1]


def _readout(
    name: str,
    weight: Floats,
    bias: Floats,
    weight_bits: int,
    fits: Callable[[IntegerLayer], bool],
) -> IntegerLayer:
    scale = _largest(weight_bits) / float(np.abs(weight).max())
    rounded = _rounded(weight * scale, weight_bits)
    added = _rounded(bias * scale, 8)
    none = np.zeros(len(weight), np.int64)
    layer = IntegerLayer(name, rounded, added, 1, 0, none, scale, weight * scale, bias * scale)
    if not fits(layer):
        raise FormatError(
            f"'{name}': Lava would compute with other weights than the read-out's (range "
            f"{rounded.min()}..{rounded.max()}), unless both signs occur. Add an output unit "
            "with a weight of the other sign."
        )
    return layer


def integer_counts(
    layers: Sequence[IntegerLayer], planes: NDArray[np.integer[Any]], time_steps: int
) -> tuple[list[Integers], Integers]:
    """The dynamics above in integers: n of each layer [B, out, T], and the read-out's sum.

    ``planes`` [B, in] are the input's bit planes, the same at every step. Soft reset, no delays:
    what the lowered network means, against which the file is checked.
    """
    batch = len(planes)
    v = [np.full((batch, len(layer.weight)), layer.charge) for layer in layers]
    sent: list[list[Integers]] = [[] for _ in layers[:-1]]
    for _ in range(time_steps):
        value = planes.astype(np.float64)
        for i, layer in enumerate(layers):
            v[i] = v[i] + (value @ layer.weight.T).astype(np.int64) + layer.bias
            if layer.readout:
                break
            n = (v[i] // layer.theta).clip(0, layer.members)
            v[i] = v[i] - n * layer.theta
            sent[i].append(n)
            value = n.astype(np.float64)
    return [np.stack(seen, axis=-1) for seen in sent], v[-1]


def float_outputs(maps: Sequence[AffineMap[GroupNeuron]], x: Floats, time_steps: int) -> Floats:
    """The network's outputs [B, classes] before any rounding, for inputs x [B, in]."""
    batch = len(x)
    v = [np.zeros((batch, len(m.weight))) for m in maps]
    for m, potential in zip(maps, v, strict=True):
        if m.neuron is not None:
            theta = by_neuron(m.neuron, m.neuron.v_threshold) / m.neuron.members
            potential += by_neuron(m.neuron, m.neuron.initial_charge) * theta
    first = x @ maps[0].weight.T
    for _ in range(time_steps):
        value: Any = None
        for i, m in enumerate(maps):
            current = first if i == 0 else value @ m.weight.T
            h = v[i] + (current + m.bias)
            if m.neuron is None:
                v[i] = h
                break
            theta = by_neuron(m.neuron, m.neuron.v_threshold) / m.neuron.members
            value = sum((h >= k * theta for k in range(1, m.neuron.members + 1)), 0 * h) * theta
            v[i] = h - value
    return v[-1] / time_steps
