"""The comparison with peers, on made-up checkouts: licences, models that do not run, what is counted, and the table."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks.peers.__main__ import NAMES, ROOT, home, measured, table


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    """The file that a peer's process runs."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "benchmarks" / "peers" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkouts(tmp_path) -> Path:
    """DiT and SiT under their licences, VAR under none that is known."""
    for name, text in (
        ("DiT", "\nAttribution-NonCommercial 4.0 International\n"),
        ("SiT", "MIT License\n"),
        ("VAR", "?"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE.txt").write_text(text)
    (tmp_path / "SiT" / "models.py").write_text("import no_such_package\n")
    return tmp_path


def options(checkouts: Path, **changed) -> argparse.Namespace:
    """The command's options."""
    given = {"device": "cpu", "precision": "bf16", "batch": 1, "seconds": 1.0, "noncommercial": False}
    return argparse.Namespace(checkouts=checkouts, python=sys.executable, **given | changed)


def test_what_may_not_be_run_or_is_not_there_is_left_out_by_name(checkouts) -> None:
    reasons = {name: measured(name, "train", options(checkouts))["error"] for name in ("DiT-XL/2", "VAR-d16", "MAR-B")}
    assert reasons == {
        "DiT-XL/2": "CC BY-NC 4.0 allows only non-commercial use; say so with --noncommercial",
        "VAR-d16": "the licence in VAR is none that we know, so it is not run",
        "MAR-B": "there is no checkout mar",
    }
    assert home("SiT-XL/2 (SDE)", checkouts, "python").licence == "MIT"
    assert home("RDPM d12", checkouts, "python").licence == "Apache-2.0"


@pytest.mark.long
def test_a_model_whose_code_does_not_run_is_left_out_with_its_error(checkouts) -> None:
    result = measured("SiT-XL/2 (SDE)", "train", options(checkouts))
    assert result["error"] == "ModuleNotFoundError: No module named 'no_such_package'"


def test_every_name_has_a_subject(measure) -> None:
    assert tuple(measure._subjects().SUBJECTS) == NAMES


def run(measure: ModuleType, sampling: bool):
    """What is asked of a measurement."""
    return measure._subjects().Run(sampling, 4, torch.device("cpu"), "fp32")


def test_a_training_step_is_counted_and_changes_the_weights(measure) -> None:
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8)
    subject = measure._subjects().Subject({"layer": layer}, lambda _: layer(x).square().mean(), weights=[layer])
    before = layer.weight.detach().clone()
    result = measure.Measurement(subject, run(measure, False), 0.1).result()
    assert result["flops"] == 2 * 2 * 4 * 8 * 16  # the product, and the gradient of the weights
    assert result["layer"] == 1
    assert result["seconds"] > 0
    assert not result["extrapolated"]
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_long_sampler_is_the_line_through_two_short_ones(measure, seconds) -> None:
    layer, x = nn.Linear(512, 512, bias=False), torch.randn(64, 512)
    calls = []

    def sample(steps: int) -> torch.Tensor:
        calls.append(steps)
        for _ in range(2 * steps + 3):
            image = layer(x)
        return image

    subject = measure._subjects().Subject({"layer": layer}, sample, 100, (2, 5))
    result = measure.Measurement(subject, run(measure, True), seconds).result()
    assert result["layer"] == 203
    assert result["flops"] == 203 * 2 * 64 * 512 * 512
    assert result["extrapolated"] is (seconds == 0)
    assert (100 in calls) is (seconds > 0)


def test_the_table_says_what_was_extrapolated_and_left_out() -> None:
    train = {
        "name": "A", "kind": "train", "parameters": 123_456_789, "images_per_s": 0.1234,
        "gflop_per_image": 1234.5, "peak_gib": 3.21, "licence": "MIT", "version": "abc",
    }  # fmt: skip
    sample = {**train, "kind": "sample", "forwards": {"transformer": 256, "head": 25_600}, "extrapolated": True}
    lines = table([train, sample, {"name": "B", "kind": "train", "error": "no | checkout"}]).splitlines()
    assert lines[2].split(" | ")[:3] == ["| A", "123.5 M", "0.123"]
    assert "about 0.123" in lines[2]
    assert "256 of the transformer, 25,600 of the head" in lines[2]
    assert lines[2].endswith("MIT, abc |")
    assert "*left out: no   checkout*" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_subjects_import_nothing_of_ours_before_they_are_built() -> None:
    """Else a peer's environment would need our packages."""
    text = (ROOT / "benchmarks" / "peers" / "subjects.py").read_text()
    assert not [line for line in text.splitlines() if line.startswith(("import rdpm", "from rdpm", "from benchmarks"))]
