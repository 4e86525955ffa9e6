"""Lava: netx files in lava-dl's own reader, and signGD networks as Lava processes.

For an environment with lava-nc 0.10.0 and lava-dl 0.6.0 (tests/lava/install.sh makes one beside
yours, ``lava_remote`` runs things there). What runs is Lava's bit-accurate simulation on a CPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.network import SignGDNeuron, SpikingNetwork
from ...errors import BackendUnavailable, FormatError, InputError
from ...exporters.lava.chains import AffineMap, affine_maps
from ...exporters.lava.netx import GRADED, read_netx
from ...exporters.lava.writer import MESSAGE_BITS
from . import environment

try:
    environment.prepare()
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.dense.process import Dense
    from lava.proc.io.source import RingBuffer as Source
except ModuleNotFoundError as error:
    raise BackendUnavailable(
        f"{__name__} needs lava-nc 0.10.0 and lava-dl 0.6.0: {error}. They pin other versions of "
        "torch and NumPy, so they go into an environment of their own, which tests/lava/install.sh "
        "of the source makes; plugins.lava_remote runs netx files there from here."
    ) from error

from .processes import Accumulator, GroupNeurons, Recorder, SignGDNeurons

SignGDMap = AffineMap[SignGDNeuron]
LARGE_MESSAGE_BITS = 16  # of a signed d


@dataclass(frozen=True, eq=False)
class LavaRun:
    """``spikes`` of each layer with neurons, [B, out, T], Lava's latency taken out.

    ``membrane`` [B, classes]: what the read-out added up.
    """

    spikes: tuple[NDArray[np.int64], ...]
    membrane: NDArray[np.int64]


def open_netx(path: str | os.PathLike[str]) -> Any:
    """The file as lava-dl's Network, group neurons of the profile "group-graded" included."""
    with _group_neurons():
        return hdf5.Network(str(path))


@contextmanager
def _group_neurons() -> Iterator[None]:
    """The reader asks its own class for the neuron of a layer, a static method of it."""
    original = hdf5.Network.get_neuron_params

    def neuron(config: Any, *args: Any, **options: Any) -> Any:
        if config["type"] != GRADED:
            return original(config, *args, **options)
        return {
            "neuron_proc": GroupNeurons,
            "vth": int(config["vThMant"]) + 1,
            "members": config.f["members"][()].astype(int),
            "num_message_bits": MESSAGE_BITS,
        }

    hdf5.Network.get_neuron_params = staticmethod(neuron)
    try:
        yield
    finally:
        hdf5.Network.get_neuron_params = staticmethod(original)


def run_netx(path: str | os.PathLike[str], spikes: NDArray[Any]) -> LavaRun:
    """Input spikes [B, channels, T] through the file, read by lava-dl and run by Lava.

    The samples run one after another, each in a cleared network. Raises FormatError for a file
    that ``read_netx`` refuses.
    """
    described = read_netx(path)
    channels = described.coding.channels
    spikes = np.asarray(spikes)
    if spikes.ndim != 3 or spikes.shape[1] != channels or 0 in spikes.shape:
        raise InputError(f"the input is [B, {channels}, T], but it is {list(spikes.shape)}.")
    batch, _, last = spikes.shape
    network = open_netx(path)
    if len(network.layers) != len(described.layers):
        raise FormatError(
            f"'{path}' has {len(described.layers)} layers, but lava-dl's reader made "
            f"{len(network.layers)} of it."
        )
    period = last + len(described.layers)
    padded = np.zeros((channels, batch, period), dtype=np.int32)
    padded[:, :, :last] = spikes.transpose(1, 0, 2)
    source = Source(data=padded.reshape(channels, -1))
    source.s_out.connect(network.inp)
    blocks = list(network.layers)
    cleared = [getattr(block.neuron, name, None) for block in blocks for name in ("u", "v")]
    for block in blocks:
        synapses = (getattr(block, name, None) for name in ("synapse", "synapse_rec"))
        cleared += [synapse.a_buff for synapse in synapses if synapse is not None]
    begin = [(var, np.zeros(var.shape, dtype=np.int32)) for var in cleared if var is not None]
    sums: list[NDArray[np.int64]] = []

    def add_up(_: int) -> None:
        sums.append(np.asarray(blocks[-1].neuron.u.get()).astype(np.int64) >> 6)

    found = _run_samples(
        network,
        [block.out for block in blocks[:-1]],
        batch,
        period,
        "fixed_pt",
        lambda sample: begin if sample else [],
        add_up,
    )
    spikes_of = []
    for i, steps in enumerate(found, start=1):
        spikes_of.append(steps[:, i : i + last].transpose(0, 2, 1).astype(np.int64))
    return LavaRun(tuple(spikes_of), np.stack(sums))


Values = Sequence[tuple[Any, NDArray[Any]]]


