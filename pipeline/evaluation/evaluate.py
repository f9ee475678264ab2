"""One evaluation: samples, real images and a tokenizer, each optional, to one tree of metrics.

All samples are compared with the reference as ADM's evaluator does. Fréchet distance, precision and recall depend on
the number of images. So where there are held-out images, random draws of equally many samples are compared with the
reference too, and the held-out images themselves: a perfect generator would match their metrics.
"""

import time
from typing import Any

import numpy as np
import torch

from rdpm.models.losses import PerceptualLoss
from rdpm.pipeline.evaluation.distribution import balanced_draws
from rdpm.pipeline.evaluation.feature_statistics import (
    SPLIT_IMAGES,
    Statistics,
    load_or_take_statistics,
    open_reference,
    reference_digest,
    take_statistics,
)
from rdpm.pipeline.evaluation.features import Extractor
from rdpm.pipeline.evaluation.image_sets import ImageSet
from rdpm.pipeline.evaluation.inputs import EvaluateConfig, EvaluationInputs, open_inputs
from rdpm.pipeline.evaluation.kernel import subset_size
from rdpm.pipeline.evaluation.manifold import DistanceType, float16_holds
from rdpm.pipeline.evaluation.metrics import (
    accuracy,
    accuracy_by_class,
    held_out_metrics,
    kernel_metrics,
    novelty_metrics,
    sample_metrics,
    tokenizer_metrics,
)
from rdpm.pipeline.evaluation.pixels import (
    PixelReference,
    PixelSet,
    load_or_take_reference,
    pixel_metrics,
    spread_within_classes,
    take_pixels,
)
from rdpm.pipeline.evaluation.protocol import WHOLE_SET, WITHIN_CLASSES, Metrics, protocol
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.codec import Codec

PixelSets = tuple[PixelReference, PixelSet, PixelSet | None]
"""The reference, the samples and, if there are any, the held-out images."""


def evaluate(config: EvaluateConfig) -> Metrics:
    """All metrics as {"tokenizer": ..., "generator": ..., "seconds": ..., "protocol": ...}.

    A part that cannot be computed from the given inputs is left out. Images are streamed. In memory stay the features
    of the samples and of the images that make up manifolds, box means, thumbnails, and the training images while the
    classifier trains. Raises ValueError when an input is missing, inputs do not belong together, or a draw lacks
    samples.
    """
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    times = stage_seconds(config.timed)
    inputs = open_inputs(config)
    sets: dict[str, Statistics] = {}
    if inputs.extractor:
        say(f"evaluate: features of {inputs.extractor.name} {inputs.extractor.digest[:12]}")
        sets = statistics_of_sets(config, inputs, inputs.extractor)
    facts = inputs.facts()
    if inputs.samples:
        facts["reference"] = {"digest": reference_digest(config.reference or config.train_images)}
    for name, statistics in sets.items():
        facts[name] |= {"images": statistics.count, "manifold": len(statistics.features)}
    settings: Metrics = {"seed": config.seed, "draws": config.draws}
    if sets:
        settings["manifold_distances"] = distance_type(sets)
    pixels, warnings = None, warnings_of(sets)
    if inputs.samples:
        pixels, more = _pixels(inputs, inputs.samples)
        if sets:
            settings["kid_images"] = _kid_images(sets)
        elif pixels is None:
            raise ValueError(f"extractor is none, and {more[0]}")
        if pixels:
            settings["spread"] = WITHIN_CLASSES if spread_within_classes(*pixels) else WHOLE_SET
        warnings += more
    for warning in warnings:
        say(f"evaluate: {warning}")
    parts = {}
    if inputs.tokenizer and inputs.held_out:
        parts["tokenizer"] = _tokenizer_part(config, inputs, sets["held_out"])
    if inputs.samples:
        parts["generator"] = _generator_part(config, inputs, sets, settings, pixels)
    settings["warnings"] = warnings
    seconds = times | {"evaluate": time.monotonic() - started}
    return {**parts, "seconds": seconds, "protocol": protocol(parts, facts, settings)}


def statistics_of_sets(config: EvaluateConfig, inputs: EvaluationInputs, extractor: Extractor) -> dict[str, Statistics]:
    """Statistics of those of "held_out", "reference" and "samples" that are given; real images' are kept in files."""
    held_out, samples = inputs.held_out, inputs.samples
    folder, sets = files.join(inputs.folder, "statistics"), {}
    if held_out:
        title = "the held-out images"
        sets["held_out"] = load_or_take_statistics(held_out, extractor, len(held_out), title, folder)
    if samples:
        url = config.reference or config.train_images
        sets["reference"] = open_reference(url, inputs.reference, extractor, config.manifold_images, folder)
        sets["samples"] = take_statistics(samples, extractor, len(samples), "the samples")
    return sets


def distance_type(sets: dict[str, Statistics]) -> DistanceType:
    """float16, as in ADM's evaluator, unless a distance could leave its range."""
    features = [statistics.features for statistics in sets.values() if len(statistics.features)]
    return "float16" if float16_holds(*features) else "float32"


