"""Stages for the tests of run_apart. Fresh processes import this file by its name, from its folder."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

runs_in_this_process = 0  # in every fresh process


@dataclass(frozen=True)
class Config:
    """One run of a stage."""

    folder: str
    """Where the stage leaves its files."""
    name: str
    """Name of the run."""
    raises: Exception | None = None
    """What the stage raises at its end."""
    wait_for: int = 1
    """How many stages a slow one waits for."""

    @property
    def done(self) -> Path:
        """A file that says which process ran it, and how many stages that process had run."""
        return Path(self.folder) / f"{self.name}.done"


def stage(config: Config) -> None:
    """Print, and leave a file."""
    global runs_in_this_process
    runs_in_this_process += 1
    print(f"printed by {config.name}")
    config.done.write_text(f"{os.getpid()} {runs_in_this_process}")
    if config.raises is not None:
        raise config.raises


def slow_stage(config: Config) -> None:
    """Leave a file that says how many stages ran at the same time at most.

    Stages take at least 0.3 seconds, and wait for so many to run at the same time at least once.
    """
    folder, began, most = Path(config.folder), time.monotonic(), 0
    running, reached = folder / f"{config.name}.running", folder / "reached"
    running.touch()
    while time.monotonic() - began < 0.3 or (not reached.exists() and time.monotonic() - began < 60):
        most = max(most, len(list(folder.glob("*.running"))))
        if most >= config.wait_for:
            reached.touch()
        time.sleep(0.01)
    running.unlink()
    config.done.write_text(str(most))


def dying_stage(config: Config) -> None:
    """End the process without a word, as when the machine has no memory left."""
    os._exit(9)


def long_stage(config: Config) -> None:
    """Say which process runs it, and take longer than any test. At SIGTERM it ends as a training does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    config.done.write_text(str(os.getpid()))
    time.sleep(600)


@dataclass(frozen=True)
class Training:
    """One training."""

    out: str
    """Where its log is."""
    steps: int
    """How many steps it takes."""
    raises: Exception | None = None
    """What it raises after its last step."""


def logged_stage(config: Training) -> None:
    """Log one step per tenth of a second."""
    Path(config.out).mkdir(exist_ok=True)
    with open(Path(config.out) / "log.jsonl", "w", buffering=1) as log:
        for step in range(1, config.steps + 1):
            time.sleep(0.1)
            log.write(json.dumps({"step": step}) + "\n")
    if config.raises is not None:
        raise config.raises
