"""rdpm tokenize: images to a token store."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import JOB, run

Config = TokenizeConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
