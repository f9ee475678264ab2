"""The door to fsspec: every path of the project is a local path or a URL, and goes through here."""

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rdpm.pipeline.foundation.secrets import masked
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import ObjectDigest

_BLOCK = 1 << 22


def join(root: str, *parts: str) -> str:
    """A name under a path or URL."""
    return "/".join([root.rstrip("/"), *parts])


def is_local(url: str) -> bool:
    """Whether the path lies on this machine's file systems."""
    return isinstance(_fs(url)[0], LocalFileSystem)


def local_path(url: str) -> str:
    """The plain path of a local file or folder. Raises ValueError for a remote one."""
    fs, path = _fs(url)
    if not isinstance(fs, LocalFileSystem):
        raise ValueError(f"{url!r} is remote; give a local path here")
    return path


def absolute(url: str) -> str:
    """The path or URL as another process, in another folder, would name it."""
    return os.path.abspath(local_path(url)) if is_local(url) else url


def _fs(url: str):
    if masked(url) != url:
        raise ValueError(
            f"{masked(url)!r} carries credentials, which would end up in records and logs; give them by environment "
            "(AWS_ACCESS_KEY_ID and so on) or by fsspec's configuration"
        )
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)  # other processes write here too
    except ImportError as error:
        raise ValueError(f"{url!r} needs a package that is not here: {error}") from None


def remote_errors() -> tuple[type[Exception], ...]:
    """What the client of S3 raises beside OSError, as when there are no credentials or nobody answers."""
    client = sys.modules.get("botocore.exceptions")
    return (client.BotoCoreError,) if client else ()


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = _fs(url)
    return fs.exists(path)


def is_file(url: str) -> bool:
    """Whether this is a file."""
    fs, path = _fs(url)
    return fs.isfile(path)


def read_bytes(url: str) -> bytes:
    """A whole object. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.cat_file(path)


def open_read(url: str) -> Any:
    """A seekable binary file that is read as far as it is asked for. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.open(path, "rb")


