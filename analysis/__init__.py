"""Pictures of what was measured."""

from .plots import plot_accuracy

__all__ = ["plot_accuracy"]
