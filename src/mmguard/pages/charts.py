"""Charts as SVG: the same bytes for the same data, and narrow enough to be read on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from mmguard.pages.pictures import uri

_WIDTH = 4.8
"""Inches. At 10 points, text is still 10 pixels high where a phone shows this over 360 pixels."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mmguard",  # names of clip paths and markers are random otherwise
    "svg.fonttype": "path",  # the same on every machine, whatever fonts it has
    "text.parse_math": False,  # a $ in a model's name is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
_INK = "#1b1b1b"
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_PALETTE = ("#0063b1", "#c8321e", "#777777", "#8a5a00", "#2e7d32", "#7b3fa0", "#00818a")
"""Told apart without colours too: lines differ in dashes, bars in labels."""
_DASHES = ("-", "--", ":", "-.")
_MARKS = "osD^v"
_COLOURS = {"clean": "#0063b1", "unprotected": "#0063b1", "release": "#c8321e", "control": "#777777"}
"""Colours that mean the same in every chart; other names take those of the palette in turn."""


@dataclass(frozen=True)
class Chart:
    """A picture and its words."""

    svg: bytes
    alt: str
    """For those who do not see it."""
    caption: str

    @property
    def address(self) -> str:
        """As an image's source. An SVG that is shown as an image cannot run scripts, whatever it says."""
        return uri("image/svg+xml", self.svg)


@dataclass(frozen=True)
class Bars:
    """A group of bars from 0 to 100."""

    title: str
    values: dict[str, float]
    mark: float | None = None
    """Where a dotted line goes through all of them, if one does."""


@dataclass(frozen=True)
class Heat:
    """An image with values that lie over parts of it."""

    title: str
    image: NDArray[np.uint8]
    """`(H, W, 3)`, 0…255."""
    boxes: NDArray[np.float64]
    """Left, top, right, bottom of each part as shares of the image; NaN for none. `(N, 4)`."""
    values: NDArray[np.float64]
    """0 or more. `(N,)`."""
    outlined: NDArray[np.bool_]
    """Which parts have an outline. `(N,)`."""


@dataclass(frozen=True)
class Interval:
    """A point with its interval."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """Points joined by a line, with what lies around them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bar_chart(groups: Sequence[Bars], unit: str, alt: str, caption: str) -> Chart:
    """Horizontal bars of percentages, group below group.

    Args:
        groups: what to draw.
        unit: of the axis.
        alt: for those who do not see it.
        caption: below it.
    """
    titles = [_wrapped(group.title, 36) for group in groups]
    rows = sum(len(group.values) + 0.4 for group in groups) + sum(one.count("\n") + 1 for one in titles)

    def draw(axes: Axes) -> None:
        row, ticks, names = 0.0, [], []
        for group, title in zip(groups, titles, strict=True):
            row += title.count("\n")
            axes.text(0, row + 0.4, title, fontweight="bold", va="bottom", color=_INK, in_layout=False)
            top = row + 0.5
            for name, value in group.values.items():
                row += 1
                axes.barh(row, value, 0.72, color=_COLOURS.get(name, "#b3b3b3"))
                axes.text(value + 1, row, f"{value:.1f}", va="center", color=_INK)
                ticks.append(row)
                names.append(name)
            if group.mark is not None:
                axes.vlines(group.mark, top, row + 0.5, _INK, ":")
            row += 1.4
        axes.set_yticks(ticks, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(row - 0.8, -0.8)
        axes.set_xlim(0, 109)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel(unit)
        axes.grid(axis="x")

    return _chart(draw, 0.26 * rows + 0.6, alt, caption)


def interval_chart(intervals: Sequence[Interval], unit: str, alt: str, caption: str) -> Chart:
    """Points with their intervals, one a row below its label, and a line at 0.

    Args:
        intervals: what to draw.
        unit: of the axis.
        alt: for those who do not see it.
        caption: below it.
    """

    labels = [_wrapped(one.label) for one in intervals]
    rows = [1.0 + label.count("\n") for label in labels]

    def draw(axes: Axes) -> None:
        low, high = min(0.0, *(one.low for one in intervals)), max(0.0, *(one.high for one in intervals))
        margin = 0.04 * (high - low or 1)
        axes.axvline(0, color=_INK, linewidth=1, zorder=1)
        y = 0.0
        for one, label, row in zip(intervals, labels, rows, strict=True):
            y += row
            axes.text(low - margin, y - 0.1, label, va="bottom", color=_INK, bbox=_PAPER, in_layout=False)
            y += 0.4
            axes.plot([one.low, one.high], [y, y], color=_PALETTE[0], linewidth=2.5, solid_capstyle="butt")
            axes.plot(one.value, y, "o", color=_PALETTE[0], markersize=6)
            y += 0.5
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(y, -0.2)
        axes.set_xlabel(unit)
        axes.grid(axis="x")

    return _chart(draw, 0.2 * (sum(rows) + 0.9 * len(rows)) + 0.6, alt, caption)


def line_chart(lines: Sequence[Line], x: str, y: str, alt: str, caption: str, *, log: bool = False) -> Chart:
    """Lines over one axis, each with its interval as a band.

    Args:
        lines: what to draw, each with its own label.
        x: what the horizontal axis shows.
        y: what the vertical axis shows.
        alt: for those who do not see it.
        caption: below it.
        log: the vertical axis is logarithmic.
    """

    def draw(axes: Axes) -> None:
        for line, colour, dashes in zip(lines, _colours(lines), cycle(_DASHES), strict=False):
            _plot_with_band(axes, line, colour, dashes)
        if all(value == int(value) for line in lines for value in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())

    return _over_one_axis(draw, lines, x, y, alt, caption)


def dose_chart(lines: Sequence[Line], x: str, y: str, alt: str, caption: str) -> Chart:
    """Lines over the few doses that were tried, each with its interval as a band, and a line at 0.

    The horizontal axis is logarithmic where doses grow by factors, the largest being 8 times the smallest or more.

    Args:
        lines: what to draw, each with its own label.
        x: what the doses are of.
        y: what the vertical axis shows.
        alt: for those who do not see it.
        caption: below it.
    """
    doses = sorted({dose for line in lines for dose in line.x})

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=_INK, linewidth=1)
        for line, colour, dashes, mark in zip(lines, _colours(lines), cycle(_DASHES), cycle(_MARKS), strict=False):
            _plot_with_band(axes, line, colour, dashes, mark)
        if 0 < 8 * doses[0] <= doses[-1]:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(doses, [f"{dose:g}" for dose in doses])

    return _over_one_axis(draw, lines, x, y, alt, caption)


