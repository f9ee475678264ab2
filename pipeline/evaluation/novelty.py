"""How near samples come to training images, in pixels: whether they are new or copies.

Images are compared as thumbnails, box means of at most 32 pixels a side rounded to whole grey levels. Of whole numbers
below 2^53 every product and sum in float64 is exact, so a distance is the same in any block and zero for equal images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_SIDE = 32
_BLOCK = 4096  # rows of a distance matrix held at once


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """(n, H, W, C) uint8 to (n, d) uint8, d at most 32 x 32 x C; rows and columns beyond whole boxes are left out."""
    n, height, width, channels = pixels.shape
    box = -(-max(height, width) // _SIDE)
    if box == 1:
        return pixels.reshape(n, -1)
    h, w = height // box, width // box
    boxes = pixels[:, : h * box, : w * box].reshape(n, h, box, w, box, channels)
    return boxes.mean(axis=(2, 4)).round().astype(np.uint8).reshape(n, -1)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest references of each query, nearest first: indices (q, k) int64 and squared distances (q, k)."""

    indices: np.ndarray
    squared: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, k: int) -> Neighbours:
    """Euclidean neighbours of (q, d) uint8 among (r, d) uint8; of equally near ones the first comes first.

    Raises ValueError when there are fewer than k references.
    """
    if len(references) < k:
        raise ValueError(f"{len(references)} references have no {k} nearest; give more images")
    indices, squared = [], []
    for start in range(0, len(queries), _BLOCK):
        rows = _squared(queries[start : start + _BLOCK], references)
        order = np.argsort(rows, axis=1, kind="stable")[:, :k]
        indices.append(order)
        squared.append(np.take_along_axis(rows, order, axis=1))
    return Neighbours(np.concatenate(indices), np.concatenate(squared))


def nearest_distance(queries: np.ndarray, references: Iterable[np.ndarray]) -> np.ndarray:
    """Distance of each query (q, d) uint8 to the nearest of all references, which come in parts (r, d) uint8.

    Root mean square over an image's values, in grey levels: (q,) float64.
    """
    least = np.full(len(queries), np.inf)
    for part in references:
        for start in range(0, len(queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            least[rows] = np.minimum(least[rows], _squared(queries[rows], part).min(axis=1))
    return np.sqrt(least / queries.shape[1])


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) of whole numbers, exact in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a**2).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b**2).sum(axis=1)
