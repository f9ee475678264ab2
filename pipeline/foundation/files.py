"""The door to fsspec. Every path of the project is a local path or a URL, and this module opens all of them."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rdpm.pipeline.foundation.secrets import masked
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import ObjectDigest

_BLOCK = 1 << 22
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class StorageUnavailable(OSError):
    """A storage server did not do what it was asked, however often it was asked again."""


def join(root: str, *parts: str) -> str:
    """A name under a path or URL."""
    return "/".join([root.rstrip("/"), *parts])


def is_local(url: str) -> bool:
    """Whether the path lies on a file system of this machine."""
    return isinstance(_fs(url)[0], LocalFileSystem)


def local_path(url: str) -> str:
    """The plain path of a local file or folder. Raises ValueError for a remote one."""
    fs, path = _fs(url)
    if not isinstance(fs, LocalFileSystem):
        raise ValueError(f"{url!r} is remote; give a local path here")
    return path


def absolute(url: str) -> str:
    """The path or URL in a form that a process in any folder understands."""
    return os.path.abspath(local_path(url)) if is_local(url) else url


def _fs(url: str):
    if masked(url) != url:
        raise ValueError(
            f"{masked(url)!r} contains credentials, which would end up in records and logs; set them in the "
            "environment (AWS_ACCESS_KEY_ID and so on) or in fsspec's configuration"
        )
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)  # other processes write here too
    except ImportError as error:
        raise ValueError(f"{url!r} needs a package that is not installed: {error}") from None


def remote_errors() -> tuple[type[Exception], ...]:
    """What the S3 client raises besides OSError, for example without credentials or when the server is unreachable."""
    client = sys.modules.get("botocore.exceptions")
    return (client.BotoCoreError,) if client else ()


def exists(url: str) -> bool:
    """Whether there is such a file or folder."""
    fs, path = _fs(url)
    return fs.exists(path)


def is_file(url: str) -> bool:
    """Whether there is such a file."""
    fs, path = _fs(url)
    return fs.isfile(path)


def read_bytes(url: str) -> bytes:
    """The bytes of an object. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.cat_file(path)


def open_read(url: str) -> Any:
    """A seekable binary file, of which only the parts that are asked for are read. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.open(path, "rb")


def read_json(url: str) -> Any:
    """The JSON value in an object. Raises FileNotFoundError, and ValueError when it is not JSON."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{url!r} is not JSON ({error}); restore or delete it") from None


@contextlib.contextmanager
def atomic_file(url: str) -> Iterator[Any]:
    """A binary file to write, which appears under its name, complete, only if the block ends without an exception."""
    fs, path = _fs(url)
    _make_folder(fs, path)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile() as file:  # closing a remote file would upload it, even after an exception
            yield file
            file.flush()
            fs.put_file(file.name, path)
        return
    with _nameless(path) as (file, publish):
        yield file
        publish(replace=True)


@contextlib.contextmanager
def atomic_folder(url: str) -> Iterator[str]:
    """A folder to fill, which replaces the folder of this name only if the block ends without an exception.

    Remote file systems cannot rename a folder, so there the files appear one by one.
    """
    fs, path = _fs(url)
    if not isinstance(fs, LocalFileSystem):
        yield url
        return
    parent, name = os.path.split(path.rstrip("/"))
    temporary = os.path.join(parent, f".{name}.tmp")
    remove(temporary)  # left by a killed writer
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
    """Create an object unless it exists: True when this call created it, False when there was one already.

    Not every remote file system can do this; see `require_create`.
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


def link(source_url: str, url: str) -> bool:
    """Give the content of an object another name: True when this call did it, False when the name was there already.

    A hard link on a local file system, or a copy where links are refused; elsewhere a copy that the server makes. There
    two calls at once may both copy, so give one name to one content only. Raises FileNotFoundError for a lost source.
    """
    fs, path = _fs(url)
    source = _fs(source_url)[1]
    _make_folder(fs, path)
    if not isinstance(fs, LocalFileSystem):
        if fs.exists(path):
            return False
        fs.cp_file(source, path)
        return True
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links, or another one
        return create_bytes(url, read_bytes(source_url))
    return True


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int = 64) -> Iterator[_Result]:
    """Results of a function that mostly waits, in the order of the items, with at most `at_once` calls at a time.

    Items are taken as they are needed. The first exception in that order ends it; calls that wait are then dropped.
    """
    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                if len(waiting) >= at_once:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def require_create(root: str) -> None:
    """Check, with an object that is deleted again, that `create_bytes` never replaces an object under this root.

    S3 (If-None-Match), GCS (generation match) and fsspec's memory guarantee it, but some S3-compatible servers ignore
    the condition. Raises ValueError when it is ignored.
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
            f"the file system of {root} cannot create an object only if it is absent, so two jobs could mix their "
            "work; write to a local folder or to an object store that can, and copy the result"
        )


