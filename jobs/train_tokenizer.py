"""rdpm train-tokenizer: a folder of images to a trained tokenizer."""

from jobs.arguments import parse, settings_of
from pipeline.images.sources import open_folder
from pipeline.progress import say
from pipeline.records import begin
from pipeline.training.engine import leave_ranks
from pipeline.training.launch import launch, under_launcher
from pipeline.training.tokenizer import TrainTokenizerConfig, train_tokenizer

JOB = "train-tokenizer"
Config = TrainTokenizerConfig
_HOW = ("out", "images", "ranks", "threads", "workers", "log_every", "checkpoint_every")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand, on the command line and on every rank."""
    config = parse(Config, JOB, arguments)
    record = begin(JOB, config.out, settings_of(config, *_HOW, source=open_folder(config.images).digest))
    if record.finished:
        say(f"train-tokenizer: {config.out} is already trained")
        return
    if config.ranks > 1 and not under_launcher():
        launch(config.ranks, [JOB, *arguments])
        return
    card = train_tokenizer(config)
    leave_ranks()
    if card is not None:
        record.finish({"digest": card.digest, "steps": card.steps})
        say(f"train-tokenizer: {config.out} is tokenizer {card.digest[:12]}")
