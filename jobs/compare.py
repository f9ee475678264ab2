"""rdpm compare: RDPM beside its rivals at equal parameters and training FLOPs; a table and a plot."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.studies.compare import JOB, run
from rdpm.pipeline.studies.compare_plan import CompareConfig

Config = CompareConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
