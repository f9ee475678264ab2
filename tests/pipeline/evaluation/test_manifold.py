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


@pytest.mark.parametrize(("kind", "precision"), [("floats", "float32"), ("ties", "float32"), ("ties", "float16")])
def test_precision_and_recall_equal_the_brute_force(rng, kind, precision):
    if kind == "floats":
        real, fake = rng.normal(size=(40, 3)), 0.7 * rng.normal(size=(30, 3)) + 0.5
    else:  # few whole numbers, exact in float16 too: equal points, and points on the spheres
        real, fake = (rng.integers(0, 5, size=(n, 2)).astype(float) for n in (14, 12))
    for k in (1, 3):
        found = precision_recall(real, fake, k, precision)
        assert (found.precision, found.recall) == _oracle(real, fake, k)


def test_a_point_on_the_sphere_is_inside():
    real = np.array([[0.0], [1.0], [2.0], [3.0]])  # with k = 3 the ball of 0 reaches to 3 either way
    assert precision_recall(real, np.array([[-3.0], [-3.1], [6.0], [6.1]]), 3).precision == 0.5


def test_rounding_to_float16_makes_ties():
    """At |x|^2 = 1024 float16 has steps of 1: a point just outside a ball comes to lie on its sphere."""
    real = np.array([[32.0, 0.0], [32.0, 1.0], [32.0, 2.0], [32.0, 3.0]])
    fake = np.array([[32.0, -3.01], [32.0, 6.01], [32.0, -3.01], [32.0, 6.01]])
    assert precision_recall(real, fake, 3, "float16").precision == 1
    assert precision_recall(real, fake, 3, "float32").precision == 0


def test_identical_sets_are_precise_and_complete_and_disjoint_ones_neither(rng):
    real = rng.normal(size=(50, 8))
    for precision in ("float16", "float32"):
        same = precision_recall(real, real.copy(), 3, precision)
        apart = precision_recall(real, real + 20, 3, precision)
        assert (same.precision, same.recall) == (1.0, 1.0)
        assert (apart.precision, apart.recall) == (0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_not_complete(rng):
    real = rng.normal(size=(200, 4))
    fake = real[:1] + 1e-3 * rng.normal(size=(200, 4))
    found = precision_recall(real, fake)
    assert found.precision == 1.0
    assert found.recall <= 0.01


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_blocks_do_not_show(rng, precision):
    real, fake = (rng.normal(size=(n, 64)).astype(np.float32) + 2 for n in (70, 90))
    whole = precision_recall(real, fake, 3, precision)
    assert 0 < whole.precision < 1
    for block in (1, 7, 64):
        assert precision_recall(real, fake, 3, precision, block) == whole


def test_sets_without_neighbours_are_refused():
    with pytest.raises(ValueError, match="3 images have no 3 nearest neighbours"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_float16_holds_while_no_distance_can_overflow():
    ends = np.array([[127.0], [-127.0]])
    assert float16_holds(ends)
    assert not float16_holds(ends, 2 * ends)
    half = ends.astype(np.float16)
    assert np.isfinite((half[0] - half[1]) ** 2)
