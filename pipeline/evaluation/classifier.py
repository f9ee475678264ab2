"""A small classifier of small images. It judges class accuracy and gives the features of the demo's Fréchet distance.

It is trained only on the real training images. Weights, order and shifts are functions of the seed, and training runs
on one thread. So the same images give the same weights, whatever the caller's number of threads.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm.models.noise import Stream, child_seeds, normal, uniform
from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.foundation.permutation import rows_at
from rdpm.pipeline.foundation.progress import ProgressLine

CLASSIFIER_VERSION = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier and its training."""

    num_classes: int
    """Classes to tell apart; 2 or more."""
    channels: int = 1
    """Channels of an image; 1 to 3."""
    width: int = 16
    """Channels of the first layer; each of the two further levels doubles them."""
    features: int = 64
    """Size of the penultimate layer."""
    steps: int = 500
    """Optimizer steps."""
    batch: int = 64
    """Images per step."""
    lr: float = 3e-3
    """Peak learning rate, after a linear rise over a tenth of the steps and before a cosine fall to zero."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    label_smoothing: float = 0.02
    """Probability that the target spreads evenly over all classes."""
    shift: int = 1
    """Pixels by which a training image moves at most, up or down and left or right; its border is repeated."""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 3:
            raise ValueError(f"channels is {self.channels}; the classifier takes images of 1 to 3 channels")
        if self.num_classes < 2:
            raise ValueError(f"num_classes is {self.num_classes}; a classifier needs 2 or more")


class Classifier(nn.Module):
    """Three levels of two convolutions, a mean over positions and two linear layers, for images of 4 x 4 or more."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = config.channels
        for level in range(3):
            width = config.width * 2**level
            layers += [*_convolution(channels, width, 1 if level == 0 else 2), *_convolution(width, width, 1)]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels, config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (b, C, H, W) in [-1, 1] to features, logits and maps.

        Returns the penultimate features (b, f) after their SiLU, logits (b, classes), and the last convolution's maps
        (b, c, h, w).
        """
        maps = self.layers(images)
        features = F.silu(self.hidden(maps.mean((2, 3))))
        return features, self.head(features), maps


def _convolution(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.GroupNorm(4, out_channels),
        nn.SiLU(),
    ]


def initialize(classifier: Classifier, seed: int) -> None:
    """Draw the weights from the seed with variance 2 / fan-in; set norms to one and biases to zero."""
    seeds = child_seeds(seed, torch.arange(len(list(classifier.parameters()))))
    with torch.no_grad():
        for i, (name, weight) in enumerate(classifier.named_parameters()):
            if weight.dim() > 1:
                drawn = normal(seeds[i : i + 1], 0, tuple(weight.shape), Stream.STEP)[0]
                weight.copy_(drawn * math.sqrt(2 / weight[0].numel()))
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)


def shifted(images: Tensor, seeds: Tensor, shift: int) -> Tensor:
    """Images (b, C, H, W), each moved by -shift to shift whole pixels on both axes. seeds: (b,) int64."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (shift, shift, shift, shift), mode="replicate")
    moves = (uniform(seeds, 0, (2,), Stream.AUGMENTATION) * (2 * shift + 1)).long()
    rows = moves[:, :1] + torch.arange(height)
    columns = moves[:, 1:] + torch.arange(width)
    batch = torch.arange(len(images)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def quarter_turns(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, S, S, C) in all four orientations, (4 n, S, S, C), and these as labels (4 n,).

    To tell them is a task that needs no classes, and whose features know what a picture shows (Gidaris et al. 2018).
    """
    turns = np.concatenate([np.rot90(pixels, turn, axes=(1, 2)) for turn in range(4)])
    return np.ascontiguousarray(turns), np.repeat(np.arange(4), len(pixels))


def train_classifier(config: ClassifierConfig, pixels: np.ndarray, labels: np.ndarray, seed: int) -> Classifier:
    """Train on images (n, H, W, C) uint8 with labels (n,) below config.num_classes.

    Returns the classifier in eval mode. Raises ValueError for images of other channels than config.channels.
    """
    if pixels.shape[-1] != config.channels:
        raise ValueError(f"images have {pixels.shape[-1]} channels; the classifier takes {config.channels}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(config, from_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2)), torch.from_numpy(labels), seed)
    finally:
        torch.set_num_threads(threads)


def _train(config: ClassifierConfig, images: Tensor, labels: Tensor, seed: int) -> Classifier:
    classifier = Classifier(config)
    initialize(classifier, seed)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    warmup = max(1, config.steps // 10)
    with ProgressLine("evaluate: classifier", config.steps, "steps") as progress:
        for step in range(config.steps):
            share = min((step + 1) / warmup, (1 + math.cos(math.pi * step / config.steps)) / 2)
            optimizer.param_groups[0]["lr"] = config.lr * share
            positions = np.arange(step * config.batch, (step + 1) * config.batch)
            rows = torch.from_numpy(rows_at(positions, len(images), seed))
            views = shifted(images[rows], child_seeds(seed, torch.from_numpy(positions)), config.shift)
            loss = F.cross_entropy(classifier(views)[1], labels[rows].long(), label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update(step + 1, {"loss": loss.item()})
    return classifier.eval()
