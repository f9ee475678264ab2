"""What is on disk when: files, folders and names that must outlive a loss of power; and disks that are full."""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from contextvars import ContextVar

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2
_FULL = {errno.ENOSPC, errno.EDQUOT}
_delayed: ContextVar[set[str] | None] = ContextVar("delayed", default=None)  # what a `together` block will sync


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is written in the block is brought to disk at its end, which costs far less than one by one.

    Until then, names may outlive a loss of power that their data do not. So write what says that all is there after the
    block. It holds for this thread, and for calls of `files.in_parallel` that it makes.
    """
    paths: set[str] = set()
    token = _delayed.set(paths)
    try:
        yield
    finally:
        _delayed.reset(token)
    for path in sorted(paths, key=os.path.isdir):  # files before folders
        with contextlib.suppress(FileNotFoundError, PermissionError):  # gone since; one may write there, but not look
            _sync(path)


def sync_file(file: int, path: str) -> None:
    """Bring an open file to disk before it gets the name `path`."""
    paths = _delayed.get()
    if paths is None:
        os.fsync(file)
    else:
        paths.add(path)


def sync_folder(folder: str) -> None:
    """Bring the names in a folder to disk, where its file system can do that."""
    paths = _delayed.get()
    if paths is None:
        with contextlib.suppress(PermissionError):  # one may write there, but not look
            _sync(folder or ".")
    else:
        paths.add(folder or ".")


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def as_one(folder: str) -> Iterator[None]:
    """What is written in the block lies in this folder, and all of it is brought to disk at its end."""
    token = _delayed.set(set())
    try:
        yield
    finally:
        _delayed.reset(token)
    sync_all(folder)


def sync_all(folder: str) -> None:
    """Bring everything in a folder to disk at once: for many files much faster than one by one."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:  # not Linux
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if function(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(handle)


def make_folder(folder: str) -> None:
    """Make a folder and those above it, and bring their names to disk."""
    if not folder or os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:  # another process was faster, or it is a file
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    except OSError as error:
        raise _named(error, folder) from None
    sync_folder(parent)


def rename(source: str, path: str, flag: int) -> bool:
    """Linux's renameat2 with a flag; False where the system or the file system does not have it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function and function(-100, os.fsencode(source), -100, os.fsencode(path), flag) == 0:  # -100: names as usual
        return True
    number = ctypes.get_errno() if function else errno.ENOSYS
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def naming(path: str, temporary: str = "") -> Iterator[None]:
    """Errors of the block speak of `path`, not of its temporary name, and of a full disk in words."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, temporary):
            error.filename = path
        named = _named(error, path)
        if named is error:
            raise
        raise named from error


def _named(error: OSError, path: str) -> OSError:
    return disk_full(str(error.filename or path), error.errno) if error.errno in _FULL else error


def disk_full(path: str, number: int = errno.ENOSPC) -> OSError:
    """The error that `path` could not be written because its disk is full, as one sentence that says what to do."""
    place = os.path.abspath(path)
    while not os.path.lexists(place) or not os.path.ismount(place):
        place = os.path.dirname(place)
    status = os.statvfs(place)
    free = f"{status.f_bavail * status.f_frsize / 1e6:.1f} of {status.f_blocks * status.f_frsize / 1e6:.1f} MB free"
    if number == errno.EDQUOT:
        what = f"your quota at {place} is used up"
    elif status.f_files and not status.f_favail:
        what = f"the disk at {place} can hold no more files"
    else:
        what = f"the disk at {place} is full ({free})"
    return OSError(number, f"cannot write {path}: {what}; make room there and run the command again")
