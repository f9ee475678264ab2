"""The listing of a source: every image in order, with its label and location; as a stream from disk or in memory.

Images are ordered by class and key; images of Parquet files without keys keep the order of the files. A label is a
position among the sorted class names, which are sorted as numbers if all of them are whole numbers. The key of an image
is `<class>/<name>`, in every kind of source.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest

import pyarrow as pa

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.decode import Reject
from rdpm.pipeline.images.sources import parquet
from rdpm.pipeline.images.sources.entry import Entry, check_names
from rdpm.pipeline.images.sources.source import Source, open_source
from rdpm.storage_schemas.canonical import canonical_json

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int32(),
        "size": pa.int64(),
        "url": pa.string(),
        "offset": pa.int64(),
        "row_group": pa.int32(),
        "row": pa.int32(),
    }
)
_FACTS = b"rdpm.listing"  # key of the metadata of a listing's Arrow stream
_BATCH = 4096  # rows held at once while listing
_TOGETHER = 32  # images fetched at once


class Catalog:
    """The images of a source, sorted in a temporary database on disk, so memory does not grow with their number.

    digest: of the class names and of every key, label and size, in order. Raises ValueError when there is no image,
    two images have the same key, a class or key is not UTF-8 or leads out of its folder, or the disk is full.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._in_source = set[str]()  # classes, where only a part of the source is listed
        self._data = sqlite3.connect("", isolation_level=None)  # a nameless file, on disk beyond a small cache
        self._data.execute("PRAGMA journal_mode = OFF")
        self._data.execute("PRAGMA synchronous = OFF")
        try:
            self._list()
        except BaseException:
            self.close()
            raise

    def _list(self) -> None:
        with self._room():
            self._data.execute(
                "CREATE TABLE image (class TEXT, key TEXT, size INT, url TEXT, offset INT, row_group INT, row INT, "
                f"PRIMARY KEY ({'class, key' if self.source.by_class else 'key'})) WITHOUT ROWID"
            )
            self._fill(self.source.entries())
            self.classes = _sorted_classes(self._class_names())
            (self.rows,) = self._data.execute("SELECT count(*) FROM image").fetchone()
            if not self.rows:
                raise ValueError(_nothing(self.source))
            self.digest = self._digest()

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Says in one sentence that the database has no room."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            raise ValueError(
                f"the list of images {self.source.url!r} has no room in the temporary folder of SQLite ({problem}); "
                "set SQLITE_TMPDIR to a folder with more"
            ) from None

    def _fill(self, entries: Iterable[Entry]) -> None:
        last, selection = "", self.source.selection

        def rows() -> Iterator[tuple]:
            nonlocal last
            for entry in entries:
                check_names(entry)
                class_name, name, *rest = entry
                last = f"{class_name}/{name}" if self.source.by_class else name
                if selection is not None:
                    self._in_source.add(class_name)
                if selection is None or last in selection:
                    yield class_name, last, *rest

        self._data.execute("BEGIN")
        try:
            self._data.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
        except sqlite3.IntegrityError:
            raise ValueError(
                f"images {self.source.url!r} hold {last!r} twice; give every image a name of its own"
            ) from None
        self._data.execute("COMMIT")

    def _class_names(self) -> list[str]:
        """Every class of the source, also those of which a part of it has no image."""
        return list(self._in_source) or [name for (name,) in self._data.execute("SELECT DISTINCT class FROM image")]

    def _rows(self) -> Iterator[tuple[str, int, int, str, int, int, int]]:
        """key, label, size, url, offset, row_group, row of every image in order."""
        labels = {name: label for label, name in enumerate(self.classes)}
        columns = "class, key, size, url, offset, row_group, row"
        if self.source.by_class:  # class by class, because classes may be sorted as numbers
            images = (
                row for name in self.classes
                for row in self._data.execute(f"SELECT {columns} FROM image WHERE class = ? ORDER BY key", (name,))
            )  # fmt: skip
        else:
            images = (row for row in self._data.execute(f"SELECT {columns} FROM image ORDER BY key"))
        return ((key, labels[name], *rest) for name, key, *rest in images)

    def _digest(self) -> str:
        sha = hashlib.sha256(canonical_json(list(self.classes)))
        for key, label, size, *_ in self._rows():
            sha.update(f"{key}\0{label}\0{size}\n".encode())
        return sha.hexdigest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The listing in order, as batches of SCHEMA."""
        rows = self._rows()
        while part := self._next(rows):
            columns = zip(*part, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
            yield pa.record_batch(arrays, schema=SCHEMA)

    def _next(self, rows: Iterator[tuple]) -> list[tuple]:
        with self._room():  # a page that is read may move another one to the disk
            return list(islice(rows, _BATCH))

    def close(self) -> None:
        """Free the database."""
        self._data.close()


def _nothing(source: Source) -> str:
    if source.selection is not None:
        return f"images {source.url!r} select none of the images of {source.selection.images!r}; correct their keys"
    return f"images {source.url!r} hold no images in class folders; put them at <class>/<image>"


def _sorted_classes(names: list[str]) -> tuple[str, ...]:
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


@dataclass(frozen=True)
class Listing:
    """The listing of a source in memory."""

    url: str
    """Path or URL of the source."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    digest: str
    """Digest of the class names and of every key, label and size, in order."""
    table: pa.Table
    """One row of SCHEMA per image. Forked workers share its memory."""

    def __len__(self) -> int:
        return self.table.num_rows

    def to_bytes(self) -> bytes:
        """The listing for other processes, as an Arrow stream: one process lists, the others receive."""
        facts = canonical_json({"url": self.url, "classes": list(self.classes), "digest": self.digest})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema.with_metadata({_FACTS: facts})) as stream:
            stream.write_table(self.table)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Listing":
        """Inverse of to_bytes. The table shares the memory of `data`."""
        with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
            table = stream.read_all()
        facts = json.loads(table.schema.metadata[_FACTS])
        table = table.replace_schema_metadata(None)
        return cls(facts["url"], tuple(facts["classes"]), facts["digest"], table)

    def key(self, index: int) -> str:
        """The key of an image: `<class>/<name>`."""
        return self.table["key"][index].as_py()

    def label(self, index: int) -> int:
        """The label of an image: a position among `classes`."""
        return self.table["label"][index].as_py()

    def read(self, index: int) -> bytes:
        """One encoded image. Raises Reject when it is missing or its size differs from the listed one."""
        ((_, data),) = read_images(self.table.slice(index, 1))
        if isinstance(data, Reject):
            raise data
        return data


