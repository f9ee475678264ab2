"""Decoded rows on this node's disk, shared by all processes there: filled once, checked when opened, then mapped.

A file holds one column of one block: the rows of its parts (shards) side by side, then a CRC-32C for each part. It gets
its name after it is complete and synced, so a killed process leaves nothing behind that looks like data. A damaged file
is removed and filled again. The files opened least recently are removed first; a process that has mapped one keeps it.

A CRC shows damage, not who wrote the rows. So the folder must be this user's own, and nobody else may write to it. What
is trusted is this user, root, and the file system.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import google_crc32c
import numpy as np

from rdpm.pipeline.foundation import files

CACHE_VERSION = 1
_SUFFIX = ".rows"
_THREADS = 4  # parts that are fetched, decoded or checked at once
_PIECE = 1 << 22

Parts = Sequence[int]
"""Bytes of each part of a file."""


def default_folder() -> str:
    """$XDG_CACHE_HOME/rdpm, or else this user's folder under the system's temporary one, which is local to the node.

    Anybody may make a folder of that name first. `Cache` refuses it then.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return os.path.join(base, "rdpm") if base else os.path.join(tempfile.gettempdir(), f"rdpm-{os.geteuid()}")


class Cache:
    """The files of one folder, at most `bound` bytes together. Removed files that are still mapped do not count."""

    def __init__(self, folder: str, bound: int) -> None:
        self.folder, self.bound = folder.rstrip("/") or "/", bound

    def open(
        self,
        block: str,
        columns: Mapping[str, Parts],
        read: Callable[[int, tuple[str, ...]], Mapping[str, np.ndarray]],
    ) -> dict[str, mmap.mmap]:
        """Read-only maps of the columns of a block. Missing columns are filled with the arrays of read(part, columns).

        `block` must name the content. If several processes want the same block, one fills it and the others wait.
        Raises ValueError when there is no room in the folder or it is not this user's own, and whatever `read` raises.
        """
        self._claim()
        while True:
            maps = {name: self._map(self._path(block, name), parts) for name, parts in columns.items()}
            if None not in maps.values():
                return {name: mapped for name, mapped in maps.items() if mapped is not None}
            with self._alone(block):
                missing = {
                    name: parts for name, parts in columns.items() if not os.path.exists(self._path(block, name))
                }
                if missing:
                    self._fill(block, missing, read)

    def _path(self, block: str, column: str) -> str:
        return os.path.join(self.folder, f"{block}.{column}{_SUFFIX}")

    def _claim(self) -> None:
        """Create the folder, unless there is one already that is this user's own. Raises ValueError for any other."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            status = os.lstat(self.folder)
        except OSError as problem:
            raise self._refusal(f"cannot be created ({problem.strerror})") from None
        if not stat.S_ISDIR(status.st_mode):
            raise self._refusal("is a link", f"name {os.path.realpath(self.folder)}")
        if not _is_own(status):
            owner, mode = status.st_uid, stat.S_IMODE(status.st_mode)
            raise self._refusal(
                f"has owner {owner} and mode {mode:03o}, so others could forge rows in it",
                f"make it a folder of user {os.geteuid()} with mode 700",
            )

    def _map(self, path: str, parts: Parts) -> mmap.mmap | None:
        """A map of the file; None when there is none. One that is damaged, or not our own, is removed."""
        try:
            file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")  # noqa: SIM115, closed below
        except FileNotFoundError:
            return None
        except OSError as problem:
            if problem.errno != errno.ELOOP:
                raise
            _unlink(path)
            return None
        with file:
            if _is_own(os.fstat(file.fileno())) and _is_undamaged(file, parts):
                now = time.time_ns()  # finer than the kernel's clock for file times
                os.utime(file.fileno(), ns=(now, now))
                return mmap.mmap(file.fileno(), sum(parts), prot=mmap.PROT_READ)
        _unlink(path)
        return None

    def _fill(
        self,
        block: str,
        columns: Mapping[str, Parts],
        read: Callable[[int, tuple[str, ...]], Mapping[str, np.ndarray]],
    ) -> None:
        """Write the files of some columns of a block, all of them or none."""
        names = tuple(columns)
        starts = {name: np.append(0, np.cumsum(parts)).tolist() for name, parts in columns.items()}
        sums = {name: np.zeros(len(parts), "<u4") for name, parts in columns.items()}
        with contextlib.ExitStack() as stack:
            opened = self._reserve(stack, block, columns)

            def take(part: int) -> None:
                for name, rows in read(part, names).items():
                    data = rows.reshape(-1).view(np.uint8)
                    assert len(data) == columns[name][part], (name, part, len(data))
                    _write(opened[name], data, starts[name][part])
                    sums[name][part] = google_crc32c.value(data)

            with ThreadPoolExecutor(_THREADS) as pool:
                for _ in pool.map(take, range(len(columns[names[0]]))):
                    pass
            for name in names:
                _write(opened[name], sums[name].view(np.uint8), starts[name][-1])

    def _reserve(self, stack: contextlib.ExitStack, block: str, columns: Mapping[str, Parts]) -> dict[str, int]:
        """Files that get their names when the stack exits without an exception. Their disk space is reserved now."""
        sizes = {name: _file_size(parts) for name, parts in columns.items()}
        opened = {}
        try:
            self._make_room(sum(sizes.values()))
            for name, size in sizes.items():
                opened[name] = stack.enter_context(files.atomic_file(self._path(block, name))).fileno()
                os.fchmod(opened[name], 0o600)
                if not _is_own(os.fstat(opened[name])):  # it would be removed and filled again for ever
                    raise self._refusal("is on a file system that gives new files to another user")
                os.posix_fallocate(opened[name], 0, size)
        except OSError as problem:
            need = sum(sizes.values())
            raise self._refusal(f"has no room for {need} more bytes ({problem.strerror})", "make room there") from None
        return opened

    def _refusal(self, what: str, fix: str = "") -> ValueError:
        fixes = f"{fix}, or set" if fix else "set"
        return ValueError(f"the cache folder {self.folder} {what}; {fixes} stream.cache to another folder")

    def _make_room(self, need: int) -> None:
        """Remove the files opened least recently until `need` more bytes fit the bound."""
        present = []
        for name in files.list_names(self.folder):
            if name.endswith(_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(self.folder, name))
                    present.append((status.st_mtime_ns, status.st_size, name))
        excess = sum(size for _, size, _ in present) + need - self.bound
        for _, size, name in sorted(present):
            if excess <= 0:
                break
            _unlink(os.path.join(self.folder, name))
            excess -= size

    @contextlib.contextmanager
    def _alone(self, block: str) -> Iterator[None]:
        """Admits one thread of one process at a time. The kernel frees the lock of a killed process."""
        path = os.path.join(self.folder, f".{block}.lock")
        while True:
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(lock)):
                break
            os.close(lock)  # the previous holder removed the file while we waited for it
        try:
            yield
        finally:
            _unlink(path)
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for a child forked in the meantime, which holds the same lock
            os.close(lock)


def _is_own(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _file_size(parts: Parts) -> int:
    return sum(parts) + 4 * len(parts)


def _is_undamaged(file: IO[bytes], parts: Parts) -> bool:
    """Whether every part is what was written. Reads the whole file, which also brings it into memory."""
    handle = file.fileno()
    if os.fstat(handle).st_size != _file_size(parts):
        return False
    ends = np.cumsum(parts).tolist()
    expected = np.frombuffer(os.pread(handle, 4 * len(parts), ends[-1]), "<u4")

    def agrees(part: int) -> bool:
        crc, at = 0, ends[part] - parts[part]
        while at < ends[part]:
            piece = os.pread(handle, min(_PIECE, ends[part] - at), at)
            crc, at = google_crc32c.extend(crc, piece), at + len(piece)
        return crc == expected[part]

    with ThreadPoolExecutor(_THREADS) as pool:
        return all(pool.map(agrees, range(len(parts))))


def _write(handle: int, data: np.ndarray, at: int) -> None:
    """Write all of `data` (n,) uint8 at byte `at`; one call of the kernel may write only a part."""
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:].data, at + done)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
