"""Trainings that the first release left in the middle are continued to the same end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rdpm.jobs.arguments import parse
from rdpm.models.generator import current_parts
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.stage import run as run_generator
from rdpm.pipeline.training.log import read_log
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import run as run_tokenizer
from tests.pipeline.training.trainings import checkpoint_steps

FIXTURE = Path(__file__).parents[2] / "fixtures" / "v1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
STAGES = {"tokenizer": (TrainTokenizerConfig, run_tokenizer), "generator": (TrainGeneratorConfig, run_generator)}


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the old release's folder, which is the working directory."""
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "v1"))
    monkeypatch.chdir(folder)
    return folder


def current_config(kind: str, *options: str) -> TrainTokenizerConfig | TrainGeneratorConfig:
    """The config that the old release was given, with the keys that today's release knows."""
    tree = yaml.safe_load(Path(f"configs/{kind}.yaml").read_text())
    for part in (tree["model"], tree["model"].get("autoencoder", {})):
        if "checkpoint" in part:
            part["activation_checkpointing"] = part.pop("checkpoint")
    path = f"{kind}-of-today.yaml"
    Path(path).write_text(yaml.safe_dump(tree))
    cache = [f"stream.cache={Path.cwd()}/cache"] if kind == "generator" else []
    return parse(STAGES[kind][0], f"train-{kind}", [path, f"out={kind}-halfway", *cache, *options])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_training_of_the_first_release_is_continued_to_the_same_end(kind, old, capsys) -> None:
    out = f"{kind}-halfway"
    assert read_record(out).version == 1
    assert [list(line)[-4] for line in read_log(f"{out}/log.jsonl")] == ["learning_rate"] * EXPECTED["halfway_step"]
    STAGES[kind][1](current_config(kind))
    assert f"continuing from step {EXPECTED['halfway_step']}" in capsys.readouterr().out

    lines = read_log(f"{out}/log.jsonl")
    assert [line["step"] for line in lines] == [step for step, _ in EXPECTED["losses"][kind]]
    for line, (_, loss) in zip(lines, EXPECTED["losses"][kind], strict=True):
        assert line["loss"] == pytest.approx(loss, abs=1e-4)
    old_lines, new_lines = lines[: EXPECTED["halfway_step"]], lines[EXPECTED["halfway_step"] :]
    assert all("learning_rate" in line and "lr" not in line for line in old_lines)
    assert all("lr" in line and "learning_rate" not in line for line in new_lines)
    whole = read_log(f"{kind}/log.jsonl")
    assert [line["lr"] for line in new_lines] == [line["learning_rate"] for line in whole[EXPECTED["halfway_step"] :]]

    found, expected = (load_file(f"{folder}/model.safetensors") for folder in (out, kind))
    if kind == "generator":
        expected = {
            name: torch.cat([expected[part] for part in parts]) for name, parts in current_parts(expected).items()
        }
    assert found.keys() == expected.keys()
    difference, length = (
        torch.cat([(found[name] * share - value).flatten() for name, value in expected.items()]).norm()
        for share in (1, 0)
    )
    assert difference < 1e-3 * length  # another processor's rounding, which Adam enlarges where gradients are zero
    assert read_card(out, kind).steps == 20
    assert read_record(out).finished
    saved = json.loads(Path(f"{out}/checkpoints/step-00000020/checkpoint.json").read_text())
    assert checkpoint_steps(Path(out)) == [20]
    assert saved["version"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("generator", "optimizer.lr=1e-3", "optimizer.lr 0.003 -> 0.001"),
        ("generator", "noise=stored", "noise 'fresh' -> 'stored'"),
        ("tokenizer", "model.schedule.base=0.5", "model.schedule.base 0.75 -> 0.5"),
        ("tokenizer", "micro_batch=4", "micro_batch 8 -> 4"),
    ],
)
def test_other_settings_than_those_of_the_first_release_are_refused(kind, change, named, old) -> None:
    with pytest.raises(ValueError) as refused:
        STAGES[kind][1](current_config(kind, change))
    assert f"{kind}-halfway was made with other settings ({named})" in str(refused.value)
    assert read_record(f"{kind}-halfway").version == 1
