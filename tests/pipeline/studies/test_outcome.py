"""A study is finished for what its stages' configs said, and for two sets of images that differ."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rdpm.pipeline.studies.ablation import AblationConfig
from rdpm.pipeline.studies.outcome import run_study
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import JOB

STAGES = {"base": (TrainTokenizerConfig, JOB)}


@pytest.fixture
def config(tmp_path) -> AblationConfig:
    """A study of two folders with an image each."""
    for name, size in (("train", 8), ("val", 16)):
        (tmp_path / name / "a").mkdir(parents=True)
        Image.new("L", (size, size)).save(tmp_path / name / "a" / "0.png")
    write(tmp_path / "base.yaml")
    return AblationConfig(*(f"{tmp_path}/{name}" for name in ("base.yaml", "train", "val", "out")))


def write(path: Path, **changes) -> None:
    path.write_text(yaml.safe_dump({"job": JOB, "images": "x", "steps": 10, "batch": 8, "micro_batch": 8} | changes))


def run(config: AblationConfig) -> int:
    """Start the study; how often it worked."""
    worked = []

    def study():
        worked.append(1)
        return (b"the table\n",), {}

    run_study("ablate-tokenizer", config, ("table.md",), study, STAGES)
    return len(worked)


def test_a_finished_study_prints_its_table_until_a_stage_is_asked_for_something_else(config, capsys):
    assert (run(config), run(config)) == (1, 0)
    assert capsys.readouterr().out.count("the table") == 2
    write(Path(config.base), workers=7)  # how fast it runs, not what comes out
    assert run(config) == 0
    write(Path(config.base), steps=20)
    with pytest.raises(ValueError, match=r"made with other settings \(stages.base.steps 10 -> 20\)"):
        run(config)


def test_a_study_that_an_earlier_release_finished_is_still_finished(config):
    run(config)
    record = Path(f"{config.out}.record.json")
    saved = json.loads(record.read_text())
    del saved["inputs"]["stages"]
    record.write_text(json.dumps(saved))
    assert run(config) == 0


def test_held_out_images_that_were_trained_on_are_refused(config):
    shutil.rmtree(config.validation)
    shutil.copytree(config.images, config.validation)
    with pytest.raises(ValueError, match=r"holds the same images as .*; give images that were not trained on"):
        run(config)
    assert not Path(config.out).exists()
