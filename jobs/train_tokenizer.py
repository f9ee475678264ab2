"""rdpm train-tokenizer: a folder of images to a trained tokenizer."""

from jobs.arguments import parse, settings_of
from pipeline.evaluation.validation import Validator
from pipeline.images.listing import list_images
from pipeline.progress import say
from pipeline.records import begin
from pipeline.training.launch import launch, under_launcher
from pipeline.training.ranks import leave_ranks
from pipeline.training.tokenizer import TrainTokenizerConfig, train_tokenizer
from storage_schemas.cards import CARD, WEIGHTS

JOB = "train-tokenizer"
Config = TrainTokenizerConfig
_SEEING = ("validation", "validation_images", "validate_every", "log_every")
_HOW = ("out", "images", "ranks", "threads", "workers", "checkpoint_every", "keep_checkpoints", *_SEEING)


def main(arguments: list[str]) -> None:
    """Entry of the subcommand, on the command line and on every rank."""
    config = parse(Config, JOB, arguments)
    record = begin(
        JOB, config.out, settings_of(config, *_HOW, source=list_images(config.images).digest), (WEIGHTS, CARD)
    )
    if record.finished:
        say(f"train-tokenizer: {config.out} is already trained")
        return
    if config.ranks > 1 and not under_launcher():
        launch(config.ranks, [JOB, *arguments])
        return
    card = train_tokenizer(config, _validator(config))
    leave_ranks()
    if card is not None:
        record.finish({"digest": card.digest, "steps": card.steps})
        say(f"train-tokenizer: {config.out} is tokenizer {card.digest[:12]}")


def _validator(config: TrainTokenizerConfig) -> Validator | None:
    """What looks at the held-out images that the config names, if any."""
    if not config.validation:
        return None
    return Validator(config.validation, config.model, config.validation_images, config.loss.perceptual)
