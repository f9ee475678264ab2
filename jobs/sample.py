"""rdpm sample: a generator and its tokenizer to a set of images."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sampling.stage import JOB, run

Config = SampleConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
