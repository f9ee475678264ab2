"""Publishing a store on an object store: few requests, many at a time, and none of them for an array."""

import pytest

from benchmarks.publish import Bucket, measure
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard


@pytest.mark.slow
def test_publishing_asks_once_per_shard_with_64_requests_under_way():
    """Six objects per shard. Besides the commits there are some listings, and settling what was killed."""
    asked = measure(shards=300, killed=0, latency=0.1)
    assert asked["most_at_once"] == 64
    assert asked["requests"]["GET"] == 300 + 7  # commits, and metadata of the group and the arrays
    assert asked["publish_requests_per_shard"] < 1.1
    settled = measure(shards=300, killed=10, latency=0)
    more = {kind: settled["requests"].get(kind, 0) - asked["requests"].get(kind, 0) for kind in settled["requests"]}
    assert (more["COPY"], more["DELETE"], more["GET"]) == (60, 10, 10)


def test_writing_a_shard_asks_a_fixed_number_of_times():
    """Per object: put, get back, its size and copy. Per shard: commit, two to see that nothing is published, delete."""
    assert measure(shards=1, killed=0, latency=0)["write_requests_per_shard"] == 6 * 4 + 4


def test_publishing_reads_no_array_and_a_second_time_moves_nothing(stores, monkeypatch):
    url, plan = "bucket://here/store", stores.plan(rows=60)
    Bucket.clear()
    start_store(url, plan)
    for shard in range(plan.num_shards):
        write_shard(url, plan, shard, stores.columns(plan, shard), stores.index(plan, shard))
    read = []
    get = Bucket.cat_file
    monkeypatch.setattr(Bucket, "cat_file", lambda self, path, *a, **o: read.append(path) or get(self, path, *a, **o))
    Bucket.reset(0)
    first = publish(url, plan)
    records = {f"here/store/commits/{shard:05d}.json" for shard in range(plan.num_shards)}
    metadata = {f"here/store/{name}" for name in first.metadata}
    assert sorted(read) == sorted(records | metadata)
    for _ in range(2):
        Bucket.reset(0)
        assert publish(url, plan) == first
        assert Bucket.requests["COPY"] == Bucket.requests["DELETE"] == 0
    assert files.read_json(f"{url}/manifest.json")["store_id"] == first.store_id


@pytest.mark.slow
def test_verifying_has_64_requests_under_way(stores):
    """Of each shard its commit alone, then its objects together, of several shards at a time."""
    url, plan = "bucket://here/verified", stores.plan(rows=240)
    Bucket.clear()
    store = stores.build(url, plan, rejected=(5,))
    Bucket.reset(0.2)
    found = verify_store(store)
    assert not found.findings
    assert sum(found.labels.values()) == 239
    assert 48 <= Bucket.most_at_once <= 70
    damaged = plan.objects(3)["codes"]
    files.write_bytes(f"{url}/{damaged}", b"damage")
    assert [finding.name for finding in verify_store(store).findings] == [damaged]


@pytest.mark.long
def test_publishing_100_000_shards_at_30_ms_per_request_takes_less_than_10_minutes():
    asked = measure(shards=100_000, killed=1000, latency=0.03)
    assert asked["publish_s"] < 600
    assert asked["publish_requests_per_shard"] < 1.5
