"""The evaluation stage: samples, real images and a tokenizer, as far as they are given, to one tree of metrics.

All samples are measured against the reference as ADM's evaluator does. Fréchet distance, precision and recall depend on
how many images go in, so where there are held-out images too, random draws of as many samples stand beside them: what a
perfect generator would get.
"""

import time

import numpy as np
import torch

from rdpm.models.losses import PerceptualLoss
from rdpm.pipeline.evaluation.distribution import balanced_draws
from rdpm.pipeline.evaluation.feature_statistics import (
    SPLIT_IMAGES,
    Statistics,
    describe,
    describe_once,
    open_reference,
    reference_digest,
)
from rdpm.pipeline.evaluation.inputs import EvaluateConfig, Inputs, open_inputs
from rdpm.pipeline.evaluation.manifold import Precision, float16_holds
from rdpm.pipeline.evaluation.metrics import (
    accuracy,
    held_out_metrics,
    novelty_metrics,
    sample_metrics,
    tokenizer_metrics,
)
from rdpm.pipeline.evaluation.protocol import Metrics, protocol
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.codec import Codec


def evaluate(config: EvaluateConfig) -> Metrics:
    """All metrics as {"tokenizer": ..., "generator": ..., "seconds": ..., "protocol": ...}, the first two as asked for.

    Images are streamed. Kept are the features of the samples and of the images that make manifolds, thumbnails, and,
    for the classifier's training, the training images. Raises ValueError when an input is missing, inputs do not belong
    together, or there are too few samples for a draw.
    """
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    times = stage_seconds(config.timed)
    inputs = open_inputs(config)
    say(f"evaluate: features of {inputs.extractor.name} {inputs.extractor.digest[:12]}")
    sets = describe_sets(config, inputs)
    facts = inputs.facts()
    if "reference" in sets:
        facts["reference"] = {"digest": reference_digest(config.reference or config.train_images)}
    for name, found in sets.items():
        facts[name] |= {"images": found.count, "manifold": len(found.features)}
    warnings = warnings_of(sets)
    for warning in warnings:
        say(f"evaluate: {warning}")
    distances = rounding_of_distances(sets)
    parts = {}
    if inputs.tokenizer and inputs.held_out:
        parts["tokenizer"] = _tokenizer_part(config, inputs, sets["held_out"])
    if inputs.samples:
        parts["generator"] = _generator_part(config, inputs, sets, distances)
    settings = {"seed": config.seed, "draws": config.draws, "manifold_distances": distances, "warnings": warnings}
    seconds = times | {"evaluate": time.monotonic() - started}
    return {**parts, "seconds": seconds, "protocol": protocol(parts, facts, settings)}


def describe_sets(config: EvaluateConfig, inputs: Inputs) -> dict[str, Statistics]:
    """Statistics of "held_out", "reference" and "samples", as far as they are given; real ones from their files."""
    extractor, held_out, samples = inputs.extractor, inputs.held_out, inputs.samples
    folder, sets = files.join(inputs.folder, "statistics"), {}
    if held_out:
        sets["held_out"] = describe_once(held_out, extractor, len(held_out), "the held-out images", folder)
    if samples:
        sets["reference"] = open_reference(
            config.reference or config.train_images,
            extractor,
            samples,
            config.manifold_images,
            config.threads,
            folder,
        )
        sets["samples"] = describe(samples, extractor, len(samples), "the samples")
    return sets


def rounding_of_distances(sets: dict[str, Statistics]) -> Precision:
    """float16, as ADM's evaluator has it, unless a distance could leave its range."""
    return (
        "float16" if float16_holds(*(found.features for found in sets.values() if len(found.features))) else "float32"
    )


def _tokenizer_part(config: EvaluateConfig, inputs: Inputs, originals: Statistics) -> Metrics:
    assert inputs.tokenizer
    assert inputs.held_out
    device = inputs.extractor.device
    perceptual = None if config.perceptual == "none" else PerceptualLoss(config.perceptual).to(device)
    found = tokenizer_metrics(
        Codec(inputs.tokenizer, config.batch, torch.device(device)),
        inputs.extractor,
        inputs.held_out,
        originals,
        perceptual,
        seed=config.seed,
        threads=config.threads,
    )
    say(_line("tokenizer", found))
    return found


def _generator_part(
    config: EvaluateConfig, inputs: Inputs, sets: dict[str, Statistics], distances: Precision
) -> Metrics:
    assert inputs.samples
    samples, held_out = sets["samples"], sets.get("held_out")
    found = sample_metrics(sets["reference"], samples, distances)
    labelled = bool((samples.labels >= 0).all())
    if held_out:
        turns = min(config.draws, 1) if held_out.count == samples.count else config.draws  # all draws are all samples
        draws = balanced_draws(samples.labels, held_out.count, turns, config.seed) if labelled else []
        found |= held_out_metrics(sets["reference"], held_out, samples, draws, distances)
    if samples.num_logits == len(inputs.classes):
        if labelled:
            found["class_accuracy"] = accuracy(samples)
        if held_out:
            found["classifier_accuracy_on_real"] = accuracy(held_out)
    say(_line("generator", found))
    if inputs.train:
        novelty = novelty_metrics(inputs.samples, inputs.held_out, inputs.train)
        say(_line("novelty", novelty))
        found |= novelty
    return found


def warnings_of(sets: dict[str, Statistics]) -> list[str]:
    """A sentence for each set with too few images for a covariance of full rank, and for samples in a bad order."""
    warnings = [
        f"{name}: {found.count} images are not more than the {len(found.pool.mean)} features, so the covariance is not "
        "of full rank, and the Fréchet distance comes out too high for so few; give more"
        for name, found in sets.items()
        if 0 < found.count <= len(found.pool.mean)
    ]
    labels = sets["samples"].labels if "samples" in sets else np.zeros(1)
    if len(labels) > SPLIT_IMAGES and labels[0] < labels[-1] and (np.diff(labels) >= 0).all():
        warnings.append(
            f"samples: they come class by class, and the inception score takes splits of {SPLIT_IMAGES} in order; it "
            "comes out far too low, so shuffle them"
        )
    return warnings


def stage_seconds(outs: tuple[str, ...]) -> dict[str, float]:
    """Seconds by job from the records beside these outputs; outputs of one job are added up.

    Raises ValueError when an output has no finished record.
    """
    seconds: dict[str, float] = {}
    for out in outs:
        record = read_record(out)
        if record is None or not record.finished:
            raise ValueError(f"timed output {out!r} has no finished record; run its job first, or take it off `timed`")
        seconds[record.job] = seconds.get(record.job, 0.0) + record.seconds
    return seconds


def _line(title: str, metrics: Metrics) -> str:
    """One progress line: the plain numbers of a part."""
    return f"evaluate: {title}  " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float))
