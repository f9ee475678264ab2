"""Small file systems of their own: they can be full, grow, and become read-only."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A tmpfs that holds `kib` KiB."""

    def __init__(self, folder: Path, kib: int) -> None:
        self.folder = folder
        folder.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "rdpm-test", str(folder))

    def resize(self, kib: int) -> None:
        """Give it another size. What is there stays."""
        _run("mount", "-o", f"remount,rw,size={kib}k", str(self.folder))

    def make_read_only(self) -> None:
        """Refuse every write until `resize`."""
        _run("mount", "-o", "remount,ro", str(self.folder))

    def close(self) -> None:
        """Unmount it, with everything on it."""
        _run("umount", "--lazy", str(self.folder))


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Disk]:
    """Such a disk; skips the test where this machine forbids mounts."""
    try:
        disk = Disk(folder, kib)
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"this machine forbids mounts: {error}")
    try:
        yield disk
    finally:
        disk.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
