"""Sweeps: which cells there are, which of them are best, sweeps of the first release, and a whole one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rdpm.jobs import sample, sweep
from rdpm.models.sampler import PRESETS, SamplerConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.foundation.config import identity_of, load_config, save_config, saved_identity
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.studies import sweep as study
from rdpm.pipeline.studies.sweep import Grid, Models, SweepConfig, best, collect, panels, plan_cells, plot, table
from rdpm.storage_schemas.sweep import SweepRow


@pytest.fixture
def base(tmp_path) -> SweepConfig:
    """Three strategies, with configs of a sampling and an evaluation."""
    save_config(f"{tmp_path}/samples.yaml", "sample", SampleConfig("g", "t", "samples", per_class=100, seed=5))
    (tmp_path / "evaluation.yaml").write_text(
        "job: evaluate\ntrain_images: train\nimages: val\ntokenizer: t\nsamples: samples\nout: metrics.json\n"
    )
    strategies = {"Raw": PRESETS["raw"], "+ CFG": PRESETS["cfg"], "+ Gumbel": PRESETS["gumbel"]}
    return SweepConfig(
        f"{tmp_path}/samples.yaml", f"{tmp_path}/evaluation.yaml", f"{tmp_path}/sweep", strategies, per_class=7
    )


def test_a_grid_is_every_combination_of_its_settings():
    samplers = Grid((0.0, 1.5), ("constant", "linear"), (0.0, 2.0)).samplers()
    assert set(samplers) == {
        *("guidance 0, argmax", "guidance 0, temperature 2"),
        *("guidance 1.5 constant, argmax", "guidance 1.5 constant, temperature 2"),
        *("guidance 1.5 linear, argmax", "guidance 1.5 linear, temperature 2"),
    }
    assert samplers["guidance 1.5 constant, temperature 2"] == SamplerConfig(1.5, "constant", 2.0)


def test_every_model_is_combined_with_every_sampler_in_a_folder_of_its_own(base):
    models = {name: Models(f"{name}/g", f"{name}/t") for name in ("sin", "pow")}
    cells = plan_cells(replace(base, models=models, grid=Grid(guidance=(3.0,))))
    assert [cell.name for cell in cells[:4]] == [
        *("sin, Raw", "sin, + CFG", "sin, + Gumbel", "sin, guidance 3 linear, temperature 1"),
    ]
    assert len({cell.samples.out for cell in cells}) == len({cell.evaluation.out for cell in cells}) == 8
    for cell in cells:
        model = models[cell.name.split(",")[0]]
        assert (cell.samples.generator, cell.samples.tokenizer) == (model.generator, model.tokenizer)
        assert (cell.evaluation.samples, cell.evaluation.tokenizer) == (cell.samples.out, model.tokenizer)
        assert (cell.samples.per_class, cell.samples.seed, cell.samples.formats) == (7, 5, ())
        assert cell.evaluation.train_images == "train"
    assert [cell.name for cell in plan_cells(replace(base, models=models, samplers={"x": PRESETS["raw"]}))] == [
        "sin", "pow",
    ]  # fmt: skip


def test_without_models_the_cells_are_those_of_the_sampling_config(base):
    cells = plan_cells(base)
    assert [cell.name for cell in cells] == ["Raw", "+ CFG", "+ Gumbel"]
    assert [cell.samples.sampler for cell in cells] == [PRESETS["raw"], PRESETS["cfg"], PRESETS["gumbel"]]
    assert {cell.samples.generator for cell in cells} == {"g"}


def test_an_empty_sweep_and_cells_of_the_same_folder_are_refused(base):
    with pytest.raises(ValueError, match="samplers is empty and there is no grid"):
        replace(base, samplers={})
    with pytest.raises(ValueError, match=r"two cells would be written to .*/sweep/cfg; give them names"):
        plan_cells(replace(base, samplers={"CFG": PRESETS["cfg"], "+ CFG": PRESETS["raw"]}))
    with pytest.raises(ValueError, match=r"grid.version is 1, this release has 2; leave version out"):
        Grid(version=1)


METRICS_OF = {
    "Raw": {"frechet_distance": 19.38, "inception_score": 69.5, "precision": 0.62, "recall": 0.58},
    "+ CFG": {"frechet_distance": 6.59, "inception_score": 215.5, "precision": 0.84, "recall": 0.41},
    "+ Gumbel": {"frechet_distance": 3.68, "inception_score": 244.6, "precision": 0.84, "recall": 0.49},
}


@pytest.fixture
def measured(base):
    """Cells with the metrics of the paper's Table 3, and their rows."""
    cells = plan_cells(base)
    for cell in cells:
        Path(cell.evaluation.out).parent.mkdir(exist_ok=True)
        Path(cell.evaluation.out).write_text(json.dumps({"generator": {**METRICS_OF[cell.name], "copies": 0.5}}))
    return cells, collect(cells)


