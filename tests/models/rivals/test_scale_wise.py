"""Scale-wise quantization and generation: growing maps, a sum of scales, and no look ahead."""

import pytest
import torch

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.noise import child_seeds
from rdpm.models.rivals.rival import Rows
from rdpm.models.sampler import SamplerConfig, step_settings
from rdpm.models.scales import block_means, repeated, sides
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import TokenizerConfig

CPU = torch.device("cpu")


def test_sides_double_until_the_grid():
    assert sides(4, 5) == [1, 2, 4, 4, 4]
    assert sides(16, 6) == [1, 2, 4, 8, 16, 16]


def test_a_small_map_is_the_block_means_of_itself_repeated():
    codes = torch.randint(100, (3, 2, 2))
    on_grid = repeated(codes, 8)
    assert on_grid.shape == (3, 8, 8)
    assert torch.equal(block_means(on_grid.float().unsqueeze(1), 2)[:, 0].long(), codes)


def test_a_reconstruction_is_the_sum_of_its_scales(make_quantizer, randomize):
    quantizer = randomize(make_quantizer("scales"))
    latents = torch.randn(5, 4, 4, 4)
    result = quantizer.quantize(latents, lambda t: torch.randn_like(latents))
    codebook, total, residual = quantizer.codebook, torch.zeros_like(latents), latents
    for side, codes in zip((1, 2, 4), result.codes.unbind(1), strict=True):
        small = codes[:, :: 4 // side, :: 4 // side]
        assert torch.equal(repeated(small, 4), codes)
        assert torch.equal(codebook.nearest(block_means(residual, side)), small)
        total = total + codebook.phi(codebook.look_up(codes))
        residual = latents - total
    torch.testing.assert_close(result.accumulated, total)


def test_without_growing_maps_the_residual_schedule_is_residual_quantization(make_quantizer):
    """No noise gets in: alpha is 1, and every step quantizes what the steps before left."""
    schedule = Schedule("residual", 3)
    assert schedule.alpha.tolist() == schedule.gamma.tolist() == [1.0] * 3
    assert schedule.beta.tolist() == [0.0] * 3
    quantizer = make_quantizer("flow")
    quantizer = type(quantizer)(quantizer.codebook.config, schedule)
    latents = torch.randn(5, 4, 4, 4)
    first, second = (quantizer.quantize(latents, lambda t: torch.randn_like(latents)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(quantizer.codebook.nearest(latents - first.before[:, 1]), first.codes[:, 1])


def test_logits_of_a_map_do_not_depend_on_later_maps(make_rival, randomize):
    rival = randomize(make_rival("scales")).eval()
    seen, labels = torch.randn(2, 21, 4), torch.tensor([0, 1])
    with torch.no_grad():
        logits = rival(seen, labels)
        for first in (1, 5):
            changed = torch.cat([seen[:, :first], torch.randn(2, 21 - first, 4)], 1)
            others = rival(changed, labels)
            torch.testing.assert_close(others[:, :first], logits[:, :first])
            assert not torch.allclose(others[:, first:], logits[:, first:])


def test_drawing_sees_what_training_sees(make_rival, make_quantizer, randomize):
    """At temperature 0, teacher forcing with the drawn codes gives the drawn codes again."""
    rival, quantizer = randomize(make_rival("scales")).eval(), randomize(make_quantizer("scales"))
    labels, seeds = torch.tensor([0, 1, 2]), child_seeds(0, torch.arange(3))
    with torch.no_grad():
        drawn = rival.draw(
            quantizer.codebook, labels, seeds, step_settings([SamplerConfig(temperature=0.0)] * 3, 3, CPU)
        )
        seen, _, codes = rival.given(quantizer, Rows(labels, seeds, codes=drawn.codes)).arguments
        assert torch.equal(rival(seen, labels).argmax(-1), codes)


@pytest.mark.parametrize(("multipliers", "steps"), [((1, 2, 2), 2), ((1,), 9)])
def test_maps_that_do_not_reach_the_grid_or_do_not_fit_it_are_refused(multipliers, steps):
    autoencoder = AutoencoderConfig(channels=8, multipliers=multipliers, attention_factors=(), groups=4)
    growing = QuantizerConfig(growing=True)
    with pytest.raises(ValueError, match="needs a grid that is a power of 2 and that the maps reach"):
        TokenizerConfig(12 if len(multipliers) == 1 else 16, autoencoder, growing, Schedule(num_steps=steps))
