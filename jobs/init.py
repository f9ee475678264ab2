"""rdpm init: any folder of pictures to the configs of a run."""

import json

from rdpm.jobs.arguments import parse
from rdpm.pipeline.projects.config import InitConfig
from rdpm.pipeline.projects.stage import JOB, run

Config = InitConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    paths = arguments[:2]
    fine = len(paths) == 2 and all(path and not path.startswith("-") for path in paths)
    if not fine or not all("=" in setting for setting in arguments[2:]):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not IMAGES RUN [size=PIXELS] [hours=HOURS]")
    images, out = (json.dumps(path) for path in paths)
    run(parse(Config, JOB, [f"images={images}", f"out={out}", *arguments[2:]]))
