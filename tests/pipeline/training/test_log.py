"""The log of a training continues where the training does."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdpm.pipeline.training.log import LOG, TrainingLog, read_log


def lines(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(str(folder / LOG))]


def test_a_continued_log_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    log = TrainingLog(str(tmp_path), True, 0)
    for step in (10, 20, 30):
        log.write(step, loss=step / 10, loss_by_step=[1.0, None])
    log.close()
    with open(tmp_path / LOG, "a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    time.sleep(1)  # TensorBoard orders files by second, and within one second the tenth of a process before the ninth
    log = TrainingLog(str(tmp_path), True, 20)
    log.write(30, loss=7.0, loss_by_step=[None, 2.0])
    log.close()
    assert lines(tmp_path) == [(10, 1.0), (20, 2.0), (30, 7.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(10, 1.0), (20, 2.0), (30, 7.0)]
    assert [event.step for event in board.Scalars("loss_by_step/2")] == [30]


def test_a_log_is_json_whatever_is_measured(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (tmp_path / LOG).write_text('{"step": 1, "loss": NaN, "gradient_norm": Infinity}\n')  # by an older release
    assert read_log(str(tmp_path / LOG)) == [{"step": 1, "loss": None, "gradient_norm": None}]
    log = TrainingLog(str(tmp_path), True, 1)
    log.write(2, loss=math.nan, gradient_norm=math.inf, adaptive_weight=-math.inf, loss_by_step=[1.0, math.nan, None])
    log.close()
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": None, "gradient_norm": None}
    assert lines[1]["loss"] is lines[1]["gradient_norm"] is lines[1]["adaptive_weight"] is None
    assert lines[1]["loss_by_step"] == [1.0, None, None]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = TrainingLog(str(tmp_path), False, 0)
    log.write(1, loss=1.0)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_project_without_wandb_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        TrainingLog(str(tmp_path), True, 0, "digits")


def test_wandb_is_logged_to_when_asked_for(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = TrainingLog(str(tmp_path), True, 0, "digits")
    log.write(1, loss=2.0)
    log.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss" in run.read_bytes()
