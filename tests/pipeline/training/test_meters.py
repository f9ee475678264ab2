"""Metrics of the logs are those of all ranks together, since the last line."""

import pytest

from tests.pipeline.training.meters_worker import step_losses, term_metrics, windows


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


@pytest.mark.slow
def test_a_slow_rank_is_logged_and_named_once(two_ranks) -> None:
    (lines, said), (others, silent) = two_ranks.run(windows)
    for line, steps in zip(lines, (5, 10, 10), strict=True):
        assert line["own_seconds"] == pytest.approx(0.5 / steps)
        assert line["own_seconds_max"] == pytest.approx(2.0 / steps)
    assert [line["own_seconds_max"] for line in others] == [line["own_seconds_max"] for line in lines]
    assert silent == []
    (sentence,) = said  # of the second window; the first is short
    assert "rank 1 on " in sentence
    assert "it spends 0.2 s per step on data and forward passes, the median rank 0.05 s" in sentence
