"""The whole road through the command line, uninterrupted and with a SIGKILL in every stage."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "digits"
RANKS = ["ranks=2", "threads=1", "engine.zero_stage=2"]


def commands(run: Path) -> dict[str, list[str]]:
    """The demo's commands, made small: few steps, few samples, two ranks under ZeRO-2, the adversarial loss on."""
    data, tokenizer, store, generator, samples = (
        run / name for name in ("data", "tokenizer", "store", "generator", "samples")
    )
    return {
        "prepare": ["digits", f"out={data}"],
        "train-tokenizer": [
            f"{CONFIGS}/tokenizer.yaml", f"images={data}/train", f"validation={data}/val",
            "validate_every=12", f"out={tokenizer}", *RANKS, "micro_batch=32",
            "steps=12", "checkpoint_every=4", "log_every=4", "loss.adversarial=0.5", "loss.discriminator_start=6",
        ],
        "tokenize": [
            f"{CONFIGS}/store.yaml", f"images={data}/train", f"tokenizer={tokenizer}", f"out={store}", "shard_rows=128",
        ],
        "train-generator": [
            f"{CONFIGS}/generator.yaml", f"stores=[{store}]", f"tokenizer={tokenizer}", f"out={generator}", *RANKS,
            "micro_batch=32", "steps=24", "checkpoint_every=4", "log_every=4",
        ],
        "calibrate": [
            f"{CONFIGS}/calibration.yaml", f"generator={generator}", f"tokenizer={tokenizer}", f"store={store}",
            f"out={run}/calibrated", "per_class=30", "draws=1",
        ],
        "sample": [
            f"{CONFIGS}/samples.yaml", f"generator={run}/calibrated", f"tokenizer={tokenizer}", f"out={samples}",
            "per_class=40", "shard_rows=40", "batch=20",
        ],
        "evaluate": [
            f"{CONFIGS}/evaluation.yaml", f"images={data}/val", f"train_images={data}/train", f"tokenizer={tokenizer}",
            f"samples={samples}", f"out={run}/metrics.json",
            f"timed=[{data},{tokenizer},{store},{generator},{samples}]",
        ],
        "report": [
            f"{CONFIGS}/report.yaml", 'sweep=""', f"images={data}/val", f"train_images={data}/train",
            f"tokenizer={tokenizer}", f"generator={generator}", f"store={store}", f"samples={samples}",
            f"calibrated={run}/calibrated",
            f"metrics={run}/metrics.json", f"out={run}/report.html",
        ],
    }  # fmt: skip


def start(job: str, arguments: list[str]) -> subprocess.Popen:
    """A job in a process group of its own, so that it can be killed with everything it started."""
    command = [sys.executable, "-m", "rdpm", job, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(job: str, arguments: list[str]) -> str:
    """Run a job to its end."""
    process = start(job, arguments)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{job}: {printed[-6000:]}"
    return printed


def kill_when(job: str, arguments: list[str], ready: Callable[[], bool]) -> None:
    """Start a job and send SIGKILL to its whole group as soon as it is half done."""
    process = start(job, arguments)
    limit = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, f"{job} ended before it could be killed: {process.communicate()[0][-4000:]}"
        assert time.monotonic() < limit, f"{job} never came to half its work"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def checkpointed(out: Path, step: int) -> Callable[[], bool]:
    """Whether a training run has a whole checkpoint at `step` or later."""
    return lambda: any(int(p.parent.name[5:]) >= step for p in out.glob("checkpoints/step-*/checkpoint.json"))


def committed(out: Path, shards: int) -> Callable[[], bool]:
    """Whether a store has at least so many commits."""
    return lambda: len(list((out / "commits").glob("[0-9]*.json"))) >= shards


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("clean")
    for job, arguments in commands(run).items():
        finish(job, arguments)
    return run


@pytest.mark.slow
def test_the_road_ends_in_metrics_samples_and_a_report(clean_run: Path) -> None:
    metrics = json.loads((clean_run / "metrics.json").read_text())
    assert 0 < metrics["tokenizer"]["psnr"] < 60
    assert metrics["generator"]["frechet_distance"] > metrics["generator"]["frechet_distance_real"] > 0
    assert metrics["generator"]["classifier_accuracy_on_real"] > 0.95
    assert set(metrics["seconds"]) >= {"prepare", "train-tokenizer", "tokenize", "train-generator", "sample"}
    with np.load(clean_run / "samples" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (400, 16, 16, 3)
        assert archive["arr_0"].dtype == np.uint8
        assert np.bincount(archive["arr_1"]).tolist() == [40] * 10
    report = (clean_run / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert "http://" not in report
    assert "https://" not in report


@pytest.mark.long
def test_finished_work_is_not_done_again(clean_run: Path) -> None:
    before = {name: (p.stat().st_mtime_ns) for name in files_of(clean_run) for p in [clean_run / name]}
    for job, arguments in commands(clean_run).items():
        assert "already" in finish(job, arguments), job
    assert before == {name: (clean_run / name).stat().st_mtime_ns for name in files_of(clean_run)}


@pytest.mark.long
def test_a_run_killed_in_every_stage_leaves_the_same_store_and_samples(clean_run: Path, tmp_path: Path) -> None:
    stages = commands(tmp_path)
    half_done = {
        "prepare": lambda: len(list((tmp_path / "data").rglob("*.png"))) >= 300,
        "train-tokenizer": checkpointed(tmp_path / "tokenizer", 8),
        "tokenize": committed(tmp_path / "store", 3),
        "train-generator": checkpointed(tmp_path / "generator", 8),
        "calibrate": lambda: (tmp_path / "calibrated.record.json").exists(),
        "sample": committed(tmp_path / "samples", 2),
        "evaluate": lambda: bool(list(tmp_path.glob("classifier-*.safetensors"))),
        "report": lambda: (tmp_path / "report.html.record.json").exists(),
    }
    for job, ready in half_done.items():
        kill_when(job, stages[job], ready)
        finish(job, stages[job])
    assert files_of(tmp_path / "data") == files_of(clean_run / "data")
    assert files_of(tmp_path / "store") == files_of(clean_run / "store")
    assert files_of(tmp_path / "samples") == files_of(clean_run / "samples")
    for model in ("tokenizer", "generator", "calibrated"):
        weights = [(run / model / "model.safetensors").read_bytes() for run in (tmp_path, clean_run)]
        assert weights[0] == weights[1]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (tmp_path, clean_run)]
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}
    assert (tmp_path / "report.html").read_text().count("data:image/png") == (
        clean_run / "report.html"
    ).read_text().count("data:image/png")
