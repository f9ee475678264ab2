"""rdpm run: every stage of a run, in order, to its report."""

import importlib
import sys

from rdpm.jobs.arguments import parse
from rdpm.pipeline.projects.road import Stage, go, read_road, start
from rdpm.pipeline.projects.status import standings

JOB = "run"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Every config is read before the first stage starts."""
    if len(arguments) != 1 or arguments[0].startswith("-") or "=" in arguments[0]:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not RUN, the folder of a run")
    stages = read_road(arguments[0])
    for stage in stages:
        _check(stage)
    code = go(arguments[0], stages, _run)
    if code:
        sys.exit(code)


def _check(stage: Stage) -> None:
    from rdpm.jobs.cli import COMMANDS  # which imports this module

    if stage.job not in COMMANDS:
        raise ValueError(f"stage {' '.join(stage.words)!r} is no command of rdpm; use one of {', '.join(COMMANDS)}")
    config = getattr(importlib.import_module(COMMANDS[stage.job][0]), "Config", None)
    if config is not None:
        parse(config, stage.job, [stage.config])


def _run(stage: Stage) -> int:
    """A finished stage only says so. That it does in this process, because a new one takes seconds to load."""
    from rdpm.jobs.cli import main as command

    return command(list(stage.words)) if standings([stage])[0].state == "done" else start(stage)
