"""From a shard's number to the pixels and index columns of its rows. Decoding tasks run this, without torch."""

import hashlib
from collections.abc import Container
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


KILLS = "kills its worker"
"""The reason of an image that is not read, because it has killed the processes that did. It is in stores."""


def images_of(plan: Plan, shard: int) -> range:
    """The images of a shard's rows. Row r is image r // V in view r % V, so two shards may share an image."""
    views, rows = len(plan.tokens.views), plan.shard_range(shard)
    return range(rows.start // views, -(-rows.stop // views))


def read_rows(
    shard: int, *, plan: Plan, listing: str, size: int, channels: int, without: Container[int] = ()
) -> ShardRows:
    """Read and decode the images of a shard, each of them once.

    listing: folder or URL of the worklist. size, channels: of the pixels. without: images, numbered from 0 in the
    shard, that are not even read; their rows are rejected because they kill. Raises ListingGone.
    """
    rows, views, images = plan.shard_range(shard), plan.tokens.views, images_of(plan, shard)
    pixels = np.zeros((len(rows), size, size, channels), np.uint8)
    width, height = np.zeros((2, len(rows)), np.int32)
    image = np.array(rows) // len(views) - images.start
    digests, reasons = [""] * len(rows), [KILLS if number in without else "" for number in image]
    table = read_worklist(listing, shard)
    kept = np.array([number for number in range(len(images)) if number not in without], np.int64)
    for position, data in read_images(table.take(kept)):
        first = (images.start + int(kept[position])) * len(views)
        image_rows = range(max(first, rows.start), min(first + len(views), rows.stop))
        part = slice(image_rows.start - rows.start, image_rows.stop - rows.start)
        try:
            if isinstance(data, Reject):
                raise data
            digests[part] = [hashlib.sha256(data).hexdigest()] * len(image_rows)
            decoded = decode_views(data, size, channels, [views[row - first] for row in image_rows])
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
