"""What the metrics need to know of a set of images in one feature space, taken in one pass, and its file.

The file is an .npz with ADM's names (mu, sigma, mu_s, sigma_s) and a few of ours; a reference in ADM's own file is read
by the same function.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdpm.pipeline.evaluation.distribution import Moments, RunningMoments, RunningScore
from rdpm.pipeline.evaluation.features import Extractor, InceptionExtractor
from rdpm.pipeline.evaluation.image_sets import ArchiveImages, Chunk, FolderImages, ImageSet, open_archive, watched
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.listing import list_images
from rdpm.storage_schemas.canonical import digest_of

PROTOCOL_VERSION = 1  # of how images become statistics; raised when the same images would give others
INCEPTION_FEATURES = 2048
SPLIT_IMAGES = 5000  # images in a split of the inception score


@dataclass(frozen=True)
class Statistics:
    """count: images the moments are over, 0 where a foreign file does not say. score: inception score.

    pool, spatial: moments of the features; spatial is None where the extractor has no maps. features: (m, f) float32
    of the images whose manifold counts. labels, predicted: (count,) int64, the
    latter the highest of `num_logits` logits.
    """

    count: int
    pool: Moments
    spatial: Moments | None
    features: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    num_logits: int
    score: float


class RunningStatistics:
    """Statistics of features that come in parts. keep: how many images' features are kept, spread over `total`."""

    def __init__(self, extractor: Extractor, total: int, keep: int) -> None:
        self._extractor, self._total, self._keep = extractor, total, min(keep, total)
        self._pool, self._spatial, self._score = RunningMoments(), RunningMoments(), RunningScore(SPLIT_IMAGES)
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._num_logits = 0

    def add(self, chunk: Chunk) -> None:
        """Take the next images."""
        found = self._extractor.extract(chunk.pixels)
        places = self._pool.count + np.arange(len(chunk.labels) + 1)
        turns = places * self._keep // self._total
        self._features.append(found.features[turns[1:] > turns[:-1]])
        self._pool.add(found.features)
        if found.spatial is not None:
            self._spatial.add(found.spatial)
        self._score.add(found.logits)
        self._labels.append(chunk.labels)
        self._predicted.append(found.logits.argmax(axis=1))
        self._num_logits = found.logits.shape[1]

    def statistics(self) -> Statistics:
        """What was taken so far. Raises ValueError for fewer than two images."""
        return Statistics(
            self._pool.count,
            self._pool.moments(),
            self._spatial.moments() if self._spatial.count else None,
            np.concatenate(self._features),
            np.concatenate(self._labels),
            np.concatenate(self._predicted),
            self._num_logits,
            self._score.score(),
        )


def describe(images: ImageSet, extractor: Extractor, keep: int, title: str) -> Statistics:
    """One pass over the images. Raises ValueError for fewer than two images."""
    running = RunningStatistics(extractor, len(images), keep)
    for chunk in watched(images, f"features of {title}"):
        running.add(chunk)
    return running.statistics()


def describe_once(images: ImageSet, extractor: Extractor, keep: int, title: str, folder: str) -> Statistics:
    """Statistics of real images, from `folder` when they were kept there.

    The file's name carries the digest of all that they were made from, so those of anything else are not found.
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
        say(f"evaluate: features of {title} are summed up in {path}")
        return load_statistics(path, extractor)
    found = describe(images, extractor, keep, title)
    save_statistics(path, found, extractor)
    return found


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
    """Ours or ADM's file. Raises ValueError when it is of another extractor or lacks what it should hold."""
    arrays = _arrays(path)
    named = str(arrays["extractor"]) if "extractor" in arrays else None
    if named != extractor.digest and (named or extractor.name != InceptionExtractor.name):
        of = f"extractor {named[:12]}" if named else "ADM's Inception"
        raise ValueError(
            f"{path!r} holds statistics of {of}, not of {extractor.name} {extractor.digest[:12]}; give the reference's "
            "images, or the extractor it was made with"
        )
    pool, spatial = _moments(arrays, "mu", "sigma", path), _moments(arrays, "mu_s", "sigma_s", path)
    if pool is None:
        raise ValueError(f"{path!r} has neither mu and sigma nor arr_0; give ADM's reference, or images")
    if not named and len(pool.mean) != INCEPTION_FEATURES:
        raise ValueError(f"{path!r} holds statistics of {len(pool.mean)} features; Inception has {INCEPTION_FEATURES}")
    nothing = np.zeros(0, np.int64)
    return Statistics(
        int(arrays.get("count", 0)),
        pool,
        spatial,
        arrays.get("features", np.zeros((0, len(pool.mean)), np.float32)),
        arrays.get("labels", nothing),
        arrays.get("predicted", nothing),
        int(arrays.get("num_logits", 0)),
        float(arrays.get("score", np.nan)),
    )


def _arrays(path: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz but images and labels."""
    found = {}
    with open_archive(path) as archive:
        for name in archive.namelist():
            if name not in ("arr_0.npy", "arr_1.npy"):
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _moments(arrays: dict[str, np.ndarray], mean: str, covariance: str, path: str) -> Moments | None:
    if mean not in arrays or covariance not in arrays:
        return None
    found = Moments(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
    size = found.mean.shape[0] if found.mean.ndim == 1 else 0
    if found.covariance.shape != (size, size):
        shapes = f"{found.mean.shape} and {found.covariance.shape}"
        raise ValueError(f"{mean} and {covariance} of {path!r} have shapes {shapes}, not (f,) and (f, f)")
    return found


def reference_digest(url: str) -> str:
    """What a reference is known by: a file's sha256, or the digest of a folder's listing."""
    return files.digest_file(url).sha256 if url.endswith(".npz") and files.exists(url) else list_images(url).digest


def open_reference(url: str, extractor: Extractor, like: ImageSet, keep: int, threads: int, folder: str) -> Statistics:
    """ADM's .npz (statistics with images for the manifold, or images alone), ours, or a folder of images.

    A folder's images are cropped to the size of those they are `like`. keep: images whose features make the manifold.
    folder: where statistics are kept. Raises ValueError for a reference of another extractor, a damaged one, or none.
    """
    title = "the reference"
    if not url.endswith(".npz"):
        return describe_once(FolderImages(url, like.size, like.channels, threads), extractor, keep, title, folder)
    with open_archive(url) as archive:
        names = archive.namelist()
    whole = load_statistics(url, extractor) if "mu.npy" in names else None
    if whole and "arr_0.npy" not in names:
        return whole
    images = describe_once(ArchiveImages(url, like.channels), extractor, keep, title, folder)
    # As the evaluator has it, images beside statistics count for the manifold alone.
    return dataclasses.replace(whole, features=images.features) if whole else images
