"""The evaluation stage: a tokenizer, a sample store and real images to one tree of metrics.

Fréchet distance, precision and recall depend on how many images go in. Everything that is compared is therefore taken
over one count, that of the held-out images: samples as the mean over random class-balanced draws of so many, and the
held-out images themselves beside them (names ending in `_real`) as what a perfect generator would get.
"""

import posixpath
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from models.tokenizer import Tokenizer
from pipeline.evaluation.classifier import ClassifierConfig
from pipeline.evaluation.distribution import (
    balanced_draws,
    frechet_of,
    inception_score,
    nearest_distance,
    precision_recall,
)
from pipeline.evaluation.features import (
    ClassifierExtractor,
    Extractor,
    Features,
    InceptionExtractor,
    load_or_train_classifier,
)
from pipeline.evaluation.reconstruction import (
    PSNR_CONVENTION,
    SSIM_CONVENTION,
    code_counts,
    decode_codes,
    encode_images,
    perplexity,
    psnr,
    ssim,
)
from pipeline.evaluation.splits import SampleSet, Split, check_classes, load_samples, load_split
from pipeline.exports import load_tokenizer, read_card
from pipeline.images.listing import list_images
from pipeline.progress import say
from pipeline.records import read_record
from pipeline.tokens.reader import open_store
from storage_schemas.cards import ModelCard
from storage_schemas.samples import KIND

Metrics = dict[str, Any]

