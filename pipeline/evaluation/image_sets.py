"""Sets of images behind one interface, streamed: folders of real images, sample stores, .npz files, folders of PNGs.

Nothing here holds more than a shard of images. Chunks are of one size whatever a set is stored in, so that sums over
them come out the same to the bit.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.images.decode import Reject, center_view, open_picture
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.images.sources.entry import SUFFIXES
from rdpm.pipeline.stores.reader import open_store
from rdpm.storage_schemas.canonical import digest_of
from rdpm.storage_schemas.manifest import MANIFEST, PLAN
from rdpm.storage_schemas.samples import KIND

CHUNK = 250


@dataclass(frozen=True)
class Chunk:
    """pixels (n, H, W, C) uint8, and labels (n,) int64, -1 where they are not known."""

    pixels: np.ndarray
    labels: np.ndarray


class ImageSet:
    """Images in one fixed order that can be gone through again and again.

    digest: of what the set is made of. size, channels: of every image. classes: what the labels mean, where that is
    known.
    """

    url: str
    digest: str
    size: int
    channels: int
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Images listed; of a folder, some may turn out to be unusable."""
        raise NotImplementedError

    def _parts(self) -> Iterable[Chunk]:
        raise NotImplementedError

    def chunks(self) -> Iterator[Chunk]:
        """All images, CHUNK at a time, the last chunk as short as it comes."""
        kept: list[Chunk] = []
        count = 0
        for part in self._parts():
            kept.append(part)
            count += len(part.labels)
            if count >= CHUNK:
                whole = _joined(kept)
                cut = count - count % CHUNK
                for start in range(0, cut, CHUNK):
                    yield Chunk(whole.pixels[start : start + CHUNK], whole.labels[start : start + CHUNK])
                kept, count = [Chunk(whole.pixels[cut:], whole.labels[cut:])], count - cut
        if count:
            yield _joined(kept)


