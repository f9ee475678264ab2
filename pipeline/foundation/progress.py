"""One progress line for every job: done/total, rate, time left, and a few numbers."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rdpm.pipeline.foundation.secrets import masked


class ProgressLine:
    """A live bar on a terminal. Elsewhere, as in a log file, a plain line about every ten seconds and at the end."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.done = masked(title), total, unit, done
        self._start, self._first, self._printed = time.monotonic(), done, 0.0
        self._quiet = quiet
        self._bar: Progress | None = None
        if sys.stdout.isatty() and not quiet:
            columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"))
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, numbers: Mapping[str, float | str] | None = None) -> None:
        """Show `done` of the total, and `numbers` by name."""
        self.done = done
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (done - self._first) / elapsed
        shown = "".join(f"  {name} {_short(value)}" for name, value in (numbers or {}).items())
        note = f"{rate:.1f} {self.unit}/s{shown}"
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif not self._quiet and (elapsed - self._printed > 10 or done >= self.total):
            self._printed = elapsed
            left = (self.total - done) / rate if rate > 0 else float("inf")
            print(f"{self.title}: {done}/{self.total} {self.unit}  {note}  {left:.0f} s left", flush=True)


def _short(value: float | str) -> str:
    return masked(value) if isinstance(value, str) else f"{value:.4g}"


def say(text: str) -> None:
    """Print one plain line for the person who runs the job, without secrets."""
    Console(soft_wrap=True, highlight=False).print(masked(text), markup=False)
