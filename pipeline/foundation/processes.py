"""Processes: which one made something, whether it still runs, and ending one with its parent."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def machine() -> str:
    """What processes share that see each other and one clock: a boot of a machine, and namespaces; "" if unknown.

    Containers have the boot of their machine in common, but not its processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespaces = (os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "time"))
        return " ".join([socket.gethostname(), boot, *namespaces])
    except OSError:  # not Linux
        return ""


def started(pid: int) -> str:
    """When a process started, in ticks of the machine; "" for one that has ended. A later process may get its pid.

    Raises OSError where /proc does not show the process.
    """
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def is_gone(pid: int, since: str) -> bool:
    """Whether the process of this machine that `started` at `since` has ended."""
    try:
        os.kill(pid, 0)
        return started(pid) != since
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user, which /proc may hide
        return False


def end_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let this process get a signal when its parent ends, on Linux; at once if it has ended already. Not inherited.

    parent: the process that started this one. The kernel sends the signal when the thread ends that did.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before the kernel was told
            os.kill(os.getpid(), number)
