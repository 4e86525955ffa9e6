"""Model specs: ``package.module:factory``, ``timm:name``, ``torchvision:name``, ``file.pt2``."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BackendUnavailable, FormatError, InputError, SignGDError

ZOOS = ("timm", "torchvision")


class RandomWeights(UserWarning):
    """A model of a zoo was built without weights."""


def load_model(spec: str, weights: str | None = None) -> nn.Module:
    """The model that ``spec`` names, with the weights of a .safetensors file where one is given.

    Nothing is downloaded, and nothing unpickled. Raises SignGDError saying what to change.
    """
    if spec.lower().endswith(".pt2"):
        if weights is not None:
            raise InputError(f"--weights: '{spec}' holds its own; leave --weights out.")
        from .exported import load_exported

        return load_exported(Path(spec))
    zoo, _, name = spec.partition(":")
    if zoo in ZOOS:
        model = _from_zoo(zoo, name)
        if weights is None:
            warnings.warn(
                f"'{spec}' was built with RANDOM weights, since none are downloaded: what follows "
                "says nothing of the trained network. Give --weights FILE.safetensors.",
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
        raise SignGDError(f"'{spec}' is no {what}; write {form}.")
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


def _from_zoo(zoo: str, name: str) -> Any:
    try:
        library = import_module(zoo)
        models: Any = import_module("torchvision.models") if zoo == "torchvision" else library
    except ImportError as error:
        torch_version = torch.__version__.partition("+")[0]
        raise BackendUnavailable(
            f"'{zoo}:{name}' needs the package {zoo!r} ({error}). Install it with: pip install "
            f"{zoo} torch=={torch_version} (torch is pinned on the same line, or pip may replace "
            "it)"
        ) from error
    if not name:
        raise SignGDError(f"'{zoo}:' is no model; write {zoo}:name.")
    try:
        if zoo == "timm":
            return models.create_model(name, pretrained=False)
        return models.get_model(name, weights=None)
    except Exception as error:  # of either library
        raise InputError(f"{zoo} has no model {name!r}: {error}") from error


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
        raise FormatError(f"--weights '{path}' is no whole safetensors file ({error}).") from error
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
            f"--weights '{path}' are those of another model: {'; '.join(wrong[:5])}{more}."
        )
    model.load_state_dict(found)
