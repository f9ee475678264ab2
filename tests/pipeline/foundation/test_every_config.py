"""What every config of the project has in common: it survives JSON, is documented, and its identity decides results."""

import dataclasses
import importlib
import json
import pkgutil
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import pytest

import rdpm
import rdpm.storage_schemas
from rdpm.jobs.inspect_store import InspectConfig
from rdpm.jobs.prepare import PrepareConfig, PreparePhotosConfig
from rdpm.jobs.verify import VerifyConfig
from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.models.fields import EXECUTION
from rdpm.models.generator import GeneratorConfig
from rdpm.models.sampler import SamplerConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.app.server import ServeConfig
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.diagnose import DiagnoseConfig
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import field_docs, from_dict, identity_of, load_config, saved_identity, to_dict
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.inference.onnx_export import ExportConfig
from rdpm.pipeline.projects.config import InitConfig
from rdpm.pipeline.reporting.report import ReportConfig
from rdpm.pipeline.sampling.calibration import CalibrateConfig
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sharing.push import PushConfig
from rdpm.pipeline.stream.token_stream import StreamConfig
from rdpm.pipeline.studies.ablation import AblationConfig
from rdpm.pipeline.studies.compare_plan import CompareConfig, MethodConfig
from rdpm.pipeline.studies.scaling import Family, ScalingConfig
from rdpm.pipeline.studies.sweep import Grid, Models, SweepConfig
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.optimizers import OptimizerConfig
from rdpm.pipeline.training.run_config import RunConfig
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig

CONFIGS = [
    AblationConfig("base.yaml", "i", "v", "o"),
    AutoencoderConfig(channels=16, multipliers=(1, 2), groups=8),
    ClassifierConfig(num_classes=2),
    CompareConfig("i", "v", "o", "t", "s", "g", "s", "e", methods={"a": MethodConfig(("k=v",))}),
    CalibrateConfig("g", "t", "s", "o", sampler=SamplerConfig(guidance=1.5)),
    DiagnoseConfig("g", "t", "i", "o", sampler=SamplerConfig(guidance=1.5)),
    DiscriminatorConfig(),
    EngineConfig(zero_stage=3, precision="fp32"),
    EvaluateConfig("o", samples="s", train_images="t"),
    ExportConfig("r", "o"),
    Family("t", "s", sampler=SamplerConfig(guidance=0.5)),
    GeneratorConfig(depth=2),
    Grid(guidance=(0.0, 1.5)),
    InitConfig("i", "o", hours=0.5),
    InspectConfig("s"),
    LossConfig(perceptual="none"),
    MethodConfig(generator=("model.method=flow",), evaluations=5),
    Models("g", "t"),
    OptimizerConfig(betas=(0.1, 0.2)),
    PrepareConfig(),
    PreparePhotosConfig(),
    PushConfig(out="o", run="r"),
    QuantizerConfig(bias=False),
    ReportConfig(**dict.fromkeys(("metrics", "tokenizer", "generator", "store", "samples", "images", "out"), "x"),
                 train_images="x"),
    Resources(cpus=1, actor_gpus=0.5),
    RunConfig(out="o", batch=4, micro_batch=2, steps=3),
    SampleConfig("g", "t", "o", sampler=SamplerConfig(guidance=1.5)),
    SamplerConfig(temperature=0.0),
    ServeConfig("r"),
    ScalingConfig("i", "v", "o", "s", "g", "s", "e", families={"a": Family("t", "s")}),
    Schedule(kind="sin", num_steps=3),
    StreamConfig(window=2),
    SweepConfig("s", "e", "o", samplers={"a": SamplerConfig()}, grid=Grid(), models={"m": Models("g", "t")}),
    TokenizeConfig("i", "t", "o", views=("flip", "center")),
    TokenizerConfig(image_size=32),
    TrainGeneratorConfig(stores=("a", "b"), tokenizer="t", out="o", noise="fresh"),
    VerifyConfig("s", processes=2),
    TrainTokenizerConfig(images="i", out="o", model=TokenizerConfig(schedule=Schedule(base=0.5))),
]  # fmt: skip
KINDS = [type(config) for config in CONFIGS]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)


