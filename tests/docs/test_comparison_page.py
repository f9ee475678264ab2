"""The published comparison: its table says what its file says."""

import json
from pathlib import Path

import numpy as np
import pytest

PIXELS = ("pixel_frechet_ratio", "spread_8", "spread")
OTHERS = ("frechet_ratio", "precision_matched", "recall_matched", "class_accuracy", "copies")


@pytest.fixture(scope="module")
def rows(repository) -> list[dict]:
    return json.loads((repository / "docs/comparison.json").read_text())


@pytest.fixture(scope="module")
def lines(repository, rows) -> dict[str, list[str]]:
    """The cells of the page's first table by method."""
    page = Path(repository / "docs/comparison.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page if line.startswith("|")]
    return {name: values for name, *values in cells[2 : 2 + len(rows)]}


def short(number: float, digits: int) -> str:
    """As the page writes it: no zero before the point."""
    return f"{number:.{digits}f}".removeprefix("0") if number < 1 else f"{number:.{digits}f}"


def test_every_cell_is_the_mean_and_half_of_the_range_of_the_seeds(rows, lines):
    assert list(lines) == [row["name"] for row in rows]
    for row in rows:
        cells = dict(zip((*PIXELS, *OTHERS), lines[row["name"]], strict=False))
        for metric, cell in cells.items():
            values, digits = [seed[metric] for seed in row["seeds"]], 3 if metric == "copies" else 2
            mean, half = np.mean(values), (max(values) - min(values)) / 2
            assert cell.startswith(f"{short(mean, digits)} ± {short(half, digits)}"), (row["name"], metric)


def test_intervals_are_means_over_the_seeds(rows, lines):
    for row in rows:
        for metric, cell in zip(PIXELS, lines[row["name"]], strict=False):
            low, high = np.mean([seed[f"{metric}_interval"] for seed in row["seeds"]], axis=0)
            assert cell.endswith(f"({short(low, 2)} to {short(high, 2)})"), (row["name"], metric)


def test_what_drawing_costs_and_the_setting_are_those_of_the_file(rows, lines):
    for row in rows:
        decibels, forwards, milliseconds, setting = lines[row["name"]][8:]
        assert decibels == f"{row['reconstruction']['psnr']:.1f} dB"
        assert (int(forwards), setting) == (row["forwards"], row["sampler"])
        assert int(milliseconds) == round(1000 * row["seconds_per_image"])
