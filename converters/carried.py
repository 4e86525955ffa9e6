"""What a network feeds itself: the inputs that are outputs of the frame before.

A model with a memory, ``forward(x, h) -> (y, h)``, is converted as one step. The source is run over
its calibration clip frame by frame, so that the carried inputs are calibrated as they come.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.inputs import Inputs
from ..core.modes import eval_mode
from ..core.structures import plain
from ..errors import CalibrationError, InputError

Path = str | int | Sequence[str | int]  # in the structure of the output: 1, "h", ("state", 0)
Carries = Mapping[str, Path]


def names_of(model: nn.Module) -> list[str]:
    """The arguments of forward."""
    return list(inspect.signature(model.forward).parameters)


def at(structure: Any, path: Path, name: str) -> Any:
    """What lies at ``path`` in a structure of outputs. Raises InputError, naming the input."""
    found = structure
    for key in (path,) if isinstance(path, (str, int)) else path:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError) as error:
            shown = type(structure).__name__
            keys = list(structure) if isinstance(structure, Mapping) else f"{shown} of outputs"
            raise InputError(
                f"carries has {name!r}: {path!r}, but there is no such output ({keys}). Its value "
                "is where the model returns it: an index, a key, or several of these."
            ) from error
    return found


def clips_with(model: nn.Module, calibration: Any, carries: Carries) -> list[dict[str, Tensor]]:
    """Clips, one or an iterable of several, with the carried inputs as the source has them."""
    one = isinstance(calibration, (Tensor, Mapping, Inputs)) or not isinstance(
        calibration, Iterable
    )
    clips = [calibration] if one else list(calibration)
    clips = [clip[0] if isinstance(clip, (tuple, list)) else clip for clip in clips]
    if not clips:
        raise CalibrationError("there is no clip; a few of a dozen frames each are enough.")
    return [unrolled(model, clip, carries) for clip in clips]


def unrolled(model: nn.Module, clip: Any, carries: Carries) -> dict[str, Tensor]:
    """The clip with the carried inputs as the source has them: by name [F, N, ...].

    ``clip`` is [F, N, ...], F frames of N streams, or a dict of such by the names of forward's
    arguments. The first carried values are zeros: those of the model's own default, or given in the
    dict as zeros [N, ...]. Raises InputError and CalibrationError.
    """
    given = _by_name(model, clip, carries)
    frames = {name: x for name, x in given.items() if name not in carries}
    with eval_mode(model), torch.no_grad():
        held = _zeros(model, frames, given, carries)
        seen: dict[str, list[Tensor]] = {name: [] for name in carries}
        for frame in range(len(next(iter(frames.values())))):
            for name, value in held.items():
                seen[name].append(value)
            held = _carried(model, frames, frame, held, carries)
    return frames | {name: torch.stack(values) for name, values in seen.items()}


def _carried(
    model: nn.Module,
    frames: Mapping[str, Tensor],
    frame: int,
    held: Mapping[str, Tensor],
    carries: Carries,
) -> dict[str, Tensor]:
    """What a frame leaves to the next."""
    now = {name: x[frame].clone() for name, x in frames.items()}
    returned = plain(model(**now, **held))
    return {name: at(returned, path, name) for name, path in carries.items()}


def _by_name(model: nn.Module, clip: Any, carries: Carries) -> dict[str, Tensor]:
    names = names_of(model)
    unknown = [name for name in carries if name not in names]
    if unknown:
        raise InputError(
            f"carries names {unknown[0]!r}, but forward of {type(model).__name__} takes "
            f"{', '.join(names)}. Its keys are those arguments that the model's outputs feed."
        )
    rest = [name for name in names if name not in carries]
    if isinstance(clip, Inputs):
        clip = clip.tensors
    given = dict(clip) if isinstance(clip, Mapping) else {rest[0] if rest else "": clip}
    streams = {name: x for name, x in given.items() if name not in carries}
    if not streams or not all(isinstance(x, Tensor) and x.dim() >= 2 for x in streams.values()):
        shown = {k: list(getattr(x, "shape", ())) or type(x).__name__ for k, x in streams.items()}
        raise CalibrationError(
            "with carries= the calibration data is a clip [F, N, ...], F frames of N streams, or a "
            f"dict of such by the names of forward's arguments, but it is {shown}."
        )
    if len({x.shape[:2] for x in streams.values()}) > 1 or not streams[next(iter(streams))].numel():
        raise CalibrationError(
            "the inputs of a clip have one number of frames and of streams, at least 1, but here "
            f"they are { ({k: list(x.shape) for k, x in streams.items()}) }."
        )
    return given


def _zeros(
    model: nn.Module,
    frames: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    carries: Carries,
) -> dict[str, Tensor]:
    """What is carried into the first frame."""
    started = {name: given[name] for name in carries if name in given}
    for name, value in started.items():
        if bool(value.any()):
            raise InputError(
                f"the stream begins with zeros in {name!r}, but the calibration gives other "
                "values. Pass torch.zeros(N, ...), and keep what the model starts from in its "
                "weights."
            )
    missing = [name for name in carries if name not in started]
    if not missing:
        return started
    now = {name: x[0].clone() for name, x in frames.items()}
    try:
        returned = plain(model(**now, **started))
    except Exception as error:
        what = ", ".join(f"{name!r}: torch.zeros(N, ...)" for name in missing)
        raise InputError(
            f"the shape of {', '.join(map(repr, missing))} is not known: {type(model).__name__} "
            f"does not run without ({error}). Give forward the default None, or the first values "
            f"in the calibration: {{{', '.join(map(repr, frames))}: clip, {what}}}."
        ) from error
    found = {name: at(returned, carries[name], name) for name in missing}
    zeros = started | {name: torch.zeros_like(value) for name, value in found.items()}
    again = plain(model(**now, **zeros))
    for name, value in found.items():
        if not torch.allclose(at(again, carries[name], name), value, rtol=1e-4, atol=1e-6):
            raise InputError(
                f"{type(model).__name__} without {name!r} starts from something else than zeros, "
                "but a stream begins with zeros. Add what it starts from to a bias, or to the "
                "carried value where the model uses it."
            )
    return zeros
