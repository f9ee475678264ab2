"""rdpm train-generator: token stores to a trained generator."""

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.training.generator.stage import TrainGeneratorConfig, open_inputs, train_generator
from rdpm.pipeline.training.launch import launch, under_launcher
from rdpm.pipeline.training.ranks import leave_ranks
from rdpm.storage_schemas.cards import CARD, WEIGHTS

JOB = "train-generator"
Config = TrainGeneratorConfig
_SEEING = ("validation", "validation_images", "validate_every", "preview_every", "log_every", "wandb")
_HOW = ("out", "stores", "tokenizer", "stream", "ranks", "threads", "checkpoint_every", "keep_checkpoints", *_SEEING)


def main(arguments: list[str]) -> None:
    """Entry of the subcommand, on the command line and on every rank."""
    config = parse(Config, JOB, arguments)
    stores, *_ = open_inputs(config)
    record = begin(
        JOB, config.out, settings_of(config, *_HOW, store_ids=[store.id for store in stores]), (WEIGHTS, CARD)
    )
    if record.finished:
        say(f"train-generator: {config.out} is already trained")
        return
    if config.ranks > 1 and not under_launcher():
        launch(config.ranks, [JOB, *arguments])
        return
    card = train_generator(config)
    leave_ranks()
    if card is not None:
        record.finish({"digest": card.digest, "steps": card.steps})
        say(f"train-generator: {config.out} is generator {card.digest[:12]}")
