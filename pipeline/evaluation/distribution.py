"""Distances between sets of images, as pure functions of feature arrays, in float64.

Features are (n, f). The semantics are those of ADM's evaluator (Dhariwal and Nichol 2021, `evaluations/evaluator.py`),
with its float16 distances and float32 means computed in float64.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from pipeline.order import permute

_BLOCK = 1024  # rows of a distance matrix held at once


@dataclass(frozen=True)
class Moments:
    """mean (f,) and covariance (f, f), the unbiased one, of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Mean and covariance. Raises ValueError for fewer than two rows."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} images have no covariance; give two or more")
    features = features.astype(np.float64)
    return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """|mu1 - mu2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)): the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is taken from the symmetric cov1^(1/2) cov2 cov1^(1/2), which has the same eigenvalues as
    cov1 cov2 and keeps them real, also when a covariance is singular. May fall below zero by rounding.
    """
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)
    return float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(cross).sum())


def frechet_of(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features (FID, when the features are Inception's). Falls as the sets grow."""
    first, second = moments(a), moments(b)
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


@dataclass(frozen=True)
class Neighbours:
    """The k nearest references of each query, nearest first: indices (q, k) int64 and squared distances (q, k)."""

    indices: np.ndarray
    squared: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, k: int, block: int = _BLOCK) -> Neighbours:
    """Euclidean neighbours among the references; of equally near ones the first comes first.

    Every distance is summed on its own, not through a matrix product, so it is the same in any block and exactly zero
    for equal rows. Raises ValueError when there are fewer than k references.
    """
    if len(references) < k:
        raise ValueError(f"{len(references)} references have no {k} nearest; give more images")
    references = references.astype(np.float64)
    indices, squared = [], []
    for start in range(0, len(queries), block):
        rows = cdist(queries[start : start + block].astype(np.float64), references, "sqeuclidean")
        order = np.argsort(rows, axis=1, kind="stable")[:, :k]
        indices.append(order)
        squared.append(np.take_along_axis(rows, order, axis=1))
    return Neighbours(np.concatenate(indices), np.concatenate(squared))


def nearest_distance(queries: np.ndarray, references: np.ndarray, block: int = _BLOCK) -> np.ndarray:
    """Euclidean distance of each query to its nearest reference, (q,) float64."""
    return np.sqrt(nearest(queries, references, 1, block).squared[:, 0])


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of fakes inside the real manifold, and of reals inside the fake manifold."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3, block: int = _BLOCK) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019) as ADM computes them.

    A manifold is the union of a ball around each point that reaches its k-th neighbour, itself not counted; on the
    sphere is inside. Distances are squared. Raises ValueError for sets of k images or fewer.
    """
    return PrecisionRecall(_share_inside(fake, real, k, block), _share_inside(real, fake, k, block))


def _share_inside(points: np.ndarray, centers: np.ndarray, k: int, block: int) -> float:
    """Share of points in the union of the balls around the centers."""
    radii = nearest(centers, centers, k + 1, block).squared[
        :, k
    ]  # a point is its own first neighbour, at distance zero
    centers = centers.astype(np.float64)
    inside = 0
    for start in range(0, len(points), block):
        squared = cdist(points[start : start + block].astype(np.float64), centers, "sqeuclidean")
        inside += int((squared <= radii).any(axis=1).sum())
    return inside / len(points)


def inception_score(logits: np.ndarray, splits: int) -> float:
    """exp of the mean KL from p(y|x) to p(y), the mean over `splits` contiguous parts in the order given.

    logits: (n, c). Raises ValueError when a part would be empty.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits is {splits}; use 1 to {len(logits)}, the number of images")
    scores = []
    for part in np.array_split(log_softmax(logits.astype(np.float64), axis=1), splits):
        probabilities = np.exp(part)
        marginal = probabilities.mean(axis=0)
        log_marginal = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        scores.append(np.exp((probabilities * (part - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))


def balanced_draws(labels: np.ndarray, count: int, draws: int, seed: int) -> list[np.ndarray]:
    """Random draws of `count` rows, without replacement within a draw, as evenly over the classes as `count` allows.

    Where count is no multiple of the number of classes, each draw gives the rest to other classes, one each. Returns
    sorted int64 rows. Raises ValueError when a class has too few rows.
    """
    classes = np.unique(labels)
    share, rest = divmod(count, len(classes))
    found = []
    for draw in range(draws):
        turn = draw * (len(classes) + 1)
        generous = set(_shuffled(np.arange(len(classes)), seed, turn)[:rest].tolist())
        parts = []
        for place, label in enumerate(classes):
            rows, wanted = np.flatnonzero(labels == label), share + (place in generous)
            if len(rows) < wanted:
                raise ValueError(
                    f"class {label} has {len(rows)} images, fewer than the {wanted} of a draw; sample more"
                )
            parts.append(_shuffled(rows, seed, turn + 1 + place)[:wanted])
        found.append(np.sort(np.concatenate(parts)))
    return found


def _shuffled(rows: np.ndarray, seed: int, turn: int) -> np.ndarray:
    """The rows in the order of one turn of the seed."""
    places = np.arange(len(rows), dtype=np.int64)
    return rows[permute(places, len(rows), seed, np.full(len(rows), turn))]