def read_json(url: str) -> Any:
    """A JSON object. Raises FileNotFoundError, and ValueError when it is not JSON."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{url!r} is not JSON ({error}); restore or delete it") from None


@contextlib.contextmanager
def atomic_file(url: str) -> Iterator[Any]:
    """A binary file that appears under its name whole, when the block ends without an exception, or not at all."""
    fs, path = _fs(url)
    _make_folder(fs, path)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile() as file:  # closing a remote file completes its upload, failed or not
            yield file
            file.flush()
            fs.put_file(file.name, path)
        return
    with _nameless(path) as (file, publish):
        yield file
        publish(replace=True)


@contextlib.contextmanager
def atomic_folder(url: str) -> Iterator[str]:
    """A folder to fill, which appears under its name, in place of an older one, when the block ends well.

    A remote store cannot rename a folder: there its files appear one by one.
    """
    fs, path = _fs(url)
    if not isinstance(fs, LocalFileSystem):
        yield url
        return
    parent, name = os.path.split(path.rstrip("/"))
    temporary = os.path.join(parent, f".{name}.tmp")
    remove(temporary)  # what a killed writer left
    os.makedirs(temporary)
    yield temporary
    remove(path)
    os.rename(temporary, path)


def write_bytes(url: str, data: bytes) -> None:
    """Write or replace an object atomically."""
    with atomic_file(url) as file:
        file.write(data)


def write_json(url: str, value: Any) -> None:
    """Write or replace canonical JSON atomically."""
    write_bytes(url, canonical_json(value))


def create_bytes(url: str, data: bytes) -> bool:
    """Put if absent: True when this call made the object, False when there already was one.

    On a remote file system this needs its help; see `require_create`.
    """
    fs, path = _fs(url)
    _make_folder(fs, path)
    if not isinstance(fs, LocalFileSystem):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    with _nameless(path) as (file, publish):
        file.write(data)
        try:
            publish(replace=False)
        except FileExistsError:
            return False
    return True


def require_create(root: str) -> None:
    """Try out, with an object that is deleted again, that `create_bytes` never replaces one under this root.

    S3 (If-None-Match), GCS (generation match) and fsspec's memory can; some servers that speak S3 ignore the condition.
    Raises ValueError where it is not honoured.
    """
    if is_local(root):
        return
    probe = join(root, f".probe.{uuid.uuid4().hex}")
    try:
        honoured = create_bytes(probe, b"first") and not create_bytes(probe, b"second")
    except (NotImplementedError, ValueError, TypeError):
        honoured = False
    finally:
        remove(probe)
    if not honoured:
        raise ValueError(
            f"the file system of {root} cannot put an object only where there is none, without which two jobs could "
            "mix their work; write to a local folder or an object store that can, and copy the result"
        )


def _make_folder(fs: Any, path: str) -> None:
    if not fs.async_impl:  # object stores have no folders, and to ask for one would be to ask for its bucket
        fs.makedirs(fs._parent(path), exist_ok=True)


@contextlib.contextmanager
def _nameless(path: str) -> Iterator[tuple[Any, Callable[..., None]]]:
    """A file in the folder of `path` and a function that gives it that name once it is on disk.

    On Linux the file has no name until then, so that a process killed while it writes leaves nothing behind.
    """
    temporary = _temporary(path)
    try:
        file = os.fdopen(os.open(os.path.dirname(path) or ".", os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
        named = False
    except (AttributeError, OSError):  # not Linux, or a file system that cannot
        file, named = open(temporary, "wb"), True  # noqa: SIM115, closed below

    def publish(replace: bool) -> None:
        file.flush()
        os.fsync(file.fileno())
        source = temporary if named else f"/proc/self/fd/{file.fileno()}"
        if not named and replace:
            os.link(source, temporary, src_dir_fd=file.fileno())  # src_dir_fd: the call that follows /proc's link
            source = temporary
        if replace:
            os.replace(source, path)
        else:
            os.link(source, path, src_dir_fd=file.fileno())

    try:
        with file:
            yield file, publish
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")


def list_names(url: str) -> list[str]:
    """Sorted names of the files directly in a folder, temporary ones left out; empty when there is no folder."""
    return _names(url, "file")


def list_folders(url: str) -> list[str]:
    """Sorted names of the folders directly in a folder, hidden ones left out."""
    return _names(url, "directory")


def _names(url: str, kind: str) -> list[str]:
    fs, path = _fs(url)
    if not fs.isdir(path):
        return []
    if isinstance(fs, LocalFileSystem):  # ls would look at every file, and there may be a hundred thousand
        names = [entry.name for entry in os.scandir(path) if (entry.is_file() if kind == "file" else entry.is_dir())]
    else:
        try:
            names = [e["name"].rstrip("/").rsplit("/", 1)[-1] for e in fs.ls(path, detail=True) if e["type"] == kind]
        except FileNotFoundError:  # a folder on S3 is gone with its last object
            return []
    return sorted(name for name in names if not name.startswith("."))


def list_files(url: str) -> list[tuple[str, int]]:
    """(name under the folder, size in bytes) of every file below it, sorted, hidden files and folders left out."""
    fs, path = _fs(url)
    root = path.rstrip("/") + "/"
    found = fs.find(path, detail=True).items()
    names = ((name[len(root) :], int(info["size"])) for name, info in found if name.startswith(root))
    return sorted((name, size) for name, size in names if not any(p.startswith(".") for p in name.split("/")))


def digest_file(url: str) -> ObjectDigest:
    """Size and sha256 of an object, streamed. Raises FileNotFoundError."""
    fs, path = _fs(url)
    sha, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
            size += len(block)
    return ObjectDigest(size, sha.hexdigest())


def remove(url: str) -> None:
    """Delete a file or a whole folder; nothing happens when there is none."""
    fs, path = _fs(url)
    if fs.exists(path):
        with contextlib.suppress(FileNotFoundError):  # somebody else deletes it too
            fs.rm(path, recursive=True)


def size(url: str) -> int:
    """Bytes of an object. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.size(path)


def read_parts(parts: Sequence[tuple[str, int, int]]) -> list[bytes | FileNotFoundError]:
    """Objects or pieces of them, given as (url, offset, bytes), fetched together; offset -1 means the whole object."""
    fs = _fs(parts[0][0])[0]
    paths = [fs._strip_protocol(url) for url, _, _ in parts]
    starts = [None if offset < 0 else offset for _, offset, _ in parts]
    stops = [None if offset < 0 else offset + length for _, offset, length in parts]
    found = fs.cat_ranges(paths, starts, stops, on_error="return")
    for data in found:
        if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
            raise data
    return found


def expand(pattern: str) -> list[str]:
    """URLs that a pattern stands for, sorted: `{000..146}` and `{a,b}` are spelled out, `*` and `?` are looked up."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces:
        first, last, words = braces.groups()
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)) if first else ()
        choices = words.split(",") if words else numbers
        return sorted({url for choice in choices for url in expand(pattern.replace(braces[0], choice, 1))})
    if not re.search(r"[*?]", pattern):
        return [pattern]
    fs, path = _fs(pattern)
    return sorted(found if is_local(pattern) else fs.unstrip_protocol(found) for found in fs.glob(path))
