"""Improved precision and recall (Kynkäänniemi et al. 2019) as ADM's evaluator computes them.

The manifold of a set is a union of balls, one around each point. A ball reaches to the k-th nearest neighbour of its
point, not counting the point itself, and a point on its surface is inside. The evaluator computes |u|^2 - 2 u.v + |v|^2
from features rounded to float16, and rounds every term and sum to float16 too. For features with |u|^2 around 600,
distances then come in steps of 0.5, and ties let more points in. Published numbers are computed this way; we report
them beside the same in float32.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

DistanceType = Literal["float16", "float32"]
"""What features and their squared distances are rounded to."""

_BLOCK = 512  # rows of the distance matrix in memory at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, both in [0, 1]."""

    precision: float
    """Share of the fakes inside the manifold of the reals."""
    recall: float
    """Share of the reals inside the manifold of the fakes."""


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, distances: DistanceType = "float16", block: int = _BLOCK
) -> PrecisionRecall:
    """Precision and recall of features (n, f) and (m, f). Raises ValueError for a set of k images or fewer."""
    for points in (real, fake):
        if len(points) <= k:
            raise ValueError(f"{len(points)} images do not have {k} neighbours each; give {k + 1} or more")
    reals, fakes = _Points(real, distances), _Points(fake, distances)
    radii_real, radii_fake = (_radii(points, k, block) for points in (reals, fakes))
    precise, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=radii_real.device)
    for start in range(0, len(fake), block):
        rows = slice(start, start + block)
        squared = _squared(fakes, rows, reals)
        precise += int((squared <= radii_real).any(dim=1).sum())
        covered |= (squared <= radii_fake[rows, None]).any(dim=0)
    return PrecisionRecall(precise / len(fake), float(covered.double().mean()))


def float16_holds(*sets: np.ndarray) -> bool:
    """Whether all squared distances within and between these sets are in float16's range: |u - v|^2 <= 4 max |u|^2.

    The evaluator decides this for each block of 10,000 images. Here all sets decide together, so the result does not
    depend on blocks.
    """
    largest = max(float((points.astype(np.float64) ** 2).sum(axis=1).max()) for points in sets)
    return 4 * largest <= float(np.finfo(np.float16).max)


class _Points:
    """Rounded features and their squared norms. Products are exact in float64, so results do not depend on blocks."""

    def __init__(self, features: np.ndarray, distances: DistanceType) -> None:
        self.dtype = torch.float16 if distances == "float16" else torch.float32
        device = "cuda" if torch.cuda.is_available() else "cpu"
        values = torch.from_numpy(features).to(device, self.dtype)
        self.values = values.double()
        squares = values.square() if distances == "float16" else self.values.square()
        self.norms = squares.double().sum(dim=1)


def _squared(a: _Points, rows: slice, b: _Points) -> Tensor:
    """Squared distances of some rows of a to all of b, rounded to their type, as float32."""
    products = 2 * (a.values[rows] @ b.values.T)
    if a.dtype == torch.float16:
        norms, products = a.norms[rows].half(), products.half()
        return (norms[:, None] - products + b.norms.half()).clamp(min=0).float()
    return (a.norms[rows, None] - products + b.norms).clamp(min=0).float()


def _radii(points: _Points, k: int, block: int) -> Tensor:
    """Squared distance of each point to its k-th neighbour. The smallest distance in its row is to the point itself."""
    parts = []
    for start in range(0, len(points.norms), block):
        parts.append(_squared(points, slice(start, start + block), points).kthvalue(k + 1, dim=1).values)
    return torch.cat(parts)
