"""The precision of models at work. In bf16 their weights are cast once, not at every call.

Logits and pixels stay float32: bfloat16 keeps 8 bits, which is too few to tell the two best codes apart.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from rdpm.models.attention import Backend
from rdpm.models.autoencoder import Decoder
from rdpm.models.generator import Generator

Precision = Literal["fp32", "bf16"]

_ROUNDING = 2  # 1: autocast over float32 weights, which cast them at every call and rounded logits and pixels


def rounding_of(precision: Precision, compile: bool) -> int | None:
    """The version of how sampling rounds; None for uncompiled models in fp32, which round as they always did.

    A set whose plan has another version cannot be continued: its last images would be rounded otherwise.
    """
    return _ROUNDING if compile or precision == "bf16" else None


def check_precision(precision: Precision, attention: Backend) -> None:
    """Raise ValueError for flash_attn in fp32, which flash-attn does not compute."""
    if attention == "flash_attn" and precision == "fp32":
        raise ValueError("attention is flash_attn, which computes in bf16 only; use precision bf16, or attention sdpa")


class _InItsType(nn.Module):
    """A layer whose input is cast to the type of its weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(next(self.layer.parameters()).dtype))


def generator_in(precision: Precision, generator: Generator) -> Generator:
    """The generator itself for fp32. For bf16 a copy: hidden state and blocks in bf16, the rest in fp32.

    What labels and steps do is computed once per batch, in fp32, and the head computes logits in fp32.
    """
    if precision == "fp32":
        return generator
    generator = copy.deepcopy(generator)
    generator.transformer.blocks.to(torch.bfloat16)
    generator.transformer.positions = generator.transformer.positions.to(torch.bfloat16)
    generator.project = _InItsType(generator.project.to(torch.bfloat16))  # type: ignore[assignment]
    generator.head = _InItsType(generator.head)  # type: ignore[assignment]
    return generator


def decoder_in(precision: Precision, decoder: Decoder) -> Decoder:
    """The decoder itself for fp32. For bf16 a copy in bf16 and channels-last, with its last convolution in fp32."""
    if precision == "fp32":
        return decoder
    decoder = copy.deepcopy(decoder)
    decoder.layers.to(torch.bfloat16).to(memory_format=torch.channels_last)
    decoder.layers[0] = _InItsType(decoder.layers[0])
    decoder.last = _InItsType(decoder.last)  # type: ignore[assignment]
    return decoder
