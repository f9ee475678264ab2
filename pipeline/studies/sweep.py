"""A sweep: one set of samples per sampler setting and model, all measured in the same way, and which are best."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rdpm.models.fields import EXECUTION
from rdpm.models.sampler import SAMPLER_VERSION, SamplerConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB as EVALUATE
from rdpm.pipeline.evaluation.stage import run as evaluate
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config, save_config, saved_identity, to_dict
from rdpm.pipeline.foundation.names import slug
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin, read_record
from rdpm.pipeline.reporting.plotting import new_figure, to_png
from rdpm.pipeline.sampling.plan import SampleConfig, SamplerSetting
from rdpm.pipeline.sampling.stage import JOB as SAMPLE
from rdpm.pipeline.sampling.stage import run_sets
from rdpm.storage_schemas.samples import current_sampler
from rdpm.storage_schemas.sweep import SWEEP, SweepRow

METRICS = {  # by evaluate's names: which way is better
    "spread": "→ 1",
    "spread_8": "→ 1",
    "pixel_frechet_distance": "↓",
    "frechet_distance": "↓",
    "spatial_frechet_distance": "↓",
    "inception_score": "↑",
    "precision": "↑",
    "recall": "↑",
    "class_accuracy": "↑",
}
_PANELS = (("inception_score", "frechet_distance"), ("recall", "precision"))  # pairs of which one costs the other
_BEST = "frechet_distance"
_MAKES = ("table.md", SWEEP, "pareto.png", "best.yaml")
_DPI = 110
JOB = "sweep"


@dataclass(frozen=True)
class Models:
    """A generator and its tokenizer."""

    generator: str
    """Export of the generator."""
    tokenizer: str
    """Export of the tokenizer."""


@dataclass(frozen=True)
class Grid:
    """Every combination of these sampler settings."""

    guidance: tuple[float, ...] = (0.0,)
    """Strengths of guidance."""
    ramp: tuple[Literal["constant", "linear"], ...] = ("linear",)
    """Ramps of guidance."""
    temperature: tuple[float, ...] = (1.0,)
    """Temperatures; 0 takes the most likely code."""
    version: int = SAMPLER_VERSION
    """Version of what these settings mean; see SamplerConfig."""

    def __post_init__(self) -> None:
        if self.version != SAMPLER_VERSION:
            raise ValueError(
                f"grid.version is {self.version}, this release has {SAMPLER_VERSION}; leave version out, and give "
                "temperatures that divide the logits"
            )

    @staticmethod
    def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
        """Saved settings of any release in their current form."""
        if "version" in settings:
            return settings
        old = [current_sampler({"temperature": tau}) for tau in settings.get("temperature", [1.0])]
        return {**settings, "version": SAMPLER_VERSION, "temperature": [sampler["temperature"] for sampler in old]}

    def samplers(self) -> dict[str, SamplerConfig]:
        """The combinations by name. Without guidance the ramp has no effect, so all ramps are one combination."""
        samplers = {}
        for guidance, ramp, temperature in itertools.product(self.guidance, self.ramp, self.temperature):
            guided = f"guidance {guidance:g} {ramp}" if guidance else "guidance 0"
            drawn = f"temperature {temperature:g}" if temperature else "argmax"
            samplers[f"{guided}, {drawn}"] = SamplerConfig(guidance, ramp, temperature)
        return samplers


@dataclass(frozen=True)
class SweepConfig:
    """Which sampler settings and models are compared, and how."""

    samples: str
    """Config of `rdpm sample` that every cell starts from."""
    evaluation: str
    """Config of `rdpm evaluate` that every cell is measured with."""
    out: str = field(metadata=EXECUTION)
    """Folder of the cells, the table, the plot and the best config."""
    samplers: dict[str, SamplerSetting] = field(default_factory=dict)
    """Sampler settings by name; rows of the table."""
    grid: Grid | None = None
    """Combinations of settings; further rows of the table."""
    models: dict[str, Models] = field(default_factory=dict)
    """Exports by name, instead of those in `samples`; each is combined with every sampler."""
    per_class: int = 50
    """Images per class in a cell."""
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Numbers of the paper to show in a row, by the name of the row, in the order of the table's last columns."""

    def __post_init__(self) -> None:
        if not self.samplers and self.grid is None:
            raise ValueError("samplers is empty and there is no grid; give one or both")

    @staticmethod
    def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
        """Saved settings of any release in their current form."""
        samplers = {name: current_sampler(sampler) for name, sampler in settings.get("samplers", {}).items()}
        return {**settings, "samplers": samplers}


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
    """Make config.out, unless its record says that it is finished, and print the table. Raises ValueError."""
    cells = plan_cells(config)
    digests = [[card.digest for card in read_pair(cell.samples.generator, cell.samples.tokenizer)] for cell in cells]
    inputs = {"digests": digests, "measured": _measured(config, cells[0].evaluation)}
    with begin(JOB, config, lambda: inputs, _MAKES) as record:
        if record.lease is not None:
            run_sets([cell.samples for cell in cells])
            for cell in cells:
                say(f"sweep: {cell.name}")
                evaluate(cell.evaluation)
            rows = collect(cells)
            chosen = best(cells, rows)
            record.lease.check()
            _write(config, rows, chosen)
            record.finish({"best": chosen.name, "cells": len(cells)})
    say(files.read_bytes(files.join(config.out, "table.md")).decode())
    say(f"sweep: {config.out} has table.md, pareto.png and {SWEEP}; for the best, rdpm sample {config.out}/best.yaml")


