"""The files of a run: one short config per stage, the two parts of the pictures, and the road that names the stages."""

import textwrap
from dataclasses import dataclass

import yaml

from rdpm.pipeline.foundation import files
from rdpm.pipeline.projects.choice import Choice, own_share
from rdpm.pipeline.projects.road import RUN

PICTURES = "pictures"
TRAIN, HELD_OUT, UNUSABLE = "train.yaml", "held-out.yaml", "unusable.txt"
_KEYS = "held-out.txt"
_LINE = 112  # characters


@dataclass(frozen=True)
class Lengths:
    """How long the trainings of a run are, and how many pictures its stages draw."""

    tokenizer_steps: int
    """Optimizer steps of the tokenizer."""
    generator_steps: int
    """Optimizer steps of the generator."""
    adversarial: bool
    """Whether the tokenizer's training has a discriminator."""
    samples: int
    """Samples per class."""
    calibration_samples: int
    """Samples per class from which latents are matched."""


@dataclass(frozen=True)
class Facts:
    """What the files say besides the choice."""

    out: str
    """Folder of the run, an absolute path."""
    images: str
    """The pictures, an absolute path or URL."""
    classes: int
    """Number of classes."""
    training: int
    """Pictures to train on."""
    held_out: tuple[str, ...]
    """Keys of the held-out pictures."""
    unusable: tuple[str, ...]
    """Keys of pictures that are left out."""
    max_rejects: float
    """Share of the pictures that may turn out unusable."""
    perceptual: str
    """VGG16 for LPIPS, as in the tokenizer's loss, or none."""


def files_of(facts: Facts, choice: Choice, lengths: Lengths, notes: list[str]) -> dict[str, str]:
    """Text by name of every file of a run; run.yaml is the last. notes: what was planned, for its head."""
    stages = {
        "tokenizer.yaml": _tokenizer(facts, choice, lengths),
        "store.yaml": _store(facts),
        "generator.yaml": _generator(facts, choice, lengths),
        **({"calibration.yaml": _calibration(facts, choice, lengths)} if choice.boxes else {}),
        "samples.yaml": _samples(facts, choice, lengths),
        "evaluation.yaml": _evaluation(facts, choice),
        "report.yaml": _report(facts, choice),
    }
    jobs = {name: yaml.safe_load(text)["job"] for name, text in stages.items()}
    road = "".join(f"  - {job} {name}\n" for name, job in jobs.items())
    head = _comment(
        f"The road of this run: rdpm run {facts.out} goes it, rdpm status {facts.out} says where it stands."
    )
    return {
        **_parts(facts),
        **stages,
        RUN: f"{head}{''.join(map(_comment, notes))}stages:\n{road}",
    }


def _parts(facts: Facts) -> dict[str, str]:
    images = _text(facts.images)
    without = [_KEYS, UNUSABLE] if facts.unusable else [_KEYS]
    texts = {
        TRAIN: f"# Pictures to train on: all but those whose keys stand in {' and '.join(without)}.\n"
        f"images: {images}\nwithout: [{', '.join(without)}]\n",
        HELD_OUT: "# Pictures that no training sees; reconstructions and samples are measured with them.\n"
        f"images: {images}\nonly: {_KEYS}\n",
        _KEYS: "".join(f"{key}\n" for key in facts.held_out),
        **({UNUSABLE: "".join(f"{key}\n" for key in facts.unusable)} if facts.unusable else {}),
    }
    return {f"{PICTURES}/{name}": text for name, text in texts.items()}


def _tokenizer(facts: Facts, choice: Choice, lengths: Lengths) -> str:
    steps = lengths.tokenizer_steps
    every = _interval(steps, 5)
    loss = f"{{reconstruction: 4.0, quantization: 0.0625, codebook: 4.0, perceptual: {_text(facts.perceptual)}, "
    loss += f"adversarial: 0.1, discriminator_start: {steps * 3 // 5}}}" if lengths.adversarial else "adversarial: 0.0}"
    discriminator = f"discriminator: {{channels: {2 * choice.width}}}\n" if lengths.adversarial else ""
    return f"""\
{_comment(_about_tokenizer(facts, choice, lengths))}job: train-tokenizer
images: {_path(facts, PICTURES, TRAIN)}
validation: {_path(facts, PICTURES, HELD_OUT)}
out: {_path(facts, "tokenizer")}
model:
  image_size: {choice.size}
  autoencoder:
    {{in_channels: {choice.channels}, channels: {choice.width}, multipliers: {list(choice.multipliers)}, \
num_res_blocks: 1, attention_factors: [], groups: 8}}
  quantizer: {{codebook_size: {choice.codebook_size}, code_dim: {choice.code_dim}, bias: true}}
{discriminator}loss: {loss}
optimizer: {{lr: {choice.tokenizer_lr:.3g}, betas: [0.5, 0.9], weight_decay: 0.0, {_warmup(steps)}, decay: cosine}}
engine: {{precision: {choice.precision}, clip: 1.0}}
flips: true # false where left and right must not be exchanged, as in writing
batch: {choice.tokenizer_batch}
micro_batch: {choice.tokenizer_micro_batch}
steps: {steps}
ranks: {choice.ranks}
threads: 1
workers: 0
validate_every: {every}
validation_images: 256
checkpoint_every: {every}
"""


def _about_tokenizer(facts: Facts, choice: Choice, lengths: Lengths) -> str:
    kind = "colour" if choice.channels == 3 else "grey"
    perceptual = "without LPIPS" if facts.perceptual == "none" else "with LPIPS"
    adversarial = "an adversarial loss for its last two fifths" if lengths.adversarial else "no adversarial loss"
    return (
        f"The tokenizer: {kind} pictures of {choice.size} x {choice.size} pixels to ten maps of {choice.grid} x "
        f"{choice.grid} codes and back. It trains {perceptual}, and with {adversarial}."
    )


