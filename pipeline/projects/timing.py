"""A few real steps of both trainings, each in processes of its own, and what they say about every stage's time."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.evaluation.classifier import ClassifierConfig, train_classifier
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.secrets import masked
from rdpm.pipeline.images.worklist import Summary
from rdpm.pipeline.inference.batches import device_kind
from rdpm.pipeline.projects.choice import Choice
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import ShardRows

_WINDOW = 4  # steps per line of the log; those of the first line warm up
_CLASSIFIED = 4


@dataclass(frozen=True)
class Timed:
    """How a training runs on this machine."""

    step: float
    """Seconds per optimizer step."""
    waiting: float
    """Share of that in which the step waits for pictures."""
    start: float
    """Seconds from the command to the first step, and from the last to the end."""


@dataclass(frozen=True)
class Speed:
    """How fast the stages of a run are on this machine."""

    tokenizer: Timed
    """The tokenizer's training."""
    generator: Timed
    """The generator's."""
    encoding: float
    """Seconds in which one replica encodes a picture."""
    classifier: float
    """Seconds per step of the classifier that evaluation trains."""


def time_tokenizer(folder: str, name: str, windows: int, choice: Choice, *overrides: str) -> Timed:
    """Run the first steps of folder/tokenizer.yaml, and leave their export in folder/name."""
    config, out = files.join(folder, "tokenizer.yaml"), files.join(folder, name)
    return _timed("train-tokenizer", config, out, windows, choice.tokenizer_batch, ["validation=''", *overrides])


def time_the_rest(
    folder: str, name: str, windows: int, tokenizer: Timed, choice: Choice, classes: tuple[str, ...]
) -> Speed:
    """Encode random pictures with the tokenizer in folder/name, and run the first steps of folder/generator.yaml."""
    store, tokens = files.join(folder, "timed-store"), files.join(folder, name)
    encoding = _encode(store, tokens, choice, classes)
    overrides = [f"stores=[{json.dumps(store)}]", f"tokenizer={json.dumps(tokens)}"]
    config, out = files.join(folder, "generator.yaml"), files.join(folder, "timed-generator")
    generator = _timed("train-generator", config, out, windows, choice.generator_batch, overrides)
    return Speed(tokenizer, generator, encoding, _classify(choice))


def _timed(job: str, config: str, out: str, windows: int, batch: int, overrides: Sequence[str]) -> Timed:
    steps = windows * _WINDOW
    lengths = [f"steps={steps}", f"log_every={_WINDOW}", f"validate_every={steps}", f"checkpoint_every={steps}"]
    command = [sys.executable, "-m", "rdpm", job, config, f"out={json.dumps(out)}", *lengths, *overrides]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        said = " ".join((done.stderr.strip().splitlines() or ["nothing was said"])[-1].split())
        raise ValueError(f"the first steps of {job} failed: {masked(said)}")
    lines = [json.loads(line) for line in files.read_bytes(files.join(out, "log.jsonl")).decode().splitlines()]
    step = float(np.mean([batch / line["images_per_second"] for line in lines[1:]]))
    waiting = float(np.mean([line["data_wait"] for line in lines[1:]]))
    return Timed(step, waiting, max(0.0, seconds - steps * step))


def _encode(store: str, tokenizer: str, choice: Choice, classes: tuple[str, ...]) -> float:
    """Write a store of random pictures without Ray. Returns the seconds per picture."""
    count, card = 2 * choice.generator_batch, read_card(tokenizer, "tokenizer")
    config = TokenizeConfig(
        images="", tokenizer=tokenizer, out=store, latents=True, shard_rows=count, chunk_rows=count, batch=64
    )
    plan = start_store(store, token_plan(config, Summary("timing", classes, count), card, device_kind("auto")))
    rng = np.random.default_rng(0)
    names = np.array([f"{number:09d}" for number in range(count)], object)
    rows = ShardRows(
        pixels=rng.integers(0, 256, (count, choice.size, choice.size, choice.channels), np.uint8),
        key=names,
        label=rng.integers(0, len(classes), count, np.int32),
        view=np.full(count, "center", object),
        width=np.full(count, choice.size, np.int32),
        height=np.full(count, choice.size, np.int32),
        source_digest=np.full(count, "", object),
        reason=np.full(count, "", object),
    )
    encoder = ShardEncoder(tokenizer, store, plan, threads=1)
    encoder.rehearse(rows)
    started = time.monotonic()
    encoder(0, rows)
    seconds = time.monotonic() - started
    publish(store, plan)
    return seconds / count


def _classify(choice: Choice) -> float:
    """Seconds per step of the classifier, on random pictures."""
    shape = (64, choice.size, choice.size, choice.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    config = ClassifierConfig(num_classes=2, channels=choice.channels, steps=_CLASSIFIED)
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        train_classifier(config, pixels, np.arange(64) % 2, 0)
    return (time.monotonic() - started) / _CLASSIFIED
