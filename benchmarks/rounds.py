"""What does it cost that RDPM draws the codes of one step independently of each other? An experiment on the digits.

    make demo && python -m benchmarks.rounds [--seeds 0 1 2] [--steps 1500] [--rounds 1 2 4]

For each seed it trains the demo's generator (RDPM+) with one addition: it also sees the codes of the present step at
some positions, and learns those at the others; half of the time it sees none, as RDPM does. So one and the same network
can draw the codes of a step in one round, as Algorithm 2 does, or in several, each given the codes of the rounds
before. What rounds change is then due to drawing independently, and to nothing else. Prints one line of JSON per seed,
number of rounds and kind of latents (as drawn, or matched as `rdpm calibrate` matches them). Training is plain PyTorch
on one thread, in bf16.
"""

import argparse
import json
import math
import os
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm import EvaluateConfig, evaluate
from rdpm.models.generator import Generator, step_embedding
from rdpm.models.matching import boxes, matching_of
from rdpm.models.noise import Stream, child_seeds, gumbel, normal
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.exports.card import generator_config, read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stream.token_stream import TokenBatch
from rdpm.pipeline.training.generator.draws import Draws, TrainingBatch, training_batch
from rdpm.pipeline.training.optimizers import OptimizerConfig, adamw
from rdpm.storage_schemas.tokens import KIND

BATCH, WARMUP, RATE, DECAY = 128, 100, 3e-3, 0.995  # configs/digits/generator.yaml
CLASSES, PER_CLASS, SAMPLES = 10, 200, 1000
OWN_SHARE = 0.6  # configs/digits/calibration.yaml
SHOWN = ("pixel_frechet_ratio", "spread", "spread_8", "frechet_ratio", "class_accuracy", "precision", "recall")


class Seeing(Generator):
    """A generator that is given some of the codes that it draws."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen = nn.Linear(self.config.code_dim + 1, self.transformer.width, bias=False)
        nn.init.zeros_(self.seen.weight)

    def logits(
        self, noise: Tensor, labels: Tensor, steps: Tensor, accumulated: Tensor, vectors: Tensor, hidden: Tensor
    ) -> Tensor:
        """As `forward`, given the code vectors of this step (b, d, h, w) where `hidden` (b, h, w) is false."""
        shown = ~hidden.unsqueeze(1)
        there = torch.cat([vectors * shown, shown.to(vectors)], dim=1).flatten(2).transpose(1, 2)
        x = self.project(torch.cat([noise, accumulated], dim=1).flatten(2).transpose(1, 2)) + self.seen(there)
        modulations = self.transformer.modulations(
            self.step_mlp(step_embedding(steps, 256)) + self.label_embedding(labels)
        )
        logits = self.head(self.transformer(x, modulations)).float().unflatten(1, hidden.shape[1:])
        return self.preconditioned(logits, noise, accumulated, steps)


def order(rows: int, positions: int, draws: torch.Generator) -> Tensor:
    """A random rank of each position, (rows, positions)."""
    return torch.rand(rows, positions, generator=draws).argsort(1).argsort(1)


def trained(quantizer: Quantizer, data: TokenBatch, seed: int, steps: int, config) -> Seeing:
    """The average of the weights after so many steps."""
    torch.manual_seed(seed)
    draws, rows = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    assert data.latents is not None
    model = Seeing(config)
    model.start_from(quantizer)
    optimizer = adamw(model, OptimizerConfig(lr=RATE), ema_decay=DECAY)
    how = Draws("fresh", 1, 0.1, config.num_classes, seed)
    positions = config.grid**2
    for step in range(steps):
        chosen = rows.choice(len(data.labels), BATCH, replace=False)
        numbers = np.arange(step * BATCH, (step + 1) * BATCH)
        inputs = training_batch(
            quantizer, TokenBatch(numbers, data.labels[chosen], latents=data.latents[chosen]), how, torch.device("cpu")
        )
        count = torch.randint(1, positions, (BATCH,), generator=draws)
        count[torch.rand(BATCH, generator=draws) < 0.5] = positions
        hidden = (order(BATCH, positions, draws) < count.unsqueeze(1)).view(inputs.codes.shape)
        rate = min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        optimizer.zero_grad()
        loss = hidden_loss(model, quantizer, inputs, hidden)
        loss.backward()
        optimizer.step()
        if step % 250 == 0:
            print(f"seed {seed}, step {step}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        for weight, state in optimizer.state.items():
            weight.copy_(state["ema"])
    return model


def hidden_loss(model: Seeing, quantizer: Quantizer, inputs: TrainingBatch, hidden: Tensor) -> Tensor:
    """Cross-entropy of the hidden codes, averaged over them and then over images."""
    with torch.autocast("cpu", torch.bfloat16):
        vectors = quantizer.codebook.look_up(inputs.codes)
        logits = model.logits(inputs.noise, inputs.labels, inputs.steps, inputs.accumulated, vectors, hidden)
    losses = F.cross_entropy(logits.flatten(0, 2), inputs.codes.flatten(), reduction="none").view(hidden.shape)
    return ((losses * hidden).flatten(1).sum(1) / hidden.flatten(1).sum(1)).mean()


@torch.no_grad()
def drawn(model: Seeing, quantizer: Quantizer, labels: Tensor, seed: int, rounds: int) -> Tensor:
    """z'_T of samples without guidance, the codes of each step in so many rounds over random positions."""
    config, codebook = model.config, quantizer.codebook
    seeds, draws = child_seeds(seed, torch.arange(len(labels))), torch.Generator().manual_seed(seed)
    shape, parts = (config.code_dim, config.grid, config.grid), []
    for some, their_labels in zip(seeds.split(100), labels.split(100), strict=True):
        codes = torch.zeros(len(some), config.num_steps, config.grid, config.grid, dtype=torch.int64)
        for t in range(1, config.num_steps + 1):
            steps, noise = torch.full_like(some, t), normal(some, t, shape, Stream.SAMPLER)
            accumulated = codebook.accumulated(codes, t - 1)
            turn = order(len(some), config.grid**2, draws).view(-1, config.grid, config.grid) * rounds // config.grid**2
            for number in range(rounds):
                given = codebook.look_up(codes[:, t - 1])
                logits = model.logits(noise, their_labels, steps, accumulated, given, turn >= number)
                chosen = logits.flatten(1, 2) + gumbel(some, t, (config.grid**2, config.codebook_size), Stream.GUMBEL)
                codes[:, t - 1] = torch.where(turn == number, chosen.argmax(-1).view_as(turn), codes[:, t - 1])
        parts.append(codebook.accumulated(codes, config.num_steps))
    return torch.cat(parts)


