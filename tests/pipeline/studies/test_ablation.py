"""The ablation's rows are the paper's Table 2, and its table says what was measured."""

from pathlib import Path

import numpy as np
import yaml

from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.studies.ablation import MEASURES, ROWS, plot, table
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


def test_the_table_holds_means_and_spreads_beside_the_papers_figures() -> None:
    rng = np.random.default_rng(0)
    results = {row.name: [{name: float(rng.random()) for name in MEASURES} for _ in range(2)] for row in ROWS}
    lines = table(results).splitlines()[2:]
    assert len(lines) == len(ROWS)
    cells = [cell.strip() for cell in lines[8].split("|")]
    mean = np.mean([seed["psnr"] for seed in results["9 (pow)"]])
    assert cells[8].startswith(f"{mean:.2f} ±")
    assert cells[9:12] == ["1.52", "0.6226", "29.97"]
    assert plot(results).startswith(b"\x89PNG")
