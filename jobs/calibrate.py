"""rdpm calibrate: a generator to the same generator with matched latents."""

from rdpm.jobs.arguments import parse
from rdpm.pipeline.sampling.calibration import JOB, CalibrateConfig, run

Config = CalibrateConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run(parse(Config, JOB, arguments))
