"""A shard's number to the pixels and facts of its rows: what a decoding task does, without torch."""

import hashlib
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.images.decode import Reject, decode_views
from rdpm.pipeline.images.listing import read_images
from rdpm.pipeline.images.worklist import read_worklist
from rdpm.storage_schemas.manifest import Plan


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard, n of them."""

    pixels: np.ndarray
    """(n, S, S, C) uint8; zeros where the image could not be used."""
    key: np.ndarray
    """Keys of the images, (n,) str."""
    label: np.ndarray
    """(n,) int32."""
    view: np.ndarray
    """Names of the views, (n,) str."""
    width: np.ndarray
    """Width of the image before cropping, (n,) int32."""
    height: np.ndarray
    """Height of the image before cropping, (n,) int32."""
    source_digest: np.ndarray
    """sha256 of the encoded image, (n,) str."""
    reason: np.ndarray
    """Why the image could not be used, "" where it could, (n,) str."""


def images_of(plan: Plan, shard: int) -> range:
    """The images that a shard has rows of. Row r is image r // V in view r % V, so two shards may share an image."""
    views, rows = len(plan.tokens.views), plan.shard_range(shard)
    return range(rows.start // views, -(-rows.stop // views))


def read_rows(shard: int, *, plan: Plan, listing: str, size: int, channels: int) -> ShardRows:
    """Read and decode a shard's images, each once. listing: folder of the worklist."""
    rows, views, images = plan.shard_range(shard), plan.tokens.views, images_of(plan, shard)
    pixels = np.zeros((len(rows), size, size, channels), np.uint8)
    width, height = np.zeros((2, len(rows)), np.int32)
    digests, reasons = [""] * len(rows), [""] * len(rows)
    table = read_worklist(listing, shard)
    for number, data in read_images(table):
        first = (images.start + number) * len(views)
        own = range(max(first, rows.start), min(first + len(views), rows.stop))
        part = slice(own.start - rows.start, own.stop - rows.start)
        try:
            if isinstance(data, Reject):
                raise data
            digests[part] = [hashlib.sha256(data).hexdigest()] * len(own)
            decoded = decode_views(data, size, channels, [views[row - first] for row in own])
            pixels[part], width[part], height[part] = decoded.pixels, decoded.width, decoded.height
        except Reject as reject:
            reasons[part] = [str(reject)] * len(own)
    image = np.array(rows) // len(views) - images.start
    return ShardRows(
        pixels=pixels,
        key=table["key"].take(image).to_numpy(),
        label=table["label"].take(image).to_numpy(),
        view=np.array([views[row % len(views)] for row in rows]),
        width=width,
        height=height,
        source_digest=np.array(digests),
        reason=np.array(reasons),
    )
