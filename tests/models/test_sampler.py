"""Algorithm 2: the sampler against the tokenizer's loop, guidance, and the law of drawn codes."""

import math

import pytest
import torch
from scipy.stats import chi2

from models.noise import Stream, child_seeds, gumbel, normal
from models.sampler import SamplerConfig, choose_codes, guided_logits, sample

LABELS = torch.tensor([0, 4, 2, 2, 1])
SEEDS = child_seeds(6, torch.arange(5))


@pytest.fixture
def encoded(tokenizer):
    with torch.no_grad():
        return tokenizer.encode(torch.rand(5, 3, 16, 16) * 2 - 1, SEEDS)


def test_teacher_forcing_walks_the_tokenizers_path_to_the_bit(tokenizer, generator, encoded):
    """Part of invariant 1."""
    samples = sample(generator, tokenizer.quantizer.codebook, LABELS, SEEDS, SamplerConfig(), forced=encoded.codes)
    assert torch.equal(samples.codes, encoded.codes)
    for t in range(1, 4):
        assert torch.equal(samples.accumulated[:, t - 1], encoded.before[:, t])
    assert torch.equal(samples.accumulated[:, -1], encoded.accumulated)


def test_teacher_forcing_shows_the_generator_what_it_was_trained_on(tokenizer, generator, encoded):
    """eps_t, y, t and z'_{t-1} of Eq. 6, at every step, to the bit."""
    seen = []
    generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    codebook = tokenizer.quantizer.codebook
    sample(generator, codebook, LABELS, SEEDS, SamplerConfig(), encoded.codes, noise_stream=Stream.TOKENIZER)
    assert len(seen) == 4
    for t, (noise, labels, steps, accumulated) in enumerate(seen, start=1):
        assert torch.equal(noise, encoded.noise[:, t - 1])
        assert torch.equal(labels, LABELS)
        assert steps.tolist() == [t] * 5
        assert torch.equal(accumulated, encoded.before[:, t - 1])


def test_samples_are_the_codes_and_latents_of_one_path(tokenizer, generator):
    codebook = tokenizer.quantizer.codebook
    samples = sample(generator, codebook, LABELS, SEEDS, SamplerConfig(guidance=2.0))
    assert samples.codes.shape == (5, 4, 4, 4)
    assert samples.accumulated.shape == (5, 4, 8, 4, 4)
    for t in range(1, 5):
        assert torch.equal(samples.accumulated[:, t - 1], codebook.accumulated(samples.codes, t))
    assert not samples.accumulated.requires_grad


def test_each_step_draws_from_its_own_noise_and_logits(tokenizer, generator):
    """Algorithm 2 written out."""
    codebook, config = tokenizer.quantizer.codebook, SamplerConfig(guidance=1.5, temperature=0.8)
    samples = sample(generator, codebook, LABELS, SEEDS, config)
    with torch.no_grad():
        accumulated = torch.zeros(5, 8, 4, 4)
        for t in range(1, 5):
            noise = normal(SEEDS, t, (8, 4, 4), Stream.SAMPLER)
            logits = guided_logits(generator, noise, LABELS, t, accumulated, config.guidance_at(t, 4))
            codes = choose_codes(logits, 0.8, SEEDS, t)
            assert torch.equal(codes, samples.codes[:, t - 1])
            accumulated = accumulated + codebook.phi(codebook.look_up(codes))
            torch.testing.assert_close(accumulated, samples.accumulated[:, t - 1], atol=1e-5, rtol=0)
            accumulated = samples.accumulated[:, t - 1]


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_an_image_does_not_depend_on_its_neighbours_or_its_place(tokenizer, generator, guidance):
    """Invariant 7."""
    codebook, config = tokenizer.quantizer.codebook, SamplerConfig(guidance)
    whole = sample(generator, codebook, LABELS, SEEDS, config).codes
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(sample(generator, codebook, LABELS[order], SEEDS[order], config).codes, whole[order])
    for i in range(5):
        alone = sample(generator, codebook, LABELS[i : i + 1], SEEDS[i : i + 1], config).codes
        assert torch.equal(alone[0], whole[i])


def test_an_image_depends_on_its_label_and_its_seed(tokenizer, generator):
    codebook, config = tokenizer.quantizer.codebook, SamplerConfig()
    whole = sample(generator, codebook, LABELS, SEEDS, config).codes
    for labels, seeds in (((LABELS + 1) % 5, SEEDS), (LABELS, SEEDS + 1)):
        other = sample(generator, codebook, labels, seeds, config).codes
        assert all(not torch.equal(one, two) for one, two in zip(other, whole, strict=True))


