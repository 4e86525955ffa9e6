"""A network by the pure-torch definitions, without a simulator: what files are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.inputs import Batch, Inputs, batch_of, samples_of
from ...core.module import NetworkModule, NetworkState, Walk, step_of
from ...core.network import Node, SpikingNetwork, Timed, each_leaf, leaves
from ...core.streams import check_stream, completed
from ...neurons.spikes import Events, hear, joined


class _Held(nn.Module):
    """A node with its tensors, so that they move and are cast with the network."""

    def __init__(self, node: Timed) -> None:
        super().__init__()
        self.of = node
        for name, value in node.tensors.items():
            self.register_buffer(name, value.clone())

    @property
    def node(self) -> Any:
        return self.of.with_tensors(dict(self.named_buffers()))


class DefinitionNetwork(NetworkModule):
    """Runs one step at a time; ``fired`` is what each neuron did in the last one, [B, ...].

    bool where sigma or s is 1; of several signs in a step the uint8 that ``signgd_step`` returns,
    whose bits they are, with a dead zone its int32 codes (``neurons/signgd/sparse.py``); int64
    counts of members for group neurons, negative for negative spikes; the output itself for
    growth, which is a difference of sums and no count.
    """

    def __init__(self, network: SpikingNetwork, spikes: str = "decoded") -> None:
        held = {node.name: _Held(node) for node in network.of(Timed)}
        super().__init__(network, held, spikes)
        self.fired: dict[str, Tensor] = {}

    def forward(self, x: Any, state: NetworkState | None = None) -> tuple[Any, NetworkState]:
        return self.step(x, state)

    def _node(self, name: str) -> Any:
        return self.neuron(name).node

    def begin(self, node: Node, inputs: list[Tensor], state: NetworkState) -> float | Tensor:
        held = self._node(node.name)
        start = held.spike_start if self.view == "signed" else held.start
        state.neurons[node.name] = start(tuple(inputs))
        return held.resting  # type: ignore[no-any-return]

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        held, given, state = (
            self._node(node.name),
            tuple(inputs),
            walk.before.neurons.get(node.name),
        )
        state = held.start(given) if state is None else state
        step = held.spike_step if self.view == "signed" else held.step
        with hear() as told:
            y, walk.neurons[node.name] = step(given, state)
        self.fired[node.name] = _fired(joined(told), y)
        return y  # type: ignore[no-any-return]


class _Values(DefinitionNetwork):
    """``fired`` is the value that each neuron passes on."""

    def fire(self, node: Node, inputs: list[Tensor], walk: Walk) -> Tensor:
        y = super().fire(node, inputs, walk)
        self.fired[node.name] = y
        return y


def _fired(events: Events | None, y: Tensor) -> Tensor:
    if events is None:
        return y
    if events.fires is not None:
        return events.fires[0]
    number = events.number[0]
    return number if number.dtype == torch.bool else number.long()


@dataclass(frozen=True, eq=False)
class DefinitionRun:
    """``spikes``: what each neuron ``fired``, [T, B, ...]; ``outputs`` after the last step, as the
    network's."""

    spikes: Mapping[str, Tensor]
    outputs: Any


@torch.no_grad()
def run_definition(
    network: SpikingNetwork,
    x: Any,
    time_steps: int,
    *,
    spikes: str = "decoded",
    dtype: torch.dtype = torch.float64,
    values: bool = False,
) -> DefinitionRun:
    """``time_steps`` steps of x [B, ...], or a dict of such, in ``dtype``, by the definitions.

    With ``values`` the run's ``spikes`` are what each neuron passes on, in place of what it fired.
    """
    module = (_Values if values else DefinitionNetwork)(network, spikes).to(dtype)
    run = _Steps(module, time_steps)
    outputs = run.frame(module.check_input(batch_of(x).to(dtype)))
    return DefinitionRun(run.fired(), outputs)


@torch.no_grad()
def run_clip_by_definition(
    network: SpikingNetwork,
    clip: Any,
    time_steps: int,
    *,
    spikes: str = "decoded",
    dtype: torch.dtype = torch.float64,
) -> DefinitionRun:
    """Frames [F, B, ...], or a dict of such, of ``time_steps`` steps each, the state kept between.

    ``spikes`` are [F T, B, ...], ``outputs`` [F, B, ...]. Raises InputError.
    """
    module = DefinitionNetwork(network, spikes).to(dtype)
    check_stream("verify", module)
    frames = module.check_input(completed(module, batch_of(clip).to(dtype), 1), 1)
    run, each = _Steps(module, time_steps), []
    for frame in range(samples_of(frames)):
        run.state = module.new_frame(run.state)
        each.append(run.frame(_fed(network, step_of(frames, frame), run.state)))
    columns = iter([torch.stack(list(leaf)) for leaf in zip(*map(leaves, each), strict=True)])
    return DefinitionRun(run.fired(), each_leaf(each[0], lambda _: next(columns)))


def _fed(network: SpikingNetwork, x: Batch, state: NetworkState | None) -> Batch:
    """The frame with what the network feeds itself; zeros in the first."""
    if not network.carries or state is None or state.carried is None:
        return x
    assert isinstance(x, Inputs)
    fed = {name: state.carried[of] for name, of in network.carries.items()}
    return Inputs({**x.tensors, **fed}, x.exact, x.compute)


class _Steps:
    """Runs one input after the other for ``time_steps`` steps each."""

    def __init__(self, module: DefinitionNetwork, time_steps: int) -> None:
        self.module, self.time_steps = module, time_steps
        self.state: NetworkState | None = None
        self.seen: dict[str, list[Tensor]] = {name: [] for name in module.network.names()}

    def frame(self, x: Any) -> Any:
        """The outputs after the last step."""
        outputs: Any = None
        for _ in range(self.time_steps):
            outputs, self.state = self.module(x, self.state)
            for name, seen in self.seen.items():
                seen.append(self.module.fired[name])
        return each_leaf(outputs, Tensor.clone)

    def fired(self) -> dict[str, Tensor]:
        return {name: torch.stack(seen) for name, seen in self.seen.items()}
