"""rdpm sweep: sampler settings and models, each sampled and measured; a table, a plot and the best settings."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.studies.sweep import JOB, SweepConfig, run

Config = SweepConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
