"""What a generator's training shows of itself: held-out loss, the best checkpoint, pictures; and a compiled model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdpm.pipeline.training.log import read_log
from tests.pipeline.training.trainings import arguments, checkpoint_steps, log_lines, train, worst


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
    assert checkpoint_steps(trained) == sorted({best, 8})
    for line in lines:
        assert line["gradient_norm"] > 0
        assert {"loss_by_step", "lr", "images_per_second", "data_wait", "peak_memory_bytes"} <= line.keys()


@pytest.mark.slow
def test_samples_are_shown_in_tensorboard(trained: Path) -> None:
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [4, 8]
    assert (pictures[0].width, pictures[0].height) == (2 * 8, 4 * 8)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


@pytest.mark.slow
def test_a_compiled_model_trains_and_validates_like_the_plain_one(inputs, tmp_path, repository) -> None:
    options = [
        f"validation=[{inputs}/held-out]", "validation_images=8", "validate_every=2", "steps=3", "checkpoint_every=3",
    ]  # fmt: skip
    train(None, "generator", inputs, tmp_path / "plain", *options)
    command = ["train-generator", *arguments("generator", inputs, tmp_path / "compiled", *options, "compile=true")]
    subprocess.run([sys.executable, "-m", "rdpm", *command], cwd=repository, check=True, timeout=300)
    plain, compiled = log_lines(tmp_path / "plain"), log_lines(tmp_path / "compiled")
    assert worst(compiled, plain, "loss") < 1e-4
    assert compiled[1]["validation_loss"] == pytest.approx(plain[1]["validation_loss"], rel=1e-4)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "plain"))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name
