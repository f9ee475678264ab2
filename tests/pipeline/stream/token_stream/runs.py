"""The two stores' sizes, the kinds of streams over them, and what all ranks together see."""

import numpy as np

from rdpm.pipeline.stream.token_stream import TokenBatch, TokenStream

BATCH = 12


REJECTED = (0, 7, 8, 19)


CODES_ROW, LATENTS_ROW = 3 * 4 * 4 * 2 + 8 + 4, 4 * 4 * 4 * 2 + 4  # bytes of a row's columns


WINDOWED = {"cache_gib": 28 * CODES_ROW / 2**30, "window": 2}  # 29 rows do not fit 28; two windows of 8 rows do


KINDS = {
    "whole": {},
    "window": WINDOWED,
    "mixed": {"weights": (3, 2)},
    "mixed windows": {"weights": (3, 2), **WINDOWED, "window": 1},
}


def seen(batch: TokenBatch) -> bytes:
    """Everything in a batch."""
    return b"".join(column.tobytes() for column in (batch.positions, batch.codes, batch.seeds, batch.labels))


def run(stream: TokenStream, ranks: int, start: int = 0, stop: int = 8) -> list[bytes]:
    """What all ranks together see in each global batch."""
    share, found = BATCH // ranks, []
    each = [
        stream.batches(start, stop, batch=BATCH, micro_batch=share, rank=rank, ranks=ranks) for rank in range(ranks)
    ]
    for parts in zip(*each, strict=True):
        columns = zip(*((p.positions, p.codes, p.seeds, p.labels) for p in parts), strict=True)
        found.append(b"".join(np.concatenate(column).tobytes() for column in columns))
    return found
