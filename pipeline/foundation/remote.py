"""The door to fsspec: the file system of a path or URL, and requests to it."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rdpm.pipeline.foundation.retries import is_passing, persist
from rdpm.pipeline.foundation.secrets import masked

AT_ONCE = 64  # requests in flight
QUICK, SLOW = 60.0, 600.0  # deadline of one try, in seconds: of a small request, and of one that may carry much
_BUFFER = 1 << 20  # bytes fetched for the first of several small reads of a remote file
_EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "hub"}  # of pyproject.toml, by the scheme of a URL
_PARTS = 100 << 20  # bytes from which s3fs sends an object in parts


def file_system(url: str, large: bool = False) -> tuple[Any, str]:
    """The file system of a URL, and the path on it. large: for a request that is in truth many, as sending parts is.

    s3fs and botocore make requests again by themselves. Here neither does, lest the tries multiply, but for large ones
    s3fs repeats a part that failed, so that the others need not go again. Raises ValueError for credentials in the URL.
    """
    if any(mark in url for mark in "@?=") and masked(url) != url:
        raise ValueError(
            f"{masked(url)!r} contains credentials, which would end up in records and logs; set them in the "
            "environment (AWS_ACCESS_KEY_ID and so on) or in fsspec's configuration"
        )
    options: dict[str, Any] = {"use_listings_cache": False}  # other processes write here too
    is_s3 = url.startswith(("s3://", "s3a://"))
    if is_s3:
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        once = {"retries": {"total_max_attempts": 1}, "max_pool_connections": AT_ONCE, "read_timeout": 30}
        options["config_kwargs"] = {**once, **given}
        options["max_concurrency"] = 10 if large else 1  # 1 also spares asking for the size before reading
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(url.split("://")[0])
        hint = f"pip install '.[{extra}]'" if extra else error
        raise ValueError(f"{url!r} needs a package that is not installed: {hint}") from None
    if is_s3:
        sys.modules["s3fs.core"].set_custom_error_handler(is_passing)  # type: ignore[attr-defined]
        fs.retries = 3 if large else 1
    return fs, path


def is_local(url: str) -> bool:
    """Whether the path lies on a file system of this machine."""
    return isinstance(file_system(url)[0], LocalFileSystem)


def local_path(url: str) -> str:
    """The plain path of a local file or folder. Raises ValueError for a remote one."""
    fs, path = file_system(url)
    if not isinstance(fs, LocalFileSystem):
        raise ValueError(f"{url!r} is remote; give a local path here")
    return path


def ask(url: str, request: str, *arguments: Any, large: bool = False, seconds: float = QUICK, **options: Any) -> Any:
    """The result of a method of the file system of `url`, called with the path on it; made again if that is remote.

    seconds: deadline of one try, where the file system can have one.
    """
    fs, path = file_system(url, large)
    call = getattr(fs, request)
    if isinstance(fs, LocalFileSystem):
        return call(path, *arguments, **options)
    if fs.async_impl:
        options["timeout"] = seconds
    return persist(url, lambda: call(path, *arguments, **options))


def kind_of(url: str) -> str | None:
    """What is there: "file", "directory" or None."""
    try:
        return ask(url, "info")["type"]
    except (FileNotFoundError, NotADirectoryError):
        if not url.startswith("hf://"):
            return None
    file_system(url)[0].invalidate_cache()  # it remembers listings, and what was missing then
    try:
        return ask(url, "info")["type"]
    except FileNotFoundError:
        return None


def put(url: str, data: bytes, **options: Any) -> None:
    """Write or replace a remote object."""
    _make_folder(url)
    ask(url, "pipe_file", data, large=len(data) >= _PARTS, seconds=QUICK + len(data) / 1e6, **options)


def put_file(url: str, path: str) -> None:
    """Write or replace a remote object with the content of a local file."""
    _make_folder(url)
    length = os.path.getsize(path)
    fs, name = file_system(url, large=length >= _PARTS)
    deadline = {"timeout": QUICK + length / 1e6} if fs.async_impl else {}
    persist(url, lambda: fs.put_file(path, name, **deadline))


def copy(source: str, url: str) -> None:
    """Have the server copy an object. Raises FileNotFoundError."""
    _make_folder(url)
    ask(source, "cp_file", file_system(url)[1], seconds=SLOW)


def _make_folder(url: str) -> None:
    fs, path = file_system(url)
    if not fs.async_impl:  # object stores have no folders; makedirs would try to create the bucket
        fs.makedirs(fs._parent(path), exist_ok=True)


def remove(url: str) -> None:
    """Delete a remote folder with everything in it."""
    fs, path = file_system(url, large=True)

    def request() -> None:
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            fs.rm(path, recursive=True)
        if left := fs.find(path):  # s3fs does not tell which objects a server refused to delete
            raise ConnectionError(f"{len(left)} objects are still there")

    persist(url, request)


def remove_all(urls: Sequence[str]) -> None:
    """Delete objects of one file system; does nothing for those that are not there."""
    fs = file_system(urls[0], large=True)[0]
    if not fs.async_impl:
        for url in urls:
            with contextlib.suppress(FileNotFoundError):
                ask(url, "rm_file")
        return
    paths = [fs._strip_protocol(url) for url in urls]
    with contextlib.suppress(FileNotFoundError):
        persist(urls[0], lambda: fs.rm(paths, timeout=SLOW))


class _RemoteFile(io.RawIOBase):
    """A seekable file whose parts are fetched when they are read, each by a request that is made again if it fails."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        """fetch: from (start, stop) to those bytes. size: of the whole file, in bytes."""
        self._fetch, self._size, self._position = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        require_part(data, stop - self._position)
        if len(data) != stop - self._position:
            raise OSError(f"a read of {stop - self._position} bytes gave {len(data)}; the object has changed")
        buffer[: len(data)] = data
        self._position = stop
        return len(data)


def require_part(data: bytes, length: int) -> None:
    """Raise OSError for more than the part of an object that was asked for."""
    if len(data) > length:
        raise OSError("the server sends whole files where parts are asked for; use one that knows HTTP ranges")


def open_remote(url: str) -> io.BufferedReader:
    """A remote object as a file. Raises FileNotFoundError."""

    def fetch(start: int, stop: int) -> bytes:
        return ask(url, "cat_file", start=start, end=stop, seconds=SLOW)

    return io.BufferedReader(_RemoteFile(fetch, ask(url, "info")["size"]), _BUFFER)
