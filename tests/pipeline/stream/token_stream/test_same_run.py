"""The same global batches for any ranks, workers, processes and places, wherever a run resumes."""

import multiprocessing
import pickle
import time

import pytest
from torch.utils.data import DataLoader

from rdpm.pipeline.foundation.permutation import batch_positions
from rdpm.pipeline.stores.reader import DamagedStore
from rdpm.pipeline.stream.blocks import Shards
from rdpm.pipeline.stream.token_stream import TokenBatch
from tests.pipeline.stream.token_stream.runs import BATCH, CODES_ROW, KINDS, REJECTED, WINDOWED, run, seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 3])
def test_any_number_of_ranks_and_workers_sees_the_same_global_batches(make, kind, workers):
    stream = make(**KINDS[kind], workers=workers)
    uninterrupted = run(make(**KINDS[kind], workers=0), 1)
    assert uninterrupted == [seen(stream.batch(batch_positions(k, BATCH, 0, 1))) for k in range(8)]
    for ranks in (2, 3):
        assert run(stream, ranks) == uninterrupted
    assert len(set(uninterrupted)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_anywhere_on_other_ranks_gives_the_rest_of_the_run(make, kind):
    """8 batches of 12 are more than three epochs of 29 rows, so the ends of epochs are covered."""
    stream = make(**KINDS[kind])
    assert 3 * len(stream) < 8 * BATCH
    uninterrupted = run(stream, 1)
    for start in range(9):
        again = make(**KINDS[kind])
        assert run(again, (1, 4, 3)[start % 3], start) == uninterrupted[start:]


def test_waiting_is_counted(make):
    stream = make()
    assert stream.wait_seconds == 0
    list(stream.batches(0, 4, batch=BATCH, micro_batch=BATCH))
    assert 0 < stream.wait_seconds < 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_during_an_epoch_is_named_and_the_stream_continues_after_a_repair(
    tmp_path, stores, make, two, workers
):
    whole = stores.build(str(tmp_path / "store"), rejected=REJECTED)
    bound = {"cache": str(tmp_path / "cache"), "cache_gib": 16 * CODES_ROW / 2**30 - 1e-9, "window": 1}
    stream = make([whole], **{**bound, "cache": str(tmp_path / "other")}, workers=workers)
    expected = run(stream, 1, 0, 4)
    third = int(stream._sets[0].order.shards(2)[0])
    lost = tmp_path / "store" / whole.manifest.plan.objects(third)["codes"]
    lost.rename(tmp_path / "kept")
    again = make([whole], **bound, workers=workers)
    before: list[TokenBatch] = []
    with pytest.raises(DamagedStore, match=f"has lost codes/c/{third}"):
        before.extend(again.batches(0, 4, batch=BATCH, micro_batch=4))
    assert 0 < len(before) < 6
    assert all(len(batch.codes) == 4 for batch in before)
    (tmp_path / "kept").rename(lost)
    assert run(again, 1, 0, 4) == expected


def test_a_remote_store_is_read_like_a_local_one(tmp_path, stores, make):
    local = stores.build(str(tmp_path / "store"), rejected=REJECTED)
    remote = stores.build(f"memory://{tmp_path.name}/store", rejected=REJECTED)
    bound = {"cache_gib": 15 * CODES_ROW / 2**30, "window": 1}
    from_local = run(make([local], cache=str(tmp_path / "a"), **bound), 1)
    assert run(make([remote], cache=str(tmp_path / "b"), workers=3, **bound), 2) == from_local


def test_a_pickled_stream_opens_its_own_blocks(make, stream):
    again = pickle.loads(pickle.dumps(make(**WINDOWED)))
    assert run(again, 2) == run(make(**WINDOWED), 1)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_see_the_same_rows(make, method):
    stream = make(**WINDOWED)
    expected = run(stream, 1)
    loader = DataLoader(
        range(8 * BATCH), batch_size=BATCH, collate_fn=stream.batch, num_workers=2, multiprocessing_context=method
    )
    assert [seen(batch) for batch in loader] == expected


@pytest.mark.parametrize(("kind", "shards"), [("whole", 9), ("mixed", 9), ("window", 4), ("mixed windows", 4)])
def test_after_the_cache_is_filled_the_next_rows_wait_for_no_store(make, tmp_path, kind, shards, monkeypatch):
    """9 shards where all fit the cache; else those of two windows of every set."""
    expected = make(**KINDS[kind], workers=0).batch([13])
    stream = make(**{**KINDS[kind], "cache": str(tmp_path)})
    read, done = {}, []
    for part in stream._sets:
        read[part] = part.shards.read
        monkeypatch.setattr(
            part.shards, "read", lambda *given, part=part: done.append((part, given[0])) or read[part](*given)
        )
    stream.fill(13)
    assert len(done) == len(set(done)) == shards
    assert seen(stream.batch([13])) == seen(expected)
    stream.fill(13)
    assert len(done) == shards


def test_of_processes_that_fill_at_once_one_reads_and_they_need_no_messages(make, tmp_path, monkeypatch):
    read, log = Shards.read, tmp_path / "log"

    def read_slowly(self, number, names):
        time.sleep(0.05)
        with log.open("a") as file:
            file.write(f"{number}\n")
        return read(self, number, names)

    monkeypatch.setattr(Shards, "read", read_slowly)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=make(cache=str(tmp_path / "cache")).fill) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == [str(number) for number in range(9)]
