"""rdpm push: the exports of a run under a URL, with a card to read."""

import json

from rdpm.jobs.arguments import parse
from rdpm.pipeline.sharing.push import JOB, PushConfig, run

Config = PushConfig
_WANTED = "RUN URL [key=value ...], or URL generator=FOLDER tokenizer=FOLDER [key=value ...]"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    places = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    options = [argument for argument in arguments if argument not in places]
    if len(places) not in (1, 2) or any(option.startswith("-") for option in options):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not {_WANTED}")
    given = [f"out={json.dumps(places[-1])}", *(f"run={json.dumps(place)}" for place in places[:-1])]
    run(parse(Config, JOB, [*given, *options]))
