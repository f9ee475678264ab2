"""rdpm report: everything that a run left behind to one HTML page."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.reporting.report import ReportConfig
from rdpm.pipeline.reporting.stage import JOB, run

Config = ReportConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
