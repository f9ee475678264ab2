"""rdpm train-generator: token stores to a trained generator."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.stage import JOB, run

Config = TrainGeneratorConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
