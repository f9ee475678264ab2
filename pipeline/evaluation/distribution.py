"""Distances between sets of images, from their features and logits, in float64.

Features are (n, f). The formulas are those of ADM's evaluator (Dhariwal and Nichol 2021, `evaluations/evaluator.py`),
except that its float32 means are computed in float64. The running classes take features in parts and keep only sums.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from rdpm.pipeline.foundation.permutation import permute


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features."""

    mean: np.ndarray
    """(f,) float64."""
    covariance: np.ndarray
    """The unbiased covariance, (f, f) float64."""


class RunningMoments:
    """Mean and covariance of features that come in parts. Memory is f x f, for any number of images.

    It sums the differences from the first part's mean. Sums of the plain values would lose digits where the mean is
    much larger than the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._sum = self._products = np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Add one part, (n, f) with n >= 1."""
        features = features.astype(np.float64)
        if not self.count:
            size = features.shape[1]
            self._origin, self._sum, self._products = features.mean(axis=0), np.zeros(size), np.zeros((size, size))
        self.count += len(features)
        features -= self._origin
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def moments(self) -> Moments:
        """Moments of everything added so far. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two images or more, not {self.count}; give more")
        shift = self._sum / self.count
        covariance = (self._products - self.count * np.outer(shift, shift)) / (self.count - 1)
        return Moments(self._origin + shift, covariance)


def moments(parts: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of all parts together. Raises ValueError for fewer than two rows."""
    running = RunningMoments()
    for part in parts:
        running.add(part)
    return running.moments()


def frechet_distances(a: Moments, others: Iterable[Moments]) -> list[float]:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of `a` and each of the others.

    It is the squared 2-Wasserstein distance of two Gaussians. The trace of the root is computed from the symmetric
    matrix C1^(1/2) C2 C1^(1/2). It has the same eigenvalues as C1 C2, and they stay real even where a covariance is
    singular. Rounding can make the distance slightly negative.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    distances = []
    for b in others:
        cross = np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)
        spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross).sum()
        distances.append(float(((a.mean - b.mean) ** 2).sum() + spread))
    return distances


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance of two sets; see `frechet_distances`."""
    return frechet_distances(a, [b])[0]


def frechet_of(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features: FID where the features are Inception's. Larger sets give less."""
    return frechet_distance(moments([a]), moments([b]))


class RunningScore:
    """Inception score of logits (n, c) that come in parts: exp of the mean KL divergence KL(p(y|x) || p(y)).

    The images are split in their order into runs of `split`; the last run may be shorter. The score is the mean over
    the runs.
    """

    def __init__(self, split: int) -> None:
        self._split, self._scores = split, list[float]()
        self._reset()

    def _reset(self) -> None:
        self._count, self._marginal, self._negentropy = 0, np.zeros(1), 0.0

    def add(self, logits: np.ndarray) -> None:
        """Add one part."""
        logs = log_softmax(logits.astype(np.float64), axis=1)
        while len(logs):
            part, logs = logs[: self._split - self._count], logs[self._split - self._count :]
            probabilities = np.exp(part)
            self._marginal = self._marginal + probabilities.sum(axis=0)
            self._negentropy += float((probabilities * part).sum())
            self._count += len(part)
            if self._count == self._split:
                self._scores.append(self._open_split())
                self._reset()

    def _open_split(self) -> float:
        """exp of the mean KL, which is mean(sum p log p) - sum m log m, where m is the mean of p."""
        marginal = self._marginal / self._count
        logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        return float(np.exp(self._negentropy / self._count - (marginal * logs).sum()))

    def score(self) -> float:
        """Score of everything added so far. Raises ValueError when nothing was added."""
        scores = [*self._scores, self._open_split()] if self._count else self._scores
        if not scores:
            raise ValueError("an inception score needs one image or more, not 0; give some")
        return float(np.mean(scores))


def balanced_draws(labels: np.ndarray, count: int, draws: int, seed: int) -> list[np.ndarray]:
    """Random draws of `count` rows each, spread over the classes as evenly as `count` allows.

    No draw holds a row twice. Where count is not a multiple of the number of classes, some classes give one row more;
    each draw chooses them at random. Returns sorted int64 rows per draw. Raises ValueError when a class has too few.
    """
    classes = np.unique(labels)
    share, rest = divmod(count, len(classes))
    drawn = []
    for draw in range(draws):
        first_epoch = draw * (len(classes) + 1)  # a draw uses one shuffle for the classes and one for each class's rows
        with_one_more = set(_shuffled(np.arange(len(classes)), seed, first_epoch)[:rest].tolist())
        parts = []
        for position, label in enumerate(classes):
            rows, wanted = np.flatnonzero(labels == label), share + (position in with_one_more)
            if len(rows) < wanted:
                raise ValueError(f"class {label} has {len(rows)} images, but a draw needs {wanted}; sample more")
            parts.append(_shuffled(rows, seed, first_epoch + 1 + position)[:wanted])
        drawn.append(np.sort(np.concatenate(parts)))
    return drawn


def _shuffled(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order that the seed gives them in one epoch."""
    positions = np.arange(len(rows), dtype=np.int64)
    return rows[permute(positions, len(rows), seed, np.full(len(rows), epoch))]
