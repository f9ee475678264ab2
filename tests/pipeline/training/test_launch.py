"""The ranks that a training starts itself: what they are given, how they end, and what is left of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.stage import run
from rdpm.pipeline.training.launch import under_launcher
from tests.pipeline.training.trainings import arguments, checkpoint_steps, config, log_lines, train, worst

OPTIONS = ["ranks=2", "micro_batch=4", "steps=100000", "checkpoint_every=100000", "engine.zero_stage=2"]


def steps_done(out: Path) -> int:
    """Lines of the log so far."""
    return len(log_lines(out)) if (out / "log.jsonl").exists() else 0


@pytest.fixture
def start(inputs, tmp_path, repository) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a generator's training of several ranks through the command line, and wait for so many steps."""
    jobs = []

    def start(out: Path, steps: int, *options: str) -> subprocess.Popen:
        options = (*OPTIONS, *options)
        command = [sys.executable, "-m", "rdpm", "train-generator", *arguments("generator", inputs, out, *options)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        job = subprocess.Popen(
            command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        jobs.append(job)
        while steps_done(out) < steps:
            assert job.poll() is None, job.communicate()[0][-3000:]
            time.sleep(0.02)
        return job

    yield start
    for job in jobs:
        job.kill()


def ranks_of(job: subprocess.Popen) -> dict[str, psutil.Process]:
    """The ranks that a job started, by their numbers."""
    found = {}
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RANK" in (environment := process.environ()) and "rdpm" in process.cmdline():
                found[environment["RANK"]] = process
    return found


@pytest.mark.slow
def test_ranks_get_the_config_as_a_file_and_sigterm_saves_and_ends_them(start, inputs, tmp_path) -> None:
    out = tmp_path / "out"
    job = start(out, 3)
    ranks = ranks_of(job)
    assert set(ranks) == {"0", "1"}
    for process in ranks.values():
        *_, module, name, path = process.cmdline()
        assert (module, name) == ("rdpm", "train-generator")
        assert load_config(TrainGeneratorConfig, name, path, []) == config("generator", inputs, out, *OPTIONS)
    job.send_signal(signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 143, printed[-3000:]
    assert "stopped by SIGTERM after step" in printed
    assert "run_id" not in printed  # which torch would warn about
    assert checkpoint_steps(out) == [steps_done(out)]
    assert not os.path.exists(path)
    assert not any(process.is_running() for process in ranks.values())


@pytest.mark.long
def test_ranks_end_when_their_launcher_is_killed_while_they_start(start, tmp_path) -> None:
    job = start(tmp_path / "out", 0)
    while len(ranks := ranks_of(job)) < 2:  # they now load PyTorch, for seconds
        assert job.poll() is None, job.communicate()[0][-3000:]
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs(ranks.values(), timeout=60)
    assert not alive
    assert steps_done(tmp_path / "out") == 0


@pytest.mark.long
def test_a_dead_rank_ends_the_job_and_is_named(start, tmp_path) -> None:
    job = start(tmp_path / "out", 1, "max_restarts=0")
    ranks_of(job)["1"].kill()
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 2, printed[-3000:]
    assert "rank 1 of 2 ended with exit code -9" in printed


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "left", "killed"), [(4, 2, "1"), (2, 1, "0")])
def test_a_dead_rank_is_survived_by_those_that_divide_the_batch(start, inputs, tmp_path, ranks, left, killed) -> None:
    options = [f"ranks={ranks}", "micro_batch=2", "steps=60", "checkpoint_every=5"]
    straight = tmp_path / "straight"
    train(None, "generator", inputs, straight, *OPTIONS, *options, "ranks=1")
    out = tmp_path / "out"
    job = start(out, 12, *options)
    ranks_of(job)[killed].kill()
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed[-3000:]
    assert f"rank {killed} of {ranks} died; starting again on {left} ranks" in printed
    assert "continuing from step " in printed
    assert [line["step"] for line in log_lines(out)] == list(range(1, 61))
    assert worst(log_lines(out), log_lines(straight), "loss") < 1e-4
    assert read_record(str(out)).finished


@pytest.mark.long
def test_a_refusal_is_said_once_and_not_tried_again(start, tmp_path) -> None:
    job = start(tmp_path / "out", 0, "optimizer.lr=1e30", "max_restarts=2")
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 2, printed[-3000:]
    assert printed.count("rdpm train-generator: the loss is nan at step ") == 1
    assert "starting again" not in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_one_process_runs_one_training_after_the_other(inputs, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29999")  # of somebody else
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    for stage in range(4):
        job = config(
            "generator", inputs, tmp_path / f"{stage}", "steps=1", "checkpoint_every=1", f"engine.zero_stage={stage}"
        )
        run(job)
        assert read_record(job.out).finished
        assert not under_launcher()
    with pytest.raises(ValueError, match="the loss is nan at step "):
        run(config("generator", inputs, tmp_path / "diverging", "steps=9", "checkpoint_every=9", "optimizer.lr=1e30"))
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not torch.distributed.is_initialized()
    changed = {name for name in before | dict(os.environ) if before.get(name) != os.environ.get(name)}
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} & changed
