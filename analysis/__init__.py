"""What was measured: pictures of it, and what it costs."""

from .cost import Operations, count_operations
from .plots import plot_accuracy

__all__ = ["Operations", "count_operations", "plot_accuracy"]
