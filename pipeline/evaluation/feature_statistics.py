"""Statistics of a set of images in one feature space: all that the metrics need, taken in one pass, and their file.

The file is an .npz with ADM's names (mu, sigma, mu_s, sigma_s) and a few of ours. The same function reads ADM's own
reference files.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdpm.pipeline.evaluation.distribution import Moments, RunningMoments, RunningScore
from rdpm.pipeline.evaluation.features import Extractor, InceptionExtractor
from rdpm.pipeline.evaluation.image_sets import (
    Chunk,
    ImageSet,
    is_store,
    open_archive,
    watched,
)
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.stores.reader import open_store
from rdpm.storage_schemas.canonical import digest_of

PROTOCOL_VERSION = 1  # of how images become statistics; raised when the same images would give different ones
INCEPTION_FEATURES = 2048
SPLIT_IMAGES = 5000  # images per split of the inception score


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of images in one feature space."""

    count: int
    """Images that the moments are over; 0 where a file of someone else does not say."""
    pool: Moments
    """Moments of the features."""
    spatial: Moments | None
    """Moments of the spatial features; None where the extractor has no maps."""
    features: np.ndarray
    """(m, f) float32: features of the images that make up the manifold."""
    labels: np.ndarray
    """(count,) int64; -1 where a label is unknown."""
    predicted: np.ndarray
    """(count,) int64: the class of the highest logit; empty without logits."""
    num_logits: int
    """How many logits the extractor has; 0 where it is no classifier."""
    score: float
    """Inception score; NaN without logits."""


class RunningStatistics:
    """Statistics of images that come in parts."""

    def __init__(self, extractor: Extractor, total: int, keep: int) -> None:
        """total: how many images will come. keep: how many of them keep their features, spread evenly."""
        self._extractor, self._total, self._keep = extractor, total, min(keep, total)
        self._pool, self._spatial, self._score = RunningMoments(), RunningMoments(), RunningScore(SPLIT_IMAGES)
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._num_logits = 0

    def add(self, chunk: Chunk) -> None:
        """Add the next images."""
        outputs = self._extractor.extract(chunk.pixels)
        positions = self._pool.count + np.arange(len(chunk.labels) + 1)
        kept_before = positions * self._keep // self._total
        self._features.append(outputs.features[kept_before[1:] > kept_before[:-1]])
        self._pool.add(outputs.features)
        if outputs.spatial is not None:
            self._spatial.add(outputs.spatial)
        self._labels.append(chunk.labels)
        if outputs.logits is not None:
            self._score.add(outputs.logits)
            self._predicted.append(outputs.logits.argmax(axis=1))
            self._num_logits = outputs.logits.shape[1]

    def statistics(self) -> Statistics:
        """Statistics of everything added so far. Raises ValueError for fewer than two images."""
        return Statistics(
            self._pool.count,
            self._pool.moments(),
            self._spatial.moments() if self._spatial.count else None,
            np.concatenate(self._features),
            np.concatenate(self._labels),
            np.concatenate(self._predicted) if self._num_logits else np.zeros(0, np.int64),
            self._num_logits,
            self._score.score() if self._num_logits else np.nan,
        )


def take_statistics(images: ImageSet, extractor: Extractor, keep: int, title: str) -> Statistics:
    """Statistics from one pass over the images. Raises ValueError for fewer than two images."""
    running = RunningStatistics(extractor, len(images), keep)
    for chunk in watched(images, f"features of {title}"):
        running.add(chunk)
    return running.statistics()


def load_or_take_statistics(images: ImageSet, extractor: Extractor, keep: int, title: str, folder: str) -> Statistics:
    """Statistics of real images: from their file in `folder`, or else from one pass, which writes the file.

    The file's name holds a digest of everything that the statistics depend on; of a folder's images that is their
    listing with their sizes.
    """
    made_from = {
        "version": PROTOCOL_VERSION,
        "images": images.digest,
        "shape": [images.size, images.channels],
        "extractor": [extractor.name, extractor.digest],
        "keep": keep,
    }
    path = files.join(folder, f"statistics-{digest_of(made_from)[:16]}.npz")
    if files.exists(path):
        say(f"evaluate: statistics of {title} are read from {path}")
        return load_statistics(path, extractor)
    statistics = take_statistics(images, extractor, keep, title)
    save_statistics(path, statistics, extractor)
    return statistics


