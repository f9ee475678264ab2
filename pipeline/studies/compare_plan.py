"""What a comparison runs: its settings, and the configs of the stages that follow from them."""

from dataclasses import dataclass, field, replace

from rdpm.models.fields import EXECUTION
from rdpm.models.flops import generator_parameters, generator_training_flops
from rdpm.models.methods import evaluations_of
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.evaluation.stage import JOB as EVALUATE
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.names import slug
from rdpm.pipeline.sampling.calibration import JOB as CALIBRATE
from rdpm.pipeline.sampling.calibration import CalibrateConfig
from rdpm.pipeline.sampling.plan import SampleConfig, SamplerSetting, check_drawing
from rdpm.pipeline.sampling.stage import JOB as SAMPLE
from rdpm.pipeline.studies.outcome import check_distinct, check_folders
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import JOB as TOKENIZE
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.stage import JOB as TRAIN_GENERATOR
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import JOB as TRAIN_TOKENIZER

STAGES = {  # fields of a comparison that name a config: its class and job
    "tokenizer": (TrainTokenizerConfig, TRAIN_TOKENIZER),
    "store": (TokenizeConfig, TOKENIZE),
    "generator": (TrainGeneratorConfig, TRAIN_GENERATOR),
    "samples": (SampleConfig, SAMPLE),
    "evaluation": (EvaluateConfig, EVALUATE),
}
_TOLERANCE = 0.02  # of parameters
_REPORTED = 1000  # added to the seeds of samples that are reported


@dataclass(frozen=True)
class MethodConfig:
    """One row of the comparison."""

    tokenizer: tuple[str, ...] = ()
    """Settings of `rdpm train-tokenizer` that differ from the comparison's, as key=value."""
    generator: tuple[str, ...] = ()
    """Settings of `rdpm train-generator` that differ from the comparison's, as key=value."""
    generator_config: str = ""
    """Config of `rdpm train-generator` to start from instead of the comparison's; empty for that."""
    samplers: dict[str, SamplerSetting] = field(default_factory=lambda: {"plain": SamplerConfig()})
    """Sampler settings by name, of which one is chosen; every method has the same number of them."""
    evaluations: int = 0
    """Forward passes per image of a rival that has a choice; 0 for its usual number."""
    calibration: str = ""
    """Config of `rdpm calibrate`, which is run for each sampler setting; empty for none."""


