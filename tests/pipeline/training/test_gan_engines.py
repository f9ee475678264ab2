"""Two DeepSpeed engines take the same steps as plain torch, on two ranks, with accumulation and clipping."""

import json

import pytest

from tests.pipeline.training.ranks import run_ranks


@pytest.mark.slow
def test_tokenizer_and_discriminator_steps_equal_plain_torch_in_every_zero_stage() -> None:
    printed = run_ranks("gan_worker.py", 2)
    result = json.loads(next(line for line in printed.splitlines() if line.startswith("RESULT"))[7:])
    for stage in (0, 1, 2, 3):
        assert result[f"{stage} moved"] > 1e-4
        assert result[f"{stage} tokenizer"] < 1e-6
        assert result[f"{stage} discriminator"] < 1e-6
