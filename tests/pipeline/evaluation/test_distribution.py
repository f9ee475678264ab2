"""Distances are their closed forms, formulas in parts are those of the whole, and draws are balanced."""

import math

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from rdpm.pipeline.evaluation.distribution import (
    Moments,
    RunningScore,
    balanced_draws,
    frechet_distance,
    frechet_of,
    moments,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_frechet_of_commuting_gaussians_is_the_closed_form(rng):
    """|m1 - m2|^2 + sum (sqrt a - sqrt b)^2 for covariances with common eigenvectors."""
    basis, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    a, b = rng.uniform(0.1, 4, 24), rng.uniform(0.1, 4, 24)
    m1, m2 = rng.normal(size=24), rng.normal(size=24)
    distance = frechet_distance(Moments(m1, (basis * a) @ basis.T), Moments(m2, (basis * b) @ basis.T))
    assert distance == pytest.approx(((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-9)


def test_frechet_in_one_dimension_is_the_closed_form():
    a, b = (Moments(np.array([m]), np.array([[v]])) for m, v in ((1.0, 4.0), (-2.0, 0.25)))
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, abs=1e-9)


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
    a, b = moments([first[:, varied]]), moments([second[:, varied]])
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_is_exact_for_singular_covariances(rng):
    """With fewer images than features, the cross term is the nuclear norm of the product of the centered features."""
    a, b = rng.normal(size=(10, 40)), rng.normal(size=(15, 40)) + 0.3
    ca, cb = (a - a.mean(0)) / 3, (b - b.mean(0)) / math.sqrt(14)
    cross = np.linalg.svd(ca @ cb.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (ca**2).sum() + (cb**2).sum() - 2 * cross
    assert frechet_of(a, b) == pytest.approx(expected, abs=1e-5)


def test_moments_need_two_images():
    with pytest.raises(ValueError, match="a covariance needs two images or more, not 1"):
        moments([np.zeros((1, 4))])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_parts_are_those_of_the_whole(rng, offset):
    """Also where the mean is far larger than the spread, where plain sums of squares fail."""
    features = rng.normal(size=(500, 7)).astype(np.float32) + np.float32(offset)
    ours = moments(np.split(features, [1, 2, 150, 499]))
    assert np.allclose(ours.mean, features.astype(np.float64).mean(axis=0), rtol=1e-14)
    assert np.allclose(ours.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)


def inception_score(logits: np.ndarray, split: int) -> float:
    running = RunningScore(split)
    running.add(logits)
    return running.score()


def test_inception_score_of_certain_balanced_classes_is_their_number():
    labels = np.arange(70) % 7
    certain = 1000.0 * np.eye(7)[labels]
    assert inception_score(certain, 70) == pytest.approx(7, abs=1e-12)
    assert inception_score(np.zeros((70, 7)), 70) == pytest.approx(1, abs=1e-12)
    # Splits are contiguous, so images sorted by class get the lowest score. This is why stores are shuffled.
    assert inception_score(certain[np.argsort(labels)], 10) == pytest.approx(1, abs=1e-12)


def test_splits_do_not_depend_on_the_parts_in_which_logits_come(rng):
    logits = 3 * rng.normal(size=(103, 5))
    expected = np.mean([inception_score(logits[start : start + 25], 1000) for start in range(0, 103, 25)])
    for sizes in ([103], [1, 24, 25, 53], [60, 43], [100, 3]):
        running = RunningScore(25)
        for part in np.split(logits, np.cumsum(sizes)[:-1]):
            running.add(part)
        assert running.score() == pytest.approx(expected, rel=1e-13)
    with pytest.raises(ValueError, match="an inception score needs one image or more, not 0"):
        RunningScore(25).score()


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
    # A draw does not depend on how many draws follow it.
    assert np.array_equal(draws[0], balanced_draws(labels, 297, 1, seed=3)[0])


def test_draws_use_every_image(rng):
    labels = np.repeat(np.arange(3), 12)
    drawn = np.concatenate(balanced_draws(labels, 9, 60, seed=0))
    counts = np.bincount(drawn, minlength=36)
    assert counts.min() > 0
    assert counts.max() < 40


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="class 1 has 2 images, but a draw needs 3"):
        balanced_draws(np.array([0, 0, 0, 1, 1]), 6, 1, seed=0)
