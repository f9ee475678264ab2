"""From a shard's number to the pixels and index columns of its rows. Decoding tasks run this, without torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.images.decode import Reject, decode_views
from rdpm.pipeline.images.listing import read_images
from rdpm.pipeline.images.worklist import read_worklist
from rdpm.storage_schemas.manifest import Plan


@dataclass(frozen=True)
class ShardRows:
    """The n rows of one shard. Strings have dtype object."""

    pixels: np.ndarray
    """(n, S, S, C) uint8; zeros where the image could not be used."""
    key: np.ndarray
    """Keys of the images, (n,) str."""
    label: np.ndarray
    """Labels of the images, (n,) int32."""
    view: np.ndarray
    """Names of the views, (n,) str."""
    width: np.ndarray
    """Width of the image before cropping, (n,) int32."""
    height: np.ndarray
    """Height of the image before cropping, (n,) int32."""
    source_digest: np.ndarray
    """sha256 of the encoded image, "" where it could not be read, (n,) str."""
    reason: np.ndarray
    """Why the image could not be used, "" where it could, (n,) str."""


Killers = Mapping[int, tuple[int, ...]]
"""By shard, the images that kill their worker, numbered from 0 in the shard."""
KILLS = "kills its worker"
"""The reason of an image that is not read, because it has killed the processes that did. It is in stores."""


def images_of(plan: Plan, shard: int) -> range:
    """The images of a shard's rows. Row r is image r // V in view r % V, so two shards may share an image."""
    views, rows = len(plan.tokens.views), plan.shard_range(shard)
    return range(rows.start // views, -(-rows.stop // views))


@dataclass(frozen=True)
class ShardReader:
    """The images of a store's shards, on any node. It holds nothing that needs torch, which takes seconds to import."""

    plan: Plan
    """Plan of the store."""
    listing: str
    """Folder or URL of the worklist."""
    size: int
    """Height and width of the pixels."""
    channels: int
    """Channels of the pixels."""

    def read(self, shard: int, killers: Killers) -> ShardRows:
        """Read and decode the images of a shard, each of them once. Raises ListingGone.

        killers: images that are not even read; their rows are rejected because they kill.
        """
        without = killers.get(shard, ())
        rows, views, images = self.plan.shard_range(shard), self.plan.tokens.views, images_of(self.plan, shard)
        pixels = np.zeros((len(rows), self.size, self.size, self.channels), np.uint8)
        width, height = np.zeros((2, len(rows)), np.int32)
        image = np.array(rows) // len(views) - images.start
        digests, reasons = [""] * len(rows), [KILLS if number in without else "" for number in image]
        table = read_worklist(self.listing, shard)
        kept = np.array([number for number in range(len(images)) if number not in without], np.int64)
        for position, data in read_images(table.take(kept)):
            first = (images.start + int(kept[position])) * len(views)
            image_rows = range(max(first, rows.start), min(first + len(views), rows.stop))
            part = slice(image_rows.start - rows.start, image_rows.stop - rows.start)
            try:
                if isinstance(data, Reject):
                    raise data
                digests[part] = [hashlib.sha256(data).hexdigest()] * len(image_rows)
                decoded = decode_views(data, self.size, self.channels, [views[row - first] for row in image_rows])
                pixels[part], width[part], height[part] = decoded.pixels, decoded.width, decoded.height
            except Reject as reject:
                reasons[part] = [str(reject)] * len(image_rows)
        return ShardRows(
            pixels=pixels,
            key=table["key"].take(image).to_numpy(),
            label=table["label"].take(image).to_numpy(),
            view=np.array([views[row % len(views)] for row in rows], object),
            width=width,
            height=height,
            source_digest=np.array(digests, object),
            reason=np.array(reasons, object),
        )

    def first_image(self, shard: int) -> bytes:
        """The first image of a shard as it lies in the source; nothing if it is gone or has changed."""
        ((_, data),) = read_images(read_worklist(self.listing, shard).slice(0, 1))
        return b"" if isinstance(data, Reject) else data

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's images."""
        return read_worklist(self.listing, shard)["key"].to_pylist()

    def shard_bytes(self) -> int:
        """Size of a shard's pixels."""
        return self.plan.shard_rows * self.size**2 * self.channels
