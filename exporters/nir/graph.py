r"""A network of group neurons as a graph of NIR nodes.

A group neuron of m members is written with NIR's primitives as a graph of its own::

    input -> integrator -> member_001 .. member_m -> scale_output -> output
                 ^                   |
                 +-- scale_inhibit <-+          (the one feedback edge; no Delay)

All members see the same potential, so one integrator serves them. NIR has no initial state: the
potential u of the graph is v - v(0), and member k fires where
:math:`u \ge k\theta - v(0)`. NIR's Threshold is strict, so the threshold written is the largest
number of the file's type below :math:`k\theta - v(0)`. ``scale_inhibit`` is
:math:`-\theta`, ``scale_output`` :math:`\theta`: what leaves is n theta, as in the definition.

A feedback edge carries the value of the step before: subtracting at the end of a step and at the
beginning of the next are the same.

A signed group neuron may fire negative spikes, at most as many as it has sent, N. With r =
#{members above} - #{members below} of one step, :math:`N \leftarrow \max(N + r, 0)` and n is the
growth of N, which a second
integrator counts::

    integrator -> mirror (-1) -> negative_001 .. negative_m -> negative_sum (-1) --+
    integrator -> member_001 .. member_m ------------------------------------------+-> number
    number -> number_mirror (-1) -> number_under_001 .. number_under_m (where N + r <= -k)
                                                 +-----------> number, in the next step
    members, negative_sum, number_under -> scale_inhibit, scale_output

The integrator ``number`` holds N + r; the excess below zero arrives one step later, before it is
needed. All of these are integers, so nothing is rounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.network import (
    Encoder,
    Function,
    GroupNeuron,
    Input,
    Linear,
    Neuron,
    Node,
    SpikingNetwork,
)
from ...core.operations import follows_batch
from ...core.structures import leaves, tagged
from ...errors import FormatError
from ...neurons.group import GroupNeuronParameters
from ...neurons.rounding import Rounded

Array = NDArray[Any]

MODES = ("exact", "platform")
DIALECTS = ("nir", "legacy", "lif")
POOLING = ("pool", "conv")
FORMAT_VERSION = "1.0"
# a LIF whose leak is below rounding is an IF; readers of LIF nodes take dt for 1e-4
LIF_TAU, LIF_DT = 1e5, 1e-4
LARGEST_WEIGHT = 2**27  # values; grouped convolutions grow when they are written densely


@dataclass(frozen=True)
class NirReport(Rounded):
    """What ``write_nir`` wrote. ``losses`` are what the file does not compute as the network does;
    ``notes`` are what its reader has to know."""

    mode: str
    dialect: str
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"NIR, mode {self.mode}, dialect {self.dialect}"
        lines = [f"{head}: {len(self.losses) or 'no'} loss{'es' * (len(self.losses) != 1)}"]
        lines += [f"  lost: {loss}" for loss in self.losses]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class _Refused(Exception):
    """One node cannot be written; the message says why and the fix."""


@dataclass(frozen=True)
class _Value:
    """A value of the network: ``amplitude`` times the sum of what the NIR nodes ``sources`` send.

    ``shape`` is without the batch.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    amplitude: float = 1.0


def group_thresholds(parameters: GroupNeuronParameters, dtype: Any) -> Array:
    """For each member the number of ``dtype`` that u exceeds exactly where the member fires.

    [m], or [m, ...] with the dimensions of thresholds and charges that are tensors. k theta and
    v(0) are rounded to ``dtype`` as the definition rounds them; their difference is not, and the
    result is the largest number below it.
    """
    levels, start = _levels(parameters, dtype)
    nearest, rest = _exact_sum(levels, -start)
    return np.where(rest <= 0, np.nextafter(nearest, nearest.dtype.type(-np.inf)), nearest)


def negative_thresholds(parameters: GroupNeuronParameters, dtype: Any) -> Array:
    """Likewise what -u exceeds where h is below 0, -theta, ..: the largest number up to it."""
    levels, start = _levels(parameters, dtype)
    levels = np.concatenate([np.zeros_like(levels[:1]), levels[:-1]])
    nearest, rest = _exact_sum(levels, start)
    return np.where(rest < 0, np.nextafter(nearest, nearest.dtype.type(-np.inf)), nearest)


def in_type(p: GroupNeuronParameters, dtype: Any) -> GroupNeuronParameters:
    """The parameters with their tensors in ``dtype``: theta is rounded in the network's type."""
    like = torch.from_numpy(np.empty(0, dtype))
    v_threshold, charge = (
        v.detach().cpu().to(like.dtype) if isinstance(v, torch.Tensor) else v
        for v in (p.v_threshold, p.initial_charge)
    )
    # what is not finite in it is refused by its name
    return GroupNeuronParameters(p.members, v_threshold, charge, p.signed, check=False)


