import pickle
import tracemalloc

import numpy as np
import pytest

from rdpm.pipeline.foundation.permutation import ORDER_VERSION, batch_positions, order_seed, permute, rows_at
from rdpm.pipeline.stream.order import WholeOrder, WindowOrder, mix_at

SIZES = [1, 2, 3, 7, 16, 17, 1000, 4096, 4097]


def whole(size: int, seed: int, epoch: int) -> np.ndarray:
    return permute(np.arange(size), size, seed, np.full(size, epoch))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**63 + 5, 10**12)])
def test_permute_is_a_bijection(size, seed, epoch):
    assert np.array_equal(np.sort(whole(size, seed, epoch)), np.arange(size))


@pytest.mark.parametrize("size", [1000, 4097])
def test_orders_of_other_seeds_and_epochs_are_unrelated(size):
    orders = [whole(size, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12  # two random orders agree in one place on average
    assert all((order == np.arange(size)).sum() < 12 for order in orders)


def test_the_order_is_frozen():
    """ORDER_VERSION 1. Checkpoints rely on these numbers; another order needs another version."""
    assert ORDER_VERSION == 1
    assert whole(7, 0, 0).tolist() == [1, 2, 0, 3, 5, 4, 6]
    assert whole(10, 123, 2).tolist() == [4, 3, 9, 0, 5, 1, 7, 6, 2, 8]
    assert rows_at(np.arange(8), 5, 7).tolist() == [0, 4, 1, 2, 3, 4, 2, 1]
    places = np.array([0, 1, 123456789, 999999999])
    found = permute(places, 10**9, 42, np.array([0, 0, 1, 2]))
    assert found.tolist() == [626879085, 767411526, 960979539, 548230033]


@pytest.mark.parametrize("size", [10**9, 2**40, 2**40 + 1])
def test_huge_sizes_cost_no_memory(size):
    places = np.append(np.arange(1000), size - 1 - np.arange(1000))
    tracemalloc.start()
    found = permute(places, size, 3, np.zeros_like(places))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) == len(places)
    assert found.min() >= 0
    assert found.max() < size
    assert peak < 2**21


@pytest.mark.parametrize("size", [1, 5, 1000, 4097, 2**31 + 1])
def test_the_order_is_the_same_by_table_and_by_formula(size):
    """One or two epochs use tables; more epochs, and more than 2^32 rows, use the formula."""
    places = np.arange(2000) % size
    epochs = np.arange(2000) // 400
    mixed = permute(places, size, 9, epochs)
    for first in range(5):
        for last in range(first, min(first + 2, 5)):
            some = (epochs == first) | (epochs == last)
            assert np.array_equal(permute(places[some], size, 9, epochs[some]), mixed[some])


def test_a_row_does_not_depend_on_which_others_are_requested():
    order = whole(1000, 5, 3)
    some = np.array([999, 0, 500, 500, 7])
    assert np.array_equal(permute(some, 1000, 5, np.full(5, 3)), order[some])
    assert permute(np.arange(0), 1000, 5, np.arange(0)).tolist() == []


@pytest.mark.parametrize("size", SIZES)
def test_the_stream_holds_every_row_exactly_once_per_epoch(size):
    rows = rows_at(np.arange(3 * size), size, 11).reshape(3, size)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (3, 1)))
    assert size < 100 or not np.array_equal(rows[0], rows[1])


def test_rows_of_a_batch_across_the_end_of_an_epoch_are_those_of_its_positions():
    one_by_one = [rows_at(np.array([p]), 7, 2)[0] for p in range(40)]
    assert rows_at(np.arange(40), 7, 2).tolist() == one_by_one


def test_every_row_is_equally_likely_in_every_place():
    """Chi-square over 4,000 seeds; 50 at 15 degrees of freedom has a chance of 1 in 10^5, and the seeds are fixed."""
    orders = np.stack([whole(16, seed, seed % 3) for seed in range(4000)])
    for place in range(16):
        counts = np.bincount(orders[:, place], minlength=16)
        assert ((counts - 250) ** 2 / 250).sum() < 50


def test_neighbouring_places_are_independent():
    """The 42 ordered pairs of two rows out of seven, over 8,400 epochs; 90 at 41 degrees: 1 in 10^5."""
    first, second = (permute(np.full(8400, place), 7, 9, np.arange(8400)) for place in (0, 1))
    pairs = np.bincount(first * 7 + second, minlength=49).reshape(7, 7)
    counts = pairs[~np.eye(7, dtype=bool)]
    assert np.trace(pairs) == 0
    assert ((counts - 200) ** 2 / 200).sum() < 90


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_ranks_cut_the_global_batch_without_gap_or_overlap(ranks):
    stream = np.concatenate([batch_positions(k, 12, rank, ranks) for k in range(5) for rank in range(ranks)])
    assert stream.tolist() == list(range(60))


def test_a_global_batch_that_ranks_do_not_divide_is_a_programming_error():
    with pytest.raises(AssertionError):
        batch_positions(0, 12, 0, 5)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_any_integer_is_a_seed(seed):
    assert np.array_equal(np.sort(whole(100, seed, 0)), np.arange(100))


