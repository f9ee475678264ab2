"""One step of the tokenizer's training: an engine for the tokenizer and, with an adversarial loss, one for the
discriminator.

ZeRO-1 and 2 keep only the last of two backward passes, and no stage allows `autograd.grad` through an engine's output.
So each engine runs one backward pass per micro-batch. The gradients of all losses are computed at the reconstruction,
which is detached from the graph. Their weighted sum is where the tokenizer's backward pass starts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rdpm.models.discriminator import DiscriminatorPair
from rdpm.models.losses import (
    PerceptualLoss,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    reconstruction_loss,
)
from rdpm.models.quantizer import Quantizer
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.engine import Engine, building
from rdpm.pipeline.training.optimizers import adam
from rdpm.pipeline.training.ranks import Ranks, from_first_rank, sum_over_ranks
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig


class TokenizerStep:
    """Both engines, and what one micro-batch does to them."""

    def __init__(
        self, config: TrainTokenizerConfig, ranks: Ranks, accumulation: int, saved: Checkpoints | None = None
    ) -> None:
        self.config, self.ranks = config, ranks
        self._accumulation, self._saved = accumulation, saved
        channels = config.model.autoencoder.in_channels
        with building(config.engine):
            tokenizer = Tokenizer(config.model)
        if config.encoder:
            take_over(tokenizer, load_tokenizer(config.encoder)[0])
        self._compile(tokenizer.encoder, tokenizer.decoder.layers)
        self.engines = {"tokenizer": self._engine("tokenizer", tokenizer, whole=(Quantizer,))}
        if config.loss.adversarial:
            with building(config.engine):
                pair = DiscriminatorPair(config.discriminator, channels)
            self._compile(pair.discriminator)
            self.engines["discriminator"] = self._engine("discriminator", pair)
        self.perceptual: PerceptualLoss | None = None
        if config.loss.perceptual != "none":
            self.use_perceptual(PerceptualLoss(config.loss.perceptual))

    def use_perceptual(self, perceptual: PerceptualLoss) -> None:
        """Train with this perceptual loss."""
        self.perceptual = perceptual.to(self.ranks.device)
        self._compile(self.perceptual)

    def _compile(self, *modules: nn.Module) -> None:
        """Compile modules, if the config says so. A graph each: every call has the same shapes."""
        if self.config.compile:
            for module in modules:
                module.compile(dynamic=False)

    def autocast(self) -> torch.autocast:
        """The context in which losses' networks run in the precision of the training."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.engine.precision == "bf16")

    def _engine(self, name: str, model: nn.Module, whole: tuple[type[nn.Module], ...] = ()) -> Engine:
        config = self.config
        model.to(self.ranks.device)
        state: Mapping[str, Tensor] | None = self._saved.state(name) if self._saved else None
        if state is None and name == "tokenizer" and config.init:
            state = first_state(config.init, model)
        optimizer = adam(model, config.optimizer)
        return Engine(model, optimizer, config.engine, config.micro_batch, self._accumulation, whole, state)

    def __call__(self, images: Tensor, seeds: Tensor, step: int, where: str) -> dict[str, Tensor]:
        """Forward and backward passes of one micro-batch. Returns the loss terms and the codes, detached.

        step: 0-based. where: names the batch, for an error message. The update of the engines follows with theirs.
        """
        loss = self.config.loss
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
        engine.backward(surrogate, where)
        if adversarial:
            self._criticize(images, picture.detach(), where, terms)
        return terms

    def end_iteration(self) -> None:
        """After the last micro-batch of a step, update a codebook of moving averages with what all ranks saw."""
        quantizer = self.engines["tokenizer"].module.get_submodule("quantizer")
        assert isinstance(quantizer, Quantizer)
        codebook = quantizer.codebook
        if codebook.config.update == "ema":
            codebook.follow(sum_over_ranks(codebook.seen), from_first_rank(codebook.recent))

    def _nll_gradient(self, images: Tensor, picture: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Gradient of the reconstruction loss and the perceptual loss at the reconstruction."""
        terms["reconstruction"] = reconstruction_loss(images, picture)
        total = self.config.loss.reconstruction * terms["reconstruction"]
        if self.perceptual is not None:
            with self.autocast():
                terms["perceptual"] = self.perceptual(images, picture)
            total = total + terms["perceptual"]
        terms["loss"] = total.detach()
        (grad,) = torch.autograd.grad(total, picture)
        return grad

    def _adversarial_gradient(self, picture: Tensor, features: Tensor, nll: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Weighted gradient of the adversarial loss at the reconstruction."""
        discriminator = self.engines["discriminator"].module.get_submodule("discriminator")
        discriminator.requires_grad_(False)
        with self.autocast():
            logits = discriminator(picture)
        terms["adversarial"] = generator_hinge(logits.float())
        (grad,) = torch.autograd.grad(terms["adversarial"], picture)
        discriminator.requires_grad_(True)
        weight = self.config.loss.adversarial
        if self.config.loss.adaptive:
            terms["adaptive_weight"] = adaptive_weight(features, nll, grad)
            return weight * terms["adaptive_weight"] * grad
        return weight * grad

    def _criticize(self, images: Tensor, picture: Tensor, where: str, terms: dict[str, Tensor]) -> None:
        """Forward and backward pass of the discriminator."""
        engine = self.engines["discriminator"]
        real, fake = engine(images, picture)
        terms["discriminator"] = discriminator_hinge(real.float(), fake.float())
        engine.backward(self.config.loss.adversarial * terms["discriminator"], f"{where} (discriminator)")


def first_state(init: str, model: nn.Module) -> dict[str, Tensor]:
    """The state of an engine of a tokenizer that starts with the weights of an export, and its moving averages."""
    with torch.random.fork_rng(devices=[]):
        trained = load_tokenizer(init)[0]
    learned = dict(model.named_parameters())
    return {f"{'weight' if n in learned else 'buffer'}/{n}": value for n, value in trained.state_dict().items()}


def take_over(tokenizer: Tokenizer, trained: Tokenizer) -> None:
    """Give a tokenizer another one's encoder, which is not trained any more, and its other weights where they fit.

    Raises ValueError for encoders of different sizes.
    """
    ours, theirs = tokenizer.state_dict(), trained.state_dict()
    fitting = {name: value for name, value in theirs.items() if name in ours and ours[name].shape == value.shape}
    if tokenizer.config.quantizer != trained.config.quantizer:  # moving averages and vectors must go together
        fitting = {name: value for name, value in fitting.items() if not name.startswith("quantizer.")}
    missing = [name for name in ours if name.startswith("encoder.") and name not in fitting]
    if missing:
        raise ValueError(
            f"the encoder to take over has no {missing[0]} of this size; give it the model.autoencoder and code_dim of "
            "that tokenizer"
        )
    tokenizer.load_state_dict(fitting, strict=False)
    tokenizer.encoder.requires_grad_(False)
