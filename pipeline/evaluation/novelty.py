"""How near samples are to training images in pixels, which tells new images from copies.

Images are compared as thumbnails: box means of at most 32 x 32 pixels, rounded to integer grey levels. Products and
sums of such integers are exact in float64. So distances do not depend on blocks, and equal images have distance zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.evaluation.boxes import box_means

_SIDE = 32
_BLOCK = 4096  # rows of the distance matrix in memory at once


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) uint8 to thumbnails (n, d) uint8, where d is at most 32 * 32 * C."""
    return box_means(pixels, _SIDE).round().astype(np.uint8).reshape(len(pixels), -1)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest references of each of q queries, nearest first."""

    indices: np.ndarray
    """Positions of the references, (q, k) int64."""
    squared: np.ndarray
    """Squared distances, (q, k) float64."""


def nearest(queries: np.ndarray, references: np.ndarray, k: int) -> Neighbours:
    """Euclidean nearest neighbours of queries (q, d) uint8 among references (r, d) uint8.

    References at the same distance keep their order. Raises ValueError when there are fewer than k references.
    """
    if len(references) < k:
        raise ValueError(f"{len(references)} references are fewer than the {k} nearest asked for; give more images")
    indices, squared = [], []
    for start in range(0, len(queries), _BLOCK):
        rows = _squared(queries[start : start + _BLOCK], references)
        order = np.argsort(rows, axis=1, kind="stable")[:, :k]
        indices.append(order)
        squared.append(np.take_along_axis(rows, order, axis=1))
    return Neighbours(np.concatenate(indices), np.concatenate(squared))


def nearest_distance(queries: np.ndarray, references: Iterable[np.ndarray]) -> np.ndarray:
    """Distance of each query to the nearest of all references: (q,) float64, in grey levels.

    It is the root mean square over an image's values. queries: (q, d) uint8. references: parts, each (r, d) uint8.
    """
    least = np.full(len(queries), np.inf)
    for part in references:
        for start in range(0, len(queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            least[rows] = np.minimum(least[rows], _squared(queries[rows], part).min(axis=1))
    return np.sqrt(least / queries.shape[1])


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between integer vectors, exact in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a**2).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b**2).sum(axis=1)
