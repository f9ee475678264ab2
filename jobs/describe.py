"""rdpm describe: parameters, FLOPs per image and memory per rank of a training's config."""

import json

from rich.console import Console
from rich.table import Table

from rdpm.jobs.arguments import parse
from rdpm.pipeline.costs.describe import describe_generator, describe_tokenizer
from rdpm.pipeline.foundation.config import config_job
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig

JOB = "describe"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    as_json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    if not arguments:
        raise ValueError("no config given; use: rdpm describe CONFIG.yaml [--json]")
    job = config_job(arguments[0])
    if job == "train-generator":
        facts = describe_generator(parse(TrainGeneratorConfig, job, arguments))
    elif job == "train-tokenizer":
        facts = describe_tokenizer(parse(TrainTokenizerConfig, job, arguments))
    else:
        raise ValueError(f"{arguments[0]} is a config for {job!r}; describe takes train-tokenizer or train-generator")
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(title=arguments[0], show_header=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            for stage, bytes_ in value.items():
                table.add_row(f"{name.replace('_', ' ')}, {stage}", f"{bytes_ / 2**30:.2f} GiB")
        else:
            shown = (
                f"{value / 2**20:,.1f} MiB" if "bytes" in name else f"{value:,}" if isinstance(value, int) else value
            )
            table.add_row(name.replace("_", " "), shown)
    Console().print(table)
