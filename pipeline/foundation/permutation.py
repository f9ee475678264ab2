"""The one permutation that shuffles everything: position -> (epoch, row), a pure function.

A Feistel network on the smallest even number of bits that can hold every row number permutes the rows. A value outside
the rows is enciphered again until it is inside (Black and Rogaway 2002, "cycle walking"). Nothing is stored, so 10^9
rows cost no memory.
"""

import functools
from typing import Any

import numpy as np

ORDER_VERSION = 1
_ROUNDS = 8
_TABLE_BITS = 16
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: Any) -> Any:
    """The finalizer of splitmix64 (Steele et al. 2014) on a uint64 number or array."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _scramble(right: np.ndarray, round_: int, half: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """The round function of the network, in this round: uint64 values of `half` bits to values of `half` bits."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed % 2**64) + np.uint64(_GOLDEN)) + epoch.astype(np.uint64))
        return _mix(right + key + np.uint64(round_ * _GOLDEN % 2**64)) & np.uint64((1 << half) - 1)


@functools.lru_cache(maxsize=16)
def _tables(half: int, seed: int, epoch: int) -> list[np.ndarray]:
    """`_scramble` of every value in one epoch, one table per round. The type is uint16, so `half` is at most 16."""
    values = np.arange(1 << half, dtype=np.uint64)
    return [_scramble(values, round_, half, seed, np.array([epoch])).astype(np.uint16) for round_ in range(_ROUNDS)]


def _encipher(value: np.ndarray, half: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """The Feistel network on 2 `half` bits: one permutation per (seed, epoch). uint64 in and out."""
    left, right = value >> np.uint64(half), value & np.uint64((1 << half) - 1)
    for round_ in range(_ROUNDS):
        left, right = right, left ^ _scramble(right, round_, half, seed, epoch)
    return (left << np.uint64(half)) | right


def _encipher_by_table(value: np.ndarray, half: int, seed: int, epoch: int) -> np.ndarray:
    """`_encipher` for values of one epoch, several times as fast."""
    left, right = (value >> np.uint64(half)).astype(np.uint16), (value & np.uint64((1 << half) - 1)).astype(np.uint16)
    for table in _tables(half, seed, epoch):
        left, right = right, left ^ table.take(right)  # take() is twice as fast as indexing
    return (left.astype(np.uint64) << np.uint64(half)) | right


def permute(index: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """The row at place `index` (0 ... size - 1) of the permutation of `size` rows in (seed, epoch). int64."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    first, last = (int(epoch.min()), int(epoch.max())) if len(epoch) else (0, 0)
    if half <= _TABLE_BITS and last == first + 1:  # a run of positions across the end of an epoch
        rows = np.empty_like(index)
        for in_epoch in (epoch == first, epoch == last):
            rows[in_epoch] = permute(index[in_epoch], size, seed, epoch[in_epoch])
        return rows
    by_table = half <= _TABLE_BITS and last == first
    rows, walking, value = np.empty_like(index), np.arange(len(index)), index.astype(np.uint64)
    while len(walking):
        if by_table:
            value = _encipher_by_table(value, half, seed, first)
        else:
            value = _encipher(value, half, seed, epoch[walking])
        rows[walking] = value
        outside = np.flatnonzero(value >= np.uint64(size))
        walking, value = walking[outside], value[outside]
    return rows


def order_seed(seed: int, number: int) -> int:
    """Seed of order `number` under `seed`, for several orders that must be unrelated.

    Noise has seeds of its own, by another algorithm: `models.noise.child_seeds`.
    """
    with np.errstate(over="ignore"):
        return int(_mix(_mix(np.uint64(seed % 2**64)) + np.uint64((number + 1) * _GOLDEN % 2**64)))


def rows_at(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The row at each position p of the endless stream over `size` rows: place p % size of epoch p // size."""
    return permute(positions % size, size, seed, positions // size)


def batch_positions(batch: int, global_batch: int, rank: int, ranks: int) -> np.ndarray:
    """Positions of one rank's part of global batch `batch`: [batch G, (batch + 1) G) cut into `ranks` equal parts."""
    share = global_batch // ranks
    assert share * ranks == global_batch
    start = batch * global_batch + rank * share
    return np.arange(start, start + share, dtype=np.int64)
