"""The settings of the sampler, and how one code is chosen from logits."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2

from rdpm.models.choice import choose_codes, truncate
from rdpm.models.noise import Stream, child_seeds, gumbel
from rdpm.models.sampler import PRESETS, SamplerConfig, preset, step_settings

SEEDS = child_seeds(6, torch.arange(5))


@pytest.mark.parametrize("num_steps", [2, 4, 10])
def test_the_linear_ramp_increases_evenly_from_0_to_lambda(num_steps):
    config = SamplerConfig(guidance=3.0, ramp="linear")
    ramp = torch.tensor([config.guidance_at(t, num_steps) for t in range(1, num_steps + 1)])
    assert config.guidance_at(1, num_steps) == 0
    assert config.guidance_at(num_steps, num_steps) == 3.0
    torch.testing.assert_close(ramp.diff(), torch.full((num_steps - 1,), 3.0 / (num_steps - 1)))


@pytest.mark.parametrize(
    ("config", "forwards"), [(SamplerConfig(), 10), (SamplerConfig(0.5), 19), (SamplerConfig(0.5, "constant"), 20)]
)
def test_a_step_with_guidance_takes_two_forwards(config, forwards):
    assert config.forwards(10) == forwards
    settings = step_settings([config], 10, torch.device("cpu"))
    assert forwards == sum(1 if step.guidance is None else 2 for step in settings)


def test_the_constant_ramp_and_a_single_step_have_full_guidance():
    assert [SamplerConfig(3.0, "constant").guidance_at(t, 4) for t in (1, 2, 3, 4)] == [3.0] * 4
    assert SamplerConfig(3.0, "linear").guidance_at(1, 1) == 3.0


def choose(logits, seeds, step=1, **settings):
    """choose_codes with one config for all."""
    first = step_settings([SamplerConfig(**settings)] * len(seeds), 1, logits.device)[0]
    return choose_codes(logits, first, seeds, torch.full_like(seeds, step))


def test_at_temperature_zero_the_most_likely_code_is_taken():
    logits = torch.randn(5, 4, 4, 64)
    for seeds, step, temperature in ((SEEDS, 1, 0.0), (SEEDS + 1, 2, 0.0), (SEEDS, 1, 1e-6)):
        assert torch.equal(choose(logits, seeds, step, temperature=temperature), logits.argmax(-1))


def test_draws_differ_by_seed_step_and_position():
    flat = torch.zeros(5, 8, 8, 64)
    codes = choose(flat, SEEDS)
    assert torch.equal(choose(flat, SEEDS), codes)
    for other in (choose(flat, SEEDS, 2), choose(flat, SEEDS + 1), codes.roll(1, 2)):
        assert (other == codes).float().mean() < 0.1


@pytest.mark.parametrize(("temperature", "tau"), [(0.5, 2.0), (1.0, 1.0), (4.0, 0.25)])
def test_temperature_divides_the_logits(temperature, tau):
    """The paper's tau multiplies them (Eq. 8). Gumbel noise has its own stream, apart from the generator's noise."""
    logits = torch.randn(5, 4, 4, 64)
    perturbed = tau * logits + gumbel(SEEDS, 2, (4, 4, 64), Stream.GUMBEL)
    assert torch.equal(choose(logits, SEEDS, 2, temperature=temperature), perturbed.argmax(-1))


LOGITS = torch.tensor([0.0, 1.0, -1.0, 0.5, -2.0, 0.3, 1.2, -0.4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 2.0}, 8),
        ({"temperature": 1.0}, 8),
        ({"temperature": 1 / 3}, 8),
        ({"top_k": 3}, 3),
        ({"top_p": 0.6}, 3),  # the shares are .29 .24 .15 ...
        ({"temperature": 2.0, "top_k": 5, "top_p": 0.7}, 4),  # .27 .24 .19 .17 .14 of the five
    ],
)
def test_codes_follow_the_softmax_of_logits_over_temperature(settings, kept):
    """Eq. 8 is the Gumbel-max trick. A chi-square test over 200,000 draws, seeds and positions."""
    seeds = child_seeds(8, torch.arange(50_000))
    codes = choose(LOGITS.expand(50_000, 2, 2, 8), seeds, **settings)
    likeliest = LOGITS.argsort(descending=True)[:kept]
    expected = torch.softmax(LOGITS[likeliest].double() / settings.get("temperature", 1.0), 0) * codes.numel()
    observed = torch.bincount(codes.flatten(), minlength=8).double()
    assert observed.sum() == observed[likeliest].sum()
    statistic = ((observed[likeliest] - expected).square() / expected).sum().item()
    assert statistic < chi2.ppf(1 - 1e-4, df=kept - 1)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9])
def test_top_p_keeps_the_fewest_codes_that_reach_it(top_p):
    logits = torch.randn(3, 2, 2, 50, dtype=torch.float64) * 3
    kept = truncate(logits, torch.tensor([50] * 3), torch.tensor([top_p] * 3)).isfinite()
    shares = logits.softmax(-1)
    mass = (shares * kept).sum(-1)
    least = torch.where(kept, shares, 2).amin(-1)
    assert (mass >= top_p).all()
    assert (mass - least < top_p).all()
    assert (torch.where(kept, 0, shares).amax(-1) <= least).all()


def test_the_presets_are_the_rows_of_table_3():
    """Raw, + CFG, + CFG linear, + Gumbel: each changes one setting of the row before."""
    raw, cfg, linear, drawn = (preset(name) for name in ("raw", "cfg", "cfg-linear", "gumbel"))
    assert (raw.guidance, raw.temperature) == (0, 0)
    assert cfg == replace(raw, guidance=cfg.guidance, ramp="constant")
    assert cfg.guidance > 0
    assert linear == replace(cfg, ramp="linear")
    assert drawn == replace(linear, temperature=1.0)
    assert len(PRESETS) == 4
    with pytest.raises(ValueError, match=r"sampler 'gumble' is unknown; use raw, cfg, cfg-linear, gumbel"):
        preset("gumble")


IMPOSSIBLE = {
    "temperature": (-0.5, -1.0, math.nan, math.inf),
    "version": (1, 3),
    "guidance": (-0.5, -math.inf, math.inf),
    "ramp": ("cosine",),
    "top_k": (-1,),
    "top_p": (0.0, 1.5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_impossible_settings_are_refused_with_their_value(unchecked, name, value):
    with pytest.raises(ValueError, match=rf"^(sampler )?{name} is {value!r}; use "):
        SamplerConfig(**{name: value})
