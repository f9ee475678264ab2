"""RDPM beside its rivals: codebooks, decoders, generators and sampler settings of each, and one table of what came out.

Every stage has its own record, so a comparison that was stopped continues where it was, and does nothing twice.
"""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from rdpm.models.flops import generator_parameters
from rdpm.models.noise import child_seeds
from rdpm.pipeline.evaluation.splits import load_split
from rdpm.pipeline.evaluation.stage import run as evaluate
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.names import safe_name
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.inference.rivals import load_sampler
from rdpm.pipeline.sampling.calibration import run as calibrate
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sampling.stage import run_sets
from rdpm.pipeline.studies.apart import C
from rdpm.pipeline.studies.compare_plan import (
    STAGES,
    CompareConfig,
    Entry,
    calibration,
    choice_set,
    encoder_training,
    evaluation_of,
    plan,
    reported_set,
)
from rdpm.pipeline.studies.compare_table import CompareRow, plot, table
from rdpm.pipeline.studies.outcome import run_study
from rdpm.pipeline.studies.trainings import train_apart
from rdpm.pipeline.tokenizing.stage import run as tokenize
from rdpm.pipeline.training.generator.stage import run as train_generator
from rdpm.pipeline.training.tokenizer.stage import run as train_tokenizer
from rdpm.storage_schemas.canonical import canonical_json

JOB = "compare"
TABLE, PLOT, ROWS = "comparison.md", "comparison.png", "comparison.json"
_CHOICE = "pixel_frechet_distance"  # to the slice of the training images; the lowest mean over seeds wins
_REPEATS = 3


def run(config: CompareConfig) -> None:
    """Make config.out, unless its record says that it is finished, and print the table. Raises ValueError."""
    entries = plan(config)

    def study() -> tuple[Sequence[bytes], dict[str, Any]]:
        rows = compare(config, entries)
        contents = table(rows).encode(), plot(rows), canonical_json([asdict(row) for row in rows])
        return contents, {"methods": len(rows), "seeds": list(config.seeds)}

    run_study(JOB, config, (TABLE, PLOT, ROWS), study, STAGES, grows="methods")


def compare(config: CompareConfig, entries: Sequence[Entry]) -> list[CompareRow]:
    """Train, draw and measure everything that is not there yet. Raises ValueError as the stages."""
    _check_count(config)
    train_apart("compare: encoder", train_tokenizer, [encoder_training(config)], config.parallel)
    tokenizers = _once([entry.tokenizer for entry in entries])
    train_apart("compare: codebooks and decoders", train_tokenizer, tokenizers, config.parallel)
    for store in _once([entry.store for entry in entries]):
        tokenize(store)
    generators = _once([training for entry in entries for training in entry.generators.values()])
    train_apart("compare: generators", train_generator, generators, config.parallel)
    for entry in entries:
        for sampler in entry.method.samplers:
            for seed in config.seeds:
                if given := calibration(config, entry, seed, sampler):
                    calibrate(given)
    chosen = _choose(config, entries)
    finals = {
        (entry.name, seed): reported_set(config, entry, seed, chosen[entry.name])
        for entry in entries
        for seed in config.seeds
    }
    run_sets(list(finals.values()))
    return [_row(config, entry, chosen[entry.name], finals) for entry in entries]


def _check_count(config: CompareConfig) -> None:
    """Raises ValueError, before any training, where a draw as large as the held-out set would lack samples."""
    held_out = list_images(config.validation)
    if len(held_out) > config.per_class * len(held_out.classes):
        raise ValueError(
            f"per_class is {config.per_class}, which makes fewer samples than validation {config.validation!r} has "
            f"images, {len(held_out)}; use {math.ceil(len(held_out) / len(held_out.classes))} or more"
        )


def _once(configs: Sequence[C]) -> list[C]:
    """The configs without those that write to the same place as an earlier one."""
    return list({getattr(config, "out"): config for config in reversed(configs)}.values())[::-1]  # noqa: B009


def _choose(config: CompareConfig, entries: Sequence[Entry]) -> dict[str, str]:
    """The name of each method's best sampler setting, by sets that are compared with a slice of the training images."""
    out = _write_slice(config, entries[0])
    sets = {}
    for entry in entries:
        for name in entry.method.samplers:
            for seed in config.seeds:
                drawn = choice_set(config, entry, seed, name)
                measured = evaluation_of(config, drawn, reference=out)
                sets[entry.name, name, seed] = drawn, measured
    run_sets([drawn for drawn, _ in sets.values()])
    found = {}
    for key, (_, measured) in sets.items():
        evaluate(measured)
        found[key] = files.read_json(measured.out)["generator"][_CHOICE]

    def mean(method: str, sampler: str) -> float:
        return float(np.mean([found[method, sampler, seed] for seed in config.seeds]))

    return {e.name: min(e.method.samplers, key=lambda name, e=e: mean(e.name, name)) for e in entries}  # type: ignore[misc]


def _write_slice(config: CompareConfig, entry: Entry) -> str:
    """A folder of class folders with training images, evenly spread over all of them."""
    out = files.join(config.out, "slice")
    if not files.exists(out):
        split = load_split(config.images, entry.tokenizer.model, config.slice_images)
        with files.atomic_folder(out) as folder:
            for number, (pixels, label) in enumerate(zip(split.pixels, split.labels, strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
                name = safe_name(split.classes[int(label)])
                files.write_bytes(files.join(folder, name, f"{number:08d}.png"), buffer.getvalue())
    return out


def _row(config: CompareConfig, entry: Entry, chosen: str, finals: dict) -> CompareRow:
    """Measure one method."""
    measured = []
    for seed in config.seeds:
        evaluation = evaluation_of(config, finals[entry.name, seed], images=config.validation)
        evaluate(evaluation)
        measured.append(files.read_json(evaluation.out))
    training = entry.generators[config.seeds[0]]
    sampler = entry.method.samplers[chosen]
    return CompareRow(
        name=entry.name,
        parameters=generator_parameters(training.model),
        steps=training.steps,
        training_flops=entry.training_flops,
        tokenizer_steps=entry.tokenizer.steps,
        reconstruction=measured[0]["tokenizer"],
        sampler=chosen,
        forwards=sampler.forwards(entry.evaluations),
        seconds_per_image=_seconds(finals[entry.name, config.seeds[0]]),
        seeds=[metrics["generator"] for metrics in measured],
    )


def _seconds(drawn: SampleConfig) -> float:
    """Seconds that one core takes per image, the shortest of three calls of one batch after a first one.

    They are measured anew for every table, so those of one table are of one machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_sampler(drawn.generator, drawn.tokenizer, batch=drawn.batch, evaluations=drawn.evaluations)
        labels = np.arange(drawn.batch) % len(load_tokenizer(drawn.tokenizer)[1].classes)
        seeds = child_seeds(0, torch.arange(drawn.batch)).numpy()
        spent = []
        for _ in range(1 + _REPEATS):
            began = time.perf_counter()
            model.draw(labels, seeds, [drawn.sampler] * drawn.batch)
            spent.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(spent[1:]) / drawn.batch
