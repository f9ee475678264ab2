"""Scaling: power laws are found again, every run has its FLOPs, and checkpoints are read as what they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rdpm.pipeline.exports.weights import load_model
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.studies import scaling as study
from rdpm.pipeline.studies.compare_plan import flops_per_step
from rdpm.pipeline.studies.scaling import Family, ScalingConfig, plan_runs, run
from rdpm.pipeline.studies.scaling_table import MEASURES, Reading, best_sizes, fit, plot, table
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import run as tokenize


def test_a_power_law_is_found_again():
    flops = np.array([1e12, 3e12, 1e13, 7e13])
    found = fit(flops, 5 * (flops / 1e12) ** -0.3)
    assert (found.factor, found.exponent) == pytest.approx((5, 0.3))
    assert found.error == pytest.approx(0, abs=1e-9)
    noisy = fit(flops, 5 * (flops / 1e12) ** -0.3 * np.array([1.1, 0.9, 1.1, 0.9]))
    assert abs(noisy.exponent - 0.3) < 2 * noisy.error


def test_there_is_no_power_law_through_what_is_not_positive_or_one_point():
    assert fit([1e12, 2e12], [0.5, -0.1]) is None
    assert fit([1e12], [0.5]) is None
    assert np.isnan(fit([1e12, 2e12], [0.5, 0.4]).error)


def made_readings() -> list[Reading]:
    """Two families in two sizes; a small one is better at first, a large one in the end."""
    readings = []
    for family, factor in (("ours", 2.0), ("flow", 1.5)):
        for depth, exponent in ((2, 0.1), (3, 0.4)):
            for number, step in enumerate((1, 2, 4)):
                flops = step * 10**12 + depth  # nearly equal in all sizes
                value = factor * depth * (flops / 1e12) ** -exponent
                metrics = dict.fromkeys(MEASURES, value) | {"spread_8": 1 - value, "pixel_frechet_ratio": 1 + value}
                readings.append(Reading(family, depth, number, step, flops, metrics))
    return readings


def test_the_best_size_is_taken_once_at_each_number_of_flops():
    readings = [each for each in made_readings() if each.family == "ours"]
    best = best_sizes(readings[::-1], "loss")
    assert [each.step for each in best] == [1, 2, 4]
    assert {each.depth for each in best} == {2, 3}
    for each in best:
        assert each.metrics["loss"] == min(other.metrics["loss"] for other in readings if other.step == each.step)


def test_the_table_holds_every_reading_and_every_fit():
    text = table(made_readings())
    assert text.count("| ours |") == 6 + 3
    assert "| flow | depth 3 | 0.400 ± 0.000 | 0.400 ± 0.000 | 0.400 ± 0.000 |" in text
    assert plot(made_readings()).startswith(b"\x89PNG")


def test_every_size_gets_the_same_flops_and_is_saved_where_it_is_read(monkeypatch, repository):
    monkeypatch.chdir(repository)
    config = load_config(ScalingConfig, "scaling", "configs/digits/scaling.yaml", [])
    runs = plan_runs(config)
    assert [(each.family, each.training.model.depth) for each in runs] == [
        (family, depth) for family in config.families for depth in (2, 3, 4)
    ]
    for each in runs:
        training = each.training
        assert training.steps * flops_per_step(training) == pytest.approx(config.teraflops * 1e12, rel=0.02)
        assert training.optimizer.lr_at(training.steps - 1, training.steps) == training.optimizer.lr
        assert each.steps[-1] == training.steps
        assert all(step % training.checkpoint_every == 0 for step in each.steps)
        assert training.keep_checkpoints * training.checkpoint_every == training.steps


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"families": {}}, "families or depths is empty"),
        ({"readings": 0}, "readings is 0; use 1 or more"),
        ({"teraflops": 0.0}, "teraflops is 0.0; use more than 0"),
        ({"depths": (2, 3, 2)}, r"depths is \[2, 3, 2\]; give each value once"),
        ({"families": {"RDPM": Family("t", "s"), "RDPM+": Family("t", "s")}}, "families RDPM, RDPM. share a folder"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    fields = dict.fromkeys(("images", "validation", "out", "store", "generator", "samples", "evaluation"), "x")
    with pytest.raises(ValueError, match=named):
        ScalingConfig(**fields, **{"families": {"a": Family("t", "s")}} | change)


@pytest.fixture
def small(tmp_path, digits, exports) -> ScalingConfig:
    """RDPM in one size, read twice, on few digits of two classes."""
    for number, (pixels, label) in enumerate(zip(digits[0][:90], digits[1][:90], strict=True)):
        path = tmp_path / ("train", "val")[number % 3 == 0] / ("one", "zero")[label % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    exports.tokenizer(f"{tmp_path}/tokenizer")
    parts = {
        "store": {"job": "tokenize", "images": "x", "tokenizer": "x", "out": "x", "shard_rows": 32, "chunk_rows": 32,
                  "resources": {"object_store_mb": 128}},
        "generator": {"job": "train-generator", "stores": ["x"], "tokenizer": "x", "out": "x", "batch": 8,
                      "micro_batch": 8, "steps": 2, "validation_images": 16, "engine": {"precision": "fp32"},
                      "stream": {"cache": str(tmp_path / "cache")}, "ema_decay": 0.5,
                      "optimizer": {"lr": 0.01, "warmup_steps": 1},
                      "model": {"num_classes": 2, "num_steps": 3, "codebook_size": 16, "code_dim": 4, "grid": 4}},
        "samples": {"job": "sample", "generator": "x", "tokenizer": "x", "out": "x", "batch": 8, "shard_rows": 16,
                    "resources": {"actors": 1, "object_store_mb": 128}},
        "evaluation": {"job": "evaluate", "samples": "x", "train_images": "x", "out": "x", "draws": 2,
                       "manifold_images": 20},
    }  # fmt: skip
    for name, tree in parts.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    paths = [f"images={tmp_path}/train", f"tokenizer={tmp_path}/tokenizer", f"out={tmp_path}/store"]
    tokenize(load_config(TokenizeConfig, "tokenize", f"{tmp_path}/store.yaml", paths))
    configs = {name: f"{tmp_path}/{name}.yaml" for name in parts}
    families = {"RDPM": Family(f"{tmp_path}/tokenizer", f"{tmp_path}/store")}
    return ScalingConfig(
        f"{tmp_path}/train", f"{tmp_path}/val", f"{tmp_path}/out", **configs, families=families, depths=(1,),
        teraflops=2e-3, readings=2, per_class=16,
    )  # fmt: skip


@pytest.mark.long
def test_checkpoints_are_read_and_a_finished_study_does_nothing_again(small, monkeypatch, capsys):
    run(small)
    out, (planned,) = Path(small.out), plan_runs(small)
    readings = json.loads((out / study.READINGS).read_text())
    assert [reading["step"] for reading in readings] == list(planned.steps)
    for metrics in (reading["metrics"] for reading in readings):
        assert np.isfinite(list(metrics.values())).all()
        assert metrics["excess_ratio"] == metrics["pixel_frechet_ratio"] - 1
        assert metrics["missing_spread"] == 1 - metrics["spread_8"]
    first, last = (load_model(f"{out}/rdpm-1.at-{step}")[0].state_dict() for step in planned.steps)
    trained = load_model(f"{out}/rdpm-1")[0].state_dict()
    assert all(torch.equal(last[name], value) for name, value in trained.items())  # the last checkpoint is the export
    assert not all(torch.equal(first[name], value) for name, value in trained.items())
    assert "best of all" in capsys.readouterr().out
    for stage in ("train_apart", "tokenize", "run_sets", "evaluate", "export_checkpoint"):
        monkeypatch.setattr(study, stage, lambda *_: pytest.fail("done again"))
    run(small)
