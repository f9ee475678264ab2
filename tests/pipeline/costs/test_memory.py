"""The peak memory measured without data equals that of a computation with data."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.models.generator import Generator, code_loss
from rdpm.pipeline.costs.memory import PeakBytes, generator_bytes_per_sample, tokenizer_bytes_per_sample
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig


def test_storages_count_until_they_are_freed() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with PeakBytes() as tracker:
        y = x
        for _ in range(5):
            y = y.sin()
        assert tracker.now == 5 * 4000  # the backward pass needs all of them
        view = y.view(10, 100)[1:]
        assert tracker.now == 5 * 4000
        del y, view
        assert tracker.now == 0
    assert tracker.peak == 5 * 4000


def test_tensors_without_data_have_the_peak_of_real_ones(exports) -> None:
    space = exports.generator_config
    peaks = []
    for fake in (False, True):
        with FakeTensorMode() if fake else torch.no_grad():
            generator = Generator(space)
            latents = torch.zeros(8, space.code_dim, space.grid, space.grid)
            labels = torch.zeros(8, dtype=torch.int64)
            codes = torch.zeros(8, space.grid, space.grid, dtype=torch.int64)
            with torch.enable_grad(), PeakBytes() as tracker:
                code_loss(generator(latents, labels, labels + 1, latents), codes).mean().backward()
            peaks.append(tracker.peak)
    assert peaks[0] == peaks[1]


def tokenizer_config(exports, **settings) -> TrainTokenizerConfig:
    """The tests' tokenizer without LPIPS."""
    return TrainTokenizerConfig(
        images="images",
        out="out",
        model=exports.tokenizer_config,
        discriminator=DiscriminatorConfig(128, 1),
        engine=EngineConfig(precision="fp32"),
        **settings,
    )


@pytest.mark.slow
def test_recomputing_and_leaving_out_the_discriminator_save_memory(exports) -> None:
    with_discriminator = tokenizer_config(exports, loss=LossConfig(perceptual="none"))
    without = tokenizer_config(exports, loss=LossConfig(perceptual="none", adversarial=0.0))
    autoencoder = dataclasses.replace(without.model.autoencoder, activation_checkpointing=True)
    recomputing = dataclasses.replace(without, model=dataclasses.replace(without.model, autoencoder=autoencoder))
    sizes = [tokenizer_bytes_per_sample(config) for config in (recomputing, without, with_discriminator)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


@pytest.mark.slow
def test_a_deeper_generator_needs_more_memory_per_image(exports) -> None:
    config = TrainGeneratorConfig(stores=("s",), tokenizer="t", out="o", model=exports.generator_config)
    deeper = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=2))
    assert 0 < generator_bytes_per_sample(config) < generator_bytes_per_sample(deeper)