def _levels(parameters: GroupNeuronParameters, dtype: Any) -> tuple[Array, Array]:
    """k theta, [m, ...], and v(0), of equal dimensions but for m."""
    like = torch.from_numpy(np.empty(0, dtype))
    p = in_type(parameters, dtype)
    levels, start = p.thresholds(like), torch.as_tensor(p.v_initial, dtype=like.dtype)
    rank = max(levels.dim() - 1, start.dim())
    levels = levels.reshape(len(levels), *[1] * (rank + 1 - levels.dim()), *levels.shape[1:])
    return levels.numpy(), start.numpy()


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b to the nearest number, and what is left to the exact sum (Knuth's two-sum)."""
    nearest = np.asarray(a + b)
    part = nearest - a
    return nearest, (a - (nearest - part)) + (b - part)


def group_subgraph(
    nir: Any, shape: Sequence[int], parameters: GroupNeuronParameters, dtype: Any, metadata: Any
) -> Any:
    """The graph of this module's head, for neurons of ``shape``.

    Names are in the order of evaluation when sorted: files come back alphabetically, and readers
    that go by position deliver the feedback one step later only so. The feedback edge stands before
    the input's, so that a reader that adds up in the order of edges rounds as the definition does.
    """
    count = range(1, parameters.members + 1)
    digits = max(3, len(str(parameters.members)))

    def full(value: Any) -> Array:
        return np.full(shape, value, dtype)

    theta = np.asarray(in_type(parameters, dtype).theta, dtype)
    members = [f"member_{k:0{digits}}" for k in count]
    nodes = {"input": nir.Input(np.array(shape)), "integrator": nir.I(full(1))}
    for name, threshold in zip(members, group_thresholds(parameters, dtype), strict=True):
        nodes[name] = nir.Threshold(full(threshold))
    edges = [("scale_inhibit", "integrator"), ("input", "integrator"), ("scale_output", "output")]
    edges += [("integrator", name) for name in members]
    counted = members
    if parameters.signed:
        negatives = [f"negative_{k:0{digits}}" for k in count]
        unders = [f"number_under_{k:0{digits}}" for k in count]
        nodes["mirror"] = nir.Scale(full(-1))
        for name, threshold in zip(negatives, negative_thresholds(parameters, dtype), strict=True):
            nodes[name] = nir.Threshold(full(threshold))
        nodes["negative_sum"] = nir.Scale(full(-1))
        nodes["number"], nodes["number_mirror"] = nir.I(full(1)), nir.Scale(full(-1))
        for k, name in zip(count, unders, strict=True):
            nodes[name] = nir.Threshold(full(k - 0.5))
        edges += [("integrator", "mirror"), *(("mirror", name) for name in negatives)]
        edges += [(name, "negative_sum") for name in negatives]
        edges += [(name, "number") for name in (*unders, *members, "negative_sum")]
        edges += [("number", "number_mirror"), *(("number_mirror", name) for name in unders)]
        counted = [*members, "negative_sum", *unders]
    nodes["output"] = nir.Output(np.array(shape))
    nodes["scale_inhibit"], nodes["scale_output"] = nir.Scale(full(-theta)), nir.Scale(full(theta))
    for name in counted:
        edges += [(name, "scale_inhibit"), (name, "scale_output")]
    return nir.NIRGraph(nodes, edges, metadata=metadata)


class GraphWriter:
    """Walks over a network and collects NIR nodes and edges.

    Names sort in topological order, between ``input`` and ``output``. In mode "platform" spikes
    are 0 or 1, and their amplitude travels along until the next weights, which it multiplies.
    """

    def __init__(
        self,
        nir: Any,
        network: SpikingNetwork,
        mode: str,
        dialect: str,
        pooling: str,
        time_steps: int | None,
    ) -> None:
        self.nir, self.network, self.mode, self.dialect = nir, network, mode, dialect
        self.pooling = pooling
        self.dt = LIF_DT if dialect == "lif" else 1.0
        self.time_steps = network.time_steps if time_steps is None else time_steps
        double = str(network.dtype) == "torch.float64"
        self.dtype = np.dtype(np.float64 if double and mode == "exact" else np.float32)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[str, _Value] = {}
        self.means: dict[str, str] = {}  # outputs that are means: of what
        self.losses: dict[str, list[str]] = {}  # what is lost: where
        self.meant: dict[str, dict[str, Any]] = {}  # what the plain neurons of a platform stand for
        # at most four for each node of the network: two materialised sums, the node, a Flatten
        self.digits = len(str(4 * len(network.nodes)))
        if mode != "exact" and double:
            self.lose("weights and thresholds are rounded from float64 to float32")
        if str(network.dtype) in ("torch.float16", "torch.bfloat16"):
            self.lose(f"arithmetic is float32, where the network's is {network.dtype}")

    # -- the walk -----------------------------------------------------------------------------

    def write(self) -> tuple[Any, NirReport]:
        refused: dict[str, list[str]] = {}  # why: what
        skipped: set[str] = set()
        for node in self.network.nodes:
            if any(name in skipped for name in node.inputs):
                skipped.add(node.name)  # its input is not written; that one is named
                continue
            try:
                inputs = [self.values[name] for name in node.inputs]
                self.values[node.name] = node.visit(self, inputs)
            except _Refused as error:
                refused.setdefault(str(error), []).append(f"'{node.name}' ({operation(node)})")
                if not self.stands_in(node):
                    skipped.add(node.name)
        lines = [f"{', '.join(what)}: {why}" for why, what in refused.items()]
        outputs = [] if lines else self.outputs(lines)
        if lines:
            raise FormatError(
                "NIR cannot express this network:\n" + "\n".join(f"  {line}" for line in lines)
            )
        report = NirReport(self.mode, self.dialect, self.lost(), self.notes())
        metadata = self.metadata(outputs, report)
        try:
            return self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata), report
        except ValueError as error:
            raise FormatError(
                f"NIR's type check refuses the graph of this network: {error}"
            ) from error

    def stands_in(self, node: Node) -> bool:
        """A value of the shape of what cannot be written, so that what follows is looked at too."""
        try:
            self.values[node.name] = _Value((node.name,), plain_shape(node))
        except _Refused:
            return False
        return True

    def input(self, node: Input) -> _Value:
        if not self.network.plain:
            raise _Refused(
                "NIR graphs written here take one floating-point tensor, not several, token ids or "
                "masks. Save the network as HDF5."
            )
        shape = plain_shape(node)
        self.nodes["input"] = self.nir.Input(np.array(shape))
        return _Value(("input",), shape)

    def exact(self, node: Node, inputs: list[_Value]) -> _Value:
        raise _Refused(
            "it depends on token ids, masks or constants alone, and is computed once a run, which "
            "no NIR primitive says. Save the network as HDF5."
        )

    def constant(self, node: Node) -> _Value:
        raise _Refused("NIR has no constants. Make it the bias of a convolution or linear layer.")

    def linear(self, node: Linear, inputs: list[_Value]) -> _Value:
        if node.op not in NIR_LINEAR:
            raise _Refused(
                f"no NIR primitive computes it; those written are {', '.join(NIR_LINEAR)}. "
                "Replace it in the source network, or save the network as HDF5."
            )
        return NIR_LINEAR[node.op](self, node, inputs)

    def function(self, node: Node, inputs: list[_Value]) -> _Value:
        raise _Refused(
            "it is a real-valued operation, not a neuron, and NIR has no primitive for it. "
            "Replace it by average pooling, QCFS or ReLU in the source network."
        )

    def neuron(self, node: Neuron, inputs: list[_Value]) -> _Value:
        if node.kind not in NIR_NEURONS:
            raise _Refused(WHY_NOT.get(node.kind, "NIR has no primitive for it."))
        return NIR_NEURONS[node.kind](self, node, inputs[0])

    def encoder(self, node: Encoder, inputs: list[_Value]) -> _Value:
        raise _Refused(
            f'the input coding "{node.coding}" has no primitive. Convert with '
            'input_coding="exact" and feed the coded input yourself.'
        )

    def average(self, node: Node, inputs: list[_Value]) -> _Value:
        inside = any(node.name in n.inputs for n in self.network.nodes)
        if node.name not in leaves(self.network.outputs) or inside:
            raise _Refused(
                "a running mean inside the network has no primitive, only at its outputs. "
                'Convert the whole network with method="group".'
            )
        self.means[node.name] = node.inputs[0]
        return inputs[0]

    def group(self, node: GroupNeuron, x: _Value) -> _Value:
        if self.mode == "platform":
            return self.integrate_and_fire(node, x)
        p = in_type(parameters_of(node, x.shape), self.dtype)
        for value in (p.theta, p.v_threshold):
            check_positive(value, self.dtype)
        metadata = self.described(node) | {"members": p.members, "signed": int(p.signed)}
        metadata |= {
            "v_threshold": packed(p.v_threshold),
            "initial_charge": packed(p.initial_charge),
        }
        graph = group_subgraph(self.nir, x.shape, p, self.dtype, metadata)
        return self.add(node.name, graph, x, x.shape)

    def integrate_and_fire(self, node: GroupNeuron, x: _Value) -> _Value:
        if node.members != 1:
            raise _Refused(
                f"it has {node.members} members, and a nir.IF is one. Convert with members=1 (and "
                f"as many time steps as the activation has levels), or write {self.otherwise()}."
            )
        if node.signed:
            raise _Refused(
                "it is signed, and a nir.IF fires no negative spikes. Set signed=False, or write "
                f"{self.otherwise()}."
            )
        p = parameters_of(node, x.shape)
        # spikes that reach the membrane with an amplitude: in units of it
        threshold, v_initial = p.v_threshold / x.amplitude, p.v_initial / x.amplitude
        check_positive(threshold, self.dtype)
        meant: dict[str, Any] = {"reset": "subtract", "dt": self.dt}
        meant |= {"v_init": packed(v_initial), "amplitude": packed(p.v_threshold)}
        made = self.spiking(x.shape, broadcast("v_threshold", threshold, x.shape))
        made.metadata = self.described(node) | meant
        self.lose("the reset subtracts the threshold; NIR's sets v_reset", node.name)
        if np.any(np.asarray(v_initial) != 0):
            self.lose("the initial potential v_init; NIR's neurons start at rest", node.name)
        self.lose("at v = v_threshold the neuron fires; NIR's fires above it", node.name)
        spikes = self.add(node.name, made, x, x.shape)
        self.meant[spikes.sources[0]] = meant
        if not isinstance(p.v_threshold, Tensor):
            return replace(spikes, amplitude=p.v_threshold)
        return self.each_channel(f"{node.name}.amplitude", spikes, p.v_threshold)

    def otherwise(self) -> str:
        """The files that hold what a nir.IF for each neuron does not."""
        if self.time_steps == self.network.time_steps == 1:
            return 'mode="exact", or a file for one reader, reader="norse" for instance'
        return 'mode="exact"'

    def spiking(self, shape: Sequence[int], threshold: float | Array) -> Any:
        """Neurons of this dialect that integrate, and are reset to 0: nir.IF, or nir.LIF whose leak
        is below rounding."""
        full = full_of(shape)
        values = {"v_threshold": full(threshold), "v_reset": full(0.0)}
        if self.dialect == "lif":
            rates = {"tau": full(LIF_TAU), "r": full(LIF_TAU / LIF_DT), "v_leak": full(0.0)}
            return self.nir.LIF(**rates, **values)
        return self.nir.IF(r=full(1.0), **values)

    def described(self, node: Neuron) -> dict[str, Any]:
        """What the reader needs to build the node again, beside its structure."""
        numbers = {k: v for k, v in node.arguments.items() if isinstance(v, (int, float))}
        return {
            "name": node.name,
            "function": node.function.name,
            "arguments": json.dumps(numbers),
            "module": node.module,
            "channel": json.dumps(node.channel),
        }

    # -- nodes and edges ----------------------------------------------------------------------

    def add(self, name: str, made: Any, x: _Value, shape: Sequence[int]) -> _Value:
        """A NIR node that reads x; where x has an amplitude, ``made`` takes care of it."""
        self.check_finite(name, made)
        key = f"n{len(self.nodes):0{self.digits}}_{re.sub(r'[^0-9A-Za-z]', '_', name)}"
        self.nodes[key] = made
        self.edges += [(source, key) for source in x.sources]
        return _Value((key,), tuple(shape))

    def check_finite(self, name: str, made: Any) -> None:
        for field_name, value in vars(made).items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                if not np.isfinite(value).all():
                    raise _Refused(
                        f"{field_name} holds NaN or infinity as {value.dtype}. Fix the source "
                        "network's weights and convert again."
                    )

    def scaled(self, name: str, x: _Value, factor: float) -> _Value:
        """factor x as a node of its own: one source, amplitude 1."""
        factor *= x.amplitude
        if self.mode == "exact":
            made = self.nir.Scale(np.full(x.shape, factor, self.dtype))
            made.metadata = {"name": name}
            return self.add(name, made, x, x.shape)
        ones = np.ones(x.shape[0])
        return self.per_channel(name, replace(x, amplitude=1.0), factor * ones, 0 * ones)

    def per_channel(self, name: str, x: _Value, weight: Array, bias: Array) -> _Value:
        """``weight[c] x[c] + bias[c]``, as what every reader knows: a diagonal matrix."""
        matrix = np.diag(weight)
        if len(x.shape) == 1:
            return self.affine(name, x, matrix, bias)
        spatial = len(x.shape) - 1
        if spatial > 2:
            raise _Refused("NIR has no convolution of three dimensions to scale channels with.")
        kernel = matrix.reshape(*matrix.shape, *[1] * spatial)
        geometry: Any = ([1] * spatial, [0] * spatial, [1] * spatial)
        return self.conv(name, x, kernel, bias, *geometry)

    def each_channel(self, name: str, x: _Value, amplitude: Tensor) -> _Value:
        """Spikes of neurons of different amplitudes, in the network's units."""
        flat = broadcast("v_threshold", amplitude, x.shape).reshape(x.shape[0], -1)
        if (flat != flat[:, :1]).any():
            raise _Refused(
                "its thresholds differ within a channel, which no NIR node that platforms read "
                'can express. Use one for each channel, or write mode="exact".'
            )
        weight = flat[:, 0].astype(np.float64)
        return self.per_channel(name, x, weight, 0 * weight)

    def affine(self, name: str, x: _Value, weight: Array, bias: Array | None) -> _Value:
        rows = len(weight)
        bias = np.zeros(rows) if bias is None else bias
        made = self.nir.Affine(self.array(name, weight, x.amplitude), self.array(name, bias))
        made.metadata = {"name": name}
        return self.add(name, made, x, (rows,))

    def conv(
        self,
        name: str,
        x: _Value,
        weight: Array,
        bias: Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> _Value:
        """A convolution of one group, [C, *spatial] to [O, *spatial]."""
        size = convolved(x.shape[1:], weight.shape[2:], stride, padding, dilation)
        bias = np.zeros(len(weight)) if bias is None else bias
        arrays = self.array(name, weight, x.amplitude), self.array(name, bias)
        if len(stride) == 1:
            made = self.nir.Conv1d(
                int(x.shape[1]), arrays[0], stride[0], padding[0], dilation[0], 1, arrays[1]
            )
        else:
            kernel, padding = square(arrays[0], padding, dilation)
            geometry = [tuple(map(int, v)) for v in (stride, padding, dilation)]
            made = self.nir.Conv2d(tuple(x.shape[1:]), kernel, *geometry, 1, arrays[1])
        made.metadata = {"name": name}
        return self.add(name, made, x, (len(weight), *size))

    def array(self, name: str, value: Array, factor: float = 1.0) -> Array:
        if factor != 1.0:
            self.lose("weights are multiplied by the amplitude of spikes and rounded", name)
            value = value.astype(np.float64) * factor
        with np.errstate(over="ignore"):  # what overflows is refused with its name
            return np.ascontiguousarray(value, self.dtype)

    # -- what the file says about itself ------------------------------------------------------

    def outputs(self, refused: list[str]) -> list[dict[str, str]]:
        """Adds the Output nodes; for each its name, the network's, and how it is decoded."""
        names = list(dict.fromkeys(leaves(self.network.outputs)))
        found = []
        for i, name in enumerate(names):
            key = "output" if len(names) == 1 else f"output_{i:0{len(str(len(names)))}}"
            x = self.values[name]
            if x.amplitude != 1.0 or len(x.sources) > 1:  # nirtorch returns each edge by itself
                try:
                    x = self.scaled(f"{name}.sum", x, 1.0)
                except _Refused as error:
                    refused.append(f"'{name}' (output): {error}")
            self.nodes[key] = self.nir.Output(np.array(x.shape))
            self.edges += [(source, key) for source in x.sources]
            inner = self.means.get(name)
            readout, of = ("last", name) if inner is None else ("mean", inner)
            found.append({"output": key, "name": name, "readout": readout, "of": of})
        return found

    def metadata(self, outputs: list[dict[str, str]], report: NirReport) -> dict[str, Any]:
        """Strings and numbers, one deep: older readers of NIR files take nothing else."""
        data: dict[str, Any] = {
            "exporter": "spikingjelly_signgd",
            "format_version": FORMAT_VERSION,
            "mode": self.mode,
            "dialect": self.dialect,
            "dt": self.dt,
            "time_steps": self.time_steps,
            "axis_order": "channels first, without the batch",
            "delays": "none: a step passes through all layers; a feedback edge carries the value "
            "of the step before",
            "initial_state": "all potentials and feedback values are zero",
            "readouts": json.dumps(outputs),
            "outputs": json.dumps(tagged(self.network.outputs)),
            "provenance": json.dumps(dict(self.network.provenance), default=str),
            "neurons": json.dumps(self.meant),  # again, for dialect "legacy" has them here alone
            "losses": "\n".join(report.losses),
            "notes": "\n".join(report.notes),
        }
        if self.network.stream:
            data["stream"] = "true"
        return data

    def lose(self, what: str, where: str = "") -> None:
        places = self.losses.setdefault(what, [])
        if where and where not in places:
            places.append(where)

    def lost(self) -> tuple[str, ...]:
        return tuple(
            f"{what} ({listed(places)})" if places else what for what, places in self.losses.items()
        )

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.means:
            notes.append(
                "the graph's output is that of one step; the network's is the mean over the steps "
                "so far"
            )
        if self.mode == "exact":
            notes.append(
                "potentials are those of the network less the initial one; a spike may move where "
                "a potential lies within rounding of a threshold"
            )
        else:
            notes.append(
                "each reader resets in its own way; the metadata of each neuron say what is meant"
            )
        if self.network.stream:
            notes.append(
                "the plan is one for streams, in which these neurons restart at every frame: "
                "reset all states before each, which NIR cannot express"
            )
        return tuple(notes)


# -- linear operations ------------------------------------------------------------------------


def _conv(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    stride, padding, dilation = (node.attributes[k] for k in ("stride", "padding", "dilation"))
    if len(stride) > 2:
        raise _Refused("NIR convolves over one or two dimensions. Save the network as HDF5.")
    if len(x[0].shape) != len(stride) + 1:
        raise _Refused(f"it is over {list(x[0].shape)}; NIR takes [C, *spatial] after the batch.")
    weight = dense(numpy(node.tensors["weight"]), node.attributes["groups"])
    if isinstance(padding, str):
        padding = _counted(padding, weight.shape[2:], dilation)
    return writer.conv(node.name, x[0], weight, bias_of(node), stride, padding, dilation)


def _counted(padding: str, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """torch's "valid" and "same" as numbers, the same at both ends."""
    if padding == "valid":
        return [0] * len(kernel)
    whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(total % 2 for total in whole):
        raise _Refused(
            'padding="same" pads one end more than the other here, which NIR does not. Use an odd '
            "kernel, or pad by numbers."
        )
    return [total // 2 for total in whole]


def _linear(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    if len(x[0].shape) != 1:
        raise _Refused(
            f"it acts on the last dimension of {list(x[0].shape)}; NIR's Affine takes one "
            "dimension after the batch. Flatten before it, or use a 1 x 1 convolution."
        )
    return writer.affine(node.name, x[0], numpy(node.tensors["weight"]), bias_of(node))


def _matmul(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    weight = numpy(node.tensors["weight"])
    if node.attributes["side"] != "right" or weight.ndim != 2 or len(x[0].shape) != 1:
        raise _Refused("only [batch, n] @ [n, k] is an Affine. Write it as nn.Linear.")
    return writer.affine(node.name, x[0], weight.T, bias_of(node))


def _affine(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    shape = plain_shape(node)
    if shape != x[0].shape:
        raise _Refused(f"it expands {list(x[0].shape)} to {list(shape)}, and NIR does not expand.")
    tensors = {}
    for key, default in (("weight", 1.0), ("bias", 0.0)):
        value = numpy(node.tensors[key]) if key in node.tensors else np.array(default)
        if value.ndim > len(shape):  # the batch's dimension
            value = value[0]
        tensors[key] = np.broadcast_to(value, shape)
    weight, bias = tensors["weight"], tensors["bias"]
    if writer.mode == "exact" and "bias" not in node.tensors:
        made = writer.nir.Scale(writer.array(node.name, weight))
        made.metadata = {"name": node.name}
        return writer.add(node.name, made, x[0], shape)
    flat = [v.reshape(shape[0], -1) for v in (weight, bias)]
    if any((v != v[:, :1]).any() for v in flat):
        raise _Refused(
            "its weight or bias differs within a channel, which no NIR node adds. Use one value "
            "for each channel, or flatten before it."
        )
    return writer.per_channel(node.name, x[0], flat[0][:, 0], flat[1][:, 0])


def _add(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    """Several edges into the nodes that read the sum; a branch with a factor gets a node."""
    if x[0].shape != x[1].shape:
        raise _Refused(
            f"it adds {list(x[0].shape)} and {list(x[1].shape)}; edges into one NIR node add equal "
            "shapes. Expand in the source network."
        )
    first, second = node.attributes["coefficients"]
    branches = list(x)
    if first == second == 1 and x[0].amplitude == x[1].amplitude:
        amplitude = x[0].amplitude
    else:
        amplitude = 1.0
        for i, factor in enumerate((first, second)):
            if factor * x[i].amplitude != 1.0:
                branches[i] = writer.scaled(f"{node.name}.{i}", x[i], factor)
    if set(branches[0].sources) & set(branches[1].sources):  # NIR refuses two equal edges
        branches[1] = writer.scaled(f"{node.name}.1", replace(branches[1], amplitude=1.0), 1.0)
    return _Value((*branches[0].sources, *branches[1].sources), x[0].shape, amplitude)


def _avg_pool(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    a = node.attributes
    kernel, stride, padding = (list(a[k]) for k in ("kernel_size", "stride", "padding"))
    if a.get("divisor_override") not in (None, 1):
        raise _Refused("NIR's pools divide by the window's size or not at all. Scale afterwards.")
    if any(padding) and not a["count_include_pad"]:
        raise _Refused("NIR's AvgPool2d counts the padding. Set count_include_pad=True.")
    pooled = pool(writer, node, x[0], kernel, stride, padding, a.get("divisor_override") == 1)
    if pooled.shape != plain_shape(node):
        raise _Refused("ceil_mode keeps partial windows. Set ceil_mode=False.")
    return pooled


def _adaptive_avg_pool(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    size, out = x[0].shape[1:], node.attributes["output_size"]
    if len(size) != len(out) or any(n % k for n, k in zip(size, out, strict=True)):
        raise _Refused(
            f"from {list(size)} to {list(out)} its windows differ in size; NIR's are equal. Use an "
            "average pooling with a kernel."
        )
    kernel = [n // k for n, k in zip(size, out, strict=True)]
    return pool(writer, node, x[0], kernel, kernel, [0] * len(kernel), False)


def _mean(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    return _reduce(writer, node, x[0], False)


def _sum(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    return _reduce(writer, node, x[0], True)


def _reduce(writer: GraphWriter, node: Linear, x: _Value, total: bool) -> _Value:
    rank = len(x.shape) + 1
    dims = sorted(d % rank for d in node.attributes["dim"])
    if dims != list(range(2, rank)):
        raise _Refused(
            f"it is over dimensions {dims} of {rank}; NIR pools over all those after the channels."
        )
    kernel = list(x.shape[1:])
    pooled = pool(writer, node, x, kernel, kernel, [0] * len(kernel), total)
    return pooled if node.attributes["keepdim"] else flatten(writer, node, pooled, x.shape[:1])


def _reshape(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    return flatten(writer, node, x[0], plain_shape(node))


def _permute(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    rank = len(x[0].shape) + 1
    if [d % rank for d in node.attributes["dims"]] != list(range(rank)):
        raise _Refused("NIR does not reorder dimensions. Keep channels first throughout.")
    return x[0]


def _expand(writer: GraphWriter, node: Linear, x: Sequence[_Value]) -> _Value:
    if plain_shape(node) != x[0].shape:
        raise _Refused("NIR does not expand. Repeat in the source network's weights instead.")
    return x[0]


NIR_NEURONS: dict[str, Callable[[GraphWriter, Any, _Value], _Value]] = {"group": GraphWriter.group}
# of neurons that have none
WHY_NOT = {
    "growth": "it grows with the largest of sums of spikes, and NIR has no primitive for a "
    "maximum. Train with average pooling, or save the network as HDF5.",
    "signgd": "a signGD neuron needs step sizes that change with time, and products or functions "
    'that NIR has no primitive for. Convert with method="group" (networks of QCFS or ReLU and '
    'average pooling), or with time_steps=1 and write the file for one reader, reader="norse" for '
    "instance, or save the network as HDF5.",
    "subgradient": 'its step sizes change with time; NIR has none. Convert with method="group".',
}
Writer = Callable[[GraphWriter, Linear, Sequence[_Value]], _Value]
NIR_LINEAR: dict[str, Writer] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "affine": _affine,
    "add": _add,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "sum": _sum,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
}


def pool(
    writer: GraphWriter,
    node: Node,
    x: _Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    total: bool,
) -> _Value:
    """The mean, or the sum, over windows: a pool, or a convolution of each channel with itself
    alone where that is asked for and in one dimension, which NIR does not pool."""
    if len(kernel) > 2 or len(x.shape) != len(kernel) + 1:
        raise _Refused(f"NIR pools [C, H, W] or convolves [C, L], but this is {list(x.shape)}.")
    shape = (x.shape[0], *convolved(x.shape[1:], kernel, stride, padding, [1] * len(kernel)))
    if len(kernel) == 1 or writer.pooling == "conv":
        each = np.full(kernel, 1.0 if total else 1.0 / prod(kernel))
        weight = np.multiply.outer(np.eye(x.shape[0]), each)
        return writer.conv(node.name, x, weight, None, stride, padding, [1] * len(kernel))
    kind = writer.nir.SumPool2d if total else writer.nir.AvgPool2d
    made = kind(np.array(kernel), np.array(stride), np.array(padding))
    made.metadata = {"name": node.name}
    return replace(writer.add(node.name, made, x, shape), amplitude=x.amplitude)


def flatten(writer: GraphWriter, node: Linear, x: _Value, shape: tuple[int, ...]) -> _Value:
    """Dimensions that follow one another become one. They are counted from the end, which readers
    with and without a batch take alike."""
    if shape == x.shape:
        return x
    rank = len(x.shape)
    for start in range(rank):
        for end in range(start + 1, rank):
            merged = prod(x.shape[start : end + 1])
            if (*x.shape[:start], merged, *x.shape[end + 1 :]) == shape:
                made = writer.nir.Flatten(np.array(x.shape), start - rank, end - rank)
                made.metadata = {"name": node.name}
                return replace(writer.add(node.name, made, x, shape), amplitude=x.amplitude)
    raise _Refused(
        f"it takes {list(x.shape)} to {list(shape)}; NIR only merges dimensions that follow one "
        "another. Flatten instead."
    )


# -- shapes and arrays ------------------------------------------------------------------------


def plain_shape(node: Node) -> tuple[int, ...]:
    """The shape without the batch, which NIR leaves out and readers put first."""
    batch, *rest = node.shape or (1,)
    if batch != "1*batch" or any(follows_batch(size) for size in rest):
        raise _Refused(
            f"its shape is {list(node.shape)}; in NIR the batch is the first dimension and no "
            "other. Keep the batch in front in the source network."
        )
    if not rest:
        raise _Refused(
            "it is a scalar for each input, but NIR's values have a dimension. Keep the dimension."
        )
    return tuple(int(size) for size in rest)


def convolved(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    geometry = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)


def dense(weight: Array, groups: int) -> Array:
    """The weights of a grouped convolution with zeros between the groups.

    nir takes ``weight.shape[1]`` for the number of input channels and so refuses to read a file in
    which it is not; SpikingJelly refuses groups. Products with zero change no sum.
    """
    if groups == 1:
        return weight
    out, inner = len(weight) // groups, weight.shape[1]
    if weight.size * groups > LARGEST_WEIGHT:
        raise _Refused(
            f"with zeros between its {groups} groups it has {weight.size * groups} weights, more "
            f"than {LARGEST_WEIGHT}. Use fewer groups, or save the network as HDF5."
        )
    full = np.zeros((len(weight), inner * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        rows = slice(g * out, (g + 1) * out)
        full[rows, g * inner : (g + 1) * inner] = weight[rows]
    return full


def square(
    weight: Array, padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Array, tuple[int, ...]]:
    """The same convolution with a square kernel, by zeros around it and as much padding more.

    nir takes the kernel's height for its width when it checks shapes.
    """
    high, wide = weight.shape[2:]
    side = max(high, wide)
    if (high - wide) % 2:
        raise _Refused(
            f"its kernel is {high} x {wide}; nir reads square ones, and zeros around it make it "
            "square only if both sizes are odd or both even. Add a row or column of zeros."
        )
    more = (side - high) // 2, (side - wide) // 2
    weight = np.pad(weight, ((0, 0), (0, 0), (more[0],) * 2, (more[1],) * 2))
    return weight, tuple(p + d * m for p, d, m in zip(padding, dilation, more, strict=True))


def numpy(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.double().numpy())


def bias_of(node: Linear) -> Array | None:
    return numpy(node.tensors["bias"]) if "bias" in node.tensors else None


def check_positive(value: float | Tensor, dtype: Any) -> None:
    with np.errstate(all="ignore"):
        written = np.asarray(value).astype(dtype)
    fits = (written > 0) & np.isfinite(written)
    if not fits.all():
        worst = np.asarray(value)[~fits].ravel()[0]
        raise _Refused(
            f"its threshold {float(worst)!r} is not a positive {dtype}. Rescale the layer's "
            "weights."
        )


def parameters_of(node: GroupNeuron, shape: tuple[int, ...]) -> GroupNeuronParameters:
    """The neuron's, whose tensors broadcast to ``shape``, without the batch's dimension."""

    def inner(name: str) -> Any:
        value = getattr(node, name)
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value[0] if value.dim() == len(shape) + 1 and len(value) == 1 else value
            broadcast(name, value, shape)
        return value

    return GroupNeuronParameters(
        node.members, inner("v_threshold"), inner("initial_charge"), node.signed, check=False
    )


def broadcast(name: str, value: float | Tensor, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise _Refused(
            f"{name} is {list(array.shape)}, which does not broadcast to its neurons, "
            f"{list(shape)}; for channels of images it is [C, 1, 1]."
        ) from None


def packed(value: float | Tensor) -> float | str:
    """A number, or a tensor as JSON: metadata are numbers and text."""
    if not isinstance(value, Tensor):
        return value
    return json.dumps({"shape": list(value.shape), "values": value.double().ravel().tolist()})


def unpacked(value: Any) -> float | Tensor:
    """What ``packed`` made; ValueError, TypeError or KeyError for what it did not."""
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        return float(value)
    data = json.loads(value)
    return torch.tensor(data["values"], dtype=torch.float64).reshape(data["shape"])


def full_of(shape: Sequence[int]) -> Callable[[float | Array], Array]:
    return lambda value: np.full(shape, value, np.float32)


# -- words ------------------------------------------------------------------------------------


def operation(node: Node) -> str:
    if isinstance(node, Linear):
        return node.op
    return f"{node.kind} {node.function.name}" if isinstance(node, Function) else node.kind


def listed(places: Sequence[str]) -> str:
    shown = ", ".join(f"'{place}'" for place in places[:4])
    return shown if len(places) <= 4 else f"{shown} and {len(places) - 4} more"
