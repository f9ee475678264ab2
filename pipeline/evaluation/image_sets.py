"""Sets of images behind one interface, streamed: folders of real images, sample stores, .npz files, folders of PNGs.

Nothing here holds more than one shard of images. Chunks have the same size for every kind of set, so that sums over
chunks are identical.
"""

import contextlib
import zipfile
import zlib
from abc import ABC, abstractmethod
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
    """The next images of a set."""

    pixels: np.ndarray
    """(n, H, W, C) uint8."""
    labels: np.ndarray
    """(n,) int64; -1 where a label is unknown."""


class ImageSet(ABC):
    """Images in a fixed order that can be read any number of times."""

    url: str
    """Where the images are."""
    digest: str
    """Digest of what the set consists of."""
    size: int
    """Width and height of every image in pixels."""
    channels: int
    """Channels of every image: 1 or 3."""
    classes: tuple[str, ...] | None = None
    """Class names; a label is a position among them. None where they are unknown."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images are listed. Some images of a folder may turn out to be unusable."""

    @abstractmethod
    def _parts(self) -> Iterable[Chunk]:
        """The images in their order, in parts of any size."""

    def chunks(self) -> Iterator[Chunk]:
        """All images, CHUNK at a time; the last chunk may be shorter."""
        kept: list[Chunk] = []
        count = 0
        for part in self._parts():
            kept.append(part)
            count += len(part.labels)
            if count >= CHUNK:
                joined = _joined(kept)
                end = count - count % CHUNK
                for start in range(0, end, CHUNK):
                    yield Chunk(joined.pixels[start : start + CHUNK], joined.labels[start : start + CHUNK])
                kept, count = [Chunk(joined.pixels[end:], joined.labels[end:])], count - end
        if count:
            yield _joined(kept)


