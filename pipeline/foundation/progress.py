"""The progress of every job: done/total, rate, time left and a few numbers.

On a terminal it is one line that moves, in a notebook one display that is updated, and elsewhere, as in a log file or
a pipe, plain lines at growing intervals.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from rdpm.pipeline.foundation.secrets import masked

_FIRST, _GROWTH, _LONGEST = 10.0, 1.5, 600.0  # seconds to a log's first line, factor from line to line, most between
_REFRESH = 0.5  # seconds between updates of a notebook's display
_WIDE = 80  # columns of a terminal that has room for a bar


class ProgressLine:
    """Progress of `total` units of work, `done` of which lie behind when it begins. quiet: show nothing.

    Units that take long may be done in part: 2.5 of 9 trainings.
    """

    def __init__(self, title: str, total: int, unit: str, done: float = 0, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.done = masked(title), total, unit, done
        self._start, self._first = time.monotonic(), done
        self._shown: _Shown | None = None if quiet else _where()(self)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._shown.close()

    def update(self, done: float, numbers: Mapping[str, float | str] | None = None) -> None:
        """Show `done` of the total, and `numbers` by name."""
        self.done = done
        if self._shown:
            shown = "".join(f"  {name} {_short(value)}" for name, value in (numbers or {}).items())
            self._shown.show(f"{self._rate()}  {self._left()}", shown)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def count(self) -> str:
        """How much is done, of how much."""
        done = f"{self.done:.1f}" if self.done % 1 else f"{self.done:.0f}"
        return f"{done}/{self.total}"

    @property
    def complete(self) -> bool:
        """Whether everything is done."""
        return self.done >= self.total

    def _rate(self) -> str:
        """Units per second, or per hour where they are slow."""
        rate = (self.done - self._first) / self.seconds
        return f"{rate:.1f} {self.unit}/s" if rate >= 0.1 or not rate else f"{rate * 3600:.1f} {self.unit}/h"

    def _left(self) -> str:
        """How long the rest will take at this rate; when it is done, how long it took."""
        if self.complete:
            return f"took {duration(self.seconds)}"
        made = self.done - self._first
        return f"{duration((self.total - self.done) * self.seconds / made)} left" if made > 0 else "? left"


class _Shown(Protocol):
    """A place where progress is shown."""

    def __init__(self, progress: ProgressLine) -> None: ...

    def show(self, note: str, numbers: str) -> None:
        """Show where the progress stands. note: rate and time left."""

    def close(self) -> None:
        """Show the last state and end."""


class _Terminal:
    """One line that moves."""

    def __init__(self, progress: ProgressLine) -> None:
        self._progress = progress
        column = Column(no_wrap=True, min_width=2 * len(str(progress.total)) + 1)
        count = TextColumn("{task.fields[count]}", justify="right", table_column=column)
        note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._wide = Console().width >= _WIDE
        bar = (BarColumn(bar_width=20), TimeElapsedColumn()) if self._wide else ()
        self._bar = Progress(TextColumn("{task.description}"), count, *bar, note)
        self._task = self._bar.add_task(progress.title, total=progress.total, note="", count="")
        self.show("", "")
        self._bar.start()

    def show(self, note: str, numbers: str) -> None:
        done, count = self._progress.done, self._progress.count
        self._bar.update(self._task, completed=done, count=count, note=note + numbers if self._wide else note)

    def close(self) -> None:
        self._bar.stop()


class _Notebook:
    """One display of a kernel, whose text is replaced."""

    def __init__(self, progress: ProgressLine) -> None:
        from IPython.display import display  # there, because this runs in its kernel

        self._progress, self._shown_at, self._note = progress, 0.0, ""
        self._handle: Any = display(self._mime(), raw=True, display_id=True)

    def show(self, note: str, numbers: str) -> None:
        self._note = note + numbers
        if self._progress.complete or time.monotonic() - self._shown_at > _REFRESH:
            self._shown_at = time.monotonic()
            self._handle.update(self._mime(), raw=True)

    def close(self) -> None:
        self._handle.update(self._mime(), raw=True)

    def _mime(self) -> dict[str, str]:
        progress, width = self._progress, 30
        full = int(width * progress.done) // max(progress.total, 1)
        bar = "█" * full + "░" * (width - full)
        return {"text/plain": f"{progress.title}  {progress.count}  {bar}  {self._note}".rstrip()}


class _Log:
    """Plain lines: the first after ten seconds, then ever more rarely, and one when all is done."""

    def __init__(self, progress: ProgressLine) -> None:
        self._progress, self._next, self._ended = progress, _FIRST, False

    def show(self, note: str, numbers: str) -> None:
        progress = self._progress
        if self._ended or not (progress.complete or progress.seconds >= self._next):
            return
        self._ended = progress.complete
        self._next = progress.seconds + min(_LONGEST, max(_FIRST, progress.seconds * (_GROWTH - 1)))
        print(f"{progress.title}: {progress.count} {progress.unit}  {note}{numbers}", flush=True)

    def close(self) -> None:
        pass


def _where() -> type[_Shown]:
    """Where this process shows progress."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and getattr(shell, "kernel", None) is not None:
        return _Notebook
    return _Terminal if sys.stdout.isatty() else _Log


def duration(seconds: float) -> str:
    """A length of time in the two largest units that matter: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _short(value: float | str) -> str:
    return masked(value) if isinstance(value, str) else f"{value:.4g}"


def say(text: str) -> None:
    """Print one plain line for the person who runs the job, without secrets."""
    Console(soft_wrap=True, highlight=False).print(masked(text), markup=False)
