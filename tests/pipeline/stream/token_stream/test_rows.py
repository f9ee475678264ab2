"""Which rows a stream holds, in which order, and which streams are refused."""

import contextlib
import itertools
import json

import numpy as np
import pytest

from rdpm.pipeline.foundation.permutation import ORDER_VERSION
from rdpm.pipeline.stream.token_stream import StreamConfig
from tests.pipeline.stream.token_stream.runs import BATCH, CODES_ROW, KINDS, REJECTED, WINDOWED


def test_every_usable_row_occurs_exactly_once_per_epoch(tmp_path, stores, make):
    for rejected in ((), REJECTED):
        store = stores.build(str(tmp_path / str(len(rejected))), rejected=rejected)
        stream = make([store], seed=1)
        assert len(stream) == 20 - len(rejected)
        usable = np.setdiff1d(np.arange(20), rejected)
        expected = sorted(store.read_all("noise_seed")[usable].tolist())
        epochs = [stream.batch(np.arange(e * len(stream), (e + 1) * len(stream))) for e in range(3)]
        assert all(sorted(epoch.seeds.tolist()) == expected for epoch in epochs)
        assert not np.array_equal(epochs[0].seeds, epochs[1].seeds)


def test_rejected_rows_are_skipped_and_no_index_shifts(two, make):
    """Codes, seed, label and latents at a position belong to one row of the store."""
    store = two[0]
    stream, fresh = make([store], seed=2), make([store], seed=2, latents=True)
    positions = np.arange(2 * len(stream))
    batch = stream.batch(positions)
    seeds = store.read_all("noise_seed")
    rows = [int(np.flatnonzero(seeds == seed)[0]) for seed in batch.seeds]
    assert not set(rows) & set(REJECTED)
    assert np.array_equal(batch.codes, store.read_all("codes")[rows])
    assert np.array_equal(batch.labels, store.read_all("label")[rows])
    assert fresh.batch(positions).latents.tobytes() == store.read_all("latents")[rows].tobytes()
    assert np.array_equal(fresh.batch(positions).labels, batch.labels)


def test_several_stores_are_read_as_one(tmp_path, stores, two, make):
    """Each store has its own rejected rows; together they are a stream over one list of usable rows."""
    other = stores.build(str(tmp_path / "other"), stores.plan(rows=13, views=("flip",)), rejected=(1, 12))
    stream = make([two[0], other])
    keep = [row for row in range(33) if row not in (*REJECTED, 21, 32)]
    labels = np.concatenate([two[0].read_all("label"), other.read_all("label")])[keep]
    seeds = np.concatenate([two[0].read_all("noise_seed"), other.read_all("noise_seed")])[keep]
    assert len(stream) == len(keep) == 27
    epoch = stream.batch(np.arange(27))
    expected = sorted(zip(seeds.tolist(), labels.tolist(), strict=True))
    assert sorted(zip(epoch.seeds.tolist(), epoch.labels.tolist(), strict=True)) == expected


@pytest.mark.parametrize("kind", ["whole", "window"])
def test_every_row_occurs_exactly_once_per_epoch_over_ranks_and_micro_batches(make, two, kind):
    stream = make(**KINDS[kind], workers=2)
    usable = np.concatenate([np.delete(two[0].read_all("noise_seed"), REJECTED), two[1].read_all("noise_seed")])
    parts = [stream.batches(0, 29, batch=BATCH, micro_batch=2, rank=rank, ranks=3) for rank in range(3)]
    batches = [batch for together in zip(*parts, strict=True) for batch in together]
    assert all(len(batch.positions) == 2 for batch in batches)
    positions = np.concatenate([batch.positions for batch in batches])
    seeds = np.concatenate([batch.seeds for batch in batches])[np.argsort(positions)].reshape(12, 29)
    assert np.array_equal(np.sort(seeds, axis=1), np.tile(np.sort(usable), (12, 1)))


