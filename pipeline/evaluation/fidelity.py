"""How well a tokenizer reconstructs images: PSNR, SSIM, LPIPS and the use of the codebook.

Originals and reconstructions are uint8, rounded once by `to_pixels`. PSNR and SSIM are computed under several
conventions, because conventions differ by more than models do. `psnr` and `ssim` are the main ones.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from rdpm.models.losses import PerceptualLoss
from rdpm.models.noise import child_seeds
from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.inference.codec import Codec

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_UNIFORM: dict[str, Any] = {"win_size": 7}
_GAUSSIAN: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@dataclass(frozen=True)
class Reconstruction:
    """Codes of n images, and the images that the codes decode to."""

    codes: np.ndarray
    """(n, T, h, w) uint16."""
    pixels: np.ndarray
    """(n, H, W, C) uint8."""


def reconstruct(codec: Codec, pixels: np.ndarray, seed: int, first: int = 0) -> Reconstruction:
    """Encode images (n, H, W, C) uint8 and decode their codes, or their latents where the tokenizer is continuous.

    The noise of image i is that of sample `first + i`.

    So a set may be cut into calls at any place: with the same `batch` of the codec, an image gets the same codes.
    """
    seeds = child_seeds(seed, torch.arange(first, first + len(pixels))).numpy()
    encoded = codec.encode(pixels, seeds)
    if codec.tokenizer.config.continuous:
        return Reconstruction(encoded.codes, codec.decode_latents(encoded.latents))
    return Reconstruction(encoded.codes, codec.decode(encoded.codes))


@dataclass(frozen=True)
class Convention:
    """How a metric is computed: for each pair of images, and then as the mean over pairs."""

    says: str
    """The convention in words, for the protocol."""
    measure: Callable[[np.ndarray, np.ndarray], float]
    """The metric of one pair, (H, W, C) uint8 both."""
    window: int = 1
    """Smallest H and W that it can be computed for."""
    channels: int = 1
    """Smallest C that it can be computed for."""


def mean_square(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean over an image's values of the squared difference."""
    return float(np.mean((real.astype(np.float64) - fake.astype(np.float64)) ** 2))


