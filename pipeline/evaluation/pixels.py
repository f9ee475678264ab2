"""Metrics of plain pixels: how varied samples are, and how far their pixels are from real ones.

No trained feature is involved, so there is nothing that a generator could please. An image is its means over at most
8 x 8 boxes, in grey levels of 0 to 255. They are divided by the root of their number, so that a squared distance is
a mean over boxes, and grey gives the same numbers as three equal channels.

The reference is streamed and leaves only sums. Of the samples and the held-out images the box means stay in memory.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdpm.pipeline.evaluation.boxes import box_means
from rdpm.pipeline.evaluation.distribution import Moments, RunningMoments, frechet_distances, moments
from rdpm.pipeline.evaluation.image_sets import ImageSet, open_archive, watched
from rdpm.pipeline.evaluation.protocol import Metrics
from rdpm.pipeline.evaluation.spread import (
    ClassSums,
    RunningHalves,
    interval,
    resamples,
    spread,
    within_classes,
)
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.storage_schemas.canonical import digest_of

PIXELS_VERSION = 1  # of how a reference becomes sums; raised when the same images would give different ones
BOXES = 8  # per side, at most
REPLICATES = 200  # of the bootstrap
_SUMS = ("labels", "counts", "sums", "products")


@dataclass(frozen=True)
class PixelSet:
    """A set of images in little."""

    rows: np.ndarray
    """Box means, (n, f) float32."""
    labels: np.ndarray
    """(n,) int64; -1 where a label is unknown."""


@dataclass(frozen=True)
class PixelReference:
    """What is known of the reference."""

    moments: Moments
    """Moments of the box means."""
    halves: tuple[ClassSums, ClassSums]
    """Sums by class, of either half of the images."""


def pixel_rows(pixels: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) uint8 to box means (n, f) float32, whose squared distances are means over the f boxes."""
    rows = box_means(pixels, BOXES).reshape(len(pixels), -1)
    return (rows / math.sqrt(rows.shape[1])).astype(np.float32)


def take_pixels(images: ImageSet) -> PixelSet:
    """The box means of all images of a set."""
    parts = [(pixel_rows(chunk.pixels), chunk.labels) for chunk in images.chunks()]
    rows, labels = zip(*parts, strict=True)
    return PixelSet(np.concatenate(rows), np.concatenate(labels))


def load_or_take_reference(images: ImageSet, folder: str) -> PixelReference:
    """Sums over a reference: from their file in `folder`, or else from one pass, which writes the file.

    The file's name holds a digest of everything that the sums depend on; of a folder's images that is their listing
    with their sizes. Raises ValueError for fewer than two images of one class.
    """
    made_from = {"version": PIXELS_VERSION, "images": images.digest, "shape": [images.size, images.channels]}
    path = files.join(folder, f"pixels-{digest_of(made_from)[:16]}.npz")
    if files.exists(path):
        say(f"evaluate: pixels of the reference are read from {path}")
        return _load(path)
    running, halves = RunningMoments(), RunningHalves()
    for chunk in watched(images, "pixels of the reference"):
        rows = pixel_rows(chunk.pixels)
        running.add(rows)
        halves.add(rows, chunk.labels)
    reference = PixelReference(running.moments(), halves.halves())
    arrays: dict[str, Any] = {"mu": reference.moments.mean, "sigma": reference.moments.covariance}
    for number, half in enumerate(reference.halves):
        arrays |= {f"{name}_{number}": getattr(half, name) for name in _SUMS}
    with files.atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return reference


def _load(path: str) -> PixelReference:
    with open_archive(path) as archive:
        arrays = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    first, second = (ClassSums(*(arrays[f"{name}_{number}"] for name in _SUMS)) for number in (0, 1))
    return PixelReference(Moments(arrays["mu"], arrays["sigma"]), (first, second))


def spread_within_classes(reference: PixelReference, samples: PixelSet, held_out: PixelSet | None) -> bool:
    """Whether all sets have the labels, and enough images per class, for a spread within classes."""
    return within_classes(reference.halves, *(each.labels for each in (samples, held_out) if each))


def pixel_metrics(
    reference: PixelReference, samples: PixelSet, held_out: PixelSet | None, draws: list[np.ndarray], seed: int
) -> Metrics:
    """Spread and Fréchet distance of the samples and, where there are any, of held-out images (`_real`).

    draws: rows of the samples, as many per draw as there are held-out images. seed: of the bootstrap. Intervals are
    those of drawing other samples; reference and held-out images are fixed.
    """
    halves = reference.halves
    if not spread_within_classes(reference, samples, held_out):
        halves = halves[0].as_one_class(), halves[1].as_one_class()
        samples = dataclasses.replace(samples, labels=np.zeros_like(samples.labels))
        held_out = held_out and dataclasses.replace(held_out, labels=np.zeros_like(held_out.labels))
    counts = resamples(samples.labels, REPLICATES, seed)
    value, resampled = (spread(halves, samples.rows, samples.labels, each) for each in (None, counts))
    real = spread(halves, held_out.rows, held_out.labels) if held_out else None
    metrics: Metrics = {}
    for name, field in (("spread", "total"), ("spread_8", "first"), ("spread_32", "more")):
        metrics[name] = float(getattr(value, field))
        metrics[f"{name}_interval"] = interval(getattr(resampled, field))
        if real:
            metrics[f"{name}_real"] = float(getattr(real, field))
    return metrics | _distances(reference, samples, held_out, draws, counts)


def _distances(
    reference: PixelReference,
    samples: PixelSet,
    held_out: PixelSet | None,
    draws: list[np.ndarray],
    counts: np.ndarray,
) -> Metrics:
    sets = [moments([samples.rows]), *(_resampled(samples.rows, row) for row in counts)]
    distance, *resampled = frechet_distances(reference.moments, sets)
    # The distance of a resample is too large, because it holds images twice. Only its deviation from the mean counts.
    deviations = np.array(interval(np.array(resampled) - np.mean(resampled)))
    metrics: Metrics = {
        "pixel_frechet_distance": distance,
        "pixel_frechet_distance_interval": (distance + deviations).tolist(),
    }
    if held_out:
        real = frechet_distances(reference.moments, [moments([held_out.rows])])[0]
        metrics["pixel_frechet_distance_real"] = real
        if draws:
            matched = frechet_distances(reference.moments, [moments([samples.rows[rows]]) for rows in draws])
            ratio = float(np.mean(matched)) / real
            metrics |= {
                "pixel_frechet_distance_matched": float(np.mean(matched)),
                "pixel_frechet_distance_deviation": float(np.std(matched)),
                "pixel_frechet_ratio": ratio,
                "pixel_frechet_ratio_interval": (ratio + deviations / real).tolist(),
            }
    return metrics


def _resampled(rows: np.ndarray, counts: np.ndarray) -> Moments:
    """Moments of a set that holds each row as often as `counts` (n,) says."""
    values = rows.astype(np.float64)
    mean = counts @ values / counts.sum()
    values -= mean
    return Moments(mean, (values * counts[:, None]).T @ values / (counts.sum() - 1))
