"""`rdpm init` on real pictures, and the road from there with short trainings."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rdpm.jobs.cli import main
from rdpm.pipeline.images.listing import list_images
from tests.jobs.commands import ENVIRONMENT, Ended, assert_refused


@pytest.fixture
def rdpm(python, repository):
    def run(*arguments: str) -> Ended:
        command = [*python, "-m", "rdpm", *arguments]
        ended = subprocess.run(command, cwd=repository, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


def test_what_cannot_become_a_run_is_refused_and_leaves_nothing(capfd, tmp_path, digit_folder):
    def init(*arguments: str) -> Ended:
        return Ended(main(["init", *arguments]), *capfd.readouterr())

    few = tmp_path / "few"
    (few / "a").mkdir(parents=True)
    (few / "a" / "1.png").write_bytes(b"")
    refused = init(str(few), str(tmp_path / "run"))
    assert_refused(refused, "init", "hold 1 pictures")
    assert not (tmp_path / "run").exists()
    refused = init(digit_folder, str(tmp_path / "run"), "hours=-1")
    assert_refused(refused, "init", "hours is -1")


@pytest.mark.long
def test_init_and_run_end_in_a_report_and_move_nothing(rdpm, tmp_path, digit_folder, tree):
    before, out = tree(digit_folder), tmp_path / "run"
    made = rdpm("init", digit_folder, str(out), "size=8", "hours=1")
    assert made.code == 0, made.err
    for word in ("24 pictures", "grey", "few", "train-generator: about", "per rank", f"next: rdpm run {out}"):
        assert word in made.out, made.out
    assert_refused(rdpm("init", digit_folder, str(out)), "init", "has a run.yaml already")

    parts = [list_images(str(out / "pictures" / f"{name}.yaml")) for name in ("train", "held-out")]
    assert parts[0].classes == parts[1].classes == list_images(digit_folder).classes
    assert sum(map(len, parts)) == 24

    for name in ("tokenizer", "generator"):
        _shorten(out / f"{name}.yaml")
    went = rdpm("run", str(out))
    assert went.code == 0, went.err
    assert (out / "report.html").exists()
    stages = len(yaml.safe_load((out / "run.yaml").read_text())["stages"])
    assert f"{stages} of {stages} stages are done" in rdpm("status", str(out)).out
    assert tree(digit_folder) == before


def _shorten(path: Path) -> None:
    """Give a training 20 steps."""
    text = re.sub(r"(?m)^steps: \d+", "steps: 20", path.read_text())
    text = re.sub(r"warmup_steps: \d+", "warmup_steps: 2", text)
    assert yaml.safe_load(text)["steps"] == 20
    path.write_text(text)
