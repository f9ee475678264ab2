"""Algorithm 2: the sampler against the tokenizer's loop, guidance, known codes and compilation."""

from dataclasses import replace

import pytest
import torch

import rdpm.models.choice as choice_module
from rdpm.models.choice import choose_codes, truncate
from rdpm.models.generator import Generator
from rdpm.models.noise import Stream, child_seeds, gumbel, normal
from rdpm.models.sampler import (
    Known,
    SamplerConfig,
    guided_logits,
    modulations_of,
    sample,
    step_settings,
)

LABELS = torch.tensor([0, 4, 2, 2, 1])
SEEDS = child_seeds(6, torch.arange(5))


@pytest.fixture
def encoded(tokenizer):
    with torch.no_grad():
        return tokenizer.encode(torch.rand(5, 3, 16, 16) * 2 - 1, SEEDS)


def everywhere(codes):
    """Teacher forcing at every position of every step."""
    return Known(codes, torch.ones_like(codes, dtype=torch.bool))


def test_teacher_forcing_follows_the_tokenizers_path_bit_for_bit(tokenizer, generator, encoded):
    """Part of invariant 1."""
    samples = sample(generator, tokenizer.quantizer.codebook, LABELS, SEEDS, SamplerConfig(), everywhere(encoded.codes))
    assert torch.equal(samples.codes, encoded.codes)
    for t in range(1, 4):
        assert torch.equal(samples.accumulated[:, t - 1], encoded.before[:, t])
    assert torch.equal(samples.accumulated[:, -1], encoded.accumulated)


def test_teacher_forcing_gives_the_generator_its_training_inputs(tokenizer, generator, encoded, monkeypatch):
    """eps_t and z'_{t-1} of Eq. 6 at every step, bit for bit, and what y and t do, up to a product of more rows."""
    seen, forward = [], generator.from_modulations
    monkeypatch.setattr(generator, "from_modulations", lambda *inputs: seen.append(inputs) or forward(*inputs))
    codebook = tokenizer.quantizer.codebook
    known = everywhere(encoded.codes)
    sample(generator, codebook, LABELS, SEEDS, SamplerConfig(), known, noise_stream=Stream.TOKENIZER)
    assert len(seen) == 4
    for t, (noise, accumulated, modulations) in enumerate(seen, start=1):
        assert torch.equal(noise, encoded.noise[:, t - 1])
        assert torch.equal(accumulated, encoded.before[:, t - 1])
        of_t = generator.modulations(LABELS, torch.full((5,), t))
        torch.testing.assert_close(modulations, of_t, atol=1e-6, rtol=1e-5)


def test_samples_are_the_codes_and_latents_of_one_path(tokenizer, generator):
    codebook = tokenizer.quantizer.codebook
    samples = sample(generator, codebook, LABELS, SEEDS, SamplerConfig(guidance=2.0))
    assert samples.codes.shape == (5, 4, 4, 4)
    assert samples.accumulated.shape == (5, 4, 8, 4, 4)
    for t in range(1, 5):
        assert torch.equal(samples.accumulated[:, t - 1], codebook.accumulated(samples.codes, t))
    assert not samples.accumulated.requires_grad


def test_each_step_draws_from_its_own_noise_and_logits(tokenizer, generator):
    """Against Algorithm 2, written out."""
    codebook, config = tokenizer.quantizer.codebook, SamplerConfig(guidance=1.5, temperature=0.8)
    samples = sample(generator, codebook, LABELS, SEEDS, config)
    with torch.no_grad():
        accumulated = torch.zeros(5, 8, 4, 4)
        for t in range(1, 5):
            noise, steps = normal(SEEDS, t, (8, 4, 4), Stream.SAMPLER), torch.full((5,), t)
            cond, uncond = (generator(noise, y, steps, accumulated) for y in (LABELS, torch.full_like(LABELS, 5)))
            logits = cond + 1.5 * (t - 1) / 3 * (cond - uncond)
            codes = (1.25 * logits + gumbel(SEEDS, t, (4, 4, 64), Stream.GUMBEL)).argmax(-1)
            assert torch.equal(codes, samples.codes[:, t - 1])
            accumulated = accumulated + codebook.phi(codebook.look_up(codes))
            torch.testing.assert_close(accumulated, samples.accumulated[:, t - 1], atol=1e-5, rtol=0)
            accumulated = samples.accumulated[:, t - 1]


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_an_image_does_not_depend_on_its_neighbours_or_its_position_in_the_batch(tokenizer, generator, guidance):
    """A sample is a function of its own seed, label and settings."""
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


