"""Files and folders. Every path of the project is a local path or a URL, and this module opens all of them.

`local` writes those of this machine; `remote` asks storage servers, and `retries` makes failed requests again.
Whatever is written is complete under its name, or is not there. Errors are OSError: a `StorageUnavailable` for a server
that does not answer, and one that says so in a sentence for a full disk.
"""

import contextlib
import contextvars
import fnmatch
import hashlib
import json
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from rdpm.pipeline.foundation import local, remote
from rdpm.pipeline.foundation.disk import naming
from rdpm.pipeline.foundation.disk import together as together
from rdpm.pipeline.foundation.remote import AT_ONCE, SLOW, ask, copy, file_system, kind_of, open_remote, put, put_file
from rdpm.pipeline.foundation.remote import is_local as is_local
from rdpm.pipeline.foundation.remote import local_path as local_path
from rdpm.pipeline.foundation.retries import StorageUnavailable as StorageUnavailable
from rdpm.pipeline.foundation.retries import persist, reply_of
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import ObjectDigest

_BLOCK = 1 << 24  # bytes of a file that are hashed at a time
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def join(root: str, *parts: str) -> str:
    """A name under a path or URL."""
    return "/".join([root.rstrip("/"), *parts])


def absolute(url: str) -> str:
    """The path or URL in a form that a process in any folder understands."""
    return os.path.abspath(local_path(url)) if is_local(url) else url


def exists(url: str) -> bool:
    """Whether there is such a file or folder."""
    return kind_of(url) is not None


def is_file(url: str) -> bool:
    """Whether there is such a file."""
    return kind_of(url) == "file"


def size(url: str) -> int:
    """Size of an object in bytes. Raises FileNotFoundError."""
    return ask(url, "info")["size"]


def read_bytes(url: str) -> bytes:
    """The bytes of an object. Raises FileNotFoundError."""
    return ask(url, "cat_file", seconds=SLOW)


def open_read(url: str) -> Any:
    """A seekable binary file, of which only the parts that are asked for are read. Raises FileNotFoundError."""
    return ask(url, "open", "rb") if is_local(url) else open_remote(url)


def read_json(url: str) -> Any:
    """The JSON value in an object. Raises FileNotFoundError, and ValueError when it is not JSON."""
    data = read_bytes(url)
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{url!r} is not JSON ({error}); restore or delete it") from None


def read_parts(parts: Sequence[tuple[str, int, int]]) -> list[bytes | FileNotFoundError]:
    """Objects or parts of them, given as (url, offset, bytes) and fetched together; offset -1 is the whole object."""
    results: dict[int, bytes | FileNotFoundError] = {}

    def request() -> list[bytes | FileNotFoundError]:
        left = [i for i in range(len(parts)) if i not in results]  # what a try before this one did not get
        fs = file_system(parts[0][0])[0]
        paths = [fs._strip_protocol(parts[i][0]) for i in left]
        starts = [None if parts[i][1] < 0 else parts[i][1] for i in left]
        stops = [None if parts[i][1] < 0 else parts[i][1] + parts[i][2] for i in left]
        options = {"timeout": SLOW} if fs.async_impl else {}
        answers = fs.cat_ranges(paths, starts, stops, on_error="return", **options)
        errors = [e for e in answers if isinstance(e, Exception) and not isinstance(e, FileNotFoundError)]
        results.update((i, e) for i, e in zip(left, answers, strict=True) if e not in errors)
        if errors:
            raise errors[0]
        for i, answer in zip(left, answers, strict=True):
            if parts[i][1] >= 0 and isinstance(answer, bytes):
                remote.require_part(answer, parts[i][2])
        return [results[i] for i in range(len(parts))]

    return request() if is_local(parts[0][0]) else persist(parts[0][0], request)


@contextlib.contextmanager
def atomic_file(url: str) -> Iterator[Any]:
    """A binary file to write, which appears under its name, complete, only if the block ends without an exception."""
    if is_local(url):
        with local.nameless(local_path(url)) as (file, publish):
            yield file
            publish(True)
        return
    with (
        naming(tempfile.gettempdir()),
        tempfile.NamedTemporaryFile() as file,
    ):  # closing a remote one publishes it
        yield file
        file.flush()
        put_file(url, file.name)


@contextlib.contextmanager
def atomic_folder(url: str) -> Iterator[str]:
    """A folder to fill, which replaces the folder of this name only if the block ends without an exception.

    Remote file systems cannot rename a folder, so there the files appear one by one.
    """
    with local.folder_in_place(local_path(url)) if is_local(url) else contextlib.nullcontext(url) as folder:
        yield folder


def write_bytes(url: str, data: bytes) -> None:
    """Write or replace an object atomically."""
    if is_local(url):
        with atomic_file(url) as file:
            file.write(data)
    else:
        put(url, data)


def write_json(url: str, value: Any) -> None:
    """Write or replace canonical JSON atomically."""
    write_bytes(url, canonical_json(value))


