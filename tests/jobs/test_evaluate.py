"""rdpm evaluate SAMPLES reference=...: without a config, and without Inception's weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from rdpm.jobs.cli import main

V1 = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A folder in which nothing can be downloaded and nothing is cached."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def archive(alone, digits) -> str:
    """100 digits, grey as three channels, with their labels."""
    pixels = np.repeat(digits[0][100:200, :, :, None], 3, axis=3)
    np.savez(alone / "samples.npz", arr_0=pixels, arr_1=digits[1][100:200])
    return "samples.npz"


def measured(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_samples_and_a_folder_are_compared_in_pixels_with_a_sentence_about_the_weights(archive, digit_folder, capsys):
    assert main(["evaluate", archive, f"reference={digit_folder}", "threads=1"]) == 0
    said = capsys.readouterr().out
    (why,) = [line for line in said.splitlines() if "Inception" in line]
    assert why.startswith("evaluate: plain pixels are measured and no features, because Inception's weights could not")
    assert why.endswith("as inception_weights")
    assert "metrics go to samples.metrics.json" in said
    metrics = measured("samples.metrics.json")
    assert metrics["generator"].keys() == {
        "spread", "spread_interval", "spread_8", "spread_8_interval", "spread_32", "spread_32_interval",
        "pixel_frechet_distance", "pixel_frechet_distance_interval",
    }  # fmt: skip
    assert metrics["protocol"]["extractor"] == {"name": "none", "digest": ""}
    assert main(["evaluate", archive, f"reference={digit_folder}", "threads=1"]) == 0
    assert "samples.metrics.json is already there" in capsys.readouterr().out


def test_a_set_beside_itself_is_at_no_distance_whatever_form_it_has(archive, alone):
    """An .npz as reference; and a sample store beside itself."""
    assert main(["evaluate", archive, f"reference={archive}", "out=a.json", "threads=1"]) == 0
    assert main(["evaluate", f"{V1}/samples", f"reference={V1}/samples", "out=b.json", "threads=1"]) == 0
    for path in ("a.json", "b.json"):
        found = measured(path)
        assert found["generator"]["pixel_frechet_distance"] == pytest.approx(0, abs=2e-3)
        assert found["protocol"]["reference"]["digest"] == found["protocol"]["samples"]["digest"]


def test_held_out_images_stand_beside_the_samples(archive, digit_folder):
    given = [f"reference={archive}", f"images={digit_folder}", "out=c.json", "threads=1", "draws=2"]
    assert main(["evaluate", archive, *given]) == 0
    generator = measured("c.json")["generator"]
    assert {"pixel_frechet_distance_matched", "pixel_frechet_distance_real", "pixel_frechet_ratio"} <= generator.keys()


def test_what_cannot_be_is_one_sentence(archive, alone, capsys):
    np.savez(alone / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    for given, named in (
        (["nowhere.npz", "reference=samples.npz"], "'nowhere.npz' does not exist"),
        ([archive], "give reference or train_images"),
        ([archive, "reference=statistics.npz"], "extractor is none, and reference: it holds no images"),
        ([archive, "reference=samples.npz", "tokenizer=t", "extractor=none"], "a tokenizer needs another extractor"),
        ([archive, "referense=samples.npz"], "did you mean reference?"),
    ):
        assert main(["evaluate", *given]) == 2
        said = capsys.readouterr().err
        assert named in said
        assert said.count("\n") == 1
    assert not list(alone.glob("*.metrics.json"))
