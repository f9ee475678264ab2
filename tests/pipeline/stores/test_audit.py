"""What `verify` finds in a store with damaged bytes, or with undamaged parts that contradict each other."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.audit import audit_shard
from rdpm.pipeline.stores.reader import DamagedStore, Store, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import leave_environment, publish, start_store, write_shard
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream

REJECTED = (3, 8, 19)


def sentences(store: Store) -> list[str]:
    return [finding.sentence for finding in verify_store(store).findings]


def test_labels_are_counted_without_the_rejects(tmp_path, stores):
    store = stores.build(str(tmp_path / "store"), rejected=REJECTED)
    found = verify_store(store)
    assert found.findings == ()
    assert found.labels == {0: 9, 1: 8}


CONTRADICTIONS = (
    ("label/", lambda columns, index: columns["label"].__setitem__(0, 1)),
    ("noise_seed", lambda columns, index: columns["noise_seed"].__setitem__(2, 0)),
    ("keys and views", lambda columns, index: index["key"].__setitem__(0, "k1")),
    ("code 16", lambda columns, index: columns["codes"].__setitem__((0, 0, 0, 0), 16)),
    ("rejects other rows", lambda columns, index: index["status"].__setitem__(0, "rejected")),
    ("reason", lambda columns, index: index["reason"].__setitem__(3, "")),
    ("number its rows", lambda columns, index: index["row"].__setitem__(1, 0)),
    ("number its rows", lambda columns, index: index["shard"].__setitem__(1, 7)),
    ("has 7 rows, not 8", lambda columns, index: index.update({name: part[:7] for name, part in index.items()})),
)


@pytest.mark.slow
@pytest.mark.parametrize(("named", "change"), CONTRADICTIONS)
def test_undamaged_parts_that_contradict_each_other_are_found_by_name(tmp_path, stores, named, change):
    plan, url = stores.plan(), str(tmp_path / "store")
    start_store(url, plan)
    for shard in range(plan.num_shards):
        mine = tuple(row for row in REJECTED if row in plan.shard_range(shard))
        columns = {name: values.copy() for name, values in stores.columns(plan, shard).items()}
        index = stores.index(plan, shard, mine)
        if shard == 0:
            change(columns, index)
        write_shard(url, plan, shard, columns, index, mine)
    found = sentences(Store(url, publish(url, plan)))
    assert found
    assert named in found[0]


def test_a_file_of_no_shard_among_the_index_or_the_commits_is_named(tmp_path, stores):
    store = stores.build(str(tmp_path / "store"))
    for name in ("index/00003.parquet", "commits/00003.json"):
        files.write_bytes(files.join(store.url, name), b"stranger")
        (found,) = sentences(store)
        assert name in found
        files.remove(files.join(store.url, name))
    assert sentences(store) == []


def test_records_of_environments_are_no_findings(tmp_path, stores):
    store = stores.build(str(tmp_path / "store"))
    leave_environment(store.url)
    files.write_bytes(files.join(store.url, "environments", "0123456789ab.json"), b"damaged or not")
    assert len(files.list_names(files.join(store.url, "environments"))) == 2
    assert sentences(store) == []


def test_an_audit_returns_the_undamaged_arrays_of_a_damaged_shard_and_no_others(tmp_path, stores):
    store = stores.build(str(tmp_path / "store"))
    files.write_bytes(files.join(store.url, store.manifest.plan.objects(1)["codes"]), b"damage")
    audit = audit_shard(store, 1)
    assert [finding.shard for finding in audit.findings] == [1]
    assert set(audit.arrays) == {"noise_seed", "label", "accumulated"}


def damaged(data: bytes, draw: random.Random) -> bytes | None:
    """The bytes with one of them changed, or cut, or None for deleted."""
    place = draw.randrange(len(data))
    match draw.choice(["flip", "cut", "delete"]):
        case "flip":
            return data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :]
        case "cut":
            return data[:place]
    return None


def read_everything(store: Store) -> list[bytes]:
    """Everything that a reader can get, each part as bytes; a part that is refused is empty."""
    reads = [lambda name=name: store.read_all(name).tobytes() for name in store.specs]
    reads += [lambda: str(store.index().to_pylist()).encode(), lambda: stream_bytes(store)]
    found = []
    for read in reads:
        try:
            found.append(read())
        except DamagedStore:
            found.append(b"")
    return found


def stream_bytes(store: Store) -> bytes:
    with tempfile.TemporaryDirectory() as cache:  # another cache could still hold rows from before the damage
        stream = TokenStream([store], seed=0, latents=False, config=StreamConfig(cache=cache, workers=0))
        batch = stream.batch(np.arange(len(stream)))
        return b"".join(part.tobytes() for part in (batch.codes, batch.seeds, batch.labels))


def opened(url: str) -> Store | None:
    try:
        return open_store(url, "tokens")
    except ValueError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("turns", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_many_flips_cuts_and_deletions_are_all_found_and_none_is_ever_read(tmp_path, stores, tree, turns):
    plan = stores.plan(rows=10)
    url = str(tmp_path / "store")
    clean = read_everything(stores.build(url, plan, rejected=(3, 8)))
    assert all(clean)
    names, draw = list(tree(url)), random.Random(0)
    assert len(names) == 1 + 1 + 1 + 5 + 2 * (1 + 1 + 5)  # manifest, plan, metadata, commits, index, arrays
    refused = 0
    for turn in range(turns):
        name = names[turn % len(names)]
        path = Path(url) / name
        good = path.read_bytes()
        bad = damaged(good, draw)
        path.unlink() if bad is None else path.write_bytes(bad)
        store = opened(url)
        assert (store is None) == (name == "manifest.json")
        if store:
            assert any(name in sentence for sentence in sentences(store)), (name, bad)
            found = read_everything(store)
            refused += found != clean
            assert all(part in (b"", whole) for part, whole in zip(found, clean, strict=True)), (name, bad)
        path.write_bytes(good)
    assert refused > turns // 2
    assert sentences(open_store(url, "tokens")) == []
