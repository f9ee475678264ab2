"""The page of a run is self-contained, shows what the run made, and refuses inputs of different runs."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from rdpm.pipeline.evaluation import inputs
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.stage import run as evaluate
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation.records import JobRecord
from rdpm.pipeline.reporting.report import ReportConfig
from rdpm.pipeline.reporting.stage import run as write_report
from tests.pipeline.evaluation.made_run import DRAWN, class_pixels, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One made run with its metrics, for all tests of this file."""
    made = make_run(tmp_path_factory.mktemp("run"))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "ClassifierConfig", functools.partial(ClassifierConfig, steps=3, batch=8))
        evaluate(made.config())
    torch.set_num_threads(threads)
    return made


def _config(run, out: Path, **changes) -> ReportConfig:
    root = run.root
    inputs = {name: f"{root}/{name}" for name in ("tokenizer", "generator", "store", "samples")}
    folders = {"images": f"{root}/val", "train_images": f"{root}/train"}
    return ReportConfig(**{"metrics": f"{root}/metrics.json", "out": str(out), **inputs, **folders} | changes)


def _assert_self_contained(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.slow
def test_one_self_contained_page_shows_the_whole_run(run, tmp_path, capsys):
    config = _config(run, tmp_path / "report.html", also_png=f"{tmp_path}/sheet.png")
    write_report(config)
    page = (tmp_path / "report.html").read_text()
    _assert_self_contained(page)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;2" in page
    for part in (
        "Fréchet distance (classifier)",
        "Plain pixels",
        "Equal counts",
        "Classes and copies",
        "Step by step",
        "Reconstructions",
        "Other conventions",
        "Learning rate",
        "Loss by step t",
        "Class accuracy by class",
        "Job train-generator",
        run.tokenizer_digest,
    ):
        assert part in page
    assert "Sampler settings" not in page
    assert Image.open(tmp_path / "sheet.png").size == (10 * 52 + 4, 3 * 52 + 4)
    capsys.readouterr()
    write_report(config)
    assert "already there" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_is_the_same_every_time(run, tmp_path):
    for name in ("a", "b"):
        write_report(_config(run, tmp_path / f"{name}.html"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def _sweep(folder: Path, digest: str) -> Path:
    """A finished sweep of one setting, in the form of the first release."""
    folder.mkdir()
    row = {"name": "Raw", "generator": "g", "measures": {"recall": 0.5, "frechet_distance": 1.25}, "pareto": []}
    row["sampler"] = {"guidance": 0.0, "ramp": "linear", "temperature": None, "top_k": 0, "top_p": 1.0}
    (folder / "sweep.json").write_text(json.dumps([row]))
    Image.new("L", (4, 4)).save(folder / "pareto.png")
    JobRecord("sweep", str(folder), {}, {"digests": [[digest, "t"]]}).finish({})
    return folder


@pytest.mark.slow
def test_a_sweep_of_this_generator_has_a_section(run, tmp_path):
    digest = read_card(f"{run.root}/generator", "generator").digest
    sweep = _sweep(tmp_path / "sweep", digest)
    write_report(_config(run, tmp_path / "report.html", sweep=str(sweep)))
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("Sampler settings") :]
    assert section.index(">Fréchet distance</th>") < section.index(">Recall</th>") < section.index(">1.25</td>")


def _diagnosis(path: Path, digest: str) -> Path:
    """A diagnosis of one step, as `rdpm diagnose` writes it."""
    kept = [{"step": s, "spread": 0.5 + s / 2, "spread_8": 0.25, "spread_32": 0.5, "correlation": s} for s in (0, 1)]
    steps = [{"step": 1, "cross_entropy": 1.25, "calibration_error": 0.125, "latent_spread": 0.75}]
    protocol = {"generator": {"digest": digest}, "images": {"images": 60}, "settings": {"spread": "within classes"}}
    path.write_text(json.dumps({"kept": kept, "steps": steps, "protocol": protocol}))
    return path


@pytest.mark.slow
def test_a_diagnosis_of_this_generator_has_a_section(run, tmp_path):
    diagnosis = _diagnosis(tmp_path / "diagnosis.json", run.generator_digest)
    write_report(_config(run, tmp_path / "report.html", diagnosis=str(diagnosis)))
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("<h2>Diagnosis</h2>") :]
    assert section.index("60 real images keep their codes") < section.index(">correlation</th>")
    assert section.index(">cross-entropy</th>") < section.index(">1.25</td>") < section.index(">0.125</td>")


def test_inputs_that_are_not_of_one_run_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no sweep.json; let rdpm sweep finish first"):
        write_report(_config(run, tmp_path / "a.html", sweep=f"{tmp_path}/nowhere"))
    sweep = _sweep(tmp_path / "sweep", "0" * 64)
    with pytest.raises(ValueError, match="does not contain generator"):
        write_report(_config(run, tmp_path / "b.html", sweep=str(sweep)))
    foreign = _diagnosis(tmp_path / "diagnosis.json", "0" * 64)
    with pytest.raises(ValueError, match=r"diagnosis .* belongs to generator 000000000000, not"):
        write_report(_config(run, tmp_path / "e.html", diagnosis=str(foreign)))
    with pytest.raises(ValueError, match="run rdpm diagnose first"):
        write_report(_config(run, tmp_path / "f.html", diagnosis=f"{tmp_path}/nowhere.json"))
    other = run.samples("other", *class_pixels(60, 60 + DRAWN))
    with pytest.raises(ValueError, match="give the files of one run"):
        write_report(_config(run, tmp_path / "c.html", samples=other))
    with pytest.raises(ValueError, match="run rdpm evaluate first"):
        write_report(_config(run, tmp_path / "d.html", metrics=f"{tmp_path}/nowhere.json"))
    card, numbers = f"{run.root}/generator/card.json", tmp_path / "numbers.json"
    numbers.write_text("[1, 2]")
    for other in (card, str(numbers)):
        with pytest.raises(ValueError, match="was not written by rdpm evaluate; give a file that it wrote"):
            write_report(_config(run, tmp_path / "g.html", metrics=other))
        with pytest.raises(ValueError, match="was not written by rdpm diagnose; give a file that it wrote"):
            write_report(_config(run, tmp_path / "h.html", diagnosis=other))
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_a_change_of_settings_is_refused(run, tmp_path):
    config = _config(run, tmp_path / "report.html")
    write_report(config)
    with pytest.raises(ValueError, match="also_png '' -> "):
        write_report(dataclasses.replace(config, also_png=f"{tmp_path}/sheet.png"))


@pytest.mark.slow
def test_a_run_of_the_first_release_can_be_reported(repository, tmp_path):
    """Cards, plans, records, logs and metrics of version 1."""
    root = repository / "tests" / "fixtures" / "v1"
    names = {name: f"{root}/{name}" for name in ("tokenizer", "generator", "store", "samples")}
    folders = {"images": f"{root}/images/val", "train_images": f"{root}/images/train"}
    config = ReportConfig(metrics=f"{root}/metrics.json", out=f"{tmp_path}/report.html", **names, **folders)
    write_report(config)
    page = (tmp_path / "report.html").read_text()
    _assert_self_contained(page)
    # One for the tokenizer and one for the generator, whose logs say learning_rate.
    assert page.count("Chart: Learning rate") == 2
    for part in ("Job train-tokenizer", "Job evaluate", read_card(names["generator"], "generator").digest[:12]):
        assert part in page
