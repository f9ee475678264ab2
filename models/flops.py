"""Parameters and FLOPs of models, counted without data."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdpm.models.generator import Generator, GeneratorConfig


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def generator_parameters(config: GeneratorConfig) -> int:
    """Number of parameters of a generator, counted without allocating it."""
    with torch.device("meta"):
        return count_parameters(Generator(config))


def generator_forward_flops(config: GeneratorConfig) -> int:
    """FLOPs of one forward pass of one image at one step; training takes three times as many."""
    with torch.device("meta"):
        model = Generator(config)
        latents = torch.empty(1, config.code_dim, config.grid, config.grid)
        labels = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(latents, labels, labels, latents)
    return counter.get_total_flops()
