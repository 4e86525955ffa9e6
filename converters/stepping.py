"""A model of whole sequences as a model of one frame, with its state as an input and an output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modes import eval_mode
from ..core.structures import leaves, plain
from ..errors import CalibrationError, InputError, UnsupportedOperation
from .causal import Lengths, RememberingConv, check_causal
from .memory import Memory
from .recurrent import RememberingCell, RememberingLayer, check_remembers

LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
TOLERANCE = 1e-4  # of the largest output
PREFIXES = 6  # sequences so far that the model is run on as well


class StepByStep(nn.Module):
    """One frame of a model of sequences: ``forward(x, state) -> (y, state)``.

    x is a frame of the sequence, as long as the hop; the state [B, S] is what its layers keep, in
    one tensor, None or zeros before the first frame; ``carries`` is what ``convert`` takes.
    ``parts`` says what the state holds: [...] of one stream, by module.
    """

    carries: Mapping[str, int] = {"state": 1}

    def __init__(self, model: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.model, self.memory = model, memory

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        return dict(self.memory.shapes)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Any, Tensor]:
        if state is None:
            state = x.new_zeros(x.shape[0], self.memory.size)
        self.memory.begin(state)
        return self.model(x), self.memory.end()


def step_by_step(model: nn.Module, x: Tensor, *, hop: int = 1, dim: int = 1) -> StepByStep:
    """``model``, which is called on sequences like x [B, ..., L, ...], as a model of one frame.

    Time is the dimension ``dim`` of x, which is a sample of a few frames at least, and a frame is
    ``hop`` steps of it: its output is that of the model at the end of the sequence so far. The
    state consists of the states of nn.LSTM, nn.GRU, nn.RNN and their cells and the last inputs of
    causal nn.Conv1d, so that only the newest hop is computed; all other parts must treat the steps
    alike. The model is not changed, and its weights are shared.

    Raises UnsupportedOperation, naming the module, for what is not causal, and unless frame by
    frame the outputs on x are those of the model: on the sequence so far for the first 6 frames,
    then on the whole of x. Differences that appear only later than the length of x are not
    detected. InputError and CalibrationError for x.
    """
    frames = _frames_of(x, hop, dim)
    memory = Memory()
    seen, fewer = (_run(model, torch.cat(part, dim)) for part in (frames, frames[:-1]))
    stepped = StepByStep(_replaced(model, memory, seen, fewer, len(frames)), memory)
    if not memory.size:
        raise UnsupportedOperation(
            f"{type(model).__name__} has no nn.LSTM, nn.GRU, nn.RNN, cell of these or nn.Conv1d "
            "that keeps a state from frame to frame. If it treats all steps alike, convert the "
            "model itself on frames."
        )
    with eval_mode(stepped), eval_mode(model), torch.no_grad():
        _check(stepped, model, frames, dim)
    return stepped


def _frames_of(x: Any, hop: int, dim: int) -> list[Tensor]:
    if not isinstance(x, Tensor) or not -x.dim() <= dim < x.dim() or dim % x.dim() == 0:
        raise InputError(
            "x is a sequence [B, ..., L, ...] with time in dimension dim, which is not the first, "
            f"but x is {list(getattr(x, 'shape', ())) or type(x).__name__} and dim {dim!r}."
        )
    if not isinstance(hop, int) or isinstance(hop, bool) or hop < 1:
        raise InputError(f"hop is a number of steps, at least 1, but it is {hop!r}.")
    frames = [part for part in x.split(hop, dim) if part.shape[dim] == hop]
    if len(frames) < 3:
        raise InputError(
            f"step_by_step needs a sequence of at least 3 frames, but x has {x.shape[dim]} steps "
            f"in dimension {dim} and a frame is {hop}. Pass a longer sample, or the right dim."
        )
    return frames


# -- what the model does on a sample ---------------------------------------------------------------


class _Calls:
    """Of one module in a run: the arguments of its calls, the lengths of input and output."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.lengths: list[tuple[int, int]] = []

    def note(self, _: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self.given.append(args)
        if isinstance(out, Tensor):
            self.lengths.append((args[0].shape[-1], out.shape[-1]))


def _run(model: nn.Module, x: Tensor) -> dict[str, _Calls]:
    """What layers with a memory are called on, by path."""
    kinds = (*LAYERS, *CELLS, nn.Conv1d)
    seen = {path: _Calls() for path, module in model.named_modules() if isinstance(module, kinds)}
    hooks = [model.get_submodule(p).register_forward_hook(calls.note) for p, calls in seen.items()]
    try:
        with eval_mode(model), torch.no_grad():
            model(x.clone())
    except Exception as error:
        raise CalibrationError(
            f"{type(model).__name__} itself fails on a sequence {list(x.shape)}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return {path: calls for path, calls in seen.items() if calls.given}


def _copied(model: nn.Module) -> nn.Module:
    """The model, of the same weights."""
    weights = [*model.parameters(), *model.buffers()]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})
    except RuntimeError as error:
        raise UnsupportedOperation(
            f"{type(model).__name__} cannot be copied ({error}). Remove the parametrizations of "
            "its weights first: torch.nn.utils.remove_weight_norm(module)."
        ) from error


