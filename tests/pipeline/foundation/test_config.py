import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from rdpm.jobs.cli import COMMANDS
from rdpm.jobs.prepare import PrepareConfig, PreparePhotosConfig
from rdpm.pipeline.foundation.config import (
    config_job,
    from_dict,
    load_config,
    to_dict,
)
from rdpm.pipeline.sampling.calibration import CalibrateConfig
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig

CONFIGS = Path(__file__).parents[3] / "configs"
ROADS = "run.yaml"  # which name the configs of a run, and are none
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if path.name != ROADS)


@dataclass(frozen=True)
class Inner:
    depth: int = 1
    parts: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}; use 1 or more")


@dataclass(frozen=True)
class Config:
    out: str
    rate: float = 0.5
    steps: int = 10
    kind: Literal["a", "b"] = "a"
    last: float | None = 1.0
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def load(tmp_path: Path, text: str | bytes | None, *overrides: str, job: str = "made") -> Config:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(Config, job, None if text is None else str(path), list(overrides))


def refusal(tmp_path: Path, text: str | bytes | None, *overrides: str, job: str = "made") -> str:
    with pytest.raises(ValueError) as refused:
        load(tmp_path, text, *overrides, job=job)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_the_command_line_overrides_the_file_and_the_file_overrides_the_defaults(tmp_path):
    text = "out: file\nsteps: 20\ninner: {depth: 2}\n"
    assert load(tmp_path, None, "out=line") == Config("line")
    assert load(tmp_path, text) == Config("file", steps=20, inner=Inner(depth=2))
    found = load(tmp_path, text, "steps=30", "inner.parts=[5]", "rate=1.5e-3")
    assert found == Config("file", rate=1.5e-3, steps=30, inner=Inner(depth=2, parts=(5,)))


def test_of_two_overrides_of_one_key_the_last_one_counts(tmp_path):
    assert load(tmp_path, None, "out=a", "steps=1", "steps=2").steps == 2


