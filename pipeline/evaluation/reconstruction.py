"""Images through the tokenizer and back, and how far they come back: PSNR, SSIM, codebook usage.

Convention: both images as uint8 after the one rounding of `to_pixels`, data range 255, a value an image, the mean over
images. SSIM is scikit-image's with its 7 x 7 uniform window and sample covariance, the mean over channels. Values under
other conventions differ by more than models do.
"""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from models.noise import child_seeds
from models.tokenizer import Tokenizer, from_pixels, to_pixels

PSNR_CONVENTION = "uint8 pairs, data range 255, mean over images of each image's PSNR in dB"
SSIM_CONVENTION = "uint8 pairs, data range 255, scikit-image 7x7 uniform window, mean over channels and images"


@torch.no_grad()
def encode_images(tokenizer: Tokenizer, pixels: np.ndarray, seed: int, first: int, batch: int) -> np.ndarray:
    """Codes (n, T, h, w) int64 of images (n, H, W, C) uint8; image i takes the seed's child `first + i`."""
    codes = []
    for start in range(0, len(pixels), batch):
        part = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2)
        seeds = child_seeds(seed, torch.arange(first + start, first + start + len(part)))
        codes.append(tokenizer.encode(from_pixels(part), seeds).codes)
    return torch.cat(codes).numpy()


@torch.no_grad()
def decode_codes(tokenizer: Tokenizer, codes: np.ndarray, steps: int, batch: int) -> np.ndarray:
    """Images (n, H, W, C) uint8 of the accumulated latents z' after `steps` of the codes' T steps."""
    pixels = []
    for start in range(0, len(codes), batch):
        part = torch.from_numpy(codes[start : start + batch].astype(np.int64))
        images = tokenizer.decode(tokenizer.quantizer.codebook.accumulated(part, steps))
        pixels.append(to_pixels(images).permute(0, 2, 3, 1))
    return torch.cat(pixels).numpy()


def psnr(real: np.ndarray, fake: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of (n, H, W, C) uint8 pairs, by PSNR_CONVENTION; infinite if a pair is equal."""
    _check(real, fake)
    errors = [np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2) for a, b in zip(real, fake, strict=True)]
    with np.errstate(divide="ignore"):
        return float(np.mean(10 * np.log10(255.0**2 / np.array(errors))))


def ssim(real: np.ndarray, fake: np.ndarray) -> float:
    """Structural similarity of (n, H, W, C) uint8 pairs, by SSIM_CONVENTION; H and W are 7 or more."""
    _check(real, fake)
    pairs = zip(real, fake, strict=True)
    return float(np.mean([structural_similarity(a, b, data_range=255, channel_axis=-1) for a, b in pairs]))


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each step of (n, T, h, w) codes chose each code: (T, K) int64."""
    return np.stack([np.bincount(step.ravel(), minlength=codebook_size) for step in codes.swapaxes(0, 1)])


def perplexity(counts: np.ndarray) -> np.ndarray:
    """exp of the entropy of each row of counts, 1 to K: how many codes a step uses, in effect."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.exp(-(shares * logs).sum(axis=-1))


def _check(real: np.ndarray, fake: np.ndarray) -> None:
    assert real.shape == fake.shape, (real.shape, fake.shape)
    assert real.dtype == fake.dtype == np.uint8, (real.dtype, fake.dtype)
