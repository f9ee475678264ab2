"""rdpm report: everything a run left behind to one HTML page."""

from jobs.arguments import parse, settings_of
from pipeline import files
from pipeline.evaluation.report import ReportConfig, input_digests, write_report
from pipeline.progress import say
from pipeline.records import begin

JOB = "report"
Config = ReportConfig
_HOW = ("out",)


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))


def run(config: ReportConfig) -> None:
    """Write config.out, unless its finished record says that it is there."""
    record = begin(JOB, config.out, settings_of(config, *_HOW, **input_digests(config)))
    if record.finished:
        say(f"report: {config.out} is already there")
        return
    size = write_report(config)
    record.finish({"bytes": size, "sha256": files.digest_file(config.out).sha256})
    say(f"report: {config.out} is one page of {size / 1024:.0f} KiB")
