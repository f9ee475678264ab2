"""rdpm scaling: how quality grows with the FLOPs of training, for methods of several sizes; a table and a plot."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.studies.scaling import JOB, ScalingConfig, run

Config = ScalingConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
