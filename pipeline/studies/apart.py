"""Running a stage many times, each time in a fresh process. This is the only way in which a study runs trainings."""

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

from rdpm.pipeline.foundation.processes import end_with_parent

C = TypeVar("C")


def run_apart(stage: Callable[[C], None], configs: Sequence[C], parallel: int) -> Iterator[C]:
    """Run a stage once per config, each in a fresh process, at most `parallel` at once. Yields each config when done.

    Configs are yielded in their order. What a stage prints is dropped, and what it raises is raised here as it is.
    After that, no further stage starts, and those that run are waited for. When this process dies, they get SIGTERM, at
    which a training saves a checkpoint and ends. stage: a function of a module.
    """
    stop, spawn = threading.Event(), multiprocessing.get_context("spawn")

    def run(config: C) -> bool:
        if stop.is_set():
            return False
        try:
            with ProcessPoolExecutor(1, spawn, end_with_parent, (os.getpid(), signal.SIGTERM)) as process:
                process.submit(_run_quietly, os.getpid(), stage, config).result()
            return True
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(parallel) as threads:
        runs = [threads.submit(run, config) for config in configs]
        try:
            for config, its_run in zip(configs, runs, strict=True):
                if its_run.result():
                    yield config
        finally:
            stop.set()


def _run_quietly(parent: int, stage: Callable[[C], None], config: C) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            stage(config)
    finally:
        if os.getppid() != parent:  # nobody waits for this process, and it would wait for another config
            os._exit(1)
