"""A training that is stopped, killed, or given other ranks goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.training.ranks import ROOT, run_ranks
from tests.pipeline.training.resume_worker import GENERATOR, STAGES

CLOCKS = ("images_per_second", "data_wait", "peak_memory_bytes")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, digit_folder, exports, stores) -> Path:
    """images/, tokenizer/ and store/."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").symlink_to(digit_folder)
    card = exports.tokenizer(str(folder / "tokenizer"))
    stores.build(str(folder / "store"), stores.plan(rows=21, **exports.identity(card)), rejected=(5,))
    return folder


def trace(out: Path) -> list[dict]:
    """The log without what clocks say."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def worst(first: list[dict], second: list[dict], name: str) -> float:
    """Largest relative difference of a figure over two logs of the same steps."""
    assert [line["step"] for line in first] == [line["step"] for line in second]
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(first, second, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage", "steps"), [pytest.param("generator", 2, 40, marks=pytest.mark.long), ("tokenizer", 1, 9)]
)
def test_resuming_at_every_step_gives_the_same_bits(
    kind: str, stage: int, steps: int, inputs: Path, tmp_path: Path
) -> None:
    options = ["micro_batch=2", "checkpoint_every=1", f"keep_checkpoints={steps}", f"engine.zero_stage={stage}"]
    printed = run_ranks("resume_worker.py", 2, "everywhere", kind, str(inputs), f"{tmp_path}/out", str(steps), *options)
    assert "WRONG []" in printed
    assert len(list(tmp_path.glob("out-from-*"))) == steps - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "figure"), [("generator", "loss"), pytest.param("tokenizer", "reconstruction", marks=pytest.mark.long)]
)
def test_other_ranks_and_zero_stages_see_the_same_batches(kind: str, figure: str, inputs: Path, tmp_path: Path) -> None:
    options = ["micro_batch=2", "checkpoint_every=4"]
    for steps, ranks, stage in ((4, 2, 3), (8, 1, 1), (12, 2, 0)):
        changed = [*options, f"engine.zero_stage={stage}"]
        run_ranks("resume_worker.py", ranks, "once", kind, str(inputs), f"{tmp_path}/changing", str(steps), *changed)
    run_ranks("resume_worker.py", 1, "once", kind, str(inputs), f"{tmp_path}/straight", "12", *options)
    changing, straight = trace(tmp_path / "changing"), trace(tmp_path / "straight")
    assert worst(changing, straight, figure) < 1e-4
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("changing", "straight")]
    for name, value in weights[1].items():
        assert torch.allclose(weights[0][name], value, atol=1e-4), name


@pytest.mark.long
def test_every_zero_stage_on_any_ranks_trains_alike(inputs: Path, tmp_path: Path) -> None:
    options = ["micro_batch=2", "checkpoint_every=50"]
    for ranks in (1, 2):
        run_ranks("resume_worker.py", ranks, "stages", "generator", str(inputs), f"{tmp_path}/{ranks}", "50", *options)
    first = trace(tmp_path / "1-zero-0")
    assert len(first) == 50
    assert first[-1]["loss"] < first[0]["loss"]
    for ranks in (1, 2):
        for name in STAGES:
            found = trace(tmp_path / f"{ranks}-{name}")
            assert worst(found, first, "loss") < 1e-5, (ranks, name)
            assert worst(found, first, "gradient_norm") < 1e-3, (ranks, name)


@pytest.mark.slow
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    job = ["once", "generator", str(inputs), f"{tmp_path}/out"]
    options = ["micro_batch=2", "checkpoint_every=2", "keep_checkpoints=2"]
    run_ranks("resume_worker.py", 1, *job, "4", *options)
    said = run_ranks("resume_worker.py", 1, *job, "6", *options, "model.depth=2", fails=True)
    assert "step-00000004 continues another training (model " in said
    part = tmp_path / "out" / "checkpoints" / "step-00000004" / "part-00000-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    said = run_ranks("resume_worker.py", 1, *job, "6", *options, fails=True)
    assert "step-00000004 is damaged (part-00000-00000.safetensors)" in said
    shutil.rmtree(part.parent)
    assert "going on from step 2" in run_ranks("resume_worker.py", 1, *job, "6", *options)


def start_job(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "rdpm", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def generator_job(inputs: Path, out: Path, *options: str) -> list[str]:
    """A training of two ranks through the command line, with a checkpoint after every step."""
    common = ["ranks=2", "batch=8", "micro_batch=4", "log_every=1", "checkpoint_every=1", "engine.precision=fp32"]
    paths = [f"stores=[{inputs}/store]", f"tokenizer={inputs}/tokenizer", f"out={out}"]
    return ["train-generator", *GENERATOR, *common, *paths, "engine.zero_stage=2", *options]


def steps_done(out: Path) -> int:
    """Lines of the log so far."""
    path = out / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.long
def test_kills_at_random_steps_leave_no_trace(inputs: Path, tmp_path: Path) -> None:
    steps = 60
    job = start_job(generator_job(inputs, tmp_path / "whole", f"steps={steps}"))
    printed, _ = job.communicate(timeout=200)
    assert job.returncode == 0, printed[-3000:]
    arguments = generator_job(inputs, tmp_path / "killed", f"steps={steps}")
    chance = random.Random(0)
    for target in sorted(chance.sample(range(5, steps - 5), 5)):
        job = start_job(arguments)
        while steps_done(tmp_path / "killed") < target and job.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        assert job.poll() is None, job.communicate()[0][-3000:]
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    job = start_job(arguments)
    printed, _ = job.communicate(timeout=200)
    assert job.returncode == 0, printed[-3000:]
    assert trace(tmp_path / "killed") == trace(tmp_path / "whole")
    for name in ("model.safetensors", "card.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_sigterm_saves_and_ends(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = generator_job(inputs, out, "steps=100000", "checkpoint_every=100000")
    job = start_job(arguments)
    while steps_done(out) < 5:
        assert job.poll() is None, job.communicate()[0][-3000:]
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 143, printed[-3000:]
    assert "stopped by SIGTERM after step" in printed
    (saved,) = (out / "checkpoints").iterdir()
    assert json.loads((saved / "checkpoint.json").read_text())["step"] == steps_done(out)


@pytest.mark.slow
def test_a_dead_rank_ends_the_job_and_is_named(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start_job(generator_job(inputs, out, "steps=100000"))
    while steps_done(out) < 3:
        assert job.poll() is None, job.communicate()[0][-3000:]
        time.sleep(0.02)
    ranks = {process.environ().get("RANK"): process for process in psutil.Process(job.pid).children(recursive=True)}
    ranks["1"].kill()
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 2, printed[-3000:]
    assert "rank 1 of 2 ended with exit code -9" in printed
