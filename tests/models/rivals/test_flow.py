"""Flow matching: the sampler follows a velocity, and the network is asked for the right one."""

import pytest
import torch

from rdpm.models.rivals.flow import euler


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_the_exact_velocity_of_a_gaussian_gives_its_moments(deviation):
    mean, steps = torch.tensor([1.0, -2.0, 0.5]), 400

    def velocity(x, step):
        """E[latents - noise | x_t = x] for latents of this mean and deviation."""
        t = step / steps
        gain = (t * deviation**2 - (1 - t)) / (t**2 * deviation**2 + (1 - t) ** 2)
        return mean + gain * (x - t * mean)

    drawn = euler(velocity, torch.randn(20_000, 3), steps)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((3,), deviation), atol=0, rtol=0.03)


def test_a_constant_velocity_is_followed_exactly_in_any_number_of_steps():
    noise, way = torch.randn(5, 2), torch.randn(5, 2)
    for steps in (1, 3, 10):
        torch.testing.assert_close(euler(lambda x, step: way, noise, steps), noise + way)


def test_the_loss_is_the_error_of_the_velocity(make_rival, make_quantizer, make_rows):
    """A new network predicts zeros, so its loss is the mean square of latents minus noise, wherever on the way."""
    quantizer = make_quantizer("flow")
    noise, times, labels, latents = make_rival("flow").given(quantizer, make_rows(quantizer, 64, "flow")).arguments
    expected = (latents - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(make_rival("flow").loss(noise, times, labels, latents), expected)
    assert 0 < times.min() < 0.3 < 0.7 < times.max() < 1


def test_times_are_logit_normal(make_rival, make_quantizer, make_rows):
    quantizer = make_quantizer("flow")
    times = make_rival("flow").given(quantizer, make_rows(quantizer, 20_000, "flow")).arguments[1]
    logits = times.logit()
    assert abs(float(logits.mean())) < 0.03
    assert float(logits.std()) == pytest.approx(1, abs=0.03)