NEIGHBOURS = 3  # k of precision and recall
SPLIT_IMAGES = 5000  # images in a part of the inception score, as in ADM's evaluator
CONVENTIONS = {
    "psnr": PSNR_CONVENTION,
    "ssim": SSIM_CONVENTION,
    "rfid": "Fréchet distance of the held-out images' reconstructions against those images, in the features",
    "codebook": "codes of the held-out and the training images together",
    "frechet_distance": "squared, between Gaussians of the features, unbiased covariances, float64, against the "
    "training images; samples: mean over the draws; _real: the held-out images; _all: every sample",
    "precision_recall": f"k = {NEIGHBOURS}, against the training images; samples: mean over the draws",
    "inception_score": f"all samples in store order, contiguous parts of {SPLIT_IMAGES} or one part, mean over parts",
    "nearest_train_distance": "root mean square over an image's pixel values, 0 to 255, to the nearest training image; "
    "median over images; _p01: first percentile",
    "copies": "share of samples nearer to a training image than the first percentile of the held-out images; "
    "0.01 for samples as new as those",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what.

    train_images, images: folders of the real training and held-out images. tokenizer: export folder. samples: sample
    store. out: the metrics.json to write; a classifier trained for it is kept beside it. extractor: the feature space;
    "inception" needs the file inception_weights. draws: random draws of samples that a distance is the mean over.
    timed: outputs of other jobs, whose seconds are copied from their records.
    """

    train_images: str
    images: str
    tokenizer: str
    samples: str
    out: str
    extractor: Literal["classifier", "inception"] = "classifier"
    inception_weights: str = ""
    draws: int = 10
    seed: int = 0
    batch: int = 64
    threads: int = 2
    timed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("draws", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")


def input_digests(config: EvaluateConfig) -> dict[str, str]:
    """Digests of the inputs, for the job's record."""
    return {
        "train_digest": list_images(config.train_images).digest,
        "held_out_digest": list_images(config.images).digest,
        "tokenizer_digest": read_card(config.tokenizer, "tokenizer").digest,
        "store_id": open_store(config.samples, KIND).id,
    }


def evaluate(config: EvaluateConfig) -> Metrics:
    """All metrics as {"tokenizer": ..., "generator": ..., "seconds": ..., "protocol": ...}.

    The real images are held in memory. Raises ValueError when an input is missing, inputs do not belong together, or
    there are too few samples for a draw.
    """
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    tokenizer, card = load_tokenizer(config.tokenizer)
    train, held_out = (load_split(root, tokenizer.config) for root in (config.train_images, config.images))
    samples = load_samples(config.samples, card, tokenizer.config.autoencoder.in_channels)
    check_classes(f"folder {config.images!r}", held_out.classes, train.classes)
    check_classes(f"sample store {config.samples!r}", samples.classes, train.classes)
    draws = balanced_draws(samples.labels, len(held_out.labels), config.draws, config.seed)
    times = stage_seconds(config.timed)
    counts = f"{len(samples.labels)} samples, {len(held_out.labels)} held-out and {len(train.labels)} training images"
    say(f"evaluate: {counts}")
    extractor = make_extractor(config, train)
    say(f"evaluate: features of the {extractor.name} {extractor.digest[:12]}")
    tokenizer_part = tokenizer_metrics(tokenizer, extractor, train, held_out, config)
    say(_line("tokenizer", tokenizer_part))
    train_features, real, fake = (
        extractor.extract(pixels) for pixels in (train.pixels, held_out.pixels, samples.pixels)
    )
    generator_part = feature_metrics(train_features, real, fake, draws)
    if config.extractor == "classifier":  # Inception's classes are not the images' classes
        generator_part["class_accuracy"] = _accuracy(fake, samples.labels)
        generator_part["classifier_accuracy_on_real"] = _accuracy(real, held_out.labels)
    say(_line("generator", generator_part))
    novelty = novelty_metrics(train.pixels, held_out.pixels, samples.pixels)
    say(_line("novelty", novelty))
    return {
        "tokenizer": tokenizer_part,
        "generator": generator_part | novelty,
        "seconds": times | {"evaluate": time.monotonic() - started},
        "protocol": protocol(config, extractor, card, train, held_out, samples),
    }


def make_extractor(config: EvaluateConfig, train: Split) -> Extractor:
    """The extractor of the config. The classifier is trained on the training images, or found beside `out`."""
    if config.extractor == "inception":
        return InceptionExtractor(config.inception_weights, config.batch)
    shape = ClassifierConfig(num_classes=len(train.classes), channels=train.pixels.shape[-1])
    folder = posixpath.dirname(config.out) or "."
    classifier = load_or_train_classifier(folder, shape, train.pixels, train.labels, config.seed)
    return ClassifierExtractor(classifier, config.batch)


def tokenizer_metrics(
    tokenizer: Tokenizer, extractor: Extractor, train: Split, held_out: Split, config: EvaluateConfig
) -> Metrics:
    """PSNR (dB), SSIM and rFID of held-out reconstructions; usage and perplexity of the codebook over both splits."""
    seed, batch = config.seed, config.batch
    codes = encode_images(tokenizer, held_out.pixels, seed, 0, batch)
    reconstruction = decode_codes(tokenizer, codes, codes.shape[1], batch)
    train_codes = encode_images(tokenizer, train.pixels, seed, len(codes), batch)
    counts = code_counts(np.concatenate([codes, train_codes]), tokenizer.config.quantizer.codebook_size)
    return {
        "psnr": psnr(held_out.pixels, reconstruction),
        "ssim": ssim(held_out.pixels, reconstruction),
        "rfid": frechet_of(extractor.extract(held_out.pixels).features, extractor.extract(reconstruction).features),
        "codebook_usage": float((counts.sum(axis=0) > 0).mean()),
        "perplexity_by_step": perplexity(counts).tolist(),
    }


def feature_metrics(train: Features, held_out: Features, samples: Features, draws: list[np.ndarray]) -> Metrics:
    """Fréchet distances, precision, recall and inception score; see CONVENTIONS."""
    real = train.features
    drawn = [samples.features[rows] for rows in draws]
    distances = [frechet_of(real, part) for part in drawn]
    shares = [precision_recall(real, part, NEIGHBOURS) for part in drawn]
    share_real = precision_recall(real, held_out.features, NEIGHBOURS)
    distance, distance_real = float(np.mean(distances)), frechet_of(real, held_out.features)
    return {
        "frechet_distance": distance,
        "frechet_distance_deviation": float(np.std(distances)),
        "frechet_distance_real": distance_real,
        "frechet_ratio": distance / distance_real,
        "frechet_distance_all": frechet_of(real, samples.features),
        "precision": float(np.mean([share.precision for share in shares])),
        "precision_real": share_real.precision,
        "recall": float(np.mean([share.recall for share in shares])),
        "recall_real": share_real.recall,
        "inception_score": inception_score(samples.logits, max(1, len(samples.logits) // SPLIT_IMAGES)),
        "inception_score_real": inception_score(held_out.logits, max(1, len(held_out.logits) // SPLIT_IMAGES)),
    }


def novelty_metrics(train: np.ndarray, held_out: np.ndarray, samples: np.ndarray) -> Metrics:
    """Distances of samples and held-out images, (n, H, W, C) uint8, to the nearest training image; see CONVENTIONS."""
    flat = train.reshape(len(train), -1)
    scale = np.sqrt(flat.shape[1])
    real, fake = (nearest_distance(x.reshape(len(x), -1), flat) / scale for x in (held_out, samples))
    threshold = np.percentile(real, 1)
    return {
        "nearest_train_distance": float(np.median(fake)),
        "nearest_train_distance_p01": float(np.percentile(fake, 1)),
        "nearest_train_distance_real": float(np.median(real)),
        "nearest_train_distance_real_p01": float(threshold),
        "copies": float((fake < threshold).mean()),
    }


def stage_seconds(outs: tuple[str, ...]) -> dict[str, float]:
    """Seconds by job from the records beside these outputs; outputs of one job are added up.

    Raises ValueError when an output has no finished record.
    """
    seconds: dict[str, float] = {}
    for out in outs:
        record = read_record(out)
        if record is None or not record["finished"]:
            raise ValueError(f"timed output {out!r} has no finished record; run its job first, or take it off `timed`")
        seconds[record["job"]] = seconds.get(record["job"], 0.0) + record["seconds"]
    return seconds


def protocol(
    config: EvaluateConfig, extractor: Extractor, card: ModelCard, train: Split, held_out: Split, samples: SampleSet
) -> Metrics:
    """What the numbers were measured with, so that two sets of them are compared only when they can be."""
    splits = {
        name: {"source_digest": split.source_digest, "images": len(split.labels), "rejected": split.rejected}
        for name, split in (("train", train), ("held_out", held_out))
    }
    return splits | {
        "extractor": {"name": extractor.name, "digest": extractor.digest},
        "samples": {"store_id": samples.store.id, "images": len(samples.labels)},
        "tokenizer_digest": card.digest,
        "generator_digest": samples.store.manifest.plan.identity["generator_digest"],
        "count": len(held_out.labels),
        "draws": config.draws,
        "seed": config.seed,
        "conventions": CONVENTIONS,
    }


def _accuracy(features: Features, labels: np.ndarray) -> float:
    return float((features.logits.argmax(axis=1) == labels).mean())


def _line(title: str, metrics: Metrics) -> str:
    """One progress line: the plain numbers of a part."""
    return f"evaluate: {title}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float))
