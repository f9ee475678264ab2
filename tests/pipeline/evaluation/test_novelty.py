"""Nearest images are those of the brute force, in any blocks and parts."""

import numpy as np
import pytest

from rdpm.pipeline.evaluation import novelty
from rdpm.pipeline.evaluation.novelty import nearest, nearest_distance, thumbnails


def _images(seed, n, size, channels=1):
    return np.random.default_rng(seed).integers(0, 256, size=(n, size, size, channels)).astype(np.uint8)


def _brute(queries, references):
    return np.array([[((q.astype(float) - r) ** 2).sum() for r in references] for q in queries])


def test_nearest_is_the_brute_force_and_zero_for_copies(monkeypatch):
    references = _images(0, 40, 4).reshape(40, -1)
    queries = np.concatenate([references[5:8], _images(1, 20, 4).reshape(20, -1)])
    expected = _brute(queries, references)
    for block in (3, 4096):
        monkeypatch.setattr(novelty, "_BLOCK", block)
        neighbours = nearest(queries, references, 3)
        assert np.array_equal(neighbours.squared, np.sort(expected, axis=1)[:, :3])
        assert np.array_equal(neighbours.indices[:3, 0], [5, 6, 7])
    with pytest.raises(ValueError, match="40 references are fewer than the 41 nearest asked for"):
        nearest(queries, references, 41)


def test_references_in_any_parts_give_the_same_distances(monkeypatch):
    references, queries = _images(0, 40, 4).reshape(40, -1), _images(1, 9, 4).reshape(9, -1)
    expected = np.sqrt(_brute(queries, references).min(axis=1) / 16)
    for block, parts in ((4096, [references]), (2, np.split(references, [1, 7, 30]))):
        monkeypatch.setattr(novelty, "_BLOCK", block)
        assert np.array_equal(nearest_distance(queries, parts), expected)


def test_small_images_are_their_own_thumbnails():
    images = _images(0, 3, 16, 3)
    assert np.array_equal(thumbnails(images), images.reshape(3, -1))


def test_thumbnails_are_box_means_rounded_to_grey_levels():
    images = _images(0, 2, 70, 3)  # boxes of 3 x 3; the 70th row and column are left out
    small = thumbnails(images).reshape(2, 23, 23, 3)
    for y, x in ((0, 0), (22, 22), (4, 9)):
        box = images[:, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].reshape(2, 9, 3).mean(axis=1)
        assert np.array_equal(small[:, y, x], box.round())
