"""Streams in the NumPy runner: the state kept from frame to frame, and the checks of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.structures import leaves
from ...errors import InputError
from .content import Content
from .kinds import ANEW, KEPT, KINDS
from .runner_functions import Array
from .runner_operations import resolve


@dataclass(frozen=True)
class Kept:
    """What is left of the frames so far; values are [B, ...].

    ``states`` by node and ``readouts``, the decoded outputs; ``inputs`` are the last frame, ``fed``
    what inputs that the network feeds itself are in the next one.
    """

    view: str
    states: Mapping[str, Any]
    readouts: Mapping[str, Array]
    inputs: Mapping[str, Array]
    fed: Mapping[str, Array]


def check_kinds(content: Content, sequence: bool, delay: bool) -> None:
    """Raises InputError, by the name of the node, for a network that cannot run on streams."""
    if not sequence:
        raise InputError(
            "keep_state=True is for clips [F, B, ...]; pass sequence=True, and a frame as x[None]."
        )
    for node in content.nodes:
        found = KINDS[node.kind].frame(node)
        if found not in (KEPT, ANEW):
            raise InputError(
                f"keep_state=True: this network cannot run on streams. {node.name!r}: {found}. "
                "Run each frame from the start, or convert the model with stream=True."
            )
    rates = [node.name for node in content.nodes if node.kind in ("group", "growth")]
    inner = [name for name in content.carries.values() if name not in leaves(content.outputs)]
    if rates and inner:
        raise InputError(
            f"{inner[0]!r} is carried into the next frame, but the values there are spikes of "
            f"rate-coded neurons ({rates[0]!r}), which are decoded at the outputs only; make it "
            "an output."
        )
    if delay and content.carries:
        raise InputError(
            f"the network feeds {', '.join(content.carries)} with values of the previous frame, "
            "which are not available yet with a delay; run it without one."
        )


def check_view(content: Content, view: str | None, usual: str) -> str:
    """The view of a stream, by default ``usual`` where the plan is one for streams."""
    if view == "spike" and not content.stream:
        raise InputError(
            "in the spike view, the rounding errors of neurons and of their receivers drift "
            'apart from frame to frame, except in a plan for streams; use view="decoded", or '
            "convert with stream=True."
        )
    return view or (usual if content.stream else "decoded")


def check_begin(content: Content, frames: Mapping[str, Array], first: bool) -> None:
    """Raises InputError where what the network feeds itself is given, but for its first frame."""
    fed = [name for name in content.carries if name in frames]
    if fed and not (first and all(len(frames[name]) == 1 for name in frames)):
        raise InputError(
            f"the network feeds {fed[0]!r} itself: leave it out. An initial value can be passed "
            "with the first frame only, after reset()."
        )


def check_next(frames: Mapping[str, Array], kept: Kept, view: str) -> None:
    """Raises InputError unless these frames [F, B, ...] can follow those before them."""
    if view != kept.view:
        raise InputError(f"the stream began in the view {kept.view!r}; reset() to take {view!r}.")
    for name, before in kept.inputs.items():
        x = frames.get(name)
        if x is None:
            continue
        if x.shape[1:] != before.shape:
            raise InputError(
                f"the frames of this stream are {list(before.shape)}, but these are "
                f"{list(x.shape[1:])}. reset() before frames of another size or another number of "
                "streams."
            )
        if before.dtype.kind != "f" and (x != before).any():
            raise InputError(
                f"{name!r} holds integers, which must be the same in all frames of a stream, but "
                "they changed; reset() first."
            )


def check_clip(frames: Mapping[str, Array]) -> tuple[int, int]:
    """How many frames of how many streams; raises InputError."""
    if len({x.shape[:2] for x in frames.values()}) > 1:
        found = {name: list(x.shape) for name, x in frames.items()}
        raise InputError(f"the inputs differ in their number of frames or streams: {found}.")
    count, batch = next(iter(frames.values())).shape[:2]
    if not count or not batch:
        raise InputError(
            f"a clip [F, B, ...] has at least one frame of one stream, but it is {[count, batch]}."
        )
    return count, batch


def with_fed(
    content: Content, frames: Mapping[str, Array], kept: Kept | None, dtype: Any
) -> dict[str, Array]:
    """All inputs of a clip; those that the network feeds itself are zeros but for the first frame,
    which what was before it feeds."""
    count, batch = check_clip(frames)
    clip = dict(frames)
    for node in content.of("input"):
        if node.name not in frames:
            clip[node.name] = np.zeros((count, *resolve(node["shape"], batch)), dtype)
            if kept is not None:
                clip[node.name][0] = kept.fed[node.name]
    return clip


def by_frame(
    found: Mapping[int, Mapping[str, Array]], steps: Sequence[int], frames: int
) -> dict[int, dict[str, Array]]:
    """{t: by name [F, B, ...]} of what is found by the step of the clip."""
    last = max(steps)
    each = {t: [found[frame * last + t] for frame in range(frames)] for t in steps}
    return {t: {k: np.stack([one[k] for one in all_]) for k in all_[0]} for t, all_ in each.items()}
