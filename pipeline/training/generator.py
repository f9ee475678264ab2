"""Training the generator from token stores under ZeRO."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.generator import Generator, GeneratorConfig, code_loss
from models.noise import Stream, child_seeds, normal, random_words, uniform
from models.quantizer import Quantizer
from pipeline.exports import load_tokenizer, read_card, save_export
from pipeline.log import TrainingLog
from pipeline.order import batch_positions
from pipeline.tokens.reader import Store, open_store
from pipeline.tokens.stream import TokenBatch, TokenStream
from pipeline.training.checkpoint import Checkpoints, check_intervals
from pipeline.training.engine import Engine, EngineConfig, join_ranks
from pipeline.training.loop import run_steps
from pipeline.training.optimizers import OptimizerConfig, adamw
from pipeline.training.ranks import Ranks, accumulation_steps, sum_over_ranks
from storage_schemas.cards import ModelCard
from storage_schemas.tokens import KIND


@dataclass(frozen=True)
class TrainGeneratorConfig:
    """One generator from one or more stores of one tokenizer.

    batch: images of a global step; micro_batch: images a rank sees at once. noise: "stored" trains on the store's codes
    and seeds; "fresh" quantizes the stored latents anew each time, so that no noise is seen twice.
    ranks: processes started on this machine when no launcher did; threads: CPU threads of each.
    """

    stores: tuple[str, ...]
    tokenizer: str
    out: str
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    noise: Literal["stored", "fresh"] = "stored"
    label_dropout: float = 0.1
    ema_decay: float = 0.9999
    batch: int = 1024
    micro_batch: int = 64
    steps: int = 312_500
    seed: int = 0
    ranks: int = 1
    threads: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1

    def __post_init__(self) -> None:
        if not self.stores:
            raise ValueError("stores is empty; name at least one token store")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; use a probability from 0 to below 1")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; use 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; use a share from 0 to below 1")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; use 1 or more")
        accumulation_steps(self.batch, self.micro_batch, self.ranks)
        check_intervals(self.log_every, self.checkpoint_every, self.keep_checkpoints)


class GeneratorLoss(nn.Module):
    """Eq. 7 for each image, in one call of an engine."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.generator = Generator(config)

    def forward(self, noise: Tensor, labels: Tensor, steps: Tensor, accumulated: Tensor, codes: Tensor) -> Tensor:
        return code_loss(self.generator(noise, labels, steps, accumulated), codes)


def open_inputs(config: TrainGeneratorConfig) -> tuple[list[Store], ModelCard]:
    """The stores and the tokenizer's card. Raises ValueError unless they and the model's token space fit together."""
    card = read_card(config.tokenizer, "tokenizer")
    stores = [open_store(url, KIND) for url in config.stores]
    for store in stores:
        made_by = store.manifest.plan.identity["tokenizer_digest"]
        if made_by != card.digest:
            raise ValueError(
                f"store {store.url} was made by tokenizer {made_by[:12]}, but {config.tokenizer} is "
                f"{card.digest[:12]}; tokenize again or give the store's own tokenizer"
            )
        if config.noise == "fresh" and "latents" not in store.specs:
            raise ValueError(f"store {store.url} holds no latents; tokenize with latents=true or use noise=stored")
        _check_space(config.model, store)
        first, classes = stores[0], store.manifest.plan.identity["classes"]
        if classes != first.manifest.plan.identity["classes"]:
            raise ValueError(f"store {store.url} has other classes than {first.url}; use stores of the same classes")
    return stores, card


def _check_space(model: GeneratorConfig, store: Store) -> None:
    """Raise ValueError where the generator's token space is not the store's."""
    identity = store.manifest.plan.identity
    T, h, _ = store.specs["codes"].row_shape
    quantizer = identity["tokenizer_config"]["quantizer"]
    found = {
        "num_steps": T,
        "grid": h,
        "codebook_size": quantizer["codebook_size"],
        "code_dim": quantizer["code_dim"],
        "num_classes": len(identity["classes"]),
    }
    for name, value in found.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"model.{name} is {getattr(model, name)}, but store {store.url} has {value}; set it to {value}"
            )


