"""Spread: the variance of a set over that of a reference, within classes, in total and in principal components.

Samples may have the right total variance and still lack variety, where scatter that real images do not have makes up
for what is missing. So the spread is also measured in the directions in which the reference varies most.

Those directions must not be chosen on the images whose variance is the denominator: the largest eigenvalues of a sample
covariance are too large, and a perfect generator would fall short of 1. So the reference is split into two halves. Each
gives the directions in which the other half, and the set, are measured, and the results are added up. Then numerator
and denominator have the same expectation for a set of the reference's distribution, of any number of images.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

FIRST, MORE = 8, 32  # principal components that are reported

_Halves = tuple["ClassSums", "ClassSums"]


@dataclass(frozen=True)
class ClassSums:
    """Sums over rows (n, f) by class, from which the covariance within classes follows."""

    labels: np.ndarray
    """The classes, (k,) int64, ascending."""
    counts: np.ndarray
    """Rows of each class, (k,) int64."""
    sums: np.ndarray
    """Sum of the rows of each class, (k, f) float64."""
    products: np.ndarray
    """Sum over all rows of x x^T, (f, f) float64."""

    @property
    def weights(self) -> np.ndarray:
        """(k,): the weight of each class's unbiased covariance in the pooled one, (n_c - 1) / (n - k)."""
        return (self.counts - 1) / max(self.counts.sum() - len(self.counts), 1)

    def covariance(self) -> np.ndarray:
        """The pooled unbiased covariance within classes, (f, f)."""
        between = (self.sums / self.counts[:, None]).T @ self.sums
        return (self.products - between) / max(self.counts.sum() - len(self.counts), 1)

    def as_one_class(self) -> "ClassSums":
        """The same rows, all of class 0."""
        return ClassSums(
            np.zeros(1, np.int64), self.counts.sum(keepdims=True), self.sums.sum(axis=0, keepdims=True), self.products
        )


