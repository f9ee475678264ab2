"""The lengths of the trainings that fill the given hours, and the time that each stage will take."""

import math
from dataclasses import dataclass

from rdpm.pipeline.projects.choice import Choice
from rdpm.pipeline.projects.folder import Lengths
from rdpm.pipeline.projects.timing import Speed

_USED = 0.9  # share of the hours that is planned; the rest is for what a busy machine adds
_TOKENIZER = 0.45  # the tokenizer's share of the time that trainings have
_FEWEST = 200  # optimizer steps, below which a training is not worth its name
_ROUND = 50  # lengths are whole lines of the log
_TOKENIZER_VISITS, _GENERATOR_VISITS = 200, 400  # how often a training sees each picture at most
_MOST_FEW = 2000  # steps that a training may have however few the pictures are
ADVERSARIAL_STEPS = 2500  # of the tokenizer, from which on it also gets a discriminator
_CLASSIFIER_STEPS = 500
_RAY = 15.0  # seconds in which a Ray of our own and its workers start, besides what a command takes
_FORWARD = 1 / 3  # of the time of a training step


@dataclass(frozen=True)
class Plan:
    """How long the trainings are, and how long everything takes."""

    lengths: Lengths
    """Steps and numbers of samples."""
    seconds: dict[str, float]
    """Planned seconds by job, in the order of the road."""
    capped: bool
    """Whether there are too few pictures for trainings that fill the hours."""


def sample_counts(choice: Choice, classes: int, held_out: int) -> tuple[int, int]:
    """Samples per class, and samples per class from which latents are matched.

    A draw of as many samples as there are held-out pictures must be possible, and a covariance from four samples per
    value, besides one per class that its mean takes.
    """
    samples = max(math.ceil(held_out / classes), min(100, math.ceil(1000 / classes)), 4)
    values = choice.boxes**2 * choice.code_dim
    return samples, max(min(200, math.ceil(1000 / classes)), 1 + math.ceil(4 * values / classes))


def plan(
    hours: float, speed: Speed, choice: Choice, pictures: int, held_out: int, classes: int, adversarial: bool
) -> Plan:
    """The plan for so many hours. pictures: to train on. adversarial: whether the timed tokenizer had a discriminator.

    Raises ValueError when the hours do not hold trainings of _FEWEST steps.
    """
    samples, matched = sample_counts(choice, classes, held_out)
    fixed = _fixed(speed, choice, pictures, held_out, samples * classes, matched * classes)
    least = _FEWEST * (speed.tokenizer.step + speed.generator.step)
    budget = _USED * hours * 3600 - sum(fixed.values())
    if budget < least:
        wanted = (least + sum(fixed.values())) / _USED / 3600
        raise ValueError(
            f"hours is {hours:g}, but on this machine the stages besides the trainings take "
            f"{sum(fixed.values()) / 60:.1f} minutes, and trainings of {_FEWEST} steps {least / 60:.1f}; use "
            f"hours={math.ceil(wanted * 100) / 100:g} or more"
        )
    most = max(_MOST_FEW, _TOKENIZER_VISITS * pictures // choice.tokenizer_batch)
    possible = max(_FEWEST * speed.tokenizer.step, min(_TOKENIZER * budget, budget - _FEWEST * speed.generator.step))
    tokenizer = min(most, _whole(possible / speed.tokenizer.step))
    most = max(_MOST_FEW, _GENERATOR_VISITS * pictures // choice.generator_batch)
    left = (budget - tokenizer * speed.tokenizer.step) / speed.generator.step
    generator = min(most, _whole(left))
    fixed["train-tokenizer"] += tokenizer * speed.tokenizer.step
    fixed["train-generator"] += generator * speed.generator.step
    return Plan(Lengths(tokenizer, generator, adversarial, samples, matched), fixed, generator == most < _whole(left))


def _whole(steps: float) -> int:
    return max(_FEWEST, int(steps) // _ROUND * _ROUND)


def _fixed(speed: Speed, choice: Choice, pictures: int, held_out: int, samples: int, matched: int) -> dict[str, float]:
    """Seconds of every job without the steps of trainings."""
    start = min(
        speed.tokenizer.start, speed.generator.start
    )  # the first start on a machine may have compiled something
    forward = _FORWARD * speed.generator.step / choice.generator_batch
    drawing = 2 * 10 * forward  # per sample: ten steps, with and without the label, on all cores
    seconds = {
        "train-tokenizer": start + 5 * 2 * min(256, held_out) * speed.encoding,
        "tokenize": start + _RAY + pictures * speed.encoding / choice.ranks,
        "train-generator": start,
        "calibrate": start + matched * drawing + 10.0,
        "sample": start + _RAY + samples * (drawing + speed.encoding / choice.ranks),
        "evaluate": start
        + _CLASSIFIER_STEPS * speed.classifier
        + (pictures + samples + held_out) * speed.classifier / 64,
        "report": start + 20.0,
    }
    return seconds if choice.boxes else {job: value for job, value in seconds.items() if job != "calibrate"}
