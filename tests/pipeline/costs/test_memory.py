"""Peak memory found without data is what a computation with data holds."""

import dataclasses

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.models.generator import Generator, code_loss
from rdpm.pipeline.costs.memory import PeakBytes, generator_bytes_per_sample, tokenizer_bytes_per_sample
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig


def test_storages_count_while_they_live() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with PeakBytes() as seen:
        y = x
        for _ in range(5):
            y = y.sin()
        assert seen.now == 5 * 4000  # what the backward pass needs is held
        view = y.view(10, 100)[1:]
        assert seen.now == 5 * 4000
        del y, view
        assert seen.now == 0
    assert seen.peak == 5 * 4000


def test_tensors_without_data_hold_what_real_ones_do(exports) -> None:
    space = exports.generator_config
    peaks = []
    for fake in (False, True):
        with FakeTensorMode() if fake else torch.no_grad():
            generator = Generator(space)
            latents = torch.zeros(8, space.code_dim, space.grid, space.grid)
            labels = torch.zeros(8, dtype=torch.int64)
            codes = torch.zeros(8, space.grid, space.grid, dtype=torch.int64)
            with torch.enable_grad(), PeakBytes() as seen:
                code_loss(generator(latents, labels, labels + 1, latents), codes).mean().backward()
            peaks.append(seen.peak)
    assert peaks[0] == peaks[1]


def tokenizer_config(exports, **settings) -> TrainTokenizerConfig:
    """The tests' tokenizer without LPIPS."""
    return TrainTokenizerConfig(
        "images",
        "out",
        model=exports.tokenizer_config,
        discriminator=DiscriminatorConfig(128, 1),
        engine=EngineConfig(0, "fp32"),
        **settings,
    )


def test_recomputing_and_leaving_out_the_discriminator_save_memory(exports) -> None:
    both = tokenizer_bytes_per_sample(tokenizer_config(exports, loss=LossConfig(perceptual="none")))
    alone = tokenizer_config(exports, loss=LossConfig(perceptual="none", adversarial=0.0))
    one = tokenizer_bytes_per_sample(alone)
    model = alone.model
    again = dataclasses.replace(
        model, autoencoder=dataclasses.replace(model.autoencoder, activation_checkpointing=True)
    )
    recomputed = tokenizer_bytes_per_sample(dataclasses.replace(alone, model=again))
    assert 0 < recomputed < one < both


def test_a_deeper_generator_holds_more_of_each_image(exports) -> None:
    config = TrainGeneratorConfig(("s",), "t", "o", model=exports.generator_config)
    deeper = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=2))
    assert 0 < generator_bytes_per_sample(config) < generator_bytes_per_sample(deeper)
