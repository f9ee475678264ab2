"""Pictures show the first images of each class, and nothing is picked."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.evaluation.splits import SampleSet, Split
from rdpm.pipeline.reporting.pictures import first_of_class, nearest_grids, sample_grid, sample_sheet, step_grid


def _samples(n: int, classes: int = 2) -> SampleSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(n, 8, 8, 1)).astype(np.uint8)
    names = tuple(f"class {y}" for y in range(classes))
    return SampleSet(
        None, names, pixels, np.arange(n) % classes, rng.integers(0, 16, size=(n, 3, 4, 4)).astype(np.uint16)
    )


def test_the_first_rows_of_the_first_classes_are_chosen():
    labels = np.array([3, 1, 3, 1, 3])
    chosen = [(label, rows.tolist()) for label, rows in first_of_class(labels, 2)]
    assert chosen == [(1, [1, 3]), (3, [0, 2])]
    assert len(first_of_class(np.arange(30), 1)) == 10


def test_samples_are_in_a_row_per_class():
    markup = sample_grid(_samples(24))
    assert markup.count("<img") == 2 * 10
    assert markup.index('alt="sample 18 of class class 0"') < markup.index('alt="sample 1 of class class 1"')


def test_steps_are_decoded_one_after_the_other():
    decoded = []

    def decode(codes, steps):
        decoded.append((len(codes), steps))
        return np.zeros((len(codes), 8, 8, 1), np.uint8)

    markup = step_grid(SimpleNamespace(decode=decode), _samples(6))
    assert decoded == [(2, 1), (2, 2), (2, 3)]
    assert markup.count("<img") == 2 * 3
    assert 'alt="sample 1 of class class 1 after t = 3"' in markup


def test_nearest_training_images_are_shown_with_their_distances():
    samples = _samples(6)
    other = samples.pixels.copy()
    other[4] = np.where(other[4] < 128, other[4] + 2, other[4] - 2)  # two grey levels away in every pixel
    train = Split("d", samples.classes, other[[4, 0]], samples.labels[[4, 0]])
    first, closest = nearest_grids(samples, train).split("The samples nearest to training images")
    assert first.count("<figcaption>0.0</figcaption>") == 1  # sample 0 is a copy
    assert closest.index('alt="sample 0 of') < closest.index('alt="sample 4 of') < closest.index('alt="sample 1 of')
    assert "<figcaption>2.0</figcaption>" in closest


@pytest.mark.parametrize(("size", "scale"), [(8, 6), (64, 1)])
def test_the_sheet_enlarges_small_images_by_an_integer(size, scale):
    samples = _samples(4)
    large = np.zeros((4, size, size, 1), np.uint8)
    large[0, 0, 0] = 200
    sheet = Image.open(io.BytesIO(sample_sheet(SampleSet(None, samples.classes, large, samples.labels, samples.codes))))
    pitch = size * scale + 4
    assert sheet.size == (2 * pitch + 4, 2 * pitch + 4)
    assert (np.asarray(sheet) == 200).sum() == scale**2
