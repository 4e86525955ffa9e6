"""What the plots share: colours, names beside the lines they belong to, limits, short numbers.

The colours are safe for colour-blind readers (Okabe and Ito, 2008). Those of parts that are drawn
on top of each other also differ in lightness, so that they differ in grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
UP, DOWN, SILENT = "#0072B2", "#E69F00", "#E6E6E6"
GREY = "#808080"
LINE = 12.0  # points from one line of small text to the next


class Name(NamedTuple):
    """The name of a line, which ends at (x, y) of the data; x is None at the edge of the axes."""

    x: float | None
    y: float
    text: str
    color: str


def name_lines(axes: Any, names: Sequence[Name]) -> None:
    """Writes the names right of the axes, each joined to the end of its line.

    Call it when the limits are final. Names that would touch are moved apart.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((axes.get_xlim()[1] if n.x is None else n.x, n.y)) for n in names]
    points = axes.bbox.height * 72 / axes.figure.dpi
    sizes = [LINE * (1 + name.text.count("\n")) / points for name in names]
    places = apart([float(end[1]) for end in ends], sizes)
    for name, end, place in zip(names, ends, places, strict=True):
        arrow = {"arrowstyle": "-", "color": name.color, "relpos": (0, 0.5), "shrinkA": 2,
                 "shrinkB": 4}  # fmt: skip
        axes.annotate(name.text, end, (1.04, place), "axes fraction", "axes fraction", va="center",
                      fontsize="small", annotation_clip=False, arrowprops=arrow)  # fmt: skip


def apart(places: Sequence[float], sizes: Sequence[float], top: float = 1.0) -> list[float]:
    """The places in the same order, moved where things of these sizes would overlap.

    Up, and down again where they would lie above ``top``.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    found, size = [places[i] for i in order], [sizes[i] for i in order]
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + (size[i - 1] + size[i]) / 2)
    for i in reversed(range(len(found))):
        bound = top if i + 1 == len(found) else found[i + 1] - size[i + 1] / 2
        found[i] = min(found[i], bound - size[i] / 2)
    return [place for _, place in sorted(zip(order, found, strict=True))]


def percent_limits(axes: Any, values: Sequence[float]) -> None:
    """From below the least value to above the largest, at least 4 points, none far above 100."""
    low, high = min(values), max(values)
    span = max(high - low, 4.0)
    top = min(high + 0.08 * span, 100 + 0.03 * span)
    axes.set_ylim(min(low - 0.08 * span, top - span), top)


def shades(name: str) -> Any:
    """A colour map whose lightest and darkest are seen on white paper and on a dark page."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = {
        "counts": ("#86BCE0", "#2F7FBF", "#1B5A94"),
        "error": ("#FFF1E0", "#FDB97D", "#E8702A", "#A63603"),
    }[name]
    return LinearSegmentedColormap.from_list(name, ends)


def short_number(value: float, fine: bool = True) -> str:
    """For a cell of a heat map: 0.12, 0, −0.31; where ``fine`` also 0.034 and <0.001."""
    if not math.isfinite(value):
        return "–"
    if fine and 0 < value < 0.0005:
        return "<0.001"
    text = f"{abs(value):.{3 if fine and abs(value) < 0.0995 else 2}f}"
    if not float(text):
        return "0"
    return f"−{text}" if value < 0 else text


def plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.1, 0.2, 0.5, 1, and closer on short ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(i / 10 for i in range(10, 100, 5))):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [s * 10.0**e for e in exponents for s in steps]
        ticks = [t for t in every if low * 0.999 <= t <= high * 1.001]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 7)] if ticks else [low, high]  # of a very short one
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_locator(NullLocator())
