"""Single rows of a store: the same as whole shards give, from few bytes, and damage is noticed."""

import pickle

import numpy as np
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import DamagedStore, open_store
from rdpm.pipeline.stores.rows import Rows

NAMES = ("codes", "noise_seed", "label", "accumulated", "latents")


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Bytes of every part of an object that is read."""
    sizes: list[int] = []
    truly = files.read_parts

    def spy(parts):
        found = truly(parts)
        sizes.extend(len(data) for data in found)
        return found

    monkeypatch.setattr(files, "read_parts", spy)
    return sizes


def test_rows_in_any_order_are_those_of_the_shards(anywhere, stores):
    store = stores.build(anywhere)
    rows = np.random.default_rng(0).integers(0, 20, 50)
    for reader in (Rows(store, NAMES), pickle.loads(pickle.dumps(Rows(open_store(anywhere), NAMES)))):
        found = reader.read(rows)
        for name in NAMES:
            assert found[name].tobytes() == store.read_all(name)[rows].tobytes()


def test_a_row_costs_its_chunk_and_a_table_once_per_shard(tmp_path, stores, read):
    store = stores.build(str(tmp_path / "store"), stores.plan(rows=512, shard_rows=256, chunk_rows=4))
    whole = store.commit(0).objects["codes"].size
    rows = Rows(store, ("codes",))
    first = rows.read(np.array([300]))["codes"]
    table = 256 // 4 * 16 + 4
    assert read[0] == table
    assert sum(read) < table + whole / 32
    del read[:]
    assert np.array_equal(rows.read(np.array([301, 300, 303]))["codes"][1], first[0])
    assert read == []  # all in the chunk that is there
    rows.read(np.array([310]))
    assert len(read) == 1


def test_decoded_chunks_stay_within_their_bound(tmp_path, stores, monkeypatch):
    store = stores.build(str(tmp_path / "store"))
    monkeypatch.setattr("rdpm.pipeline.stores.rows._KEPT", 1000)
    rows = Rows(store, ("latents",))
    for row in (*range(20), *range(20)):
        assert rows.read(np.array([row]))["latents"].tobytes() == store.read_all("latents")[[row]].tobytes()
        assert sum(chunk.nbytes for chunk in rows._chunks.values()) <= 1000


@pytest.mark.parametrize("at", [2, -1, -20], ids=["chunk", "crc of the table", "table"])
def test_a_flipped_byte_in_what_is_read_is_damage_by_name(tmp_path, stores, at):
    store = stores.build(str(tmp_path / "store"))
    path = tmp_path / "store" / store.manifest.plan.objects(1)["codes"]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedStore, match=r"codes/c/1/0/0/0 is not what was committed; run rdpm verify"):
        Rows(store, ("codes",)).read(np.arange(8, 16))
    assert len(Rows(store, ("codes",)).read(np.arange(8))["codes"]) == 8


def test_a_lost_and_a_cut_object_are_damage_by_name(tmp_path, stores):
    store = stores.build(str(tmp_path / "store"))
    path = tmp_path / "store" / "label" / "c" / "2"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedStore, match="label/c/2 is not what was committed"):
        Rows(store, ("label",)).read(np.array([19]))
    path.unlink()
    with pytest.raises(DamagedStore, match="has lost label/c/2"):
        Rows(store, ("label",)).read(np.array([19]))
