"""The one order of everything that is shuffled: position -> (epoch, row), a pure function.

Rows are permuted by a Feistel network on the smallest even number of bits that holds them; values that fall outside are
walked on until they fall inside (Black and Rogaway 2002, "cycle walking"). No table is kept, so 10^9 rows cost nothing.
"""

from typing import Any

import numpy as np

ORDER_VERSION = 1
_ROUNDS = 8


def _mix(x: Any) -> Any:
    """The finalizer of splitmix64 (Steele et al. 2014) on a uint64 number or array."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Place `index` (0 ... size - 1) in the permutation of `size` rows of each (seed, epoch). int64 in and out."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15)) + epoch.astype(np.uint64))
        value = index.astype(np.uint64)
        outside = np.ones(len(value), dtype=bool)
        while outside.any():
            left, right = value[outside] >> bits, value[outside] & mask
            for turn in range(_ROUNDS):
                scramble = _mix(right + key[outside] + np.uint64(turn) * np.uint64(0x9E3779B97F4A7C15)) & mask
                left, right = right, left ^ scramble
            value[outside] = (left << bits) | right
            outside = value >= np.uint64(size)
    return value.astype(np.int64)


def rows_at(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The row at each position of the endless stream over `size` rows: epoch p // size, permuted place p % size."""
    return permute(positions % size, size, seed, positions // size)


def batch_positions(batch: int, global_batch: int, rank: int, ranks: int) -> np.ndarray:
    """Positions of one rank's slice of global batch number `batch`: [batch G, (batch + 1) G) cut into `ranks` parts."""
    share = global_batch // ranks
    assert share * ranks == global_batch
    start = batch * global_batch + rank * share
    return np.arange(start, start + share, dtype=np.int64)