def test_a_mixture_holds_its_shares_and_each_store_its_own_epochs(make, two):
    """3 of every 5 from 16 usable rows, 2 of every 5 from 13: 16 * 13 blocks are complete epochs of both."""
    stream = make(weights=(3, 2))
    seeds = stream.batch(np.arange(5 * 16 * 13)).seeds
    first = np.delete(two[0].read_all("noise_seed"), REJECTED)
    second = two[1].read_all("noise_seed")
    assert (np.isin(seeds, first).reshape(-1, 5).sum(axis=1) == 3).all()
    for usable, weight in ((first, 3), (second, 2)):
        assert all((seeds == seed).sum() == weight * 16 * 13 // len(usable) for seed in usable)


def test_a_window_holds_only_its_shards_and_plans_and_config_decide_whether_there_are_windows(make, two):
    assert make().window is None
    assert make(cache_gib=29 * CODES_ROW / 2**30).window is None
    stream = make(**{**WINDOWED, "window": 1})
    assert stream.window == 1
    assert make(cache_gib=29 * CODES_ROW / 2**30, latents=True, window=1).window == 1  # latents take more room
    seeds = [store.read_all("noise_seed")[k : k + 4] for store in two for k in range(0, len(store), 4)]
    epoch = stream.batch(np.arange(29)).seeds
    shards = [next(i for i, shard in enumerate(seeds) if seed in shard) for seed in epoch]
    assert len([1 for a, b in itertools.pairwise(shards) if a != b]) == len(seeds) - 1


def test_the_folder_stays_within_its_bound_while_windows_pass(make, tmp_path):
    stream = make(**WINDOWED | {"cache": str(tmp_path), "cache_gib": 20 * CODES_ROW / 2**30})
    for _ in stream.batches(0, 29, batch=BATCH, micro_batch=4):
        held = 0
        for path in tmp_path.glob("*.rows"):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                held += path.stat().st_size
        assert held <= 20 * CODES_ROW


def test_windows_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match=r"two windows of 4 shards take .* lower window or raise cache_gib"):
        make(**{**WINDOWED, "window": 4})


def test_positions_one_at_a_time_are_the_batch(stream):
    whole = stream.batch(np.arange(70))
    for position in (0, 28, 29, 57, 69):
        one = stream.batch([position])
        assert (one.seeds[0], one.labels[0]) == (whole.seeds[position], whole.labels[position])
        assert np.array_equal(one.codes[0], whole.codes[position])
    assert np.array_equal(whole.positions, np.arange(70))


def test_a_batch_holds_only_the_columns_that_are_needed(make, stream):
    fresh, stored = make(latents=True).batch(np.arange(3)), stream.batch(np.arange(3))
    assert (fresh.codes, fresh.seeds, stored.latents) == (None, None, None)
    assert (fresh.latents.dtype, fresh.latents.shape) == (np.float16, (3, 4, 4, 4))
    assert (stored.codes.dtype, stored.seeds.dtype, stored.labels.dtype) == (np.uint16, np.uint64, np.int32)


def test_the_order_depends_on_the_seed(make, stream):
    assert not np.array_equal(make(seed=5).batch(np.arange(29)).seeds, stream.batch(np.arange(29)).seeds)


def test_identity_names_all_that_the_order_depends_on(make, two, stream):
    ids = [store.id for store in two]
    assert stream.identity == {"stores": ids, "seed": 4, "order": ORDER_VERSION}
    assert make(**KINDS["mixed windows"]).identity == {**stream.identity, "weights": [3, 2], "window": 1}
    streams = [
        stream,
        make(two[::-1]),
        make(two[:1]),
        make(seed=5),
        make(weights=(3, 2)),
        make(weights=(2, 3)),
        make(**WINDOWED),
        make(**{**WINDOWED, "window": 1}),
    ]
    identities = [json.loads(json.dumps(one.identity)) for one in streams]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert make(workers=3, cache="/elsewhere").identity == stream.identity


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, 2, 3)])
def test_weights_other_than_one_per_store_are_refused(make, weights):
    with pytest.raises(ValueError, match=r"give every store an integer"):
        make(weights=weights)


@pytest.mark.parametrize(("field", "value"), [("cache_gib", 0), ("window", 0), ("workers", -1)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        StreamConfig(**{field: value})


def test_a_store_without_a_usable_row_is_refused(tmp_path, stores, make):
    empty = stores.build(str(tmp_path / "empty"), rejected=tuple(range(20)))
    with pytest.raises(ValueError, match="empty holds no usable row"):
        make([empty])
