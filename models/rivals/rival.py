"""What rivals share with RDPM, and what trainings and samplers ask of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rdpm.models.choice import StepSettings
from rdpm.models.codebook import Codebook
from rdpm.models.generator import GeneratorConfig, align, step_embedding
from rdpm.models.initial import normal, xavier
from rdpm.models.matching import Matching
from rdpm.models.quantizer import Quantizer
from rdpm.models.transformer import Transformer


@dataclass(frozen=True)
class Rows:
    """b rows of a store."""

    labels: Int[Tensor, " b"]
    """Classes; `num_classes` where the label is dropped."""
    seeds: Int[Tensor, " b"]
    """Seeds of everything that is drawn for the rows."""
    latents: Float[Tensor, "b d h w"] | None = None
    """v; None where only codes are known."""
    codes: Int[Tensor, "b T h w"] | None = None
    """C_1 ... C_T; None for a rival that learns from latents."""


@dataclass(frozen=True)
class Given:
    """What a training step computes with."""

    arguments: tuple[Tensor, ...]
    """Arguments of the loss."""
    steps: Int[Tensor, " b"]
    """A number from 1 to `num_steps` for each loss, by which the log splits the mean."""


@dataclass(frozen=True)
class Drawn:
    """What a rival drew."""

    latents: Float[Tensor, "b d h w"]
    """What the decoder sees."""
    codes: Int[Tensor, "b T h w"] | None = None
    """Codes of the latents; None for a rival that draws latents."""


class Rival(nn.Module, ABC):
    """A generator with RDPM's blocks that learns otherwise. The label `num_classes` stands for no class.

    inputs, outputs: numbers per position that go in and come out. timed: whether the blocks are told a step.
    """

    LEARNS_CODES: ClassVar[bool] = True
    """Whether it learns and draws codes of its tokenizer; otherwise latents."""

    mask: Bool[Tensor, "s s"] | None

    def __init__(self, config: GeneratorConfig, inputs: int, outputs: int, *, timed: bool) -> None:
        super().__init__()
        self.config, self.timed = config, timed
        self.transformer = Transformer(
            config.depth, config.hidden_width, config.grid, config.attention, config.activation_checkpointing
        )
        width = self.transformer.width
        self.project = nn.Linear(inputs, width)
        self.label_embedding = nn.Embedding(config.num_classes + 1, width)
        if timed:
            self.step_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.step_mlp.apply(normal)
        self.head = nn.Linear(width, outputs, bias=False)
        self.project.apply(xavier)
        self.label_embedding.apply(normal)
        self.head.apply(xavier)
        self.register_buffer("mask", None, persistent=False)
        self.matching: Matching | None = None
        """How drawn latents are matched to real ones before they are decoded; None without `rdpm calibrate`."""

    @staticmethod
    @abstractmethod
    def evaluations(config: GeneratorConfig, asked: int) -> int:
        """Forward passes per image, when so many are asked for; 0 asks for the usual number. Raises ValueError."""

    @staticmethod
    @abstractmethod
    def given(quantizer: Quantizer, rows: Rows) -> Given:
        """Arguments of `loss` for rows of a store. Every draw is a function of the row's seed."""

    @abstractmethod
    def loss(self, *arguments: Tensor) -> Float[Tensor, " b"]:
        """The loss of each image."""

    @abstractmethod
    def example(self, count: int) -> tuple[Tensor, ...]:
        """Arguments of `loss` for `count` images, without meaning: to count what it costs."""

    @abstractmethod
    def draw(
        self,
        codebook: Codebook,
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
    ) -> Drawn:
        """Images of a batch: a function of weights, seeds and labels. settings: those of each forward pass."""

    def start_from(self, quantizer: Quantizer) -> None:
        """Initialize the classification layer as RDPM's; does nothing where codes are not learned."""
        if self.LEARNS_CODES:
            align(self.head, quantizer.codebook.vectors)

    def embed(self, inputs: Float[Tensor, "b s i"]) -> Float[Tensor, "b s width"]:
        """What enters the blocks, before the embedding of positions."""
        return self.project(inputs)

    def forward(
        self, inputs: Float[Tensor, "b s i"], labels: Int[Tensor, " b"], steps: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b s o"]:
        """The network: numbers per position, labels and, where it is timed, steps to float32 numbers per position."""
        condition = self.label_embedding(labels)
        if self.timed:
            assert steps is not None
            condition = self.step_mlp(step_embedding(steps, 256)) + condition
        hidden = self.transformer(self.embed(inputs), self.transformer.modulations(condition), self.mask)
        return self.head(hidden).float()

    def guided(
        self,
        inputs: Float[Tensor, "b s i"],
        labels: Int[Tensor, " b"],
        guidance: Float[Tensor, " b"] | None,
        steps: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b s o"]:
        """cond + lambda (cond - uncond), with both halves in one forward pass, as RDPM's."""
        if guidance is None:
            return self(inputs, labels, steps)
        empty = torch.full_like(labels, self.config.num_classes)
        both = self(inputs.repeat(2, 1, 1), torch.cat([labels, empty]), None if steps is None else steps.repeat(2))
        cond, uncond = both.chunk(2)
        return cond + guidance.view(-1, 1, 1) * (cond - uncond)
