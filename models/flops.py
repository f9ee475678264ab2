"""What models weigh and compute, counted without data."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdpm.models.generator import Generator, GeneratorConfig


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def generator_parameters(space: GeneratorConfig) -> int:
    """Trainable numbers of a generator, which is not made for it."""
    with torch.device("meta"):
        return count_parameters(Generator(space))


def generator_forward_flops(space: GeneratorConfig) -> int:
    """FLOPs of one forward of one image at one step; training takes three times as many."""
    with torch.device("meta"):
        model = Generator(space)
        latents = torch.empty(1, space.code_dim, space.grid, space.grid)
        labels = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(latents, labels, labels, latents)
    return counter.get_total_flops()
