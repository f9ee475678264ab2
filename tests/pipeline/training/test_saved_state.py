"""Tensors of a checkpoint of any version, whole and in parts."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from rdpm.pipeline.training.saved_state import SavedState, flat_part

DEPTH, WIDTH = 11, 5


def test_modulations_that_former_releases_kept_apart_are_read_as_one(tmp_path: Path) -> None:
    """In files that end anywhere, as every rank wrote a share of the tensors: weights, moments and averages."""
    layers = [f"transformer.blocks.{block}.modulation" for block in range(DEPTH)] + ["transformer.modulation"]
    whole, files = {}, [{}, {}]
    for number, kind in enumerate(("weight", "exp_avg", "ema")):
        for name, shape in (("weight", (WIDTH,)), ("bias", ())):
            full = torch.randn(((6 * DEPTH + 2) * WIDTH, *shape))
            whole[f"{kind}/generator.transformer.adaln.{name}"] = full
            for place, (layer, part) in enumerate(zip(layers, full.split(6 * WIDTH), strict=True)):
                files[(number + place) % 2][f"model/{kind}/generator.{layer}.{name}"] = part.clone()
    files[0]["model/step/"] = torch.tensor(3.0)
    paths = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    state = SavedState(paths, "model")
    assert set(state) == {*whole, "step/"}
    assert state["step/"] == 3
    for name, value in whole.items():
        assert torch.equal(state[name], value)
        assert state.shape(name) == value.shape
        size = value.numel()
        for start, stop in (
            (0, 1),
            (0, size),
            (7, 33),
            (29, 31),
            (30, 60),
            (31, 290),
            (size - 3, size + 9),
            (size, size + 9),
        ):
            assert torch.equal(flat_part(state, name, start, stop), value.flatten()[start:stop]), (name, start, stop)
