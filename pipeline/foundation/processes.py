"""Which process made something, written down so that others can tell whether it still runs."""

import os
import socket
from pathlib import Path


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
