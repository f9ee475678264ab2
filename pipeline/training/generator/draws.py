"""From a batch of the stream to what the generator is trained on, on the device."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.noise import Stream, child_seeds, normal, random_words, uniform
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.stream.token_stream import TokenBatch


@dataclass(frozen=True)
class Draws:
    """What is drawn for each image."""

    noise: Literal["stored", "fresh"]
    """The store's codes and seeds, or codes of fresh noise over its latents."""
    steps_per_image: int
    """Different steps t per image."""
    label_dropout: float
    """Probability of the empty label."""
    empty_label: int
    """The number of the empty label."""
    seed: int
    """Seed of the draws."""


@dataclass(frozen=True)
class TrainingBatch:
    """eps_t, y, t, z'_{t-1} and C_t of b images at s steps each; the steps of an image are neighbouring rows."""

    noise: Float[Tensor, "bs d h w"]
    labels: Int[Tensor, " bs"]
    steps: Int[Tensor, " bs"]
    accumulated: Float[Tensor, "bs d h w"]
    codes: Int[Tensor, "bs h w"]

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """In the order in which the generator's loss takes them."""
        return self.noise, self.labels, self.steps, self.accumulated, self.codes


@torch.no_grad()
def training_batch(quantizer: Quantizer, batch: TokenBatch, draws: Draws, device: torch.device) -> TrainingBatch:
    """Draw steps, labels and noise of a batch.

    Every draw is a function of (seed, position), so it does not depend on ranks, batches or restarts.
    """
    seeds = child_seeds(draws.seed, torch.from_numpy(batch.positions).to(device))
    steps = drawn_steps(seeds, quantizer.schedule.num_steps, draws.steps_per_image)
    images = torch.arange(len(steps), device=device).repeat_interleave(draws.steps_per_image)
    labels = torch.from_numpy(batch.labels).to(device, non_blocking=True).long()
    dropped = uniform(seeds, 0, (draws.steps_per_image,), Stream.LABEL_DROPOUT).flatten() < draws.label_dropout
    labels, steps = torch.where(dropped, draws.empty_label, labels[images]), steps.flatten()
    if batch.latents is not None:
        latents = torch.from_numpy(batch.latents).to(device, non_blocking=True).float()
        shape = tuple(latents.shape[1:])
        fresh = quantizer.quantize(latents, lambda t: normal(seeds, t, shape, Stream.TOKENIZER))
        at = images, steps - 1
        return TrainingBatch(fresh.noise[at], labels, steps, fresh.before[at], fresh.codes[at])
    assert batch.codes is not None
    assert batch.seeds is not None
    codes = torch.from_numpy(batch.codes).to(device, non_blocking=True).long()
    own = torch.from_numpy(batch.seeds.view("int64")).to(device, non_blocking=True)
    book = quantizer.codebook
    noise = normal(own[images], steps, (book.config.code_dim, *codes.shape[2:]), Stream.TOKENIZER)
    return TrainingBatch(noise, labels, steps, book.accumulated(codes[images], steps - 1), codes[images, steps - 1])


def drawn_steps(seeds: Int[Tensor, " b"], num_steps: int, count: int) -> Int[Tensor, "b count"]:
    """`count` different steps t out of 1 ... T for each seed, all choices equally likely."""
    order = random_words(seeds, 0, Stream.STEP, num_steps).argsort(dim=1, stable=True)
    return 1 + order[:, :count]
