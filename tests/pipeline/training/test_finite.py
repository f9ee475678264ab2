"""Nothing that is not finite is ever learned from, saved or exported; the last good checkpoint stays."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.training.test_resume import STAGES
from tests.pipeline.training.trainings import checkpoint_steps, log_lines, poisoned_refusal, refusal, train, worst

OPTIONS = ["steps=4", "checkpoint_every=1", "micro_batch=2"]  # two micro-batches per rank and step


def assert_sound(out: Path, steps: list[int]) -> None:
    """These checkpoints are there and finite, nothing else is, and the log is JSON."""
    assert checkpoint_steps(out) == steps
    for path in (out / "checkpoints").rglob("*.safetensors"):
        for name, value in load_file(path).items():
            assert torch.isfinite(value).all(), name
    assert not (out / "model.safetensors").exists()
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_a_nan_gradient_under_a_finite_loss_ends_the_run_before_the_update(two_ranks, inputs, tmp_path, stage) -> None:
    out, call = tmp_path / "out", 2 * 3 + 1  # the first micro-batch of the last step
    options = [*OPTIONS, f"engine.zero_stage={stage}"]
    said = two_ranks.run(poisoned_refusal, "generator", call, 0.0, "generator", inputs, out, *options)
    assert said[0] == said[1]
    assert said[0].startswith(
        "the gradient is not finite at step 4, positions 24 to 31 of the stream on all 2 ranks, though every loss is; "
    )
    assert_sound(out, [2, 3])


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_ended_in_the_middle_continues_undisturbed(two_ranks, inputs, tmp_path, stage, precision) -> None:
    options = [*OPTIONS, *STAGES[stage], f"engine.precision={precision}"]
    out, straight = tmp_path / "out", tmp_path / "straight"
    for call in (2 * 1 + 2, 2 * 2 + 1):  # in the last micro-batch of step 2, and then in the second step from there
        said = two_ranks.run(poisoned_refusal, "generator", call, 0.0, "generator", inputs, out, *options)
        assert said[0] == said[1]
        assert said[0].startswith("the gradient is not finite at step ")
        assert_sound(out, [1] if call == 4 else [2, 3])
    two_ranks.run(train, "generator", inputs, out, *options)
    two_ranks.run(train, "generator", inputs, straight, *options)
    assert worst(log_lines(out), log_lines(straight), "loss") == 0


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_by_its_batch(two_ranks, inputs, tmp_path) -> None:
    out, infinite = tmp_path / "out", float("inf")  # a constant: every gradient is finite
    said = two_ranks.run(poisoned_refusal, "generator", 2 * 2 + 1, infinite, "generator", inputs, out, *OPTIONS)
    assert said[0] == said[1]
    assert said[0].startswith("the loss is inf at step 3, positions 20 to 21 of the stream, on rank 1 of 2; ")
    assert_sound(out, [1, 2])


@pytest.mark.slow
def test_a_nan_gradient_of_the_discriminator_ends_the_run(two_ranks, inputs, tmp_path) -> None:
    out = tmp_path / "out"  # the adversarial loss starts with the fourth step
    said = two_ranks.run(poisoned_refusal, "discriminator", 1, 0.0, "tokenizer", inputs, out, *OPTIONS)
    assert said[0] == said[1]
    assert said[0].startswith("the gradient is not finite at step 4, positions 24 to 31 of the stream")
    assert_sound(out, [2, 3])


@pytest.mark.slow
def test_an_update_that_overflows_is_not_saved(inputs, tmp_path) -> None:
    out = tmp_path / "out"
    options = [
        "optimizer.lr=3.4e38",
        "optimizer.warmup_steps=1",
        "optimizer.betas=[0.0,0.95]",
        "optimizer.weight_decay=1",
    ]
    said = refusal(None, "generator", inputs, out, "steps=1", "checkpoint_every=1", *options)
    assert "is not finite after step 1, so no checkpoint of it is written" in said
    assert not (out / "checkpoints").exists() or checkpoint_steps(out) == []
    assert not (out / "model.safetensors").exists()
