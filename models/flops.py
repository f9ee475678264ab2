"""Parameters and FLOPs of models, counted without data."""

import functools

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdpm.models.generator import GeneratorConfig
from rdpm.models.methods import new_generator


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def generator_parameters(config: GeneratorConfig) -> int:
    """Number of parameters of a generator, counted without allocating it."""
    with torch.device("meta"):
        return count_parameters(new_generator(config))


@functools.cache
def generator_forward_flops(config: GeneratorConfig) -> int:
    """FLOPs of one forward pass of one image, for RDPM at one step."""
    with torch.device("meta"):
        model = new_generator(config)
        arguments = model.example(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.loss(*arguments)
    return counter.get_total_flops()


def generator_training_flops(config: GeneratorConfig) -> int:
    """FLOPs of training on one image, for RDPM at one step: the backward pass costs twice the forward pass.

    Source: Kaplan et al. 2020, section 2.1.
    """
    return 3 * generator_forward_flops(config)
