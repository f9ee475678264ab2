"""Weights and their average under every ZeRO stage equal plain torch, through a save and a load, on two ranks."""

import json

import pytest

from tests.pipeline.training.ranks import run_ranks


@pytest.mark.slow
def test_weights_and_their_average_equal_plain_torch_in_every_zero_stage() -> None:
    printed = run_ranks("average_worker.py", 2)
    result = json.loads(next(line for line in printed.splitlines() if line.startswith("RESULT"))[7:])
    assert result["apart"] > 1e-4
    for stage in (0, 1, 2, 3):
        assert result[f"{stage} weights"] < 2e-6
        assert result[f"{stage} average"] < 2e-6