def test_an_override_can_set_none_and_create_what_the_file_leaves_out(tmp_path):
    found = load(tmp_path, "out: a\n", "last=null", "maybe.depth=4")
    assert found.last is None
    assert found.maybe == Inner(depth=4)


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load(tmp_path, "# nothing\n", "out=a") == Config("a")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("stepz", "did you mean steps?"),
        ("inner.dept", "did you mean inner.depth?"),
        ("maybe.dept", "did you mean maybe.depth?"),
        ("depht", "did you mean inner.depth or maybe.depth?"),
        ("inner.step", "did you mean steps?"),
        ("nothing_like_it", "known keys: out, rate, steps"),
        ("inner.zzzzzz", "known keys: depth, parts"),
    ],
)
def test_an_unknown_key_is_refused_by_its_full_name_with_a_hint(tmp_path, key, hint):
    nested = f"{key.split('.')[0]}: {{{key.split('.')[1]}: 1}}" if "." in key else f"{key}: 1"
    for message in (refusal(tmp_path, f"out: a\n{nested}\n"), refusal(tmp_path, None, "out=a", f"{key}=1")):
        assert f"unknown config key {key}; " in message
        assert hint in message


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("steps=many", "steps is 'many'"),
        ("steps=1.5", "steps is 1.5"),
        ("rate=fast", "rate is 'fast'"),
        ("kind=c", "kind is 'c'"),
        ("out=[1]", "out is [1]"),
        ("inner=3", "inner is 3"),
        ("inner.depth=deep", "inner.depth is 'deep'"),
        ("inner.parts=[1, x]", "inner.parts.1 is 'x'"),
        ("last=late", "'late'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_key_and_value(tmp_path, override, shown):
    assert shown in refusal(tmp_path, "out: a\n", override)


def test_a_value_that_its_class_refuses_is_refused_with_the_message_of_the_class(tmp_path):
    assert refusal(tmp_path, "out: a\n", "inner.depth=0") == "depth is 0; use 1 or more"


def test_a_missing_key_is_refused_by_name(tmp_path):
    assert "key out is missing" in refusal(tmp_path, "steps: 1\n")


def test_a_config_for_another_job_is_refused_by_both_jobs(tmp_path):
    message = refusal(tmp_path, "job: tokenize\nout: a\n", job="sample")
    assert "'tokenize'" in message
    assert "'sample'" in message
    assert load(tmp_path, "job: sample\nout: a\n", job="sample") == Config("a")


def test_the_job_of_a_file_is_read_and_a_file_without_job_is_refused_by_name(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("job: sample\nout: a\n")
    assert config_job(str(path)) == "sample"
    path.write_text("out: a\n")
    with pytest.raises(ValueError, match=r"config\.yaml has no `job` key"):
        config_job(str(path))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml' does not exist"):
        load_config(Config, "made", str(tmp_path / "nowhere.yaml"), [])


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just words\n", b"out: \xff\n"])
def test_a_file_that_is_no_yaml_of_keys_is_refused_by_name(tmp_path, text):
    assert "config.yaml" in refusal(tmp_path, text)


def test_a_folder_instead_of_a_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_config(Config, "made", str(tmp_path), [])


@pytest.mark.parametrize("override", ["steps", "=3", "steps=[1", "steps.more=1", "out.x.y=1"])
def test_a_malformed_override_is_refused_by_its_text(tmp_path, override):
    assert override in refusal(tmp_path, "out: a\nsteps: 1\n", override)


def config_class(job: str, folder: str) -> type:
    """The config class of a subcommand. `prepare` has one per set, whose configs lie in folders of their own."""
    if job == "prepare":
        return {"digits": PrepareConfig, "photos": PreparePhotosConfig}[folder]
    known = vars(importlib.import_module(COMMANDS[job][0]))
    kinds = {value for name, value in known.items() if name.endswith("Config") and dataclasses.is_dataclass(value)}
    assert len(kinds) == 1
    return kinds.pop()


@pytest.mark.parametrize("name", FILES)
def test_every_config_file_loads_as_its_job_and_survives_json(name):
    path = str(CONFIGS / name)
    job = config_job(path)
    kind = config_class(job, Path(name).parent.name)
    config = load_config(kind, job, path, [])
    assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config


def test_the_demos_and_the_paper_have_a_config_for_each_stage():
    found = {str(Path(name).parent): set() for name in FILES}
    for name in FILES:
        found[str(Path(name).parent)].add(config_job(str(CONFIGS / name)))
    stages = {"train-tokenizer", "tokenize", "train-generator", "sample"}
    for demo in ("digits", "photos"):
        assert found[demo] >= {"prepare", *stages, "evaluate", "report"}
    assert found["imagenet256"] >= stages


@pytest.mark.parametrize(
    ("folder", "generators"),
    [
        ("digits", ["generator", "generator-paper"]),
        ("photos", ["generator", "generator-paper"]),
        ("imagenet256", ["d12", "d12-plus", "d16", "d20"]),
    ],
)
def test_each_stage_reads_what_the_previous_one_writes(folder, generators):
    def read(name: str, kind: type, job: str):
        return load_config(kind, job, str(CONFIGS / folder / f"{name}.yaml"), [])

    tokenizer = read("tokenizer", TrainTokenizerConfig, "train-tokenizer")
    store = read("store", TokenizeConfig, "tokenize")
    samples = read("samples", SampleConfig, "sample")
    trained = [read(name, TrainGeneratorConfig, "train-generator") for name in generators]
    assert {tokenizer.out} == {store.tokenizer, samples.tokenizer, *(generator.tokenizer for generator in trained)}
    assert {generator.stores for generator in trained} == {(store.out,)}
    calibration = read("calibration", CalibrateConfig, "calibrate")
    plus = next(generator for generator in trained if generator.out == calibration.generator)
    assert plus.model.preconditioned
    assert calibration.store == store.out
    if folder != "imagenet256":  # whose samples are the paper's
        assert (samples.generator, samples.sampler) == (calibration.out, calibration.sampler)
        samples = read("samples-paper", SampleConfig, "sample")
    paper = next(generator for generator in trained if generator.out == samples.generator)
    assert not paper.model.preconditioned
    assert len({generator.out for generator in trained}) == len(trained)
    assert store.images == tokenizer.images
    model = tokenizer.model
    for generator in trained:
        space = generator.model
        assert (space.codebook_size, space.code_dim) == (model.quantizer.codebook_size, model.quantizer.code_dim)
        assert (space.num_steps, space.grid) == (model.schedule.num_steps, model.grid)
        assert generator.noise == "stored" or store.latents
