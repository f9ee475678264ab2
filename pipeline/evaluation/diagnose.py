"""The stage behind `rdpm diagnose`: a generator, its tokenizer and real images to diagnosis.json."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rdpm.models.fields import EXECUTION
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.diagnosis import correlation, groups_of, predict, prediction_rows, spread_row
from rdpm.pipeline.evaluation.feature_statistics import reference_digest
from rdpm.pipeline.evaluation.pixels import pixel_rows
from rdpm.pipeline.evaluation.protocol import DIAGNOSIS, WHOLE_SET, WITHIN_CLASSES, Metrics
from rdpm.pipeline.evaluation.splits import Split, load_split
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import to_dict
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import begin, refuse_folder
from rdpm.pipeline.inference.rdpm import RDPM

JOB = "diagnose"
LEAST = 4  # images
_HEADS = {  # short enough for a terminal
    **{"cross_entropy": "nats", "confidence": "sure", "accuracy": "right", "calibration_error": "error"},
    **{"spread_8": "8", "spread_32": "32", "spread_rest": "rest"},
    **{"latent_spread": "z'", "latent_spread_8": "8", "latent_spread_32": "32", "latent_spread_rest": "rest"},
}
_ORDER = (  # of the columns, since a file has them in the order of their names
    "step", "cross_entropy", "entropy", "accuracy", "confidence", "calibration_error", "spread", "spread_8",
    "spread_32", "spread_rest", "latent_spread", "latent_spread_8", "latent_spread_32", "latent_spread_rest",
    "correlation",
)  # fmt: skip
_WIDE = 200  # columns, so that a narrow terminal breaks lines rather than cut numbers


@dataclass(frozen=True)
class DiagnoseConfig:
    """Which generator is diagnosed, on which images."""

    generator: str = field(metadata=EXECUTION)
    """Export of the generator. A matching of its latents is left out, as it would hide what is diagnosed."""
    tokenizer: str = field(metadata=EXECUTION)
    """Export of its tokenizer."""
    images: str = field(metadata=EXECUTION)
    """Real images of the generator's classes: held-out ones, or those that it was trained on."""
    out: str = field(metadata=EXECUTION)
    """The diagnosis.json to write."""
    count: int = 1000
    """How many of the images to use, spread evenly over them; all of them if there are fewer."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How codes are drawn; without guidance and at temperature 1 if not given."""
    seed: int = 0
    """Seed of the noise and of the draws."""
    batch: int = 50
    """Images per call of a model. It decides how products round, and so a code now and then."""
    threads: int = field(default=2, metadata=EXECUTION)
    """CPU threads."""

    def __post_init__(self) -> None:
        for name, least in (("count", LEAST), ("batch", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")


def run(config: DiagnoseConfig) -> None:
    """Write config.out and print it; if its record says that it is finished, only print it. Raises ValueError."""
    refuse_folder(config.out)
    with begin(JOB, config, lambda: _digests(config)) as record:
        if record.lease is None:
            say(f"diagnose: {config.out} is already there")
            show(files.read_json(config.out))
            return
        result = diagnose(config)
        record.lease.check()
        files.write_json(config.out, result)
        record.finish({"images": result["protocol"]["images"]["images"]})
    show(result)


def _digests(config: DiagnoseConfig) -> dict[str, str]:
    generator, tokenizer = read_pair(config.generator, config.tokenizer)
    return {
        "generator_digest": generator.digest,
        "tokenizer_digest": tokenizer.digest,
        "images_digest": reference_digest(config.images),
    }


def diagnose(config: DiagnoseConfig) -> Metrics:
    """Everything as {"kept": a row per s = 0 ... T, "steps": a row per t = 1 ... T, "protocol": ...}.

    In memory are the images, and the latents of all of them. Raises ValueError when an input is missing, the images are
    of other classes, or fewer than four of them can be decoded.
    """
    torch.set_num_threads(config.threads)
    cards = read_pair(config.generator, config.tokenizer)
    classes = cards[0].classes
    model = RDPM.from_pretrained(config.generator, config.tokenizer, batch=config.batch)
    split = load_split(config.images, model.tokenizer.config, config.count)
    if split.classes != classes:
        raise ValueError(
            f"images {config.images!r} have classes {list(split.classes)[:10]}, but the generator draws "
            f"{list(classes)[:10]}; give images of its classes"
        )
    if len(split.labels) < LEAST:
        raise ValueError(f"images {config.images!r} are {len(split.labels)} that can be decoded; give {LEAST} or more")
    codes = model.encode(split.pixels, config.seed)
    groups = groups_of(pixel_rows(split.pixels), split.labels)
    kept, plain = _kept(model, split, codes, groups, config)
    steps = _steps(model, split, codes, plain, groups, config.seed)
    settings = {
        "sampler": to_dict(config.sampler),
        "seed": config.seed,
        "batch": config.batch,
        "matching": "left out" if model.generator.matching is not None else "none",
        "spread": WITHIN_CLASSES if groups is split.labels else WHOLE_SET,
    }
    facts: Metrics = {card.kind: {"digest": card.digest} for card in cards}
    facts["images"] = {"digest": split.source_digest, "images": len(split.labels)}
    return {"kept": kept, "steps": steps, "protocol": {**facts, "settings": settings, "metrics": DIAGNOSIS}}


def _kept(
    model: RDPM, split: Split, codes: np.ndarray, groups: np.ndarray, config: DiagnoseConfig
) -> tuple[list[dict[str, float]], np.ndarray]:
    """A row per number of steps whose codes are kept, and the codes (n, T, h, w) of the plain samples."""
    T, count, originals = codes.shape[1], len(codes), pixel_rows(split.pixels)
    seeds, configs = child_seeds(config.seed, torch.arange(count)).numpy(), [config.sampler] * count
    rows, plain = [], codes
    with ProgressLine("diagnose: images whose first codes are kept", T + 1, "sets") as progress:
        for s in range(T + 1):
            known = codes.astype(np.int64), np.broadcast_to((np.arange(T) < s).reshape(1, T, 1, 1), codes.shape)
            drawn = model.draw(split.labels, seeds, configs, known)
            plain = drawn.codes if s == 0 else plain
            little = pixel_rows(drawn.images[..., : split.pixels.shape[-1]])
            rows.append(
                {
                    "step": s,
                    **spread_row(originals, little, groups),
                    "correlation": correlation(originals, little, groups),
                }
            )
            progress.update(s + 1)
    return rows, plain


def _steps(
    model: RDPM, split: Split, codes: np.ndarray, plain: np.ndarray, groups: np.ndarray, seed: int
) -> list[dict[str, float]]:
    """A row per step: how its codes are predicted, and how much z'_t of plain samples varies."""
    seeds = child_seeds(seed, torch.arange(len(codes))).numpy()
    predicted = prediction_rows(predict(model, codes, split.labels, seeds))
    rows = []
    for t, row in enumerate(predicted, start=1):
        real, drawn = (model.codec.accumulate(each[:, :t]).reshape(len(codes), -1) for each in (codes, plain))
        rows.append({"step": t, **row, **spread_row(real, drawn, groups, "latent_")})
    return rows


def show(result: dict[str, Any]) -> None:
    """Print both tables. In a narrow terminal lines break, and no number is cut."""
    for part, title in (("kept", "codes of the first steps kept"), ("steps", "predictions, and latents z'")):
        names = [name for name in _ORDER if name in result[part][0]]
        table = Table(*(_HEADS.get(name, name) for name in names), title=title)
        for row in result[part]:
            table.add_row(*(f"{row[name]:.3g}" for name in names))
        Console(width=_WIDE).print(table)
