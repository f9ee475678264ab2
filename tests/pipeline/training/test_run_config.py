"""What the configs of both trainings share, and the values that they refuse."""

import dataclasses
import math
import re

import pytest

from rdpm.pipeline.foundation.config import field_docs, identity_of, load_config
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.draws import Draws, TrainingBatch
from rdpm.pipeline.training.generator.inputs import TrainingStores, TrainingStreams
from rdpm.pipeline.training.optimizers import OptimizerConfig
from rdpm.pipeline.training.ranks import Ranks
from rdpm.pipeline.training.run_config import RunConfig
from rdpm.pipeline.training.saved_state import Saved
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig

SMALL = {"out": "o", "batch": 8, "micro_batch": 4, "steps": 4}


def tokenizer_config(**settings) -> TrainTokenizerConfig:
    """A config of the tokenizer's training."""
    return TrainTokenizerConfig(**{"images": "i", **SMALL, **settings})


def generator_config(**settings) -> TrainGeneratorConfig:
    """A config of the generator's training."""
    return TrainGeneratorConfig(**{"stores": ("s",), "tokenizer": "t", **SMALL, **settings})


@pytest.mark.parametrize("kind", [TrainTokenizerConfig, TrainGeneratorConfig])
def test_both_trainings_have_the_fields_of_a_run_with_the_same_role(kind) -> None:
    assert issubclass(kind, RunConfig)
    own = {field.name: field for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(RunConfig):
        if field.name != "micro_batch":
            assert own[field.name].metadata == field.metadata, field.name
    with pytest.raises(TypeError):
        kind("o")


@pytest.mark.parametrize(
    "kind",
    [
        *(TrainTokenizerConfig, TrainGeneratorConfig, LossConfig, EngineConfig, OptimizerConfig),
        *(Draws, Ranks, Saved, TrainingBatch, TrainingStores, TrainingStreams),
    ],
)
def test_every_field_is_documented(kind) -> None:
    assert set(field_docs(kind)) == {field.name for field in dataclasses.fields(kind)}


def test_the_identity_of_a_training_is_what_decides_its_result() -> None:
    both = {"batch", "steps", "seed", "optimizer", "engine", "model"}
    discriminating = {"micro_batch", "discriminator", "loss", "flips"}  # its BatchNorm sees micro-batches
    drawing = {"weights", "noise", "steps_per_image", "label_dropout", "ema_decay"}
    assert set(identity_of(tokenizer_config())) == both | discriminating
    assert set(identity_of(generator_config())) == both | drawing
    assert set(identity_of(EngineConfig())) == {"precision", "clip"}


@pytest.mark.parametrize("config", [tokenizer_config, generator_config])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0}, "steps is 0; use 1 or more"),
        ({"threads": 0}, "threads is 0; use 1 or more"),
        ({"log_every": 0}, "log_every is 0; use 1 or more"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; use 1 or more"),
        ({"checkpoint_every": 75}, "checkpoint_every is 75; use a multiple of log_every 50"),
        ({"batch": 0}, "batch is 0"),
        ({"ranks": 3}, "batch 8 "),
        ({"max_restarts": -1}, "max_restarts is -1; use 0 or more"),
    ],
)
def test_a_run_that_cannot_be_is_refused_by_the_value(config, settings, named) -> None:
    with pytest.raises(ValueError) as refused:
        config(**settings)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": -1e-4}, "lr is -0.0001; use 0 or more"),
        ({"lr": math.nan}, "lr is nan; use 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas is [0.9, 1.0]; use shares from 0 to below 1"),
        ({"weight_decay": -1}, "weight_decay is -1; use 0 or more"),
        ({"warmup_steps": -5}, "warmup_steps is -5; use 0 or more"),
        ({"final_share": 1.5}, "final_share is 1.5; use a share from 0 to 1"),
    ],
)
def test_an_optimizer_that_cannot_learn_is_refused_by_the_value(settings, named) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("config", "settings", "named"),
    [
        (tokenizer_config, {"workers": -1}, "workers is -1"),
        (tokenizer_config, {"validation": "v", "validate_every": 75}, "validate_every is 75"),
        (generator_config, {"stores": ()}, "stores is empty"),
        (generator_config, {"label_dropout": 1.0}, "label_dropout is 1.0"),
        (generator_config, {"ema_decay": 1.0}, "ema_decay is 1.0"),
        (generator_config, {"steps_per_image": 11}, "steps_per_image is 11"),
        (generator_config, {"preview_every": 75}, "preview_every is 75"),
        (generator_config, {"validation": ("v",), "validate_every": 75}, "validate_every is 75"),
        (generator_config, {"validation": ("v",), "validation_images": 6}, "validation_images is 6"),
    ],
)
def test_settings_of_one_training_are_refused_by_the_value(config, settings, named) -> None:
    with pytest.raises(ValueError) as refused:
        config(**settings)
    assert named in str(refused.value)


def test_micro_batches_of_the_generator_fit_the_ranks() -> None:
    config = generator_config(batch=1024, micro_batch=64)
    assert [config.micro_batch_on(ranks) for ranks in (1, 8, 16, 32, 1024)] == [64, 64, 64, 32, 1]
    assert generator_config(batch=96, micro_batch=10).micro_batch_on(4) == 8  # three equal parts of 24
    with pytest.raises(ValueError, match="batch 1024 cannot be shared equally by 24 ranks; use ranks=16 or ranks=32"):
        config.micro_batch_on(24)
    with pytest.raises(ValueError, match=r"use ranks=1024$"):
        config.micro_batch_on(2048)


def test_micro_batches_of_the_tokenizer_are_what_is_asked_for() -> None:
    config = tokenizer_config(batch=128, micro_batch=16)
    assert [config.micro_batch_on(ranks) for ranks in (1, 2, 4, 8)] == [16, 16, 16, 16]
    with pytest.raises(ValueError, match="x 6 ranks; use ranks=4 or ranks=8, or another micro_batch, which changes"):
        config.micro_batch_on(6)
    with pytest.raises(ValueError, match="batch 128 is not a multiple of micro_batch 48; change one"):
        tokenizer_config(batch=128, micro_batch=48)


@pytest.mark.parametrize("name", ["d12", "d16", "d20"])
def test_the_configs_of_imagenet_run_on_any_of_the_documented_ranks(repository, name) -> None:
    for ranks in (1, 8, 16, 32, 64):
        config = load_config(
            TrainGeneratorConfig, "train-generator", f"{repository}/configs/imagenet256/{name}.yaml", [f"ranks={ranks}"]
        )
        assert config.micro_batch_on(ranks) * ranks <= config.batch == 1024


def test_an_engine_that_cannot_be_is_refused_by_the_value() -> None:
    with pytest.raises(ValueError, match="zero_stage is 4; use 0, 1, 2 or 3"):
        EngineConfig(zero_stage=4)
    with pytest.raises(ValueError, match="offload is true at zero_stage 0"):
        EngineConfig(offload=True)
