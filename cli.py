"""Command line: ``spikingjelly-signgd check package.module:factory --input 3 32 32``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from .errors import CaptureError, SignGDError

OK, USAGE, UNSUPPORTED = 0, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 2 usage, 3 unsupported operations.

    A model that torch.export cannot capture cannot be converted either: 3. One that cannot be
    loaded, or that itself fails on the input given, is a matter of usage: 2.
    """
    parser = argparse.ArgumentParser(prog="spikingjelly-signgd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="what each operation of a model becomes; exit code 3 if one is unsupported"
    )
    check.add_argument("model", help="package.module:factory, called without arguments")
    check.add_argument(
        "--input", type=size, nargs="+", required=True, metavar="SIZE", help="shape of one sample"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    return _check(options)


def size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a size is at least 1, but it is {value}")
    return value


def _check(options: argparse.Namespace) -> int:
    from .converters import check

    try:
        model = load_model(options.model)
        report = check(model, torch.rand(2, *options.input))
    except SignGDError as error:
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        else:
            print(error, file=sys.stderr)
        return UNSUPPORTED if isinstance(error, CaptureError) else USAGE
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return OK if report.ok else UNSUPPORTED


def load_model(spec: str) -> nn.Module:
    """``package.module:factory`` to the model that the factory returns."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise SignGDError(f"'{spec}' is no model; write package.module:factory.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(import_module(module_name), attribute)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # whatever the user's module raises
        raise SignGDError(f"cannot load '{spec}': {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise SignGDError(f"'{spec}' gives {type(model).__name__}, not a torch.nn.Module.")
    return model


if __name__ == "__main__":
    sys.exit(main())
