"""The road of a run: the stages that RUN/run.yaml names, in order.

    stages:
      - train-tokenizer tokenizer.yaml
      - tokenize store.yaml

A line is what a person would type after `rdpm`; its last word is a config beside run.yaml. Other configs in the folder
are not part of the road.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import config_job
from rdpm.pipeline.foundation.processes import end_with_parent
from rdpm.pipeline.foundation.progress import say

RUN = "run.yaml"
_WANTED = "write under stages: one command and config per line, for example - train-tokenizer tokenizer.yaml"


@dataclass(frozen=True)
class Stage:
    """One stage of a road."""

    words: tuple[str, ...]
    """What follows `rdpm`: the job, perhaps a word more, and the path of the config."""
    out: str
    """What the stage makes."""
    settings: dict[str, Any]
    """The config as the file gives it."""

    @property
    def job(self) -> str:
        """Name of the command."""
        return self.words[0]

    @property
    def config(self) -> str:
        """Path of the config."""
        return self.words[-1]


def read_road(folder: str) -> list[Stage]:
    """The stages of a run. Raises ValueError for a folder without a road, and a config that is not the command's."""
    path = files.join(folder, RUN)
    if not files.exists(path):
        raise ValueError(f"{folder!r} has no {RUN}; make a run with rdpm init IMAGES RUN, or name its folder")
    tree = _read(path)
    lines = tree.get("stages")
    if tree.keys() != {"stages"} or not isinstance(lines, list) or not lines:
        raise ValueError(f"{path} names no stages; {_WANTED}")
    return [_stage(folder, path, line) for line in lines]


def _stage(folder: str, path: str, line: Any) -> Stage:
    words = line.split() if isinstance(line, str) else []
    if len(words) < 2 or any("=" in word or word.startswith("-") for word in words):
        raise ValueError(f"{path} has the stage {line!r}; {_WANTED}")
    config = files.join(folder, words[-1])
    job = config_job(config)
    if job != words[0]:
        raise ValueError(f"{path} gives {config} to {words[0]!r}, but it is a config for {job!r}; change one")
    settings = _read(config)
    if not isinstance(settings.get("out"), str):
        raise ValueError(f"{config} has no `out`; say what it makes")
    return Stage((*words[:-1], config), settings["out"], settings)


def _read(path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(files.read_bytes(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no keys and values; {_WANTED}")
    return tree


def go(folder: str, stages: list[Stage], run: Callable[[Stage], int]) -> int:
    """Run the command of every stage. Returns 0, or the code of the first that does not end well.

    run: runs a stage, and returns its exit code. A finished stage says so and ends; an interrupted one continues.
    """
    for number, stage in enumerate(stages, start=1):
        say(f"run: stage {number} of {len(stages)}: rdpm {' '.join(stage.words)}")
        code = run(stage)
        if code:
            say(f"run: {stage.job} ended with exit code {code}; see above. To continue: rdpm run {folder}")
            return code
    say(f"run: finished; see {stages[-1].out}, and rdpm status {folder} for what else was made")
    return 0


def start(stage: Stage) -> int:
    """Run a stage in a process that ends with this one. Returns its exit code.

    SIGTERM is passed on, so that a training saves a checkpoint, and the road ends there.
    """
    sys.stdout.flush()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rdpm", *stage.words],
        env=environment,
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),
    )
    former = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:  # the terminal has sent it to the process too, which ends in order
                continue
    finally:
        signal.signal(signal.SIGTERM, former)
