"""What a generator's training shows of itself: held-out loss, the best checkpoint, pictures; and a compiled model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdpm.pipeline.training.log import read_log
from tests.pipeline.training.trainings import arguments, checkpoint_steps, log_lines, train, train_traced, worst


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_ranks, inputs) -> Path:
    """Eight steps on two ranks, validated after every second one."""
    out = tmp_path_factory.mktemp("watched") / "out"
    options = [
        f"validation=[{inputs}/held-out]", "validation_images=8", "validate_every=2", "preview_every=4",
        "steps=8", "checkpoint_every=2", "steps_per_image=3", "optimizer.lr=0.05",
    ]  # fmt: skip
    two_ranks.run(train, "generator", inputs, out, *options)
    return out


@pytest.mark.slow
def test_held_out_loss_is_logged_and_the_best_checkpoint_kept(trained: Path) -> None:
    lines = read_log(str(trained / "log.jsonl"))
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert sorted(losses) == [2, 4, 6, 8]
    best = min(losses, key=lambda step: losses[step])
    assert checkpoint_steps(trained) == sorted({best, 6, 8})
    for line in lines:
        assert line["gradient_norm"] > 0
        assert {"loss_by_step", "lr", "images_per_second", "data_wait", "peak_memory_bytes"} <= line.keys()
        assert 0 < line["own_seconds"] <= line["own_seconds_max"]


@pytest.mark.slow
def test_samples_are_shown_in_tensorboard(trained: Path) -> None:
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [4, 8]
    assert (pictures[0].width, pictures[0].height) == (2 * 8, 4 * 8)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def assert_alike(compiled: Path, plain: Path) -> None:
    """The same losses and weights, up to rounding."""
    lines = log_lines(compiled), log_lines(plain)
    assert worst(*lines, "loss") < 1e-4
    assert lines[0][1]["validation_loss"] == pytest.approx(lines[1][1]["validation_loss"], rel=1e-4)
    found, expected = (load_file(out / "model.safetensors") for out in (compiled, plain))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name


@pytest.fixture
def short(inputs) -> list[str]:
    """Three steps with a validation."""
    return [
        f"validation=[{inputs}/held-out]",
        "validation_images=8",
        "validate_every=2",
        "steps=3",
        "checkpoint_every=3",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.long) for stage in (0, 1, 2)), 3])
def test_a_traced_model_trains_and_validates_like_the_plain_one(two_ranks, inputs, tmp_path, short, stage) -> None:
    """In graphs without breaks, under every ZeRO stage."""
    short.append(f"engine.zero_stage={stage}")
    two_ranks.run(train_traced, "generator", inputs, tmp_path / "traced", *short)
    two_ranks.run(train, "generator", inputs, tmp_path / "plain", *short)
    assert_alike(tmp_path / "traced", tmp_path / "plain")


@pytest.mark.long
def test_a_compiled_model_trains_and_validates_like_the_plain_one(inputs, tmp_path, repository, short) -> None:
    train(None, "generator", inputs, tmp_path / "plain", *short)
    command = ["train-generator", *arguments("generator", inputs, tmp_path / "compiled", *short, "compile=true")]
    subprocess.run([sys.executable, "-m", "rdpm", *command], cwd=repository, check=True, timeout=300)
    assert_alike(tmp_path / "compiled", tmp_path / "plain")
