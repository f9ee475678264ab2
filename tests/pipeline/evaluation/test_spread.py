"""The spread is a ratio of variances, is 1 in the mean for a perfect generator, and has the intervals that it says."""

import numpy as np
import pytest
import scipy.linalg

from rdpm.pipeline.evaluation.spread import (
    RunningHalves,
    halves_of,
    interval,
    resamples,
    spread,
    within_classes,
)

FEATURES = 40
DEVIATIONS = np.linspace(3, 0.1, FEATURES)
NAMES = ("total", "first", "more", "rest")


def drawn(rng: np.random.Generator, count: int, scale: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ten classes with a covariance of its own in each direction, and their labels. Classes lie far apart."""
    labels = np.arange(count) % 10
    means = np.random.default_rng(1).normal(size=(10, FEATURES)) * 20
    return rng.normal(size=(count, FEATURES)) * DEVIATIONS * scale + means[labels], labels


def test_class_sums_give_the_pooled_covariance_within_classes():
    """Of halves to which the images of each class go by turns, classes with an odd label beginning with the second."""
    rows, labels = drawn(np.random.default_rng(0), 103)
    turns = np.array([(labels[:i] == label).sum() + label for i, label in enumerate(labels)]) % 2
    for half, mine in zip(halves_of(rows, labels)[0], (turns == 0, turns == 1), strict=True):
        classes = [rows[mine & (labels == label)] for label in range(10)]
        weights = [len(of_class) - 1 for of_class in classes]
        assert np.allclose(half.weights, np.array(weights) / sum(weights))
        covariances = [np.cov(of_class, rowvar=False) for of_class in classes]
        assert np.allclose(half.covariance(), np.average(covariances, axis=0, weights=weights), atol=1e-9)
        assert np.allclose(half.as_one_class().covariance(), np.cov(rows[mine], rowvar=False), atol=1e-8)


def test_parts_of_any_size_give_the_same_halves():
    rows, labels = drawn(np.random.default_rng(0), 101)
    expected = halves_of(rows, labels)[0]
    for size in (1, 7, 100):
        running = RunningHalves()
        for start in range(0, len(rows), size):
            running.add(rows[start : start + size], labels[start : start + size])
        for half, other in zip(running.halves(), expected, strict=True):
            assert np.array_equal(half.counts, other.counts)
            assert np.allclose(half.sums, other.sums, rtol=1e-12)
            assert np.allclose(half.products, other.products, rtol=1e-12)


def test_a_set_that_is_scaled_has_the_square_of_the_scale():
    """In closed form: the same rows, at twice or half their distance from their class's mean."""
    rows, labels = drawn(np.random.default_rng(0), 400)
    halves, _ = halves_of(rows, labels)
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(10)])[labels]
    one = spread(halves, rows, labels)
    assert one.total == pytest.approx(1, abs=0.01)  # two halves' own means leave a little less freedom
    for scale in (0.5, 2.0):
        scaled = spread(halves, means + scale * (rows - means), labels)
        for name in NAMES:
            assert getattr(scaled, name) == pytest.approx(scale**2 * getattr(one, name), rel=1e-9)
    moved = spread(halves, rows + labels[:, None], labels)  # what lies between classes does not count
    assert moved.total == pytest.approx(one.total, rel=1e-9)


def test_scatter_that_makes_up_for_lost_variety_shows_in_the_components():
    rng = np.random.default_rng(0)
    halves, _ = halves_of(*drawn(rng, 2000))
    lost = np.where(np.arange(FEATURES) < 8, 0.5**0.5, 1.0)  # half of the variance of the first 8 directions
    missing = 0.5 * (DEVIATIONS[:8] ** 2).sum()
    scatter = (1 + missing / (DEVIATIONS[8:] ** 2).sum()) ** 0.5
    rows, labels = drawn(rng, 4000, np.where(np.arange(FEATURES) < 8, lost, scatter))
    values = spread(halves, rows, labels)
    assert values.total == pytest.approx(1, abs=0.03)
    assert values.first == pytest.approx(0.5, abs=0.08)
    assert values.rest > 1.3


