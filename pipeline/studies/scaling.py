"""How quality grows with training: long runs at a constant rate, of several sizes, read at their checkpoints.

A power law a C^-b is fitted to the pixel Fréchet ratio - 1, to the spread that is missing and to the held-out loss,
over the training FLOPs C of each run and over the best of all sizes. The loss has a floor that is not known, so its
exponent describes the measured range only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rdpm.models.fields import EXECUTION
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB as EVALUATE
from rdpm.pipeline.evaluation.stage import run as evaluate
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.names import slug
from rdpm.pipeline.sampling.plan import SampleConfig, SamplerSetting
from rdpm.pipeline.sampling.stage import JOB as SAMPLE
from rdpm.pipeline.sampling.stage import run_sets
from rdpm.pipeline.studies.compare_plan import STAGES, flops_per_step
from rdpm.pipeline.studies.outcome import check_distinct, check_folders, run_study
from rdpm.pipeline.studies.scaling_table import Reading, plot, table
from rdpm.pipeline.studies.trainings import train_apart
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import JOB as TOKENIZE
from rdpm.pipeline.tokenizing.stage import run as tokenize
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.export import export_checkpoint
from rdpm.pipeline.training.generator.stage import JOB as TRAIN_GENERATOR
from rdpm.pipeline.training.generator.stage import run as train_generator
from rdpm.pipeline.training.log import LOG, read_log
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.cards import CARD

JOB = "scaling"
TABLE, PLOT, READINGS = "scaling.md", "scaling.png", "scaling.json"


@dataclass(frozen=True)
class Family:
    """A method in several sizes."""

    tokenizer: str
    """Export of its tokenizer."""
    store: str
    """Token store of the training images."""
    generator: tuple[str, ...] = ()
    """Settings of `rdpm train-generator` that differ from the study's, as key=value."""
    sampler: SamplerSetting = field(default_factory=SamplerConfig)
    """Sampler settings."""
    evaluations: int = 0
    """Forward passes per image of a rival that has a choice; 0 for its usual number."""


