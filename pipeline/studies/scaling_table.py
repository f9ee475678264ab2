"""Readings of long trainings, the power laws through them, their table and their plot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.reporting.plotting import new_figure, to_png, use_log_scales

MEASURES = {  # what a generator lacks, by the metrics of a reading: its title
    "excess_ratio": "pixel Fréchet ratio - 1",
    "missing_spread": "1 - spread of the first 8 components",
    "loss": "held-out loss",
}
_DPI, _STYLES = 110, ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Reading:
    """One checkpoint of one run."""

    family: str
    """Name of the method."""
    depth: int
    """Its size."""
    number: int
    """Which reading of its run, from 0: readings of one number have nearly equal FLOPs in all sizes."""
    step: int
    """Optimizer steps."""
    flops: int
    """Training FLOPs so far."""
    metrics: dict[str, float]
    """What is measured, by the names of MEASURES, and the ratio and the spread themselves."""


@dataclass(frozen=True)
class Fit:
    """value = factor x (FLOPs / 10^12)^-exponent."""

    factor: float
    """Value at 10^12 FLOPs."""
    exponent: float
    """How fast it falls."""
    error: float
    """Standard error of the exponent; NaN for two points."""


def fit(flops: Sequence[float], values: Sequence[float]) -> Fit | None:
    """Least squares in the logarithms; None for fewer than two points, or where a value is not above 0."""
    if len(values) < 2 or min(values) <= 0:
        return None
    x, y = np.log(np.array(flops) / 1e12), np.log(np.array(values))
    slope, height = np.polyfit(x, y, 1)
    rest, freedom = y - slope * x - height, len(x) - 2
    error = np.sqrt((rest**2).sum() / freedom / ((x - x.mean()) ** 2).sum()) if freedom else np.nan
    return Fit(float(np.exp(height)), -float(slope), float(error))


def best_sizes(readings: Sequence[Reading], measure: str) -> list[Reading]:
    """Of the readings of one family, the best size at each number of FLOPs."""
    numbers = sorted({each.number for each in readings})
    return [
        min((each for each in readings if each.number == number), key=lambda each: each.metrics[measure])
        for number in numbers
    ]


def table(readings: Sequence[Reading]) -> str:
    """Markdown: every reading, and the fits of every size and of the best of all sizes."""
    lines = [
        ["", "depth", "steps", "training TFLOP", "pixel Fréchet ratio", "spread, first 8", "held-out loss"],
        ["---"] * 7,
    ]
    for each in readings:
        values = [f"{each.metrics[name]:.3f}" for name in ("pixel_frechet_ratio", "spread_8", "loss")]
        lines.append([each.family, str(each.depth), f"{each.step:,}", f"{each.flops / 1e12:.2f}", *values])
    fits = [["", "size", *(f"exponent: {title}" for title in MEASURES.values())], ["---"] * (2 + len(MEASURES))]
    for family in dict.fromkeys(each.family for each in readings):
        own = [each for each in readings if each.family == family]
        for depth in sorted({each.depth for each in own}):
            of_size = [each for each in own if each.depth == depth]
            fits.append([family, f"depth {depth}", *(_exponent(of_size, measure) for measure in MEASURES)])
        fits.append([family, "best of all", *(_exponent(best_sizes(own, name), name) for name in MEASURES)])
    return "\n".join("".join(f"| {' | '.join(line)} |\n" for line in part) for part in (lines, fits))


def _exponent(readings: Sequence[Reading], measure: str) -> str:
    found = fit([each.flops for each in readings], [each.metrics[measure] for each in readings])
    return f"{found.exponent:.3f} ± {found.error:.3f}" if found else "none"


def plot(readings: Sequence[Reading]) -> bytes:
    """A PNG with a panel per measure over the training FLOPs: a line per run."""
    figure = new_figure(15, 4.5)
    runs = list(dict.fromkeys((each.family, each.depth) for each in readings))
    families = list(dict.fromkeys(family for family, _ in runs))
    ticks = [each.flops / 1e12 for each in readings if (each.family, each.depth) == runs[0]]
    for axis, (measure, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for family, depth in runs:
            own = [each for each in readings if (each.family, each.depth) == (family, depth)]
            style = _STYLES[families.index(family) % len(_STYLES)]
            values = [each.metrics[measure] for each in own]
            axis.plot([each.flops / 1e12 for each in own], values, style, marker="o", label=f"{family}, depth {depth}")
        use_log_scales(axis, ticks)
        axis.set_xlabel("training TFLOP")
        axis.set_title(title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.tight_layout()
    return to_png(figure, _DPI)
