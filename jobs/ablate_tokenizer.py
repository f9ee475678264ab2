"""rdpm ablate-tokenizer: the paper's Table 2 and its schedules on any images."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.studies.ablation import JOB, AblationConfig, run

Config = AblationConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