class RunningHalves:
    """Class sums of the two halves of a reference that comes in parts. The images of each class go to them by turns.

    Classes with an odd label begin with the second half, so that classes of one image are spread over both.
    """

    def __init__(self) -> None:
        self._sums: tuple[dict[int, np.ndarray], ...] = ({}, {})
        self._counts: tuple[dict[int, int], ...] = ({}, {})
        self._products: list[np.ndarray | float] = [0.0, 0.0]

    def add(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Add one part: rows (n, f) and labels (n,). Returns the half that each went to, 0 or 1, (n,)."""
        rows, halves = rows.astype(np.float64), np.zeros(len(rows), np.int64)
        for label in np.unique(labels).tolist():
            of_class = np.flatnonzero(labels == label)
            before = label + sum(counts.get(label, 0) for counts in self._counts)
            for half in (0, 1):
                mine = of_class[(half - before) % 2 :: 2]
                if len(mine):
                    self._sums[half][label] = self._sums[half].get(label, 0.0) + rows[mine].sum(axis=0)
                    self._counts[half][label] = self._counts[half].get(label, 0) + len(mine)
                halves[mine] = half
        for half in (0, 1):
            self._products[half] += rows[halves == half].T @ rows[halves == half]
        return halves

    def halves(self) -> _Halves:
        """Sums of everything added so far. Raises ValueError where a half has no row."""
        if not all(self._counts):
            raise ValueError("the spread needs a reference of two images or more of one class; give more")
        first, second = (self._half(half) for half in (0, 1))
        return first, second

    def _half(self, half: int) -> ClassSums:
        labels = sorted(self._counts[half])
        counts = [self._counts[half][label] for label in labels]
        sums = np.stack([self._sums[half][label] for label in labels])
        return ClassSums(np.array(labels, np.int64), np.array(counts, np.int64), sums, np.asarray(self._products[half]))


def halves_of(rows: np.ndarray, labels: np.ndarray) -> tuple[_Halves, np.ndarray]:
    """The halves of a reference (n, f) in memory, and the half of each row (n,). ValueError where one has no row."""
    running = RunningHalves()
    half = running.add(rows, labels)
    return running.halves(), half


def within_classes(halves: _Halves, *sets: np.ndarray) -> bool:
    """Whether the spread can be measured within classes, given the labels (n,) of each set, -1 where unknown.

    Every set must have two images of each class that counts in the reference.
    """
    if any((labels < 0).any() for labels in (halves[0].labels, halves[1].labels, *sets)):
        return False
    needed = np.concatenate([half.labels[half.weights > 0] for half in halves])
    return len(needed) > 0 and all((labels == label).sum() > 1 for labels in sets for label in set(needed.tolist()))


@dataclass(frozen=True)
class Spread:
    """Variance of a set over the reference's; 1 for a set of the reference's distribution."""

    total: np.ndarray
    """In total."""
    first: np.ndarray
    """Within the first 8 principal components of the reference, or all if there are fewer."""
    more: np.ndarray
    """Within the first 32."""
    rest: np.ndarray
    """In all the others; NaN if there are none."""


def spread(
    halves: _Halves,
    rows: np.ndarray,
    labels: np.ndarray,
    counts: np.ndarray | None = None,
    half: np.ndarray | None = None,
) -> Spread:
    """Spread of rows (n, f) with labels (n,), one value per field; with counts (r, n), one per resample (r,).

    The variance of each class is unbiased, and has the weight that the class has in the reference. counts: how often
    each resample holds each row, as `resamples` draws them. half: the half (n,) of the row of the reference that each
    row was made from, if each was; then it is measured together with that one only. Needs `within_classes`, or one
    class for everything.
    """
    size = 1 + min(rows.shape[1], MORE)
    numerator, denominator = np.zeros((1 if counts is None else len(counts), size)), np.zeros(size)
    for number, measures in enumerate(halves):
        directions = _first_directions(halves[1 - number].covariance())
        within, together = measures.covariance(), half is None or half == number
        denominator += [np.trace(within), *((within @ directions) * directions).sum(axis=0)]
        for label, weight in zip(measures.labels, measures.weights, strict=True):
            if weight > 0:
                mine = np.flatnonzero((labels == label) & together)
                drawn = None if counts is None else counts[:, mine]
                numerator += weight * _variances(rows[mine].astype(np.float64), directions, drawn)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = _by_components(numerator) / _by_components(denominator)
    if rows.shape[1] <= MORE:
        ratios[:, 3] = np.nan
    columns = ratios.T if counts is not None else ratios[0]
    return Spread(*columns)


def _first_directions(covariance: np.ndarray) -> np.ndarray:
    """The eigenvectors (f, m) of the m = min(f, 32) largest eigenvalues, largest first."""
    f = len(covariance)
    return scipy.linalg.eigh(covariance, subset_by_index=(max(f - MORE, 0), f - 1))[1][:, ::-1]


def _variances(rows: np.ndarray, directions: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """Unbiased variance of rows (n, f) of one class, in total and along each of m directions: (1 or r, 1 + m).

    The variance of a resample is too small by n / (n - 1) in the mean, which is corrected.
    """
    n, centred = len(rows), rows - rows.mean(axis=0)
    along = centred @ directions
    squares = np.concatenate([(centred**2).sum(axis=1, keepdims=True), along**2], axis=1)
    if counts is None:
        return squares.sum(axis=0, keepdims=True) / (n - 1)
    moved = np.concatenate([((counts @ centred) ** 2).sum(axis=1, keepdims=True), (counts @ along) ** 2], axis=1)
    return (counts @ squares - moved / n) * n / (n - 1) ** 2


def _by_components(variances: np.ndarray) -> np.ndarray:
    """Variances (..., 1 + m) to (..., 4): total, first 8, first 32, and all others."""
    total, along = variances[..., 0], variances[..., 1:]
    first, more = along[..., :FIRST].sum(axis=-1), along[..., :MORE].sum(axis=-1)
    return np.stack([total, first, more, total - more], axis=-1)


def resamples(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Bootstrap: how often each of `number` resamples holds each image, (number, n) float64.

    Each class is drawn from itself with replacement, as often as it has images.
    """
    rng, counts = np.random.default_rng(seed), np.zeros((number, len(labels)))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        counts[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=number)
    return counts


def interval(values: np.ndarray) -> list[float]:
    """The range that holds the middle 95% of values (r,): [low, high]."""
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]
