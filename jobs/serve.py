"""rdpm serve: a page to play on with a trained model."""

import json

from rdpm.jobs.arguments import parse
from rdpm.pipeline.app.server import ServeConfig, serve

JOB = "serve"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run, *rest = arguments or [""]
    if not run or "=" in run or any("=" not in option for option in rest):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not RUN [key=value ...]")
    serve(parse(ServeConfig, JOB, [f"run={json.dumps(run)}", *rest]))
