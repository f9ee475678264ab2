"""The paper's Table 2 and its three schedules on any images: one tokenizer per row and seed, all else equal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdpm.models.fields import EXECUTION
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import (
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
    load_or_train_classifier,
)
from rdpm.pipeline.evaluation.fidelity import psnr, reconstruct, ssim
from rdpm.pipeline.evaluation.splits import Split, load_split
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting.plotting import new_figure, to_png
from rdpm.pipeline.studies.outcome import check_distinct, run_study
from rdpm.pipeline.studies.trainings import train_apart
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import JOB as TRAIN_TOKENIZER
from rdpm.pipeline.training.tokenizer.stage import run as train_tokenizer

_BATCH, _DPI = 64, 110
METRICS = ("rfid", "ssim", "psnr")
JOB = "ablate-tokenizer"
TABLE, PLOT = "table2.md", "table2.png"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    """Name in the table."""
    num_steps: int
    """T."""
    weight: bool
    """Whether gamma_t = alpha_t; otherwise gamma_t = 1."""
    bias: bool
    """Whether the quantizer has its bias convolution."""
    schedule: str = "pow"
    """Form of alpha_t: pow, sin or linear."""
    paper: tuple[float, float, float] | None = None
    """The paper's rFID, SSIM and PSNR; None for a row that the paper lacks."""

    @property
    def overrides(self) -> list[str]:
        """Settings that the row changes in the base config."""
        return [
            f"model.schedule.num_steps={self.num_steps}",
            f"model.schedule.weighted={str(self.weight).lower()}",
            f"model.schedule.kind={self.schedule}",
            f"model.quantizer.bias={str(self.bias).lower()}",
        ]


ROWS = (
    Row("1", 6, False, False, paper=(3.58, 0.4890, 29.45)),
    Row("2", 8, False, False, paper=(3.21, 0.5133, 29.46)),
    Row("3", 10, False, False, paper=(3.05, 0.5657, 29.56)),
    Row("4", 12, False, False, paper=(3.01, 0.5669, 29.60)),
    Row("5", 14, False, False, paper=(2.93, 0.5761, 29.61)),
    Row("6", 20, False, False, paper=(2.90, 0.5790, 29.64)),
    Row("7", 10, True, False, paper=(2.04, 0.6178, 29.71)),
    Row("8", 10, False, True, paper=(2.06, 0.5994, 29.89)),
    Row("9 (pow)", 10, True, True, paper=(1.52, 0.6226, 29.97)),
    Row("sin", 10, True, True, "sin"),
    Row("linear", 10, True, True, "linear"),
)


@dataclass(frozen=True)
class AblationConfig:
    """Table 2 on your own images."""

    base: str
    """Config of `rdpm train-tokenizer` that every row starts from."""
    images: str = field(metadata=EXECUTION)
    """Images to train on."""
    validation: str = field(metadata=EXECUTION)
    """Held-out images."""
    out: str = field(metadata=EXECUTION)
    """Folder of the trainings, the table and the plot."""
    seeds: tuple[int, ...] = (0, 1)
    """Every row is trained once per seed."""
    steps: int = 600
    """Optimizer steps per training."""
    parallel: int = field(default=2, metadata=EXECUTION)
    """How many trainings run at the same time on this machine."""
    inception_weights: str = ""
    """Path of Inception's weights, whose features rFID uses; empty for a classifier trained on the images."""

    def __post_init__(self) -> None:
        if not self.seeds or self.steps < 1 or self.parallel < 1:
            raise ValueError(
                f"seeds is {list(self.seeds)}, steps is {self.steps} and parallel is {self.parallel}; give one seed or "
                "more, and use 1 or more for the others"
            )
        check_distinct("seeds", self.seeds)


Results = dict[str, list[dict[str, float]]]
"""{name of a row: metrics of each seed}."""


def run(config: AblationConfig) -> None:
    """Write the table and the plot in config.out, unless its record says that it is finished, and print the table.

    Raises ValueError for bad input, and when a training does so.
    """

    def study() -> tuple[Sequence[bytes], dict[str, Any]]:
        results = ablate(config)
        return (table(results).encode(), plot(results)), results

    run_study(JOB, config, (TABLE, PLOT), study, {"base": (TrainTokenizerConfig, TRAIN_TOKENIZER)})


