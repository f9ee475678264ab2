"""Processes that a test has started, with all that they start in turn. They are found and ended by their ids.

Every process of a family carries the family's mark in its environment, which children inherit. So those are found whose
parents are dead, and nothing else is ever touched. Children of theirs that overwrite the mark are found while they have
that parent, and remembered.
"""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_MARK = "RDPM_TEST_FAMILY"


class Family:
    """A command and everything below it. `log` receives what they print."""

    def __init__(self, log: Path) -> None:
        self.log, self._started, self._seen = log, list[subprocess.Popen](), set[psutil.Process]()
        self.mark = {_MARK: uuid.uuid4().hex}
        """The variable that makes a process a member."""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> subprocess.Popen:
        """Start a command in a session of its own. environment: replaces or extends this process's variables."""
        variables = {**os.environ, **(environment or {}), **self.mark}
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(started)
        return started

    def members(self, part: str = "") -> list[psutil.Process]:
        """The live processes of the family whose command line contains `part`."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark[_MARK]:
                    self._seen |= {process, *process.children(recursive=True)}  # Ray's workers overwrite their mark
        self._seen = {process for process in self._seen if _lives(process)}
        found = []
        for process in self._seen:
            with contextlib.suppress(psutil.Error):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def send(self, number: int, part: str = "") -> int:
        """Send a signal to every such process. Returns to how many."""
        reached = 0
        for process in self.members(part):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                reached += 1
        return reached

    def close(self) -> None:
        """SIGKILL all of them, and those that they start meanwhile."""
        deadline = time.monotonic() + 30
        while self.send(signal.SIGKILL) and time.monotonic() < deadline:
            time.sleep(0.05)
        for started in self._started:
            started.wait(30)
        assert not self.members(), self.members()

    def printed(self, characters: int = 4000) -> str:
        """The end of what they have printed."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(true: Callable[[], object], seconds: float, what: str, pause: float = 0.05) -> None:
    """Wait for a condition. Raises AssertionError that says what was awaited."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(pause)
