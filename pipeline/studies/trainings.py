"""The trainings of a study: each in a fresh process, several at once, and one line of progress for all of them."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.studies.apart import run_apart
from rdpm.pipeline.training.log import LOG, read_log

_INTERVAL = 15.0  # seconds between looks at the logs, which are read whole


class Training(Protocol):
    """What the config of a training says of it here."""

    @property
    def out(self) -> str:
        """Its folder, with its log."""

    @property
    def steps(self) -> int:
        """How many steps it takes."""


C = TypeVar("C", bound=Training)


def train_apart(title: str, stage: Callable[[C], None], configs: Sequence[C], parallel: int) -> None:
    """Run trainings in fresh processes, at most `parallel` at once. One that is finished is not repeated.

    The progress counts trainings. One that is under way counts by the steps of its log. Raises what a training raises.
    """
    ended = threading.Event()
    with ProgressLine(title, len(configs), "trainings", _made(configs)) as progress:

        def watch() -> None:
            while not ended.wait(_INTERVAL):
                progress.update(_made(configs))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            for _ in run_apart(stage, configs, parallel):
                pass
        finally:
            ended.set()
            watcher.join()
        progress.update(len(configs))


def _made(configs: Sequence[Training]) -> float:
    """How many trainings have been made, with the parts of those that are under way."""
    return sum(_steps(config) / config.steps for config in configs)


def _steps(config: Training) -> int:
    """The last step in a training's log."""
    lines = read_log(files.join(config.out, LOG))
    return min(lines[-1]["step"], config.steps) if lines else 0