def test_a_row_is_on_the_front_if_no_other_is_better_in_both_metrics(measured):
    cells, rows = measured
    assert panels(rows) == [("inception_score", "frechet_distance"), ("recall", "precision")]
    fronts = {row.name: row.pareto for row in rows}
    quality, overlap = "inception_score against frechet_distance", "recall against precision"
    assert fronts == {"Raw": (overlap,), "+ CFG": (), "+ Gumbel": (quality, overlap)}
    assert best(cells, rows).name == "+ Gumbel"


def test_the_table_has_the_form_of_the_papers_with_its_numbers_beside(base, measured):
    lines = table(replace(base, paper={"Raw": (19.38, 13.66)}), measured[1]).splitlines()
    assert lines[0].startswith("|  | Fréchet distance ↓ | inception score ↑ | precision ↑ | recall ↑ | Pareto | paper")
    assert lines[2] == "| Raw | 19.38 | 69.5 | 0.62 | 0.58 | recall against precision | 19.38 | 13.66 |  |  |  |"
    assert lines[4].startswith("| **+ Gumbel** | 3.68 | 244.6 |")
    assert len({line.count("|") for line in lines}) == 1
    varied = [replace(row, metrics={"spread_8": 0.5 + i, **row.metrics}) for i, row in enumerate(measured[1])]
    assert table(base, varied).splitlines()[0].startswith("|  | spread, first 8 → 1 | Fréchet distance ↓ |")
    assert plot(measured[1])[:8] == b"\x89PNG\r\n\x1a\n"


OLD_SAMPLER = {"guidance": 0.2, "ramp": "constant", "temperature": None, "top_k": 0, "top_p": 1.0}


def test_rows_of_the_first_release_are_read():
    """They said measures, their argmax was null, and their temperature multiplied the logits."""
    row = {"name": "Raw", "generator": "g", "measures": {"recall": 0.5}, "pareto": ["a against b"]}
    read = SweepRow.from_json({**row, "sampler": OLD_SAMPLER})
    assert (read.metrics, read.pareto) == ({"recall": 0.5}, ("a against b",))
    assert SamplerConfig(**read.sampler) == SamplerConfig(0.2, "constant", 0.0)
    assert SweepRow.from_json({**row, "sampler": {**OLD_SAMPLER, "temperature": 2.0}}).sampler["temperature"] == 0.5


def test_rows_are_read_as_they_were_written(measured, base, tmp_path):
    cells, rows = measured
    study._write(base, rows, best(cells, rows))
    assert [SweepRow.from_json(row) for row in json.loads((tmp_path / "sweep" / "sweep.json").read_text())] == rows


def test_settings_of_the_first_release_keep_their_meaning():
    """A grid of the first release with temperature 2 is one with 0.5 now."""
    paths = {"samples": "s", "evaluation": "e", "models": {}, "per_class": 50, "paper": {}}
    grid = {"guidance": [1.0], "ramp": ["linear"], "temperature": [None, 2.0]}
    old = {**paths, "samplers": {"x": {**OLD_SAMPLER, "temperature": 4.0}}, "grid": grid}
    now = SweepConfig(
        "s", "e", "out", {"x": SamplerConfig(0.2, "constant", 0.25)}, Grid((1.0,), ("linear",), (0.0, 0.5))
    )
    assert saved_identity(SweepConfig, old) == identity_of(now)
    other = replace(now, grid=Grid((1.0,), ("linear",), (0.0, 2.0)))
    assert saved_identity(SweepConfig, old) != identity_of(other)


