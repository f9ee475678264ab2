"""Two DeepSpeed engines take the same steps as plain torch, on two ranks, with accumulation and clipping."""

import pytest

from tests.pipeline.training.tokenizer.step_worker import differences


@pytest.mark.slow
def test_tokenizer_and_discriminator_steps_equal_plain_torch_in_every_zero_stage(two_ranks) -> None:
    result = two_ranks.run(differences)[0]
    assert result["moved"] > 1e-4
    for stage in (0, 1, 2, 3):
        assert result[f"{stage} tokenizer"] < 1e-6
        assert result[f"{stage} discriminator"] < 1e-6
