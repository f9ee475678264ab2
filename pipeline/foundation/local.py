"""Files and folders on this machine: each is under its name whole, or not at all.

That holds after an exception, a full disk, a kill and a loss of power. So data are on disk before they get their name,
and the folder that holds the name is on disk before the call returns. What has no name yet lies beside it under a
hidden one, `.[NAME.]MACHINE-PID-STARTED-RANDOM.tmp`, and is removed by a later writer in that folder (see `_sweep`).
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from rdpm.pipeline.foundation.disk import (
    EXCHANGE,
    NO_REPLACE,
    as_one,
    make_folder,
    naming,
    rename,
    sync_file,
    sync_folder,
)
from rdpm.pipeline.foundation.processes import is_gone, machine, started

_REFUSED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # by file systems without hard links
_DAY = 86400.0
_HIDDEN = re.compile(
    r"\.(?:(?P<name>.+)\.)?(?P<machine>[0-9a-f]*)-(?P<pid>\d+)-(?P<started>\d*)-[0-9a-f]{8}\.(?P<kind>tmp|old)"
)
_swept: set[tuple[int, str]] = set()  # (process, folder) where a process has looked for leftovers


@contextlib.contextmanager
def nameless(path: str) -> Iterator[tuple[Any, Callable[[bool], None]]]:
    """A file in the folder of `path`, and a function that syncs it to disk and then gives it that name.

    The function's argument says whether to replace a file of that name; if not, it raises FileExistsError for one. On
    Linux the file has no name before, so a process that is killed while it writes leaves nothing behind.
    """
    folder = os.path.dirname(path)
    make_folder(folder)
    _sweep(folder)
    temporary = _hidden(folder)
    with naming(path, temporary):
        try:
            file = os.fdopen(os.open(folder or ".", os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
            named = False
        except (AttributeError, OSError):  # not Linux, or a file system without nameless files
            file, named = open(temporary, "wb"), True  # noqa: SIM115, closed below

        def publish(replace: bool) -> None:
            file.flush()
            sync_file(file.fileno(), path)
            if not replace:
                _link_file(file, temporary if named else None, path)
            else:
                if not named:
                    _link_file(file, None, temporary)
                os.replace(temporary, path)
            sync_folder(folder)

        try:
            with file:
                yield file, publish
        finally:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary)


def _link_file(file: Any, name: str | None, path: str) -> None:
    """Give an open file, of this name or of none, a name. Raises FileExistsError when it is taken."""
    if name is None:  # src_dir_fd: link what /proc's link points to
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=file.fileno())
        return
    try:
        os.link(name, path)
    except OSError as refused:
        if refused.errno not in _REFUSED or not rename(name, path, NO_REPLACE):
            raise


def link(source: str, path: str, replace: bool = False) -> bool:
    """Give a file a second name, or a copy where links are refused; False for a taken name that is to stay."""
    folder = os.path.dirname(path)
    make_folder(folder)
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError as refused:  # taken, no hard links here, or the source is on another disk, or another user's
        if isinstance(refused, FileExistsError) and (not replace or os.path.samefile(source, path)):
            return replace
        with open(source, "rb") as data, nameless(path) as (file, publish):
            shutil.copyfileobj(data, file)
            try:
                publish(replace)
            except FileExistsError:
                return False
        return True
    sync_folder(folder)
    return True


@contextlib.contextmanager
def folder_in_place(path: str) -> Iterator[str]:
    """A folder to fill, which replaces what has this name only if the block ends without an exception.

    The new one is whole and on disk before the old one goes. Where the file system cannot exchange two names (NFS), the
    old one is hidden for a moment; if the machine fails just then, the next writer brings it back.
    """
    path = path.rstrip("/")
    parent, name = os.path.split(path)
    make_folder(parent)
    _sweep(parent)
    new = _hidden(parent, name)
    old = new.removesuffix("tmp") + "old"
    try:
        with naming(path, new):
            os.mkdir(new)
            with as_one(new):
                yield new
            _publish_folder(new, old, path)
        sync_folder(parent)
    finally:
        _discard(new)  # the old one, or half of the new one
        _discard(old)


def _publish_folder(new: str, old: str, path: str) -> None:
    """Give a new folder its name; what had it is then called `new` or `old`. Others may do the same at this moment."""
    while True:
        try:
            os.rename(new, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        _discard(old)
        with contextlib.suppress(FileNotFoundError):  # another writer is between its two steps
            if rename(new, path, EXCHANGE):
                return
            os.rename(path, old)


def _hidden(folder: str, name: str = "") -> str:
    """A new hidden name in a folder, which says who made it."""
    return os.path.join(folder, f".{name}{'.' if name else ''}{_owner(os.getpid())}-{uuid.uuid4().hex[:8]}.tmp")


@functools.cache
def _owner(pid: int) -> str:
    try:
        return f"{_here()}-{pid}-{started(pid)}"
    except OSError:  # not Linux
        return f"-{pid}-"


def _here() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:12] if machine() else ""


def _sweep(folder: str) -> None:
    """Remove what killed writers left in a folder; a process does so when it first writes there.

    A writer on this machine is known to be gone. Of another machine's writer nobody knows, so what it left goes after a
    day without a change. An old folder that was hidden and not replaced gets its name back.
    """
    if (os.getpid(), folder) in _swept:
        return
    _swept.add((os.getpid(), folder))
    for entry in os.scandir(folder or "."):
        match = _HIDDEN.fullmatch(entry.name)
        if match and _is_left(entry.path, match):
            whole = os.path.join(folder, match["name"] or "")
            if match["kind"] == "old" and not os.path.lexists(whole):
                with contextlib.suppress(OSError):
                    os.rename(entry.path, whole)
            _discard(entry.path)


def _is_left(path: str, match: re.Match[str]) -> bool:
    if match["machine"] and match["machine"] == _here():
        return is_gone(int(match["pid"]), match["started"])
    try:
        inside = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else []
        return max(os.lstat(name).st_mtime for name in (path, *inside)) < time.time() - _DAY
    except FileNotFoundError:
        return False


def _discard(path: str) -> None:
    """Remove a file or a folder, or what is left of it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)
