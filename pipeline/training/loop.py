"""The loop that both trainings share: steps, lines of the log, checkpoints, and an orderly end at SIGTERM."""

import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.engine import GRADIENT, Engine
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.pace import Window
from rdpm.pipeline.training.ranks import Ranks, SharedError, gather, largest
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

    step: runs the forward and backward passes of one step, given its 0-based number; returns the seconds that it waited
    for data. metrics: what to log, given the number of steps done; the progress line shows the first metric, and
    "score" ranks checkpoints (lower is better). use_per_image: share of the devices' peak FLOP/s that one image per
    second takes; with it, "mfu" is logged. When any rank gets SIGTERM, all save a checkpoint and end with exit code
    143. Raises SharedError when a loss or a gradient is not finite, and when a checkpoint cannot be written.
    """
    start = checkpoints.step
    if ranks.first and start:
        say(f"{job}: continuing from step {start}")
    progress = ProgressLine(job, config.steps, "steps", start, quiet=not ranks.first)
    window, stopping = Window(job, config.batch, start, ranks), False
    with closing(log), closing(StopRequest()) as stop, progress:
        for number in range(start, config.steps):
            window.waited += step(number)
            done = number + 1
            last = done == config.steps
            stopping = _update(config, number, ranks, checkpoints, engines, stop.received) and not last
            score = None
            if done % config.log_every == 0 or last:
                line = metrics(done)
                score = line.pop("score", None)
                line |= window.close(done, next(iter(engines.values())).forward.take())
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


def _update(
    config: RunConfig,
    number: int,
    ranks: Ranks,
    checkpoints: Checkpoints,
    engines: Mapping[str, Engine],
    stop: bool,
) -> bool:
    """The update of one step, if nothing forbids it on any rank. Returns whether any rank was told to stop.

    The ranks exchange four bits for it, once per step. Raises SharedError.
    """
    problem = next((found for engine in engines.values() if (found := engine.problem())), None)
    stopping, bad, failed, writing = largest([stop, problem is not None, checkpoints.failed, checkpoints.writing])
    if failed:
        checkpoints.finish()
    elif not writing:
        checkpoints.publish()
    if bad:
        checkpoints.finish()
        raise _refusal(config, number, ranks, gather(problem))
    lr = config.optimizer.lr_at(number, config.steps)
    if not all(engine.update(lr) for engine in engines.values()):
        checkpoints.finish()
        raise _refusal(config, number, ranks, [GRADIENT])
    return bool(stopping)


def _refusal(config: RunConfig, number: int, ranks: Ranks, problems: list[str | None]) -> SharedError:
    """Why there is no update, given the problem of each rank."""
    losses = [(rank, problem) for rank, problem in enumerate(problems) if problem not in (None, GRADIENT)]
    if losses:
        rank, problem = losses[0]
        what = f"{problem}, on rank {rank} of {ranks.count}"
    else:
        first = number * config.batch
        what = (
            f"{GRADIENT} at step {number + 1}, positions {first} to {first + config.batch - 1} of the stream on all "
            f"{ranks.count} ranks, though every loss is"
        )
    return SharedError(
        f"{what}; look at these images, or train into another out with a lower learning rate (the last checkpoint is "
        "undamaged)"
    )