@dataclass(frozen=True)
class CompareConfig:
    """RDPM beside its rivals, at equal parameters and equal training FLOPs of the generator."""

    images: str = field(metadata=EXECUTION)
    """Images to train on; a slice of them chooses sampler settings."""
    validation: str = field(metadata=EXECUTION)
    """Held-out images, on which everything is reported."""
    out: str = field(metadata=EXECUTION)
    """Folder of the trainings, the samples, the table and the plot."""
    tokenizer: str
    """Config of `rdpm train-tokenizer`: of the encoder that all share, and of every codebook and decoder after it."""
    store: str
    """Config of `rdpm tokenize`."""
    generator: str
    """Config of `rdpm train-generator`. Its steps are those of the first method, the others get as many FLOPs."""
    samples: str
    """Config of `rdpm sample`."""
    evaluation: str
    """Config of `rdpm evaluate`."""
    methods: dict[str, MethodConfig] = field(default_factory=dict)
    """Methods by name. The first one sets parameters and FLOPs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every generator is trained and sampled once per seed."""
    tokenizer_steps: int = 1000
    """Steps of the training of each codebook and decoder, after the encoder's."""
    slice_images: int = 300
    """Training images that choose sampler settings."""
    choose_per_class: int = 30
    """Samples per class, seed and sampler setting to choose by."""
    per_class: int = 100
    """Samples per class and seed to report on."""
    parallel: int = field(default=2, metadata=EXECUTION)
    """How many trainings run at the same time on this machine."""

    def __post_init__(self) -> None:
        if not self.seeds or not self.methods:
            raise ValueError(
                f"seeds is {list(self.seeds)} and methods has {len(self.methods)}; give one or more of both"
            )
        check_distinct("seeds", self.seeds)
        numbers = {"tokenizer_steps": 1, "slice_images": 2, "choose_per_class": 1, "per_class": 1, "parallel": 1}
        for name, least in numbers.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")
        counts = {name: len(method.samplers) for name, method in self.methods.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise ValueError(f"samplers differ in number ({counts}); give every method the same number, 1 or more")
        check_folders("methods", self.methods)


@dataclass(frozen=True)
class Entry:
    """Everything that is run for one method. Methods with the same trainings share them."""

    name: str
    """Name of the row."""
    method: MethodConfig
    """Its settings."""
    tokenizer: TrainTokenizerConfig
    """The training of its codebook and decoder."""
    store: TokenizeConfig
    """Its token store."""
    generators: dict[int, TrainGeneratorConfig]
    """The trainings of its generator by seed."""

    @property
    def training_flops(self) -> int:
        """FLOPs of the training of one generator."""
        training = next(iter(self.generators.values()))
        return flops_per_step(training) * training.steps

    @property
    def evaluations(self) -> int:
        """Steps of the sampler."""
        return evaluations_of(next(iter(self.generators.values())).model, self.method.evaluations)


def flops_per_step(training: TrainGeneratorConfig) -> int:
    """FLOPs of one optimizer step."""
    return training.batch * training.steps_per_image * generator_training_flops(training.model)


def encoder_training(config: CompareConfig) -> TrainTokenizerConfig:
    """The training of the tokenizer whose encoder all methods share."""
    return _tokenizer(config, "encoder", [])


def _tokenizer(config: CompareConfig, name: str, changes: list[str]) -> TrainTokenizerConfig:
    settings = [f"images={config.images}", "validation=''", "ranks=1", "threads=1", *changes]
    settings.append(f"out={files.join(config.out, name)}")
    return load_config(TrainTokenizerConfig, TRAIN_TOKENIZER, config.tokenizer, settings)


def plan(config: CompareConfig) -> list[Entry]:
    """Every method of a comparison.

    Raises ValueError for settings that a stage refuses whatever the trainings give, and when a generator's parameters
    differ by more than 2% from those of the first one.
    """
    encoder = encoder_training(config)
    entries: list[Entry] = []
    folders: dict[tuple, str] = {}  # of trainings that are there already
    for name, method in config.methods.items():
        own = folders.setdefault(method.tokenizer, f"{slug(name)}.tokenizer")
        steps = [f"steps={config.tokenizer_steps}", *method.tokenizer, f"encoder={encoder.out}"]
        tokenizer = _tokenizer(config, own, steps)
        paths = [f"images={config.images}", f"tokenizer={tokenizer.out}", "latents=true"]
        paths.append(f"out={files.join(config.out, own.replace('.tokenizer', '.store'))}")
        store = load_config(TokenizeConfig, TOKENIZE, config.store, paths)
        key = method.tokenizer, method.generator, method.generator_config
        folder = folders.setdefault(key, f"{slug(name)}.generator")
        generators = {seed: _generator(config, method, folder, store, seed) for seed in config.seeds}
        if entries:
            generators = _at_equal_cost(entries[0], name, generators)
        entries.append(Entry(name, method, tokenizer, store, generators))
        _check_later_stages(config, entries[-1])
    return entries


def _check_later_stages(config: CompareConfig, entry: Entry) -> None:
    """Raises ValueError, before any training, for settings that sampling, calibration or evaluation would refuse."""
    space = entry.generators[config.seeds[0]].model
    for name, sampler in entry.method.samplers.items():
        try:
            check_drawing(space, sampler, entry.method.evaluations)
        except ValueError as error:
            raise ValueError(f"sampler setting {name!r} of method {entry.name!r}: {error}") from None
        calibration(config, entry, config.seeds[0], name)
        drawn = choice_set(config, entry, config.seeds[0], name)
        if evaluation_of(config, drawn, reference=config.images).draws < 1:
            raise ValueError(f"draws of {config.evaluation} is 0, and the table holds means over draws; use 1 or more")


def _generator(
    config: CompareConfig, method: MethodConfig, folder: str, store: TokenizeConfig, seed: int
) -> TrainGeneratorConfig:
    settings = [
        f"stores=[{store.out}]",
        f"tokenizer={store.tokenizer}",
        "ranks=1",
        "threads=1",
        *method.generator,
        f"out={files.join(config.out, f'{folder}-{seed}')}",
        f"seed={seed}",
    ]
    path = method.generator_config or config.generator
    return load_config(TrainGeneratorConfig, TRAIN_GENERATOR, path, settings)


def _at_equal_cost(
    first: Entry, name: str, generators: dict[int, TrainGeneratorConfig]
) -> dict[int, TrainGeneratorConfig]:
    """The trainings with so many steps that they take the FLOPs of the first method's. Raises ValueError."""
    ours, theirs = (next(iter(g.values())) for g in (first.generators, generators))
    sizes = [generator_parameters(training.model) for training in (ours, theirs)]
    if abs(sizes[1] / sizes[0] - 1) > _TOLERANCE:
        raise ValueError(
            f"method {name!r} has {sizes[1]:,} parameters and {first.name!r} {sizes[0]:,}, more than 2% apart; set "
            "model.hidden among its generator settings"
        )
    steps = round(first.training_flops / flops_per_step(theirs))
    return {seed: replace(training, steps=steps) for seed, training in generators.items()}


def calibration(config: CompareConfig, entry: Entry, seed: int, sampler: str) -> CalibrateConfig | None:
    """How a generator is calibrated for a sampler setting; None where the method has no calibration."""
    if not entry.method.calibration:
        return None
    number = list(entry.method.samplers).index(sampler)
    paths = [f"generator={entry.generators[seed].out}", f"tokenizer={entry.tokenizer.out}", f"store={entry.store.out}"]
    out = files.join(config.out, f"{slug(entry.name)}.calibrated-{number}-{seed}")
    base = load_config(CalibrateConfig, CALIBRATE, entry.method.calibration, [*paths, f"out={out}"])
    return replace(base, sampler=entry.method.samplers[sampler], evaluations=entry.method.evaluations)


def choice_set(config: CompareConfig, entry: Entry, seed: int, sampler: str) -> SampleConfig:
    """The samples of the generator of one seed by which this sampler setting is judged."""
    number = list(entry.method.samplers).index(sampler)
    drawn = _samples(config, entry, seed, sampler, f"{slug(entry.name)}.choice-{number}-{seed}")
    return replace(drawn, per_class=config.choose_per_class, seed=seed)


def reported_set(config: CompareConfig, entry: Entry, seed: int, sampler: str) -> SampleConfig:
    """The samples of the generator of one seed that are reported.

    Their noise is other than that of the samples that chose the setting, or that latents were matched with.
    """
    drawn = _samples(config, entry, seed, sampler, f"{slug(entry.name)}.samples-{seed}")
    return replace(drawn, per_class=config.per_class, seed=_REPORTED + seed)


def _samples(config: CompareConfig, entry: Entry, seed: int, sampler: str, out: str) -> SampleConfig:
    base = load_config(SampleConfig, SAMPLE, config.samples, [])
    calibrated = calibration(config, entry, seed, sampler)
    generator = calibrated.out if calibrated else entry.generators[seed].out
    return replace(
        base, generator=generator, tokenizer=entry.tokenizer.out, out=files.join(config.out, out),
        sampler=entry.method.samplers[sampler], evaluations=entry.method.evaluations, formats=(),
    )  # fmt: skip


def evaluation_of(config: CompareConfig, drawn: SampleConfig, **inputs: str) -> EvaluateConfig:
    """How samples are measured, given the paths of what they are compared with."""
    paths = {"images": "''", "reference": "''", "train_images": config.images, **inputs}
    paths |= {"samples": drawn.out, "tokenizer": drawn.tokenizer, "out": f"{drawn.out}.metrics.json", "timed": "[]"}
    settings = [f"{name}={path}" for name, path in paths.items()]
    return load_config(EvaluateConfig, EVALUATE, config.evaluation, settings)