def decibels(error: float) -> float:
    """PSNR of a mean squared error at a peak of 255; infinite for an error of 0."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(255.0**2 / np.float64(error)))


def _wrapped(real: np.ndarray, fake: np.ndarray) -> float:
    """The mean squared error in uint8 arithmetic, where differences and squares wrap around at 256."""
    difference = real - fake
    return float(np.mean(difference * difference))


def luma(pixels: np.ndarray) -> np.ndarray:
    """BT.601 luma at full range: (H, W, 3) to (H, W, 1) float64."""
    return (pixels @ _LUMA)[..., None]


def _ssim(window: dict[str, Any], data_range: float, convert: Callable[[np.ndarray], np.ndarray] = lambda x: x):
    def measure(real: np.ndarray, fake: np.ndarray) -> float:
        pair = convert(real), convert(fake)
        return float(structural_similarity(*pair, data_range=data_range, channel_axis=-1, **window))

    return measure


PAIRS: dict[str, Convention] = {
    "psnr": Convention(
        "uint8 pairs, data range 255, mean of each image's dB", lambda a, b: decibels(mean_square(a, b))
    ),
    "psnr_luma": Convention(
        "psnr on BT.601 luma at full range, not rounded",
        lambda a, b: decibels(mean_square(luma(a), luma(b))),
        channels=3,
    ),
    "psnr_uint8_wrap": Convention(
        "psnr with differences and squares that wrap around at 256; a common mistake, given to recognize it by",
        lambda a, b: decibels(_wrapped(a, b)),
    ),
    "ssim": Convention(
        "uint8 pairs, data range 255, scikit-image's 7x7 uniform window and sample covariance, mean over channels "
        "(Open-MAGVIT2)",
        _ssim(_UNIFORM, 255),
        7,
    ),
    "ssim_range2": Convention(
        "ssim with twice the data range, which values in [0, 1] under a data range of 2 amount to (LlamaGen)",
        _ssim(_UNIFORM, 510),
        7,
    ),
    "ssim_gaussian": Convention(
        "uint8 pairs, data range 255, 11x11 Gaussian window of sigma 1.5, population covariance, mean over "
        "channels (Wang et al. 2004; torchmetrics on [0, 1])",
        _ssim(_GAUSSIAN, 255),
        11,
    ),
    "ssim_gaussian_luma": Convention(
        "ssim_gaussian on BT.601 luma at full range, not rounded", _ssim(_GAUSSIAN, 255, luma), 11, 3
    ),
    "ssim_gaussian_signed": Convention(
        "ssim_gaussian of values in [-1, 1], data range 2 (torchmetrics on [-1, 1], LightningDiT)",
        _ssim(_GAUSSIAN, 2, lambda x: x / 127.5 - 1),
        11,
    ),
}
POOLED = "psnr_pooled"
POOLED_CONVENTION = "uint8 pairs, data range 255, dB of the mean squared error over all images"


class RunningFidelity:
    """Every convention that fits the images, over pairs that come in parts."""

    def __init__(self, threads: int = 1) -> None:
        """threads: how many pairs are measured at the same time."""
        self._threads = threads
        self._rows: list[dict[str, float]] = []

    def add(self, real: np.ndarray, fake: np.ndarray) -> None:
        """Add pairs, (n, H, W, C) uint8 both."""
        _check(real, fake)
        with ThreadPoolExecutor(self._threads) as pool:
            self._rows += pool.map(self._measure, real, fake)

    @staticmethod
    def _measure(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
        side, channels = min(real.shape[:2]), real.shape[2]
        fitting = {name: c for name, c in PAIRS.items() if side >= c.window and channels >= c.channels}
        return {name: c.measure(real, fake) for name, c in fitting.items()} | {POOLED: mean_square(real, fake)}

    def metrics(self) -> dict[str, float]:
        """Means over all pairs, by name."""
        means = {name: float(np.mean([row[name] for row in self._rows])) for name in self._rows[0]}
        return means | {POOLED: decibels(means[POOLED])}


def psnr(real: np.ndarray, fake: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of (n, H, W, C) uint8 pairs, by the main convention.

    It is infinite where the images of a pair are equal.
    """
    return _mean(PAIRS["psnr"], real, fake)


def ssim(real: np.ndarray, fake: np.ndarray) -> float:
    """Structural similarity of (n, H, W, C) uint8 pairs, by the main convention. H and W are 7 or more."""
    return _mean(PAIRS["ssim"], real, fake)


def _mean(convention: Convention, real: np.ndarray, fake: np.ndarray) -> float:
    _check(real, fake)
    return float(np.mean([convention.measure(a, b) for a, b in zip(real, fake, strict=True)]))


@torch.no_grad()
def lpips(perceptual: PerceptualLoss, real: np.ndarray, fake: np.ndarray, batch: int) -> float:
    """Mean LPIPS of (n, H, W, C) uint8 pairs, on the network's device, at most `batch` pairs per call."""
    _check(real, fake)
    device = next(perceptual.parameters()).device
    total = 0.0
    for start in range(0, len(real), batch):
        parts = (torch.from_numpy(x[start : start + batch]).permute(0, 3, 1, 2).to(device) for x in (real, fake))
        a, b = (from_pixels(part) for part in parts)
        total += perceptual(a, b).item() * len(a)
    return total / len(real)


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each code occurs at each step of codes (n, T, h, w): (T, K) int64."""
    return np.stack([np.bincount(step.ravel(), minlength=codebook_size) for step in codes.swapaxes(0, 1)])


def perplexity(counts: np.ndarray) -> np.ndarray:
    """exp of the entropy of each row of counts (T, K): the effective number of codes per step, from 1 to K."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.exp(-(shares * logs).sum(axis=-1))


def _check(real: np.ndarray, fake: np.ndarray) -> None:
    assert real.shape == fake.shape, (real.shape, fake.shape)
    assert real.dtype == fake.dtype == np.uint8, (real.dtype, fake.dtype)
