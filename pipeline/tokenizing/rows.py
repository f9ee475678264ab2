"""A shard's number to the pixels and facts of its rows: what a decoding task of the tokenizing job does."""

import hashlib

import numpy as np

from rdpm.pipeline.images.decode import Reject, decode_views
from rdpm.pipeline.images.listing import read_images
from rdpm.pipeline.images.worklist import read_worklist
from rdpm.storage_schemas.manifest import Plan


def images_of(plan: Plan, shard: int) -> range:
    """The images that a shard has rows of; row r is image r // V in view r % V, so the first and last may be shared."""
    views, rows = len(plan.identity["views"]), plan.shard_range(shard)
    return range(rows.start // views, -(-rows.stop // views))


def decode_shard(batch: dict, *, plan: Plan, listing: str, size: int, channels: int) -> dict[str, np.ndarray]:
    """A shard's number to the pixels and facts of its rows, each image read and decoded once. Runs in a Ray task."""
    shard = int(batch["shard"][0])
    rows, views, images = plan.shard_range(shard), plan.identity["views"], images_of(plan, shard)
    pixels = np.zeros((len(rows), size, size, channels), np.uint8)
    width, height = np.zeros((2, len(rows)), np.int32)
    digests, reasons = [""] * len(rows), [""] * len(rows)
    table = read_worklist(listing, shard)
    for number, data in read_images(table):
        first = (images.start + number) * len(views)
        mine = range(max(first, rows.start), min(first + len(views), rows.stop))
        place = slice(mine.start - rows.start, mine.stop - rows.start)
        try:
            if isinstance(data, Reject):
                raise data
            digests[place] = [hashlib.sha256(data).hexdigest()] * len(mine)
            decoded = decode_views(data, size, channels, [views[row - first] for row in mine])
            pixels[place], width[place], height[place] = decoded.pixels, decoded.width, decoded.height
        except Reject as reject:
            reasons[place] = [str(reject)] * len(mine)
    image = np.array(rows) // len(views) - images.start
    return {
        "pixels": pixels,
        "shard": np.full(len(rows), shard, np.int32),
        "key": table["key"].take(image).to_numpy(),
        "label": table["label"].take(image).to_numpy(),
        "view": np.array([views[row % len(views)] for row in rows]),
        "width": width,
        "height": height,
        "source_digest": np.array(digests),
        "reason": np.array(reasons),
    }
