"""Writers and readers of files."""

from .description import load, save

__all__ = ["load", "save"]
