"""Running a stage many times, each in a process of its own. The only way in which a study runs trainings."""

import contextlib
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

C = TypeVar("C")


def run_apart(stage: Callable[[C], None], configs: Sequence[C], parallel: int) -> Iterator[C]:
    """Run a stage once per config, each in a fresh process, at most `parallel` at once. Yields configs when done.

    Configs are yielded in their order. What stages print is dropped; what one raises is raised here.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, max_tasks_per_child=1) as pool:
        runs = [pool.submit(_run, stage, config) for config in configs]
        try:
            for config, run in zip(configs, runs, strict=True):
                run.result()
                yield config
        finally:
            for run in runs:
                run.cancel()


def _run(stage: Callable[[C], None], config: C) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        stage(config)
