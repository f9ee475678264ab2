"""Small rivals, with a quantizer and rows of their kind."""

from collections.abc import Callable

import pytest
import torch

from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import GeneratorConfig
from rdpm.models.methods import RIVALS, new_generator
from rdpm.models.noise import child_seeds
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.rival import Rival, Rows
from rdpm.models.schedule import Schedule

STEPS = {"flow": 4, "maskgit": 1, "raster": 1, "scales": 3}


def _quantizer(method: str) -> Quantizer:
    config = QuantizerConfig(codebook_size=16, code_dim=4, growing=method == "scales")
    return Quantizer(config, Schedule("residual" if method == "scales" else "pow", STEPS[method]))


def _rival(method: str) -> Rival:
    model = new_generator(GeneratorConfig(1, 3, STEPS[method], 16, 4, grid=4, method=method))
    assert isinstance(model, Rival)
    return model


def _rows(quantizer: Quantizer, count: int, method: str) -> Rows:
    """Rows of two patterns, one per class, with a little noise."""
    labels = torch.arange(count) % 2
    patterns = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    latents = patterns[labels] + 0.05 * torch.randn(count, 4, 4, 4)
    seeds = child_seeds(3, torch.arange(count))
    if not RIVALS[method].LEARNS_CODES:
        return Rows(labels, seeds, latents=latents)
    return Rows(labels, seeds, codes=quantizer.quantize(latents, lambda _: torch.zeros_like(latents)).codes)


@pytest.fixture
def make_quantizer() -> Callable[[str], Quantizer]:
    """A quantizer of 4 x 4 latents for the tokenizer of a rival."""
    return _quantizer


@pytest.fixture
def make_rival() -> Callable[[str], Rival]:
    """A rival with one block, for three classes."""
    return _rival


@pytest.fixture
def make_rows() -> Callable[[Quantizer, int, str], Rows]:
    """Rows that a rival can learn: (quantizer, count, method)."""
    return _rows
