"""Capture: a trained model to a graph of ATen operations, by ``torch.export``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..core.modes import eval_mode
from ..core.operations import Size
from ..errors import CalibrationError, CaptureError
from .recurrent import DECOMPOSITIONS


@dataclass(frozen=True)
class Captured:
    """The functional graph, the tensors of its placeholders, and the structure of the output."""

    graph: fx.Graph
    constants: dict[str, Tensor]  # placeholder name -> parameter, buffer or lifted constant
    input_name: str
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


def capture(model: nn.Module, sample: Tensor) -> Captured:
    """Export ``model`` in eval mode with a dynamic batch; ``sample`` is [B, ...].

    Raises CaptureError where ``torch.export`` cannot follow the model, where the model fixes the
    batch size, takes other inputs, or returns something else than tensors in lists, tuples and
    dicts; CalibrationError where the model itself fails on the sample.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a torch.nn.Module can be converted, not {type(model).__name__}; wrap a function in "
            "a module whose forward calls it."
        )
    _try_out(model, sample)
    if sample.shape[0] < 2:  # torch.export treats sizes 0 and 1 as constants
        sample = torch.cat([sample, sample])
    dynamic = ({0: torch.export.Dim("batch")},)
    try:
        with eval_mode(model), _masks_unread(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample = sample.clone()
            program = torch.export.export(model, (sample,), dynamic_shapes=dynamic, strict=False)
            program = program.run_decompositions(DECOMPOSITIONS)
    except Exception as error:
        raise CaptureError(_what_to_change(model, error)) from error
    if _fixed(program) and len(sample) != UNLIKELY:
        return capture(model, torch.cat([sample[:1]] * UNLIKELY))
    constants = _constants(program)
    inputs = [
        s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"
    ]
    spec = program.call_spec.out_spec
    specs = program.graph_signature.output_specs
    results = zip(program.graph.output_node().args[0], specs, strict=True)  # type: ignore[arg-type]
    flat = [value for value, s in results if s.kind.name == "USER_OUTPUT"]
    mutated = [s for s in specs if s.kind.name not in ("USER_OUTPUT", "USER_INPUT_MUTATION")]
    if mutated:
        targets = ", ".join(str(s.target) for s in mutated)
        raise CaptureError(
            f"{type(model).__name__} changes its own state in forward ({targets}); a converted "
            "network has no place for that. Compute it outside forward, or freeze it."
        )
    return Captured(program.graph, constants, inputs[0], _structure(spec, flat, model))


UNLIKELY = 13  # samples; as many as nothing else in a model


def _fixed(program: torch.export.ExportedProgram) -> bool:
    """Whether torch took the batch for a number, unasked, because another size equals it."""
    name = next(iter(program.graph_signature.user_inputs))
    node = next(n for n in program.graph.nodes if n.name == name)
    size = node.meta["val"].shape[0]
    return isinstance(size, int) or not size.node.expr.free_symbols


def _try_out(model: nn.Module, sample: Tensor) -> None:
    """The model must run as it is: torch.export reports a wrong shape at length, and late."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with eval_mode(model), torch.no_grad():
            inspect.signature(model.forward).bind(sample)
            model(sample.clone())  # which may work in place on its input
    except Exception as error:
        if isinstance(error, TypeError) and "argument" in str(error):
            raise CaptureError(
                f"{type(model).__name__} does not take one tensor ({error}). Wrap it in a module "
                "that supplies the other arguments, or give them defaults."
            ) from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise CalibrationError(
            f"{type(model).__name__} itself fails on a batch {list(sample.shape)}: {first}\n"
            "Pass samples of the shape, type and device that the model takes."
        ) from error
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


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


def _structure(spec: pytree.TreeSpec, flat: list[Any], model: nn.Module) -> Any:
    """The outputs as fx nodes in plain lists, tuples and dicts."""
    outputs = pytree.tree_unflatten(flat, spec)

    def check(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return item
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise CaptureError(
                    f"{type(model).__name__} returns a dict whose keys are not strings."
                )
            return {key: check(value) for key, value in item.items()}
        if isinstance(item, (list, tuple)):
            items = [check(value) for value in item]
            return items if isinstance(item, list) else tuple(items)
        raise CaptureError(
            f"{type(model).__name__} returns {type(item).__name__} among its outputs; return "
            "tensors, in lists, tuples or dicts."
        )

    return check(outputs)


def _what_to_change(model: nn.Module, error: Exception) -> str:
    text = str(error)
    name = type(model).__name__
    first = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    if "data-dependent" in text and hasattr(model, "backbone"):
        head = "head" if hasattr(model, "head") or not hasattr(model, "rpn") else "rpn.head"
        hint = (
            "A detector's post-processing (boxes sorted and thrown away) depends on values in the "
            "input. Convert its backbone and heads, a module whose forward returns model."
            f"{head}(list(model.backbone(x).values())), and run the rest on the decoded outputs."
        )
    elif "Constraints violated" in text or "pecializ" in text:
        hint = (
            "The model fixes the batch size, so it cannot be captured for any batch. Write "
            "x.shape[0] (or -1) where it has a number or len(x)."
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
        f"a size at {where} is {expression}, with {batch} the batch; only whole multiples of the "
        "batch can be described."
    )
