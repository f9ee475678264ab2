"""rdpm diagnose: where a generator loses variety, step by step, to diagnosis.json."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.evaluation.diagnose import JOB, DiagnoseConfig, run

Config = DiagnoseConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
