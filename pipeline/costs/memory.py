"""Peak memory of a training step, measured by running it on tensors that have shapes but no data."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdpm.models.discriminator import DiscriminatorPair
from rdpm.models.losses import PerceptualLoss, discriminator_hinge, generator_hinge, reconstruction_loss
from rdpm.models.methods import new_generator
from rdpm.models.noise import normal_quantiles
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig


class PeakBytes(TorchDispatchMode):
    """Tracks the storages that are created inside it until they are freed; `peak` is the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._track(value.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def free(_: Any) -> None:
            self._live.pop(key)
            self.now -= size

        self._live[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


def bytes_per_sample(step: Callable[[int], None]) -> int:
    """Bytes by which the peak of `step(images)` grows per image. Weights and their gradients cancel out.

    It is measured at a number of images that is large enough for activations, not gradients, to make the peak.
    """
    peaks = []
    for images in (64, 65):
        with PeakBytes() as tracker:
            step(images)
        peaks.append(tracker.peak)
    return peaks[1] - peaks[0]


def tokenizer_bytes_per_sample(config: TrainTokenizerConfig) -> int:
    """Peak bytes per image in a training step of the tokenizer with its discriminator and LPIPS, where it has them."""
    model, channels = config.model, config.model.autoencoder.in_channels
    normal_quantiles(torch.device("cpu"))  # cached with real data, before tensors become fake
    with FakeTensorMode(allow_non_fake_inputs=True):
        tokenizer = Tokenizer(model)
        critic = DiscriminatorPair(config.discriminator, channels)
        perceptual = PerceptualLoss(None) if config.loss.perceptual != "none" else None

        def step(count: int) -> None:
            images = torch.rand(count, channels, model.image_size, model.image_size)
            with _autocast(config.engine.precision):
                out = tokenizer(images, torch.zeros(count, dtype=torch.int64))
            picture = out["reconstruction"].float()
            loss = reconstruction_loss(images, picture) + out["commitment"] + out["codebook"]
            with _autocast(config.engine.precision):
                if perceptual is not None:
                    loss = loss + perceptual(images, picture)
                if config.loss.adversarial:
                    loss = loss + generator_hinge(critic.discriminator(picture))
            loss.backward()
            if config.loss.adversarial:
                with _autocast(config.engine.precision):
                    real, fake = critic(images, picture.detach())
                discriminator_hinge(real.float(), fake.float()).backward()

        return bytes_per_sample(step)


def generator_bytes_per_sample(config: TrainGeneratorConfig) -> int:
    """Peak bytes per image and step t in a training step of the generator."""
    with FakeTensorMode():
        generator = new_generator(config.model)

        def step(count: int) -> None:
            arguments = generator.example(count)
            with _autocast(config.engine.precision):
                losses = generator.loss(*arguments)
            losses.mean().backward()

        return bytes_per_sample(step)


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