def measured(run: str, out: str, codec: Codec, latents: Tensor, labels: Tensor) -> dict[str, float]:
    """What `rdpm evaluate` says of the decoded latents."""
    images = codec.decode_latents(latents.numpy())
    np.savez(f"{out}.npz", arr_0=np.broadcast_to(images, (*images.shape[:3], 3)), arr_1=labels.numpy())
    found = evaluate(
        EvaluateConfig(
            out=f"{out}.json",
            samples=f"{out}.npz",
            train_images=f"{run}/data/train",
            images=f"{run}/data/val",
            threads=1,
        )
    )["generator"]
    return {name: round(found[name], 4) for name in SHOWN}


def real_latents(quantizer: Quantizer, data: TokenBatch, draws: int = 4) -> tuple[Tensor, Tensor]:
    """z'_T of the training images under several noises, and their labels."""
    assert data.latents is not None
    latents, labels = torch.from_numpy(data.latents).float(), torch.from_numpy(data.labels).long()
    found = []
    for draw in range(draws):
        noise = partial(normal, child_seeds(draw, torch.arange(len(labels))), shape=tuple(latents.shape[1:]))
        found.append(quantizer.quantize(latents, partial(noise, stream=Stream.TOKENIZER)).accumulated)
    return torch.cat(found), labels.repeat(draws)


def compared(run: str, out: str, seed: int, steps: int, rounds: list[int]) -> None:
    """Train with one seed, and print what every number of rounds draws."""
    torch.set_num_threads(1)
    store, tokenizer = open_store(f"{run}/store", KIND), load_tokenizer(f"{run}/tokenizer")[0]
    labels, latents = store.read_all("label"), store.read_all("latents")
    data, quantizer = TokenBatch(np.arange(len(labels)), labels, latents=latents), tokenizer.quantizer
    model = Seeing(generator_config(read_card(f"{run}/generator", "generator")))
    weights = f"{out}/{seed}-{steps}.pt"
    if not os.path.exists(weights):
        torch.save(trained(quantizer, data, seed, steps, model.config).state_dict(), weights)
    model.load_state_dict(torch.load(weights))
    codec = Codec(tokenizer, 50, torch.device("cpu"))
    calibrating, wanted = torch.arange(CLASSES).repeat(PER_CLASS), torch.arange(CLASSES).repeat(SAMPLES // CLASSES)
    real, real_labels = real_latents(quantizer, data)
    for number in rounds:
        side, samples = model.config.grid, drawn(model, quantizer, wanted, 1000 + seed, number)
        rough = drawn(model, quantizer, calibrating, seed, number)
        matching = matching_of(
            boxes(rough, side), calibrating, boxes(real, side), real_labels, CLASSES, own_share=OWN_SHARE
        )
        for kind, those in (("drawn", samples), ("matched", matching(samples, matching.table[wanted]))):
            metrics = measured(run, f"{out}/{seed}-{number}-{kind}", codec, those, wanted)
            print(json.dumps({"seed": seed, "rounds": number, "latents": kind, **metrics}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo", help="the folder of a finished demo")
    parser.add_argument("--out", default="runs/rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    for seed in given.seeds:
        compared(given.run, given.out, seed, given.steps, given.rounds)


if __name__ == "__main__":
    main()
