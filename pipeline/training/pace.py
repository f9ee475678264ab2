"""The speed of a training, by windows of steps, and which rank slows it down."""

import resource
import socket
import statistics
import time

import torch

from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.training.ranks import Ranks, gather

_STEPS = 10  # in shorter windows a rank is not called slow
_SECONDS, _TIMES = 0.01, 2.0  # per step above the median, and times the median, at which it is


class Stopwatch:
    """Seconds that forward passes take on a device. It does not wait for the device before `take`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._passed: list[tuple] = []
        self._started: torch.cuda.Event | float = 0.0

    def start(self) -> None:
        """Begin one interval."""
        self._started = self._now()

    def stop(self) -> None:
        """End it."""
        self._passed.append((self._started, self._now()))

    def take(self) -> float:
        """Seconds of all intervals since the last call."""
        passed, self._passed = self._passed, []
        if not self._cuda:
            return sum(end - start for start, end in passed)
        if passed:
            passed[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in passed) / 1000

    def _now(self):
        if not self._cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Window:
    """Metrics of speed since the last line of the log."""

    def __init__(self, job: str, batch: int, start: int, ranks: Ranks) -> None:
        self.job, self.batch, self.ranks, self.waited = job, batch, ranks, 0.0
        self._start, self._clock = start, time.monotonic()
        self._named = set[int]()

    def close(self, done: int, forward: float) -> dict[str, float]:
        """Start the next window. Returns the metrics of this one; every rank calls it.

        forward: seconds of this rank's forward passes. images_per_second: over all ranks. data_wait: share of the time.
        own_seconds, own_seconds_max: seconds per step that the median and the slowest rank spend on what waits for no
        other rank, data and forward passes; under ZeRO-3 those wait for weights too. peak_memory_bytes: of this rank,
        so far.
        """
        now = time.monotonic()
        seconds, steps = now - self._clock, done - self._start
        own = gather(((self.waited + forward) / steps, socket.gethostname()))
        median, slowest = self._compare(own, steps)
        line = {
            "images_per_second": self.batch * steps / seconds,
            "data_wait": self.waited / seconds,
            "own_seconds": median,
            "own_seconds_max": slowest,
            "peak_memory_bytes": peak_memory(),
        }
        self._start, self._clock, self.waited = done, now, 0.0
        return line

    def _compare(self, own: list[tuple[float, str]], steps: int) -> tuple[float, float]:
        """Median and largest of the ranks' own seconds. A rank that is much slower is named, once."""
        median = statistics.median_low(seconds for seconds, _ in own)
        slowest = max(range(len(own)), key=lambda rank: own[rank][0])
        seconds, host = own[slowest]
        much = seconds > max(_TIMES * median, median + _SECONDS) and steps >= _STEPS
        if much and slowest not in self._named and self.ranks.first:
            say(
                f"{self.job}: rank {slowest} on {host} is slow: it spends {seconds:.3g} s per step on data and forward "
                f"passes, the median rank {median:.3g} s; look at that machine"
            )
        if much:
            self._named.add(slowest)
        return median, seconds


def peak_memory() -> int:
    """Most bytes in use so far: on the CUDA device where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
