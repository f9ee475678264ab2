"""rdpm export: the models of a run as ONNX graphs."""

import json

from rdpm.jobs.arguments import parse
from rdpm.pipeline.inference.onnx_export import JOB, ExportConfig, run

Config = ExportConfig


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    places = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    options = [argument for argument in arguments if argument not in places]
    if len(places) != 2 or any(option.startswith("-") for option in options):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not RUN FOLDER [tokenizer=FOLDER]")
    given = [f"{name}={json.dumps(place)}" for name, place in zip(("run", "out"), places, strict=True)]
    run(parse(Config, JOB, [*given, *options]))
