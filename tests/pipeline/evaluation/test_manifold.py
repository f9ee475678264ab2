"""Precision and recall are their definition, and rounding to float16 is that of ADM's evaluator."""

import numpy as np
import pytest

from rdpm.pipeline.evaluation.manifold import float16_holds, precision_recall


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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


@pytest.mark.parametrize(("kind", "distances"), [("floats", "float32"), ("ties", "float32"), ("ties", "float16")])
def test_precision_and_recall_equal_the_brute_force(rng, kind, distances):
    if kind == "floats":
        real, fake = rng.normal(size=(40, 3)), 0.7 * rng.normal(size=(30, 3)) + 0.5
    else:  # few integers, which are exact in float16 too, with equal points and points on the spheres
        real, fake = (rng.integers(0, 5, size=(n, 2)).astype(float) for n in (14, 12))
    for k in (1, 3):
        shares = precision_recall(real, fake, k, distances)
        assert (shares.precision, shares.recall) == _oracle(real, fake, k)


def test_a_point_on_the_sphere_is_inside():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])  # with k = 3, the ball around 0 reaches from -3 to 3
    assert precision_recall(real, np.array([[-3.0], [-3.1], [6.0], [6.1]]), 3).precision == 0.5


def test_rounding_to_float16_makes_ties():
    """Near |x|^2 = 1024, float16 has steps of 1, so a point just outside a ball is rounded onto its sphere."""
    real = np.array([[32.0, 0.0], [32.0, 1.0], [32.0, 2.0], [32.0, 3.0]])
    fake = np.array([[32.0, -3.01], [32.0, 6.01], [32.0, -3.01], [32.0, 6.01]])
    assert precision_recall(real, fake, 3, "float16").precision == 1
    assert precision_recall(real, fake, 3, "float32").precision == 0


def test_identical_sets_have_precision_and_recall_one_and_distant_sets_zero(rng):
    real = rng.normal(size=(50, 8))
    for distances in ("float16", "float32"):
        same = precision_recall(real, real.copy(), 3, distances)
        apart = precision_recall(real, real + 20, 3, distances)
        assert (same.precision, same.recall) == (1.0, 1.0)
        assert (apart.precision, apart.recall) == (0.0, 0.0)


def test_a_collapsed_generator_has_precision_without_recall(rng):
    real = rng.normal(size=(200, 4))
    fake = real[:1] + 1e-3 * rng.normal(size=(200, 4))
    shares = precision_recall(real, fake)
    assert shares.precision == 1.0
    assert shares.recall <= 0.01


@pytest.mark.parametrize("distances", ["float16", "float32"])
def test_blocks_do_not_change_the_shares(rng, distances):
    real, fake = (rng.normal(size=(n, 64)).astype(np.float32) + 2 for n in (70, 90))
    in_one_block = precision_recall(real, fake, 3, distances)
    assert 0 < in_one_block.precision < 1
    for block in (1, 7, 64):
        assert precision_recall(real, fake, 3, distances, block) == in_one_block


def test_sets_without_neighbours_are_refused():
    with pytest.raises(ValueError, match="3 images do not have 3 neighbours each; give 4 or more"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_float16_holds_while_no_distance_can_overflow():
    ends = np.array([[127.0], [-127.0]])
    assert float16_holds(ends)
    assert not float16_holds(ends, 2 * ends)
    half = ends.astype(np.float16)
    assert np.isfinite((half[0] - half[1]) ** 2)
