"""A sweep: sets of samples over sampler settings and models, all measured alike; which are best, at what cost."""

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from rdpm.models.fields import EXECUTION
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB as EVALUATE
from rdpm.pipeline.evaluation.stage import run as evaluate
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, load_config, save_config
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.sampling.plan import SampleConfig, SamplerSetting
from rdpm.pipeline.sampling.stage import JOB as SAMPLE
from rdpm.pipeline.sampling.stage import run_sets
from rdpm.storage_schemas.sweep import SWEEP, SweepRow

METRICS = {  # as evaluate names them; whether more is better
    "frechet_distance": False,
    "spatial_frechet_distance": False,
    "inception_score": True,
    "precision": True,
    "recall": True,
    "class_accuracy": True,
}
_PANELS = (("inception_score", "frechet_distance"), ("recall", "precision"))  # what is gained at whose cost
_BEST = "frechet_distance"
_MAKES = ("table.md", SWEEP, "pareto.png", "best.yaml")
JOB = "sweep"


@dataclass(frozen=True)
class Models:
    """Exports that belong together."""

    generator: str
    """Export of a generator."""
    tokenizer: str
    """Export of its tokenizer."""


@dataclass(frozen=True)
class Grid:
    """Every combination of these settings."""

    guidance: tuple[float, ...] = (0.0,)
    """Strengths of guidance."""
    ramp: tuple[Literal["constant", "linear"], ...] = ("linear",)
    """Ramps of guidance."""
    temperature: tuple[float, ...] = (1.0,)
    """Temperatures; 0 is the most likely code."""

    def samplers(self) -> dict[str, SamplerConfig]:
        """The combinations by name. Without guidance there is nothing to ramp, so the ramps are one."""
        named = {}
        for guidance, ramp, temperature in itertools.product(self.guidance, self.ramp, self.temperature):
            strength = f"guidance {guidance:g} {ramp}" if guidance else "guidance 0"
            drawn = f"temperature {temperature:g}" if temperature else "argmax"
            named[f"{strength}, {drawn}"] = SamplerConfig(guidance, ramp, temperature)
        return named