def dataclasses_in(package) -> set[type]:
    """Every dataclass that a package's modules define."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    }


def parts_of(kind: Any) -> set[type]:
    """The dataclasses in a type."""
    if dataclasses.is_dataclass(kind):
        return {kind}
    return {part for argument in typing.get_args(kind) for part in parts_of(argument)}


def test_the_list_above_holds_every_config_and_every_part_of_one():
    named = {kind for kind in dataclasses_in(rdpm) if kind.__name__.endswith("Config")}
    parts = {part for kind in KINDS for hint in typing.get_type_hints(kind).values() for part in parts_of(hint)}
    assert named | parts <= set(KINDS)
    assert len(named) > 18


@each_config
def test_every_config_survives_json_and_its_leaves_are_settings(config, leaves):
    tree = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), tree) == config
    assert set(tree) == {f.name for f in dataclasses.fields(config)}
    assert all(isinstance(value, (str, int, float, bool, type(None))) for _, value in leaves(tree))


SCHEMAS = sorted(dataclasses_in(rdpm.storage_schemas), key=lambda kind: kind.__name__)
OWN_ROOMS = ("foundation", "exports", "stores", "stream", "images")
RECORDS = sorted(
    {
        kind
        for room in OWN_ROOMS
        for kind in dataclasses_in(importlib.import_module(f"rdpm.pipeline.{room}"))
        if not kind.__name__.startswith("_")
    },
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", [*KINDS, *SCHEMAS, *RECORDS], ids=lambda kind: kind.__name__)
def test_every_field_of_configs_and_of_what_lies_on_disk_is_documented(kind):
    assert set(field_docs(kind)) == {f.name for f in dataclasses.fields(kind)}


def with_field(kind: type, **options: Any) -> type:
    """The config of a later release: the same class with one more field, whose default is 7."""
    later = make_dataclass(
        kind.__name__, [("extra", int, field(default=7, **options))], bases=(kind,), frozen=True, kw_only=True
    )
    later.__module__ = kind.__module__
    return later


def in_later(config: Any, kind: type, **extra: int) -> Any:
    """The same settings as a config of the later release."""
    return kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, **extra)


def job_of(part: type) -> type:
    """A job's config with `part` in every place that a config can have."""

    @dataclass(frozen=True)
    class Job:
        out: str = field(metadata=EXECUTION)
        own: part
        named: dict[str, part]
        listed: tuple[part, ...]
        maybe: part | None

    return Job


def job(part: Any, out: str) -> Any:
    """A config that holds this part everywhere."""
    kind = job_of(type(part))
    return kind(out, part, {"a": part}, (part, part), part)


@each_config
def test_settings_saved_before_a_field_existed_have_the_identity_of_today(config):
    saved = json.loads(json.dumps(to_dict(config)))
    later = with_field(type(config))
    assert saved_identity(later, saved) == identity_of(in_later(config, later))
    assert saved_identity(later, saved) != identity_of(in_later(config, later, extra=8))
    assert identity_of(in_later(config, later))["extra"] == 7


@each_config
def test_a_field_marked_execution_never_counts(config):
    later = with_field(type(config), metadata=EXECUTION)
    assert identity_of(in_later(config, later, extra=8)) == identity_of(config)
    saved = json.loads(json.dumps(to_dict(in_later(config, later, extra=9))))
    assert saved_identity(later, saved) == identity_of(config)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
