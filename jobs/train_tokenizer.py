"""rdpm train-tokenizer: images to a trained tokenizer."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import JOB, run

Config = TrainTokenizerConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
