"""Model specs: ``package.module:factory``, ``file.pt2``, and those of ``converters.sources``."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..converters import sources
from ..errors import BackendUnavailable, FormatError, InputError, SignGDError


class RandomWeights(UserWarning):
    """A model of a zoo was built without weights."""


def load_model(spec: str, weights: str | None = None) -> nn.Module:
    """The model that ``spec`` names, with the weights of a .safetensors file where one is given.

    Nothing is downloaded but weights that the spec names. Raises SignGDError saying what to change.
    """
    if spec.lower().endswith(".pt2"):
        if weights is not None:
            raise InputError(f"--weights: '{spec}' holds its own; leave --weights out.")
        from .exported import load_exported

        return load_exported(Path(spec))
    if sources.is_source(spec):
        model = sources.load_source(spec)
        if weights is None and not sources.parse(spec).trained:
            warnings.warn(
                f"'{spec}' was built with RANDOM weights, since it names none: the results say "
                f"nothing about the trained network. Write {spec}:DEFAULT, or give --weights "
                "FILE.safetensors.",
                RandomWeights,
                stacklevel=2,
            )
    else:
        found = attribute(spec, "model", "package.module:factory")
        model = call(spec, found) if not isinstance(found, nn.Module) else found
    if not isinstance(model, nn.Module):
        raise SignGDError(f"'{spec}' gives {type(model).__name__}, not a torch.nn.Module.")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model


def attribute(spec: str, what: str, form: str) -> Any:
    """What ``package.module:name`` names; the working folder comes first on the path."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise SignGDError(f"'{spec}' is not a {what}; write {form}.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise SignGDError(f"cannot load '{spec}': {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)


def call(spec: str, factory: Any) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return factory()
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise SignGDError(f"cannot load '{spec}': {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)


def _load_weights(model: nn.Module, path: Path) -> None:
    if path.suffix.lower() != ".safetensors":
        raise FormatError(
            f"--weights '{path}': weights are a .safetensors file, since others are pickles, which "
            "can run code. Write one with safetensors.torch.save_model(model, path)."
        )
    if not path.is_file():
        raise InputError(f"--weights: there is no file '{path}'.")
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"--weights '{path}' needs the package 'safetensors': pip install safetensors"
        ) from error
    try:
        found = load_file(path)
    except Exception as error:  # of a damaged file
        raise FormatError(
            f"--weights '{path}' is not a complete safetensors file ({error})."
        ) from error
    # parameters that share memory are written once
    own = model.state_dict()
    shared: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        shared.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    for names in shared.values():
        known = [name for name in names if name in found]
        if known and own[names[0]].numel():
            for name in names:
                found.setdefault(name, found[known[0]])
    wrong = [f"{name} is missing" for name in own if name not in found]
    wrong += [f"{name} is not the model's" for name in found if name not in own]
    wrong += [
        f"{name} is {list(found[name].shape)}, but the model's is {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"--weights '{path}' are not the weights of this model: {'; '.join(wrong[:5])}{more}."
        )
    model.load_state_dict(found)
