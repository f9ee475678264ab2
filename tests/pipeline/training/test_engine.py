"""Weights and their average under every ZeRO stage equal plain torch, from the first weights on, on two ranks."""

import pytest
import torch

from tests.pipeline.training.engine_worker import built_in_parts, differences, reduced_types


@pytest.mark.slow
def test_weights_and_their_average_equal_plain_torch_in_every_zero_stage(two_ranks) -> None:
    result = two_ranks.run(differences)[0]
    assert result["apart"] > 1e-4
    for stage in (0, 1, 2, 3):
        assert result[f"{stage} weights"] < 2e-6
        assert result[f"{stage} average"] < 2e-6


@pytest.mark.slow
def test_zero_3_builds_in_parts_the_same_weights_to_the_bit(two_ranks) -> None:
    models = "generator", "preconditioned generator", "tokenizer", "discriminator"
    assert two_ranks.run(built_in_parts) == [dict.fromkeys(models, 0)] * 2


@pytest.mark.slow
def test_gradients_of_bf16_are_reduced_in_float32_in_every_zero_stage(two_ranks) -> None:
    for found in two_ranks.run(reduced_types):
        assert found == {stage: {torch.float32} for stage in (0, 1, 2, 3)}
