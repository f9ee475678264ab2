"""The published comparisons: a table says what its file says."""

import json
from pathlib import Path

import numpy as np
import pytest

PIXELS = ("pixel_frechet_ratio", "spread_8", "spread")
OTHERS = ("frechet_ratio", "precision_matched", "recall_matched", "class_accuracy", "copies")
TABLES = {  # file: heading over its table, and metrics that have an interval
    "comparison.json": ("## What came out", PIXELS),
    "comparison-photos.json": ("## On photographs", ("pixel_frechet_distance", *PIXELS[1:])),
}


@pytest.fixture(params=TABLES)
def published(request, repository) -> tuple[list[dict], dict[str, list[str]], tuple[str, ...]]:
    """The rows of a file, the cells of its table by method, and the metrics of the first columns."""
    heading, pixels = TABLES[request.param]
    rows = json.loads((repository / "docs" / request.param).read_text())
    page = Path(repository / "docs/comparison.md").read_text()
    lines = page[page.index(heading) :].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows, {name: values for name, *values in cells[2 : 2 + len(rows)]}, pixels


def short(number: float, digits: int) -> str:
    """As the page writes it: no zero before the point."""
    return f"{number:.{digits}f}".removeprefix("0") if number < 1 else f"{number:.{digits}f}"


def digits_of(metric: str) -> int:
    return {"copies": 3, "pixel_frechet_distance": 1}.get(metric, 2)


def test_every_cell_is_the_mean_and_half_of_the_range_of_the_seeds(published):
    rows, lines, pixels = published
    assert list(lines) == [row["name"] for row in rows]
    for row in rows:
        cells = dict(zip((*pixels, *OTHERS), lines[row["name"]], strict=False))
        for metric, cell in cells.items():
            values, digits = [seed[metric] for seed in row["seeds"]], digits_of(metric)
            mean, half = np.mean(values), (max(values) - min(values)) / 2
            assert cell.startswith(f"{short(mean, digits)} ± {short(half, digits)}"), (row["name"], metric)


def test_intervals_are_means_over_the_seeds(published):
    rows, lines, pixels = published
    for row in rows:
        for metric, cell in zip(pixels, lines[row["name"]], strict=False):
            ends = np.mean([seed[f"{metric}_interval"] for seed in row["seeds"]], axis=0)
            low, high = (short(end, digits_of(metric)) for end in ends)
            assert cell.endswith(f"({low} to {high})"), (row["name"], metric)


def test_what_drawing_costs_and_the_setting_are_those_of_the_file(published):
    rows, lines, _ = published
    for row in rows:
        decibels, forwards, milliseconds, setting = lines[row["name"]][8:]
        assert decibels == f"{row['reconstruction']['psnr']:.1f} dB"
        assert (int(forwards), setting) == (row["forwards"], row["sampler"])
        assert int(milliseconds) == round(1000 * row["seconds_per_image"])