def _run_samples(
    process: Any,
    outputs: Sequence[Any],
    batch: int,
    period: int,
    tag: str,
    begin: Callable[[int], Values],
    finish: Callable[[int], None],
) -> list[NDArray[Any]]:
    """Runs ``batch`` samples of ``period`` steps; what the ports sent, each [B, period, N].

    Before a sample the variables of ``begin(sample)`` are set, after it ``finish(sample)`` is
    called. Variables exist in a running network alone, so the first sample begins as it is built.
    """
    with tempfile.TemporaryDirectory(prefix="lava_") as folder:
        paths = []
        for i, port in enumerate(outputs):
            paths.append(os.path.join(folder, f"{i}.npy"))
            size = int(np.prod(port.shape))
            np.save(paths[-1], np.zeros((batch * period, size)))
            recorder = Recorder(shape=port.shape, path=paths[-1])
            port.connect(recorder.a_in)
        configuration = Loihi2SimCfg(select_tag=tag)
        try:
            for sample in range(batch):
                for variable, value in begin(sample):
                    variable.set(value)
                process.run(condition=RunSteps(num_steps=period), run_cfg=configuration)
                finish(sample)
        finally:
            process.stop()
        return [np.load(path).reshape(batch, period, -1) for path in paths]


class SignGDNetwork:
    """A signGD network as Lava processes in floating point, ``run(x)`` runs it.

    Layer l runs its schedule l - 1 steps later than the first, which takes the input as a constant;
    otherwise every spike and every output is what the network computes without delays. The network
    is one chain of linear operations and signGD neurons of functions of one argument that work
    element by element; others are refused with a FormatError, and so is momentum.
    """

    def __init__(self, network: SpikingNetwork, *, max_weights: int = 2**26) -> None:
        self.network = network
        self.maps = affine_maps(network, SignGDNeuron, max_weights)
        for neuron in network.of(SignGDNeuron):
            _check_neuron(neuron)

    def run(
        self,
        x: Tensor,
        time_steps: int | None = None,
        *,
        sequence: bool = False,
        keep_state: bool = False,
    ) -> SignGDRun:
        """x [B, ...] through Lava; the samples run one after another.

        With ``sequence`` and ``keep_state`` x is a clip [F, B, ...]: frames follow one another
        without a pause, ``time_steps`` steps each, and v and x of all layers go on. What the run
        holds is that of F time_steps steps, one stream after another.
        """
        shape, leading = self.network.input.shape[1:], 1 + keep_state
        if sequence != keep_state:
            raise InputError("a clip runs with sequence=True and keep_state=True, both.")
        if tuple(x.shape[leading:]) != shape or 0 in x.shape[:leading]:
            raise InputError(
                f"the input is [{'F, ' * keep_state}B, {', '.join(map(str, shape))}], but x is "
                f"{list(x.shape)}."
            )
        if not bool(x.isfinite().all()):
            raise InputError("the input holds NaN or infinity; remove or fix those samples first.")
        steps = self.network.time_steps if time_steps is None else time_steps
        threads = torch.get_num_threads()
        # Lava forks; a child that inherits torch's pool of threads waits for it for ever
        torch.set_num_threads(1)
        try:
            clip = x if keep_state else x.unsqueeze(0)
            return self._run(clip.reshape(*clip.shape[:2], -1).double().numpy(), steps)
        finally:
            torch.set_num_threads(threads)

    def _run(self, clip: NDArray[np.float64], shown: int) -> SignGDRun:
        """Frames [F, B, N] for ``shown`` steps each."""
        frames, batch, _ = clip.shape
        steps = frames * shown
        period = steps + len(self.maps)
        layers, synapses, start = self._processes(frames, shown, period)
        first = self.maps[0]
        inputs = clip[0] @ first.weight.T + first.bias
        if frames > 1:
            rises = np.zeros((len(first.weight), batch, period))
            at_frames = np.diff(clip, axis=0) @ first.weight.T
            rises[:, :, shown:steps:shown] = at_frames.transpose(2, 1, 0)
            source = Source(data=rises.reshape(len(rises), -1))
            source.s_out.connect(layers[0].a_in)

        def begin(sample: int) -> Values:
            if sample == 0:
                return []
            values = [(layer.x, value) for layer, value in zip(layers[1:], start[1:], strict=True)]
            values += [
                (layer.v, resting(m))
                for layer, m in zip(layers, self.maps, strict=True)
                if m.neuron is not None
            ]
            values += [(synapse.a_buff, np.zeros(synapse.a_buff.shape)) for synapse in synapses]
            return [*values, (layers[0].x, inputs[sample])]

        layers[0].x.init = inputs[0]
        found = _run_samples(
            layers[0],
            [*(layer.fired for layer in layers[:-1]), layers[-1].s_out],
            batch,
            period,
            "floating_pt",
            begin,
            lambda sample: None,
        )
        cut = [steps_of[:, i : i + steps].transpose(0, 2, 1) for i, steps_of in enumerate(found)]
        layers_fired = zip(cut[:-1], self.maps[:-1], strict=True)
        return SignGDRun(tuple(part.astype(_type(m)) for part, m in layers_fired), cut[-1])

    def _processes(
        self, frames: int, shown: int, period: int
    ) -> tuple[list[Any], list[Any], list[NDArray[np.float64]]]:
        """The layers, the synapses between them, and x(0) of each layer."""
        layers: list[Any] = []
        synapses: list[Any] = []
        start: list[NDArray[np.float64]] = []
        received = np.full(frames * shown, -0.5)  # what arrives at the first layer is added
        before: SignGDMap | None = None
        for depth, m in enumerate(self.maps, start=1):
            width = len(m.weight)
            offset = np.zeros(width)
            x = np.zeros(width)
            if before is not None:
                weight = m.weight * flat(before.neuron, "scale")
                if not _sparse(before):
                    offset = (2 ** _members(before) - 1) * weight.sum(1)
                x = m.weight @ resting(before) + m.bias
                synapses.append(Dense(weights=weight, **_messages(before)))
            common: dict[str, Any] = dict(
                x=x, received=received, offset=offset, depth=depth, period=period
            )
            if m.neuron is None:
                layers.append(Accumulator(**common))
            else:
                schedule = m.neuron.schedule
                # counted from 1 at every frame
                step_sizes = np.tile([schedule(t) for t in range(1, shown + 1)], frames)
                received = step_sizes * 2.0 ** ((0 if _sparse(m) else 1) - m.neuron.members)
                layers.append(
                    SignGDNeurons(
                        parameters=_double(m.neuron),
                        like=tuple(map(int, m.neuron.shape[1:])),
                        v=resting(m),
                        scale=flat(m.neuron, "scale"),
                        theta=flat(m.neuron, "dead_zone").astype(np.float32).astype(float),
                        step_sizes=step_sizes,
                        **common,
                    )
                )
            if depth > 1:
                layers[-2].s_out.connect(synapses[-1].s_in)
                synapses[-1].a_out.connect(layers[-1].a_in)
            start.append(x)
            before = m
        return layers, synapses, start


