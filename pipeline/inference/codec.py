"""From pixels to codes and back, with one tokenizer on one device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rdpm.models.noise import Stream, normal
from rdpm.models.tokenizer import Tokenizer, from_pixels, to_pixels
from rdpm.pipeline.inference.batches import best_device, in_batches
from rdpm.pipeline.inference.precision import Precision, decoder_in


@dataclass(frozen=True)
class Encoded:
    """Codes and latents of N images, in the types that stores keep."""

    codes: np.ndarray
    """C_1 ... C_T, (N, T, h, w) uint16."""
    accumulated: np.ndarray
    """z'_T, (N, d, h, w) float16."""
    latents: np.ndarray
    """v, (N, d, h, w) float16."""


class Codec:
    """A tokenizer on one device. Every call of the tokenizer gets `batch` images; the last batch is padded."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        batch: int,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
    ) -> None:
        """Move the tokenizer to `device`, which is the best one where it is None.

        precision: of encoder and decoder; the quantizer is always float32. compile: whether to compile encoder and
        decoder.
        """
        self.device = device or best_device()
        self.tokenizer, self.batch, self.precision = tokenizer.to(self.device), batch, precision
        self.compile = compile

    @cached_property
    def _encoder(self) -> Callable[[Tensor], Tensor]:
        """Under autocast, so that its codes are those that older stores of bf16 hold."""
        encoder = self.tokenizer.encoder
        return torch.compile(encoder, dynamic=False) if self.compile else encoder

    @cached_property
    def _decoder(self) -> Callable[[Tensor], Tensor]:
        decoder = decoder_in(self.precision, self.tokenizer.decoder)
        return torch.compile(decoder, dynamic=False) if self.compile else decoder

    def encode(self, pixels: np.ndarray, seeds: np.ndarray, stream: Stream = Stream.TOKENIZER) -> Encoded:
        """Pixels (N, H, W, C) uint8 and seeds (N,) int64 or uint64 to codes and latents (Algorithm 1).

        stream: the family of random numbers from which the noise is drawn.
        """
        shape = self.tokenizer.config.latent_shape

        def encode(_: range, pixels: Tensor, seeds: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                latents = self._encoder(from_pixels(pixels.permute(0, 3, 1, 2)))
            latents = latents.float()
            result = self.tokenizer.quantizer.quantize(latents, lambda t: normal(seeds, t, shape, stream))
            return result.codes.to(torch.uint16), result.accumulated.half(), latents.half()

        return Encoded(*in_batches(encode, (pixels, seeds.view(np.int64)), self.batch, self.device))

    def decode(self, codes: np.ndarray, steps: int | None = None) -> np.ndarray:
        """Codes (N, T, h, w) to pixels (N, H, W, C) uint8, from z' after `steps` steps; None means all T."""

        def decode(_: range, codes: Tensor) -> tuple[Tensor]:
            last = codes.shape[1] if steps is None else steps
            return (self.pixels(self.tokenizer.quantizer.codebook.accumulated(codes, last)),)

        return in_batches(decode, (codes.astype(np.int64),), self.batch, self.device)[0]

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Latents (N, d, h, w), or what codes add up to, to pixels (N, H, W, C) uint8."""

        def decode(_: range, latents: Tensor) -> tuple[Tensor]:
            return (self.pixels(latents.float()),)

        return in_batches(decode, (latents,), self.batch, self.device)[0]

    def accumulate(self, codes: np.ndarray) -> np.ndarray:
        """z'_T (N, d, h, w) float32 of codes (N, T, h, w)."""

        def accumulate(_: range, codes: Tensor) -> tuple[Tensor]:
            return (self.tokenizer.quantizer.codebook.accumulated(codes, codes.shape[1]),)

        return in_batches(accumulate, (codes.astype(np.int64),), self.batch, self.device)[0]

    def pixels(self, accumulated: Tensor) -> Tensor:
        """z' (b, d, h, w) to pixels (b, H, W, C) uint8."""
        return to_pixels(self._decoder(accumulated)).permute(0, 2, 3, 1)
