"""The stage behind `rdpm report`: the results of a run to one HTML page."""

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin, refuse_folder
from rdpm.pipeline.reporting.report import ReportConfig, input_digests, write_report

JOB = "report"


def run(config: ReportConfig) -> None:
    """Write config.out, unless its record says that it is finished. Raises ValueError for bad input."""
    refuse_folder(config.out)
    with begin(JOB, config, lambda: input_digests(config)) as record:
        if record.lease is None:
            say(f"report: {config.out} is already there")
            return
        size = write_report(config, record.lease)
        record.finish({"bytes": size, "sha256": files.digest_file(config.out).sha256})
    say(f"report: {config.out} is one page of {size / 1024:.0f} KiB")
