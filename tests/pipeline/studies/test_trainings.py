"""The progress of a study's trainings counts those that are under way by the steps of their logs."""

import importlib
import threading
from pathlib import Path

import pytest

from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.studies import trainings


@pytest.fixture
def stages(monkeypatch):
    """The module of the stages, which fresh processes find too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("apart_stages")


@pytest.fixture
def shown(monkeypatch):
    """Every state of the progress line, from its beginning; logs are looked at often."""
    states = []

    class Recorded(ProgressLine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            states.append(self.done)

        def update(self, done, numbers=None):
            super().update(done, numbers)
            states.append(done)

    monkeypatch.setattr(trainings, "ProgressLine", Recorded)
    monkeypatch.setattr(trainings, "_INTERVAL", 0.01)
    return states


def test_trainings_under_way_count_by_their_steps(stages, shown, tmp_path):
    configs = [stages.Training(str(tmp_path / name), 4) for name in ("a", "b")]
    trainings.train_apart("study", stages.logged_stage, configs, 1)
    assert shown[0] == 0
    assert shown[-1] == 2
    assert shown == sorted(shown)
    assert {0.25, 1.25} <= set(shown)


def test_what_was_trained_before_counts_from_the_beginning(stages, shown, tmp_path):
    begun = stages.Training(str(tmp_path / "a"), 4)
    Path(begun.out).mkdir()
    (Path(begun.out) / "log.jsonl").write_text('{"step": 3}\n{"step": 4')  # a kill cut the last line
    trainings.train_apart("study", stages.logged_stage, [begun], 1)
    assert shown[0] == 0.75


def test_what_a_training_raises_is_raised_and_the_watch_ends(stages, shown, tmp_path):
    config = stages.Training(str(tmp_path / "a"), 2, ValueError("a loss of nan"))
    before = threading.active_count()
    with pytest.raises(ValueError, match="a loss of nan"):
        trainings.train_apart("study", stages.logged_stage, [config], 1)
    assert threading.active_count() == before
