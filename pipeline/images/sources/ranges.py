"""A remote object of which short ranges are read, here and there: the headers of a tar."""

from rdpm.pipeline.foundation import files

_SHORTEST, _LONGEST = 1 << 12, 1 << 20
_CLOSE = 1 << 14  # bytes from one read to the next that are not worth another request


class Ranges:
    """A remote object as a file for `tarfile`. 4 KiB are fetched at a time, up to 1 MiB where reads are close together.

    So of large members only the headers are read, and small ones do not take a request each. size: of the object, in
    bytes. start: where the first read begins.
    """

    def __init__(self, url: str, size: int, start: int) -> None:
        self._url, self._size, self._position = url, size, start
        self._first, self._data, self._reads, self._ahead = start, b"", 0, _SHORTEST

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, position: int) -> None:
        """Begin the next read here."""
        self._position = position

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end of the object. Raises FileNotFoundError."""
        stop = min(self._position + count, self._size)
        if stop <= self._position:
            return b""
        if self._position < self._first or stop > self._first + len(self._data):
            self._fetch(stop)
        data = self._data[self._position - self._first : stop - self._first]
        self._position += len(data)
        self._reads += 1
        return data

    def _fetch(self, stop: int) -> None:
        """Hold the bytes from the position to `stop`, and some more."""
        gap = self._position - self._first - len(self._data)
        dense = abs(gap) < _CLOSE and self._reads * _CLOSE > len(self._data) > 0
        self._ahead = min(2 * self._ahead, _LONGEST) if dense else _SHORTEST
        stop = min(max(stop, self._position + self._ahead), self._size)
        ((data),) = files.read_parts([(self._url, self._position, stop - self._position)])
        if isinstance(data, FileNotFoundError):
            raise data
        self._first, self._data, self._reads = self._position, data, 0