def ablate(config: AblationConfig) -> Results:
    """Train and measure every row and seed. A training that is finished is not repeated."""
    rows = [(row, seed) for row in ROWS for seed in config.seeds]
    trainings = [_training(config, row, seed) for row, seed in rows]
    train_apart("ablate-tokenizer", train_tokenizer, trainings, config.parallel)
    held_out: dict[tuple[int, int], Split] = {}
    results: Results = {row.name: [] for row in ROWS}
    for (row, _), training in zip(rows, trainings, strict=True):
        results[row.name].append(_measure(config, training.out, held_out))
    return results


def _training(config: AblationConfig, row: Row, seed: int) -> TrainTokenizerConfig:
    """The config that trains one row with one seed."""
    log_every = max(1, config.steps // 10)
    settings = [
        f"images={config.images}",
        f"out={files.join(config.out, f'row-{row.name.split()[0]}-seed-{seed}')}",
        f"seed={seed}",
        f"steps={config.steps}",
        f"log_every={log_every}",
        f"checkpoint_every={5 * log_every}",
        "validation=''",
        "ranks=1",
        "threads=1",
        *row.overrides,
    ]
    return load_config(TrainTokenizerConfig, TRAIN_TOKENIZER, config.base, settings)


def _measure(config: AblationConfig, folder: str, held_out: dict[tuple[int, int], Split]) -> dict[str, float]:
    """rFID, SSIM and PSNR (dB) of the held-out images, from metrics.json in the tokenizer's folder if it is there.

    held_out: held-out images that are loaded already, by size and channels.
    """
    path = files.join(folder, "metrics.json")
    digest = read_card(folder, "tokenizer").digest
    if files.exists(path) and files.read_json(path)["tokenizer"] == digest:
        return files.read_json(path)["metrics"]
    tokenizer = load_tokenizer(folder)[0]
    shape = (tokenizer.config.image_size, tokenizer.config.autoencoder.in_channels)
    if shape not in held_out:
        held_out[shape] = load_split(config.validation, tokenizer.config)
    originals = held_out[shape].pixels
    decoded = reconstruct(Codec(tokenizer, _BATCH), originals, seed=0).pixels
    extractor = _extractor(config, tokenizer.config)
    rfid = frechet_of(extractor.extract(originals).features, extractor.extract(decoded).features)
    metrics = {"rfid": rfid, "ssim": ssim(originals, decoded), "psnr": psnr(originals, decoded)}
    files.write_json(path, {"tokenizer": digest, "extractor": extractor.digest, "metrics": metrics})
    return metrics


def _extractor(config: AblationConfig, tokenizer: TokenizerConfig) -> Extractor:
    if config.inception_weights:
        return InceptionExtractor(config.inception_weights, _BATCH)
    train = load_split(config.images, tokenizer)
    shape = ClassifierConfig(num_classes=len(train.classes), channels=train.pixels.shape[-1])
    return ClassifierExtractor(load_or_train_classifier(config.out, shape, train.pixels, train.labels, 0), _BATCH)


def table(results: Results) -> str:
    """Markdown, one line per row: our mean over seeds and half their range, then the paper's metrics."""
    lines = [
        "| row | schedule | T | weight | bias | rFID | SSIM | PSNR, dB | paper: rFID | SSIM | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        cells = [row.name, row.schedule, str(row.num_steps), "x" if row.weight else "", "x" if row.bias else ""]
        cells += [_spread([seed[name] for seed in results[row.name]], name) for name in METRICS]
        cells += [f"{value:g}" for value in row.paper] if row.paper else ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], name: str) -> str:
    digits = 2 if name == "psnr" else 4
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def plot(results: Results) -> bytes:
    """A PNG with a column per metric: above, every seed of a row and their mean; below, the paper's."""
    figure = new_figure(13, 6)
    axes = figure.subplots(2, 3, sharex=True)
    names = [row.name for row in ROWS]
    for column, metric in enumerate(METRICS):
        ours, theirs = axes[0, column], axes[1, column]
        values = [[seed[metric] for seed in results[name]] for name in names]
        ours.plot(range(len(names)), [np.mean(v) for v in values], "o-", color="tab:blue")
        for position, seeds in enumerate(values):
            ours.plot([position] * len(seeds), seeds, ".", color="tab:gray")
        ours.set_title(f"{metric}, ours")
        paper = [(position, row.paper[column]) for position, row in enumerate(ROWS) if row.paper]
        theirs.plot(*zip(*paper, strict=True), "s-", color="tab:orange")
        theirs.set_title(f"{metric}, paper (ImageNet 256)")
        theirs.set_xticks(range(len(names)), names, rotation=45)
    figure.tight_layout()
    return to_png(figure, _DPI)
