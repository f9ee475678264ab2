"""A training that is stopped, killed, or given other ranks continues as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.training.trainings import arguments, log_lines, resume_everywhere, train, worst

STAGES = {f"zero-{stage}": (f"engine.zero_stage={stage}",) for stage in range(4)}
STAGES["offload"] = ("engine.zero_stage=2", "engine.offload=true")
SHOWN = {"generator": "loss", "tokenizer": "reconstruction"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage", "steps"),
    [
        ("generator", 2, 4),
        pytest.param("generator", 2, 40, marks=pytest.mark.long),
        pytest.param("tokenizer", 1, 6, marks=pytest.mark.long),
    ],
)
def test_resuming_at_every_step_gives_the_same_bits(two_ranks, inputs, tmp_path, kind, stage, steps) -> None:
    options = [f"engine.zero_stage={stage}", *(["workers=1"] if kind == "tokenizer" else [])]
    wrong = two_ranks.run(resume_everywhere, kind, inputs, tmp_path / "out", steps, *options)
    assert wrong == [[], []]
    assert len(list(tmp_path.glob("out-from-*"))) == steps - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_a_training_that_was_killed_after_its_last_checkpoint_makes_the_same_export(inputs, tmp_path, kind) -> None:
    options = ["steps=2", "checkpoint_every=1"]
    train(None, kind, inputs, tmp_path / "out", *options)
    made = {name: (tmp_path / "out" / name).read_bytes() for name in ("model.safetensors", "card.json")}
    for name in made:
        (tmp_path / "out" / name).unlink()
    train(None, kind, inputs, tmp_path / "out", *options)
    assert made == {name: (tmp_path / "out" / name).read_bytes() for name in made}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", pytest.param("tokenizer", marks=pytest.mark.long)])
def test_other_ranks_and_zero_stages_see_the_same_batches(two_ranks, inputs, tmp_path, kind) -> None:
    options = ["checkpoint_every=3"]
    changing, straight = tmp_path / "changing", tmp_path / "straight"
    train(None, kind, inputs, changing, "steps=3", "engine.zero_stage=1", *options)
    two_ranks.run(train, kind, inputs, changing, "steps=6", "engine.zero_stage=0", *options)
    two_ranks.run(train, kind, inputs, changing, "steps=9", "engine.zero_stage=3", *options)
    train(None, kind, inputs, changing, "steps=12", "engine.zero_stage=2", *options)
    train(None, kind, inputs, straight, "steps=12", *options)
    assert worst(log_lines(changing), log_lines(straight), SHOWN[kind]) < 1e-4
    found, expected = (load_file(out / "model.safetensors") for out in (changing, straight))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name


@pytest.mark.long
def test_every_zero_stage_on_any_ranks_trains_alike(two_ranks, inputs, tmp_path) -> None:
    for name, settings in STAGES.items():
        options = ["steps=50", "checkpoint_every=50", *settings]
        train(None, "generator", inputs, tmp_path / f"1-{name}", *options)
        two_ranks.run(train, "generator", inputs, tmp_path / f"2-{name}", *options)
    first = log_lines(tmp_path / "1-zero-0")
    assert len(first) == 50
    assert first[-1]["loss"] < first[0]["loss"]
    for ranks in (1, 2):
        for name in STAGES:
            lines = log_lines(tmp_path / f"{ranks}-{name}")
            assert worst(lines, first, "loss") < 1e-5, (ranks, name)
            assert worst(lines, first, "gradient_norm") < 1e-3, (ranks, name)


@pytest.mark.long
def test_kills_at_random_steps_leave_no_trace(inputs, tmp_path, repository) -> None:
    steps = 60
    options = ["ranks=2", "micro_batch=4", f"steps={steps}", "checkpoint_every=1", "engine.zero_stage=2"]

    def start(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "rdpm", "train-generator", *arguments("generator", inputs, out, *options)]
        return subprocess.Popen(
            command, cwd=repository, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(job: subprocess.Popen) -> None:
        printed, _ = job.communicate(timeout=200)
        assert job.returncode == 0, printed[-3000:]

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(straight))
    chance = random.Random(0)
    for target in sorted(chance.sample(range(5, steps - 5), 5)):
        job = start(killed)
        while (not (killed / "log.jsonl").exists() or len(log_lines(killed)) < target) and job.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        assert job.poll() is None, job.communicate()[0][-3000:]
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    finish(start(killed))
    assert log_lines(killed) == log_lines(straight)
    for name in ("model.safetensors", "card.json"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
