"""A sweep: sets of samples over sampler settings and models, each measured alike; which are best, and at what cost."""

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.evaluate import EvaluateConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.sampling.stage import SampleConfig, SamplerSetting

MEASURES = {  # as evaluate names them; whether more is better
    "frechet_distance": False,
    "spatial_frechet_distance": False,
    "inception_score": True,
    "precision": True,
    "recall": True,
    "class_accuracy": True,
}
_PANELS = (("inception_score", "frechet_distance"), ("recall", "precision"))  # what is gained at whose cost
_BEST = "frechet_distance"


@dataclass(frozen=True)
class Models:
    """Exports that belong together."""

    generator: str
    tokenizer: str


@dataclass(frozen=True)
class Grid:
    """Every combination of these settings."""

    guidance: tuple[float, ...] = (0.0,)
    ramp: tuple[Literal["constant", "linear"], ...] = ("linear",)
    temperature: tuple[float | None, ...] = (1.0,)

    def samplers(self) -> dict[str, SamplerConfig]:
        """The combinations by name; without guidance the ramps are one."""
        found = {}
        for guidance, ramp, tau in itertools.product(self.guidance, self.ramp, self.temperature):
            strength = f"λ {guidance:g} {ramp}" if guidance else "λ 0"
            found[f"{strength}, {'argmax' if tau is None else f'τ {tau:g}'}"] = SamplerConfig(guidance, ramp, tau)
        return found


@dataclass(frozen=True)
class SweepConfig:
    """samples, evaluation: configs of `rdpm sample` and `rdpm evaluate`, which every cell starts from.

    samplers, grid: settings by name, and combinations of settings; together the rows of the table. models: exports by
    name instead of those in `samples`; each goes with every sampler. per_class: images of a class in a cell.
    paper: figures to show beside a cell's, by its name, in the order of the table's columns.
    """

    samples: str
    evaluation: str
    out: str
    samplers: dict[str, SamplerSetting] = field(default_factory=dict)
    grid: Grid | None = None
    models: dict[str, Models] = field(default_factory=dict)
    per_class: int = 50
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samplers and self.grid is None:
            raise ValueError("samplers is empty and there is no grid; give one or both")


@dataclass(frozen=True)
class Cell:
    """One set of samples and how it is measured."""

    name: str
    samples: SampleConfig
    evaluation: EvaluateConfig


def plan_cells(config: SweepConfig) -> list[Cell]:
    """Every cell of the sweep. Raises ValueError when two would have one place."""
    base = load_config(SampleConfig, "sample", config.samples, [])
    models = config.models or {"": Models(base.generator, base.tokenizer)}
    samplers = {**config.samplers, **(config.grid.samplers() if config.grid else {})}
    cells = []
    for (model, exports), (strategy, sampler) in itertools.product(models.items(), samplers.items()):
        name = ", ".join(part for part in (model, strategy if len(samplers) > 1 or not model else "") if part)
        place = files.join(config.out, re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-"))
        samples = replace(
            base, generator=exports.generator, tokenizer=exports.tokenizer, out=place, sampler=sampler,
            per_class=config.per_class, formats=(),
        )  # fmt: skip
        # Held-out images would only measure the tokenizer again and again.
        inputs = [f"samples={place}", f"tokenizer={exports.tokenizer}", "images=''", "timed=[]"]
        inputs.append(f"out={place}.metrics.json")
        cells.append(Cell(name, samples, load_config(EvaluateConfig, "evaluate", config.evaluation, inputs)))
    places = [cell.samples.out for cell in cells]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"two cells would be written to {place}; give them names that differ in letters or digits")
    return cells


def collect(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row a cell: its name, settings and measures, and in which panels no other cell beats it at both."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        found = files.read_json(cell.evaluation.out)["generator"]
        measures = {name: found[name] for name in MEASURES if name in found}
        settings = {"generator": cell.samples.generator, "sampler": vars(cell.samples.sampler)}
        rows.append({"name": cell.name, **settings, "measures": measures, "pareto": []})
    for panel in panels(rows):
        for row in rows:
            if not any(_dominates(other["measures"], row["measures"], panel) for other in rows):
                row["pareto"].append(" against ".join(panel))
    return rows


def panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of measures that every cell has."""
    return [panel for panel in _PANELS if all(set(panel) <= set(row["measures"]) for row in rows)]


def _dominates(one: dict[str, float], other: dict[str, float], panel: tuple[str, str]) -> bool:
    """Whether `one` is no worse in both measures and better in one."""
    gains = [(one[name] - other[name]) * (1 if MEASURES[name] else -1) for name in panel]
    return min(gains) >= 0 and max(gains) > 0


def best(cells: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> Cell:
    """The cell of the lowest Fréchet distance."""
    return min(zip(cells, rows, strict=True), key=lambda pair: pair[1]["measures"][_BEST])[0]


def table(config: SweepConfig, rows: Sequence[dict[str, Any]]) -> str:
    """Markdown in the form of the paper's Table 3: a line a cell, a column a measure, then the paper's figures."""
    names = [name for name in MEASURES if all(name in row["measures"] for row in rows)]
    lowest = min(row["measures"][_BEST] for row in rows)
    titles = ["", *(f"{_title(name)} {'↑' if MEASURES[name] else '↓'}" for name in names), "Pareto"]
    titles += ["paper: FID", "sFID", "IS", "precision", "recall"] if config.paper else []
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        mark = "**" if row["measures"][_BEST] == lowest else ""
        cells = [f"{mark}{row['name']}{mark}", *(f"{row['measures'][name]:.4g}" for name in names)]
        cells.append(_title("; ".join(row["pareto"])))
        theirs = [f"{value:g}" for value in config.paper.get(row["name"], ())]
        lines.append(cells + theirs + [""] * (len(titles) - len(cells) - len(theirs)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _title(names: str) -> str:
    return names.replace("_", " ").replace("frechet", "Fréchet")


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: each cell in each panel by its number in the table, the Pareto front joined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = panels(rows)
    figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), 5), dpi=110, squeeze=False)
    for axis, (x, y) in zip(axes[0], shown, strict=True):
        for number, row in enumerate(rows, start=1):
            point = row["measures"][x], row["measures"][y]
            axis.plot(*point, "o", color="tab:blue", label=f"{number}  {row['name']}")
            axis.annotate(str(number), point, xytext=(5, 4), textcoords="offset points")
        front = [row["measures"] for row in rows if " against ".join((x, y)) in row["pareto"]]
        front.sort(key=lambda measures: measures[x])
        axis.plot([m[x] for m in front], [m[y] for m in front], "-", color="tab:orange", zorder=0)
        axis.set_xlabel(_title(x))
        axis.set_ylabel(_title(y))
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0, markerscale=0, fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
