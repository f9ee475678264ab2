"""Training the tokenizer: a generator-side engine and, where the adversarial loss is on, a discriminator engine.

ZeRO-1 and 2 keep only the last of two backward passes, and no stage lets `autograd.grad` run through an output.
So each engine runs one backward a micro-batch, and the losses meet at the reconstruction, cut from the graph: their
gradients there, weighted, are what the one backward pass starts from.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rdpm.models.discriminator import DiscriminatorConfig, DiscriminatorLoss
from rdpm.models.losses import (
    PerceptualLoss,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    reconstruction_loss,
)
from rdpm.models.quantizer import Quantizer
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.exports import save_export
from rdpm.pipeline.foundation.permutation import ORDER_VERSION
from rdpm.pipeline.images.listing import Listing
from rdpm.pipeline.images.stream import ImageStream
from rdpm.pipeline.training.checkpoint import Checkpoints, check_intervals
from rdpm.pipeline.training.engine import Engine, EngineConfig, join_ranks
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.loop import run_steps
from rdpm.pipeline.training.meters import TermMeter
from rdpm.pipeline.training.optimizers import OptimizerConfig, adam
from rdpm.pipeline.training.ranks import Ranks, accumulation_steps, from_first_rank, sum_over_ranks
from rdpm.pipeline.training.tokenizer.notes import ImageNotes
from rdpm.storage_schemas.cards import ModelCard

Validate = Callable[[dict[str, Tensor]], tuple[dict[str, float], np.ndarray]]


@dataclass(frozen=True)
class LossConfig:
    """Weights of Eq. 5. reconstruction scales Eq. 3; quantization is delta; adversarial is eta, 0 for no discriminator.

    codebook: weight of the term that moves the codes, beside the commitment's 1 (Eq. 4 does not say which it is).
    perceptual: "none", "torchvision", or the path of vgg16-397923af.pth.
    discriminator_start: step at which the adversarial loss sets in. adaptive: VQGAN's weight at the last layer.
    """

    reconstruction: float = 1.0
    quantization: float = 0.25
    codebook: float = 4.0
    perceptual: str = "torchvision"
    adversarial: float = 0.75
    adaptive: bool = True
    discriminator_start: int = 0


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """One tokenizer from a folder of class folders. batch and micro_batch count images; `steps` are updates.

    validation: a folder of held-out images, of which some are reconstructed every `validate_every` steps; "" for none.
    validation_extractor: features for their rFID: "inception", a TorchScript or torch.export file, or "none".
    """

    images: str
    out: str
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=4e-5, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=5005)
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    flips: bool = True
    batch: int = 128
    micro_batch: int = 16
    steps: int = 100_090
    seed: int = 0
    ranks: int = 1
    threads: int = 1
    workers: int = 4
    validation: str = ""
    validation_images: int = 1000
    validation_extractor: str = "none"
    inception_weights: str = ""
    validate_every: int = 1000
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; use 1 or more")
        if self.threads < 1 or self.workers < 0:
            raise ValueError(f"threads is {self.threads} (1 or more) and workers is {self.workers} (0 or more)")
        accumulation_steps(self.batch, self.micro_batch, self.ranks)
        check_intervals(self.log_every, self.checkpoint_every, self.keep_checkpoints)
        if self.validation and self.validate_every % self.log_every:
            raise ValueError(f"validate_every is {self.validate_every}; use a multiple of log_every {self.log_every}")


class TokenizerStep:
    """One micro-batch through both engines."""

    def __init__(
        self, config: TrainTokenizerConfig, ranks: Ranks, accumulation: int, saved: Checkpoints | None = None
    ) -> None:
        self.config, self.ranks = config, ranks
        self._accumulation, self._saved = accumulation, saved
        channels = config.model.autoencoder.in_channels
        tokenizer = Tokenizer(config.model).to(ranks.device)
        self.engines = {"tokenizer": self._engine("tokenizer", tokenizer, whole=(Quantizer,))}
        if config.loss.adversarial:
            critic = DiscriminatorLoss(config.discriminator, channels).to(ranks.device)
            self.engines["discriminator"] = self._engine("discriminator", critic)
        self.perceptual = None
        if config.loss.perceptual != "none":
            self.perceptual = PerceptualLoss(config.loss.perceptual).to(ranks.device)

    def _engine(self, name: str, model: nn.Module, whole: tuple[type[nn.Module], ...] = ()) -> Engine:
        config = self.config
        state = self._saved.state(name) if self._saved else None
        optimizer = adam(model, config.optimizer)
        return Engine(model, optimizer, config.engine, config.micro_batch, self._accumulation, whole, state)

    def __call__(self, images: Tensor, seeds: Tensor, step: int, where: str) -> dict[str, Tensor]:
        """One step of both engines; returns the loss terms and the codes, detached. `where` names the batch."""
        loss = self.config.loss
        rate = self.config.optimizer.rate(step, self.config.steps)
        adversarial = "discriminator" in self.engines and step >= loss.discriminator_start
        engine = self.engines["tokenizer"]
        out = engine(images, seeds)
        terms = {name: out[name].detach() for name in ("commitment", "codebook", "codes")}
        picture = out["reconstruction"].detach().float().requires_grad_()
        grad = self._nll_gradient(images, picture, terms)
        if adversarial:
            grad = grad + self._adversarial_gradient(picture, out["features"], grad, terms)
        quantization = out["commitment"] + loss.codebook * out["codebook"]
        surrogate = (out["reconstruction"].float() * grad).sum() + loss.quantization * quantization
        engine.step(surrogate, rate, where)
        if adversarial:
            self._step_discriminator(images, picture.detach(), rate, where, terms)
        return terms

    def end_iteration(self) -> None:
        """After the last micro-batch of a step: a codebook of moving averages follows what all ranks saw."""
        quantizer = self.engines["tokenizer"].module.get_submodule("quantizer")
        assert isinstance(quantizer, Quantizer)
        codebook = quantizer.codebook
        if codebook.config.update == "ema":
            codebook.follow(sum_over_ranks(codebook.seen), from_first_rank(codebook.recent))

    def _nll_gradient(self, images: Tensor, picture: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Gradient of reconstruction and perceptual loss at the reconstruction."""
        terms["reconstruction"] = reconstruction_loss(images, picture)
        total = self.config.loss.reconstruction * terms["reconstruction"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, picture)
            total = total + terms["perceptual"]
        terms["loss"] = total.detach()
        (grad,) = torch.autograd.grad(total, picture)
        return grad

    def _adversarial_gradient(self, picture: Tensor, features: Tensor, nll: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Weighted gradient of the adversarial loss at the reconstruction."""
        critic = self.engines["discriminator"].module.get_submodule("discriminator")
        critic.requires_grad_(False)
        terms["adversarial"] = generator_hinge(critic(picture))
        (grad,) = torch.autograd.grad(terms["adversarial"], picture)
        critic.requires_grad_(True)
        weight = self.config.loss.adversarial
        if self.config.loss.adaptive:
            terms["adaptive_weight"] = adaptive_weight(features, nll, grad)
            return weight * terms["adaptive_weight"] * grad
        return weight * grad

    def _step_discriminator(
        self, images: Tensor, picture: Tensor, rate: float, where: str, terms: dict[str, Tensor]
    ) -> None:
        engine = self.engines["discriminator"]
        real, fake = engine(images, picture)
        terms["discriminator"] = discriminator_hinge(real.float(), fake.float())
        engine.step(self.config.loss.adversarial * terms["discriminator"], rate, f"{where} (discriminator)")


def train_tokenizer(
    config: TrainTokenizerConfig, source: Listing, validate: Validate | None = None
) -> ModelCard | None:
    """Train to the end, or on from the last checkpoint, and export. Returns the card, on the first rank.

    source: config.images, listed. validate: from full weights to figures by name and a picture (H, W, C) uint8.
    """
    ranks = join_ranks(config.threads)
    accumulation = accumulation_steps(config.batch, config.micro_batch, ranks.count)
    torch.manual_seed(config.seed)  # the initial weights
    identity = {"source": source.digest, "seed": config.seed, "order": ORDER_VERSION, "model": asdict(config.model)}
    checkpoints = Checkpoints(config.out, ranks, identity, config.keep_checkpoints)
    train_step = TokenizerStep(config, ranks, accumulation, checkpoints)
    log = TrainingLog(config.out, ranks.first, checkpoints.step)
    meter = TermMeter(config.model, ranks.device)
    notes = ImageNotes(ranks)
    first, last = checkpoints.step * accumulation, config.steps * accumulation
    batches = _stream(config, source, ranks).batches(first, last, config.workers)

    def step(number: int) -> float:
        waited = 0.0
        for _ in range(accumulation):
            clock = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - clock
            where = f"step {number + 1}, the {len(batch.images)} images from position {batch.position} of the stream"
            meter.add(train_step(batch.images.to(ranks.device), batch.seeds.to(ranks.device), number, where))
            notes.add(batch)
        train_step.end_iteration()
        return waited

    def figures(done: int) -> dict[str, Any]:
        terms = meter.take()
        lr = config.optimizer.rate(done - 1, config.steps)
        found = {"reconstruction": terms["reconstruction"], **terms, "learning_rate": lr}
        if validate and done % config.validate_every == 0:
            found |= _validate(validate, train_step.engines["tokenizer"], ranks, log, done)
        notes.say()
        return found

    run_steps("train-tokenizer", config, ranks, checkpoints, train_step.engines, log, step, figures)
    return _export(config, train_step.engines["tokenizer"], ranks, source)


def _validate(validate: Validate, engine: Engine, ranks: Ranks, log: TrainingLog, step: int) -> dict[str, float]:
    """Figures of the held-out images, on the first rank; the others bring their share of the weights."""
    weights = engine.weights()
    if not ranks.first:
        return {}
    figures, picture = validate(weights)
    log.picture(step, "validation", picture)
    return {**figures, "score": -figures["validation_psnr"]}


def _stream(config: TrainTokenizerConfig, source: Listing, ranks: Ranks) -> ImageStream:
    """Micro-batches: item k of a rank is its slice of the k-th group of micro_batch x ranks images."""
    return ImageStream(
        source,
        image_size=config.model.image_size,
        channels=config.model.autoencoder.in_channels,
        flips=config.flips,
        batch=config.micro_batch * ranks.count,
        seed=config.seed,
        rank=ranks.rank,
        ranks=ranks.count,
    )


def _export(config: TrainTokenizerConfig, engine: Engine, ranks: Ranks, source: Listing) -> ModelCard | None:
    weights = engine.weights()
    if not ranks.first:
        return None
    made_from = {"source_digest": source.digest, "classes": list(source.classes)}
    training = {
        "batch": config.batch,
        "seed": config.seed,
        "optimizer": asdict(config.optimizer),
        "loss": asdict(config.loss),
    }
    return save_export(config.out, "tokenizer", config.model, weights, made_from, training, config.steps)