def heat_chart(panels: Sequence[Heat], alt: str, caption: str) -> Chart:
    """Images side by side, in gray and the redder the larger the value: one scale for all of them.

    Args:
        panels: what to draw.
        alt: for those who do not see it.
        caption: below it.
    """
    largest = max(panel.values[np.isfinite(panel.boxes).all(1)].max(initial=0) for panel in panels) or 1.0
    with matplotlib.rc_context(_STYLE):
        height, width, _ = panels[0].image.shape
        each = _WIDTH / len(panels)
        figure = Figure(figsize=(_WIDTH, each * height / width + 0.3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            gray = panel.image.mean(2)
            axes.imshow(gray, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect=height / width)
            there = np.isfinite(panel.boxes).all(1)
            left, top, right, bottom = panel.boxes[there].T
            corners = np.stack([left, top, right, top, right, bottom, left, bottom], 1).reshape(-1, 4, 2)
            shade = np.zeros((len(corners), 4))
            shade[:, 0], shade[:, 3] = 0.85, 0.85 * panel.values[there] / largest
            axes.add_collection(
                PolyCollection(list(corners), facecolors=shade, edgecolors="none", antialiased=False, rasterized=True)
            )
            lines = PolyCollection(
                list(corners[panel.outlined[there]]), facecolors="none", edgecolors="#00c8ff", linewidths=1.2
            )
            axes.add_collection(lines)
            axes.set_title(panel.title, fontsize=10)
            axes.axis("off")
        return Chart(svg(figure), alt, caption)


def _wrapped(text: str, width: int = 48) -> str:
    return "\n".join(wrap(text, width)) or text


def _plot_with_band(axes: Axes, line: Line, colour: str, dashes: str, mark: str | None = None) -> None:
    axes.plot(line.x, line.y, dashes, marker=mark, color=colour, label=_wrapped(line.label))
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)


def _over_one_axis(
    draw: Callable[[Axes], None], lines: Sequence[Line], x: str, y: str, alt: str, caption: str
) -> Chart:
    """A chart of lines with the names of its axes, and of the lines above it."""
    labels = [_wrapped(line.label) for line in lines]
    longest = max(map(len, labels))
    columns = 3 if longest < 12 else 2 if longest < 20 else 1

    def framed(axes: Axes) -> None:
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid()
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)

    return _chart(framed, 3 + 0.22 * sum(label.count("\n") + 1 for label in labels) / columns, alt, caption)


def _colours(lines: Sequence[Line]) -> list[str]:
    others = cycle(colour for colour in _PALETTE if colour not in _COLOURS.values())
    if any(line.label in _COLOURS for line in lines):
        return [_COLOURS.get(line.label) or next(others) for line in lines]
    return [colour for colour, _ in zip(cycle(_PALETTE), lines, strict=False)]


def _chart(draw: Callable[[Axes], None], height: float, alt: str, caption: str) -> Chart:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        return Chart(svg(figure), alt, caption)


def svg(figure: Figure) -> bytes:
    """A figure as SVG, without the date."""
    file = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return file.getvalue()
