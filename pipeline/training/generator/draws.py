"""Batches of the stream to batches that the generator trains on, on the device, by the generator's method."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.generator import MethodName
from rdpm.models.methods import RIVALS
from rdpm.models.noise import Stream, child_seeds, normal, random_words, uniform
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.rival import Given, Rival, Rows
from rdpm.pipeline.inference.batches import full_precision
from rdpm.pipeline.stream.token_stream import TokenBatch


@dataclass(frozen=True)
class Draws:
    """How steps, labels and noise are drawn for each image."""

    noise: Literal["stored", "fresh"]
    """stored: the store's codes and noise seeds. fresh: new noise, and the codes of the store's latents under it."""
    steps_per_image: int
    """Different steps t per image."""
    label_dropout: float
    """Probability of the empty label."""
    empty_label: int
    """Number of the empty label."""
    seed: int
    """Seed of the draws."""


@dataclass(frozen=True)
class TrainingBatch:
    """What the generator sees of b images at s steps each, and what to predict. Rows of an image are adjacent."""

    noise: Float[Tensor, "bs d h w"]
    """eps_t."""
    labels: Int[Tensor, " bs"]
    """y; some are the empty label."""
    steps: Int[Tensor, " bs"]
    """t, from 1."""
    accumulated: Float[Tensor, "bs d h w"]
    """z'_{t-1}."""
    codes: Int[Tensor, "bs h w"]
    """C_t, the codes to predict."""

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The arguments of the generator's loss, in their order."""
        return self.noise, self.labels, self.steps, self.accumulated, self.codes


@torch.no_grad()
@full_precision()
def training_batch(quantizer: Quantizer, batch: TokenBatch, draws: Draws, device: torch.device) -> TrainingBatch:
    """Draw steps, labels and noise for a batch.

    Every draw is a function of the seed and the position, so it does not depend on ranks, batches or restarts.
    """
    seeds = child_seeds(draws.seed, torch.from_numpy(batch.positions).to(device, non_blocking=True))
    steps = drawn_steps(seeds, quantizer.schedule.num_steps, draws.steps_per_image)
    images = torch.arange(len(steps), device=device).repeat_interleave(draws.steps_per_image)
    labels, steps = drawn_labels(batch, seeds, draws), steps.flatten()
    if batch.latents is not None:
        latents = torch.from_numpy(batch.latents).to(device, non_blocking=True).float()
        shape = tuple(latents.shape[1:])
        fresh = quantizer.quantize(latents, lambda t: normal(seeds, t, shape, Stream.TOKENIZER))
        rows = images, steps - 1
        return TrainingBatch(fresh.noise[rows], labels, steps, fresh.before[rows], fresh.codes[rows])
    assert batch.codes is not None
    assert batch.seeds is not None
    codes = torch.from_numpy(batch.codes).to(device, non_blocking=True).long()
    stored = torch.from_numpy(batch.seeds.view("int64")).to(device, non_blocking=True)
    codebook = quantizer.codebook
    noise = normal(stored[images], steps, (codebook.config.code_dim, *codes.shape[2:]), Stream.TOKENIZER)
    accumulated = codebook.accumulated(codes[images], steps - 1)
    return TrainingBatch(noise, labels, steps, accumulated, codes[images, steps - 1])


class StepBatch(Protocol):
    """What a training step computes with."""

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The arguments of the generator's loss, in their order."""
        ...

    @property
    def steps(self) -> Tensor:
        """A number from 1 to T for each loss, by which the log splits the mean."""
        ...


BatchMaker = Callable[[Quantizer, TokenBatch, Draws, torch.device], StepBatch]


def batch_maker(method: MethodName) -> BatchMaker:
    """What makes the batches of a method: `training_batch` for RDPM."""
    rival = RIVALS.get(method)
    return partial(rival_batch, rival) if rival else training_batch


@torch.no_grad()
@full_precision()
def rival_batch(
    rival: type[Rival], quantizer: Quantizer, batch: TokenBatch, draws: Draws, device: torch.device
) -> Given:
    """Draw labels, and what else the rival draws, for a batch, as functions of the seed and the position."""
    seeds = child_seeds(draws.seed, torch.from_numpy(batch.positions).to(device, non_blocking=True))
    latents = codes = None
    if batch.latents is not None:
        latents = torch.from_numpy(batch.latents).to(device, non_blocking=True).float()
        shape = tuple(latents.shape[1:])
        if rival.LEARNS_CODES:
            codes = quantizer.quantize(latents, lambda t: normal(seeds, t, shape, Stream.TOKENIZER)).codes
    elif batch.codes is not None:
        codes = torch.from_numpy(batch.codes).to(device, non_blocking=True).long()
    return rival.given(quantizer, Rows(drawn_labels(batch, seeds, draws), seeds, latents, codes))


def drawn_labels(batch: TokenBatch, seeds: Int[Tensor, " b"], draws: Draws) -> Int[Tensor, " bs"]:
    """Labels of the images at each of their steps; some are the empty label."""
    labels = torch.from_numpy(batch.labels).to(seeds.device, non_blocking=True).long()
    dropped = uniform(seeds, 0, (draws.steps_per_image,), Stream.LABEL_DROPOUT).flatten() < draws.label_dropout
    return torch.where(dropped, draws.empty_label, labels.repeat_interleave(draws.steps_per_image))


def drawn_steps(seeds: Int[Tensor, " b"], num_steps: int, count: int) -> Int[Tensor, "b count"]:
    """`count` different steps t of 1 ... T for each seed; all choices are equally likely."""
    order = random_words(seeds, 0, Stream.STEP, num_steps).argsort(dim=1, stable=True)
    return 1 + order[:, :count]
