"""The table and the plot of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdpm.pipeline.reporting.plotting import new_figure, to_png

_COLUMNS = {  # metrics of samples in the table, by evaluate's names: title, and whether there is an interval
    "pixel_frechet_ratio": ("pixel Fréchet ratio", True),
    "spread_8": ("spread, first 8", True),
    "spread": ("spread", True),
    "frechet_ratio": ("feature Fréchet ratio", False),
    "precision_matched": ("precision", False),
    "recall_matched": ("recall", False),
    "class_accuracy": ("class accuracy", False),
    "copies": ("copies", False),
}
_DPI = 110
_APART = 1.15  # least ratio of two numbers at the axis


@dataclass(frozen=True)
class CompareRow:
    """One method of the comparison."""

    name: str
    """Name of the method."""
    parameters: int
    """Parameters of the generator."""
    steps: int
    """Optimizer steps of the generator."""
    training_flops: int
    """FLOPs of the generator's training."""
    tokenizer_steps: int
    """Optimizer steps of its codebook and decoder, after those of the shared encoder."""
    reconstruction: dict[str, Any]
    """Metrics of held-out images through its tokenizer: what a perfect generator would be decoded to."""
    sampler: str
    """Name of the chosen sampler setting."""
    forwards: int
    """Evaluations of the network per image; a step with guidance takes two."""
    seconds_per_image: float
    """Seconds of one core per image, of the generator and the decoder."""
    seeds: list[dict[str, Any]]
    """Metrics of the samples, as evaluate names them, once per seed."""

    def values(self, metric: str) -> list[float]:
        """A metric of every seed."""
        return [seed[metric] for seed in self.seeds]


def table(rows: Sequence[CompareRow]) -> str:
    """Markdown, one line per method: means over seeds, half of their range, and the mean bootstrap interval."""
    shown = [name for name in _COLUMNS if all(name in seed for row in rows for seed in row.seeds)]
    titles = ["", *(_COLUMNS[name][0] for name in shown), "PSNR and rFID of reconstructions", "forwards"]
    titles += ["ms per image", "setting", "parameters", "steps", "training TFLOP", "tokenizer's steps"]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        line = [row.name, *(_cell(row, name) for name in shown)]
        line.append(f"{row.reconstruction['psnr']:.2f} dB, {row.reconstruction['rfid']:.3g}")
        line += [str(row.forwards), f"{1000 * row.seconds_per_image:.3g}", row.sampler]
        line += [f"{row.parameters:,}", f"{row.steps:,}", f"{row.training_flops / 1e12:.1f}"]
        line.append(f"{row.tokenizer_steps:,}")
        lines.append(line)
    real = [name for name in shown if f"{name}_real" in rows[0].seeds[0]]
    held_out = ", ".join(f"{_COLUMNS[name][0]} {rows[0].seeds[0][f'{name}_real']:.3f}" for name in real)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += (
        f"\nMeans over {len(rows[0].seeds)} seeds ± half of their range; in brackets the mean 95% interval over "
        "resamples of the samples. "
    )
    return text + (f"Held-out images: {held_out}.\n" if held_out else "\n")


def _cell(row: CompareRow, metric: str) -> str:
    values = row.values(metric)
    text = f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"
    if _COLUMNS[metric][1]:
        low, high = np.mean(row.values(f"{metric}_interval"), axis=0)
        text += f" [{low:.2f}, {high:.2f}]"
    return text


def plot(rows: Sequence[CompareRow]) -> bytes:
    """A PNG: pixel Fréchet ratio and spread against forwards per image, every seed a point, and the means' names."""
    panels = ("pixel_frechet_ratio", "spread_8")
    figure = new_figure(13, 5)
    for axis, metric in zip(figure.subplots(1, 2), panels, strict=True):
        for row in rows:
            values = row.values(metric)
            (line,) = axis.plot([row.forwards] * len(values), values, ".", alpha=0.5)
            axis.plot(row.forwards, np.mean(values), "o", color=line.get_color(), label=row.name)
        axis.axhline(1, color="tab:gray", linewidth=0.8)  # a perfect generator
        axis.set_xscale("log")
        forwards: list[int] = []  # without those whose numbers would overlap
        for number in sorted({row.forwards for row in rows}):
            forwards += [number] if not forwards or number > _APART * forwards[-1] else []
        axis.set_xticks(forwards, [str(number) for number in forwards])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("forwards per image")
        axis.set_ylabel(_COLUMNS[metric][0])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.tight_layout()
    return to_png(figure, _DPI)
