"""On every rank: tokenizer steps through DeepSpeed engines beside the same steps in plain torch, for each ZeRO stage.

Prints, from rank 0, one JSON object: the largest difference of any weight, by stage and model.
"""

import copy
import json

import torch
import torch.distributed as dist

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.discriminator import DiscriminatorConfig, DiscriminatorPair
from rdpm.models.losses import discriminator_hinge, generator_hinge, reconstruction_loss
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.training.engine import EngineConfig, join_ranks
from rdpm.pipeline.training.optimizers import OptimizerConfig, adam
from rdpm.pipeline.training.ranks import leave_ranks
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


def main() -> None:
    ranks = join_ranks(1)
    differences = {}
    for stage in (0, 1, 2, 3):
        torch.manual_seed(0)
        settings = config(stage)
        step = TokenizerStep(settings, ranks, ACCUMULATION)
        torch.manual_seed(0)
        tokenizer = Tokenizer(settings.model)
        critic = DiscriminatorPair(settings.discriminator, 1)
        adams = [adam(model, settings.optimizer) for model in (tokenizer, critic)]
        data = torch.Generator().manual_seed(ranks.rank)
        start = copy.deepcopy(tokenizer.state_dict())
        for number in range(STEPS):
            for _ in range(ACCUMULATION):
                images = torch.rand(MICRO, 1, 16, 16, generator=data) * 2 - 1
                seeds = torch.randint(0, 2**62, (MICRO,), generator=data)
                generator_loss, critic_loss = plain_losses(tokenizer, critic, images, seeds, settings.loss)
                critic_gradients = torch.autograd.grad(critic_loss, list(critic.parameters()))
                tokenizer_gradients = torch.autograd.grad(generator_loss, list(tokenizer.parameters()))
                for model, gradients in ((tokenizer, tokenizer_gradients), (critic, critic_gradients)):
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                step(images, seeds, number, "a test")
            for model, optimizer in ((tokenizer, adams[0]), (critic, adams[1])):
                average_gradients(model)
                optimizer.step()
                optimizer.zero_grad()
        for name, model in (("tokenizer", tokenizer), ("discriminator", critic)):
            ours = step.engines[name].weights()
            if ranks.first:
                worst = max((ours[key] - value).abs().max().item() for key, value in model.named_parameters())
                differences[f"{stage} {name}"] = worst
        moved = max((tokenizer.state_dict()[key] - value).abs().max().item() for key, value in start.items())
        differences[f"{stage} moved"] = moved
    if ranks.first:
        print("RESULT " + json.dumps(differences))
    leave_ranks()


if __name__ == "__main__":
    main()