@dataclass(frozen=True)
class SweepConfig:
    """Which sampler settings and models to compare, and how."""

    samples: str
    """Config of `rdpm sample` that every cell starts from."""
    evaluation: str
    """Config of `rdpm evaluate` that every cell is measured by."""
    out: str = field(metadata=EXECUTION)
    """Folder of the cells, the table, the plot and the best config."""
    samplers: dict[str, SamplerSetting] = field(default_factory=dict)
    """Sampler settings by name; rows of the table."""
    grid: Grid | None = None
    """Combinations of settings; further rows of the table."""
    models: dict[str, Models] = field(default_factory=dict)
    """Exports by name, instead of those in `samples`; every one goes with every sampler."""
    per_class: int = 50
    """Images per class in a cell."""
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The paper's numbers to show beside a cell's, by the cell's name, in the order of the table's columns."""

    def __post_init__(self) -> None:
        if not self.samplers and self.grid is None:
            raise ValueError("samplers is empty and there is no grid; give one or both")


@dataclass(frozen=True)
class Cell:
    """One set of samples and how it is measured."""

    name: str
    """Name of the row."""
    samples: SampleConfig
    """What is drawn."""
    evaluation: EvaluateConfig
    """How it is measured."""


def run(config: SweepConfig) -> None:
    """Make config.out, unless its finished record says that it is there, and print the table. Raises ValueError."""
    cells = plan_cells(config)
    digests = [[card.digest for card in read_pair(cell.samples.generator, cell.samples.tokenizer)] for cell in cells]
    per_cell = ("samples", "tokenizer")
    measured = {name: v for name, v in identity_of(cells[0].evaluation).items() if name not in per_cell}
    record = begin(JOB, config, {"digests": digests, "measured": measured}, _MAKES)
    if not record.finished:
        run_sets([cell.samples for cell in cells])
        for cell in cells:
            say(f"sweep: {cell.name}")
            evaluate(cell.evaluation)
        rows = collect(cells)
        chosen = best(cells, rows)
        _write(config, rows, chosen)
        record.finish({"best": chosen.name, "cells": len(cells)})
    say(files.read_bytes(files.join(config.out, "table.md")).decode())
    say(f"sweep: {config.out}/table.md, pareto.png, {SWEEP}; best: rdpm sample {config.out}/best.yaml")


def _write(config: SweepConfig, rows: Sequence[SweepRow], chosen: Cell) -> None:
    files.write_bytes(files.join(config.out, "table.md"), table(config, rows).encode())
    files.write_bytes(files.join(config.out, "pareto.png"), plot(rows))
    files.write_json(files.join(config.out, SWEEP), [asdict(row) for row in rows])
    base = load_config(SampleConfig, SAMPLE, config.samples, [])
    ready = replace(chosen.samples, out=f"{base.out}-best", per_class=base.per_class, formats=base.formats)
    save_config(files.join(config.out, "best.yaml"), SAMPLE, ready)


def plan_cells(config: SweepConfig) -> list[Cell]:
    """Every cell of the sweep. Raises ValueError when two would be written to one place."""
    base = load_config(SampleConfig, SAMPLE, config.samples, [])
    models = config.models or {"": Models(base.generator, base.tokenizer)}
    samplers = {**config.samplers, **(config.grid.samplers() if config.grid else {})}
    cells = []
    for (model, exports), (strategy, sampler) in itertools.product(models.items(), samplers.items()):
        name = ", ".join(part for part in (model, strategy if len(samplers) > 1 or not model else "") if part)
        out = files.join(config.out, re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-"))
        samples = replace(
            base, generator=exports.generator, tokenizer=exports.tokenizer, out=out, sampler=sampler,
            per_class=config.per_class, formats=(),
        )  # fmt: skip
        # Held-out images would only measure the tokenizer again and again.
        inputs = [f"samples={out}", f"tokenizer={exports.tokenizer}", "images=''", "timed=[]"]
        inputs.append(f"out={out}.metrics.json")
        cells.append(Cell(name, samples, load_config(EvaluateConfig, EVALUATE, config.evaluation, inputs)))
    outs = [cell.samples.out for cell in cells]
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(f"two cells would be written to {out}; give them names that differ in letters or digits")
    return cells


def collect(cells: Sequence[Cell]) -> list[SweepRow]:
    """One row per cell: its name, settings and metrics, and in which panels no other cell beats it at both."""
    rows = []
    for cell in cells:
        known = files.read_json(cell.evaluation.out)["generator"]
        metrics = {name: known[name] for name in METRICS if name in known}
        rows.append(SweepRow(cell.name, cell.samples.generator, asdict(cell.samples.sampler), metrics))
    shown = panels(rows)
    return [replace(row, pareto=tuple(" against ".join(p) for p in shown if not _beaten(row, rows, p))) for row in rows]


def panels(rows: Sequence[SweepRow]) -> list[tuple[str, str]]:
    """The pairs of metrics that every cell has."""
    return [panel for panel in _PANELS if all(set(panel) <= set(row.metrics) for row in rows)]


def _beaten(row: SweepRow, rows: Sequence[SweepRow], panel: tuple[str, str]) -> bool:
    """Whether another row is no worse in both metrics and better in one."""
    for other in rows:
        gains = [(other.metrics[name] - row.metrics[name]) * (1 if METRICS[name] else -1) for name in panel]
        if min(gains) >= 0 and max(gains) > 0:
            return True
    return False


def best(cells: Sequence[Cell], rows: Sequence[SweepRow]) -> Cell:
    """The cell of the lowest Fréchet distance."""
    return min(zip(cells, rows, strict=True), key=lambda pair: pair[1].metrics[_BEST])[0]


def table(config: SweepConfig, rows: Sequence[SweepRow]) -> str:
    """Markdown in the form of the paper's Table 3: a line per cell, a column per metric, then the paper's numbers."""
    names = [name for name in METRICS if all(name in row.metrics for row in rows)]
    lowest = min(row.metrics[_BEST] for row in rows)
    titles = ["", *(f"{_title(name)} {'↑' if METRICS[name] else '↓'}" for name in names), "Pareto"]
    titles += ["paper: FID", "sFID", "IS", "precision", "recall"] if config.paper else []
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        mark = "**" if row.metrics[_BEST] == lowest else ""
        cells = [f"{mark}{row.name}{mark}", *(f"{row.metrics[name]:.4g}" for name in names)]
        cells.append(_title("; ".join(row.pareto)))
        theirs = [f"{value:g}" for value in config.paper.get(row.name, ())]
        lines.append(cells + theirs + [""] * (len(titles) - len(cells) - len(theirs)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _title(names: str) -> str:
    return names.replace("_", " ").replace("frechet", "Fréchet")


def plot(rows: Sequence[SweepRow]) -> bytes:
    """A PNG: each cell in each panel by its number in the table, the Pareto front joined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = panels(rows)
    figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), 5), dpi=110, squeeze=False)
    for axis, (x, y) in zip(axes[0], shown, strict=True):
        for number, row in enumerate(rows, start=1):
            point = row.metrics[x], row.metrics[y]
            axis.plot(*point, "o", color="tab:blue", label=f"{number}  {row.name}")
            axis.annotate(str(number), point, xytext=(5, 4), textcoords="offset points")
        front = [row.metrics for row in rows if " against ".join((x, y)) in row.pareto]
        front.sort(key=lambda metrics: metrics[x])
        axis.plot([m[x] for m in front], [m[y] for m in front], "-", color="tab:orange", zorder=0)
        axis.set_xlabel(_title(x))
        axis.set_ylabel(_title(y))
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0, markerscale=0, fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