def step_inputs():
    noise, accumulated = torch.randn(2, 5, 8, 4, 4)
    return noise, LABELS, 3, accumulated


def test_guidance_0_is_the_conditional_model_to_the_bit(generator):
    noise, labels, step, accumulated = step_inputs()
    conditional = generator(noise, labels, torch.full_like(labels, step), accumulated)
    assert torch.equal(guided_logits(generator, noise, labels, step, accumulated, 0.0), conditional)


@pytest.mark.parametrize("guidance", [0.5, 1.0, 4.0])
def test_guidance_moves_from_the_unconditional_through_the_conditional(generator, guidance):
    noise, labels, step, accumulated = step_inputs()
    steps = torch.full_like(labels, step)
    cond = generator(noise, labels, steps, accumulated)
    uncond = generator(noise, torch.full_like(labels, 5), steps, accumulated)
    guided = guided_logits(generator, noise, labels, step, accumulated, guidance)
    torch.testing.assert_close(guided, cond + guidance * (cond - uncond), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guided, cond, atol=1e-2)


@pytest.mark.parametrize("num_steps", [2, 4, 10])
def test_the_linear_ramp_rises_evenly_from_0_to_lambda(num_steps):
    config = SamplerConfig(guidance=3.0, ramp="linear")
    ramp = torch.tensor([config.guidance_at(t, num_steps) for t in range(1, num_steps + 1)])
    assert config.guidance_at(1, num_steps) == 0
    assert config.guidance_at(num_steps, num_steps) == 3.0
    torch.testing.assert_close(ramp.diff(), torch.full((num_steps - 1,), 3.0 / (num_steps - 1)))


def test_the_constant_ramp_and_a_single_step_have_full_guidance():
    assert [SamplerConfig(3.0, "constant").guidance_at(t, 4) for t in (1, 2, 3, 4)] == [3.0] * 4
    assert SamplerConfig(3.0, "linear").guidance_at(1, 1) == 3.0


def test_without_temperature_the_likeliest_code_is_taken():
    logits = torch.randn(5, 4, 4, 64)
    assert torch.equal(choose_codes(logits, None, SEEDS, 1), logits.argmax(-1))
    assert torch.equal(choose_codes(logits, None, SEEDS + 1, 2), logits.argmax(-1))
    assert torch.equal(choose_codes(logits, 1e6, SEEDS, 1), logits.argmax(-1))


def test_draws_differ_by_seed_step_and_position():
    flat = torch.zeros(5, 8, 8, 64)
    codes = choose_codes(flat, 1.0, SEEDS, 1)
    assert torch.equal(choose_codes(flat, 1.0, SEEDS, 1), codes)
    for other in (choose_codes(flat, 1.0, SEEDS, 2), choose_codes(flat, 1.0, SEEDS + 1, 1), codes.roll(1, 2)):
        assert (other == codes).float().mean() < 0.1


def test_draws_have_a_stream_of_their_own():
    """Not the words of the noise that the generator sees."""
    logits = torch.randn(5, 4, 4, 64)
    perturbed = 0.7 * logits + gumbel(SEEDS, 2, (4, 4, 64), Stream.GUMBEL)
    assert torch.equal(choose_codes(logits, 0.7, SEEDS, 2), perturbed.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_codes_follow_the_softmax_of_temperature_times_logits(temperature):
    """Eq. 8 is the Gumbel-max trick. A chi-square test over 200,000 draws, seeds and positions."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, -2.0, 0.3, 1.2, -0.4])
    seeds = child_seeds(8, torch.arange(50_000))
    codes = choose_codes(logits.expand(50_000, 2, 2, 8), temperature, seeds, 1)
    expected = torch.softmax(temperature * logits.double(), 0) * codes.numel()
    observed = torch.bincount(codes.flatten(), minlength=8).double()
    assert expected.min() > 5
    statistic = ((observed - expected).square() / expected).sum().item()
    assert statistic < chi2.ppf(1 - 1e-4, df=7)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_an_impossible_temperature_is_refused_by_its_value(temperature):
    with pytest.raises(ValueError, match=rf"temperature is {temperature};"):
        SamplerConfig(temperature=temperature)


@pytest.mark.parametrize("guidance", [-0.5, -math.inf])
def test_negative_guidance_is_refused_by_its_value(guidance):
    with pytest.raises(ValueError, match=rf"guidance is {guidance};"):
        SamplerConfig(guidance=guidance)