@each_config
def test_a_job_finished_before_a_field_existed_is_found_finished(config, version, tmp_path):
    """The record is as old as the config; in version 1 the inputs are among the settings."""
    out = str(tmp_path / "out")
    started = job(config, out)
    with begin("job", started, lambda: {"source": "s0"}) as record:
        files.write_bytes(f"{out}/made", b"1")
        record.finish({"rows": 3})
    if version == 1:
        facts = {"job": "job", "finished": True, "seconds": 1.0, "result": {"rows": 3}, "identity": "an old digest"}
        files.write_json(f"{out}.record.json", {**facts, "settings": {**identity_of(started), "source": "s0"}})
    for options, extra in (({}, 7), ({"metadata": EXECUTION}, 7), ({"metadata": EXECUTION}, 8)):
        later = job(in_later(config, with_field(type(config), **options), extra=extra), out)
        with begin("job", later, lambda: {"source": "s0"}) as again:
            assert again.finished
            assert again.result == {"rows": 3}
    other = job(in_later(config, with_field(type(config)), extra=8), out)
    for config, source, match in ((other, "s0", "extra 7 -> 8"), (started, "s1", "source 's0' -> 's1'")):
        inputs = {"source": source}
        with pytest.raises(ValueError, match=match), begin("job", config, lambda inputs=inputs: inputs):
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [config for config in CONFIGS if hasattr(config, "out")], ids=lambda c: type(c).__name__
)
def test_a_finished_job_is_found_finished_with_any_values_of_its_execution_fields(config, tmp_path):
    """Every field marked EXECUTION except `out` gets another value; so does the config of a later release."""
    out = str(tmp_path / "out")
    config = dataclasses.replace(config, out=out)
    with begin("job", config, dict) as record:
        files.write_bytes(f"{out}/made", b"1")
        record.finish({})
    others = [with_other_value(config, f) for f in dataclasses.fields(config) if f.metadata.get("execution")]
    others = [other for other in others if other is not None and other.out == out]
    later = with_field(type(config))
    for other in (
        *others,
        in_later(config, later),
        in_later(config, with_field(type(config), metadata=EXECUTION), extra=8),
    ):
        with begin("job", other, dict) as record:
            assert record.finished
    with pytest.raises(ValueError, match="extra 7 -> 8"), begin("job", in_later(config, later, extra=8), dict):
        pass


def with_other_value(config: Any, changed: dataclasses.Field) -> Any:
    """The config with another value in one field; None where the config refuses every value tried."""
    value = getattr(config, changed.name)
    candidates = {
        bool: (not value,),
        int: (value + 1 if isinstance(value, int) else 0,),
        float: (0.25,),
        str: ("other",),
    }
    for other in candidates.get(type(value), ()):
        try:
            return dataclasses.replace(config, **{changed.name: other})
        except ValueError:
            continue
    return None


RENAMED = [(kind, old, new) for kind in KINDS for old, new in getattr(kind, "RENAMED", {}).items()]


@pytest.mark.parametrize(("kind", "old", "new"), RENAMED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_renamed_key_is_followed_in_saved_settings_and_named_to_users(kind, old, new):
    config = next(config for config in CONFIGS if type(config) is kind)
    saved = json.loads(json.dumps(to_dict(config)))
    saved[old] = saved.pop(new)
    assert old not in {f.name for f in dataclasses.fields(kind)}
    assert saved_identity(kind, saved) == identity_of(config)
    with pytest.raises(ValueError, match=rf"unknown config key {old}; it is now called {new}$"):
        load_config(kind, "job", None, [f"{old}=1"])
    with pytest.raises(ValueError, match=rf"unknown config key own\.{old}; it is now called own\.{new}$"):
        load_config(job_of(kind), "job", None, [f"own.{old}=1"])


def test_the_names_that_changed_since_the_first_release_are_all_followed():
    assert {(kind.__name__, old, new) for kind, old, new in RENAMED} >= {
        ("AutoencoderConfig", "checkpoint", "activation_checkpointing"),
        ("GeneratorConfig", "checkpoint", "activation_checkpointing"),
        ("SampleConfig", "compiled", "compile"),
        ("Schedule", "phi", "base"),
    }
