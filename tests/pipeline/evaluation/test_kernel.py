"""The kernel distance is unbiased, is that of its formula, and does not follow the number of images."""

import itertools

import numpy as np
import pytest

from rdpm.pipeline.evaluation.kernel import kernel_distance, subset_size


def test_one_subset_has_the_value_of_the_formula():
    """Means of the kernel over all pairs of different images of a set, and over all pairs of two sets."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32) + 1

    def kernel(x, y):
        return (float(x.astype(np.float64) @ y) / 4 + 1) ** 3

    def within(rows):
        return np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)])

    expected = within(a) + within(b) - 2 * np.mean([kernel(x, y) for x, y in itertools.product(a, b)])
    distance = kernel_distance(a, b, 6, 0)
    assert distance.mean == pytest.approx(expected, rel=1e-6)
    assert distance.deviation == pytest.approx(0, abs=1e-6)  # every subset is the whole set


def test_sets_of_one_distribution_have_0_in_the_mean_whatever_their_sizes():
    rng = np.random.default_rng(0)
    for sizes in ((16, 16), (16, 60)):
        means = []
        for _ in range(60):
            a, b = (rng.normal(size=(size, 5)).astype(np.float32) for size in sizes)
            means.append(kernel_distance(a, b, subset_size(a, b), 0).mean)
        error = np.std(means) / len(means) ** 0.5
        assert abs(np.mean(means)) < 4 * error
        assert min(means) < 0 < max(means)


def test_other_distributions_are_further_away_than_the_deviation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)).astype(np.float32), 1.5 * rng.normal(size=(200, 5)).astype(np.float32)
    distance = kernel_distance(a, b, 100, 0)
    assert distance.mean > 3 * distance.deviation / 10
    assert kernel_distance(a, b, 100, 0) == distance
    assert kernel_distance(a, b, 100, 1) != distance


def test_subsets_are_at_most_half_of_the_smallest_set():
    assert subset_size(np.zeros((5000, 1)), np.zeros((3000, 1))) == 1000
    assert subset_size(np.zeros((5000, 1)), np.zeros((297, 1))) == 148
    assert subset_size(np.zeros((0, 1)), np.zeros((297, 1))) == 0
