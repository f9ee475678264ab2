"""Running a stage many times, each time in a fresh process. This is the only way in which a study runs trainings."""

import contextlib
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

C = TypeVar("C")


def run_apart(stage: Callable[[C], None], configs: Sequence[C], parallel: int) -> Iterator[C]:
    """Run a stage once per config, each in a fresh process, at most `parallel` at once. Yields each config when done.

    Configs are yielded in their order. What a stage prints is dropped, and what it raises is raised here as it is.
    After that, no further stage starts, and those that run are waited for. stage: a function of a module.
    """
    with ThreadPoolExecutor(parallel) as pool:
        runs = [pool.submit(_run_in_process, stage, config) for config in configs]
        try:
            for config, run in zip(configs, runs, strict=True):
                run.result()
                yield config
        finally:
            for run in runs:
                run.cancel()


def _run_in_process(stage: Callable[[C], None], config: C) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(_run_quietly, stage, config).result()


def _run_quietly(stage: Callable[[C], None], config: C) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        stage(config)
