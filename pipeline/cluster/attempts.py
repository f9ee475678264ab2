"""Attempts at a shard: what may pass is tried again, what is stuck is ended, and deaths are counted.

Ray itself runs a shard again for ever when its process dies. So every attempt is entered in a ledger and struck out
when it ends, however it ends; what is left there are deaths.
"""

import contextlib
import faulthandler
import pickle
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rdpm.pipeline.cluster.probe import Probe
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.retries import is_passing

MOST_DEATHS = 3
_TRIES = 3  # of a shard whose storage or network fails; requests are tried again by themselves
_LONGEST_WAIT = 60  # seconds between two tries
SHARD = "shard"  # column of every block
DIED, REFUSED, FAILED = "died", "refused", "failed"  # columns of a block that tells how its shard ended


class _Ledger:
    """The attempts that have begun and not ended. Runs as an actor; one that is restarted has forgotten them."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, int]] = {}

    def begin(self, stage: str, shard: int) -> str | None:
        """The id of a new attempt, or None if the shard has died too often in this stage."""
        if list(self._open.values()).count((stage, shard)) >= MOST_DEATHS:
            return None
        attempt = uuid.uuid4().hex
        self._open[attempt] = (stage, shard)
        return attempt

    def end(self, attempt: str) -> None:
        """The attempt is over, and its process lives."""
        self._open.pop(attempt, None)


@dataclass(frozen=True)
class Attempts:
    """The attempts of one run of a job. Its copies in all processes share one ledger."""

    probe: Probe
    """What a process proves before its first attempt."""
    minutes: float
    """Deadline of a try; 0 for none."""
    ledger: Any
    """Handle of the actor."""

    def run(self, stage: str, shard: int, work: Callable[[], dict]) -> dict:
        """The block that the work returns, or one that says why there is none."""
        try:
            self.probe.check()
            attempt = ray.get(self.ledger.begin.remote(stage, shard))
            if attempt is None:
                return {SHARD: [shard], DIED: [stage]}
            try:
                return persistently(work, self.minutes)
            finally:
                self.ledger.end.remote(attempt)
        except (ValueError, OSError) as error:
            return ending(shard, error)


@contextlib.contextmanager
def attempts(probe: Probe, minutes: float) -> Iterator[Attempts]:
    """The attempts of one run of a job, as long as the block runs."""
    ledger: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger).remote()
    try:
        yield Attempts(probe, minutes, ledger)
    finally:
        ray.kill(ledger)


def ending(shard: int, error: ValueError | OSError) -> dict:
    """The block of a shard that ended with this error. The driver raises it itself, without Ray's traceback."""
    if _may_pass(error):
        return {SHARD: [shard], FAILED: [str(error) or type(error).__name__]}
    return {SHARD: [shard], REFUSED: [pickle.dumps(error)]}


def persistently(work: Callable[[], Any], minutes: float) -> Any:
    """The result of the work, which is tried again after errors of storage and network that may pass."""

    def attempt() -> Any:
        with deadline(minutes):
            return work()

    return Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT),
        stop=stop_after_attempt(_TRIES),
        reraise=True,
    )(attempt)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, files.StorageUnavailable) or is_passing(error)


@contextlib.contextmanager
def deadline(minutes: float) -> Iterator[None]:
    """End this process if the block takes longer, even while a C library holds the interpreter; 0 for no deadline.

    The stacks of all threads are printed first.
    """
    if minutes:
        faulthandler.dump_traceback_later(minutes * 60, exit=True)
    try:
        yield
    finally:
        if minutes:
            faulthandler.cancel_dump_traceback_later()
