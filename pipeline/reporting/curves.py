"""Charts of training logs, and of numbers per step t, as <img> markup."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdpm.pipeline.foundation import files
from rdpm.pipeline.reporting.page import image
from rdpm.pipeline.reporting.plotting import new_figure, to_png
from rdpm.pipeline.training.log import LOG, read_log

Line = dict[str, Any]
"""One line of a training log: `step`, and metrics by key."""
_SIZE, _DPI = (4.6, 2.9), 170
_MOST_TICKS = 20
_RENAMED = {"learning_rate": "lr"}  # keys of the first release; a resumed training has lines with both

# Title, keys that share the chart, whether the scale is logarithmic. Keys that a log lacks are left out.
_LINES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Loss", ("loss",), False),
    ("Loss terms", ("reconstruction", "commitment", "codebook", "perceptual"), True),
    ("Adversarial terms", ("adversarial", "discriminator"), False),
    ("Gradient norm", ("gradient_norm",), True),
    ("Learning rate", ("lr",), False),
    ("Images per second", ("images_per_second",), False),
)
_SHARES = "usage_by_step"
_FANS = (
    ("Loss by step t", "loss_by_step"),
    ("Share of codes used by step t", _SHARES),
    ("Code perplexity by step t", "perplexity_by_step"),
)


def read_lines(folder: str) -> list[Line]:
    """The lines of an export's log.jsonl, with the current keys. Raises ValueError when there are none."""
    lines = read_log(files.join(folder, LOG))
    if not lines:
        raise ValueError(f"{folder!r} has no log.jsonl with lines; give the folder of a finished training")
    return [{_RENAMED.get(key, key): value for key, value in line.items()} for line in lines]


def training_charts(lines: list[Line]) -> list[str]:
    """The charts of a log, one per group of keys that it has."""
    steps = np.array([line["step"] for line in lines])
    charts = []
    for title, keys, log in _LINES:
        present = [key for key in keys if any(key in line for line in lines)]
        if present:
            charts.append(_line_chart(title, steps, lines, present, log))
    for title, key in _FANS:
        if any(key in line for line in lines):
            charts.append(_fan_chart(title, [line for line in lines if key in line], key))
    return charts


def bar_chart(title: str, values: Sequence[float], positions: Sequence[int] = (), name: str = "t") -> str:
    """Bars at t = 1 ... T, or at other integer positions. name: what the positions are."""
    positions = positions or range(1, len(values) + 1)
    figure, axes = _axes(title)
    axes.bar(positions, values, color="#2f5d8a", width=0.7)
    axes.set_xlabel(name)
    if len(positions) <= _MOST_TICKS:
        axes.set_xticks(positions)
    return _markup(figure, title)


def rank_chart(title: str, counts: np.ndarray) -> str:
    """One curve per row t of counts (T, K): the counts in descending order, divided by their mean."""
    figure, axes = _axes(title)
    ranks = np.arange(1, counts.shape[1] + 1)
    for t, (row, color) in enumerate(zip(counts, _fan_colors(len(counts)), strict=True), start=1):
        axes.plot(ranks, np.sort(row)[::-1] / max(row.mean(), 1e-9), color=color, lw=1.1, label=f"{t}")
    _fan_legend(axes)
    axes.set_xlabel("codes, most used first")
    axes.set_ylim(bottom=0)
    return _markup(figure, title)


def _line_chart(title: str, steps: np.ndarray, lines: list[Line], keys: list[str], log: bool) -> str:
    """One curve per key. log: on a logarithmic scale, if the values span a factor of ten or more."""
    figure, axes = _axes(title)
    values = np.array([[line.get(key, np.nan) for line in lines] for key in keys], float)
    for key, row, style in zip(keys, values, ("-", "--", "-.", ":"), strict=False):  # curves of two terms may coincide
        axes.plot(steps, row, style, label=key.replace("_", " "), lw=1.3)
    positive = values[values > 0]
    if log and len(positive) and positive.max() >= 10 * positive.min():
        axes.set_yscale("log")
    elif axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0)
    if len(keys) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("optimizer step")
    return _markup(figure, title)


def _fan_chart(title: str, lines: list[Line], key: str) -> str:
    """One curve per t, from dark for t = 1 to light for t = T. Curves have no gaps where a value is missing."""
    figure, axes = _axes(title)
    steps = np.array([line["step"] for line in lines])
    values = np.array([line[key] for line in lines], float)  # None becomes NaN
    for t, (column, color) in enumerate(zip(values.T, _fan_colors(values.shape[1]), strict=True), start=1):
        known = ~np.isnan(column)
        axes.plot(steps[known], column[known], color=color, lw=1.1, label=f"{t}")
    if key == _SHARES:
        axes.set_ylim(0, 1.05)
    _fan_legend(axes)
    axes.set_xlabel("optimizer step")
    return _markup(figure, title)


def _fan_colors(count: int) -> np.ndarray:
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count))


def _fan_legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=7, ncols=2, title="t", title_fontsize=7, handlelength=1, columnspacing=0.8)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(*_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(axis="y", color="#e3e6ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#9aa3b2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa3b2")
    return figure, axes


def _markup(figure: Figure, title: str) -> str:
    return image(to_png(figure, _DPI), f"Chart: {title}")
