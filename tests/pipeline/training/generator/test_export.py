"""Exports from checkpoints are what the training exports, or would have exported at that step."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.training.generator.export import export_checkpoint
from tests.pipeline.training.trainings import config, train


@pytest.mark.slow
def test_an_export_of_a_checkpoint_is_that_of_a_training_that_ended_there(inputs, tmp_path: Path) -> None:
    options = ["checkpoint_every=1", "keep_checkpoints=3"]
    outs = {steps: tmp_path / f"until-{steps}" for steps in (2, 3)}
    for steps, out in outs.items():
        train(None, "generator", inputs, out, f"steps={steps}", *options)
    longer = config("generator", inputs, outs[3], "steps=3", *options)
    for steps, out in outs.items():
        card = export_checkpoint(longer, steps, str(tmp_path / "export"))
        assert card.digest == read_card(str(out), "generator").digest
        found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "export", out))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="has no checkpoint of step 7; train it with a checkpoint_every that has one"):
        export_checkpoint(longer, 7, str(tmp_path / "none"))
