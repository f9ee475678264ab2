"""Charts of a training log, and of numbers by step t, as PNGs."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdpm.pipeline.foundation import files
from rdpm.pipeline.reporting.page import image
from rdpm.pipeline.training.log import LOG, read_log

Line = dict[str, Any]
_SIZE, _DPI = (4.6, 2.9), 170
_MOST_TICKS = 20

# Title, keys drawn in one chart, logarithmic or not. A key that a log lacks is left out.
_LINES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Loss", ("loss",), False),
    ("Loss terms", ("reconstruction", "commitment", "codebook", "perceptual"), True),
    ("Adversarial terms", ("adversarial", "discriminator"), False),
    ("Gradient norm", ("gradient_norm",), True),
    ("Learning rate", ("learning_rate",), False),
    ("Images a second", ("images_per_second",), False),
)
_FANS = (
    ("Loss by step t", "loss_by_step"),
    ("Share of codes used by step t", "usage_by_step"),
    ("Code perplexity by step t", "perplexity_by_step"),
)


def read_lines(folder: str) -> list[Line]:
    """The lines of an export's log.jsonl. Raises ValueError when there are none."""
    lines = read_log(files.join(folder, LOG))
    if not lines:
        raise ValueError(f"{folder!r} has no log.jsonl with lines; give the folder of a finished training")
    return lines


def training_charts(lines: list[Line]) -> list[str]:
    """One chart for each group of keys that the log has, as markup."""
    steps = np.array([line["step"] for line in lines])
    found = []
    for title, keys, log in _LINES:
        present = [key for key in keys if any(key in line for line in lines)]
        if present:
            found.append(_line_chart(title, steps, lines, present, log))
    for title, key in _FANS:
        if any(key in line for line in lines):
            found.append(_fan_chart(title, [line for line in lines if key in line], key))
    return found


def bar_chart(title: str, values: Sequence[float], places: Sequence[int] = (), name: str = "t") -> str:
    """Bars over t = 1 ... T, or over other whole numbers of another name, as markup."""
    places = places or range(1, len(values) + 1)
    figure, axes = _axes(title)
    axes.bar(places, values, color="#2f5d8a", width=0.7)
    axes.set_xlabel(name)
    if len(places) <= _MOST_TICKS:
        axes.set_xticks(places)
    return _markup(figure, title)


def rank_chart(title: str, counts: np.ndarray) -> str:
    """A curve for every row t of counts (T, K): its counts in falling order, over their mean; as markup."""
    figure, axes = _axes(title)
    ranks = np.arange(1, counts.shape[1] + 1)
    for t, (row, color) in enumerate(zip(counts, _fan_colors(len(counts)), strict=True), start=1):
        axes.plot(ranks, np.sort(row)[::-1] / max(row.mean(), 1e-9), color=color, lw=1.1, label=f"{t}")
    _fan_legend(axes)
    axes.set_xlabel("codes, the most used first")
    axes.set_ylim(bottom=0)
    return _markup(figure, title)


def _line_chart(title: str, steps: np.ndarray, lines: list[Line], keys: list[str], log: bool) -> str:
    figure, axes = _axes(title)
    for key, style in zip(keys, ("-", "--", "-.", ":"), strict=False):  # two terms may lie on each other
        values = np.array([line.get(key, np.nan) for line in lines], float)
        axes.plot(steps, values, style, label=key.replace("_", " "), lw=1.3)
    if log:
        axes.set_yscale("log")
    elif axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0)
    if len(keys) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("optimizer step")
    return _markup(figure, title)


def _fan_chart(title: str, lines: list[Line], key: str) -> str:
    """A curve for every t, dark for t = 1 to light for t = T. A gap in a curve is bridged."""
    figure, axes = _axes(title)
    steps = np.array([line["step"] for line in lines])
    values = np.array([line[key] for line in lines], float)  # None becomes NaN
    for t, (column, color) in enumerate(zip(values.T, _fan_colors(values.shape[1]), strict=True), start=1):
        known = ~np.isnan(column)
        axes.plot(steps[known], column[known], color=color, lw=1.1, label=f"{t}")
    _fan_legend(axes)
    axes.set_xlabel("optimizer step")
    return _markup(figure, title)


def _fan_colors(count: int) -> np.ndarray:
    return plt.get_cmap("viridis")(np.linspace(0, 0.92, count))


def _fan_legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=7, ncols=2, title="t", title_fontsize=7, handlelength=1, columnspacing=0.8)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(axis="y", color="#e3e6ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#9aa3b2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa3b2")
    return figure, axes


def _markup(figure: Figure, title: str) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
    return image(sink.getvalue(), f"Chart: {title}")
