"""How a training runs may change while it is under way; what decides its result may not."""

import math
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from rdpm.pipeline.training.generator.stage import run as run_generator
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.tokenizer.stage import run as run_tokenizer
from tests.pipeline.training.trainings import checkpoint_steps, config, log_lines

RUN = {"generator": run_generator, "tokenizer": run_tokenizer}
OPTIONS = ["steps=8", "checkpoint_every=4", "threads=1"]
SHOWN = {"generator": "loss", "tokenizer": "reconstruction"}
CHANGES = {
    "generator": [
        "model.attention=math", "model.activation_checkpointing=true", "micro_batch=4", "stream.workers=0",
        "validate_every=2", "validation_images=8", "threads=2",
    ],
    "tokenizer": ["model.autoencoder.activation_checkpointing=true", "workers=1"],
}  # fmt: skip
BOTH = [
    "engine.zero_stage=2", "engine.offload=true", "log_every=2", "checkpoint_every=2", "keep_checkpoints=2",
]  # fmt: skip


def stop_after(step: int, monkeypatch) -> None:
    """Send this process SIGTERM when a step's line of the log is written; the training does one more step."""
    write = TrainingLog.write

    def write_and_stop(log, at: int, **metrics) -> None:
        write(log, at, **metrics)
        if at == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingLog, "write", write_and_stop)


@pytest.fixture(scope="module", params=["generator", "tokenizer"])
def runs(request, tmp_path_factory, inputs):
    """(kind, a folder with straight/, trained to the end, and halfway/, stopped in the middle)."""
    folder = tmp_path_factory.mktemp("runs")
    run = RUN[request.param]
    run(config(request.param, inputs, folder / "straight", *OPTIONS))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(SystemExit) as ended:
            run(config(request.param, inputs, folder / "halfway", *OPTIONS))
    assert ended.value.code == 143
    assert checkpoint_steps(folder / "halfway") == [4]
    return request.param, folder


@pytest.fixture
def halfway(runs, tmp_path):
    """(kind, out): a copy of the training that was stopped, with its record."""
    kind, folder = runs
    shutil.copy(folder / "halfway.record.json", tmp_path)
    return kind, shutil.copytree(folder / "halfway", tmp_path / "halfway")


@pytest.mark.slow
def test_a_training_is_continued_with_every_execution_choice_changed(runs, halfway, inputs, tmp_path, capsys) -> None:
    kind, out = halfway
    changes = [*CHANGES[kind], *BOTH]
    if kind == "generator":
        changes.append(f"validation=[{inputs}/held-out]")
    moved = shutil.copytree(inputs, tmp_path / "moved", symlinks=True)
    RUN[kind](config(kind, moved, out, *OPTIONS, *changes))
    torch.set_num_threads(1)
    assert "continuing from step 4" in capsys.readouterr().out
    lines, straight = log_lines(out), log_lines(runs[1] / "straight")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 8]
    best = min(lines, key=lambda line: line.get("validation_loss", math.inf))["step"]
    assert checkpoint_steps(out) == sorted({6, 8} | ({best} if kind == "generator" else set()))
    for line in lines[4:]:
        pair = [straight[line["step"] - 1 - back][SHOWN[kind]] for back in (1, 0)]  # a line is the mean of two steps
        assert line[SHOWN[kind]] == pytest.approx(sum(pair) / 2, rel=1e-4)
    expected = load_file(runs[1] / "straight" / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.allclose(value, expected[name], atol=1e-4), name


IDENTITIES = {
    "generator": {
        "seed=1": "seed 0 -> 1",
        "batch=16": "batch 8 -> 16",
        "steps=9": "steps 8 -> 9",
        "optimizer.lr=2e-3": "optimizer.lr 0.001 -> 0.002",
        "engine.clip=2": "engine.clip 1.0 -> 2.0",
        "noise=fresh": "noise 'stored' -> 'fresh'",
        "model.depth=2": "model.depth 1 -> 2",
        "ema_decay=0.5": "ema_decay 0.9 -> 0.5",
    },
    "tokenizer": {
        "seed=1": "seed 0 -> 1",
        "optimizer.lr=2e-3": "optimizer.lr 0.001 -> 0.002",
        "micro_batch=4": "micro_batch 2 -> 4",
        "flips=false": "flips True -> False",
        "loss.adversarial=0.25": "loss.adversarial 0.5 -> 0.25",
        "model.quantizer.update=gradient": "model.quantizer.update 'ema' -> 'gradient'",
    },
}


@pytest.mark.slow
def test_a_training_with_another_identity_is_refused_by_the_field(halfway, inputs, tree) -> None:
    kind, out = halfway
    before = tree(out)
    for change, named in IDENTITIES[kind].items():
        with pytest.raises(ValueError) as refused:
            RUN[kind](config(kind, inputs, out, *OPTIONS, change))
        message = str(refused.value)
        assert f"{out} was made with other settings ({named})" in message
        assert "\n" not in message
    assert tree(out) == before
