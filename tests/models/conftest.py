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
    """Turn type checks off, as in production, so that our own errors appear and compilers work."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def _randomize(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return module


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Adds noise to every weight, so that those which start at zero (AdaLN-Zero, the head, the bias) have an effect."""
    return _randomize


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A tokenizer of 16x16 images: 4 maps of 4x4 codes out of 64."""
    config = TokenizerConfig(
        image_size=16,
        autoencoder=AutoencoderConfig(
            channels=8, multipliers=(1, 2, 2), num_res_blocks=1, attention_factors=(4,), groups=4
        ),
        quantizer=QuantizerConfig(codebook_size=64, code_dim=8),
        schedule=Schedule(num_steps=4),
    )
    return _randomize(Tokenizer(config))


@pytest.fixture
def generator() -> Generator:
    """A generator of the codes of `tokenizer`."""
    config = GeneratorConfig(depth=2, num_classes=5, num_steps=4, codebook_size=64, code_dim=8, grid=4)
    return _randomize(Generator(config))