def _measured(config: SweepConfig, evaluation: EvaluateConfig) -> dict[str, Any]:
    """How cells are measured, for the record: the identity of an evaluation, and what all cells are compared with.

    Earlier releases recorded more settings of the evaluation. Where they say the same, they are returned.
    """

    def shared(settings: dict[str, Any]) -> dict[str, Any]:
        compared = {name: settings.get(name, "") for name in ("reference", "train_images")}
        return saved_identity(EvaluateConfig, settings) | compared

    measured, record = shared(to_dict(evaluation)), read_record(config.out)
    recorded = record.inputs.get("measured") if record else None
    if recorded is not None and shared(recorded) == measured:
        return recorded
    return measured


def _write(config: SweepConfig, rows: Sequence[SweepRow], chosen: Cell) -> None:
    files.write_bytes(files.join(config.out, "table.md"), table(config, rows).encode())
    files.write_bytes(files.join(config.out, "pareto.png"), plot(rows))
    files.write_json(files.join(config.out, SWEEP), [asdict(row) for row in rows])
    base = load_config(SampleConfig, SAMPLE, config.samples, [])
    ready = replace(chosen.samples, out=f"{base.out}-best", per_class=base.per_class, formats=base.formats)
    save_config(files.join(config.out, "best.yaml"), SAMPLE, ready)


def plan_cells(config: SweepConfig) -> list[Cell]:
    """Every cell of the sweep. Raises ValueError when two would be written to the same folder."""
    base = load_config(SampleConfig, SAMPLE, config.samples, [])
    models = config.models or {"": Models(base.generator, base.tokenizer)}
    samplers = {**config.samplers, **(config.grid.samplers() if config.grid else {})}
    cells = []
    for (model, exports), (strategy, sampler) in itertools.product(models.items(), samplers.items()):
        name = ", ".join(part for part in (model, strategy if len(samplers) > 1 or not model else "") if part)
        out = files.join(config.out, slug(name))
        samples = replace(
            base, generator=exports.generator, tokenizer=exports.tokenizer, out=out, sampler=sampler,
            per_class=config.per_class, formats=(),
        )  # fmt: skip
        # Held-out images would only measure the same tokenizer again for every cell.
        inputs = [f"samples={out}", f"tokenizer={exports.tokenizer}", "images=''", "timed=[]"]
        inputs.append(f"out={out}.metrics.json")
        cells.append(Cell(name, samples, load_config(EvaluateConfig, EVALUATE, config.evaluation, inputs)))
    outs = [cell.samples.out for cell in cells]
    for out in outs:
        if outs.count(out) > 1:
            raise ValueError(f"two cells would be written to {out}; give them names that differ in letters or digits")
    return cells


