"""Parameters, FLOPs and memory of a training config."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rdpm.models.flops import (
    count_parameters,
    generator_forward_flops,
    generator_parameters,
    generator_training_flops,
)
from rdpm.models.methods import evaluations_of
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.costs.memory import generator_bytes_per_sample, tokenizer_bytes_per_sample
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig

_FP32 = 4


def memory_by_stage(parameters: int, ranks: int, moments: int) -> dict[str, int]:
    """Bytes per rank for weights, gradients and optimizer state under each ZeRO stage, without activations.

    moments: numbers per weight that the optimizer keeps. Everything is float32, because bf16 only autocasts. Stage 1
    shards the optimizer, stage 2 also the gradients, stage 3 also the weights (Rajbhandari et al. 2020, Figure 1).
    Stages 1 and 2 keep sharded master weights beside those of the model.
    """
    weights = gradients = _FP32 * parameters
    optimizer = _FP32 * moments * parameters
    return {
        "zero_0": weights + gradients + optimizer,
        "zero_1": weights + gradients + (optimizer + weights) // ranks,
        "zero_2": weights + (gradients + optimizer + weights) // ranks,
        "zero_3": (weights + gradients + optimizer) // ranks,
    }


def describe_generator(config: TrainGeneratorConfig) -> dict[str, Any]:
    """Parameters, FLOPs per image (one step, sampling, training) and memory of a generator's training."""
    space = config.model
    forward = generator_forward_flops(space)
    parameters = generator_parameters(space)
    return {
        "kind": "generator",
        "parameters": parameters,
        "flops_per_image": forward,
        "flops_per_image_sampled": forward * evaluations_of(space, 0),
        "flops_per_image_trained": config.steps_per_image * generator_training_flops(space),
        "positions": space.grid**2,
        "steps": space.num_steps,
        "ranks": config.ranks,
        "peak_bytes_per_sample": generator_bytes_per_sample(config),
        "memory_bytes_per_rank": memory_by_stage(parameters, config.ranks, moments=3),  # Adam's two, and the average
    }


def describe_tokenizer(config: TrainTokenizerConfig) -> dict[str, Any]:
    """Parameters, FLOPs per image (encoding with its T steps, decoding) and memory of a tokenizer's training."""
    model_config = config.model
    size, channels = model_config.image_size, model_config.autoencoder.in_channels
    K, d, h, w = model_config.quantizer.codebook_size, *model_config.latent_shape
    with torch.device("meta"):
        model = Tokenizer(model_config)
        images = torch.empty(1, channels, size, size)
        latents = torch.empty(1, d, h, w)
    with FlopCounterMode(display=False) as encoder:
        model.encoder(images)
    with FlopCounterMode(display=False) as decoder:
        model.decode(latents)
    # Per step: the products with K code vectors, and the bias convolution.
    quantizer_step = 2 * h * w * d * (K + (9 * d if model_config.quantizer.bias else 0))
    quantizer = quantizer_step * model_config.schedule.num_steps
    parameters = count_parameters(model)
    return {
        "kind": "tokenizer",
        "parameters": parameters,
        "flops_per_image": encoder.get_total_flops() + quantizer + decoder.get_total_flops(),
        "flops_per_image_encoded": encoder.get_total_flops() + quantizer,
        "flops_per_image_decoded": decoder.get_total_flops(),
        "codes_per_image": model_config.schedule.num_steps * h * w,
        "ranks": config.ranks,
        "peak_bytes_per_sample": tokenizer_bytes_per_sample(config),
        "memory_bytes_per_rank": memory_by_stage(parameters, config.ranks, moments=2),
    }