def list_images(images: str) -> Listing:
    """List a source in memory. Raises ValueError when there is no source, or an empty one."""
    with closing(Catalog(open_source(images))) as catalog:
        table = pa.Table.from_batches(catalog.batches())
        if catalog.source.containers:  # few URLs, many images
            table = table.set_column(SCHEMA.get_field_index("url"), "url", table["url"].dictionary_encode())
        return Listing(catalog.source.url, catalog.classes, catalog.digest, table.combine_chunks())


def read_images(listing: pa.Table) -> Iterator[tuple[int, bytes | Reject]]:
    """(row of the listing, encoded image) for every row: in order, or row group by row group from Parquet files.

    Each object or row group is read once. A Reject takes the place of an image that is missing or whose size differs
    from the listed one. Stores keep the reason, so its words must not change.
    """
    rows = listing.to_pylist()
    in_parquet = bool(rows) and rows[0]["row_group"] >= 0
    for index, data in _from_row_groups(rows) if in_parquet else _from_objects(rows):
        if isinstance(data, FileNotFoundError):
            yield index, Reject("gone since it was listed")
        elif len(data) != rows[index]["size"]:
            yield index, Reject("changed since it was listed")
        else:
            yield index, data


def _from_objects(rows: list[dict]) -> Iterator[tuple[int, bytes | FileNotFoundError]]:
    for start in range(0, len(rows), _TOGETHER):
        part = rows[start : start + _TOGETHER]
        yield from enumerate(files.read_parts([(row["url"], row["offset"], row["size"]) for row in part]), start)


def _from_row_groups(rows: list[dict]) -> Iterator[tuple[int, bytes | FileNotFoundError]]:
    groups = {index: (row["url"], row["row_group"]) for index, row in enumerate(rows)}
    order = sorted(groups, key=lambda index: (*groups[index], rows[index]["row"]))
    for (url, group), part in groupby(order, key=groups.__getitem__):
        indices = list(part)
        try:
            images = parquet.read_rows(url, group, [rows[i]["row"] for i in indices])
            yield from zip_longest(indices, images, fillvalue=b"")  # the file may have become shorter
        except FileNotFoundError as missing:
            yield from ((index, missing) for index in indices)
