"""The metrics in metrics.json, computed from opened inputs. `protocol` says what each of them means."""

from collections.abc import Sequence

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
from rdpm.pipeline.evaluation.kernel import kernel_distance
from rdpm.pipeline.evaluation.manifold import DistanceType, precision_recall
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
    """How well held-out images are reconstructed, chunk by chunk, and how their codes use the codebook.

    originals: statistics of the same images. perceptual: None to leave out LPIPS. seed: of the noise that encoding
    mixes in. threads: how many pairs are measured at the same time.
    """
    fidelity, perceptual_sums = RunningFidelity(threads), []
    reconstructed = RunningStatistics(extractor, originals.count, 0)
    config = codec.tokenizer.config
    counts = np.zeros((config.schedule.num_steps, config.quantizer.codebook_size), np.int64)
    done = 0
    for chunk in watched(held_out, "reconstructions"):
        reconstruction = reconstruct(codec, chunk.pixels, seed, done)
        fidelity.add(chunk.pixels, reconstruction.pixels)
        reconstructed.add(Chunk(reconstruction.pixels, chunk.labels))
        counts += code_counts(reconstruction.codes, config.quantizer.codebook_size)
        if perceptual is not None:
            mean = lpips(perceptual, chunk.pixels, reconstruction.pixels, codec.batch)
            perceptual_sums.append(mean * len(chunk.labels))
        done += len(chunk.labels)
    return {
        **fidelity.metrics(),
        **({"lpips": sum(perceptual_sums) / done} if perceptual_sums else {}),
        "rfid": frechet_distance(originals.pool, reconstructed.statistics().pool),
        "codebook_usage": float((counts.sum(axis=0) > 0).mean()),
        "perplexity_by_step": perplexity(counts).tolist(),
    }


def sample_metrics(reference: Statistics, samples: Statistics, distances: DistanceType) -> Metrics:
    """All samples compared with the reference, as in ADM's evaluator.

    distances: what precision and recall round distances to; float32 is reported in any case.
    """
    metrics = _compared(reference, samples, distances, "")
    if len(reference.features):
        exact = precision_recall(reference.features, samples.features, NEIGHBOURS, "float32")
        metrics |= {"precision_float32": exact.precision, "recall_float32": exact.recall}
    return metrics


def held_out_metrics(
    reference: Statistics, held_out: Statistics, samples: Statistics, draws: list[np.ndarray], distances: DistanceType
) -> Metrics:
    """The held-out images compared with the reference, and random draws of equally many samples.

    draws: rows of the samples, one array per draw; empty to leave out the draws.
    """
    metrics = _compared(reference, held_out, distances, "_real")
    if draws:
        parts = [samples.features[rows] for rows in draws]
        matched = [frechet_distance(reference.pool, moments([part])) for part in parts]
        metrics |= {
            "frechet_distance_matched": float(np.mean(matched)),
            "frechet_distance_deviation": float(np.std(matched)),
            "frechet_ratio": float(np.mean(matched)) / metrics["frechet_distance_real"],
        }
        if len(reference.features):
            shares = [precision_recall(reference.features, part, NEIGHBOURS, distances) for part in parts]
            metrics["precision_matched"] = float(np.mean([share.precision for share in shares]))
            metrics["recall_matched"] = float(np.mean([share.recall for share in shares]))
    return metrics


def _compared(reference: Statistics, other: Statistics, distances: DistanceType, suffix: str) -> Metrics:
    """Metrics of a set compared with the reference. suffix: ends their names."""
    metrics: Metrics = {f"frechet_distance{suffix}": frechet_distance(reference.pool, other.pool)}
    if reference.spatial and other.spatial:
        metrics[f"spatial_frechet_distance{suffix}"] = frechet_distance(reference.spatial, other.spatial)
    if other.num_logits:
        metrics[f"inception_score{suffix}"] = other.score
    if len(reference.features):
        shares = precision_recall(reference.features, other.features, NEIGHBOURS, distances)
        metrics |= {f"precision{suffix}": shares.precision, f"recall{suffix}": shares.recall}
    return metrics


def kernel_metrics(
    reference: Statistics, samples: Statistics, held_out: Statistics | None, images: int, seed: int
) -> Metrics:
    """Kernel distance to the reference. images: per subset. seed: of the subsets."""
    metrics: Metrics = {}
    for suffix, other in (("", samples), ("_real", held_out)):
        if other:
            distance = kernel_distance(reference.features, other.features, images, seed)
            metrics |= {f"kid{suffix}": distance.mean, f"kid_deviation{suffix}": distance.deviation}
    return metrics


def accuracy(statistics: Statistics) -> float:
    """Share of images whose highest logit is that of their label."""
    return float((statistics.predicted == statistics.labels).mean())


def accuracy_by_class(statistics: Statistics, classes: Sequence[str]) -> dict[str, float]:
    """The same of the images of each class, by its name; a class without images is left out."""
    right = statistics.predicted == statistics.labels
    return {
        name: float(right[own].mean())
        for label, name in enumerate(classes)
        if (own := statistics.labels == label).any()
    }


def novelty_metrics(samples: ImageSet, held_out: ImageSet | None, train: ImageSet) -> Metrics:
    """Distances from samples to their nearest training images, and the share of copies.

    A sample counts as a copy when it is nearer to a training image than 99% of the held-out images are. So without
    held-out images there is no share of copies.
    """
    fake = _thumbnails(samples)
    real = _thumbnails(held_out) if held_out else fake[:0]
    parts = (thumbnails(chunk.pixels) for chunk in watched(train, "nearest training images"))
    distances = nearest_distance(np.concatenate([fake, real]), parts)
    fake_distances, real_distances = np.split(distances, [len(fake)])
    metrics = {
        "nearest_train_distance": float(np.median(fake_distances)),
        "nearest_train_distance_p01": float(np.percentile(fake_distances, 1)),
    }
    if held_out:
        threshold = float(np.percentile(real_distances, 1))
        metrics |= {
            "nearest_train_distance_real": float(np.median(real_distances)),
            "nearest_train_distance_real_p01": threshold,
            "copies": float((fake_distances < threshold).mean()),
        }
    return metrics


def _thumbnails(images: ImageSet) -> np.ndarray:
    return np.concatenate([thumbnails(chunk.pixels) for chunk in images.chunks()])
