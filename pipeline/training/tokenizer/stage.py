"""The stage that trains a tokenizer on labelled images."""

import functools
import time
from dataclasses import asdict
from typing import Any

import torch

from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.permutation import ORDER_VERSION
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.images.listing import Listing, list_images
from rdpm.pipeline.images.stream import ImageStream
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.determinism import resumes_to_the_bit
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.first_weights import init_card, init_digest, require_fit
from rdpm.pipeline.training.launch import first_rank, launch, under_launcher
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.loop import run_steps
from rdpm.pipeline.training.meters import TermMeter
from rdpm.pipeline.training.process_group import joined_ranks
from rdpm.pipeline.training.ranks import Ranks, given_by_first
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.notes import ImageNotes
from rdpm.pipeline.training.tokenizer.step import TokenizerStep
from rdpm.pipeline.training.tokenizer.validation import Validator
from rdpm.storage_schemas.cards import CARD, WEIGHTS, ModelCard, TokenizerOrigin

JOB = "train-tokenizer"


def run(config: TrainTokenizerConfig) -> None:
    """Train a tokenizer and export it to config.out, unless its record says that this is done.

    Starts the ranks, or runs as one of them. Only the first one lists the images. Raises ValueError for bad input, and
    when the training fails.
    """
    if not first_rank():
        with joined_ranks(config.threads, config.deterministic) as ranks:
            listing = given_by_first(None)
            if listing is not None:
                train_tokenizer(config, Listing.from_bytes(listing), ranks, None)
        return
    init = init_card(config.init, "tokenizer")
    if init:
        require_fit(config.init, tokenizer_config(init), config.model, ("image_size",))
    taken_over = _taken_over(config)
    listed = functools.cache(lambda: list_images(config.images))
    with begin(JOB, config, lambda: {"source": listed().digest} | taken_over, (WEIGHTS, CARD)) as record:
        if record.finished:
            say(f"train-tokenizer: {config.out} is already trained")
            if under_launcher():
                with joined_ranks(config.threads):
                    given_by_first(None)
            return
        if record.lease is not None and config.ranks > 1 and not under_launcher():
            launch(JOB, config, record.lease)
            return
        source = listed()
        if len(source.classes) == 1:
            say(
                f"train-tokenizer: all images are of one class, {source.classes[0]!r}; to train on several classes, "
                "name the folder that holds the class folders"
            )
        with joined_ranks(config.threads, config.deterministic) as ranks:
            given_by_first(source.to_bytes() if ranks.count > 1 else None)
            card = train_tokenizer(config, source, ranks, record.lease)
        if card is not None:
            bit_exact = resumes_to_the_bit(ranks.device, ranks.count, config.deterministic)
            record.finish({"digest": card.digest, "steps": card.steps, "bit_exact_resume": bit_exact})
            say(f"train-tokenizer: {config.out} is tokenizer {card.digest[:12]}")


def train_tokenizer(
    config: TrainTokenizerConfig, source: Listing, ranks: Ranks, lease: Lease | None
) -> ModelCard | None:
    """Train from the newest checkpoint to the end, and export. Returns the card on the first rank, None on others.

    source: the listing of config.images. lease: of config.out on the first rank, None on others.
    """
    validator = Validator(config) if config.validation else None
    accumulation = config.batch // (config.micro_batch_on(ranks.count) * ranks.count)
    torch.manual_seed(config.seed)  # the initial weights
    taken_over = _taken_over(config)
    identity = {"source": source.digest, "seed": config.seed, "order": ORDER_VERSION} | taken_over
    checkpoints = Checkpoints(config.out, ranks, config.model, identity, config.keep_checkpoints, lease)
    train_step = TokenizerStep(config, ranks, accumulation, checkpoints)
    if config.init and ranks.first and not checkpoints.step:
        new = "; the discriminator is new" if config.loss.adversarial else ""
        say(f"{JOB}: starts from tokenizer {taken_over['init'][:12]} ({config.init}){new}")
    log = TrainingLog(config.out, ranks.first, checkpoints.step)
    meter = TermMeter(config.model, ranks.device)
    notes = ImageNotes(ranks)
    first, stop = checkpoints.step * accumulation, config.steps * accumulation
    batches = _stream(config, source, ranks).batches(first, stop, config.workers)

    def step(number: int) -> float:
        waited = 0.0
        for _ in range(accumulation):
            clock = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - clock
            where = f"step {number + 1}, the {len(batch.pixels)} images from position {batch.position} of the stream"
            pixels, seeds = (x.to(ranks.device, non_blocking=True) for x in (batch.pixels, batch.seeds))
            meter.add(train_step(from_pixels(pixels), seeds, number, where))
            notes.add(batch)
        train_step.end_iteration()
        return waited

    def metrics(done: int) -> dict[str, Any]:
        terms = meter.take()
        lr = config.optimizer.lr_at(done - 1, config.steps)
        line = {"reconstruction": terms["reconstruction"], **terms, "lr": lr}
        if validator and done % config.validate_every == 0:
            line |= _validate(validator, train_step.engines["tokenizer"], ranks, log, done)
        notes.say()
        return line

    run_steps(JOB, config, ranks, checkpoints, train_step.engines, log, step, metrics)
    return _export(config, train_step.engines["tokenizer"], ranks, source, taken_over, lease)


def _taken_over(config: TrainTokenizerConfig) -> dict[str, str]:
    """What identifies the tokenizer whose encoder, or all of whose weights, are taken over, where there is one."""
    encoder = {"encoder": read_card(config.encoder, "tokenizer").digest} if config.encoder else {}
    return encoder | init_digest(init_card(config.init, "tokenizer"))


def _validate(validator: Validator, engine: Engine, ranks: Ranks, log: TrainingLog, step: int) -> dict[str, float]:
    """Metrics of the held-out images, on the first rank; the others only contribute their share of the weights."""
    weights = engine.weights()
    if not ranks.first:
        return {}
    metrics, picture = validator(weights)
    log.picture(step, "validation", picture)
    return {**metrics, "score": -metrics["validation_psnr"]}


def _stream(config: TrainTokenizerConfig, source: Listing, ranks: Ranks) -> ImageStream:
    """Item k of the stream is this rank's slice of the k-th group of micro_batch x ranks images."""
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


def _export(
    config: TrainTokenizerConfig,
    engine: Engine,
    ranks: Ranks,
    source: Listing,
    taken_over: dict[str, str],
    lease: Lease | None,
) -> ModelCard | None:
    weights = engine.weights()
    if not ranks.first:
        return None
    if lease is not None:
        lease.check()
    made_from = TokenizerOrigin(source.digest, source.classes)
    training = {
        "batch": config.batch,
        "seed": config.seed,
        "optimizer": asdict(config.optimizer),
        "loss": asdict(config.loss),
    }
    training |= {name: digest for name, digest in taken_over.items() if name == "init"}
    return save_export(config.out, "tokenizer", config.model, weights, made_from, training, config.steps)
