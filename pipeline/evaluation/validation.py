"""Held-out images through a tokenizer while it trains."""

import numpy as np
from torch import Tensor

from rdpm.models.losses import PerceptualLoss
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import Extractor
from rdpm.pipeline.evaluation.reconstruction import decode_codes, encode_images, lpips, psnr, ssim
from rdpm.pipeline.evaluation.splits import load_split

_SHOWN, _BATCH = 8, 16


class Validator:
    """The same held-out images and noise at every call, so that only the weights change the figures."""

    def __init__(
        self, root: str, config: TokenizerConfig, limit: int, perceptual: str, extractor: Extractor | None = None
    ) -> None:
        self.config = config
        self.pixels = load_split(root, config, limit).pixels
        self.perceptual = PerceptualLoss(perceptual) if perceptual != "none" else None
        self.extractor = extractor
        self._real = self._features(self.pixels) if extractor else None

    def __call__(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """Full weights to validation_psnr (dB) and _ssim, _lpips and _rfid where they can be had, and a picture.

        The picture, (2 H, n W, C) uint8, has originals above reconstructions.
        """
        tokenizer = Tokenizer(self.config)
        tokenizer.load_state_dict({name: value.cpu() for name, value in weights.items()})
        tokenizer.eval()
        codes = encode_images(tokenizer, self.pixels, 0, 0, _BATCH)
        back = decode_codes(tokenizer, codes, codes.shape[1], _BATCH)
        figures = {"validation_psnr": psnr(self.pixels, back), "validation_ssim": ssim(self.pixels, back)}
        if self.perceptual is not None:
            figures["validation_lpips"] = lpips(self.perceptual, self.pixels, back, _BATCH)
        if self._real is not None:
            figures["validation_rfid"] = frechet_of(self._real, self._features(back))
        rows = [np.concatenate(list(images[:_SHOWN]), axis=1) for images in (self.pixels, back)]
        return figures, np.concatenate(rows)

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        assert self.extractor is not None
        parts = range(0, len(pixels), _BATCH)
        return np.concatenate([self.extractor.extract(pixels[start : start + _BATCH]).features for start in parts])
