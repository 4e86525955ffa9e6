"""Live use of a network: frame after frame, with the state kept, and the cost of each frame.

::

    with sg.watch(snn) as w:
        for frame in camera:
            y = w(frame)
            print(w.operations)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ..converters.additions import Prices
from ..core.inputs import Inputs, batch_of, samples_of
from ..core.module import NetworkModule
from ..core.network import SpikingNetwork, each_leaf
from ..core.running import check_run, check_steps, planned_steps
from ..core.silence import SilentSession, against
from ..core.sizing import at_its_size
from ..core.spikes import Sent, listening
from ..core.streams import check_goes_on, check_stream, completed, next_frame, undone_by_errors
from ..errors import InputError


@dataclass(frozen=True)
class FrameOperations:
    """The spikes that one frame caused, means over its streams, all ``time_steps`` together.

    ``spikes_of`` are the spikes of each node that sends, ``additions_of`` the additions of a weight
    that they lead to, each spike at each connection that it meets, as ``count_operations`` counts
    them (``synaptic``); pooling passes on spikes of others, which are not counted again. Remaining
    multiplications are in neither. ``source_macs`` are the multiply-accumulates, and products of
    two signals, that the source network computes for every frame.
    """

    frame: int  # counted from 0
    time_steps: int
    neurons: int
    source_macs: float
    spikes_of: Mapping[str, float]
    additions_of: Mapping[str, float]

    @property
    def spikes(self) -> float:
        return sum(self.spikes_of.values())

    @property
    def synaptic(self) -> float:
        return sum(self.additions_of.values())

    @property
    def rate(self) -> float:
        """Spikes for each neuron and step."""
        return self.spikes / (self.neurons * self.time_steps) if self.neurons else 0.0

    @property
    def additions_per_mac(self) -> float:
        """``synaptic`` for each multiply-accumulate of the source; 0 where it has none."""
        return self.synaptic / self.source_macs if self.source_macs else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        names = ("spikes", "synaptic", "rate", "additions_per_mac")
        return {**vars(self), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        return (
            f"frame {self.frame}: {self.spikes:,.0f} spikes of {self.neurons:,} neurons "
            f"({self.rate:.3f} each), {self.synaptic:,.0f} additions, "
            f"{self.additions_per_mac:.3f} for each MAC of the source"
        )


_LAST: WeakKeyDictionary[NetworkModule, ref[Watch]] = WeakKeyDictionary()  # by module


class Watch:
    """Call it with one frame after another; at the end of ``with`` the state is reset.

    frame is [B, ...] of B streams side by side, or [...] of one, of a network with several inputs a
    dict of such; outputs are in the structure of the source's, of one stream without B. Each frame
    is shown for ``time_steps``, those of the plan unless given. It starts from the initial state,
    or from a ``state`` that ``snn.state()`` returned; the state is that of ``snn``, so a network
    has one watch at a time: a second is refused from the first one's first frame on, until that one
    ends or a reset. An exception in a frame leaves the state unchanged. Raises InputError for a
    network that cannot run on streams, and for frames of another size or number of streams than
    those before, or of no streams.
    """

    def __init__(
        self,
        snn: NetworkModule,
        time_steps: int | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        silent: bool | str = False,
    ) -> None:
        if not isinstance(snn, NetworkModule):
            raise InputError(
                f"watch takes the module that build(network) returns, not {type(snn).__name__}."
            )
        check_stream("watch", snn)
        given = (time_steps,) if time_steps is not None else planned_steps(snn)
        (self.time_steps,) = check_steps(given)  # type: ignore[arg-type]
        self.snn = snn
        self._prices: dict[Any, tuple[SpikingNetwork, Prices]] = {}
        self._sent: list[Sent] = []
        self._streams = 1
        self.silence = self._silence(silent)
        self._claim()
        snn.reset()
        if state is not None:
            snn.load_state(state)

    def _silence(self, silent: bool | str) -> SilentSession | None:
        """What runs the frames after the first, if not the module itself."""
        if not isinstance(silent, bool) and str(silent) != "auto":
            raise InputError(f"silent is True, False or 'auto', not {silent!r}.")
        if silent is True and self.time_steps != 1:
            raise InputError(
                f"silent=True shows each frame for one step, but time_steps is {self.time_steps}. "
                "Pass time_steps=1, or silent=False."
            )
        if not silent or self.time_steps != 1 or (silent == "auto" and against(self.snn)):
            return None
        return SilentSession(self.snn)

    def _claim(self) -> None:
        """Takes over the state. Raises InputError if another watch owns it."""
        if self._is_another():
            raise InputError(
                f"another watch of this network has processed {self.snn.seen.frames} frames, "  # type: ignore[union-attr]
                "and both would share one state. Build the network once more for a second watch, "
                "build(network), or end the first: its reset(), or snn.reset()."
            )
        _LAST[self.snn] = ref(self)

    def _is_another(self) -> bool:
        """Whether the stream that is under way is that of another watch."""
        last = _LAST[self.snn]() if self.snn in _LAST else None
        return last not in (None, self) and self.snn.seen is not None

    @property
    def frames(self) -> int:
        """How many the state has seen."""
        return 0 if self.snn.seen is None else self.snn.seen.frames

    @torch.no_grad()
    def __call__(self, frame: Any) -> Any:
        self._claim()
        x = batch_of(frame)
        alone = self._is_one_stream(x)
        if alone:
            x = _one_stream(x)
        _check_streams(x)
        if self.silence is not None:
            shown = self.silence(x)
            self._streams = samples_of(x)
            return each_leaf(shown, lambda leaf: leaf[0]) if alone else shown
        x = completed(self.snn, x, 0)
        sent: list[Sent] = []
        y = _shown(self.snn, x, self.time_steps, sent)
        self._sent, self._streams = sent, samples_of(x)
        return each_leaf(y, lambda leaf: leaf[0, -1, 0] if alone else leaf[0, -1])

    def _is_one_stream(self, x: Any) -> bool:
        """Whether x lacks the dimension of the streams."""
        given = x.tensors if isinstance(x, Inputs) else {}
        nodes = [n for n in self.snn.network.inputs if n.name not in self.snn.network.carries]
        first = given.get(nodes[0].name) if isinstance(x, Inputs) else x
        return isinstance(first, Tensor) and first.dim() == len(nodes[0].shape) - 1

    @property
    def operations(self) -> FrameOperations:
        """Of the last frame. Raises InputError before the first."""
        if self.silence is not None:
            self._sent = self.silence.sent()
        if not self._sent or self.snn.seen is None:
            raise InputError(
                "operations are those of the last frame, but none was processed: call w(frame)."
            )
        network, prices = self._of_size()
        told = {each.node.name: each for each in self._sent}
        spikes = {name: each.events.spikes for name, each in told.items() if each.events}
        own = {name: s for name, s in spikes.items() if told[name].node.code is not None}
        senders = [node for node in network.nodes if node.code is not None]
        return FrameOperations(
            self.frames - 1,
            self.time_steps,
            sum(node.values for node in senders),
            prices.source,
            {name: float(s.sum()) / self._streams for name, s in own.items()},
            {name: self._met(s, prices.fan_out[name]) for name, s in spikes.items()},
        )

    def _met(self, spikes: Tensor, fan_out: Tensor) -> float:
        """The connections that they meet; sums of whole numbers, exact."""
        met = (spikes.double() * fan_out.to(spikes.device)).sum()
        return float(met) / self._streams

    def _of_size(self) -> tuple[SpikingNetwork, Prices]:
        """The network at the size of the frames."""
        seen = self.snn.seen
        assert seen is not None
        shapes = {name: tuple(shape[1:]) for name, shape in seen.shapes.items()}
        key = tuple(shapes.values())
        if key not in self._prices:
            network = self.snn.network
            own = {node.name: node.shape[1:] for node in network.inputs}
            sized = network if own == shapes else network.at_size(shapes)
            self._prices[key] = sized, Prices.of(sized, self.time_steps)
        return self._prices[key]

    def state(self) -> dict[str, Any]:
        """``snn.state()``: to save, and to continue from later."""
        self._claim()
        if self.silence is not None:
            self.silence.give_back()
        return self.snn.state()

    def reset(self) -> None:
        """The next frame is a first one."""
        self._claim()
        if self.silence is not None:
            self.silence.reset()
        self.snn.reset()
        self._sent = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_another():
            self.reset()


def watch(
    snn: NetworkModule,
    time_steps: int | None = None,
    *,
    state: Mapping[str, Any] | None = None,
    silent: bool | str = False,
) -> Watch:
    """``with watch(snn) as w: y = w(frame)``: live use of a network, frame by frame (``Watch``).

    ``w.operations`` are the spikes and additions of the last frame. Each frame is shown for
    ``time_steps``, those of the plan unless given. Starts from the initial state, or from a
    ``state`` that ``snn.state()`` returned. With ``silent`` True, or "auto" if the network supports
    it, values that did not change since the previous frame are not computed again
    (``docs/silence.md``): on a CPU, for one step a frame; outputs are those of silent=False up to
    roundings. Raises InputError.
    """
    return Watch(snn, time_steps, state=state, silent=silent)


def _one_stream(x: Any) -> Any:
    """A frame [...] as [1, ...]."""
    if isinstance(x, Inputs):
        return Inputs({name: value.unsqueeze(0) for name, value in x.tensors.items()})
    return x.unsqueeze(0)


def _check_streams(x: Any) -> None:
    """Raises InputError for a frame [0, ...]; what is no frame is said where it is checked."""
    given = list(x.tensors.values()) if isinstance(x, Inputs) else [x]
    if given and isinstance(given[0], Tensor) and given[0].shape[:1] == (0,):
        raise InputError(
            f"a frame is one of B streams, at least one, but it is {list(given[0].shape)}: "
            "without a stream there is nothing to count."
        )


@at_its_size(lambda *_, **__: False)
def _shown(snn: NetworkModule, x: Any, steps: int, sent: list[Sent]) -> Any:
    """The outputs [1, T, B, ...] of a frame x [B, ...]; ``sent`` is told what was sent."""
    x = check_run("watch", snn, x, steps, False)
    check_goes_on(snn, x)
    with undone_by_errors(snn), snn.for_sequences(), listening(snn, sent.append):
        return next_frame(snn, x, steps)
