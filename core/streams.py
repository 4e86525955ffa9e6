"""Streams: the state of a network is kept from frame to frame, so that spikes encode changes.

Every frame is shown for T steps, usually one. A signGD neuron keeps its v, and in the spike form
its integrated input; the count of steps, and with it the schedule, restarts. Group neurons, pooling
of their spikes and averages are reset at every frame (``Timed.frame``). Momentum, Poisson coding
and the rate-coded baseline cannot run on streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .inputs import Batch, Inputs, batch_of, samples_of
from .module import Ann, NetworkModule, NetworkState, Seen, read_out
from .network import ANEW, KEPT, Neuron, SpikingNetwork, Timed, each_leaf, fill, leaves
from .operations import resolve
from .progress import progress


def check_stream(owner: str, snn: NetworkModule) -> None:
    """Raises InputError, naming the nodes, for a network that cannot run on streams."""
    network = snn.network
    reasons = {n.name: n.frame for n in network.of(Timed) if n.frame not in (KEPT, ANEW)}
    if reasons:
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:3])
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise InputError(
            f"{owner}: this network cannot run on streams. {shown}{more}. Convert the model with "
            "stream=True, or run(...) each frame from the start."
        )
    if snn.view == "signed":
        raise InputError(
            f"{owner}: in the spike form, the rounding errors of neurons and of their receivers "
            "drift apart from frame to frame, except in a plan for streams. Declare it as one: "
            'build(network.replace(stream=True), spikes="signed").'
        )
    rates = [node.name for node in network.of(Neuron) if not node.decoded]
    inner = [name for name in network.carries.values() if name not in leaves(network.outputs)]
    if rates and inner:
        raise InputError(
            f"{owner}: {inner[0]!r} is carried into the next frame, but the values there are "
            f"spikes of rate-coded neurons ({rates[0]!r}), which are decoded at the outputs "
            "only. Make it an output, or convert the model with signGD neurons."
        )


def in_blocks(network: SpikingNetwork) -> bool:
    """Whether several frames run as one block of steps: every state is kept, all steps are alike,
    and no frame has to wait for what it is fed by the one before."""
    timed = network.of(Timed)
    return not network.carries and all(n.frame == KEPT and n.even for n in timed)


# -- what is given ---------------------------------------------------------------------------------


def completed(snn: NetworkModule, x: Any, leading: int) -> Any:
    """x [B, ...], or [F, B, ...] with ``leading`` 1, with the inputs that the network feeds itself,
    which need not be given: zeros, unless the first frame comes with others. Raises InputError."""
    carries, x = snn.network.carries, batch_of(x)
    if not carries:
        return x
    names = [node.name for node in snn.network.inputs if node.name not in carries]
    if not names:
        raise InputError("the network feeds all its inputs itself, so that no stream is left.")
    given = x.tensors if isinstance(x, Inputs) else {names[0]: x}
    first = given.get(names[0])
    if not isinstance(first, Tensor) or first.dim() <= leading:
        return x  # what is missing is said where it is checked
    fed = [name for name in carries if name in given]
    if fed and (snn.seen is not None or (leading and len(first) > 1)):
        raise InputError(
            f"the network feeds {fed[0]!r} itself: leave it out. An initial value can be passed "
            "with the first frame only, after snn.reset()."
        )
    return Inputs({**given, **_zeros(snn, first, given, leading)})


def _zeros(
    snn: NetworkModule, like: Tensor, given: Mapping[str, Tensor], leading: int = 0
) -> dict[str, Tensor]:
    """What the network feeds itself and was not given."""
    return {
        name: torch.zeros(
            (*like.shape[: 1 + leading], *_sample(snn.network, name)),
            dtype=snn.floating,
            device=like.device,
        )
        for name in snn.network.carries
        if name not in given
    }


def _sample(network: SpikingNetwork, name: str) -> tuple[int, ...]:
    return tuple(resolve(network[name].shape, 1))[1:]


def tensors_of(network: SpikingNetwork, x: Batch) -> Mapping[str, Tensor]:
    """What is given, by the names of the inputs."""
    return x.tensors if isinstance(x, Inputs) else {network.input.name: x}


def check_goes_on(snn: NetworkModule, x: Batch) -> None:
    """Raises InputError unless a checked frame x [B, ...] continues from the kept state."""
    if snn.forgotten:
        raise InputError(
            f"the state of the stream was discarded: {snn.forgotten}. Call snn.reset() and start "
            "again with the next frame."
        )
    given, seen = tensors_of(snn.network, x), snn.seen
    if seen is None:
        return
    shapes = {name: list(value.shape) for name, value in given.items()}
    if shapes != seen.shapes:
        raise InputError(
            f"a frame is {_shown(shapes)} now, but the state kept is that of {seen.frames} frames "
            f"of {_shown(seen.shapes)}. Call snn.reset() before frames of another size or another "
            "number of streams."
        )
    for name, value in seen.whole.items():
        if not torch.equal(value, given[name].to(value.device)):
            raise InputError(
                f"the input {name!r} holds integers or booleans, which must be the same for all "
                "frames of a stream, but they have changed. Call snn.reset() first."
            )


def _shown(shapes: Mapping[str, Sequence[int]]) -> str:
    found = list(shapes.items())
    return str(list(found[0][1])) if len(found) == 1 else ", ".join(f"{k} {v}" for k, v in found)


def is_frame(network: SpikingNetwork) -> bool:
    """Whether a simulator's own step is a frame of a stream: one step each, all states kept."""
    return network.time_steps == 1 and in_blocks(network)


