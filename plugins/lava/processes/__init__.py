"""The neurons as Lava processes, with their models for Lava's CPU simulation.

In a folder of its own, with no other module in it: looking for the models of a process, Lava
imports every module beside it.

Import ``plugins.lava`` first, which makes Lava importable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from ....exporters.hdf5.runner_signs import dense_step, levels, mixed_step, sparse_step
from ....neurons.signgd import SignGDParameters


class GroupNeurons(AbstractProcess):
    """Group neurons in integers, a spike of each carries the number of members that fire.

    ``vth`` is the threshold of one member, ``bias`` [N] what the membrane holds beside u at all
    times (the initial charge), ``members`` [N]. The names are those of netx's neurons.
    """

    def __init__(
        self, *, shape: tuple[int, ...], vth: int, members: Any, bias: Any = 0, **others: Any
    ) -> None:
        super().__init__(shape=shape, vth=vth, members=members, bias=bias, **others)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.u = Var(shape=shape, init=0)
        self.bias = Var(shape=shape, init=bias)
        self.largest = Var(shape=shape, init=members)  # "members" is Lava's own name
        self.vth = Var(shape=(1,), init=vth)


@implements(proc=GroupNeurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt", "floating_pt")
class PyGroupNeurons(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, int)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, int)
    u: np.ndarray = LavaPyType(np.ndarray, int)
    bias: np.ndarray = LavaPyType(np.ndarray, int)
    largest: np.ndarray = LavaPyType(np.ndarray, int)
    vth: np.ndarray = LavaPyType(np.ndarray, int)

    def run_spk(self) -> None:
        charge = self.u + self.a_in.recv() + self.bias
        fired = np.clip(charge // self.vth, 0, self.largest)
        self.u = charge - self.bias - fired * self.vth
        self.s_out.send(fired)


class SignGDNeurons(AbstractProcess):
    """signGD neurons in the spike view: {0, 1} spikes in and out, x integrated here.

    A spike s of the senders stands for sigma = 2 s - 1, so their current a = W s changes x by
    -received(k) (2 a - offset), received = eta_in and offset = W 1. W holds the senders' scale.
    Neurons of m signs in a step send them as the bits of one graded spike, the first sign's the
    highest; there received = 2 ** (1 - m) eta_in and offset = (2 ** m - 1) W 1. Those with a dead
    zone send d, in [1 - 2 ** m, 2 ** m - 1], and where d is 0 no message; there received =
    2 ** -m eta_in and offset = 0. ``fired`` holds what fired, for recording, as the NumPy runner
    does.

    Layer l (the first is 1) runs step k = 0..T-1 of its schedule in Lava's step k + l of a sample,
    which takes ``period`` steps; before and after it is silent.

    ``x`` [N] is W v_in(0) + b; ``step_sizes`` [T], ``scale`` [N] and ``theta`` [N], of the dead
    zone, are the neuron's own. The
    neurons of ``parameters`` have the shape ``like`` without the batch.
    """

    def __init__(
        self,
        *,
        parameters: SignGDParameters,
        like: tuple[int, ...],
        x: Any,
        v: Any,
        scale: Any,
        theta: Any,
        step_sizes: Any,
        received: Any,
        offset: Any,
        depth: int,
        period: int,
    ) -> None:
        super().__init__(parameters=parameters, like=like, depth=depth, period=period)
        shape = np.shape(x)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.fired = OutPort(shape=shape)
        self.x = Var(shape=shape, init=x)
        self.v = Var(shape=shape, init=v)
        self.scale = Var(shape=shape, init=scale)
        self.theta = Var(shape=shape, init=theta)
        self.offset = Var(shape=shape, init=offset)
        self.step_sizes = Var(shape=np.shape(step_sizes), init=step_sizes)
        self.received = Var(shape=np.shape(received), init=received)


@implements(proc=SignGDNeurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PySignGDNeurons(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    fired: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    x: np.ndarray = LavaPyType(np.ndarray, float)
    v: np.ndarray = LavaPyType(np.ndarray, float)
    scale: np.ndarray = LavaPyType(np.ndarray, float)
    theta: np.ndarray = LavaPyType(np.ndarray, float)
    offset: np.ndarray = LavaPyType(np.ndarray, float)
    step_sizes: np.ndarray = LavaPyType(np.ndarray, float)
    received: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self) -> None:
        current = self.a_in.recv()
        k = schedule_step(self.time_step, self.proc_params)
        if not 0 <= k < len(self.step_sizes):
            self._send(*np.zeros((2, *self.v.shape)))
            return
        self.x = self.x - self.received[k] * (2 * current - self.offset)
        fired, self.v = self._signs(self._target(), self.step_sizes[k] * self.scale)
        sparse = self.proc_params["parameters"].sparse
        self._send(levels(fired, np.dtype(float)) if sparse else fired, fired)

    def _signs(self, target: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = self.proc_params["parameters"]
        if not p.sparse:
            return dense_step(self.v, target, size, p.members, p.function.fires_at_tie)
        if isinstance(p.dead_zone, torch.Tensor):
            ties = p.function.fires_at_tie
            return mixed_step(self.v, target, size, self.theta, p.members, ties)
        return sparse_step(self.v, target, size, self.theta, p.members)

    def _send(self, message: np.ndarray, fired: np.ndarray) -> None:
        self.s_out.send(message.astype(float))
        self.fired.send(fired.astype(float))

    def _target(self) -> np.ndarray:
        """f(x), by the network's own function."""
        parameters = self.proc_params["parameters"]
        x = torch.from_numpy(self.x).reshape(1, *self.proc_params["like"])
        flat: np.ndarray = parameters.target(x).reshape(-1).numpy()
        return flat


class Accumulator(AbstractProcess):
    """The read-out of signGD neurons: x as above, sent as it is, with its value at every step."""

    def __init__(self, *, x: Any, received: Any, offset: Any, depth: int, period: int) -> None:
        super().__init__(depth=depth, period=period)
        shape = np.shape(x)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.x = Var(shape=shape, init=x)
        self.offset = Var(shape=shape, init=offset)
        self.received = Var(shape=np.shape(received), init=received)


@implements(proc=Accumulator, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyAccumulator(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    x: np.ndarray = LavaPyType(np.ndarray, float)
    offset: np.ndarray = LavaPyType(np.ndarray, float)
    received: np.ndarray = LavaPyType(np.ndarray, float)

    def run_spk(self) -> None:
        current = self.a_in.recv()
        k = schedule_step(self.time_step, self.proc_params)
        if 0 <= k < len(self.received):
            self.x = self.x - self.received[k] * (2 * current - self.offset)
        self.s_out.send(self.x)


def schedule_step(time_step: int, params: Any) -> int:
    """k, the step of a layer's schedule (from 0), at Lava's step (from 1) of any sample."""
    return (time_step - 1) % int(params["period"]) + 1 - int(params["depth"])


class Recorder(AbstractProcess):
    """Writes what arrives at every step into the file ``path``, a .npy array [steps, N].

    Lava hands a variable over element by element, which takes minutes for the spikes of a run.
    """

    def __init__(self, *, shape: tuple[int, ...], path: str) -> None:
        super().__init__(shape=shape, path=path)
        self.a_in = InPort(shape=shape)


class _PyRecorder(PyLoihiProcessModel):
    a_in: Any = None
    file: Any = None

    def run_spk(self) -> None:
        arrived = self.a_in.recv()
        if self.file is None:
            self.file = np.load(self.proc_params["path"], mmap_mode="r+")
        self.file[self.time_step - 1] = arrived


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorderFixed(_PyRecorder):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class PyRecorderFloat(_PyRecorder):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
