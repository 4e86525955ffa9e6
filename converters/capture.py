"""Capture: from a trained model to a graph of ATen operations, by ``torch.export``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..core.inputs import Batch, Inputs, batch_of, call
from ..core.modes import eval_mode
from ..core.operations import Size
from ..core.structures import plain
from ..errors import CalibrationError, CaptureError
from .recurrent import DECOMPOSITIONS


@dataclass(frozen=True)
class Captured:
    """The functional graph, the tensors of its placeholders, and the structure of the output."""

    graph: fx.Graph
    constants: dict[str, Tensor]  # placeholder name -> parameter, buffer or lifted constant
    inputs: dict[str, str]  # placeholder name -> the input's
    outputs: Any  # the fx nodes of the outputs, in the structure that the model returns


@contextmanager
def _masks_unread() -> Iterator[None]:
    """nn.TransformerEncoder not looking whether its mask is the causal one.

    It is only a hint to fused attention, and torch.export cannot follow a look at values.
    """
    transformer: Any = torch.nn.modules.transformer
    detect = getattr(transformer, "_detect_is_causal_mask", None)
    if detect is None:
        yield
        return
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def _returning_plain(model: nn.Module) -> Iterator[None]:
    """The model's outputs in lists, tuples and dicts, without None."""
    forward = model.forward

    @wraps(forward)
    def returning_plain(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    model.forward = returning_plain
    try:
        yield
    finally:
        del model.forward


def capture(model: nn.Module, sample: Any) -> Captured:
    """Export ``model`` in eval mode with a dynamic batch.

    ``sample`` is [B, ...], or a dict of such tensors by the names of forward's arguments.

    Raises CaptureError where ``torch.export`` cannot follow the model, where the model fixes the
    batch size, takes other inputs, or returns something else than tensors in lists, tuples and
    dicts; CalibrationError where the model itself fails on the sample.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a torch.nn.Module can be converted, not {type(model).__name__}; wrap a function in "
            "a module whose forward calls it."
        )
    _check_weights(model)
    sample = batch_of(sample)
    returned = _try_out(model, sample)
    _check_outputs(returned, model)
    if len(sample) < 2:  # torch.export treats sizes 0 and 1 as constants
        sample = torch.cat([sample, sample])
    as_plain: AbstractContextManager[None] = (
        nullcontext() if _is_plain(returned) else _returning_plain(model)
    )
    try:
        with (
            eval_mode(model),
            _masks_unread(),
            torch.no_grad(),
            warnings.catch_warnings(),
            as_plain,
        ):
            warnings.simplefilter("ignore")
            program = _exported(model, sample.clone()).run_decompositions(DECOMPOSITIONS)
    except Exception as error:
        raise CaptureError(_what_to_change(model, error)) from error
    if _fixed(program) and len(sample) != UNLIKELY:
        return capture(model, torch.cat([sample[:1]] * UNLIKELY))
    constants = _constants(program)
    placeholders = list(program.graph_signature.user_inputs)
    args, kwargs = pytree.tree_unflatten(placeholders, program.call_spec.in_spec)
    inputs = {args[0]: "input"} if args else {given: name for name, given in kwargs.items()}
    spec = program.call_spec.out_spec
    specs = program.graph_signature.output_specs
    results = zip(program.graph.output_node().args[0], specs, strict=True)  # type: ignore[arg-type]
    flat = [value for value, s in results if s.kind.name == "USER_OUTPUT"]
    mutated = [s for s in specs if s.kind.name not in ("USER_OUTPUT", "USER_INPUT_MUTATION")]
    if mutated:
        targets = ", ".join(str(s.target) for s in mutated)
        raise CaptureError(
            f"{type(model).__name__} changes its own state in forward ({targets}); a converted "
            "network cannot represent that. Compute it outside forward, or freeze it."
        )
    return Captured(program.graph, constants, inputs, plain(pytree.tree_unflatten(flat, spec)))


def _exported(model: nn.Module, sample: Batch) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    if isinstance(sample, Inputs):
        dynamic: Any = {name: batch for name in sample.tensors}
        given = (model, (), sample.tensors)
        return torch.export.export(*given, dynamic_shapes=dynamic, strict=False)
    return torch.export.export(model, (sample,), dynamic_shapes=(batch,), strict=False)


QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def _check_weights(model: nn.Module) -> None:
    """Weights need values, and those of a floating-point model."""
    name = type(model).__name__
    for path, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.is_meta:
            raise CaptureError(
                f"'{path}' of {name} is on the device 'meta' and has no values; load the weights "
                "onto a device first: model.to_empty(device='cpu'), then load_state_dict, or "
                "from_pretrained without device_map='meta'."
            )
    weights = [path for path, weight in model.named_parameters() if not _is_floating(weight)]
    modules = [p for p, m in model.named_modules() if type(m).__module__.startswith(QUANTISED)]
    if weights or modules:
        raise CaptureError(
            f"'{(weights or modules)[0]}' of {name} is quantised; convert the floating-point model "
            "that it was made of, before torch.ao.quantization.convert or with load_in_8bit=False."
        )


def _is_floating(weight: Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_quantized


UNLIKELY = 13  # samples; as many as nothing else in a model


def _fixed(program: torch.export.ExportedProgram) -> bool:
    """Whether torch took the batch for a number, unasked, because another size equals it."""
    names = set(program.graph_signature.user_inputs)
    sizes = [n.meta["val"].shape[0] for n in program.graph.nodes if n.name in names]
    return any(isinstance(size, int) or not size.node.expr.free_symbols for size in sizes)


def _try_out(model: nn.Module, sample: Batch) -> Any:
    """What the model returns; it must run as it is: torch.export reports a wrong shape at length,
    and late."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with eval_mode(model), torch.no_grad():
            call(inspect.signature(model.forward).bind, sample)
            return call(model, sample.clone())  # which may work in place on its input
    except Exception as error:
        raise _why_it_fails(model, sample, error) from error
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _why_it_fails(model: nn.Module, sample: Batch, error: Exception) -> Exception:
    name = type(model).__name__
    if isinstance(error, TypeError) and "argument" in str(error):
        if isinstance(sample, Inputs):
            return CaptureError(
                f"{name} does not take {', '.join(sample.tensors)} ({error}). A batch is a dict "
                "keyed by the names of forward's arguments."
            )
        return CaptureError(
            f"{name} does not take one tensor ({error}). Wrap it in a module that supplies the "
            "other arguments, give them defaults, or pass batches as dicts keyed by the names of "
            "its arguments, {'x': ..., 'y': ...}."
        )
    whole = _whole_numbers(sample)
    vocabulary = _vocabulary(model)
    if vocabulary and whole:
        path, rows = vocabulary
        largest = {k: int(x.max()) for k, x in whole.items()}
        if max(largest.values()) >= rows or min(int(x.min()) for x in whole.values()) < 0:
            return CalibrationError(
                f"{name} looks up ids at '{path}', a vocabulary of {rows} entries, but the largest "
                f"id is {max(largest.values())}: {largest}. Use the tokenizer that belongs to the "
                "model."
            )
    elif whole and not isinstance(sample, Inputs):
        return CalibrationError(
            f"the calibration data is {sample.dtype}; convert it as in training, for instance "
            "x.float() / 255."
        )
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    shown = sample if isinstance(sample, Inputs) else list(sample.shape)
    return CalibrationError(
        f"{name} itself fails on a batch {shown}: {first}\nPass samples of the shape, type and "
        "device that the model expects."
    )


def _whole_numbers(sample: Batch) -> dict[str, Tensor]:
    tensors = sample.tensors if isinstance(sample, Inputs) else {"input": sample}
    return {name: x for name, x in tensors.items() if not x.is_floating_point() and x.numel()}


def _vocabulary(model: nn.Module) -> tuple[str, int] | None:
    """The path of the embedding with the most entries, that of the tokens, and how many."""
    found = {p: m.num_embeddings for p, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return max(found.items(), key=lambda item: item[1]) if found else None


def _is_plain(returned: Any) -> bool:
    """Whether torch.export takes the structure, which transformers tells it of its own."""
    return all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(returned))


def _check_outputs(item: Any, model: nn.Module, name: str = "") -> None:
    """Raises CaptureError, by name, for what a network does not return."""
    what, item = type(model).__name__, plain(item)
    if "Cache" in type(item).__name__ or name == "past_key_values":
        raise CaptureError(
            f"{what} returns a cache of keys and values, {name!r}, which a converted network "
            "does not use; set model.config.use_cache = False."
        )
    if isinstance(item, dict):
        if not all(isinstance(key, str) for key in item):
            raise CaptureError(f"{what} returns a dict whose keys are not strings.")
        for key, value in item.items():
            _check_outputs(value, model, key)
    elif isinstance(item, (list, tuple)):
        for value in item:
            _check_outputs(value, model, name)
    elif not isinstance(item, Tensor):
        raise CaptureError(
            f"{what} returns {type(item).__name__} among its outputs"
            f"{f' ({name!r})' if name else ''}; return tensors, in lists, tuples or dicts."
        )


def _constants(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    signature = program.graph_signature
    constants: dict[str, Tensor] = {}
    for spec in signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            continue
        target = spec.target
        value = program.state_dict.get(target) if target else None  # type: ignore[arg-type]
        if value is None and target:
            value = program.constants.get(target)
        if isinstance(value, Tensor):
            value = value.detach().clone()
            if value.dtype in (torch.float16, torch.bfloat16):
                value = value.float()
            constants[spec.arg.name] = value
    return constants


def _what_to_change(model: nn.Module, error: Exception) -> str:
    text = str(error)
    name = type(model).__name__
    first = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    if "data-dependent" in text and hasattr(model, "backbone"):
        head = "head" if hasattr(model, "head") or not hasattr(model, "rpn") else "rpn.head"
        hint = (
            "A detector's post-processing (sorting and discarding boxes) depends on values in "
            "the input. Convert its backbone and heads, a module whose forward returns "
            f"model.{head}(list(model.backbone(x).values())), and run the rest on the decoded "
            "outputs."
        )
    elif "Constraints violated" in text or "pecializ" in text:
        hint = (
            "The model fixes the batch size, so it cannot be captured for any batch. Write "
            "x.shape[0] (or -1) where it has a number or len(x). If the data are samples "
            "without a batch dimension, pass torch.stack(samples); if they are one sample, pass "
            "x.unsqueeze(0), or better a few dozen samples."
        )
    elif "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        hint = (
            "Its control flow depends on values in the input. Write both branches as tensor "
            "operations (torch.where), or convert the parts before and after."
        )
    else:
        hint = (
            "torch.export.export(model, (x,), strict=False) must succeed on a batch of the "
            "calibration data; try it alone to see the whole message."
        )
    return f"torch.export cannot capture {name}: {first}\n{hint}"


def size_of(size: Any, batch: Any, where: str) -> Size:
    """An int as it is; a symbolic size as a multiple of the batch, ``"3*batch"``."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    ratio = expression / batch
    if ratio.is_Integer:
        return f"{int(ratio)}*batch"
    raise CaptureError(
        f"a size at {where} is {expression}, with {batch} the batch size; only integer multiples "
        "of the batch size are supported."
    )
