"""Table 2 of the paper, and its three schedules, on any source: one tokenizer a row and seed, all else equal."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import (
    ClassifierExtractor,
    Extractor,
    InceptionExtractor,
    load_or_train_classifier,
)
from rdpm.pipeline.evaluation.reconstruction import decode_codes, encode_images, psnr, ssim
from rdpm.pipeline.evaluation.splits import Split, load_split
from rdpm.pipeline.exports.exports import load_tokenizer, read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import ProgressLine

_BATCH = 64
MEASURES = ("rfid", "ssim", "psnr")


@dataclass(frozen=True)
class Row:
    """One experiment: T, gamma_t = alpha_t or 1, bias convolution or none, schedule; `paper` is (rFID, SSIM, PSNR)."""

    name: str
    num_steps: int
    weight: bool
    bias: bool
    schedule: str = "pow"
    paper: tuple[float, float, float] | None = None

    @property
    def overrides(self) -> list[str]:
        """What the row changes in the base config."""
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
    """base: the train-tokenizer config that every row starts from. images, validation: training and held-out folders.

    steps: updates of every row. parallel: trainings at once on this machine. inception_weights: rFID in Inception's
    features; "" for those of a small classifier trained on the images.
    """

    base: str
    images: str
    validation: str
    out: str
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 600
    parallel: int = 2
    inception_weights: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or self.steps < 1 or self.parallel < 1:
            raise ValueError(
                f"seeds {list(self.seeds)}, steps {self.steps}, parallel {self.parallel}: all need 1 or more"
            )


Results = dict[str, list[dict[str, float]]]


def ablate(config: AblationConfig) -> Results:
    """Train and measure every row and seed that is not done yet. Returns {row name: [measures of each seed]}.

    Raises ValueError, with the end of what it said, when a training fails.
    """
    work = [(row, seed) for row in ROWS for seed in config.seeds]
    with (
        ProgressLine("ablate-tokenizer", len(work), "trainings") as progress,
        ThreadPoolExecutor(config.parallel) as pool,
    ):
        for done, _ in enumerate(pool.map(lambda item: _train(config, *item), work), start=1):
            progress.update(done)
    held_out: dict[tuple, Split] = {}
    results: Results = {row.name: [] for row in ROWS}
    for row, seed in work:
        results[row.name].append(_measure(config, _folder(config, row, seed), held_out))
    return results


def _folder(config: AblationConfig, row: Row, seed: int) -> str:
    return files.join(config.out, f"row-{row.name.split()[0]}-seed-{seed}")


def _train(config: AblationConfig, row: Row, seed: int) -> None:
    """One training in a process of its own; it does nothing when its record says that it is finished."""
    log_every = max(1, config.steps // 10)
    settings = [
        f"images={config.images}",
        f"out={_folder(config, row, seed)}",
        f"seed={seed}",
        f"steps={config.steps}",
        f"log_every={log_every}",
        f"checkpoint_every={5 * log_every}",
        "validation=''",
        "ranks=1",
        "threads=1",
        *row.overrides,
    ]
    command = [sys.executable, "-m", "rdpm", "train-tokenizer", config.base, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"row {row.name}, seed {seed} failed: {done.stderr.strip()[-500:]}")


def _measure(config: AblationConfig, folder: str, held_out: dict[tuple, Split]) -> dict[str, float]:
    """rFID, SSIM and PSNR (dB) of the held-out images, kept beside the tokenizer they belong to."""
    path = files.join(folder, "measures.json")
    digest = read_card(folder, "tokenizer").digest
    if files.exists(path) and files.read_json(path)["tokenizer"] == digest:
        return files.read_json(path)["measures"]
    tokenizer = load_tokenizer(folder)[0]
    shape = (tokenizer.config.image_size, tokenizer.config.autoencoder.in_channels)
    if shape not in held_out:
        held_out[shape] = load_split(config.validation, tokenizer.config)
    real = held_out[shape].pixels
    codes = encode_images(tokenizer, real, 0, 0, _BATCH)
    back = decode_codes(tokenizer, codes, codes.shape[1], _BATCH)
    extractor = _extractor(config, tokenizer.config)
    rfid = frechet_of(extractor.extract(real).features, extractor.extract(back).features)
    measures = {"rfid": rfid, "ssim": ssim(real, back), "psnr": psnr(real, back)}
    files.write_json(path, {"tokenizer": digest, "extractor": extractor.digest, "measures": measures})
    return measures


def _extractor(config: AblationConfig, tokenizer: TokenizerConfig) -> Extractor:
    if config.inception_weights:
        return InceptionExtractor(config.inception_weights, _BATCH)
    train = load_split(config.images, tokenizer)
    shape = ClassifierConfig(num_classes=len(train.classes), channels=train.pixels.shape[-1])
    return ClassifierExtractor(load_or_train_classifier(config.out, shape, train.pixels, train.labels, 0), _BATCH)


def table(results: Results) -> str:
    """Markdown: a line a row, ours as mean over seeds with half their spread, beside the paper's."""
    lines = [
        "| row | schedule | T | weight | bias | rFID | SSIM | PSNR, dB | paper: rFID | SSIM | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        cells = [row.name, row.schedule, str(row.num_steps), "x" if row.weight else "", "x" if row.bias else ""]
        cells += [_spread([seed[name] for seed in results[row.name]], name) for name in MEASURES]
        cells += [f"{value:g}" for value in row.paper] if row.paper else ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], name: str) -> str:
    digits = 2 if name == "psnr" else 4
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def plot(results: Results) -> bytes:
    """A PNG: each measure by row, ours (every seed and their mean) above the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 6), dpi=110, sharex=True)
    names = [row.name for row in ROWS]
    for column, measure in enumerate(MEASURES):
        ours, theirs = axes[0, column], axes[1, column]
        values = [[seed[measure] for seed in results[name]] for name in names]
        ours.plot(range(len(names)), [np.mean(v) for v in values], "o-", color="tab:blue")
        for place, seeds in enumerate(values):
            ours.plot([place] * len(seeds), seeds, ".", color="tab:gray")
        ours.set_title(f"{measure}, ours")
        paper = [(place, row.paper[column]) for place, row in enumerate(ROWS) if row.paper]
        theirs.plot(*zip(*paper, strict=True), "s-", color="tab:orange")
        theirs.set_title(f"{measure}, paper (ImageNet 256)")
        theirs.set_xticks(range(len(names)), names, rotation=45)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
