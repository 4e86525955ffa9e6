"""Feedback: inputs of a network that are its outputs of the previous frame.

A model with a memory, ``forward(x, h) -> (y, h)``, is converted as one step. The source runs over
its calibration clip frame by frame, so that the carried inputs are calibrated on their actual
values.
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
                f"carries has {name!r}: {path!r}, but there is no such output ({keys}). Its "
                "value is the position of the output: an index, a key, or a tuple of these."
            ) from error
    return found


def clips_with(model: nn.Module, calibration: Any, carries: Carries) -> list[dict[str, Tensor]]:
    """Clips, one or an iterable of several, with the carried inputs as the source has them."""
    one = isinstance(calibration, (Tensor, Mapping, Inputs)) or not isinstance(
        calibration, Iterable
    )
    check_carries(model, carries)
    clips = [calibration] if one else list(calibration)
    clips = [clip[0] if isinstance(clip, (tuple, list)) else clip for clip in clips]
    if not clips:
        raise CalibrationError(
            "the calibration data contain no clip; a few clips of a dozen frames each are enough."
        )
    return [unrolled(model, clip, carries) for clip in clips]


def check_carries(model: nn.Module, carries: Any) -> None:
    """Raises InputError unless these are places of outputs, by the arguments that they feed."""
    if not isinstance(carries, Mapping):
        raise InputError(
            "carries is a dict from the argument that is fed back to the position of the output "
            f'that feeds it, such as {{"h": 1}}, but it is {carries!r}.'
        )
    names = names_of(model)
    if names and all(name in carries for name in names):
        raise InputError(
            f"carries covers all arguments of forward of {type(model).__name__}, "
            f"{', '.join(names)}, so that none is left for the clip. Leave out those that come "
            "from outside."
        )
    for name, path in carries.items():
        if name not in names:
            raise InputError(
                f"carries names {name!r}, but forward of {type(model).__name__} takes "
                f"{', '.join(names)}. Its keys are those arguments that the model's outputs feed."
            )
        keys = (path,) if isinstance(path, (str, int)) else path
        sequence = isinstance(keys, (tuple, list)) and len(keys) > 0
        if not sequence or not all(isinstance(key, (str, int)) for key in keys):
            raise InputError(
                f"carries has {name!r}: {path!r}, which is not a position in the model's "
                "outputs. Pass an index, a key, or a tuple of these."
            )


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
            now = {name: x[frame].clone() for name, x in frames.items()}
            held = _carried(model, now, held, carries)
    return frames | {name: torch.stack(values) for name, values in seen.items()}


def _carried(
    model: nn.Module,
    now: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    carries: Carries,
) -> dict[str, Tensor]:
    """What a frame leaves to the next. Raises InputError where that is nothing it takes."""
    try:
        returned = plain(model(**now, **held))
    except Exception as error:  # whatever the user's model raises
        shown = {name: list(value.shape) for name, value in {**now, **held}.items()}
        raise InputError(
            f"{type(model).__name__} fails on a frame with {shown}: {error}. If the shape of "
            f"{', '.join(map(repr, carries))} is wrong, choose in carries the output that is its "
            "next value, or give zeros [N, ...] of the right shape in the calibration."
        ) from error
    found = {name: at(returned, path, name) for name, path in carries.items()}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != held[name].shape:
            there = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"carries has {name!r}: {carries[name]!r}, but that output is {there}, and "
                f"{name!r} is {list(held[name].shape)}. Choose the output that is its next value."
            )
    return found


def _by_name(model: nn.Module, clip: Any, carries: Carries) -> dict[str, Tensor]:
    names = names_of(model)
    rest = [name for name in names if name not in carries]
    if isinstance(clip, Inputs):
        clip = clip.tensors
    given = dict(clip) if isinstance(clip, Mapping) else {rest[0] if rest else "": clip}
    streams = {name: x for name, x in given.items() if name not in carries}
    if not streams or not all(isinstance(x, Tensor) and x.dim() >= 2 for x in streams.values()):
        shown = {k: list(getattr(x, "shape", ())) or type(x).__name__ for k, x in streams.items()}
        raise CalibrationError(
            "with carries= the calibration data is a clip [F, N, ...], F frames of N streams, or "
            f"a dict of clips keyed by the names of forward's arguments, but it is {shown}."
        )
    if len({x.shape[:2] for x in streams.values()}) > 1 or not streams[next(iter(streams))].numel():
        raise CalibrationError(
            "the inputs of a clip must have the same numbers of frames and of streams, at least "
            f"1, but they are { ({k: list(x.shape) for k, x in streams.items()}) }."
        )
    _check_names(model, given, carries)
    return given


def _check_names(model: nn.Module, given: Mapping[str, Any], carries: Carries) -> None:
    """Raises CalibrationError for what forward does not take, or what it needs besides."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    known = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    needed = [p.name for p in parameters if p.name in known and p.default is p.empty]
    open_ = any(p.kind == p.VAR_KEYWORD for p in parameters)  # **kwargs takes any name
    unknown = [name for name in given if name not in known and not open_]
    missing = [name for name in needed if name not in given and name not in carries]
    if unknown or missing:
        raise CalibrationError(
            f"forward of {type(model).__name__} takes {', '.join(names_of(model))}, but the "
            f"calibration {f'has {unknown[0]!r}' if unknown else f'lacks {missing[0]!r}'}. Its "
            "names are those of forward's arguments."
        )


def _zeros(
    model: nn.Module,
    frames: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    carries: Carries,
) -> dict[str, Tensor]:
    """What is carried into the first frame."""
    started = {name: given[name] for name in carries if name in given}
    streams = next(iter(frames.values())).shape[1]
    for name, value in started.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != streams:
            there = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{name!r} in the calibration is what the first frame starts with, zeros [N, ...] "
                f"of {streams} streams, but it is {there}."
            )
        if bool(value.any()):
            raise InputError(
                f"the stream starts with zeros in {name!r}, but the calibration gives other "
                "values. Pass torch.zeros(N, ...), and store another initial state in the "
                "model's weights."
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
            f"does not run without it ({error}). Give forward the default None, or the first "
            f"values in the calibration: {{{', '.join(map(repr, frames))}: clip, {what}}}."
        ) from error
    found = {name: at(returned, carries[name], name) for name in missing}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"carries has {name!r}: {carries[name]!r}, but that output is not a tensor but "
                f"{type(value).__name__}. Add the index or key of the tensor in it."
            )
    zeros = started | {name: torch.zeros_like(value) for name, value in found.items()}
    again = _carried(model, now, zeros, carries)
    for name, value in found.items():
        if not torch.allclose(again[name], value, rtol=1e-4, atol=1e-6):
            raise InputError(
                f"{type(model).__name__} without {name!r} starts from non-zero values, but a "
                "stream starts with zeros. Add the initial value to a bias, or to the carried "
                "value where the model uses it."
            )
    return zeros
