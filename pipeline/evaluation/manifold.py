"""Improved precision and recall (Kynkäänniemi et al. 2019) as ADM's evaluator computes them.

A manifold is the union of a ball around each point that reaches its k-th neighbour, itself not counted; on the sphere
is inside. The evaluator takes |u|^2 - 2 u.v + |v|^2 of features rounded to float16, and rounds every term and sum to
float16 too. Features of |u|^2 around 600 then have distances in steps of 0.5, and ties let more points in. That is the
figure in print; the same in float32 stands beside it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Precision = Literal["float16", "float32"]

_BLOCK = 512  # rows of a distance matrix held at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of fakes inside the real manifold, and of reals inside the fake manifold."""

    precision: float
    recall: float


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, precision: Precision = "float16", block: int = _BLOCK
) -> PrecisionRecall:
    """Of features (n, f) and (m, f). Raises ValueError for sets of k images or fewer."""
    for points in (real, fake):
        if len(points) <= k:
            raise ValueError(f"{len(points)} images have no {k} nearest neighbours among themselves; give more images")
    reals, fakes = _Points(real, precision), _Points(fake, precision)
    radii_real, radii_fake = (_radii(points, k, block) for points in (reals, fakes))
    precise, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=radii_real.device)
    for start in range(0, len(fake), block):
        rows = slice(start, start + block)
        squared = _squared(fakes, rows, reals)
        precise += int((squared <= radii_real).any(dim=1).sum())
        covered |= (squared <= radii_fake[rows, None]).any(dim=0)
    return PrecisionRecall(precise / len(fake), float(covered.double().mean()))


def float16_holds(*sets: np.ndarray) -> bool:
    """Whether no squared distance within or between these sets can leave float16's range: |u - v|^2 <= 4 max |u|^2.

    The evaluator turns to float32 for a block of 10,000 that left it; here all of the sets decide, so no block shows.
    """
    largest = max(float((points.astype(np.float64) ** 2).sum(axis=1).max()) for points in sets)
    return 4 * largest <= float(np.finfo(np.float16).max)


class _Points:
    """Features rounded to a precision, and their squared norms. Products are exact in float64, so no block shows."""

    def __init__(self, features: np.ndarray, precision: Precision) -> None:
        self.dtype = torch.float16 if precision == "float16" else torch.float32
        device = "cuda" if torch.cuda.is_available() else "cpu"
        values = torch.from_numpy(features).to(device, self.dtype)
        self.values = values.double()
        squares = values.square() if precision == "float16" else self.values.square()
        self.norms = squares.double().sum(dim=1)


def _squared(a: _Points, rows: slice, b: _Points) -> Tensor:
    """Squared distances of some rows of a to all of b, float32, rounded as their precision has it."""
    products = 2 * (a.values[rows] @ b.values.T)
    if a.dtype == torch.float16:
        norms, products = a.norms[rows].half(), products.half()
        return (norms[:, None] - products + b.norms.half()).clamp(min=0).float()
    return (a.norms[rows, None] - products + b.norms).clamp(min=0).float()


def _radii(points: _Points, k: int, block: int) -> Tensor:
    """Squared distance of each point to its k-th neighbour; in the row of distances its own is the first."""
    parts = []
    for start in range(0, len(points.norms), block):
        parts.append(_squared(points, slice(start, start + block), points).kthvalue(k + 1, dim=1).values)
    return torch.cat(parts)