@dataclass(frozen=True)
class ScalingConfig:
    """Methods in several sizes, each trained once at a constant rate and read at checkpoints."""

    images: str = field(metadata=EXECUTION)
    """Images that were trained on."""
    validation: str = field(metadata=EXECUTION)
    """Held-out images."""
    out: str = field(metadata=EXECUTION)
    """Folder of the trainings, the samples, the table and the plot."""
    store: str
    """Config of `rdpm tokenize`, for stores of the held-out images."""
    generator: str
    """Config of `rdpm train-generator` that every training starts from."""
    samples: str
    """Config of `rdpm sample`."""
    evaluation: str
    """Config of `rdpm evaluate`."""
    families: dict[str, Family] = field(default_factory=dict)
    """Methods by name."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Sizes, by depth."""
    teraflops: float = 60.0
    """Training FLOPs of each run, in 10^12."""
    readings: int = 5
    """Checkpoints that are read: the last one, and each at half the steps of the next."""
    per_class: int = 100
    """Samples per class and reading."""
    parallel: int = field(default=2, metadata=EXECUTION)
    """How many trainings run at the same time on this machine."""

    def __post_init__(self) -> None:
        if not self.families or not self.depths:
            raise ValueError("families or depths is empty; give one or more of both")
        check_distinct("depths", self.depths)
        check_folders("families", self.families)
        for name in ("readings", "per_class", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.teraflops <= 0:
            raise ValueError(f"teraflops is {self.teraflops}; use more than 0")


@dataclass(frozen=True)
class Run:
    """One training, with what is read of it."""

    family: str
    """Name of the method."""
    training: TrainGeneratorConfig
    """The training."""
    steps: tuple[int, ...]
    """Steps of the checkpoints that are read."""


def run(config: ScalingConfig) -> None:
    """Make config.out, unless its record says that it is finished, and print the table. Raises ValueError."""
    runs = plan_runs(config)

    def study() -> tuple[Sequence[bytes], dict[str, Any]]:
        readings = read_runs(config, runs)
        contents = table(readings).encode(), plot(readings), canonical_json([asdict(reading) for reading in readings])
        return contents, {"readings": len(readings)}

    stages = {name: STAGES[name] for name in ("store", "generator", "samples", "evaluation")}
    run_study(JOB, config, (TABLE, PLOT, READINGS), study, stages, grows="families")


def plan_runs(config: ScalingConfig) -> list[Run]:
    """The trainings: every family in every size, with the steps that the FLOPs allow.

    Raises ValueError for settings that a training refuses.
    """
    runs = []
    for name, family in config.families.items():
        for depth in config.depths:
            settings = [
                f"stores=[{family.store}]",
                f"tokenizer={family.tokenizer}",
                f"validation=[{_held_out(config, name)}]",
                *family.generator,
                f"model.depth={depth}",
                "optimizer.decay=constant",
                "ranks=1",
                "threads=1",
                f"out={files.join(config.out, f'{slug(name)}-{depth}')}",
            ]
            training = load_config(TrainGeneratorConfig, TRAIN_GENERATOR, config.generator, settings)
            parts = 2 ** (config.readings - 1)
            every = max(1, round(config.teraflops * 1e12 / flops_per_step(training) / parts))
            runs.append(
                Run(
                    name,
                    replace(
                        training, steps=parts * every, checkpoint_every=every, validate_every=every,
                        log_every=every, keep_checkpoints=parts,
                    ),
                    tuple(every * 2**number for number in range(config.readings)),
                )
            )  # fmt: skip
    return runs


def _held_out(config: ScalingConfig, family: str) -> str:
    return files.join(config.out, f"{slug(family)}.held-out")


def read_runs(config: ScalingConfig, runs: Sequence[Run]) -> list[Reading]:
    """Train, draw and measure everything that is not there yet."""
    for name, family in config.families.items():
        paths = [f"images={config.validation}", f"tokenizer={family.tokenizer}", "latents=true"]
        tokenize(load_config(TokenizeConfig, TOKENIZE, config.store, [*paths, f"out={_held_out(config, name)}"]))
    train_apart("scaling", train_generator, [run.training for run in runs], config.parallel)
    sets = {(run.training.out, step): _sample_set(config, run, step) for run in runs for step in run.steps}
    for run in runs:
        for step in run.steps:
            folder = sets[run.training.out, step].generator
            if not files.exists(files.join(folder, CARD)):
                export_checkpoint(run.training, step, folder)
    run_sets(list(sets.values()))
    return [
        _reading(config, run, number, sets[run.training.out, step])
        for run in runs
        for number, step in enumerate(run.steps)
    ]


def _sample_set(config: ScalingConfig, run: Run, step: int) -> SampleConfig:
    family, base = config.families[run.family], load_config(SampleConfig, SAMPLE, config.samples, [])
    return replace(
        base, generator=f"{run.training.out}.at-{step}", tokenizer=family.tokenizer,
        out=f"{run.training.out}.samples-{step}", sampler=family.sampler, evaluations=family.evaluations,
        per_class=config.per_class, formats=(),
    )  # fmt: skip


def _reading(config: ScalingConfig, run: Run, number: int, drawn: SampleConfig) -> Reading:
    step, out = run.steps[number], f"{drawn.out}.metrics.json"
    inputs = [f"samples={drawn.out}", f"images={config.validation}", f"train_images={config.images}", f"out={out}"]
    evaluate(
        load_config(EvaluateConfig, EVALUATE, config.evaluation, [*inputs, f"tokenizer={drawn.tokenizer}", "timed=[]"])
    )
    metrics = files.read_json(out)["generator"]
    losses = {line["step"]: line.get("validation_loss") for line in read_log(files.join(run.training.out, LOG))}
    measured = {
        "pixel_frechet_ratio": metrics["pixel_frechet_ratio"],
        "excess_ratio": metrics["pixel_frechet_ratio"] - 1,
        "spread_8": metrics["spread_8"],
        "missing_spread": 1 - metrics["spread_8"],
        "loss": losses[step],
    }
    return Reading(run.family, run.training.model.depth, number, step, flops_per_step(run.training) * step, measured)
