"""Parquet files with a column of encoded images and a column of labels, plain or as Hugging Face's datasets write them.

The names of images come from a key column or from the paths beside the bytes; without either, a name is `<file>/<row>`.
Every read decodes whole pages of a row group, so reading rows in random order is slow.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources.entry import Entry

_BATCH = 64  # rows decoded at once, so that memory does not grow with the row group
_LABELS, _KEYS = ("label", "labels", "cls", "class"), ("key", "__key__", "file_name", "filename")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a file, and of its classes."""

    image: str
    """Column of the encoded images: plain bytes, or a struct with a field `bytes`."""
    label: str
    """Column of the labels."""
    key: str
    """Column of the keys, or a field of the image column; empty where there is none."""
    classes: tuple[str, ...]
    """Names of the labels, if the schema has them."""


def columns_of(file: pq.ParquetFile, url: str) -> Columns:
    """Which column is which. Raises ValueError unless there is one column of images and one of labels."""
    schema = file.schema_arrow
    images = [field.name for field in schema if _is_bytes(field.type)]
    labels = [name for name in _LABELS if name in schema.names and not _is_bytes(schema.field(name).type)]
    keys = [name for name in _KEYS if name in schema.names]
    if len(images) != 1 or not labels:
        raise ValueError(
            f"{url!r} has columns {schema.names}; it needs one of image bytes and one of labels ({', '.join(_LABELS)})"
        )
    if not keys and pa.types.is_struct(schema.field(images[0]).type) and _complete(file, f"{images[0]}.path"):
        keys = [f"{images[0]}.path"]
    return Columns(images[0], labels[0], keys[0] if keys else "", _class_names(schema, labels[0]))


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _complete(file: pq.ParquetFile, path: str) -> bool:
    """Whether a column exists and has a value in every row, according to the statistics in the footer of the file."""
    for group in range(file.num_row_groups):
        chunks = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == path), None)
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return False
    return True


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label, {})
    return tuple(feature.get("names", ())) if isinstance(feature, dict) else ()


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    with files.open_read(url) as data:
        try:
            yield pq.ParquetFile(data)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{url!r} holds a label or key that is not UTF-8 ({error.object!r}); write it again"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{url!r} is no complete Parquet file ({error}); restore it") from None


def has_keys(url: str) -> bool:
    """Whether the images of a file have keys. Raises ValueError when it holds no labelled images."""
    with _opened(url) as file:
        return bool(columns_of(file, url).key)


def entries(url: str, name: str, keyed: bool) -> Iterator[Entry]:
    """Images of one file, in its order. name: the file's name in keys. Reads the whole file, for the image sizes."""
    with _opened(url) as file:
        columns = columns_of(file, url)
        number = 0
        for group in range(file.num_row_groups):
            names = [column for column in (columns.image, columns.label, columns.key) if column]
            row = 0
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=names):
                labels = [_class_name(value, columns) for value in batch.column(columns.label).to_pylist()]
                keys = _keys(batch, columns) if keyed else [f"{name}/{number + i:09d}" for i in range(len(batch))]
                sizes = pc.binary_length(_bytes(batch, columns)).to_pylist()
                for class_name, key, size in zip(labels, keys, sizes, strict=True):
                    yield Entry(class_name, key.removeprefix(f"{class_name}/"), size or 0, url, -1, group, row)
                    row += 1
                number += len(batch)


def _class_name(label: int | str, columns: Columns) -> str:
    return columns.classes[label] if columns.classes and isinstance(label, int) and label >= 0 else str(label)


def _keys(batch: pa.RecordBatch, columns: Columns) -> list[str]:
    struct, _, field = columns.key.rpartition(".")
    column = pc.struct_field(batch.column(struct), field) if struct else batch.column(columns.key)
    return [str(key) for key in column.to_pylist()]


def _bytes(batch: pa.RecordBatch, columns: Columns) -> pa.Array:
    column = batch.column(columns.image)
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def read_rows(url: str, row_group: int, rows: list[int]) -> Iterator[bytes]:
    """The images in these rows of a row group. Rows ascend; the group is read once. Raises FileNotFoundError."""
    with _opened(url) as file:
        column, wanted, first = columns_of(file, url), iter(rows), 0
        row = next(wanted, None)
        for batch in file.iter_batches(_BATCH, row_groups=[row_group], columns=[column.image]):
            images = _bytes(batch, column)
            while row is not None and row < first + len(batch):
                yield images[row - first].as_py() or b""
                row = next(wanted, None)
            first += len(batch)
            if row is None:
                return
