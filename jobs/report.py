"""rdpm report: everything a run left behind to one HTML page."""

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.reporting.report import ReportConfig, input_digests, write_report

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