def note(snn: NetworkModule, x: Any, leading: int) -> None:
    """Counts the frames x [B, ...], or [F, B, ...] with ``leading`` 1, that a simulator's own call
    has run. Raises InputError unless they continue from the frames before."""
    x = batch_of(x)
    given = x.tensors if isinstance(x, Inputs) else {snn.network.input.name: x}
    whole = {
        k: v if v.is_floating_point() or v.dtype == torch.bool else v.long()
        for k, v in given.items()
    }
    first = Inputs({k: v[0] for k, v in whole.items()} if leading else whole)
    check_goes_on(snn, first)
    _note(snn, first, samples_of(x) if leading else 1)


def _note(snn: NetworkModule, x: Batch, frames: int) -> None:
    """So many frames more, of the form of x [B, ...]."""
    if snn.seen is not None:
        snn.seen = snn.seen._replace(frames=snn.seen.frames + frames)
        return
    given = tensors_of(snn.network, x)
    coded = {node.name for node in snn.network.inputs if node.coded}
    snn.seen = Seen(
        frames,
        {name: list(value.shape) for name, value in given.items()},
        {name: value.clone() for name, value in given.items() if name not in coded},
    )


# -- running ---------------------------------------------------------------------------------------


def run_frames(snn: NetworkModule, x: Batch, steps: Sequence[int], chunk: int) -> dict[int, Any]:
    """Frames x [F, B, ...], checked, from the state that ``snn`` keeps: {t: outputs [F, B, ...]}.

    At most ``chunk`` steps run at once. The state after the last frame is kept; where an exception
    ends the call, that of before its first.
    """
    check_goes_on(snn, _first(x))
    last, found = max(steps), []
    with undone_by_errors(snn), snn.for_sequences():
        for block in _blocks(snn, x, last, chunk):
            found.append({t: each_leaf(block, partial(_after, t=t)) for t in steps})
    return {t: _joined([part[t] for part in found]) for t in steps}


@contextmanager
def undone_by_errors(snn: NetworkModule) -> Iterator[None]:
    """Inside, an exception, Ctrl-C included, leaves the stream as it was before."""
    restore = snn.checkpoint()
    try:
        yield
    except BaseException:
        restore()
        raise


def _after(y: Tensor, t: int) -> Tensor:
    return y[:, t - 1].clone()