def test_a_finished_sweep_of_the_first_release_is_not_run_again(base, tmp_path, exports, monkeypatch, capsys):
    """Its record has every setting of the evaluation, also those that decide nothing."""
    card = exports.tokenizer(f"{tmp_path}/t")
    digests = [exports.generator(f"{tmp_path}/g", card).digest, card.digest]
    monkeypatch.chdir(tmp_path)
    config = replace(base, samplers={"Raw": SamplerConfig(0.2, "constant", 0.0)})
    evaluation = {
        **{"reference": "", "images": "", "train_images": "train", "extractor": "classifier", "inception_weights": ""},
        **{"perceptual": "none", "manifold_images": 10_000, "draws": 10, "seed": 0, "batch": 64, "threads": 2},
        "timed": [],
    }
    settings = {
        **{"samples": config.samples, "evaluation": config.evaluation, "samplers": {"Raw": OLD_SAMPLER}, "grid": None},
        **{"models": {}, "per_class": 7, "paper": {}, "digests": [digests], "measured": evaluation},
    }
    record = {"job": "sweep", "identity": "i", "settings": settings, "finished": True, "seconds": 1.0, "result": {}}
    Path(f"{config.out}.record.json").write_text(json.dumps(record))
    Path(config.out).mkdir()
    for name in ("table.md", "sweep.json", "pareto.png", "best.yaml"):
        (Path(config.out) / name).write_text("the old table")
    study.run(config)
    assert "the old table" in capsys.readouterr().out
    record["settings"]["measured"]["draws"] = 3
    Path(f"{config.out}.record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"made with other settings \(measured"):
        study.run(config)


@pytest.mark.long
def test_a_sweep_resumes_where_it_was_cut_and_ends_in_a_table_and_the_best_config(
    tmp_path, exports, digits, monkeypatch, capsys
):
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(digits[0][:120], digits[1][:120], strict=True)):
        split, name = ("train", "val")[number % 3 == 0], ("zero", "one")[label % 2]
        path = tmp_path / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    exports.generator(f"{tmp_path}/generator", exports.tokenizer(f"{tmp_path}/tokenizer"))
    card = json.loads((tmp_path / "generator" / "card.json").read_text())
    card["made_from"]["classes"] = ["one", "zero"]  # in the order of the class folders
    (tmp_path / "generator" / "card.json").write_text(json.dumps(card))
    few = "resources: {cpus: 4, object_store_mb: 128, actors: 1}"
    (tmp_path / "samples.yaml").write_text(
        f"generator: {tmp_path}/generator\ntokenizer: {tmp_path}/tokenizer\nout: {tmp_path}/samples\n"
        f"per_class: 40\nbatch: 10\nshard_rows: 20\n{few}\n"
    )
    (tmp_path / "evaluation.yaml").write_text(
        f"train_images: {tmp_path}/train\nimages: {tmp_path}/val\ntokenizer: x\nsamples: x\nout: x\ndraws: 2\n"
    )
    arguments = [
        f"samples={tmp_path}/samples.yaml", f"evaluation={tmp_path}/evaluation.yaml", f"out={tmp_path}/sweep",
        "per_class=30", "samplers={Raw: raw, drawn: {temperature: 0.7}}", "grid.guidance=[2.0]",
    ]  # fmt: skip
    evaluated = []

    def cut_at_the_second(config: EvaluateConfig) -> None:
        evaluated.append(config.out)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluate(config)

    evaluate = study.evaluate
    monkeypatch.setattr(study, "evaluate", cut_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(arguments)
    assert not (tmp_path / "sweep" / "table.md").exists()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/manifest.json")}
    assert len(stamps) == 3
    sweep.main(arguments)
    assert len(evaluated) == 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["name"] for row in rows] == ["Raw", "drawn", "guidance 2 linear, temperature 1"]
    assert all(np.isfinite(list(row["metrics"].values())).all() for row in rows)
    lowest = min(rows, key=lambda row: row["metrics"]["frechet_distance"])
    ready = load_config(SampleConfig, sample.JOB, f"{tmp_path}/sweep/best.yaml", [])
    assert vars(ready.sampler) == lowest["sampler"]
    assert (ready.per_class, ready.formats, ready.out) == (40, ("npz",), f"{tmp_path}/samples-best")
    capsys.readouterr()
    sweep.main(arguments)
    assert "guidance 2 linear, temperature 1" in capsys.readouterr().out
    assert len(evaluated) == 5
