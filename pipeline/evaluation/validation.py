"""Held-out images through a tokenizer while it trains."""

import numpy as np
import torch
from torch import Tensor

from models.losses import PerceptualLoss
from models.tokenizer import Tokenizer, TokenizerConfig, from_pixels
from pipeline.evaluation.reconstruction import decode_codes, encode_images, psnr, ssim
from pipeline.evaluation.splits import load_split

_SHOWN, _BATCH = 8, 16


class Validator:
    """The same held-out images and noise at every call, so that only the weights change the figures."""

    def __init__(self, root: str, config: TokenizerConfig, limit: int, perceptual: str) -> None:
        self.config = config
        self.pixels = load_split(root, config, limit).pixels
        self.perceptual = PerceptualLoss(perceptual) if perceptual != "none" else None

    def __call__(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """Full weights to validation_psnr (dB), validation_ssim, validation_lpips (with VGG16 alone), and a picture.

        The picture, (2 H, n W, C) uint8, has originals above reconstructions.
        """
        tokenizer = Tokenizer(self.config)
        tokenizer.load_state_dict({name: value.cpu() for name, value in weights.items()})
        tokenizer.eval()
        codes = encode_images(tokenizer, self.pixels, 0, 0, _BATCH)
        back = decode_codes(tokenizer, codes, codes.shape[1], _BATCH)
        figures = {"validation_psnr": psnr(self.pixels, back), "validation_ssim": ssim(self.pixels, back)}
        if self.perceptual is not None:
            figures["validation_lpips"] = self._lpips(back)
        rows = [np.concatenate(list(images[:_SHOWN]), axis=1) for images in (self.pixels, back)]
        return figures, np.concatenate(rows)

    @torch.no_grad()
    def _lpips(self, back: np.ndarray) -> float:
        assert self.perceptual is not None
        total = 0.0
        for start in range(0, len(back), _BATCH):
            real, fake = (
                from_pixels(torch.from_numpy(images[start : start + _BATCH]).permute(0, 3, 1, 2))
                for images in (self.pixels, back)
            )
            total += self.perceptual(real, fake).item() * len(real)
        return total / len(back)
