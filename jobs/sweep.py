"""rdpm sweep: sampler settings and models, each sampled and measured; a table, a plot and the best settings."""

from dataclasses import replace

from rdpm.jobs import evaluate, sample
from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config, save_config
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.inference.rdpm import open_cards
from rdpm.pipeline.sampling.stage import SampleConfig
from rdpm.pipeline.studies.sweep import SweepConfig, best, collect, plan_cells, plot, table

JOB = "sweep"
Config = SweepConfig
_MAKES = ("table.md", "sweep.json", "pareto.png", "best.yaml")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    config = parse(Config, JOB, arguments)
    cells = plan_cells(config)
    digests = [[card.digest for card in open_cards(c.samples.generator, c.samples.tokenizer)] for c in cells]
    measured = settings_of(cells[0].evaluation, "samples", "tokenizer", "out")
    record = begin(JOB, config.out, settings_of(config, "out", digests=digests, measured=measured), _MAKES)
    if not record.finished:
        sample.run([cell.samples for cell in cells])
        for cell in cells:
            say(f"sweep: {cell.name}")
            evaluate.run(cell.evaluation)
        rows = collect(cells)
        chosen = best(cells, rows)
        files.write_bytes(files.join(config.out, "table.md"), table(config, rows).encode())
        files.write_bytes(files.join(config.out, "pareto.png"), plot(rows))
        files.write_json(files.join(config.out, "sweep.json"), rows)
        whole = load_config(SampleConfig, sample.JOB, config.samples, [])
        ready = replace(chosen.samples, out=f"{whole.out}-best", per_class=whole.per_class, formats=whole.formats)
        save_config(files.join(config.out, "best.yaml"), sample.JOB, ready)
        record.finish({"best": chosen.name, "cells": len(cells)})
    say(files.read_bytes(files.join(config.out, "table.md")).decode())
    say(f"sweep: {config.out}/table.md, pareto.png, sweep.json; best: rdpm sample {config.out}/best.yaml")
