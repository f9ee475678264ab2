"""Metrics of held-out images while a tokenizer trains."""

import numpy as np
import torch
from torch import Tensor

from rdpm.models.losses import PerceptualLoss
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import open_extractor
from rdpm.pipeline.evaluation.fidelity import lpips, psnr, reconstruct, ssim
from rdpm.pipeline.evaluation.splits import load_split
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig

_SHOWN, _BATCH = 8, 16


class Validator:
    """Reconstructs the same held-out images with the same noise each time, so only the weights change the metrics."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        self.config = config.model
        self.pixels = load_split(config.validation, config.model, config.validation_images).pixels
        perceptual = config.loss.perceptual
        self.perceptual = PerceptualLoss(perceptual) if perceptual != "none" else None
        extractor = config.validation_extractor
        self.extractor = open_extractor(extractor, config.inception_weights, _BATCH) if extractor != "none" else None
        self._real = self._features(self.pixels) if self.extractor else None

    def __call__(self, weights: dict[str, Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """The metrics of full weights, and a picture (2 H, n W, C) uint8 of originals above their reconstructions.

        validation_psnr (dB) and validation_ssim; validation_lpips with a perceptual loss; validation_rfid with an
        extractor.
        """
        tokenizer = Tokenizer(self.config)
        tokenizer.load_state_dict({name: value.cpu() for name, value in weights.items()})
        codec = Codec(tokenizer.eval(), _BATCH, torch.device("cpu"))
        back = reconstruct(codec, self.pixels, seed=0).pixels
        metrics = {"validation_psnr": psnr(self.pixels, back), "validation_ssim": ssim(self.pixels, back)}
        if self.perceptual is not None:
            metrics["validation_lpips"] = lpips(self.perceptual, self.pixels, back, _BATCH)
        if self._real is not None:
            metrics["validation_rfid"] = frechet_of(self._real, self._features(back))
        rows = [np.concatenate(list(images[:_SHOWN]), axis=1) for images in (self.pixels, back)]
        return metrics, np.concatenate(rows)

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        assert self.extractor is not None
        parts = range(0, len(pixels), _BATCH)
        return np.concatenate([self.extractor.extract(pixels[start : start + _BATCH]).features for start in parts])
