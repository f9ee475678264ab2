"""On every rank: tokenizer steps through DeepSpeed engines under each ZeRO stage, beside plain torch."""

import copy

import torch
import torch.distributed as dist

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.discriminator import DiscriminatorConfig, DiscriminatorPair
from rdpm.models.losses import discriminator_hinge, generator_hinge, reconstruction_loss
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.optimizers import OptimizerConfig, adam
from rdpm.pipeline.training.ranks import Ranks
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.step import TokenizerStep

STEPS, MICRO, ACCUMULATION, CLIP = 4, 4, 2, 0.1


def config(stage: int) -> TrainTokenizerConfig:
    """A small tokenizer with the adversarial loss on from the start and a clip that bites."""
    model = TokenizerConfig(
        16, AutoencoderConfig(1, 8, (1, 2), 1, (), 4), QuantizerConfig(4096, 32), Schedule(num_steps=4)
    )
    return TrainTokenizerConfig(
        images="",
        out="",
        model=model,
        discriminator=DiscriminatorConfig(8, 1),
        loss=LossConfig(perceptual="none"),
        optimizer=OptimizerConfig(lr=4e-5, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=1),
        engine=EngineConfig(stage, "fp32", CLIP),
        batch=MICRO * ACCUMULATION * dist.get_world_size(),
        micro_batch=MICRO,
        steps=STEPS,
    )


def average_gradients(model: torch.nn.Module) -> None:
    """Mean over micro-batches and ranks, then clipped as DeepSpeed clips."""
    for parameter in model.parameters():
        parameter.grad /= ACCUMULATION * dist.get_world_size()
        dist.all_reduce(parameter.grad)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)


def plain_losses(tokenizer: Tokenizer, critic: DiscriminatorPair, images, seeds, loss: LossConfig):
    """VQGAN's two losses written with autograd alone."""
    out = tokenizer(images, seeds)
    picture = out["reconstruction"]
    nll = loss.reconstruction * reconstruction_loss(images, picture)
    gan = generator_hinge(critic.discriminator(picture))
    last = tokenizer.decoder.last.weight
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, gan)]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    quantization = loss.quantization * (out["commitment"] + loss.codebook * out["codebook"])
    real, fake = critic(images, picture.detach())
    return nll + loss.adversarial * weight * gan + quantization, loss.adversarial * discriminator_hinge(real, fake)


def micro_batches(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One rank's images and noise seeds, in their order."""
    data = torch.Generator().manual_seed(rank)
    return [
        (torch.rand(MICRO, 1, 16, 16, generator=data) * 2 - 1, torch.randint(0, 2**62, (MICRO,), generator=data))
        for _ in range(STEPS * ACCUMULATION)
    ]


def models(settings: TrainTokenizerConfig) -> dict[str, torch.nn.Module]:
    """Tokenizer and discriminator, with the same weights every time."""
    torch.manual_seed(0)
    return {"tokenizer": Tokenizer(settings.model), "discriminator": DiscriminatorPair(settings.discriminator, 1)}


def plain_training(rank: int) -> dict[str, torch.nn.Module]:
    """Both models after the steps, by autograd and torch.optim.Adam."""
    settings = config(0)
    trained = models(settings)
    optimizers = {name: adam(model, settings.optimizer) for name, model in trained.items()}
    for number, (images, seeds) in enumerate(micro_batches(rank), start=1):
        losses = plain_losses(trained["tokenizer"], trained["discriminator"], images, seeds, settings.loss)
        gradients = [
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for model, loss in zip(trained.values(), losses, strict=True)
        ]
        for model, found in zip(trained.values(), gradients, strict=True):
            for parameter, gradient in zip(model.parameters(), found, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if number % ACCUMULATION == 0:
            for name, model in trained.items():
                average_gradients(model)
                optimizers[name].step()
                optimizers[name].zero_grad()
    return trained


def differences(ranks: Ranks) -> dict[str, float]:
    """The largest difference of any weight by stage and model, and how far the training moved the tokenizer."""
    expected = plain_training(ranks.rank)
    start = copy.deepcopy(models(config(0))["tokenizer"].state_dict())
    after = expected["tokenizer"].state_dict()
    result = {"moved": max((after[name] - value).abs().max().item() for name, value in start.items())}
    for stage in (0, 1, 2, 3):
        torch.manual_seed(0)
        settings = config(stage)
        step = TokenizerStep(settings, ranks, ACCUMULATION)
        for number, (images, seeds) in enumerate(micro_batches(ranks.rank)):
            step(images, seeds, number // ACCUMULATION, "a test")
            lr = settings.optimizer.lr_at(number // ACCUMULATION, STEPS)
            assert not any(engine.problem() for engine in step.engines.values())
            assert all(engine.update(lr) for engine in step.engines.values())
        for name, model in expected.items():
            found = step.engines[name].weights()
            if ranks.first:
                worst = max((found[key] - value).abs().max().item() for key, value in model.named_parameters())
                result[f"{stage} {name}"] = worst
    return result
