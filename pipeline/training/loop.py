"""The loop that both trainings share: steps, lines of the log, checkpoints, and an orderly end at SIGTERM."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch

from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.ranks import Ranks, any_rank
from rdpm.pipeline.training.run_config import RunConfig

_STOPPED = 128 + signal.SIGTERM


class StopRequest:
    """Whether SIGTERM came, which schedulers send before they take a machine away."""

    def __init__(self) -> None:
        self.received = False
        self._former = signal.signal(signal.SIGTERM, self._set)

    def _set(self, *_: object) -> None:
        self.received = True

    def close(self) -> None:
        """Restore the former handler of the signal."""
        signal.signal(signal.SIGTERM, self._former)


def run_steps(
    job: str,
    config: RunConfig,
    ranks: Ranks,
    checkpoints: Checkpoints,
    engines: Mapping[str, Engine],
    log: TrainingLog,
    step: Callable[[int], float],
    metrics: Callable[[int], dict[str, Any]],
    use_per_image: float | None = None,
) -> None:
    """Run the steps that follow the newest checkpoint.

    step: runs one step, given its 0-based number; returns the seconds that it waited for data. metrics: what to log,
    given the number of steps done; the progress line shows the first metric, and "score" ranks checkpoints (lower is
    better). use_per_image: share of the devices' peak FLOP/s that one image per second takes; with it, "mfu" is logged.
    When any rank gets SIGTERM, all save a checkpoint and end with exit code 143.
    """
    start = checkpoints.step
    if ranks.first and start:
        say(f"{job}: continuing from step {start}")
    progress = ProgressLine(job, config.steps, "steps", start, quiet=not ranks.first)
    window, stopping = Window(config.batch, start), False
    with closing(log), closing(StopRequest()) as stop, progress:
        for number in range(start, config.steps):
            window.waited += step(number)
            done = number + 1
            last = done == config.steps
            stopping = any_rank(stop.received) and not last
            score = None
            if done % config.log_every == 0 or last:
                line = metrics(done)
                score = line.pop("score", None)
                line |= window.close(done)
                if use_per_image is not None:
                    line["mfu"] = use_per_image * line["images_per_second"]
                log.write(done, **line)
                first = next(iter(line))
                progress.update(done, {first: line[first], "images/s": line["images_per_second"]})
            if done % config.checkpoint_every == 0 or last or stopping:
                checkpoints.save(done, engines, score)
            if stopping:
                break
        checkpoints.finish()
    if stopping:
        if ranks.first:
            say(f"{job}: stopped by SIGTERM after step {done} and saved a checkpoint; run it again to continue")
        sys.exit(_STOPPED)


class Window:
    """Metrics of speed since the last line of the log."""

    def __init__(self, batch: int, start: int) -> None:
        self.batch, self.waited = batch, 0.0
        self._start, self._clock = start, time.monotonic()

    def close(self, done: int) -> dict[str, float]:
        """Start the next window. Returns the metrics of this one.

        images_per_second: over all ranks. data_wait: share of the time. peak_memory_bytes: of this rank, so far.
        """
        now = time.monotonic()
        seconds = now - self._clock
        rate, share = self.batch * (done - self._start) / seconds, self.waited / seconds
        self._start, self._clock, self.waited = done, now, 0.0
        return {"images_per_second": rate, "data_wait": share, "peak_memory_bytes": peak_memory()}


def peak_memory() -> int:
    """Most bytes in use so far: on the CUDA device where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