def _tokenizer_part(config: EvaluateConfig, inputs: EvaluationInputs, originals: Statistics) -> Metrics:
    assert inputs.extractor
    assert inputs.tokenizer
    assert inputs.held_out
    device = inputs.extractor.device
    perceptual = None if config.perceptual == "none" else PerceptualLoss(config.perceptual).to(device)
    return tokenizer_metrics(
        Codec(inputs.tokenizer, config.batch, torch.device(device)),
        inputs.extractor,
        inputs.held_out,
        originals,
        perceptual,
        seed=config.seed,
        threads=config.threads,
    )


def _pixels(inputs: EvaluationInputs, samples: ImageSet) -> tuple[PixelSets | None, list[str]]:
    """The pixels of reference, samples and held-out images, and what must be said about them.

    None where the reference has no images of the samples' size.
    """
    images = inputs.reference
    if images is None or images.size != samples.size:
        holds = f"images of {images.size} pixels" if images else "no images"
        return None, [
            f"reference: it holds {holds}, so spread and pixel distance are left out; give a reference with images of "
            f"{samples.size} pixels"
        ]
    pixels = (
        load_or_take_reference(images, files.join(inputs.folder, "statistics")),
        take_pixels(samples),
        take_pixels(inputs.held_out) if inputs.held_out else None,
    )
    if spread_within_classes(*pixels) or (pixels[1].labels < 0).any():
        return pixels, []
    return pixels, [
        "spread: it is over the whole set and not within classes; for that give labels of all images, and two samples "
        "and held-out images or more of each class"
    ]


def _kid_images(sets: dict[str, Statistics]) -> int:
    return subset_size(*(statistics.features for statistics in sets.values()))


def _generator_part(
    config: EvaluateConfig,
    inputs: EvaluationInputs,
    sets: dict[str, Statistics],
    settings: dict[str, Any],
    pixels: PixelSets | None,
) -> Metrics:
    assert inputs.samples
    if sets:
        held_out = sets.get("held_out")
        draws = _draws(config, sets["samples"].labels, held_out.count if held_out else 0)
        metrics = _feature_metrics(config, inputs, sets, settings, draws)
    else:
        assert pixels
        draws = _draws(config, pixels[1].labels, len(pixels[2].labels) if pixels[2] else 0)
        metrics = {}
    if pixels:
        metrics |= pixel_metrics(*pixels, draws, config.seed)
    if inputs.train:
        metrics |= novelty_metrics(inputs.samples, inputs.held_out, inputs.train)
    return metrics


def _draws(config: EvaluateConfig, labels: np.ndarray, held_out: int) -> list[np.ndarray]:
    """Rows of the samples, as many per draw as there are held-out images; no draw where there are none."""
    if not held_out:
        return []
    same_count = held_out == len(labels)  # then every draw is all the samples, and one is enough
    num_draws = min(config.draws, 1) if same_count else config.draws
    groups = labels if (labels >= 0).all() else np.zeros_like(labels)
    return balanced_draws(groups, held_out, num_draws, config.seed)


def _feature_metrics(
    config: EvaluateConfig,
    inputs: EvaluationInputs,
    sets: dict[str, Statistics],
    settings: dict[str, Any],
    draws: list[np.ndarray],
) -> Metrics:
    """What the features of the samples say."""
    samples, held_out, distances = sets["samples"], sets.get("held_out"), settings["manifold_distances"]
    metrics = sample_metrics(sets["reference"], samples, distances)
    if held_out:
        metrics |= held_out_metrics(sets["reference"], held_out, samples, draws, distances)
    if settings["kid_images"] > 1:
        metrics |= kernel_metrics(sets["reference"], samples, held_out, settings["kid_images"], config.seed)
    if 0 < samples.num_logits == len(inputs.classes):
        if (samples.labels >= 0).all():
            metrics["class_accuracy"] = accuracy(samples)
            metrics["class_accuracy_by_class"] = accuracy_by_class(samples, inputs.classes)
        if held_out:
            metrics["classifier_accuracy_on_real"] = accuracy(held_out)
    return metrics


def warnings_of(sets: dict[str, Statistics]) -> list[str]:
    """A sentence for each set that is too small for a covariance of full rank, and one for samples sorted by class."""
    warnings = [
        f"{name}: {statistics.count} images for {len(statistics.pool.mean)} features do not give a covariance of full "
        "rank, which makes the Fréchet distance too high; give more images than features"
        for name, statistics in sets.items()
        if 0 < statistics.count <= len(statistics.pool.mean)
    ]
    labels = sets["samples"].labels if "samples" in sets else np.zeros(1)
    scored = "samples" in sets and sets["samples"].num_logits > 0
    if scored and len(labels) > SPLIT_IMAGES and labels[0] < labels[-1] and (np.diff(labels) >= 0).all():
        warnings.append(
            f"samples: they are sorted by class, and the inception score splits them in order into runs of "
            f"{SPLIT_IMAGES}, which makes it far too low; shuffle them"
        )
    return warnings


def stage_seconds(outs: tuple[str, ...]) -> dict[str, float]:
    """Seconds per job, from the records beside these outputs. Outputs of the same job are added up.

    Raises ValueError when an output has no finished record.
    """
    seconds: dict[str, float] = {}
    for out in outs:
        record = read_record(out)
        if record is None or not record.finished:
            raise ValueError(
                f"timed output {out!r} has no finished record; run its job first, or remove it from `timed`"
            )
        seconds[record.job] = seconds.get(record.job, 0.0) + record.seconds
    return seconds
