"""The loop that both trainings share: steps, their log lines, checkpoints, and an orderly end when asked to stop."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.ranks import Ranks, any_rank, leave_ranks

_STOPPED = 128 + signal.SIGTERM


class Pace(Protocol):
    """What the loop needs of a training's config."""

    @property
    def batch(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


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
    pace: Pace,
    ranks: Ranks,
    checkpoints: Checkpoints,
    engines: Mapping[str, Engine],
    log: TrainingLog,
    step: Callable[[int], float],
    figures: Callable[[int], dict[str, Any]],
    use_per_image: float | None = None,
) -> None:
    """Run `step` from where the checkpoints stand to the last one.

    step: does one 0-based step and returns the seconds it waited for data. figures: what to log after so many steps,
    the one to show first; "score", where there is one, tells checkpoints apart (lower is better). use_per_image: share
    of the devices' peak that one image a second takes, for "mfu". Ends the process with code 143, after a checkpoint,
    when any rank was sent SIGTERM.
    """
    start = checkpoints.step
    if ranks.first and start:
        say(f"{job}: going on from step {start}")
    stop, window = StopRequest(), Window(pace.batch, start)
    with ProgressLine(job, pace.steps, "steps", start, quiet=not ranks.first) as progress:
        for number in range(start, pace.steps):
            window.waited += step(number)
            done = number + 1
            last = done == pace.steps
            stopping = any_rank(stop.here) and not last
            score = None
            if done % pace.log_every == 0 or last:
                found = figures(done)
                score = found.pop("score", None)
                found |= window.close(done)
                if use_per_image is not None:
                    found["mfu"] = use_per_image * found["images_per_second"]
                log.write(done, **found)
                shown = next(iter(found))
                progress.update(done, {shown: found[shown], "images/s": found["images_per_second"]})
            if done % pace.checkpoint_every == 0 or last or stopping:
                checkpoints.save(done, engines, score)
            if stopping:
                break
    checkpoints.finish()
    log.close()
    stop.close()
    if stopping:
        leave_ranks()
        if ranks.first:
            say(f"{job}: stopped by SIGTERM after step {done}, which is saved; run it again to go on")
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
