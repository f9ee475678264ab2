"""The report's tables say what was measured, and leave out what was not."""

import re

import pytest

from rdpm.pipeline.reporting.tables import names_of, numbers_section, paper_section, sweep_table
from rdpm.storage_schemas.sweep import SweepRow


@pytest.fixture
def metrics() -> dict:
    """Metrics of a generator with everything, and of a tokenizer with one number and one list."""
    return {
        "tokenizer": {"psnr": 28.123456, "perplexity_by_step": [1.0]},
        "generator": {
            **{"frechet_distance": 0.5, "frechet_distance_real": 0.25, "frechet_distance_matched": 0.75},
            **{"inception_score": 8.5, "precision": 0.8, "recall": 0.6, "class_accuracy": 0.9},
        },
        "seconds": {"evaluate": 3.0, "prepare": 1.4, "train-tokenizer": 2.0},
        "protocol": {
            "extractor": {"name": "classifier"},
            "reference": {"images": 1500},
            "samples": {"images": 1000},
            "held_out": {"images": 297},
            "settings": {"draws": 10, "spread": "within classes"},
            "metrics": {"tokenizer.psnr": {"convention": "mean dB"}},
        },
    }


def _cells(markup: str) -> list[list[str]]:
    """The text of every table cell, by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [
        [re.sub(r"<small>.*?</small>|<[^>]+>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", r)] for r in rows
    ]


def test_samples_stand_beside_held_out_images(metrics):
    section = numbers_section(metrics)
    cells = _cells(section)
    assert ["Fréchet distance (classifier)", "0.5", "0.25"] in cells
    assert ["Fréchet distance (classifier)", "0.75", "0.25"] in cells  # equal counts
    assert ["Class accuracy", "0.9", ""] in cells
    assert ["psnr", "28.12"] in cells
    assert "reference of 1500 images" in section
    assert "mean over 10 random" in section
    assert "perplexity" not in section
    assert "Copies" not in section


def test_plain_pixels_are_the_first_table(metrics):
    metrics["generator"] |= {
        **{"spread": 0.65, "spread_real": 1.06, "spread_interval": [0.6, 0.7], "spread_8": 0.5, "spread_8_real": 1.0},
        **{"pixel_frechet_distance": 12.5, "pixel_frechet_ratio": 2.25, "kid": 0.001, "kid_real": -0.0001},
    }
    section = numbers_section(metrics)
    cells = _cells(section)
    assert cells[:3] == [
        ["Metric", "samples", "held-out images"],
        ["Spread", "0.65 [0.6, 0.7]", "1.06"],
        ["Spread, first 8 components", "0.5", "1"],
    ]
    assert cells.index(["Pixel Fréchet ratio", "2.25", ""]) < cells.index(
        ["Fréchet distance (classifier)", "0.5", "0.25"]
    )
    assert ["Kernel distance (classifier)", "0.001", "-0.0001"] in cells
    assert "Spread is measured within classes" in section


def test_metrics_of_an_earlier_release_have_no_table_of_pixels(metrics):
    assert "Plain pixels" not in numbers_section(metrics)


def test_jobs_are_in_the_order_in_which_they_run(metrics):
    cells = _cells(numbers_section(metrics))
    assert cells[-4:] == [["prepare", "1"], ["train-tokenizer", "2"], ["evaluate", "3"], ["all jobs", "6"]]


def test_what_was_not_measured_is_not_mentioned(metrics):
    """A reference from ADM's file has no count, and without draws nothing has equal counts."""
    metrics["protocol"]["reference"]["images"] = 0
    del metrics["generator"]["frechet_distance_matched"]
    section = numbers_section(metrics)
    assert "compared with a reference." in section
    assert "Equal counts" not in section


def test_the_run_is_the_first_row_above_the_papers_with_their_digits(metrics):
    assert paper_section(metrics, "this run", 2_180_000, 10) == ""  # the classifier's distance is no FID
    metrics["protocol"]["extractor"]["name"] = "inception"
    section = paper_section(metrics, "this run", 2_180_000, 10)
    cells = _cells(section)
    assert cells[1] == ["this run", "2.18M", "10", "0.5", "8.5", "0.8", "0.6"]
    assert ["RDPM (depth=20)", "602M", "10", "2.56", "295.1", "0.80", "0.58"] in cells
    assert ["CDM", "-", "8,100", "4.88", "158.7", "-", "-"] in cells
    assert "only if it has the same images and 50,000 samples; it has 1000." in section


def test_only_inceptions_metrics_are_called_fid():
    assert names_of("inception") == {
        **{"frechet": "FID", "spatial": "sFID", "score": "Inception score", "kernel": "KID"}
    }
    assert not any(word in name for name in names_of("classifier").values() for word in ("FID", "KID"))
    assert names_of("dinov2")["frechet"] == "FD-DINOv2"


def test_a_sweep_has_a_column_per_metric_that_all_rows_have():
    rows = [
        SweepRow("Raw", "g", {}, {"recall": 0.5, "frechet_distance": 1.25, "class_accuracy": 1.0}),
        SweepRow("+ CFG", "g", {}, {"recall": 0.25, "frechet_distance": 2.0}),
    ]
    assert _cells(sweep_table(rows)) == [
        ["Sampler", "Fréchet distance", "Recall"],
        ["Raw", "1.25", "0.5"],
        ["+ CFG", "2", "0.25"],
    ]
