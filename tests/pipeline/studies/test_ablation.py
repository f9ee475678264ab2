"""The ablation's rows are the paper's Table 2, its table says what was measured, and it resumes where it was cut."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.studies import ablation
from rdpm.pipeline.studies.ablation import METRICS, ROWS, AblationConfig, plot, run, table
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig


def test_rows_are_those_of_table_2() -> None:
    paper = [row for row in ROWS if row.paper]
    assert [row.num_steps for row in paper] == [6, 8, 10, 12, 14, 20, 10, 10, 10]
    assert [(row.weight, row.bias) for row in paper[6:]] == [(True, False), (False, True), (True, True)]
    assert not any(row.weight or row.bias for row in paper[:6])
    assert {row.schedule for row in ROWS if row.weight and row.bias} == {"pow", "sin", "linear"}
    assert paper[8].paper == (1.52, 0.6226, 29.97)


def test_each_row_changes_the_base_config_as_it_says(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"images": "i", "out": "o"}))
    for row in ROWS:
        model = load_config(TrainTokenizerConfig, "train-tokenizer", str(base), row.overrides).model
        assert model.schedule.num_steps == row.num_steps
        assert model.schedule.weighted == row.weight
        assert model.schedule.kind == row.schedule
        assert model.quantizer.bias == row.bias


def test_the_table_holds_means_and_half_ranges_beside_the_papers_metrics() -> None:
    rng = np.random.default_rng(0)
    results = {row.name: [{name: float(rng.random()) for name in METRICS} for _ in range(2)] for row in ROWS}
    lines = table(results).splitlines()[2:]
    assert len(lines) == len(ROWS)
    cells = [cell.strip() for cell in lines[8].split("|")]
    values = [seed["psnr"] for seed in results["9 (pow)"]]
    assert cells[8] == f"{np.mean(values):.2f} ± {abs(values[0] - values[1]) / 2:.2f}"
    assert cells[9:12] == ["1.52", "0.6226", "29.97"]
    assert plot(results).startswith(b"\x89PNG")


def test_impossible_settings_are_refused() -> None:
    for changes in ({"seeds": ()}, {"steps": 0}, {"parallel": 0}):
        with pytest.raises(ValueError, match="give one seed or more, and use 1 or more for the others"):
            AblationConfig(**{"base": "b", "images": "i", "validation": "v", "out": "o"} | changes)
    with pytest.raises(ValueError, match=r"seeds is \[1, 1\]; give each value once"):
        AblationConfig("b", "i", "v", "o", seeds=(1, 1))


@pytest.fixture
def small(tmp_path, digits, monkeypatch) -> AblationConfig:
    """Two rows and one seed on few digits, with a classifier of three steps."""
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(digits[0][:60], digits[1][:60], strict=True)):
        path = tmp_path / ("train", "val")[number % 3 == 0] / ("even", "odd")[label % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    autoencoder = {
        **{"in_channels": 1, "channels": 4, "multipliers": [1, 2], "num_res_blocks": 1},
        **{"attention_factors": [], "groups": 4},
    }
    base = {
        **{"job": "train-tokenizer", "images": "x", "out": "x", "batch": 8, "micro_batch": 8, "workers": 0},
        "model": {"image_size": 8, "autoencoder": autoencoder, "quantizer": {"codebook_size": 16, "code_dim": 4}},
        "loss": {"perceptual": "none", "adversarial": 0.0},
        "optimizer": {"lr": 0.004, "warmup_steps": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    first = replace(ROWS[0], num_steps=2)
    monkeypatch.setattr(ablation, "ROWS", (first, replace(ROWS[6], num_steps=2)))
    classifier = ablation.ClassifierConfig
    monkeypatch.setattr(ablation, "ClassifierConfig", lambda **shape: classifier(**shape, steps=3, batch=8))
    paths = {name: f"{tmp_path}/{name}" for name in ("out", "base.yaml", "train", "val")}
    return AblationConfig(
        paths["base.yaml"], paths["train"], paths["val"], paths["out"], seeds=(3,), steps=2, parallel=2
    )


def _trained(config: AblationConfig) -> dict[str, int]:
    """When the weights of each row were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(config.out).glob("row-*/model.safetensors")}


@pytest.mark.long
def test_a_row_that_is_trained_is_not_trained_again(small, monkeypatch, capsys) -> None:
    """The first run is cut after the first row; the second trains only the other row."""
    train_apart = ablation.train_apart

    def cut_after_the_first(title, stage, configs, parallel):
        train_apart(title, stage, configs[:1], parallel)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "train_apart", cut_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run(small)
    monkeypatch.setattr(ablation, "train_apart", train_apart)
    before = _trained(small)
    assert before.keys() == {"row-1-seed-3"}

    run(small)
    after = _trained(small)
    assert after.keys() == {"row-1-seed-3", "row-7-seed-3"}
    assert after["row-1-seed-3"] == before["row-1-seed-3"]
    record = json.loads(Path(f"{small.out}.record.json").read_text())
    assert record["finished"]
    for name, (metrics,) in record["result"].items():
        assert set(metrics) == set(METRICS), name
        assert np.isfinite(list(metrics.values())).all()
        kept = json.loads((Path(small.out) / f"row-{name}-seed-3" / "metrics.json").read_text())
        assert kept["metrics"] == metrics
    assert record["result"]["1"] != record["result"]["7"]

    monkeypatch.setattr(ablation, "train_apart", lambda *_: pytest.fail("trained again"))
    capsys.readouterr()
    run(small)
    assert "| 1 | pow | 2 |" in capsys.readouterr().out


@pytest.mark.long
def test_a_training_that_fails_ends_the_ablation_with_its_message(small) -> None:
    base = yaml.safe_load(Path(small.base).read_text())
    base["init"] = "nowhere"
    Path(small.base).write_text(yaml.safe_dump(base))
    with pytest.raises(ValueError, match="nowhere"):
        run(small)
    assert not json.loads(Path(f"{small.out}.record.json").read_text())["finished"]
