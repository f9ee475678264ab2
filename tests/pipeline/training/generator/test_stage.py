"""What a generator's training shows of itself: held-out loss, the best checkpoint, pictures, a compiled model."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.pipeline.training.ranks import run_ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory, exports, stores) -> Path:
    """Eight steps on two ranks, compiled, looked at every second one."""
    folder = tmp_path_factory.mktemp("watching")
    card = exports.tokenizer(str(folder / "tokenizer"))
    stores.build(str(folder / "store"), stores.plan(rows=21, **exports.identity(card)))
    stores.build(str(folder / "held-out"), stores.plan(rows=9, **{**exports.identity(card), "seed": 1}))
    options = [
        f"validation=[{folder}/held-out]", "validation_images=8", "validate_every=2", "preview_every=4",
        "micro_batch=2", "checkpoint_every=2", "compile=true", "steps_per_image=3", "optimizer.lr=0.05",
    ]  # fmt: skip
    run_ranks("resume_worker.py", 2, "once", "generator", str(folder), f"{folder}/out", "8", *options)
    return folder / "out"


@pytest.mark.slow
def test_held_out_loss_is_logged_and_the_best_checkpoint_kept(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert sorted(losses) == [2, 4, 6, 8]
    kept = sorted(int(path.name[5:]) for path in (trained / "checkpoints").iterdir())
    best = min(losses, key=lambda step: losses[step])
    assert kept == sorted({best, 8})
    for line in lines:
        assert line["gradient_norm"] > 0
        assert {"loss_by_step", "images_per_second", "data_wait", "peak_memory_bytes"} <= line.keys()


@pytest.mark.slow
def test_samples_are_shown_in_tensorboard(trained: Path) -> None:
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    pictures = board.Images("samples")
    assert [picture.step for picture in pictures] == [4, 8]
    assert (pictures[0].width, pictures[0].height) == (2 * 8, 4 * 8)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
