"""Charts as SVG or PNG, by the file's name: grouped bars with their spread.

Drawn by matplotlib, which is an extra.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from stacked.bench.report import Chart
from stacked.errors import ParameterInvalid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")

# Distinguishable with colour blindness; after the last they start again.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_WIDTH, _BAR_INCHES, _EMPTY_INCHES = 8.0, 0.24, 1.1


def check_plot(path: Path) -> None:
    """Called before measuring: raises ParameterInvalid if this plot cannot be drawn."""
    if path.suffix not in SUFFIXES:
        raise ParameterInvalid(f"{path}: a plot is {' or '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401  whether it is there
    except ImportError as error:
        raise ParameterInvalid(
            "a plot needs matplotlib; install stacked[bench], or leave out --plot"
        ) from error


def draw(charts: Sequence[Chart], title: str, path: Path) -> None:
    """Write one plot of all charts, one below the other. Raises ParameterInvalid."""
    check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    shown = [chart for chart in charts if chart.bars]
    series = dict.fromkeys(bar.series for chart in shown for bar in chart.bars)
    colours = dict(zip(series, itertools.cycle(_COLOURS), strict=False))  # the same in every chart
    heights = [_EMPTY_INCHES + _BAR_INCHES * prod(map(len, _names(chart))) for chart in shown]
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stacked"}):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(len(shown), squeeze=False, height_ratios=heights)
        for chart, (axis,) in zip(shown, axes, strict=True):
            _draw(axis, chart, colours)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=150)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _draw(axis: Axes, chart: Chart, colours: Mapping[str, str]) -> None:
    labels, series = _names(chart)
    height = 0.8 / len(series)
    for number, name in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * height
        bars = [bar for bar in chart.bars if bar.series == name]
        values = [bar.value for bar in bars]
        drawn = axis.barh(
            [labels.index(bar.label) + shift for bar in bars],
            [value.median for value in values],
            height * 0.9,
            xerr=list(zip(*((v.median - v.least, v.most - v.median) for v in values), strict=True)),
            color=colours[name],
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            label=name,
        )
        axis.bar_label(drawn, [_number(value.median) for value in values], padding=3, fontsize=7)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(chart.title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    if chart.line is not None:
        axis.axvline(chart.line, color="#888888", linewidth=0.8, linestyle="--")
    if len(series) > 1:
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _names(chart: Chart) -> tuple[list[str], list[str]]:
    """Labels and series, each in order of first appearance."""
    labels = dict.fromkeys(bar.label for bar in chart.bars)
    return list(labels), list(dict.fromkeys(bar.series for bar in chart.bars))
