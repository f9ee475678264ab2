"""The loop that both trainings share: steps, their log lines, checkpoints, and an orderly end when asked to stop."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
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
    """Set by SIGTERM, which schedulers send before they take a machine away."""

    def __init__(self) -> None:
        self.here = False
        self._former = signal.signal(signal.SIGTERM, self._set)

    def _set(self, *_: object) -> None:
        self.here = True

    def close(self) -> None:
        """Give the signal back."""
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
    """Run `step` from where the checkpoints stand to the last one.

    step: does one 0-based step and returns the seconds that it waited for data. metrics: what to log after so many
    steps, the first of which is shown; "score", where there is one, ranks checkpoints (lower is better). use_per_image:
    share of the devices' peak that one image per second takes, for "mfu". When any rank was sent SIGTERM, saves a
    checkpoint and ends the process with code 143.
    """
    start = checkpoints.step
    if ranks.first and start:
        say(f"{job}: continuing from step {start}")
    stop, window = StopRequest(), Window(config.batch, start)
    stopping = False
    with ProgressLine(job, config.steps, "steps", start, quiet=not ranks.first) as progress:
        for number in range(start, config.steps):
            window.waited += step(number)
            done = number + 1
            last = done == config.steps
            stopping = any_rank(stop.here) and not last
            score = None
            if done % config.log_every == 0 or last:
                line = metrics(done)
                score = line.pop("score", None)
                line |= window.close(done)
                if use_per_image is not None:
                    line["mfu"] = use_per_image * line["images_per_second"]
                log.write(done, **line)
                shown = next(iter(line))
                progress.update(done, {shown: line[shown], "images/s": line["images_per_second"]})
            if done % config.checkpoint_every == 0 or last or stopping:
                checkpoints.save(done, engines, score)
            if stopping:
                break
    checkpoints.finish()
    log.close()
    stop.close()
    if stopping:
        if ranks.first:
            say(f"{job}: stopped by SIGTERM after step {done}, which is saved; run it again to continue")
        sys.exit(_STOPPED)


class Window:
    """Rates since the last line of the log."""

    def __init__(self, batch: int, start: int) -> None:
        self.batch, self.waited = batch, 0.0
        self._start, self._clock = start, time.monotonic()

    def close(self, done: int) -> dict[str, float]:
        """images_per_second over all ranks, data_wait (share of the time), peak_memory_bytes of this rank."""
        now = time.monotonic()
        seconds = now - self._clock
        rate, share = self.batch * (done - self._start) / seconds, self.waited / seconds
        self._start, self._clock, self.waited = done, now, 0.0
        return {"images_per_second": rate, "data_wait": share, "peak_memory_bytes": peak_memory()}


def peak_memory() -> int:
    """Bytes at the peak so far: of the device where there is CUDA, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
