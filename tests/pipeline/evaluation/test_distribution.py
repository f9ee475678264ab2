import math

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from pipeline.evaluation.distribution import (
    balanced_draws,
    frechet_distance,
    frechet_of,
    inception_score,
    moments,
    nearest,
    nearest_distance,
    precision_recall,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_frechet_of_commuting_gaussians_is_the_closed_form(rng):
    """|m1 - m2|^2 + sum (sqrt a - sqrt b)^2 for covariances with common eigenvectors."""
    basis, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    a, b = rng.uniform(0.1, 4, 24), rng.uniform(0.1, 4, 24)
    m1, m2 = rng.normal(size=24), rng.normal(size=24)
    found = frechet_distance(m1, (basis * a) @ basis.T, m2, (basis * b) @ basis.T)
    assert found == pytest.approx(((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-9)


def test_frechet_in_one_dimension_is_the_closed_form():
    found = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[0.25]]))
    assert found == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, abs=1e-9)


def test_frechet_of_a_translation_is_its_squared_length(rng):
    features, shift = rng.normal(size=(300, 12)), rng.normal(size=12)
    assert frechet_of(features, features + shift) == pytest.approx((shift**2).sum(), abs=1e-9)
    assert frechet_of(features, features) == pytest.approx(0, abs=1e-9)


def test_frechet_is_symmetric_and_takes_one_column(rng):
    a, b = rng.normal(size=(50, 5)), 2 * rng.normal(size=(60, 5)) + 1
    assert frechet_of(a, b) == pytest.approx(frechet_of(b, a), abs=1e-9)
    s1, s2 = a[:, 0].std(ddof=1), b[:, 0].std(ddof=1)
    expected = (a[:, 0].mean() - b[:, 0].mean()) ** 2 + (s1 - s2) ** 2
    assert frechet_of(a[:, :1], b[:, :1]) == pytest.approx(expected, abs=1e-9)


def test_frechet_agrees_with_the_matrix_square_root_on_real_digits():
    """ADM's own formula, scipy's sqrtm of cov1 cov2, on two halves of the digits."""
    pixels = load_digits().data
    first, second = pixels[0::2], pixels[1::2]
    varied = (first.std(axis=0) > 0.1) & (second.std(axis=0) > 0.1)
    a, b = moments(first[:, varied]), moments(second[:, varied])
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a.mean, a.covariance, b.mean, b.covariance) == pytest.approx(expected, rel=1e-7)


def test_frechet_stands_singular_covariances(rng):
    """Fewer images than features: the exact value is the nuclear norm of the product of the centered features."""
    a, b = rng.normal(size=(10, 40)), rng.normal(size=(15, 40)) + 0.3
    ca, cb = (a - a.mean(0)) / 3, (b - b.mean(0)) / math.sqrt(14)
    cross = np.linalg.svd(ca @ cb.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (ca**2).sum() + (cb**2).sum() - 2 * cross
    assert frechet_of(a, b) == pytest.approx(expected, abs=1e-5)


def test_moments_need_two_images():
    with pytest.raises(ValueError, match="1 images have no covariance"):
        moments(np.zeros((1, 4)))


def _oracle(real, fake, k):
    """Precision and recall by the definition, one pair at a time."""

    def inside(points, centers):
        hits = 0
        for p in points:
            for c in centers:
                others = sorted(((c - o) ** 2).sum() for o in centers)
                if ((p - c) ** 2).sum() <= others[k]:  # others[0] is c itself
                    hits += 1
                    break
        return hits / len(points)

    return inside(fake, real), inside(real, fake)


@pytest.mark.parametrize("kind", ["floats", "ties"])
def test_precision_and_recall_equal_the_brute_force(rng, kind):
    if kind == "floats":
        real, fake = rng.normal(size=(40, 3)), 0.7 * rng.normal(size=(30, 3)) + 0.5
    else:  # few whole numbers: equal points, and points on the spheres
        real, fake = (rng.integers(0, 5, size=(n, 2)).astype(float) for n in (14, 12))
    for k in (1, 3):
        found = precision_recall(real, fake, k)
        assert (found.precision, found.recall) == _oracle(real, fake, k)


def test_a_point_on_the_sphere_is_inside():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])  # with k = 3 the ball of 0 reaches to 3 either way
    assert precision_recall(real, np.array([[-3.0], [-3.0 - 1e-9], [6.0], [6.1]]), 3).precision == 0.5


