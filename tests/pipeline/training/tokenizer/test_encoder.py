"""A tokenizer's training that takes over the encoder of another one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.training.process_group import joined_ranks
from rdpm.pipeline.training.tokenizer.stage import run, train_tokenizer
from tests.pipeline.training.trainings import config

OPTIONS = ["model.quantizer.update=gradient", "loss.adversarial=0", "steps=2", "checkpoint_every=1"]


@pytest.fixture(scope="module")
def taken(tmp_path_factory, inputs) -> tuple[Path, Path]:
    """(the tokenizer, one of latents with its encoder)."""
    out = tmp_path_factory.mktemp("taken") / "out"
    run(config("tokenizer", inputs, out, *OPTIONS, f"encoder={inputs}/tokenizer", "model.continuous=true"))
    return inputs / "tokenizer", out


@pytest.mark.slow
def test_the_encoder_stays_and_the_rest_is_trained_from_where_the_other_one_was(taken) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in taken)
    same = {name for name, value in first.items() if torch.equal(value, second[name])}
    assert same >= {name for name in first if name.startswith("encoder.")}
    assert "decoder.last.weight" not in same
    assert "quantizer.codebook.vectors" not in same
    apart = [float((second[name] - first[name]).abs().max()) for name in first]
    assert max(apart) < 0.01  # two steps away
    assert load_tokenizer(str(taken[1]))[0].config.continuous


@pytest.mark.slow
def test_it_continues_from_a_checkpoint_with_the_same_encoder_alone(taken, inputs, exports, tmp_path) -> None:
    out, source = tmp_path / "out", list_images(str(inputs / "images"))
    exports.tokenizer(str(tmp_path / "other"), seed=1)

    def train(*options: str) -> None:
        settings = config("tokenizer", inputs, out, *OPTIONS, "model.continuous=true", *options)
        with joined_ranks(1) as ranks:
            train_tokenizer(settings, source, ranks, None)

    train(f"encoder={inputs}/tokenizer", "steps=1")
    with pytest.raises(ValueError, match="belongs to another training"):
        train(f"encoder={tmp_path}/other")
    train(f"encoder={inputs}/tokenizer")
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, taken[1]))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_does_not_fit_is_refused(inputs) -> None:
    with pytest.raises(ValueError, match=r"engine.zero_stage is 2, .*; use engine.zero_stage 0"):
        config("tokenizer", inputs, Path("out"), f"encoder={inputs}/tokenizer", "engine.zero_stage=2")


@pytest.mark.slow
def test_an_encoder_of_another_size_is_refused(inputs, tmp_path) -> None:
    options = [*OPTIONS, f"encoder={inputs}/tokenizer", "model.autoencoder.channels=16"]
    with pytest.raises(ValueError, match="the encoder to take over has no encoder"):
        run(config("tokenizer", inputs, tmp_path / "out", *options))
