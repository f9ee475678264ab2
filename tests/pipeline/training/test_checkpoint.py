"""Checkpoints of another training are refused, damaged ones too, and half-written ones are removed."""

import json
import shutil

import pytest

from tests.pipeline.training.trainings import checkpoint_steps, train

OPTIONS = ["checkpoint_every=1", "keep_checkpoints=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, inputs):
    """A generator after three steps, with the checkpoints of the last two."""
    out = tmp_path_factory.mktemp("checkpoints") / "out"
    train(None, "generator", inputs, out, "steps=3", *OPTIONS)
    assert checkpoint_steps(out) == [2, 3]
    return out


@pytest.fixture
def out(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "out")


def refusal(inputs, out, *options: str) -> str:
    """The sentence with which continuing is refused."""
    with pytest.raises(ValueError) as refused:
        train(None, "generator", inputs, out, "steps=4", *OPTIONS, *options)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [("model.depth=2", "model.depth 1 -> 2"), ("seed=1", "seed 0 -> 1"), ("weights=[1]", "weights")],
)
def test_a_checkpoint_of_another_training_is_refused_by_the_difference(inputs, out, change, named) -> None:
    message = refusal(inputs, out, change)
    assert "step-00000003 belongs to another training" in message
    assert named in message


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_by_name_and_an_older_one_continued(inputs, out, capsys) -> None:
    part = out / "checkpoints" / "step-00000003" / "part-00000-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert "step-00000003 is damaged (part-00000-00000.safetensors)" in refusal(inputs, out)
    part.unlink()
    assert "step-00000003 is damaged (part-00000-00000.safetensors)" in refusal(inputs, out)
    shutil.rmtree(part.parent)
    train(None, "generator", inputs, out, "steps=4", *OPTIONS)
    assert "continuing from step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_its_record_is_removed_and_one_with_a_broken_record_refused(inputs, out) -> None:
    record = out / "checkpoints" / "step-00000003" / "checkpoint.json"
    record.write_text(json.dumps({"step": 3}))
    assert f"{record} is not a checkpoint record" in refusal(inputs, out)
    record.write_text(json.dumps({"version": 3, "step": 3}))
    assert f"{record} has version 3, and this release knows 1 to 2; update rdpm" in refusal(inputs, out)
    record.unlink()
    train(None, "generator", inputs, out, "steps=2", *OPTIONS)
    assert checkpoint_steps(out) == [2]
