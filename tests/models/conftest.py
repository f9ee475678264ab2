"""Small models and settings that the tests of models/ share."""

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import nn

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """One thread, and the same initial weights in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Type checks off, as in production: to see our own errors, and to let compilers through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _awaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return module


@pytest.fixture
def awaken() -> Callable[[nn.Module], nn.Module]:
    """Adds noise to every weight, so that what starts at zero (AdaLN-Zero, the head, the bias) takes part."""
    return _awaken


@pytest.fixture
def tokenizer() -> Tokenizer:
    """16x16 images to 4 maps of 4x4 codes out of 64."""
    config = TokenizerConfig(
        image_size=16,
        autoencoder=AutoencoderConfig(
            channels=8, multipliers=(1, 2, 2), num_res_blocks=1, attention_factors=(4,), groups=4
        ),
        quantizer=QuantizerConfig(codebook_size=64, code_dim=8),
        schedule=Schedule(num_steps=4),
    )
    return _awaken(Tokenizer(config))


@pytest.fixture
def generator() -> Generator:
    """Fits `tokenizer`."""
    config = GeneratorConfig(depth=2, num_classes=5, num_steps=4, codebook_size=64, code_dim=8, grid=4)
    return _awaken(Generator(config))
