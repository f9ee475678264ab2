"""Metrics of the logs are those of all ranks together, since the last line."""

import pytest

from tests.pipeline.training.meters_worker import step_losses, term_metrics


@pytest.mark.slow
def test_loss_terms_are_means_and_codes_are_counted_over_ranks(two_ranks) -> None:
    looks, others = two_ranks.run(term_metrics)
    assert looks == others
    assert looks[0] == looks[1]  # each begins anew
    assert looks[0]["loss"] == 2.5
    assert looks[0]["usage_by_step"] == [0.5, 0.25]
    assert looks[0]["perplexity_by_step"] == pytest.approx([2, 1])


@pytest.mark.slow
def test_losses_by_step_are_means_over_the_images_of_that_step(two_ranks) -> None:
    looks, others = two_ranks.run(step_losses)
    assert looks == others
    assert looks[0]["loss_by_step"] == [1, pytest.approx((2 + 2 + 3) / 3), None]
    assert looks[0]["loss"] == pytest.approx((1 + 2 + 2 + 3) / 4)
    assert looks[1]["loss"] == pytest.approx(10 * looks[0]["loss"])
