"""The numbers of metrics.json, from opened inputs; `protocol` says what each of them means."""

import numpy as np

from rdpm.models.losses import PerceptualLoss
from rdpm.pipeline.evaluation.distribution import frechet_distance, moments
from rdpm.pipeline.evaluation.feature_statistics import RunningStatistics, Statistics
from rdpm.pipeline.evaluation.features import Extractor
from rdpm.pipeline.evaluation.fidelity import (
    RunningFidelity,
    code_counts,
    lpips,
    perplexity,
    reconstruct,
)
from rdpm.pipeline.evaluation.image_sets import Chunk, ImageSet, watched
from rdpm.pipeline.evaluation.manifold import Precision, precision_recall
from rdpm.pipeline.evaluation.novelty import nearest_distance, thumbnails
from rdpm.pipeline.evaluation.protocol import NEIGHBOURS, Metrics
from rdpm.pipeline.inference.codec import Codec


def tokenizer_metrics(
    codec: Codec,
    extractor: Extractor,
    held_out: ImageSet,
    originals: Statistics,
    perceptual: PerceptualLoss | None,
    *,
    seed: int,
    threads: int,
) -> Metrics:
    """How far held-out images come back, chunk by chunk, and how their codes use the codebook.

    originals: statistics of the same images.
    """
    fidelity, distances = RunningFidelity(threads), []
    back_statistics = RunningStatistics(extractor, originals.count, 0)
    shape = codec.tokenizer.config
    counts = np.zeros((shape.schedule.num_steps, shape.quantizer.codebook_size), np.int64)
    done = 0
    for chunk in watched(held_out, "reconstructions"):
        made = reconstruct(codec, chunk.pixels, seed, done)
        back = made.pixels
        fidelity.add(chunk.pixels, back)
        back_statistics.add(Chunk(back, chunk.labels))
        counts += code_counts(made.codes, shape.quantizer.codebook_size)
        if perceptual is not None:
            distances.append(lpips(perceptual, chunk.pixels, back, codec.batch) * len(back))
        done += len(back)
    return {
        **fidelity.figures(),
        **({"lpips": sum(distances) / done} if distances else {}),
        "rfid": frechet_distance(originals.pool, back_statistics.statistics().pool),
        "codebook_usage": float((counts.sum(axis=0) > 0).mean()),
        "perplexity_by_step": perplexity(counts).tolist(),
    }


def sample_metrics(reference: Statistics, samples: Statistics, distances: Precision) -> Metrics:
    """All samples against the reference, as ADM's evaluator has it. distances: the rounding of precision and recall."""
    found = _compared(reference, samples, distances, "")
    if len(reference.features):
        exact = precision_recall(reference.features, samples.features, NEIGHBOURS, "float32")
        found |= {"precision_float32": exact.precision, "recall_float32": exact.recall}
    return found


def held_out_metrics(
    reference: Statistics, held_out: Statistics, samples: Statistics, draws: list[np.ndarray], distances: Precision
) -> Metrics:
    """The held-out images in the samples' place, and draws of as many samples beside them."""
    found = _compared(reference, held_out, distances, "_real")
    if draws:
        parts = [samples.features[rows] for rows in draws]
        matched = [frechet_distance(reference.pool, moments([part])) for part in parts]
        found |= {
            "frechet_distance_matched": float(np.mean(matched)),
            "frechet_distance_deviation": float(np.std(matched)),
            "frechet_ratio": float(np.mean(matched)) / found["frechet_distance_real"],
        }
        if len(reference.features):
            shares = [precision_recall(reference.features, part, NEIGHBOURS, distances) for part in parts]
            found["precision_matched"] = float(np.mean([share.precision for share in shares]))
            found["recall_matched"] = float(np.mean([share.recall for share in shares]))
    return found


def _compared(reference: Statistics, other: Statistics, distances: Precision, suffix: str) -> Metrics:
    found: Metrics = {f"frechet_distance{suffix}": frechet_distance(reference.pool, other.pool)}
    if reference.spatial and other.spatial:
        found[f"spatial_frechet_distance{suffix}"] = frechet_distance(reference.spatial, other.spatial)
    found[f"inception_score{suffix}"] = other.score
    if len(reference.features):
        share = precision_recall(reference.features, other.features, NEIGHBOURS, distances)
        found |= {f"precision{suffix}": share.precision, f"recall{suffix}": share.recall}
    return found


def accuracy(statistics: Statistics) -> float:
    """Share of images whose highest logit is that of their label."""
    return float((statistics.predicted == statistics.labels).mean())


def novelty_metrics(samples: ImageSet, held_out: ImageSet | None, train: ImageSet) -> Metrics:
    """Distances to the nearest training image, and the share of copies.

    A sample counts as a copy when it is nearer than 99% of the held-out images, so copies need these.
    """
    fake = _thumbnails(samples)
    real = _thumbnails(held_out) if held_out else fake[:0]
    parts = (thumbnails(chunk.pixels) for chunk in watched(train, "nearest training images"))
    distances = nearest_distance(np.concatenate([fake, real]), parts)
    fake_distances, real_distances = np.split(distances, [len(fake)])
    found = {
        "nearest_train_distance": float(np.median(fake_distances)),
        "nearest_train_distance_p01": float(np.percentile(fake_distances, 1)),
    }
    if held_out:
        threshold = float(np.percentile(real_distances, 1))
        found |= {
            "nearest_train_distance_real": float(np.median(real_distances)),
            "nearest_train_distance_real_p01": threshold,
            "copies": float((fake_distances < threshold).mean()),
        }
    return found


def _thumbnails(images: ImageSet) -> np.ndarray:
    return np.concatenate([thumbnails(chunk.pixels) for chunk in images.chunks()])