def _joined(parts: list[Chunk]) -> Chunk:
    return Chunk(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


def watched(images: ImageSet, title: str) -> Iterator[Chunk]:
    """The chunks of a set under a progress line."""
    done = 0
    with ProgressLine(f"evaluate: {title}", len(images), "images") as progress:
        for chunk in images.chunks():
            yield chunk
            done += len(chunk.labels)
            progress.update(done)


class FolderImages(ImageSet):
    """The center views of a folder's images; of `limit` spread evenly over them, if given.

    Images that cannot be decoded are left out.
    """

    def __init__(self, url: str, size: int, channels: int, threads: int = 1, limit: int | None = None) -> None:
        self.url, self.size, self.channels, self._threads = url, size, channels, threads
        self._source = list_images(url)
        self.digest, self.classes = self._source.digest, self._source.classes
        self._count = len(self._source) if limit is None else min(limit, len(self._source))

    def __len__(self) -> int:
        return self._count

    def _parts(self) -> Iterator[Chunk]:
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, self._count, CHUNK):
                turns = range(start, min(start + CHUNK, self._count))
                rows = [turn * len(self._source) // self._count for turn in turns]
                views = zip(rows, pool.map(self._view, rows), strict=True)
                seen = [(row, pixels) for row, pixels in views if pixels is not None]
                if seen:
                    labels = np.array([self._source.label(row) for row, _ in seen], np.int64)
                    yield Chunk(np.stack([pixels for _, pixels in seen]), labels)

    def _view(self, row: int) -> np.ndarray | None:
        try:
            return center_view(self._source.read(row), self.size, self.channels)
        except Reject:
            return None


class StoreImages(ImageSet):
    """A sample store's images, of the channels asked for: a store keeps grey three times."""

    def __init__(self, url: str, channels: int) -> None:
        self.url, self.channels, self.store = url, channels, open_store(url, KIND)
        self.digest, self.classes = self.store.id, self.store.manifest.plan.samples.classes
        self.size = self.store.specs["images"].row_shape[0]

    def __len__(self) -> int:
        return len(self.store)

    def _parts(self) -> Iterator[Chunk]:
        for shard in range(self.store.manifest.plan.num_shards):
            found = self.store.shard(shard, ("images", "label"))
            yield Chunk(found["images"][..., : self.channels], found["label"].astype(np.int64))


class ArchiveImages(ImageSet):
    """An .npz as the ADM evaluator reads it: arr_0 (N, H, W, 3) uint8, and arr_1 (N,), if there, as labels.

    Raises ValueError when the file is none, is cut short or holds other arrays.
    """

    def __init__(self, url: str, channels: int) -> None:
        self.url, self.channels = url, channels
        with open_archive(url) as archive:
            if "arr_0.npy" not in archive.namelist():
                raise ValueError(f"{url!r} has no arr_0; put the images there, (N, H, W, 3) uint8")
            with archive.open("arr_0.npy") as member:
                shape, dtype = _header(member, url)
            if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8 or not shape[0]:
                raise ValueError(
                    f"arr_0 of {url!r} is {dtype} of shape {shape}; it must be uint8 of (N, S, S, 3), N > 0"
                )
            self._labels = _archive_labels(archive, shape[0])
        self._shape, self.size = shape, shape[1]
        self.digest = files.digest_file(url).sha256

    def __len__(self) -> int:
        return self._shape[0]

    def _parts(self) -> Iterator[Chunk]:
        row = int(np.prod(self._shape[1:]))
        with open_archive(self.url) as archive, archive.open("arr_0.npy") as member:
            _header(member, self.url)
            for start in range(0, len(self), CHUNK):
                count = min(CHUNK, len(self) - start)
                data = member.read(count * row)
                if len(data) < count * row:
                    raise EOFError(f"arr_0 ends before image {start + count} of {len(self)}")
                pixels = np.frombuffer(data, np.uint8).reshape(count, *self._shape[1:])
                yield Chunk(pixels[..., : self.channels], self._labels[start : start + count])


@contextlib.contextmanager
def open_archive(url: str) -> Iterator[zipfile.ZipFile]:
    """An .npz that is read as far as it is asked for. Raises ValueError when there is none or it is damaged."""
    try:
        with files.open_read(url) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise ValueError(f"{url!r} does not exist; give the path of an .npz") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{url!r} is no whole .npz ({error}); write it again") from None


def _header(member: Any, url: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a .npy whose values follow."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if fortran_order and len(shape) > 1:
        raise ValueError(f"arrays of {url!r} are in Fortran order; save them in C order")
    return shape, dtype


def _archive_labels(archive: zipfile.ZipFile, count: int) -> np.ndarray:
    """arr_1 where it is one whole number an image, else -1."""
    if "arr_1.npy" in archive.namelist():
        with archive.open("arr_1.npy") as member:
            labels = np.lib.format.read_array(member, allow_pickle=False)
        if labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    return np.full(count, -1)


class PictureImages(ImageSet):
    """Pictures as they lie in a folder and below it, in the order of their file names; no labels, nothing resized.

    Raises ValueError when there are none, or one is damaged, not square or of another size than the first.
    """

    def __init__(self, url: str, channels: int, threads: int = 1) -> None:
        self.url, self.channels, self._threads = url, channels, threads
        found = [(name, size) for name, size in files.list_files(url) if name.lower().endswith(SUFFIXES)]
        if not found:
            raise ValueError(f"samples {url!r} are no sample store, .npz or folder of pictures; run rdpm sample")
        self._names = sorted((name for name, _ in found), key=lambda name: (name.rsplit("/", 1)[-1], name))
        self.digest = digest_of(found)
        self.size = self._read(self._names[0], None).shape[0]

    def __len__(self) -> int:
        return len(self._names)

    def _parts(self) -> Iterator[Chunk]:
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(self), CHUNK):
                names = self._names[start : start + CHUNK]
                pixels = np.stack(list(pool.map(lambda name: self._read(name, self.size), names)))
                yield Chunk(pixels, np.full(len(names), -1))

    def _read(self, name: str, size: int | None) -> np.ndarray:
        try:
            pixels = np.asarray(open_picture(files.read_bytes(files.join(self.url, name)), 3))
        except Reject as reason:
            raise ValueError(f"sample {name} of {self.url!r} is unusable ({reason}); write the set again") from None
        height, width = pixels.shape[:2]
        if height != width or height != (size or height):
            raise ValueError(f"sample {name} of {self.url!r} is {width} x {height}; samples are square and of one size")
        return pixels[..., : self.channels]


def open_samples(url: str, channels: int, threads: int = 1) -> StoreImages | ArchiveImages | PictureImages:
    """A sample store, an .npz or a folder of pictures. Raises ValueError for anything else, and for half of one."""
    if url.endswith(".npz"):
        return ArchiveImages(url, channels)
    if any(files.exists(files.join(url, name)) for name in (MANIFEST, PLAN)):
        return StoreImages(url, channels)
    if not files.exists(url):
        raise ValueError(f"samples {url!r} do not exist; give a sample store, an .npz or a folder of pictures")
    return PictureImages(url, channels, threads)