def test_identical_sets_are_precise_and_complete_and_disjoint_ones_neither(rng):
    real = rng.normal(size=(50, 8))
    same, apart = precision_recall(real, real.copy()), precision_recall(real, real + 1000)
    assert (same.precision, same.recall) == (1.0, 1.0)
    assert (apart.precision, apart.recall) == (0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_not_complete(rng):
    real = rng.normal(size=(200, 4))
    fake = real[:1] + 1e-3 * rng.normal(size=(200, 4))
    found = precision_recall(real, fake)
    assert found.precision == 1.0
    assert found.recall <= 0.01


def test_blocks_do_not_show(rng):
    real, fake = (rng.normal(size=(n, 6)).astype(np.float32) for n in (70, 90))
    whole = precision_recall(real, fake), nearest_distance(fake, real)
    for block in (1, 7, 64):
        assert precision_recall(real, fake, block=block) == whole[0]
        assert np.array_equal(nearest_distance(fake, real, block), whole[1])


def test_nearest_is_the_brute_force_and_zero_for_copies(rng):
    references = rng.integers(0, 256, size=(40, 16)).astype(np.uint8)
    queries = np.concatenate([references[5:8], rng.integers(0, 256, size=(20, 16)).astype(np.uint8)])
    every = np.array([[((q.astype(float) - r) ** 2).sum() for r in references] for q in queries])
    found = nearest(queries, references, 3)
    assert np.array_equal(found.squared, np.sort(every, axis=1)[:, :3])
    assert np.array_equal(found.indices[:3, 0], [5, 6, 7])
    assert np.array_equal(nearest_distance(queries, references), np.sqrt(every.min(axis=1)))
    with pytest.raises(ValueError, match="have no 41 nearest"):
        nearest(queries, references, 41)


def test_inception_score_of_certain_balanced_classes_is_their_number():
    labels = np.arange(70) % 7
    certain = 1000.0 * np.eye(7)[labels]
    assert inception_score(certain, 1) == pytest.approx(7, abs=1e-12)
    assert inception_score(np.zeros((70, 7)), 1) == pytest.approx(1, abs=1e-12)
    # Parts are contiguous, so images ordered by class score nothing: stores are written shuffled.
    assert inception_score(certain[np.argsort(labels)], 7) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="splits is 71"):
        inception_score(certain, 71)


def test_draws_are_balanced_distinct_and_a_function_of_the_seed(rng):
    labels = rng.permutation(np.repeat(np.arange(10), 50))
    draws = balanced_draws(labels, 297, 10, seed=3)
    assert len(draws) == 10
    for rows in draws:
        counts = np.bincount(labels[rows], minlength=10)
        assert len(np.unique(rows)) == 297
        assert sorted(counts) == [29] * 3 + [30] * 7
    assert len({rows.tobytes() for rows in draws}) == 10
    again = balanced_draws(labels, 297, 10, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    assert not np.array_equal(draws[0], balanced_draws(labels, 297, 1, seed=4)[0])
    # A draw does not depend on how many follow it.
    assert np.array_equal(draws[0], balanced_draws(labels, 297, 1, seed=3)[0])


def test_draws_use_every_image(rng):
    labels = np.repeat(np.arange(3), 12)
    drawn = np.concatenate(balanced_draws(labels, 9, 60, seed=0))
    counts = np.bincount(drawn, minlength=36)
    assert counts.min() > 0
    assert counts.max() < 40


def test_too_few_samples_are_named():
    with pytest.raises(ValueError, match="class 1 has 2 images, fewer than the 3 of a draw"):
        balanced_draws(np.array([0, 0, 0, 1, 1]), 6, 1, seed=0)