def save_statistics(path: str, statistics: Statistics, extractor: Extractor) -> None:
    """Write the file atomically."""
    arrays: dict[str, Any] = {
        "mu": statistics.pool.mean,
        "sigma": statistics.pool.covariance,
        "features": statistics.features,
        "labels": statistics.labels,
        "predicted": statistics.predicted,
        "num_logits": np.array(statistics.num_logits),
        "score": np.array(statistics.score),
        "count": np.array(statistics.count),
        "extractor": np.array(extractor.digest),
    }
    if statistics.spatial:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    with files.atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_statistics(path: str, extractor: Extractor) -> Statistics:
    """Statistics from our file or ADM's. Raises ValueError when it is of another extractor or incomplete."""
    arrays = _arrays(path)
    made_with = str(arrays["extractor"]) if "extractor" in arrays else None
    if made_with != extractor.digest and (made_with or extractor.name != InceptionExtractor.name):
        other = f"extractor {made_with[:12]}" if made_with else "ADM's Inception"
        raise ValueError(
            f"{path!r} holds statistics of {other}, not of {extractor.name} {extractor.digest[:12]}; give the images "
            "of the reference, or the extractor it was made with"
        )
    pool, spatial = _moments(arrays, "mu", "sigma", path), _moments(arrays, "mu_s", "sigma_s", path)
    if pool is None:
        raise ValueError(f"{path!r} has neither mu and sigma nor arr_0; give ADM's reference, or images")
    if not made_with and len(pool.mean) != INCEPTION_FEATURES:
        raise ValueError(
            f"{path!r} holds statistics of {len(pool.mean)} features, but Inception has {INCEPTION_FEATURES}; "
            "give ADM's reference, or images"
        )
    unknown = np.zeros(0, np.int64)
    return Statistics(
        int(arrays.get("count", 0)),
        pool,
        spatial,
        arrays.get("features", np.zeros((0, len(pool.mean)), np.float32)),
        arrays.get("labels", unknown),
        arrays.get("predicted", unknown),
        int(arrays.get("num_logits", 0)),
        float(arrays.get("score", np.nan)),
    )


def _arrays(path: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz except images and their labels."""
    arrays = {}
    with open_archive(path) as archive:
        for name in archive.namelist():
            if name not in ("arr_0.npy", "arr_1.npy"):
                with archive.open(name) as member:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def _moments(arrays: dict[str, np.ndarray], mean: str, covariance: str, path: str) -> Moments | None:
    if mean not in arrays or covariance not in arrays:
        return None
    moments = Moments(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
    size = moments.mean.shape[0] if moments.mean.ndim == 1 else 0
    if moments.covariance.shape != (size, size):
        shapes = f"{moments.mean.shape} and {moments.covariance.shape}"
        raise ValueError(
            f"{mean} and {covariance} of {path!r} have shapes {shapes}, not (f,) and (f, f); give another file"
        )
    return moments


def reference_digest(url: str) -> str:
    """What identifies a reference: the sha256 of a file, a store's identity, or the digest of a folder's listing."""
    if is_store(url):
        return open_store(url).id
    return files.digest_file(url).sha256 if url.endswith(".npz") and files.exists(url) else list_images(url).digest


def open_reference(url: str, images: ImageSet | None, extractor: Extractor, keep: int, folder: str) -> Statistics:
    """Statistics of a reference: ADM's .npz (statistics, images, or both), our statistics file, or a set of images.

    images: those of the reference, None where it has only statistics. keep: how many images make up the manifold.
    folder: where statistics are kept. Raises ValueError when the reference is damaged, or was made with another
    extractor.
    """
    given = None
    if url.endswith(".npz"):
        with open_archive(url) as archive:
            names = archive.namelist()
        if images is None or "mu.npy" in names:
            given = load_statistics(url, extractor)
    if images is None:
        assert given  # only an .npz may have no images
        return given
    taken = load_or_take_statistics(images, extractor, keep, "the reference", folder)
    # ADM's evaluator uses images beside given statistics only for the manifold.
    return dataclasses.replace(given, features=taken.features) if given else taken