def collect(cells: Sequence[Cell]) -> list[SweepRow]:
    """One row per cell: its name, settings and metrics, and the panels in which it is on the Pareto front."""
    rows = []
    for cell in cells:
        generator = files.read_json(cell.evaluation.out)["generator"]
        metrics = {name: generator[name] for name in METRICS if name in generator}
        rows.append(SweepRow(cell.name, cell.samples.generator, asdict(cell.samples.sampler), metrics))
    shown = panels(rows)
    return [replace(row, pareto=tuple(_panel_name(p) for p in shown if not _beaten(row, rows, p))) for row in rows]


def panels(rows: Sequence[SweepRow]) -> list[tuple[str, str]]:
    """The pairs of metrics that every row has."""
    return [panel for panel in _PANELS if all(set(panel) <= set(row.metrics) for row in rows)]


def _panel_name(panel: tuple[str, str]) -> str:
    return " against ".join(panel)


def _beaten(row: SweepRow, rows: Sequence[SweepRow], panel: tuple[str, str]) -> bool:
    """Whether another row is better in one metric of the panel and not worse in the other."""
    for other in rows:
        gains = [(other.metrics[name] - row.metrics[name]) * (1 if METRICS[name] == "↑" else -1) for name in panel]
        if min(gains) >= 0 and max(gains) > 0:
            return True
    return False


def best(cells: Sequence[Cell], rows: Sequence[SweepRow]) -> Cell:
    """The cell with the lowest Fréchet distance."""
    return min(zip(cells, rows, strict=True), key=lambda pair: pair[1].metrics[_BEST])[0]


def table(config: SweepConfig, rows: Sequence[SweepRow]) -> str:
    """Markdown in the form of the paper's Table 3: a line per row, a column per metric, then the paper's numbers."""
    names = [name for name in METRICS if all(name in row.metrics for row in rows)]
    lowest = min(row.metrics[_BEST] for row in rows)
    titles = ["", *(f"{_title(name)} {METRICS[name]}" for name in names), "Pareto"]
    titles += ["paper: FID", "sFID", "IS", "precision", "recall"] if config.paper else []
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        mark = "**" if row.metrics[_BEST] == lowest else ""
        cells = [f"{mark}{row.name}{mark}", *(f"{row.metrics[name]:.4g}" for name in names)]
        cells.append(_title("; ".join(row.pareto)))
        cells += [f"{value:g}" for value in config.paper.get(row.name, ())]
        lines.append(cells + [""] * (len(titles) - len(cells)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _title(names: str) -> str:
    return names.replace("spread_8", "spread, first 8").replace("_", " ").replace("frechet", "Fréchet")


def plot(rows: Sequence[SweepRow]) -> bytes:
    """A PNG with a panel per pair of metrics: rows by their number in the table, and a line along the Pareto front."""
    shown = panels(rows)
    figure = new_figure(6.5 * len(shown), 5)
    axes = figure.subplots(1, len(shown), squeeze=False)
    for axis, (x, y) in zip(axes[0], shown, strict=True):
        for number, row in enumerate(rows, start=1):
            point = row.metrics[x], row.metrics[y]
            axis.plot(*point, "o", color="tab:blue", label=f"{number}  {row.name}")
            axis.annotate(str(number), point, xytext=(5, 4), textcoords="offset points")
        front = [row.metrics for row in rows if _panel_name((x, y)) in row.pareto]
        front.sort(key=lambda metrics: metrics[x])
        axis.plot([m[x] for m in front], [m[y] for m in front], "-", color="tab:orange", zorder=0)
        axis.set_xlabel(_title(x))
        axis.set_ylabel(_title(y))
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0, markerscale=0, fontsize=8)
    figure.tight_layout()
    return to_png(figure, _DPI)