def _replaced(
    model: nn.Module,
    memory: Memory,
    all_frames: Mapping[str, _Calls],
    fewer: Mapping[str, _Calls],
    frames: int,
) -> nn.Module:
    """The model with layers that remember; of all frames, and of one fewer, it made these calls."""
    copied = _copied(model)
    for path, calls in all_frames.items():
        module, name = copied.get_submodule(path), path or "model"
        if isinstance(module, nn.Conv1d):
            lengths = Lengths.of(calls.lengths[0], fewer[path].lengths[0], frames)
            check_causal(module, name, lengths, len(calls.given))
            layer: nn.Module = RememberingConv(module, name, memory, lengths)
        else:
            check_remembers(module, name, calls.given)
            if isinstance(module, LAYERS):
                _check_time(module, name, calls.given[0], fewer[path].given[0])
            kind = RememberingLayer if isinstance(module, LAYERS) else RememberingCell
            layer = kind(module, name, memory)  # type: ignore[arg-type]
        if not path:
            return layer
        parent, _, last = path.rpartition(".")
        setattr(copied.get_submodule(parent), last, layer)
    return copied


def _check_time(
    module: nn.LSTM | nn.GRU | nn.RNN, path: str, given: tuple[Any, ...], fewer: tuple[Any, ...]
) -> None:
    """Raises UnsupportedOperation where a layer goes over streams, not over time; it was called on
    what is ``given``, and with ``fewer`` frames."""
    x, less = given[0] if given else None, fewer[0] if fewer else None
    if not isinstance(x, Tensor) or not isinstance(less, Tensor) or x.dim() != 3:
        return
    time = int(module.batch_first)
    if x.shape[time] == less.shape[time] and x.shape[1 - time] != less.shape[1 - time]:
        raise UnsupportedOperation(
            f"'{path}' (nn.{type(module).__name__}, batch_first={module.batch_first}) runs over "
            f"dimension {time} of its input {list(x.shape)}, but time is dimension {1 - time} "
            f"there. Build it with batch_first={not module.batch_first}; if the model itself "
            "takes [L, B, ...], wrap it: forward(x) -> model(x.transpose(0, 1)).transpose(0, 1)."
        )


# -- whether it is the same ------------------------------------------------------------------------


def _check(stepped: StepByStep, model: nn.Module, frames: list[Tensor], dim: int) -> None:
    """Raises UnsupportedOperation unless frame by frame the outputs are the model's, on the
    sequence so far for the first frames, and then on the whole of it."""
    name, state = type(model).__name__, _check_first(stepped, model, frames[:PREFIXES], dim)
    whole = leaves(plain(model(torch.cat(frames, dim))))
    for f, frame in enumerate(frames[PREFIXES:], PREFIXES):
        y, state = _tried(stepped, frame.clone(), name, state)
        for have, want in zip(leaves(plain(y)), whole, strict=True):
            if want.shape == have.shape and f + 1 < len(frames):
                continue  # an output of the end, which only the last frame has
            if not _close(have, _part(want, have, f, len(frames), name)):
                raise _other(name, f)


def _other(name: str, frame: int) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"frame by frame, {name} gives another output at frame {frame} than on the sequence so "
        "far: another part of it depends on earlier frames. Only nn.LSTM, nn.GRU, nn.RNN, their "
        "cells and causal nn.Conv1d run step by step, not pooling over frames, attention or a "
        "state of the model's own. Write it as forward(x, h) -> (y, h), and use carries=."
    )


def _check_first(
    stepped: StepByStep, model: nn.Module, frames: list[Tensor], dim: int
) -> Tensor | None:
    """The same of the sequence so far, which what comes later must not change; the state after."""
    name, state = type(model).__name__, None
    whole = leaves(plain(model(torch.cat(frames, dim))))
    for f, frame in enumerate(frames):
        so_far = leaves(plain(_tried(model, torch.cat(frames[: f + 1], dim), name)))
        y, state = _tried(stepped, frame.clone(), name, state)
        for have, want, later in zip(leaves(plain(y)), so_far, whole, strict=True):
            newest = _part(want, have, f, f + 1, name)
            if later.shape != have.shape and not _close(
                _part(later, have, f, len(frames), name), newest
            ):
                raise UnsupportedOperation(
                    f"{name} is not causal: its output at frame {f} depends on later frames (a "
                    "norm, pooling or attention over time, or padding on the right). Pass it "
                    "whole windows: sg.windows."
                )
            if not _close(have, newest):
                raise _other(name, f)
    return state


def _tried(model: nn.Module, x: Tensor, name: str, *state: Tensor | None) -> Any:
    """What a model returns for a few frames."""
    try:
        return model(x, *state)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedOperation(
            f"{name} does not run on a sequence as short as {list(x.shape)}: {error}. Choose a "
            "hop that is a multiple of its pooling sizes and strides."
        ) from error


def _part(whole: Tensor, one: Tensor, frame: int, frames: int, name: str) -> Tensor:
    """Of an output of ``frames`` frames, that of one; what is of all frames together as it is."""
    if whole.shape == one.shape:
        return whole
    sizes = zip(whole.shape, one.shape, strict=False)
    grown = [d for d, (a, b) in enumerate(sizes) if a != b]
    fits = whole.dim() == one.dim() and len(grown) == 1
    if not fits or whole.shape[grown[0]] != frames * one.shape[grown[0]]:
        raise UnsupportedOperation(
            f"{name} returns {list(whole.shape)} for {frames} frames but {list(one.shape)} for "
            "one: its outputs are not one per frame. Choose a hop that is a multiple of its "
            "pooling sizes and strides."
        )
    return whole.narrow(grown[0], frame * one.shape[grown[0]], one.shape[grown[0]])


def _close(have: Tensor, want: Tensor) -> bool:
    allowed = TOLERANCE * float(want.abs().max()) + 1e-6 if want.numel() else 0.0
    return have.shape == want.shape and float((have - want).abs().amax()) <= allowed
