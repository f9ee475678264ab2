"""Stages run in fresh processes, at most so many at once, and what one raises arrives as it is."""

import dataclasses
import importlib
import os
import subprocess
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from rdpm.pipeline.foundation.processes import is_gone, started
from rdpm.pipeline.studies.apart import run_apart


@pytest.fixture
def stages(monkeypatch):
    """The module of the stages, which fresh processes find too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("apart_stages")


@pytest.fixture
def configs_of(stages, tmp_path):
    """A maker of configs run0, run1, ...; its keywords say what a run raises."""

    def make(count, **raises):
        names = [f"run{number}" for number in range(count)]
        return [stages.Config(str(tmp_path), name, raises.get(name)) for name in names]

    return make


def test_each_stage_has_a_fresh_process_and_configs_come_in_their_order(stages, configs_of, capfd):
    configs, yielded = configs_of(3), []
    for config in run_apart(stages.stage, configs, 2):
        assert config.done.exists()
        yielded.append(config)
    assert yielded == configs
    processes, counts = zip(*(config.done.read_text().split() for config in configs), strict=True)
    assert len(set(processes)) == 3
    assert str(os.getpid()) not in processes
    assert counts == ("1", "1", "1")
    assert "printed by" not in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_at_most_so_many_run_at_once(stages, configs_of, parallel):
    configs = [dataclasses.replace(config, wait_for=parallel) for config in configs_of(4)]
    assert list(run_apart(stages.slow_stage, configs, parallel)) == configs
    assert max(int(config.done.read_text()) for config in configs) == parallel


@pytest.mark.parametrize(
    "error", [ValueError("images 'x' does not exist; give a folder"), RuntimeError("out of memory"), KeyError("name")]
)
def test_what_a_stage_raises_is_raised_as_it_is_and_nothing_starts_after_it(stages, configs_of, error):
    configs = configs_of(4, run1=error)
    runs = run_apart(stages.stage, configs, 1)
    assert next(runs) is configs[0]
    with pytest.raises(type(error)) as raised:
        next(runs)
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args
    assert [config.done.exists() for config in configs] == [True, True, False, False]


def test_a_consumer_that_stops_starts_nothing_more(stages, configs_of):
    configs = configs_of(4)
    runs = run_apart(stages.stage, configs, 1)
    assert next(runs) is configs[0]
    runs.close()
    assert not configs[3].done.exists()


def test_a_stage_whose_process_dies_is_an_error(stages, configs_of):
    with pytest.raises(BrokenProcessPool):
        list(run_apart(stages.dying_stage, configs_of(2), 1))


@pytest.mark.slow
def test_a_stage_ends_with_the_process_that_runs_it(configs_of, python, repository, tmp_path):
    (config,) = configs_of(1)
    program = (
        "import apart_stages as stages; from rdpm.pipeline.studies.apart import run_apart; "
        f"list(run_apart(stages.long_stage, [stages.Config({config.folder!r}, {config.name!r})], 1))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(repository)])
    study = subprocess.Popen([*python, "-c", program], env=os.environ | {"PYTHONPATH": paths})
    wait_for(lambda: config.done.exists() and config.done.read_text())
    pid = int(config.done.read_text())
    since = started(pid)
    study.kill()
    study.wait()
    wait_for(lambda: is_gone(pid, since))
    assert is_gone(pid, since)


def test_a_stage_whose_study_is_killed_while_it_starts_does_not_run(configs_of, python, repository):
    (config,) = configs_of(1)
    program = (
        "import multiprocessing, os, signal, threading; import apart_stages as stages; "
        "from rdpm.pipeline.foundation.processes import started; from rdpm.pipeline.studies.apart import run_apart; "
        f"runs = run_apart(stages.long_stage, [stages.Config({config.folder!r}, {config.name!r})], 1); "
        "threading.Thread(target=list, args=(runs,)).start()\n"
        "while not (children := multiprocessing.active_children()): pass\n"
        "print(children[0].pid, started(children[0].pid), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(repository)])
    study = subprocess.Popen(
        [*python, "-c", program], env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    pid, since = study.stdout.readline().split()
    study.wait()
    wait_for(lambda: is_gone(int(pid), since) or config.done.exists())
    assert not config.done.exists()


def wait_for(condition, seconds=60):
    """Raises AssertionError when it does not come true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
