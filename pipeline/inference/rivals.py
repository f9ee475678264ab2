"""A rival of RDPM with its tokenizer: labels to images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdpm.models.attention import Backend
from rdpm.models.generator import Generator
from rdpm.models.methods import evaluations_of
from rdpm.models.rivals import rival as rivals
from rdpm.models.sampler import SamplerConfig, step_settings
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.exports.weights import load_model, load_tokenizer
from rdpm.pipeline.inference.batches import best_device, in_batches
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.inference.precision import Precision, check_precision
from rdpm.pipeline.inference.rdpm import RDPM, Drawn, three_channels


class RivalSampler:
    """A trained rival and its tokenizer on one device, in fp32. Every call of a model gets `batch` images.

    evaluations: forward passes per image; 0 for the method's usual number.
    """

    def __init__(
        self,
        rival: rivals.Rival,
        tokenizer: Tokenizer,
        *,
        batch: int = 16,
        evaluations: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        check_precision("fp32", rival.config.attention)
        self.device = torch.device(device) if device else best_device()
        self.rival, self.batch = rival.to(self.device), batch
        self.codec = Codec(tokenizer, batch, self.device)
        self.evaluations = evaluations_of(rival.config, evaluations)

    def draw(self, labels: np.ndarray, seeds: np.ndarray, configs: Sequence[SamplerConfig]) -> Drawn:
        """Images of labels (N,) int64 and seeds (N,) int64, with one config per image.

        Image i depends only on the weights, configs[i], labels[i], seeds[i] and the shape of the batch.
        """
        matching = self.rival.matching

        def draw(rows: range, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
            drawn = self._draw(rows, labels, seeds, configs)
            none = labels.new_zeros(len(labels), 0, *drawn.latents.shape[2:])
            codes = none if drawn.codes is None else drawn.codes
            latents = matching(drawn.latents, matching.table[labels]) if matching else drawn.latents
            return self.codec.pixels(latents), codes.to(torch.uint16)

        images, codes = in_batches(draw, (labels, seeds), self.batch, self.device)
        return Drawn(three_channels(images), codes)

    def latents(self, labels: np.ndarray, seeds: np.ndarray, configs: Sequence[SamplerConfig]) -> np.ndarray:
        """What `draw` decodes, before any matching: (N, d, h, w) float32."""

        def draw(rows: range, labels: Tensor, seeds: Tensor) -> tuple[Tensor]:
            return (self._draw(rows, labels, seeds, configs).latents,)

        return in_batches(draw, (labels, seeds), self.batch, self.device)[0]

    def _draw(self, rows: range, labels: Tensor, seeds: Tensor, configs: Sequence[SamplerConfig]) -> rivals.Drawn:
        own = [configs[row] for row in rows]
        own += own[:1] * (self.batch - len(rows))
        settings = step_settings(own, self.evaluations, self.device)
        return self.rival.draw(self.codec.tokenizer.quantizer.codebook, labels, seeds, settings)


def sampler_of(
    generator: Generator | rivals.Rival,
    tokenizer: Tokenizer,
    *,
    batch: int = 16,
    precision: Precision = "fp32",
    compile: bool = False,
    device: str | torch.device | None = None,
    evaluations: int = 0,
) -> RDPM | RivalSampler:
    """What draws with a generator of any method. precision, compile: of RDPM's; rivals run in fp32, uncompiled."""
    if isinstance(generator, rivals.Rival):
        return RivalSampler(generator, tokenizer, batch=batch, evaluations=evaluations, device=device)
    return RDPM(generator, tokenizer, batch=batch, precision=precision, compile=compile, device=device)


def load_sampler(
    generator: str,
    tokenizer: str,
    *,
    batch: int = 16,
    precision: Precision = "fp32",
    compile: bool = False,
    attention: Backend = "sdpa",
    device: str | torch.device | None = None,
    evaluations: int = 0,
) -> RDPM | RivalSampler:
    """`sampler_of` the exports of a generator of any method and of its tokenizer.

    Raises ValueError when an export is missing, or the two do not belong together.
    """
    read_pair(generator, tokenizer)
    models = load_model(generator, attention)[0], load_tokenizer(tokenizer)[0]
    return sampler_of(
        *models, batch=batch, precision=precision, compile=compile, device=device, evaluations=evaluations
    )
