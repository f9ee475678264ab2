"""Distances between sets of images, from their features and logits, in float64.

Features are (n, f). The formulas are those of ADM's evaluator (Dhariwal and Nichol 2021, `evaluations/evaluator.py`),
its float32 means computed in float64. What needs only sums takes parts of any number and keeps the sums alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from rdpm.pipeline.foundation.permutation import permute


@dataclass(frozen=True)
class Moments:
    """mean (f,) and covariance (f, f), the unbiased one, of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningMoments:
    """Mean and covariance of features that come in parts; memory is f x f, whatever their number.

    Sums are taken of the differences to the first part's mean, which keeps their digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._sum = self._products = np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Take one part, (n, f) with n of 1 or more."""
        features = features.astype(np.float64)
        if not self.count:
            size = features.shape[1]
            self._origin, self._sum, self._products = features.mean(axis=0), np.zeros(size), np.zeros((size, size))
        self.count += len(features)
        features -= self._origin
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def moments(self) -> Moments:
        """What was taken so far. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"{self.count} images have no covariance; give two or more")
        shift = self._sum / self.count
        covariance = (self._products - self.count * np.outer(shift, shift)) / (self.count - 1)
        return Moments(self._origin + shift, covariance)


def moments(parts: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of all parts together. Raises ValueError for fewer than two rows."""
    running = RunningMoments()
    for part in parts:
        running.add(part)
    return running.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is taken from the symmetric C1^(1/2) C2 C1^(1/2), which has the same eigenvalues as C1 C2
    and keeps them real, also when a covariance is singular. May fall below zero by rounding.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross).sum()
    return float(((a.mean - b.mean) ** 2).sum() + spread)


def frechet_of(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features (FID, when the features are Inception's). Falls as the sets grow."""
    return frechet_distance(moments([a]), moments([b]))


class RunningScore:
    """Inception score of logits (n, c) that come in parts: exp of the mean KL from p(y|x) to p(y).

    The mean of it over contiguous splits of `split` images in the order given, the last as short as it comes.
    """

    def __init__(self, split: int) -> None:
        self._split, self._scores = split, list[float]()
        self._reset()

    def _reset(self) -> None:
        self._count, self._marginal, self._negentropy = 0, np.zeros(1), 0.0

    def add(self, logits: np.ndarray) -> None:
        """Take one part."""
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
        """mean KL = mean sum p log p - sum m log m, with m the mean of p."""
        marginal = self._marginal / self._count
        logs = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        return float(np.exp(self._negentropy / self._count - (marginal * logs).sum()))

    def score(self) -> float:
        """What was taken so far. Raises ValueError when that is nothing."""
        scores = [*self._scores, self._open_split()] if self._count else self._scores
        if not scores:
            raise ValueError("no images have no inception score; give one or more")
        return float(np.mean(scores))


def inception_score(logits: np.ndarray, split: int) -> float:
    """Inception score of logits (n, c) in the order given; see RunningScore."""
    running = RunningScore(split)
    running.add(logits)
    return running.score()


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