@pytest.mark.parametrize("weights", [(1,), (7, 3), (1, 1, 1), (70, 25, 5), (1, 1000)])
def test_every_block_of_a_mixture_has_its_exact_quotas(weights):
    block = sum(weights)
    which, places = mix_at(np.arange(5 * block), weights, 3)
    for part in which.reshape(5, block):
        assert np.bincount(part, minlength=len(weights)).tolist() == list(weights)
    for store, weight in enumerate(weights):
        assert np.array_equal(np.sort(places[which == store]), np.arange(5 * weight))


def test_a_mixture_is_shuffled_in_every_block_and_depends_only_on_the_position():
    positions = np.arange(40_000)
    which, places = mix_at(positions, (7, 3), 5)
    assert len(np.unique(which.reshape(-1, 10), axis=0)) == 120  # all of the 10 over 3 arrangements
    some = np.array([39_999, 3, 3, 12_345])
    assert np.array_equal(mix_at(some, (7, 3), 5)[0], which[some])
    assert np.array_equal(mix_at(some, (7, 3), 5)[1], places[some])
    assert not np.array_equal(mix_at(positions, (7, 3), 6)[0], which)


def test_order_seeds_give_unrelated_orders():
    seeds = {order_seed(seed, number) for seed in (0, 1, -1, 2**64 - 2) for number in range(50)}
    assert len(seeds) == 200
    orders = [whole(1000, order_seed(0, number), 0) for number in range(3)] + [whole(1000, 0, 0)]
    assert all((a == b).sum() < 12 for i, a in enumerate(orders) for b in orders[:i])


SHARDS = np.array([8, 8, 0, 7, 8, 1, 8, 3])  # a shard without a usable row, short ones anywhere


def through(order, epoch: int) -> list[tuple[int, int]]:
    """(shard, row of the shard) at every position of one epoch."""
    blocks, rows = order.at(np.arange(epoch * len(order), (epoch + 1) * len(order)))
    found = []
    for block, row in zip(blocks.tolist(), rows.tolist(), strict=True):
        shards = order.shards(block)
        before = np.append(0, np.cumsum(SHARDS[shards]))
        at = int(np.searchsorted(before, row, side="right")) - 1
        found.append((int(shards[at]), row - int(before[at])))
    return found


EVERY_ROW = [(shard, row) for shard, size in enumerate(SHARDS.tolist()) for row in range(size)]


@pytest.mark.parametrize("window", [1, 2, 3, 8, 100])
def test_windows_hold_every_row_exactly_once_per_epoch(window):
    order = WindowOrder(SHARDS, window, 4)
    epochs = [through(order, epoch) for epoch in (0, 1, 10**9)]
    assert all(sorted(epoch) == EVERY_ROW for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_window_reads_few_shards_at_a_time_and_each_once_per_epoch():
    order = WindowOrder(SHARDS, 3, 4)
    blocks = order.at(np.arange(2 * len(order)))[0]
    assert (np.diff(blocks) >= 0).all()
    assert np.unique(blocks).tolist() == list(range(6))
    for epoch in (0, 1):
        shards = np.concatenate([order.shards(3 * epoch + window) for window in range(3)])
        assert np.sort(shards).tolist() == list(range(8))
        assert max(len(order.shards(3 * epoch + window)) for window in range(3)) == 3
    assert order.near(2) == range(2, 4)


def test_rows_of_a_windows_shards_are_mixed():
    order = WindowOrder(np.full(4, 500), 2, 0)
    blocks, rows = order.at(np.arange(1000))
    assert (blocks == 0).all()
    assert abs((rows[:500] < 500).mean() - 0.5) < 0.1
    assert (rows == np.arange(1000)).sum() < 12


@pytest.mark.parametrize("order", [WindowOrder(SHARDS, 3, 4), WholeOrder([SHARDS[:3], SHARDS[3:]], 4)])
def test_an_order_of_shards_depends_only_on_the_position(order):
    blocks, rows = order.at(np.arange(200))
    some = np.array([199, 0, 42, 43, 42, 100])
    assert np.array_equal(order.at(some), (blocks[some], rows[some]))
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(again.at(np.arange(200)), (blocks, rows))


def test_the_whole_order_is_that_of_one_list_of_rows():
    order = WholeOrder([SHARDS[:3], SHARDS[3:]], 4)
    blocks, rows = order.at(np.arange(3 * len(order)))
    assert np.array_equal(rows + np.array([0, 16])[blocks], rows_at(np.arange(3 * len(order)), len(order), 4))
    assert sorted(through(order, 1)) == EVERY_ROW
    assert (order.shards(0).tolist(), order.shards(1).tolist()) == ([0, 1, 2], [3, 4, 5, 6, 7])


def test_mixtures_and_windows_are_frozen():
    """ORDER_VERSION 1, like the permutation they are made of."""
    which, places = mix_at(np.arange(10, 20), (7, 3), 42)
    assert (which.tolist(), places.tolist()) == ([0, 0, 0, 1, 0, 0, 0, 1, 0, 1], [13, 9, 8, 3, 12, 10, 7, 5, 11, 4])
    blocks, rows = WindowOrder(SHARDS, 3, 4).at(np.arange(40, 50))
    assert (blocks.tolist(), rows.tolist()) == ([2, 2, 2, 3, 3, 3, 3, 3, 3, 3], [8, 4, 11, 8, 3, 10, 4, 14, 12, 16])
    assert WindowOrder(SHARDS, 3, 4).shards(7).tolist() == [1, 5, 3]