def _make_folder(fs: Any, path: str) -> None:
    if not fs.async_impl:  # object stores have no folders; makedirs would try to create the bucket
        fs.makedirs(fs._parent(path), exist_ok=True)


@contextlib.contextmanager
def _nameless(path: str) -> Iterator[tuple[Any, Callable[..., None]]]:
    """A file in the folder of `path`, and a function that syncs it to disk and then gives it that name.

    On Linux the file has no name before that, so a process that is killed while it writes leaves nothing behind.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        file = os.fdopen(os.open(folder or ".", os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
        named = False
    except (AttributeError, OSError):  # not Linux, or a file system without nameless files
        file, named = open(temporary, "wb"), True  # noqa: SIM115, closed below

    def publish(replace: bool) -> None:
        file.flush()
        os.fsync(file.fileno())
        source = temporary if named else f"/proc/self/fd/{file.fileno()}"
        if not named and replace:
            os.link(source, temporary, src_dir_fd=file.fileno())  # src_dir_fd: link what /proc's link points to
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


def list_names(url: str) -> list[str]:
    """Sorted names of the files directly in a folder, without hidden ones; empty when there is no folder."""
    return _names(url, "file")


def list_folders(url: str) -> list[str]:
    """Sorted names of the folders directly in a folder, without hidden ones."""
    return _names(url, "directory")


def _names(url: str, kind: str) -> list[str]:
    fs, path = _fs(url)
    if not fs.isdir(path):
        return []
    if isinstance(fs, LocalFileSystem):  # fs.ls would stat every file, and there may be a hundred thousand
        names = [entry.name for entry in os.scandir(path) if (entry.is_file() if kind == "file" else entry.is_dir())]
    else:
        try:
            names = [e["name"].rstrip("/").rsplit("/", 1)[-1] for e in fs.ls(path, detail=True) if e["type"] == kind]
        except FileNotFoundError:  # a folder on S3 disappears with its last object
            return []
    return sorted(name for name in names if not name.startswith("."))


def list_files(url: str) -> list[tuple[str, int]]:
    """(name under the folder, size in bytes) of every file below a folder, sorted, without hidden files and folders."""
    fs, path = _fs(url)
    root = path.rstrip("/") + "/"
    entries = fs.find(path, detail=True).items()
    names = ((name[len(root) :], int(info["size"])) for name, info in entries if name.startswith(root))
    return sorted((name, size) for name, size in names if not any(p.startswith(".") for p in name.split("/")))


def digest_file(url: str) -> ObjectDigest:
    """Size and sha256 of an object, read block by block. Raises FileNotFoundError."""
    fs, path = _fs(url)
    sha, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
            size += len(block)
    return ObjectDigest(size, sha.hexdigest())


def remove(url: str) -> None:
    """Delete a file or a folder with everything in it; does nothing when there is none."""
    fs, path = _fs(url)
    if fs.exists(path):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            fs.rm(path, recursive=True)


def size(url: str) -> int:
    """Size of an object in bytes. Raises FileNotFoundError."""
    fs, path = _fs(url)
    return fs.size(path)


def read_parts(parts: Sequence[tuple[str, int, int]]) -> list[bytes | FileNotFoundError]:
    """Objects or parts of them, given as (url, offset, bytes) and fetched together; offset -1 is the whole object."""
    fs = _fs(parts[0][0])[0]
    paths = [fs._strip_protocol(url) for url, _, _ in parts]
    starts = [None if offset < 0 else offset for _, offset, _ in parts]
    stops = [None if offset < 0 else offset + length for _, offset, length in parts]
    results = fs.cat_ranges(paths, starts, stops, on_error="return")
    for data in results:
        if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
            raise data
    return results


def glob(pattern: str) -> list[str]:
    """Sorted paths or URLs that match a pattern with `*` and `?`."""
    fs, path = _fs(pattern)
    return sorted(name if is_local(pattern) else fs.unstrip_protocol(name) for name in fs.glob(path))
