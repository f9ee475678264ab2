"""Metrics of plain pixels: closed forms, and independence of chunks, channels and forms of the images."""

import tracemalloc

import numpy as np
import pytest

from rdpm.pipeline.evaluation import image_sets
from rdpm.pipeline.evaluation.boxes import box_means
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.image_sets import ArchiveImages
from rdpm.pipeline.evaluation.novelty import thumbnails
from rdpm.pipeline.evaluation.pixels import load_or_take_reference, pixel_metrics, pixel_rows, take_pixels


@pytest.fixture
def mixed(digits):
    """The digits in random order, because neighbours were written by the same people: pixels and labels."""
    order = np.random.default_rng(0).permutation(len(digits[1]))
    return digits[0][order], digits[1][order]


@pytest.fixture
def archives(tmp_path, mixed):
    """Three disjoint sets of labelled digits: the reference, samples and held-out images."""
    paths = []
    for name, part in (("reference", slice(0, 800)), ("samples", slice(800, 1400)), ("held out", slice(1400, 1700))):
        path = tmp_path / f"{name}.npz"
        np.savez(path, np.repeat(mixed[0][part, ..., None], 3, axis=-1), mixed[1][part])
        paths.append(str(path))
    return paths


def test_boxes_are_means_of_squares_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 20, 20, 2)).astype(np.uint8)
    means = box_means(pixels, 8)
    assert means.shape == (3, 6, 6, 2)  # boxes of 3 x 3; two rows and columns are left out
    assert means[1, 2, 4, 1] == pixels[1, 6:9, 12:15, 1].mean()
    assert np.array_equal(box_means(pixels, 20), pixels)
    assert np.array_equal(thumbnails(pixels), pixels.reshape(3, -1))


def test_rows_have_mean_squares_and_grey_counts_once():
    pixels = np.random.default_rng(0).integers(0, 256, size=(4, 16, 16, 1)).astype(np.uint8)
    rows = pixel_rows(pixels)
    assert rows.shape == (4, 64)
    difference = box_means(pixels[:1], 8) - box_means(pixels[1:2], 8)
    assert ((rows[0] - rows[1]) ** 2).sum() == pytest.approx((difference**2).mean(), rel=1e-5)
    colour = pixel_rows(np.repeat(pixels, 3, axis=-1))
    assert ((colour[0] - colour[1]) ** 2).sum() == pytest.approx(((rows[0] - rows[1]) ** 2).sum(), rel=1e-5)


def test_metrics_are_those_of_whole_arrays(archives, mixed, tmp_path):
    """Distances of the rows in memory, and no draw: samples and held-out images need not be equally many."""
    reference, samples, held_out = (ArchiveImages(path, 1) for path in archives)
    draws = [np.arange(0, 600, 2), np.arange(1, 600, 2)]
    metrics = pixel_metrics(
        load_or_take_reference(reference, str(tmp_path)), take_pixels(samples), take_pixels(held_out), draws, 0
    )
    rows = pixel_rows(mixed[0][:1700, ..., None])
    a, b, c = rows[:800], rows[800:1400], rows[1400:]
    assert metrics["pixel_frechet_distance"] == pytest.approx(frechet_of(a, b), rel=1e-4)
    assert metrics["pixel_frechet_distance_real"] == pytest.approx(frechet_of(a, c), rel=1e-4)
    matched = np.mean([frechet_of(a, b[draw]) for draw in draws])
    assert metrics["pixel_frechet_distance_matched"] == pytest.approx(matched, rel=1e-4)
    assert metrics["pixel_frechet_ratio"] == pytest.approx(matched / frechet_of(a, c), rel=1e-4)
    for name in ("spread", "spread_8", "spread_32", "pixel_frechet_distance", "pixel_frechet_ratio"):
        low, high = metrics[f"{name}_interval"]
        assert low < metrics[name] < high
    for name in ("spread", "spread_8", "spread_32"):
        assert 0.85 < metrics[name] < 1.15  # all are real digits
        assert 0.8 < metrics[f"{name}_real"] < 1.2


def test_neither_chunks_nor_the_file_of_the_sums_change_anything(archives, tmp_path, monkeypatch):
    reference, samples, _ = (ArchiveImages(path, 1) for path in archives)
    results = []
    for chunk in (7, 250, 250):
        monkeypatch.setattr(image_sets, "CHUNK", chunk)
        sums = load_or_take_reference(reference, f"{tmp_path}/{chunk}")
        results.append(pixel_metrics(sums, take_pixels(samples), None, [], 0))
    assert results[1] == results[2]  # taken, then read
    for name, value in results[0].items():
        assert value == pytest.approx(results[1][name], rel=1e-6)


def test_memory_does_not_grow_with_the_reference(tmp_path):
    peaks = []
    for count in (500, 4000):
        np.savez(tmp_path / f"{count}.npz", np.zeros((count, 16, 16, 3), np.uint8))
        images = ArchiveImages(f"{tmp_path}/{count}.npz", 3)
        tracemalloc.start()
        load_or_take_reference(images, f"{tmp_path}/{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_without_labels_the_spread_is_over_the_whole_set(archives, mixed, tmp_path):
    """Its value is the ratio of total variances, which a set of one class only fails."""
    path = tmp_path / "unlabelled.npz"
    ones = np.repeat(mixed[0][mixed[1] == 1][..., None], 3, axis=-1)
    np.savez(path, ones)
    sums = load_or_take_reference(ArchiveImages(archives[0], 1), str(tmp_path))
    metrics = pixel_metrics(sums, take_pixels(ArchiveImages(str(path), 1)), None, [], 0)
    whole = pixel_rows(mixed[0][:800, ..., None]).var(axis=0, ddof=1).sum()
    assert metrics["spread"] == pytest.approx(pixel_rows(ones).var(axis=0, ddof=1).sum() / whole, rel=0.01)
    assert "spread_real" not in metrics
    assert "pixel_frechet_ratio" not in metrics
