import numpy as np
import pytest

from pipeline.order import ORDER_VERSION, batch_positions
from pipeline.tokens.stream import TokenStream

BATCH = 12
REJECTED = (0, 7, 8, 19)


@pytest.fixture(scope="module")
def two(tmp_path_factory, stores):
    """A store of 20 rows with 4 rejects and one of 13 with none: 29 rows together."""
    root = tmp_path_factory.mktemp("stream")
    first = stores.build(str(root / "first"), rejected=REJECTED)
    second = stores.build(str(root / "second"), stores.plan(rows=13, view="flip"))
    return [first, second]


@pytest.fixture(scope="module")
def stream(two) -> TokenStream:
    return TokenStream(two, seed=4, latents=True)


def test_every_usable_row_comes_exactly_once_an_epoch(tmp_path, stores):
    for rejected in ((), REJECTED):
        store = stores.build(str(tmp_path / str(len(rejected))), rejected=rejected)
        stream = TokenStream([store], seed=1, latents=False)
        assert len(stream) == 20 - len(rejected)
        usable = np.setdiff1d(np.arange(20), rejected)
        expected = sorted(store.read_all("noise_seed")[usable].tolist())
        epochs = [stream.batch(np.arange(e * len(stream), (e + 1) * len(stream))) for e in range(3)]
        assert all(sorted(epoch.seeds.tolist()) == expected for epoch in epochs)
        assert not np.array_equal(epochs[0].seeds, epochs[1].seeds)


def test_rejects_are_passed_over_and_no_index_shifts(two):
    """Codes, seed, label and latents of a position are those of one row of the store."""
    store = two[0]
    stream = TokenStream([store], seed=2, latents=True)
    batch = stream.batch(np.arange(2 * len(stream)))
    seeds = store.read_all("noise_seed")
    rows = [int(np.flatnonzero(seeds == seed)[0]) for seed in batch.seeds]
    assert not set(rows) & set(REJECTED)
    assert np.array_equal(batch.codes, store.read_all("codes")[rows])
    assert np.array_equal(batch.labels, store.read_all("label")[rows])
    assert batch.latents.tobytes() == store.read_all("latents")[rows].tobytes()


def test_several_stores_are_read_as_one(tmp_path, stores, two):
    """Each has its own rejects; together they are the stream of the one list of usable rows."""
    other = stores.build(str(tmp_path / "other"), stores.plan(rows=13, view="flip"), rejected=(1, 12))
    stream = TokenStream([two[0], other], seed=4, latents=False)
    keep = [row for row in range(33) if row not in (*REJECTED, 21, 32)]
    labels = np.concatenate([two[0].read_all("label"), other.read_all("label")])[keep]
    seeds = np.concatenate([two[0].read_all("noise_seed"), other.read_all("noise_seed")])[keep]
    assert len(stream) == len(keep) == 27
    epoch = stream.batch(np.arange(27))
    expected = sorted(zip(seeds.tolist(), labels.tolist(), strict=True))
    assert sorted(zip(epoch.seeds.tolist(), epoch.labels.tolist(), strict=True)) == expected


def run(stream: TokenStream, ranks: int, start: int = 0, stop: int = 8) -> list[bytes]:
    """What the ranks see in each global batch, side by side."""
    found = []
    for k in range(start, stop):
        parts = [stream.batch(batch_positions(k, BATCH, rank, ranks)) for rank in range(ranks)]
        columns = zip(*((p.positions, p.codes, p.seeds, p.labels, p.latents) for p in parts), strict=True)
        found.append(b"".join(np.concatenate(column).tobytes() for column in columns))
    return found


@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
def test_any_number_of_ranks_sees_the_same_global_batches(stream, ranks):
    assert run(stream, ranks) == run(stream, 1)
    assert len(set(run(stream, 1))) == 8


def test_resuming_anywhere_on_other_ranks_gives_the_rest_of_the_run(two, stream):
    """8 batches of 12 are more than three epochs of 29 rows: every edge is crossed."""
    assert 3 * len(stream) < 8 * BATCH
    uninterrupted = run(stream, 1)
    for start in range(9):
        again = TokenStream(two, seed=4, latents=True)
        for ranks in (1, 4, 3):
            assert run(again, ranks, start) == uninterrupted[start:]


def test_positions_one_at_a_time_are_the_batch(stream):
    whole = stream.batch(np.arange(70))
    for position in (0, 28, 29, 57, 69):
        one = stream.batch(np.array([position]))
        assert (one.seeds[0], one.labels[0]) == (whole.seeds[position], whole.labels[position])
        assert np.array_equal(one.codes[0], whole.codes[position])
    assert np.array_equal(whole.positions, np.arange(70))


def test_latents_are_there_only_where_asked_for(two, stream):
    assert TokenStream(two, seed=4, latents=False).batch(np.arange(3)).latents is None
    batch = stream.batch(np.arange(3))
    assert (batch.latents.dtype, batch.latents.shape) == (np.float16, (3, 4, 4, 4))
    assert (batch.codes.dtype, batch.seeds.dtype, batch.labels.dtype) == (np.uint16, np.uint64, np.int32)


def test_the_order_depends_on_the_seed(two, stream):
    other = TokenStream(two, seed=5, latents=False)
    assert not np.array_equal(other.batch(np.arange(29)).seeds, stream.batch(np.arange(29)).seeds)


def test_identity_names_the_stores_the_seed_and_the_order(two, stream):
    assert stream.identity == {"stores": [store.id for store in two], "seed": 4, "order": ORDER_VERSION}
    identities = [
        stream.identity,
        TokenStream(two[::-1], seed=4, latents=False).identity,
        TokenStream(two[:1], seed=4, latents=False).identity,
        TokenStream(two, seed=5, latents=False).identity,
    ]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