def test_a_perfect_generator_has_1_in_the_mean():
    """Also where the components come from few images. Components of the images that are measured would give less."""
    rng, values, naive = np.random.default_rng(0), [], []
    for _ in range(300):
        reference, labels = drawn(rng, 120)
        samples, sample_labels = drawn(rng, 70)
        result = spread(halves_of(reference, labels)[0], samples, sample_labels)
        values.append([getattr(result, name) for name in NAMES])
        within = [_centred(rows, of) for rows, of in ((reference, labels), (samples, sample_labels))]
        largest = scipy.linalg.eigh(within[0].T @ within[0])[1][:, -8:]
        naive.append(((within[1] @ largest) ** 2).sum() / 60 / (((within[0] @ largest) ** 2).sum() / 110))
    errors = np.std(values, axis=0) / len(values) ** 0.5
    assert (np.abs(np.mean(values, axis=0) - 1) < 4 * errors + 0.005).all(), (np.mean(values, axis=0), errors)
    assert np.mean(naive) < 0.97


def _centred(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return rows - np.stack([rows[labels == label].mean(axis=0) for label in range(10)])[labels]


def test_a_set_made_from_the_reference_is_measured_apart_from_its_components():
    """Pure noise has no principal components. Those of few images fit these images, and what is made of them."""
    rng, apart, together = np.random.default_rng(0), [], []
    for _ in range(40):
        reference, labels = rng.normal(size=(150, FEATURES)), np.zeros(150, np.int64)
        made = 0.8 * reference + 0.6 * rng.normal(size=reference.shape)
        halves, half = halves_of(reference, labels)
        apart.append(spread(halves, made, labels, half=half).first)
        together.append(spread(halves, made, labels).first)
    assert np.mean(apart) == pytest.approx(1, abs=0.03)
    assert np.mean(together) > 1.1
    assert spread(halves, reference, labels, half=half).more == pytest.approx(1, rel=1e-9)


def test_class_weights_are_the_references():
    """A set with other shares of the classes, each with the reference's variance, has a spread of 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [400, 100])
    scale = np.where(labels == 0, 1.0, 5.0)[:, None]
    halves, _ = halves_of(rng.normal(size=(500, 3)) * scale, labels)
    others = np.repeat([0, 1], [2000, 8000])
    rows = rng.normal(size=(10_000, 3)) * np.where(others == 0, 1.0, 5.0)[:, None]
    assert spread(halves, rows, others).total == pytest.approx(1, abs=0.15)
    whole = halves[0].as_one_class(), halves[1].as_one_class()
    assert spread(whole, rows, np.zeros_like(others)).total > 3


def test_intervals_are_those_of_other_sets():
    """Their width is that of 200 sets that are really drawn; their middle is the estimate."""
    rng = np.random.default_rng(0)
    halves, _ = halves_of(*drawn(rng, 2000))
    sets = [drawn(rng, 200) for _ in range(200)]
    totals = [spread(halves, rows, labels).total for rows, labels in sets]
    rows, labels = sets[0]
    resampled = spread(halves, rows, labels, resamples(labels, 400, 0)).total
    assert resampled.shape == (400,)
    assert resampled.mean() == pytest.approx(totals[0], rel=0.01)
    assert resampled.std() == pytest.approx(np.std(totals), rel=0.25)
    low, high = interval(resampled)
    assert low < totals[0] < high


def test_resamples_keep_the_number_of_each_class():
    labels = np.array([3, 3, 3, 7, 7, 9])
    counts = resamples(labels, 50, 0)
    for label in (3, 7, 9):
        assert (counts[:, labels == label].sum(axis=1) == (labels == label).sum()).all()
    assert (counts[:, 5] == 1).all()


def test_a_spread_within_classes_needs_labels_and_two_images_of_each_class():
    rows, labels = drawn(np.random.default_rng(0), 60)
    halves, _ = halves_of(rows, labels)
    assert within_classes(halves, labels)
    assert within_classes(halves, np.repeat(np.arange(10), 2), labels)
    assert not within_classes(halves, np.arange(10))
    assert not within_classes(halves, np.where(labels == 4, -1, labels))
    assert not within_classes(halves_of(rows, np.arange(60))[0], np.arange(60))  # no class has two images
    alone = np.append(labels, 10)  # a class of one image has no variance and does not count
    assert within_classes(halves_of(np.append(rows, rows[:1], axis=0), alone)[0], labels)


def test_few_components_are_all_components():
    rng = np.random.default_rng(0)
    labels = np.zeros(50, np.int64)
    values = spread(halves_of(rng.normal(size=(50, 5)), labels)[0], rng.normal(size=(50, 5)), labels)
    assert values.total == pytest.approx(values.first, rel=1e-9)
    assert values.total == pytest.approx(values.more, rel=1e-9)
    assert np.isnan(values.rest)
    with pytest.raises(ValueError, match="two images or more of one class"):
        halves_of(np.zeros((1, 5)), np.zeros(1, np.int64))