def _blocks(snn: NetworkModule, x: Batch, last: int, chunk: int) -> Iterator[Any]:
    """The outputs of some frames at a time, [f, T, B, ...]."""
    frames = samples_of(x)
    size = max(1, chunk // last) if in_blocks(snn.network) else 1
    for start in progress(range(0, frames, size), "simulating", -(-frames // size)):
        now = _frames(x, start, min(start + size, frames))
        if size == 1:
            yield next_frame(snn, _first(now), last)
            continue
        snn.state_kept = snn.new_frame(snn.state_kept)
        block = _in_a_block(snn, now, last)
        _note(snn, _first(now), samples_of(now))
        yield block


def _in_a_block(snn: NetworkModule, x: Batch, last: int) -> Any:
    """Frames x [f, B, ...], each for ``last`` steps: outputs [f, T, B, ...]."""
    frames = samples_of(x)
    outputs, snn.state_kept = snn.advance(_held(x, last), state=snn.state_kept)
    return each_leaf(outputs, lambda y: y.unflatten(0, (frames, last)))


def next_frame(snn: NetworkModule, x: Batch, last: int) -> Any:
    """A checked frame x [B, ...] for ``last`` steps: outputs [1, T, B, ...]."""
    snn.state_kept = snn.new_frame(snn.state_kept)
    outputs, snn.state_kept = snn.advance(_fed(snn, x), last, {}, snn.state_kept)
    _note(snn, x, 1)
    return each_leaf(outputs, lambda y: y.unsqueeze(0))


class SourceOverFrames(nn.Module):
    """``source(x)``: the source network of ``snn`` on one frame [B, ...] after another, fed what it
    put out itself, from zeros or what comes with the first frame."""

    def __init__(self, snn: NetworkModule) -> None:
        super().__init__()
        self._snn = (snn,)  # no submodule: its modes are its own
        self.carried: dict[str, Tensor] = {}

    def forward(self, *x: Tensor, **inputs: Tensor) -> Any:
        (snn,) = self._snn
        names = [node.name for node in snn.network.inputs if node.name not in snn.network.carries]
        given = {**dict(zip(names, x, strict=False)), **inputs}
        zeros = _zeros(snn, given[names[0]], given)
        values = snn.activations({**zeros, **given, **self.carried}, read_out(snn.network))
        # in place: eval_mode puts attributes back
        self.carried.update({name: values[of] for name, of in snn.network.carries.items()})
        return fill(snn.network.outputs, values)


def over_frames(reference: nn.Module | None, snn: NetworkModule) -> nn.Module | None:
    """What ``snn`` is compared with, frame by frame. Raises InputError for a model without the
    memory that ``snn`` has."""
    if reference is None or not snn.network.carries:
        return reference
    if isinstance(reference, Ann):
        return SourceOverFrames(reference.snn)
    raise InputError(
        f"the network feeds {', '.join(map(repr, snn.network.carries))} itself, but "
        f"{type(reference).__name__}, called with single frames, starts again at each. Pass "
        "reference=snn.source, which keeps its own memory, or run both over the clip and compare "
        "their outputs."
    )


def _frames(x: Batch, start: int, stop: int) -> Batch:
    return x.steps(start, stop) if isinstance(x, Inputs) else x[start:stop]


def _first(x: Batch) -> Batch:
    return x.of_step(0) if isinstance(x, Inputs) else x[0]


def _held(x: Batch, last: int) -> Batch:
    """Each frame for so many steps."""
    if last == 1:
        return x
    if not isinstance(x, Inputs):
        return x.repeat_interleave(last, 0)
    tensors = {name: value.repeat_interleave(last, 0) for name, value in x.tensors.items()}
    return Inputs(tensors, x.exact, x.compute)


def _fed(snn: NetworkModule, x: Batch) -> Batch:
    """The frame with what the network was decoded to in the one before; zeros in the first."""
    state: NetworkState | None = snn.state_kept
    if not snn.network.carries or state is None or state.carried is None:
        return x
    assert isinstance(x, Inputs)
    fed = {name: state.carried[of] for name, of in snn.network.carries.items()}
    return Inputs({**x.tensors, **fed}, x.exact, x.compute)


def _joined(parts: Sequence[Any]) -> Any:
    """Structures of tensors [f, ...] as one of [F, ...]."""
    if len(parts) == 1:
        return parts[0]
    columns = iter([torch.cat(list(each)) for each in zip(*map(leaves, parts), strict=True)])
    return each_leaf(parts[0], lambda _: next(columns))