def _joined(parts: list[Chunk]) -> Chunk:
    return Chunk(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


def watched(images: ImageSet, title: str) -> Iterator[Chunk]:
    """The chunks of a set, with a progress line."""
    done = 0
    with ProgressLine(f"evaluate: {title}", len(images), "images") as progress:
        for chunk in images.chunks():
            yield chunk
            done += len(chunk.labels)
            progress.update(done)


class FolderImages(ImageSet):
    """The center views of a folder's images. Images that cannot be decoded are left out.

    Reading raises ValueError where none is left.
    """

    def __init__(self, url: str, size: int, channels: int, threads: int = 1, limit: int | None = None) -> None:
        """limit: how many images to use, spread evenly over the folder; None for all of them.

        Raises ValueError when there is no such folder.
        """
        self.url, self.size, self.channels, self._threads = url, size, channels, threads
        self._source = list_images(url)
        self.digest, self.classes = self._source.digest, self._source.classes
        self._count = len(self._source) if limit is None else min(limit, len(self._source))

    def __len__(self) -> int:
        return self._count

    def _parts(self) -> Iterator[Chunk]:
        none = True
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, self._count, CHUNK):
                positions = range(start, min(start + CHUNK, self._count))
                rows = [position * len(self._source) // self._count for position in positions]
                views = zip(rows, pool.map(self._view, rows), strict=True)
                usable = [(row, pixels) for row, pixels in views if pixels is not None]
                none = none and not usable
                if usable:
                    labels = np.array([self._source.label(row) for row, _ in usable], np.int64)
                    yield Chunk(np.stack([pixels for _, pixels in usable]), labels)
        if none:
            raise ValueError(
                f"image folder {self.url!r} holds no image that can be decoded ({self._count} listed); give another "
                "folder"
            )

    def _view(self, row: int) -> np.ndarray | None:
        try:
            return center_view(self._source.read(row), self.size, self.channels)
        except Reject:
            return None


class StoreImages(ImageSet):
    """The images of a sample store."""

    def __init__(self, url: str, channels: int) -> None:
        """channels: 1 for grey, of which a store holds three equal channels, or 3."""
        self.url, self.channels, self.store = url, channels, open_store(url, KIND)
        self.digest, self.classes = self.store.id, self.store.manifest.plan.samples.classes
        self.size = self.store.specs["images"].row_shape[0]

    def __len__(self) -> int:
        return len(self.store)

    def _parts(self) -> Iterator[Chunk]:
        for shard in range(self.store.manifest.plan.num_shards):
            arrays = self.store.shard(shard, ("images", "label"))
            yield Chunk(arrays["images"][..., : self.channels], arrays["label"].astype(np.int64))


class ArchiveImages(ImageSet):
    """An .npz as the ADM evaluator reads it: arr_0 (N, H, W, 3) uint8 and, if it is there, arr_1 (N,) as labels."""

    def __init__(self, url: str, channels: int) -> None:
        """Raises ValueError when the file is missing, damaged or holds other arrays."""
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
    """Open an .npz, of which only the requested parts are read. Raises ValueError when it is missing or damaged.

    That includes damage that shows while the caller reads.
    """
    try:
        with files.open_read(url) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise ValueError(f"{url!r} does not exist; give the path of an .npz") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{url!r} is not a complete .npz ({error}); write it again") from None


def _header(member: Any, url: str) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of a .npy: the shape and type of the values that follow."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if fortran_order and len(shape) > 1:
        raise ValueError(f"arrays of {url!r} are in Fortran order; save them in C order")
    return shape, dtype


def _archive_labels(archive: zipfile.ZipFile, count: int) -> np.ndarray:
    """arr_1 if it has one integer per image, else -1 for all images."""
    if "arr_1.npy" in archive.namelist():
        with archive.open("arr_1.npy") as member:
            labels = np.lib.format.read_array(member, allow_pickle=False)
        if labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    return np.full(count, -1)


class PictureImages(ImageSet):
    """Pictures in a folder and its subfolders, in the order of their file names, unlabelled and in their own size.

    Reading raises ValueError for a picture that is damaged, not square, or not of the first one's size.
    """

    def __init__(self, url: str, channels: int, threads: int = 1) -> None:
        """Raises ValueError when there is no picture."""
        self.url, self.channels, self._threads = url, channels, threads
        listed = [(name, size) for name, size in files.list_files(url) if name.lower().endswith(SUFFIXES)]
        if not listed:
            raise ValueError(f"samples {url!r} is not a sample store, .npz or folder of pictures; run rdpm sample")
        self._names = sorted((name for name, _ in listed), key=lambda name: (name.rsplit("/", 1)[-1], name))
        self.digest = digest_of(listed)
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
            raise ValueError(
                f"sample {name} of {self.url!r} is {width} x {height}; give square samples that all have one size"
            )
        return pixels[..., : self.channels]


def open_samples(url: str, channels: int, threads: int = 1) -> StoreImages | ArchiveImages | PictureImages:
    """Open a sample store, an .npz or a folder of pictures. Raises ValueError for anything else or incomplete.

    channels: 1 or 3, of every image.
    """
    if url.endswith(".npz"):
        return ArchiveImages(url, channels)
    if is_store(url):
        return StoreImages(url, channels)
    if not files.exists(url):
        raise ValueError(f"samples {url!r} does not exist; give a sample store, an .npz or a folder of pictures")
    return PictureImages(url, channels, threads)


def is_store(url: str) -> bool:
    """Whether this is a store, finished or not."""
    return any(files.exists(files.join(url, name)) for name in (MANIFEST, PLAN))


def open_reference_images(url: str, like: ImageSet, threads: int = 1) -> ImageSet | None:
    """The images of a reference: a folder's, a sample store's, or those in an .npz, unless that has only statistics.

    like: the images of a folder are cropped to the size and channels of this set. Raises ValueError when there is no
    reference, or it is damaged.
    """
    if not url.endswith(".npz"):
        if is_store(url):
            return StoreImages(url, like.channels)
        return FolderImages(url, like.size, like.channels, threads)
    with open_archive(url) as archive:
        has_images = "arr_0.npy" in archive.namelist()
    return ArchiveImages(url, like.channels) if has_images else None
