"""Networks by hand of SpikingJelly nodes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, fx, nn

from ...neurons.by_hand import put_within
from ...neurons.protocol import has_gradient
from ...neurons.schedules import Schedule
from ..spikingjelly import Encode, Readout, SignGDNode
from ..spikingjelly.base import base
from .linear import drops
from .parts import Part, Simulator, single


class _SpikingJelly(Simulator):
    unlike_others = (
        "has another step_mode than the others",
        "call functional.set_step_mode(net, 'm'), or 's'",
    )

    def part(self, module: nn.Module) -> Part | None:
        if isinstance(module, SignGDNode):
            return _neuron(module)
        if isinstance(module, Encode):
            p, timed = module.dynamics, module.step_mode == "m"
            return Part("encode", module.spikes, p.schedule, timed, module.members, p.momentum)
        if isinstance(module, Readout):
            return _readout(module)
        return None

    def stateful(self, module: nn.Module) -> bool:
        # its Dropout keeps a mask, in training
        parts = [part for part in module.modules() if not drops(part)]
        return any(isinstance(part, (base.MemoryModule, nn.RNNBase)) for part in parts)

    def reset(self, net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, base.MemoryModule):
                module.reset()

    def graph(self, net: nn.Module) -> fx.Graph | None:
        return None

    def chained(self, net: nn.Module, children: dict[str, nn.Module]) -> nn.Module | None:
        if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
            return None
        chain = nn.Sequential(OrderedDict(children))
        chain.training = net.training  # its own alone: modules have theirs
        return chain

    def neuron(
        self,
        module: nn.Module,
        spikes: str,
        initial: tuple[float | Tensor, ...],
        offset: tuple[float | Tensor, ...] | None,
    ) -> nn.Module:
        assert isinstance(module, SignGDNode)
        put_within("scale", module.scale)
        put_within("dead_zone", module.dead_zone)
        gradient = module.surrogate_function if has_gradient(spikes, module.momentum) else None
        begins = {"initial_input": single(initial)} if initial else {}
        return SignGDNode(
            module.function,
            module.schedule,
            scale=module.scale,
            resting=module.resting,
            **begins,
            spikes=spikes,
            offset=None if offset is None else single(offset),
            arguments=module.arguments,
            momentum=module.momentum,
            members=module.members,
            dead_zone=module.dead_zone,
            surrogate_function=gradient,
            step_mode=module.step_mode,
            backend=module.backend,
            store_v_seq=module.store_v_seq,
        ).train(module.training)

    def encode(
        self, schedule: Schedule, spikes: str, members: int, momentum: float, over_time: bool
    ) -> nn.Module:
        mode = "m" if over_time else "s"
        return Encode(schedule, momentum=momentum, spikes=spikes, members=members, step_mode=mode)

    def readout(self, like: Part, initial: float | Tensor, offset: float | Tensor) -> nn.Module:
        return Readout(
            initial,
            spikes=like.spikes,
            schedule=like.schedule,
            offset=offset if like.spikes == "binary" else None,
            members=like.members,
            step_mode="m" if like.over_time else "s",
        )


def _neuron(node: SignGDNode) -> Part:
    binary = node.spikes == "binary"
    return Part(
        "neuron",
        node.spikes,
        node.schedule,
        node.step_mode == "m",
        node.members,
        node.momentum,
        tuple(getattr(node, name) for name in node._initial_inputs),
        tuple(getattr(node, name) for name in node._offsets) if binary else (),
        node.dynamics,
    )


def _readout(module: Readout) -> Part:
    offset = (module.offset,) if module.spikes == "binary" else ()
    return Part(
        "readout",
        module.spikes,
        module.schedule,
        module.step_mode == "m",
        module.members,
        initial=(module.initial,),
        offset=offset,
    )


SIMULATOR = _SpikingJelly()
