"""rdpm train-tokenizer: a folder of images to a trained tokenizer."""

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.evaluation.features import open_extractor
from rdpm.pipeline.evaluation.validation import Validator
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.training.launch import first_rank, launch, under_launcher
from rdpm.pipeline.training.ranks import leave_ranks
from rdpm.pipeline.training.tokenizer.stage import TrainTokenizerConfig, train_tokenizer
from rdpm.storage_schemas.cards import CARD, WEIGHTS

JOB = "train-tokenizer"
_BATCH = 16
Config = TrainTokenizerConfig
_SEEING = (
    "validation", "validation_images", "validation_extractor", "inception_weights", "validate_every", "log_every",
)  # fmt: skip
_HOW = ("out", "images", "ranks", "threads", "workers", "checkpoint_every", "keep_checkpoints", *_SEEING)


def main(arguments: list[str]) -> None:
    """Entry of the subcommand, on the command line and on every rank."""
    config = parse(Config, JOB, arguments)
    source = list_images(config.images)
    record = begin(JOB, config.out, settings_of(config, *_HOW, source=source.digest), (WEIGHTS, CARD))
    if record.finished:
        say(f"train-tokenizer: {config.out} is already trained")
        return
    if config.ranks > 1 and not under_launcher():
        launch(config.ranks, [JOB, *arguments])
        return
    if len(source.classes) == 1 and first_rank():
        say(
            f"train-tokenizer: all images are of one class, {source.classes[0]!r}; for a generator of several classes "
            "give the folder that holds the class folders"
        )
    card = train_tokenizer(config, source, _validator(config))
    leave_ranks()
    if card is not None:
        record.finish({"digest": card.digest, "steps": card.steps})
        say(f"train-tokenizer: {config.out} is tokenizer {card.digest[:12]}")


def _validator(config: TrainTokenizerConfig) -> Validator | None:
    """What looks at the held-out images that the config names, if any."""
    if not config.validation:
        return None
    extractor = None
    if config.validation_extractor != "none":
        extractor = open_extractor(config.validation_extractor, config.inception_weights, _BATCH)
    return Validator(config.validation, config.model, config.validation_images, config.loss.perceptual, extractor)
