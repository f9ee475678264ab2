"""Training the generator from token stores under ZeRO."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rdpm.models.flops import generator_forward_flops
from rdpm.models.generator import Generator, GeneratorConfig, code_loss
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.exports.exports import load_tokenizer, read_card, save_export
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenBatch, TokenStream
from rdpm.pipeline.training.checkpoint import Checkpoints, check_intervals
from rdpm.pipeline.training.engine import Engine, EngineConfig, join_ranks
from rdpm.pipeline.training.generator.draws import Draws, training_inputs
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.loop import run_steps
from rdpm.pipeline.training.meters import StepLossMeter, peak_flops
from rdpm.pipeline.training.optimizers import OptimizerConfig, adamw
from rdpm.pipeline.training.ranks import Ranks, accumulation_steps
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.tokens import KIND

_PREFIX = "generator."  # of the generator's weights in GeneratorLoss
_PREVIEW_CLASSES, _PREVIEW_ROWS = 10, 4


@dataclass(frozen=True)
class TrainGeneratorConfig:
    """One generator from one or more stores of one tokenizer.

    weights: shares of the stores in every stretch of the stream; without them they are one set. noise: "stored" trains
    on the store's codes and seeds; "fresh" quantizes the stored latents anew each time, so that no noise is seen twice.
    batch: images of a global step; micro_batch: images a rank sees at once, each at `steps_per_image` steps t.
    validation: stores of held-out images, of which `validation_images` give a loss every `validate_every` steps.
    preview_every: steps between pictures of samples by the averaged weights, 0 for none.
    compile: let torch.compile fuse the model. ranks: processes started on this machine when no launcher did; threads:
    CPU threads of each. wandb: a Weights & Biases project to log to as well, "" for none.
    """

    stores: tuple[str, ...]
    tokenizer: str
    out: str
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    weights: tuple[int, ...] = ()
    noise: Literal["stored", "fresh"] = "stored"
    steps_per_image: int = 1
    label_dropout: float = 0.1
    ema_decay: float = 0.9999
    batch: int = 1024
    micro_batch: int = 64
    steps: int = 312_500
    seed: int = 0
    ranks: int = 1
    threads: int = 1
    compile: bool = False
    validation: tuple[str, ...] = ()
    validation_images: int = 4096
    validate_every: int = 1000
    preview_every: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1
    wandb: str = ""

    def __post_init__(self) -> None:
        if not self.stores:
            raise ValueError("stores is empty; name at least one token store")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; use a probability from 0 to below 1")
        if not 1 <= self.steps_per_image <= self.model.num_steps:
            raise ValueError(
                f"steps_per_image is {self.steps_per_image}; use 1 to model.num_steps, {self.model.num_steps}"
            )
        if self.validation and (self.validate_every % self.log_every or self.validation_images % self.micro_batch):
            raise ValueError(
                f"validate_every is {self.validate_every}, validation_images {self.validation_images}; use a multiple "
                f"of log_every {self.log_every}, and one of micro_batch {self.micro_batch}"
            )
        if self.preview_every < 0 or self.preview_every % self.log_every:
            raise ValueError(
                f"preview_every is {self.preview_every}; use a multiple of log_every {self.log_every}, or 0"
            )
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


def open_inputs(config: TrainGeneratorConfig) -> tuple[list[Store], list[Store], ModelCard]:
    """The stores to train on and to validate on, and the tokenizer's card.

    Raises ValueError unless they and the model's token space fit together.
    """
    card = read_card(config.tokenizer, "tokenizer")
    stores = [open_store(url, KIND) for url in (*config.stores, *config.validation)]
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
    return stores[: len(config.stores)], stores[len(config.stores) :], card


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


class GeneratorStep:
    """Batches of the stream through the engine: training on one stream, measuring on another."""

    def __init__(self, config: TrainGeneratorConfig, ranks: Ranks, engine: Engine, quantizer: Quantizer) -> None:
        self.config, self.ranks, self.engine, self.quantizer = config, ranks, engine, quantizer
        self.meter = StepLossMeter(config.model.num_steps, ranks.device)
        self.draws = Draws(
            config.noise, config.steps_per_image, config.label_dropout, config.model.num_classes, config.seed
        )

    def train(self, batch: TokenBatch, step: int) -> None:
        """Forward and backward of one micro-batch; after the last of a step, the update."""
        inputs = training_inputs(self.quantizer, batch, self.draws, self.ranks.device)
        losses = self.engine(*inputs.arguments)
        where = f"step {step + 1}, positions {batch.positions[0]} to {batch.positions[-1]} of the stream"
        self.engine.step(losses.mean(), self.config.optimizer.rate(step, self.config.steps), where)
        self.meter.add(inputs.steps, losses)

    def held_out_loss(self, stream: TokenStream) -> float:
        """Mean loss of the first `validation_images` of a stream, labels never dropped, draws the same each time."""
        config, draws = self.config, replace(self.draws, label_dropout=0.0)
        meter = StepLossMeter(config.model.num_steps, self.ranks.device)
        groups = config.validation_images // (config.micro_batch * self.ranks.count) or 1
        for batch in stream.batches(
            0,
            groups,
            batch=config.micro_batch * self.ranks.count,
            micro_batch=config.micro_batch,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
        ):
            inputs = training_inputs(self.quantizer, batch, draws, self.ranks.device)
            meter.add(inputs.steps, self.engine.evaluate(*inputs.arguments))
        return meter.take()["loss"]


def train_generator(config: TrainGeneratorConfig) -> ModelCard | None:
    """Train to the end, or on from the last checkpoint; export the averaged weights. The card, on the first rank."""
    stores, held_out, tokenizer_card = open_inputs(config)
    ranks = join_ranks(config.threads)
    accumulation = accumulation_steps(config.batch, config.micro_batch, ranks.count)
    torch.manual_seed(config.seed)  # the initial weights
    fresh = config.noise == "fresh"
    stream = TokenStream(stores, seed=config.seed, latents=fresh, weights=config.weights, config=config.stream)
    validation = TokenStream(held_out, seed=config.seed, latents=fresh, config=config.stream) if held_out else None
    quantizer = load_tokenizer(config.tokenizer)[0].quantizer.to(ranks.device)
    identity = {**stream.identity, "model": asdict(config.model), "tokenizer": tokenizer_card.digest}
    checkpoints = Checkpoints(config.out, ranks, identity, config.keep_checkpoints)
    engine = _engine(config, quantizer, ranks, accumulation, checkpoints)
    log = TrainingLog(config.out, ranks.first, checkpoints.step, config.wandb)
    trained = GeneratorStep(config, ranks, engine, quantizer)
    batches = stream.batches(
        checkpoints.step,
        config.steps,
        batch=config.batch,
        micro_batch=config.micro_batch,
        rank=ranks.rank,
        ranks=ranks.count,
    )

    def step(number: int) -> float:
        before = stream.wait_seconds
        for _ in range(accumulation):
            trained.train(next(batches), number)
        return stream.wait_seconds - before

    def figures(done: int) -> dict[str, Any]:
        lr = config.optimizer.rate(done - 1, config.steps)
        found = {**trained.meter.take(), "gradient_norm": engine.gradient_norm, "learning_rate": lr}
        if validation and done % config.validate_every == 0:
            found["validation_loss"] = found["score"] = trained.held_out_loss(validation)
        if config.preview_every and done % config.preview_every == 0:
            _preview(config, engine, ranks, log, done)
        return found

    flops = 3 * config.steps_per_image * generator_forward_flops(config.model)
    peak = peak_flops(ranks.device)
    use = flops / peak / ranks.count if peak else None
    run_steps("train-generator", config, ranks, checkpoints, {"generator": engine}, log, step, figures, use)
    return _export(config, engine, ranks, stores, tokenizer_card)


def _preview(config: TrainGeneratorConfig, engine: Engine, ranks: Ranks, log: TrainingLog, step: int) -> None:
    """Samples of the first classes by the averaged weights, the same noise each time, a column a class."""
    weights = engine.weights("ema")
    if not ranks.first:
        return
    generator = Generator(config.model)
    generator.load_state_dict({name.removeprefix(_PREFIX): value for name, value in weights.items()})
    drawing = RDPM(generator.eval(), load_tokenizer(config.tokenizer)[0])
    classes = range(min(_PREVIEW_CLASSES, config.model.num_classes))
    images = drawing.sample([label for _ in range(_PREVIEW_ROWS) for label in classes])
    rows = images.reshape(_PREVIEW_ROWS, len(classes), *images.shape[1:])
    log.picture(step, "samples", np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))


def _engine(
    config: TrainGeneratorConfig, quantizer: Quantizer, ranks: Ranks, accumulation: int, checkpoints: Checkpoints
) -> Engine:
    model = GeneratorLoss(config.model).to(ranks.device)
    model.generator.align_head(quantizer.codebook.vectors)
    if config.compile:
        model.compile()
    optimizer = adamw(model, config.optimizer, config.ema_decay)
    state = checkpoints.state("generator")
    return Engine(model, optimizer, config.engine, config.micro_batch, accumulation, state=state)


def _export(
    config: TrainGeneratorConfig, engine: Engine, ranks: Ranks, stores: list[Store], tokenizer: ModelCard
) -> ModelCard | None:
    weights = engine.weights("ema")
    if not ranks.first:
        return None
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
    named = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    return save_export(config.out, "generator", config.model, named, made_from, training, config.steps)