def step_inputs(generator):
    """eps_t, z'_{t-1}, the modulations and t, at t = 3."""
    noise, accumulated = torch.randn(2, 5, 8, 4, 4)
    return noise, accumulated, modulations_of(generator, LABELS)[2].detach(), torch.full_like(LABELS, 3)


def test_guidance_0_is_the_conditional_model(generator):
    """Bit for bit where no image is guided; next to guided images up to the rounding of a larger batch."""
    noise, accumulated, modulations, steps = step_inputs(generator)
    conditional = generator.from_modulations(noise, accumulated, modulations[:-1])
    assert step_settings([SamplerConfig()] * 5, 4, noise.device)[2].guidance is None
    assert torch.equal(guided_logits(generator, noise, accumulated, modulations, steps, None), conditional)
    beside = guided_logits(generator, noise, accumulated, modulations, steps, torch.tensor([0.0, 1, 2, 3, 0]))
    torch.testing.assert_close(beside[[0, 4]], conditional[[0, 4]], atol=1e-5, rtol=1e-5)


def test_guidance_extrapolates_each_image_from_unconditional_through_conditional(generator):
    noise, accumulated, modulations, steps = step_inputs(generator)
    cond, uncond = (generator(noise, labels, steps, accumulated) for labels in (LABELS, torch.full_like(LABELS, 5)))
    guidance = torch.tensor([0.5, 1.0, 4.0, 2.0, 0.1])
    guided = guided_logits(generator, noise, accumulated, modulations, steps, guidance)
    for i, strength in enumerate(guidance):
        torch.testing.assert_close(guided[i], cond[i] + strength * (cond[i] - uncond[i]), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(guided[i], cond[i], atol=1e-3)


@pytest.mark.parametrize("ramp", ["linear", "constant"])
def test_a_step_without_guidance_is_one_forward_pass_of_the_batch(tokenizer, generator, ramp, monkeypatch):
    """lambda_1 of the linear ramp is 0. A step that guides any image has both halves of all images."""
    sizes, forward = [], generator.from_modulations
    monkeypatch.setattr(generator, "from_modulations", lambda *given: sizes.append(len(given[0])) or forward(*given))
    configs = [SamplerConfig(2.0, ramp), *[SamplerConfig()] * 4]
    sample(generator, tokenizer.quantizer.codebook, LABELS, SEEDS, configs)
    assert sizes == [5 if ramp == "linear" else 10, 10, 10, 10]


MIXED = [
    SamplerConfig(guidance=2.0, ramp="constant"),
    SamplerConfig(temperature=0.0),
    SamplerConfig(guidance=1.0, temperature=0.5, top_k=3),
    SamplerConfig(top_p=0.3),
    SamplerConfig(guidance=3.0, temperature=2.0, top_k=9, top_p=0.5),
]


@pytest.mark.slow
def test_attention_kernels_draw_the_same_codes_up_to_rounding(tokenizer, generator):
    """A code changes only where the rounding of its logits decides between two codes."""
    plain = Generator(replace(generator.config, attention="math"))
    plain.load_state_dict(generator.state_dict())
    labels, seeds = torch.arange(200) % 5, child_seeds(7, torch.arange(200))
    codebook, config = tokenizer.quantizer.codebook, SamplerConfig(guidance=1.5)
    first, other = (sample(model, codebook, labels, seeds, config).codes for model in (generator, plain))
    assert (first == other).flatten(1).all(1).float().mean() >= 0.99
    inputs = step_inputs(generator)
    logits = [guided_logits(model, *inputs, None) for model in (generator, plain)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_every_image_of_a_batch_can_have_its_own_settings(tokenizer, generator):
    """Each image equals that of a batch where all images have its settings."""
    codebook = tokenizer.quantizer.codebook
    mixed = sample(generator, codebook, LABELS, SEEDS, MIXED).codes
    for i, config in enumerate(MIXED):
        assert torch.equal(mixed[i], sample(generator, codebook, LABELS, SEEDS, config).codes[i])


def test_known_codes_are_kept_and_the_rest_is_drawn(tokenizer, generator, encoded):
    mask = torch.rand(encoded.codes.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    codebook = tokenizer.quantizer.codebook
    codes = sample(generator, codebook, LABELS, SEEDS, SamplerConfig(), Known(encoded.codes, mask)).codes
    assert torch.equal(codes[mask], encoded.codes[mask])
    assert (codes[~mask] != encoded.codes[~mask]).float().mean() > 0.5
    nothing = Known(encoded.codes, torch.zeros_like(mask))
    plain = sample(generator, codebook, LABELS, SEEDS, SamplerConfig()).codes
    assert torch.equal(sample(generator, codebook, LABELS, SEEDS, SamplerConfig(), nothing).codes, plain)


def test_an_embedding_vector_can_replace_a_class(tokenizer, generator):
    codebook = tokenizer.quantizer.codebook
    by_label = sample(generator, codebook, LABELS, SEEDS, SamplerConfig(guidance=1.0)).codes
    points = generator.label_embedding(LABELS).detach()
    assert torch.equal(sample(generator, codebook, points, SEEDS, SamplerConfig(guidance=1.0)).codes, by_label)
    between = points.lerp(points.roll(1, 0), 0.5)
    assert not torch.equal(sample(generator, codebook, between, SEEDS, SamplerConfig(guidance=1.0)).codes, by_label)


def test_after_step_is_called_with_every_step(tokenizer, generator):
    shown = []
    samples = sample(
        generator, tokenizer.quantizer.codebook, LABELS, SEEDS, SamplerConfig(), after_step=lambda *s: shown.append(s)
    )
    assert [t for t, _ in shown] == [1, 2, 3, 4]
    assert torch.equal(torch.stack([accumulated for _, accumulated in shown], 1), samples.accumulated)


def one_settings_of_all(config, num_steps=4):
    """The settings of every step of LABELS with one config."""
    return step_settings([config] * 5, num_steps, SEEDS.device)


@pytest.mark.parametrize("codes", [64, 4096, 6], ids=lambda n: f"{n} codes")
@pytest.mark.parametrize("config", [MIXED[0], MIXED[2], MIXED[4]], ids=["all codes", "top-k", "top-k and top-p"])
def test_noise_in_a_graph_and_in_parts_chooses_as_noise_in_one_tensor(unchecked, monkeypatch, codes, config):
    """Eq. 8, three ways: a graph makes the noise in blocks, a CPU a few positions at a time, and this test at once."""
    logits, settings = torch.randn(5, 4, 4, codes) * 2, one_settings_of_all(config)[0]
    logits[:, :2] = logits[:, :2].round()  # with ties before the noise
    steps = torch.full_like(SEEDS, 2)
    scaled = logits * settings.tau.view(-1, 1, 1, 1)
    if settings.top_k is not None:
        scaled = truncate(scaled, settings.top_k, settings.top_p)
    expected = (scaled + gumbel(SEEDS, 2, tuple(logits.shape[1:]), Stream.GUMBEL)).argmax(-1)
    monkeypatch.setattr(choice_module, "_CACHED", 15 * codes)
    assert torch.equal(choose_codes(logits, settings, SEEDS, steps), expected)
    torch._dynamo.reset()
    graph = torch.compile(choose_codes, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(graph(logits, settings, SEEDS, steps), expected)
