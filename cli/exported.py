"""``.pt2`` files of ``torch.export.save``, read without trusting them.

``torch.export.load`` unpickles the sample inputs, and weights and constants where the file asks for
it; it evaluates the file's sizes as Python expressions, puts its names into source text that is
executed, and loads compiled libraries. So what it gets here is a copy in memory of what is needed
and checked: plain tensors, operations of ATen, names that are names, sizes in a small grammar.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import FormatError

AGAIN = (
    "Export it again on the CPU with torch.export.save(torch.export.export(model.eval(), (x,), "
    "dynamic_shapes=({0: torch.export.Dim('batch')},)), path), or name the model as "
    "package.module:factory."
)
LARGEST_JSON = 256 * 2**20  # bytes; of a graph of a million nodes
RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)"
    r"|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
DROPPED = re.compile(r"extra/.*|data/sample_inputs/model\.pt")
NAME = re.compile(r"[\w.]*", re.ASCII)
OPERATION = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge)",
    re.ASCII,
)
SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|integer|nonnegative)=True)*\)", re.ASCII)
SIZES = frozenset(
    "Add CeilDiv CleanDiv FloorDiv IntTrueDiv Integer Max Min Mod Mul Pow PythonMod Rational "
    "ToFloat TruncToInt".split()
)
TREES = ("builtins.tuple", "builtins.list", "builtins.dict", None)
TREE_CONTEXT = re.compile(r'(null|\[("\w*"(, "\w*")*)?\])', re.ASCII)


def load_exported(path: Path) -> nn.Module:
    """The module of an exported program. Raises FormatError for a file that is not one, is damaged,
    fixes the batch size, or asks for more than tensors and operations of ATen."""
    try:
        image = _copy(path)
        with _silent():
            program = torch.export.load(image)
            _check_batch(program)
            module = _module(program)
            # a plain module of the same graph: that of torch cannot be put into eval mode
            return torch.fx.GraphModule(module, module.graph)
    except FormatError as error:
        raise FormatError(f"cannot read '{path}': {error} {AGAIN}") from error
    except OSError as error:
        raise FormatError(f"cannot read '{path}': {error.strerror or error}.") from error
    except Exception as error:  # whatever torch meets in a damaged file
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FormatError(f"cannot read '{path}': {first.rstrip('.')}. {AGAIN}") from error


def _module(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    try:
        return program.module(check_guards=False)  # type: ignore[return-value]
    except TypeError:  # before torch 2.9, which checks none
        return program.module()  # type: ignore[return-value]


@contextmanager
def _silent() -> Iterator[None]:
    """Without torch's own deprecations, and its log, which repeats its errors at length."""
    log = logging.getLogger("torch.export")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _copy(path: Path) -> io.BytesIO:
    image = io.BytesIO()
    try:
        source = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise FormatError(
            "it is not a file of torch.export.save, which is a zip archive."
        ) from None
    with source, zipfile.ZipFile(image, "w", zipfile.ZIP_STORED) as target:
        roots = {name.partition("/")[0] for name in source.namelist()}
        if len(roots) != 1 or not any(n.endswith("/archive_format") for n in source.namelist()):
            raise FormatError(
                "it is not an archive of an exported program as torch 2.8 and newer write it."
            )
        if len(set(source.namelist())) != len(source.namelist()):
            raise FormatError("it holds a record twice.")
        for info in source.infolist():
            name = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED:
                raise FormatError(f"its record '{name}' is compressed, which torch does not do.")
            if DROPPED.fullmatch(name):
                continue
            if not RECORDS.fullmatch(name):
                raise FormatError(
                    f"its record '{name}' would be unpickled or run as native code, which is not "
                    "done here."
                )
            target.writestr(info.filename, _checked(name, source.read(info)))
        target.writestr(f"{roots.pop()}/data/sample_inputs/model.pt", b"")  # not needed: a pickle
    image.seek(0)
    return image


def _checked(name: str, content: bytes) -> bytes:
    if not name.endswith(".json"):
        return content
    if len(content) > LARGEST_JSON:
        raise FormatError(f"its record '{name}' takes {len(content)} bytes.")
    data = json.loads(content)
    if name == "models/model.json":
        return json.dumps(_program(data)).encode()
    for key, payload in data["config"].items():
        _name(key)
        _name(payload["path_name"])
        if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
            raise FormatError(f"it holds '{key}' as a pickle, which is not read.")
        _values(payload)
    return content


def _program(data: dict[str, Any]) -> dict[str, Any]:
    """The program without what is for people, and without conditions given as source text."""
    graph = data["graph_module"]["graph"]
    for node in graph["nodes"]:
        if not OPERATION.fullmatch(node["target"]) or not _dispatched(node["target"]):
            raise FormatError(f"it calls {node['target']!r}, which is not an operation of ATen.")
        stack = node["metadata"].get("nn_module_stack")
        node["metadata"] = {} if stack is None else {"nn_module_stack": stack}
    data["guards_code"] = []
    _values(data)
    return data


def _dispatched(target: str) -> bool:
    """Not one of those that only TorchScript has, such as aten.save, which writes files."""
    if not target.startswith("torch.ops.aten."):
        return True
    name, _, overload = target.removeprefix("torch.ops.aten.").partition(".")
    full = f"aten::{name}" + (f".{overload}" if overload != "default" else "")
    return bool(torch._C._dispatch_has_kernel(full))


def _values(value: Any, key: str = "") -> None:
    """Raises FormatError for a text that is not a name where torch makes code of it."""
    if isinstance(value, dict):
        for name, item in value.items():
            _name(name)
            if name in ("as_custom_obj", "as_operator", "as_graph", "custom_obj", "token") and item:
                raise FormatError(f"it holds {name!r}, which no operation of ATen needs.")
            if name == "custom_obj_values" and item:
                raise FormatError("it holds objects of its own classes.")
            if name == "device" and item and item.get("type", "cpu") not in ("cpu", "meta"):
                raise FormatError(f"it was exported on {item['type']!r}.")
            _values(item, name)
    elif isinstance(value, list):
        for item in value:
            _values(item, key)
    elif isinstance(value, str):
        if key == "expr_str":
            _size(value)
        elif key in ("in_spec", "out_spec"):
            _tree(json.loads(value)[1])
        elif key not in ("as_string", "as_strings", "nn_module_stack", "torch_version"):
            _name(value)


def _name(text: str) -> None:
    if not NAME.fullmatch(text):
        raise FormatError(f"{text[:60]!r} is not a name.")


def _size(text: str) -> None:
    words = re.findall(r"[A-Za-z_]\w*", SYMBOL.sub("0", text))
    if not set(words) <= SIZES or not re.fullmatch(r"[\w\s(),*+/-]*", SYMBOL.sub("0", text)):
        raise FormatError(f"{text[:60]!r} is not a size.")


def _tree(spec: dict[str, Any]) -> None:
    context = spec["context"]
    if spec["type"] not in TREES or not (context is None or TREE_CONTEXT.fullmatch(context)):
        raise FormatError(
            f"it takes or returns {spec['type']!r}; tensors in lists, tuples and dicts can be."
        )
    for child in spec["children_spec"]:
        _tree(child)


def _check_batch(program: torch.export.ExportedProgram) -> None:
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise FormatError(f"it takes {len(names)} inputs; a network that is converted takes one.")
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name == names[0]:
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor) or not value.dim():
                raise FormatError("its input is not a tensor [B, ...].")
            if isinstance(value.shape[0], int):
                raise FormatError(f"it was exported for batches of {value.shape[0]} alone.")