def create_bytes(url: str, data: bytes) -> bool:
    """Create an object unless it exists: True when this call created it, False when there was one already.

    A storage server may do what it is asked, and its reply get lost, so that it is asked again. So there an object that
    holds these very bytes counts as created by this call. If no more than one of several callers may get True, let each
    write bytes of its own. Not every remote file system can create only what is absent; see `require_create`.
    """
    if is_local(url):
        with local.nameless(local_path(url)) as (file, publish):
            file.write(data)
            try:
                publish(False)
            except FileExistsError:
                return False
        return True
    try:
        put(url, data, mode="create")
        return True
    except Exception as error:
        if not isinstance(error, FileExistsError) and reply_of(error)[0] != 412:  # precondition failed
            raise
    try:
        return read_bytes(url) == data
    except FileNotFoundError:  # and deleted again
        return False


def link(source_url: str, url: str, replace: bool = False) -> bool:
    """Give the content of an object another name: True when this call did it, False when the name was there already.

    replace: give it the name even then. On a local file system it is a hard link, or a copy where those are refused;
    elsewhere the server copies. There two calls at once may both copy, so give one name to one content only. Raises
    FileNotFoundError for a lost source.
    """
    if is_local(url):
        return local.link(local_path(source_url), local_path(url), replace)
    if not replace and exists(url):
        return False
    copy(source_url, url)
    return True


def in_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int = AT_ONCE
) -> Iterator[_Result]:
    """Results of a function that mostly waits, in the order of the items, with at most `at_once` calls at a time.

    Items are taken as they are needed. The first exception in that order ends it; calls that wait are then dropped.
    """
    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                if len(waiting) >= at_once:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(contextvars.copy_context().run, function, item))
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
    honoured, cause = False, None
    try:
        honoured = create_bytes(probe, b"first") and not create_bytes(probe, b"second")
    except (NotImplementedError, ValueError, TypeError) as error:  # how file systems refuse an unknown mode
        cause = error
    finally:
        remove(probe)
    if not honoured:
        raise ValueError(
            f"the file system of {root} cannot create an object only if it is absent, so two jobs could mix their "
            "work; write to a local folder or to an object store that can, and copy the result"
        ) from cause


def remove(url: str) -> None:
    """Delete a file or a folder with everything in it; does nothing when there is none."""
    kind = kind_of(url)
    with contextlib.suppress(FileNotFoundError):  # another process deletes it too
        if kind == "file":
            ask(url, "rm_file")
        elif kind and is_local(url):
            ask(url, "rm", recursive=True)
        elif kind:
            remote.remove(url)


def remove_all(urls: Sequence[str]) -> None:
    """Delete objects of one file system, in few requests where it can; does nothing for those that are not there."""
    if urls:
        remote.remove_all(urls)


def list_names(url: str) -> list[str]:
    """Sorted names of the files directly in a folder, without hidden ones; empty when there is no folder."""
    return [name for name in _names(url, "file") if not name.startswith(".")]


def list_folders(url: str) -> list[str]:
    """Sorted names of the folders directly in a folder, without hidden ones."""
    return [name for name in _names(url, "directory") if not name.startswith(".")]


def _names(url: str, kind: str) -> list[str]:
    try:
        if is_local(url):  # fs.ls would stat every file, and there may be a hundred thousand
            entries = os.scandir(local_path(url))
            return sorted(entry.name for entry in entries if (entry.is_file() if kind == "file" else entry.is_dir()))
        path = file_system(url)[1].rstrip("/")
        found = ((e["name"].rstrip("/"), e["type"]) for e in ask(url, "ls", detail=True, large=True, seconds=SLOW))
        return sorted(name.rsplit("/", 1)[-1] for name, its in found if its == kind and name != path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_files(url: str) -> list[tuple[str, int]]:
    """(name under the folder, size in bytes) of every file below a folder, sorted, without hidden files and folders."""
    root = file_system(url)[1].rstrip("/") + "/"
    entries = ask(url, "find", detail=True, large=True, seconds=10 * SLOW).items()
    names = ((name[len(root) :], int(info["size"])) for name, info in entries if name.startswith(root))
    return sorted((name, size) for name, size in names if not any(p.startswith(".") for p in name.split("/")))


def digest_file(url: str) -> ObjectDigest:
    """Size and sha256 of an object, read block by block. Raises FileNotFoundError."""
    sha, length = hashlib.sha256(), 0
    with open_read(url) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
            length += len(block)
    return ObjectDigest(length, sha.hexdigest())


def glob(pattern: str) -> list[str]:
    """Sorted paths or URLs that match a pattern with `*` and `?`."""
    if is_local(pattern):
        return sorted(ask(pattern, "glob"))
    start = min(i for i in (pattern.find("*"), pattern.find("?"), len(pattern)) if i >= 0)
    root, _, rest = pattern[:start].rpartition("/")
    found = [root]
    parts = (rest + pattern[start:]).split("/")
    for part in parts[:-1]:  # level by level, because fsspec's own walk leaves out what it fails to list
        found = [join(url, name) for url in found for name in fnmatch.filter(_names(url, "directory"), part)]
    return sorted(join(url, name) for url in found for name in fnmatch.filter(_names(url, "file"), parts[-1]))