@dataclass(frozen=True, eq=False)
class SignGDRun:
    """``spikes`` of each neuron layer, bool [B, N, T] (True: +1), Lava's latency taken out.

    Several signs of a step are the bits of a uint8, the first sign's the highest, those of neurons
    with a dead zone int32 codes as the NumPy runner's. ``outputs`` [B, classes, T]: the decoded
    output after each step. Of a clip T are the steps of all its frames.
    """

    spikes: tuple[NDArray[np.bool_ | np.uint8 | np.int32], ...]
    outputs: NDArray[np.float64]


def _members(m: SignGDMap) -> int:
    assert m.neuron is not None  # the read-out sends nothing
    return m.neuron.members


def _sparse(m: SignGDMap) -> bool:
    assert m.neuron is not None
    return m.neuron.parameters.sparse


def _type(m: SignGDMap) -> type:
    """Of what fired."""
    if _sparse(m):
        return np.int32
    return bool if _members(m) == 1 else np.uint8


def _messages(m: SignGDMap) -> dict[str, int]:
    """What Lava is told of spikes that carry a number: several signs, or one that may be 0."""
    if _sparse(m):
        return {"num_message_bits": LARGE_MESSAGE_BITS}
    return {"num_message_bits": MESSAGE_BITS} if _members(m) > 1 else {}


def _check_neuron(neuron: SignGDNeuron) -> None:
    name = neuron.function.name
    if neuron.momentum:
        raise FormatError(
            f"'{neuron.name}' has momentum {neuron.momentum}, whose spikes carry a real value; "
            "convert without momentum."
        )
    if neuron.function.arity != 1 or not neuron.function.elementwise:
        raise FormatError(
            f"'{neuron.name}' computes {name}, which is not a function of one value; the Lava "
            "process takes one current. Save the network as a description (.h5) instead."
        )


def flat(neuron: Any, field: str) -> NDArray[np.float64]:
    """A neuron's scale or resting value, [N]."""
    value = torch.as_tensor(getattr(neuron, field), dtype=torch.float64)
    shape = (1, *neuron.shape[1:])
    out: NDArray[np.float64] = value.expand(shape).reshape(-1).numpy().copy()
    return out


def resting(m: SignGDMap) -> NDArray[np.float64]:
    return flat(m.neuron, "resting")


def _double(neuron: SignGDNeuron) -> Any:
    """The neuron's parameters with the function's tensors in float64."""
    arguments = {
        key: value.double() if isinstance(value, Tensor) else value
        for key, value in neuron.arguments.items()
    }
    return replace(neuron, arguments=arguments).parameters