def _store(facts: Facts) -> str:
    return f"""\
# The codes of the pictures to train on, with latents, so that the generator sees fresh noise in every visit.
job: tokenize
images: {_path(facts, PICTURES, TRAIN)}
tokenizer: {_path(facts, "tokenizer")}
out: {_path(facts, "store")}
latents: true
shard_rows: {512 if facts.training < 8192 else 4096}
chunk_rows: {128 if facts.training < 8192 else 256}
batch: 64
max_rejects: {facts.max_rejects:.3g}
resources: {{object_store_mb: 512}}
"""


def _generator(facts: Facts, choice: Choice, lengths: Lengths) -> str:
    steps = lengths.generator_steps
    decay = min(0.9999, max(0.9, 1 - 15 / steps))
    return f"""\
# The generator: the codes of each step from noise, class, step and what is drawn so far. A larger depth learns more and
# takes longer. preconditioned is ours, not the paper's (docs/decisions.md).
job: train-generator
stores: [{_path(facts, "store")}]
tokenizer: {_path(facts, "tokenizer")}
out: {_path(facts, "generator")}
model:
  {{depth: {choice.depth}, num_classes: {facts.classes}, num_steps: 10, codebook_size: {choice.codebook_size}, \
code_dim: {choice.code_dim}, grid: {choice.grid}, preconditioned: true}}
optimizer: {{lr: {choice.generator_lr:.3g}, {_warmup(steps)}, decay: cosine}}
engine: {{precision: {choice.precision}, clip: 1.0}}
ema_decay: {decay:.4g}
noise: fresh
batch: {choice.generator_batch}
micro_batch: {choice.generator_micro_batch}
steps: {steps}
ranks: {choice.ranks}
threads: 1
checkpoint_every: {_interval(steps, 5)}
"""


_SAMPLER = "sampler: {guidance: 0.2, ramp: linear, temperature: 1.0} # more guidance: clearer classes, less variety"


def _calibration(facts: Facts, choice: Choice, lengths: Lengths) -> str:
    rows = min(lengths.calibration_samples, facts.training // facts.classes)
    return f"""\
# Matched latents, so that samples vary as much as pictures do. Ours, not the paper's (docs/decisions.md). The sampler
# must be that of samples.yaml.
job: calibrate
generator: {_path(facts, "generator")}
tokenizer: {_path(facts, "tokenizer")}
store: {_path(facts, "store")}
out: {_path(facts, "calibrated")}
{_SAMPLER}
per_class: {lengths.calibration_samples}
boxes: {choice.boxes}
own_share: {own_share(rows, choice.boxes**2 * choice.code_dim):g} # of its own covariance that a class gets
threads: {_threads(choice)}
"""


def _samples(facts: Facts, choice: Choice, lengths: Lengths) -> str:
    return f"""\
# New pictures, {lengths.samples} of each class: samples.npz, and with formats: [npz, png] also one file each.
job: sample
generator: {_path(facts, _drawn_by(choice))}
tokenizer: {_path(facts, "tokenizer")}
out: {_path(facts, "samples")}
{_SAMPLER}
per_class: {lengths.samples}
shard_rows: 250
batch: 50
resources: {{object_store_mb: 256}}
"""


def _evaluation(facts: Facts, choice: Choice) -> str:
    names = ["tokenizer", "store", "generator", *(["calibrated"] if choice.boxes else []), "samples"]
    return f"""\
# Metrics of reconstructions and samples, in the features of a small classifier that learns the classes of the pictures
# to train on. docs/evaluation.md says what each number means, and what Inception or DINOv2 need.
job: evaluate
train_images: {_path(facts, PICTURES, TRAIN)}
images: {_path(facts, PICTURES, HELD_OUT)}
tokenizer: {_path(facts, "tokenizer")}
samples: {_path(facts, "samples")}
out: {_path(facts, "metrics.json")}
perceptual: {_text(facts.perceptual)}
threads: {_threads(choice)}
timed: [{", ".join(_path(facts, name) for name in names)}]
"""


def _report(facts: Facts, choice: Choice) -> str:
    calibrated = f"calibrated: {_path(facts, 'calibrated')}\n" if choice.boxes else ""
    return f"""\
# The page about this run.
job: report
metrics: {_path(facts, "metrics.json")}
tokenizer: {_path(facts, "tokenizer")}
generator: {_path(facts, "generator")}
{calibrated}store: {_path(facts, "store")}
samples: {_path(facts, "samples")}
images: {_path(facts, PICTURES, HELD_OUT)}
train_images: {_path(facts, PICTURES, TRAIN)}
out: {_path(facts, "report.html")}
"""


def _drawn_by(choice: Choice) -> str:
    return "calibrated" if choice.boxes else "generator"


def _threads(choice: Choice) -> int:
    return max(2, min(choice.ranks, 8))


def _warmup(steps: int) -> str:
    return f"warmup_steps: {min(100, max(1, steps // 10))}"


def _interval(steps: int, parts: int) -> int:
    """About so many equal parts of the steps, in whole lines of the log."""
    return max(50, round(steps / parts / 50) * 50)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, _LINE, break_long_words=False))


def _path(facts: Facts, *names: str) -> str:
    return _text(files.join(facts.out, *names))


def _text(value: str) -> str:
    """A text as YAML, quoted where it must be."""
    return yaml.safe_dump([value], default_flow_style=True, width=1 << 30, allow_unicode=True).strip()[1:-1]
