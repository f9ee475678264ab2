"""Token stores as PyTorch datasets: rows by number, batches for any ranks and workers, and going on in mid-epoch."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from rdpm.pipeline.foundation.permutation import rows_at
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stream.dataset import TokenBatches, TokenDataset
from rdpm.pipeline.stream.token_stream import StreamConfig
from tests.pipeline.stream.token_stream.runs import BATCH, KINDS, REJECTED

COLUMNS = ("codes", "noise_seed", "label")


@pytest.fixture(scope="module")
def dataset(two) -> TokenDataset:
    return TokenDataset(two, COLUMNS)


@pytest.fixture(scope="module")
def batches(dataset, cache):
    """batches(rank, ranks, **settings): batches of 12 of the 29 rows."""

    def build(rank: int = 0, ranks: int = 1, batch: int = BATCH, seed: int = 4, **kind) -> TokenBatches:
        weights = kind.pop("weights", ())
        config = StreamConfig(**{"cache": cache, **kind})
        return dataset.batches(batch, seed=seed, rank=rank, ranks=ranks, weights=weights, config=config)

    return build


def bits(batch) -> bytes:
    return b"".join(batch[name].numpy().tobytes() for name in ("position", *COLUMNS))


def test_rows_by_number_are_the_usable_rows_of_the_stores_in_their_order(two, dataset):
    keep = np.setdiff1d(np.arange(20), REJECTED)
    codes = np.concatenate([two[0].read_all("codes")[keep], two[1].read_all("codes")])
    seeds = np.concatenate([two[0].read_all("noise_seed")[keep], two[1].read_all("noise_seed")])
    assert len(dataset) == len(codes) == 29
    for number in (*range(29), -1, -29):
        row = dataset[number]
        assert row["codes"].dtype == row["label"].dtype == torch.int64
        assert np.array_equal(row["codes"].numpy(), codes[number])
        assert row["noise_seed"].numpy() == seeds[number]
    for number in (29, -30):
        with pytest.raises(IndexError, match=f"row {number} is not among the 29 usable rows"):
            dataset[number]


def test_a_data_loader_shuffles_splits_and_batches_them(dataset):
    loader = DataLoader(Subset(dataset, range(5, 29)), 7, shuffle=True, generator=torch.Generator().manual_seed(0))
    seeds = torch.cat([batch["noise_seed"] for batch in loader]).tolist()
    assert sorted(seeds) == sorted(dataset[number]["noise_seed"].tolist() for number in range(5, 29))


def test_latents_and_accumulated_have_the_types_of_the_store(two):
    row = TokenDataset(two[1], ("accumulated", "latents"))[3]
    assert row["latents"].numpy().tobytes() == two[1].read_all("latents")[3].tobytes()
    assert row["accumulated"].dtype == torch.float16


def test_a_path_is_opened(two, dataset):
    assert torch.equal(TokenDataset(two[0].url)[2]["codes"], dataset[2]["codes"])
    assert len(TokenDataset([store.url for store in two])) == 29


def test_batches_are_those_of_the_stream(make, batches):
    """The same positions, seeds and labels as `TokenStream.batches`: there is one order."""
    for rank in range(3):
        found = list(batches(rank, 3))
        wanted = list(make().batches(0, 3, batch=BATCH, micro_batch=4, rank=rank, ranks=3))
        assert len(found) == len(wanted)
        for batch, true in zip(found, wanted, strict=True):
            assert np.array_equal(batch["position"].numpy(), true.positions)
            assert np.array_equal(batch["noise_seed"].numpy(), true.seeds)
            assert np.array_equal(batch["codes"].numpy(), true.codes)
            assert np.array_equal(batch["label"].numpy(), true.labels)


@pytest.mark.parametrize("kind", ["whole", "mixed windows"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_rows_come_for_any_workers_and_ranks(batches, kind, workers):
    alone = {int(row["position"]): bits(row) for row in _rows(batches(**KINDS[kind]), epochs=2)}
    for ranks in (1, 2):
        together = [
            row
            for rank in range(ranks)
            for row in _rows(batches(rank, ranks, **KINDS[kind]), epochs=2, num_workers=workers)
        ]
        assert len(together) == len(alone) == 60  # the batches that begin in two epochs of 29 rows
        assert {int(row["position"]): bits(row) for row in together} == alone


def _rows(data: TokenBatches, epochs: int, **loading):
    """Single rows of some epochs through a loader."""
    loader = DataLoader(data, batch_size=None, **loading)
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for batch in loader:
            for at in range(len(batch["position"])):
                yield {name: values[at : at + 1] for name, values in batch.items()}


def test_epochs_follow_each_other_without_gap_or_repetition(dataset, batches):
    """Every 29 positions are every row once, though 12 does not divide 29."""
    data, found = batches(), []
    for epoch in range(12):
        data.set_epoch(epoch)
        assert data.epoch == epoch
        passed = list(data)
        assert len(passed) == len(data) in (2, 3)
        found += passed
    positions = torch.cat([batch["position"] for batch in found])
    assert torch.equal(positions, torch.arange(12 * 29))
    seeds = torch.cat([batch["noise_seed"] for batch in found]).numpy().reshape(12, 29)
    usable = np.sort(np.array([dataset[number]["noise_seed"].tolist() for number in range(29)], np.uint64))
    assert (np.sort(seeds, axis=1) == usable).all()
    assert np.array_equal(
        seeds[0], np.array([dataset[n]["noise_seed"].tolist() for n in rows_at(np.arange(29), 29, 4)])
    )


@pytest.mark.parametrize(("kind", "stops"), [("whole", range(1, 8)), ("window", (4,))])
def test_going_on_after_any_batch_is_the_run_that_was_not_stopped(batches, kind, stops):
    """Also on other ranks, through JSON."""

    def run(data, first=0):
        for epoch in range(first, 3):
            data.set_epoch(epoch)
            yield from data

    whole = list(run(batches(**KINDS[kind])))
    assert len(whole) == 8
    for stop in stops:
        data = batches(**KINDS[kind])
        used = list(itertools.islice(run(data), stop))
        state = json.loads(json.dumps(data.state_dict(used[-1])))
        parts = []
        for rank in range(2):
            later = batches(rank, 2, **KINDS[kind])
            later.load_state_dict(state)
            parts.append([batch["position"] for batch in run(later, later.epoch)])
        rest = [torch.cat(halves) for halves in zip(*parts, strict=True)]
        assert torch.equal(torch.cat([*(batch["position"] for batch in used), *rest]), torch.arange(len(whole) * BATCH))


def test_workers_are_ahead_and_nothing_is_lost_or_repeated(batches):
    """The loader has fetched more than was used; workers that persist see the epoch and the position."""
    data, used = batches(batch=4), []
    loader = DataLoader(data, batch_size=None, num_workers=2, prefetch_factor=3, persistent_workers=True)
    for batch in loader:
        used.append(batch["position"])
        if len(used) == 3:
            state = data.state_dict(batch)
            break
    data.load_state_dict(state)
    for epoch in range(data.epoch, 2):
        data.set_epoch(epoch)
        used += [batch["position"] for batch in loader]
    assert torch.equal(torch.cat(used), torch.arange(60))


@pytest.mark.long
def test_workers_that_are_spawned_read_the_same(batches):
    data = batches(batch=4)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [bits(batch) for batch in loader] == [bits(batch) for batch in data]


def test_a_stream_has_codes_or_latents(two, cache):
    config = StreamConfig(cache=cache)
    found = next(iter(TokenDataset(two, ("latents", "label")).batches(5, config=config)))
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "position": (5,),
        "latents": (5, 4, 4, 4),
        "label": (5,),
    }
    for columns in (("codes", "latents"), ("accumulated",)):
        with pytest.raises(ValueError, match="a stream has latents and label, or codes, noise_seed and label"):
            TokenDataset(two, columns).batches(4, config=config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 10, "ranks": 3}, "batch 10 cannot be shared equally by 3 ranks; use a multiple of 3"),
        ({"batch": 30}, "batch 30 is larger than an epoch, which has 29 rows"),
        ({"rank": 2, "ranks": 2}, "rank is 2 of 2 ranks; use 0 to 1"),
    ],
)
def test_batches_that_cannot_be_are_refused(batches, settings, said):
    with pytest.raises(ValueError, match=said):
        batches(**settings)


def test_a_state_of_another_stream_or_batch_is_refused(batches):
    data = batches()
    state = data.state_dict(next(iter(data)))
    with pytest.raises(ValueError, match=r"another stream \(seed 4 -> 5\)"):
        batches(seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match="batch 5 does not divide position 12"):
        batches(batch=5).load_state_dict(state)
    halved = batches(batch=6)
    halved.load_state_dict(state)
    assert int(next(iter(halved))["position"][0]) == 12


def test_stores_and_columns_that_do_not_fit_are_refused(tmp_path, stores, two):
    other = stores.build(str(tmp_path / "other"), stores.plan(tokenizer_digest="t1"))
    with pytest.raises(ValueError, match="other are of two tokenizers"):
        TokenDataset([two[0], other])
    with pytest.raises(ValueError, match=r"columns are \['pixels'\], and store .* has codes, noise_seed, label"):
        TokenDataset(two, ("pixels",))
    with pytest.raises(ValueError, match="stores is empty"):
        TokenDataset([])
    assert open_store(other.url).id == other.id
