"""The listing of a source as one small file per shard, kept under the store until its job ends.

    STORE/.listing/<name>/00000.parquet   the images of a shard, as rows of `listing.SCHEMA`
    STORE/.listing/<name>/summary.json    written last

So the driver hands out shard numbers, a worker reads only the images of its shard, and memory does not grow with the
number of images. A restart reuses the listing of unchanged containers. It lists class folders again, because nothing
else shows whether they have changed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import SCHEMA, Catalog
from rdpm.pipeline.images.sources.source import open_source
from rdpm.storage_schemas.canonical import digest_of
from rdpm.storage_schemas.manifest import shard_name

FOLDER, _SUMMARY = ".listing", "summary.json"


class ListingGone(ValueError):
    """The listing of a shard is missing, for example because another job on the same store has published it."""


@dataclass(frozen=True)
class Summary:
    """What a plan records of its images."""

    digest: str
    """Digest of the listing."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    images: int
    """Number of images."""


class Worklist:
    """The images of a job. `summary` is that of an earlier start if it still holds; otherwise the source is listed."""

    def __init__(self, images: str, store: str) -> None:
        self.source = open_source(images)
        self._store = store
        self._catalog: Catalog | None = None
        self.summary = self._kept() or self._listed()

    @property
    def folder(self) -> str:
        """Folder of the files, whose name depends on the location and the content of the source."""
        name = self.source.fingerprint or digest_of({"url": self.source.url, "digest": self.summary.digest})
        return files.join(self._store, FOLDER, name[:16])

    def _kept(self) -> Summary | None:
        if self.source.fingerprint and files.exists(files.join(self.folder, _SUMMARY)):
            kept = files.read_json(files.join(self.folder, _SUMMARY))
            return Summary(kept["digest"], tuple(kept["classes"]), kept["images"])
        return None

    def _listed(self) -> Summary:
        catalog = self._catalog = self._catalog or Catalog(self.source)
        return Summary(catalog.digest, catalog.classes, catalog.rows)

    def write(self, images_of: Mapping[int, range]) -> None:
        """Write the files of these shards, unless they exist. The shards ascend and come with their images."""
        existing = set(files.list_names(self.folder))
        if self._catalog is None and existing.issuperset(f"{shard_name(shard)}.parquet" for shard in images_of):
            return
        if self._listed() != self.summary:
            raise ValueError(
                f"images {self.source.url!r} have changed since {self._store} was started; choose another out"
            )
        assert self._catalog is not None
        tables = _cut(self._catalog.batches(), images_of.values())
        named = ((_file(self.folder, shard), _encoded(table)) for shard, table in zip(images_of, tables, strict=True))
        for _ in files.in_parallel(lambda file: files.write_bytes(*file), named):
            pass
        files.write_json(files.join(self.folder, _SUMMARY), asdict(self.summary))

    def close(self) -> None:
        """Free the resources of the listing."""
        if self._catalog:
            self._catalog.close()


def _encoded(table: pa.Table) -> bytes:
    """The bytes of a file, of which some wait to be written while the next tables are cut."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _file(folder: str, shard: int) -> str:
    return files.join(folder, f"{shard_name(shard)}.parquet")


def _cut(batches: Iterator[pa.RecordBatch], wanted: Iterable[range]) -> Iterator[pa.Table]:
    """The rows of each range. Ranges ascend and may overlap. Holds the rows of one range and one batch."""
    held, first = SCHEMA.empty_table(), 0
    for rows in wanted:
        while first + len(held) < rows.stop:
            skip = min(max(rows.start - first, 0), len(held))
            held, first = pa.concat_tables([held.slice(skip), pa.Table.from_batches([next(batches)])]), first + skip
        held, first = held.slice(rows.start - first), rows.start
        yield held.slice(0, len(rows))


def read_worklist(folder: str, shard: int) -> pa.Table:
    """The listing of the images of one shard. Raises ListingGone."""
    try:
        return pq.read_table(pa.BufferReader(files.read_bytes(_file(folder, shard))))
    except FileNotFoundError:
        raise ListingGone(f"{_file(folder, shard)} is missing; run the job again") from None


def remove_worklists(store: str) -> None:
    """Delete every listing under a store."""
    files.remove(files.join(store, FOLDER))
