"""Preconditioning: what noise and accumulated latents say of the next code, and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rdpm.models.flops import generator_parameters
from rdpm.models.generator import Generator, GeneratorConfig, code_loss
from rdpm.models.noise import Stream, normal
from rdpm.models.quantizer import Quantization, Quantizer
from rdpm.models.sampler import guided_logits, modulations_of

COUNT = 64


@pytest.fixture
def quantizer(tokenizer) -> Quantizer:
    """Of 4 maps of 4 x 4 codes out of 64."""
    return tokenizer.quantizer


@pytest.fixture
def preconditioned(generator, quantizer, randomize) -> Generator:
    """A generator with preconditioning whose layers all have an effect."""
    model = randomize(Generator(replace(generator.config, preconditioned=True)))
    model.start_from(quantizer)
    return randomize(model)


@pytest.fixture
def encoded(quantizer) -> Quantization:
    """Latents of unit variance in codes."""
    seeds = torch.arange(COUNT)
    latents = torch.randn(COUNT, 8, 4, 4)
    return quantizer.quantize(latents, lambda t: normal(seeds, t, (8, 4, 4), Stream.TOKENIZER))


def inputs_at(encoded: Quantization, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """eps_t, z'_{t-1} and t."""
    return encoded.noise[:, t - 1], encoded.before[:, t - 1], torch.full((COUNT,), t)


def test_the_likeliest_code_is_nearest_to_what_is_known_of_the_noisy_latent(preconditioned, quantizer, encoded):
    for t in (1, 2, 3, 4):
        noise, accumulated, steps = inputs_at(encoded, t)
        known = quantizer.beta[t - 1] * noise - quantizer.alpha[t - 1] * accumulated
        logits = preconditioned.preconditioning(noise, accumulated, steps)
        assert (logits.argmax(-1) == quantizer.codebook.nearest(known)).float().mean() > 0.999  # ties by rounding


def test_it_knows_the_more_of_a_code_the_more_of_the_mix_is_noise(preconditioned, quantizer, encoded):
    """Latents of unit variance, as LayerNorm makes them, with the first factors."""
    preconditioned.start_from(quantizer)
    losses = []
    for t in (1, 2, 3, 4):
        logits = preconditioned.preconditioning(*inputs_at(encoded, t)).detach()
        losses.append(code_loss(logits, encoded.codes[:, t - 1]).mean().item())
    assert losses == sorted(losses)
    assert losses[0] < 0.9 * math.log(64)
    assert losses[0] < losses[-1]


def test_a_training_starts_from_what_is_known(quantizer, generator, encoded):
    """The network adds nothing before its first update."""
    model = Generator(replace(generator.config, preconditioned=True))
    model.start_from(quantizer)
    noise, accumulated, steps = inputs_at(encoded, 2)
    logits = model(noise, torch.zeros_like(steps), steps, accumulated)
    assert torch.equal(logits, model.preconditioning(noise, accumulated, steps))


def test_guidance_leaves_it_alone(preconditioned, encoded):
    """It is the same with and without a label, so guided logits are cond + lambda (cond - uncond) of whole logits."""
    noise, accumulated, steps = inputs_at(encoded, 3)
    labels = torch.arange(COUNT) % 5
    cond, uncond = (preconditioned(noise, y, steps, accumulated) for y in (labels, torch.full_like(labels, 5)))
    modulations = modulations_of(preconditioned, labels)[2]
    for guidance in (None, torch.linspace(0, 3, COUNT)):
        expected = cond if guidance is None else cond + guidance.view(-1, 1, 1, 1) * (cond - uncond)
        found = guided_logits(preconditioned, noise, accumulated, modulations, steps, guidance)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_autocast_does_not_round_it(preconditioned, encoded):
    inputs = inputs_at(encoded, 2)
    exact = preconditioned.preconditioning(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(preconditioned.preconditioning(*inputs), exact)


def test_only_its_factors_are_learned(preconditioned, encoded):
    """One number per step more than without it. Those of steps that did not occur have no gradient."""
    plain = replace(preconditioned.config, preconditioned=False)
    T = plain.num_steps
    assert generator_parameters(preconditioned.config) == generator_parameters(plain) + T
    noise, accumulated, steps = inputs_at(encoded, 2)
    preconditioned.loss(noise, torch.zeros_like(steps), steps, accumulated, encoded.codes[:, 1]).mean().backward()
    gradient = preconditioned.preconditioning.log_factor.grad
    assert [bool(value) for value in gradient] == [False, True, False, False]


def test_without_it_the_weights_are_those_of_the_paper(generator):
    assert not any("preconditioning" in name for name in generator.state_dict())


def test_a_rival_refuses_it():
    with pytest.raises(ValueError, match="preconditioned is true, which method flow does not know; use method rdpm"):
        GeneratorConfig(method="flow", preconditioned=True)
