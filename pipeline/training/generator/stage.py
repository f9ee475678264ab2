"""The stage that trains a generator on token stores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rdpm.models.flops import generator_training_flops
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.determinism import resumes_to_the_bit
from rdpm.pipeline.training.engine import Engine, building
from rdpm.pipeline.training.first_weights import init_digest
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.export import save_generator
from rdpm.pipeline.training.generator.fine_tuning import first_state, init_sentence
from rdpm.pipeline.training.generator.inputs import TrainingStores, TrainingStreams, open_stores, open_streams
from rdpm.pipeline.training.generator.preview import show_samples
from rdpm.pipeline.training.generator.step import PREFIX, GeneratorLoss, GeneratorStep, compile_loss
from rdpm.pipeline.training.launch import first_rank, launch, under_launcher
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.loop import run_steps
from rdpm.pipeline.training.meters import peak_flops
from rdpm.pipeline.training.optimizers import adamw
from rdpm.pipeline.training.process_group import joined_ranks
from rdpm.pipeline.training.ranks import Ranks, given_by_first
from rdpm.pipeline.training.saved_state import newest_step
from rdpm.storage_schemas.cards import CARD, WEIGHTS, ModelCard

JOB = "train-generator"


def run(config: TrainGeneratorConfig) -> None:
    """Train a generator and export it to config.out, unless its record says that this is done.

    Starts the ranks, or runs as one of them. Raises ValueError for bad input, and when the training fails.
    """
    stores = open_stores(config)
    with begin(JOB, config, lambda: _decides(stores), (WEIGHTS, CARD), first_rank()) as record:
        if record.finished:
            if first_rank():
                say(f"train-generator: {config.out} is already trained")
            if under_launcher():  # a rank that looked before another start finished it is waiting there
                with joined_ranks(config.threads):
                    given_by_first(record.finished)
            return
        if record.lease is not None and config.ranks > 1 and not under_launcher():
            launch(JOB, config, record.lease)
            return
        streams = open_streams(config, stores)
        streams.fill(newest_step(config.out) * config.batch)  # before joining, so that no rank waits for it
        with joined_ranks(config.threads, config.deterministic) as ranks:
            if given_by_first(record.finished):
                return
            card = train_generator(config, stores, streams, ranks, record.lease)
        if card is not None:
            bit_exact = resumes_to_the_bit(ranks.device, ranks.count, config.deterministic)
            record.finish({"digest": card.digest, "steps": card.steps, "bit_exact_resume": bit_exact})
            say(f"train-generator: {config.out} is generator {card.digest[:12]}")


def train_generator(
    config: TrainGeneratorConfig, stores: TrainingStores, streams: TrainingStreams, ranks: Ranks, lease: Lease | None
) -> ModelCard | None:
    """Train from the newest checkpoint to the end, and export the averaged weights.

    lease: of config.out on the first rank, None on others. Returns the card on the first rank, None on others.
    """
    micro_batch = config.micro_batch_on(ranks.count)
    accumulation = config.batch // (micro_batch * ranks.count)
    stream = streams.train
    quantizer = load_tokenizer(config.tokenizer)[0].quantizer.to(ranks.device)
    identity = {**stream.identity, "tokenizer": stores.tokenizer.digest} | init_digest(stores.init)
    checkpoints = Checkpoints(config.out, ranks, config.model, identity, config.keep_checkpoints, lease)
    config = _continued(config, checkpoints)
    engine = _engine(config, quantizer, ranks, micro_batch, accumulation, checkpoints, stores)
    log = TrainingLog(config.out, ranks.first, checkpoints.step, config.wandb)
    trained = GeneratorStep(config, ranks, engine, quantizer, micro_batch)
    batches = stream.batches(
        checkpoints.step,
        config.steps,
        batch=config.batch,
        micro_batch=micro_batch,
        rank=ranks.rank,
        ranks=ranks.count,
    )

    def step(number: int) -> float:
        before = stream.wait_seconds
        for _ in range(accumulation):
            trained.train(next(batches), number)
        return stream.wait_seconds - before

    def metrics(done: int) -> dict[str, Any]:
        lr = config.optimizer.lr_at(done - 1, config.steps)
        line = {**trained.meter.take(), "gradient_norm": engine.gradient_norm, "lr": lr}
        if streams.held_out and done % config.validate_every == 0:
            line["validation_loss"] = line["score"] = trained.held_out_loss(streams.held_out)
        if config.preview_every and done % config.preview_every == 0:
            show_samples(config, engine, ranks, log, done)
        return line

    flops = config.steps_per_image * generator_training_flops(config.model)
    peak = peak_flops(ranks.device)
    use = flops / peak / ranks.count if peak else None
    run_steps(JOB, config, ranks, checkpoints, {"generator": engine}, log, step, metrics, use)
    return _export(config, engine, ranks, stores, lease)


def _decides(stores: TrainingStores) -> dict[str, Any]:
    """What decides the result besides the config, for the record."""
    return {"store_ids": stores.ids} | init_digest(stores.init)


def _continued(config: TrainGeneratorConfig, checkpoints: Checkpoints) -> TrainGeneratorConfig:
    """The config with the hidden width that the newest checkpoint has: earlier releases rounded it otherwise."""
    state = checkpoints.state("generator")
    if state is None:
        return config
    hidden = state.shape(f"weight/{PREFIX}transformer.blocks.0.down.weight")[1]
    return (
        config if hidden == config.model.hidden_width else replace(config, model=replace(config.model, hidden=hidden))
    )


def _engine(
    config: TrainGeneratorConfig,
    quantizer: Quantizer,
    ranks: Ranks,
    micro_batch: int,
    accumulation: int,
    checkpoints: Checkpoints,
    stores: TrainingStores,
) -> Engine:
    torch.manual_seed(config.seed)  # the initial weights
    with building(config.engine):
        model = GeneratorLoss(config.model)
        model.generator.start_from(quantizer)
    model.to(ranks.device)
    whole = compile_loss(model, config.engine.zero_stage) if config.compile else ()
    optimizer = adamw(model, config.optimizer, config.ema_decay)
    state: Mapping[str, Tensor] | None = checkpoints.state("generator")
    if state is None and stores.init:
        state = first_state(config, model, stores.classes)
        if ranks.first:
            say(f"{JOB}: {init_sentence(config, stores.init, stores.classes, stores.tokenizer)}")
    return Engine(model, optimizer, config.engine, micro_batch, accumulation, whole, state)


def _export(
    config: TrainGeneratorConfig, engine: Engine, ranks: Ranks, stores: TrainingStores, lease: Lease | None
) -> ModelCard | None:
    weights = engine.weights("ema")
    if not ranks.first:
        return None
    if lease is not None:
        lease.check()
    return save_generator(config, weights, stores, config.out, config.steps)