@torch.no_grad()
def training_inputs(
    quantizer: Quantizer, batch: TokenBatch, config: TrainGeneratorConfig, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch of the stream to (eps_t, y, t, z'_{t-1}, C_t) of one drawn step an image.

    Every draw is a function of (seed, position), so it does not depend on ranks, batches or restarts.
    """
    draws = child_seeds(config.seed, torch.from_numpy(batch.positions).to(device))
    T = quantizer.schedule.num_steps
    steps = 1 + ((random_words(draws, 0, Stream.STEP, 1)[:, 0] * T) >> 32)
    labels = torch.from_numpy(batch.labels).to(device).long()
    dropped = uniform(draws, 0, (1,), Stream.LABEL_DROPOUT)[:, 0] < config.label_dropout
    labels = torch.where(dropped, config.model.num_classes, labels)
    place = torch.arange(len(steps), device=device), steps - 1
    if batch.latents is not None:
        latents = torch.from_numpy(batch.latents).to(device).float()
        shape = tuple(latents.shape[1:])
        fresh = quantizer.quantize(latents, lambda t: normal(draws, t, shape, Stream.TOKENIZER))
        return fresh.noise[place], labels, steps, fresh.before[place], fresh.codes[place]
    assert batch.codes is not None
    assert batch.seeds is not None
    codes = torch.from_numpy(batch.codes).to(device).long()
    seeds = torch.from_numpy(batch.seeds.view("int64")).to(device)
    space = config.model
    noise = normal(seeds, steps, (space.code_dim, space.grid, space.grid), Stream.TOKENIZER)
    return noise, labels, steps, quantizer.codebook.accumulated(codes, steps - 1), codes[place]


def train_generator(config: TrainGeneratorConfig) -> ModelCard | None:
    """Train to the end, or on from the last checkpoint; export the averaged weights. The card, on the first rank."""
    stores, tokenizer_card = open_inputs(config)
    ranks = join_ranks(config.threads)
    accumulation = accumulation_steps(config.batch, config.micro_batch, ranks.count)
    torch.manual_seed(config.seed)  # the initial weights
    stream = TokenStream(stores, seed=config.seed, latents=config.noise == "fresh")
    quantizer = load_tokenizer(config.tokenizer)[0].quantizer.to(ranks.device)
    model = GeneratorLoss(config.model).to(ranks.device)
    model.generator.align_head(quantizer.codebook.vectors)
    identity = {**stream.identity, "model": asdict(config.model)}
    checkpoints = Checkpoints(config.out, ranks, identity, config.keep_checkpoints)
    optimizer = adamw(model, config.optimizer, config.ema_decay)
    state = checkpoints.state("generator")
    engine = Engine(model, optimizer, config.engine, config.micro_batch, accumulation, state=state)
    log = TrainingLog(config.out, ranks.first, checkpoints.step)
    meter = StepLossMeter(config.model.num_steps, ranks.device)

    def figures(done: int) -> dict[str, Any]:
        lr = config.optimizer.rate(done - 1, config.steps)
        return {**meter.take(), "gradient_norm": engine.gradient_norm, "learning_rate": lr}

    def step(number: int) -> float:
        return _train_step(config, engine, quantizer, stream, ranks, number, meter)

    run_steps("train-generator", config, ranks, checkpoints, {"generator": engine}, log, step, figures)
    return _export(config, engine, ranks, stores, tokenizer_card)


def _train_step(
    config: TrainGeneratorConfig,
    engine: Engine,
    quantizer: Quantizer,
    stream: TokenStream,
    ranks: Ranks,
    step: int,
    meter: "StepLossMeter",
) -> float:
    """One global batch: forward and backward on each micro-batch, one update. Returns seconds waited for data."""
    waited = 0.0
    positions = batch_positions(step, config.batch, ranks.rank, ranks.count)
    for part in positions.reshape(-1, config.micro_batch):
        clock = time.monotonic()
        batch = stream.batch(part)
        waited += time.monotonic() - clock
        noise, labels, steps, accumulated, codes = training_inputs(quantizer, batch, config, ranks.device)
        losses = engine(noise, labels, steps, accumulated, codes)
        where = f"step {step + 1}, positions {part[0]} to {part[-1]} of the stream"
        engine.step(losses.mean(), config.optimizer.rate(step, config.steps), where)
        meter.add(steps, losses)
    return waited


class StepLossMeter:
    """Cross-entropy by step t since the last look, over all ranks."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, num_steps, dtype=torch.float64, device=device)

    def add(self, steps: Tensor, losses: Tensor) -> None:
        """Count the losses (b,) of steps (b,)."""
        values = torch.stack([losses.detach().double(), torch.ones_like(losses, dtype=torch.float64)])
        self._sums.index_add_(1, steps - 1, values)

    def take(self) -> dict[str, Any]:
        """loss, and loss_by_step with None where no image had that step; then start anew. Every rank calls it."""
        sums, counts = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        by_step = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        return {"loss": sum(sums) / sum(counts), "loss_by_step": by_step}


def _export(
    config: TrainGeneratorConfig, engine: Engine, ranks: Ranks, stores: list[Store], tokenizer: ModelCard
) -> ModelCard | None:
    weights = engine.weights("ema")
    if not ranks.first:
        return None
    prefix = "generator."
    made_from = {
        "tokenizer_digest": tokenizer.digest,
        "stores": [store.id for store in stores],
        "classes": stores[0].manifest.plan.identity["classes"],
    }
    training = {
        "batch": config.batch,
        "noise": config.noise,
        "seed": config.seed,
        "optimizer": asdict(config.optimizer),
    }
    named = {name.removeprefix(prefix): value for name, value in weights.items()}
    return save_export(config.out, "generator", config.model, named, made_from, training, config.steps)
