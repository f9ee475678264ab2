"""rdpm evaluate: samples, real images and a tokenizer to metrics.json."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB, run

Config = EvaluateConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
