"""rdpm serve: a page to play on with a trained model."""

import json
from importlib.util import find_spec

from rdpm.jobs.arguments import parse

JOB = "serve"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError where the extra `app` is not installed."""
    run, *rest = arguments or [""]
    if not run or "=" in run or any("=" not in option for option in rest):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not RUN [key=value ...]")
    if find_spec("aiohttp") is None:
        raise ValueError("the page needs aiohttp, which is not installed; pip install 'rdpm[app]'")
    from rdpm.pipeline.app.server import ServeConfig, serve  # with aiohttp

    serve(parse(ServeConfig, JOB, [f"run={json.dumps(run)}", *rest]))
