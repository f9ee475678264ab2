import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.environment import environment
from rdpm.pipeline.stores.layout import create_arrays
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import (
    committed_rejects,
    leave_environment,
    missing_shards,
    publish,
    start_store,
    write_shard,
)
from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.manifest import Plan, plan_to_json
from rdpm.storage_schemas.samples import sample_arrays
from rdpm.storage_schemas.tokens import token_arrays

REJECTED = (3, 8, 19)


def problems(store: Store) -> list[str]:
    """The sentences of what verify finds."""
    return [finding.sentence for finding in verify_store(store).findings]


@pytest.fixture(scope="module")
def clean(tmp_path_factory, stores) -> Store:
    """A store written once, in order, by one process. Not to be changed."""
    return stores.build(str(tmp_path_factory.mktemp("clean") / "store"), rejected=REJECTED)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def test_every_array_is_read_back_bit_for_bit_with_its_type_and_a_short_last_shard(clean, stores):
    plan = clean.manifest.plan
    assert len(plan.shard_range(plan.num_shards - 1)) < plan.shard_rows
    opened = open_store(clean.url, "tokens")
    assert (opened.id, len(opened)) == (clean.id, plan.rows)
    for shard in range(plan.num_shards):
        written, read = stores.columns(plan, shard), opened.shard(shard, tuple(opened.specs))
        for name, spec in opened.specs.items():
            assert (read[name].dtype, read[name].shape) == (np.dtype(spec.dtype), written[name].shape)
            assert bits(read[name]) == bits(written[name])
    whole = np.concatenate([stores.columns(plan, shard)["latents"] for shard in range(plan.num_shards)])
    assert bits(opened.read_all("latents")) == bits(whole)
    assert problems(opened) == []


@pytest.mark.parametrize(
    "arrays",
    [
        token_arrays(2, (4, 2, 2), False, False),
        sample_arrays(2, 2, 4),
        (ArraySpec("raw", "float32", (3,), ("x",), compressed=False), ArraySpec("byte", "int8", (), ())),
    ],
    ids=["tokens", "samples", "uncompressed"],
)
@pytest.mark.parametrize("rows", [1, 4, 7, 8])
def test_stores_with_any_arrays_and_length_are_read_back(tmp_path, stores, arrays, rows):
    plan = Plan("tokens", rows, 4, 2, arrays, stores.IDENTITY)
    url = str(tmp_path / "store")
    start_store(url, plan)
    for shard in range(plan.num_shards):
        write_shard(url, plan, shard, stores.columns(plan, shard), stores.index(plan, shard))
    publish(url, plan)
    store = open_store(url, "tokens")
    for name in store.specs:
        written = [stores.columns(plan, shard)[name] for shard in range(plan.num_shards)]
        assert bits(store.read_all(name)) == bits(np.concatenate(written))


@pytest.mark.slow
@pytest.mark.parametrize("remote", ["memory", "s3"])
def test_a_store_on_another_file_system_is_the_same_store(clean, stores, remote, request, tree):
    url = "memory://test-store/a" if remote == "memory" else f"{request.getfixturevalue('s3')}/deep/store"
    try:
        other = stores.build(url, rejected=REJECTED)
        assert other.id == clean.id
        assert tree(url) == tree(clean.url)
        assert problems(open_store(url, "tokens")) == []
        assert bits(other.read_all("codes")) == bits(clean.read_all("codes"))
        assert other.index() == clean.index()
        with pytest.raises(ValueError, match="rows 20 -> 21"):
            start_store(url, stores.plan(rows=21))
    finally:
        files.remove(url)


def test_each_array_has_exactly_one_object_per_shard_even_if_all_values_are_zero(tmp_path, stores):
    plan = stores.plan()
    url = str(tmp_path / "store")
    start_store(url, plan)
    for shard in range(plan.num_shards):
        columns = {name: np.zeros_like(values) for name, values in stores.columns(plan, shard).items()}
        write_shard(url, plan, shard, columns, stores.index(plan, shard))
    publish(url, plan)
    planned = {name for shard in range(plan.num_shards) for name in plan.objects(shard).values()}
    for spec in plan.arrays:
        found = [f"{spec.name}/{name}" for name, _ in files.list_files(files.join(url, spec.name))]
        assert set(found) - {f"{spec.name}/zarr.json"} == {name for name in planned if name.startswith(f"{spec.name}/")}
        assert len(found) == plan.num_shards + 1
    assert not open_store(url, "tokens").read_all("codes").any()


def test_axes_are_named_in_the_metadata(clean):
    for spec in clean.manifest.plan.arrays:
        metadata = files.read_json(files.join(clean.url, spec.name, "zarr.json"))
        assert metadata["dimension_names"] == ["row", *spec.dims]
        assert metadata["shape"] == [len(clean), *spec.row_shape]
        assert metadata["chunk_grid"]["configuration"]["chunk_shape"][0] == clean.manifest.plan.shard_rows


def test_the_bytes_of_large_chunks_do_not_depend_on_timing(tmp_path, stores):
    """A chunk of 5 MB is many blocks to the compressor, whose threads could write them as they finish."""
    arrays = (ArraySpec("codes", "uint16", (10, 16, 16), ("t", "y", "x")),)
    plan = Plan("tokens", 1024, 1024, 1024, arrays, stores.IDENTITY)
    codes = np.random.default_rng(0).integers(0, 4096, (1024, 10, 16, 16)).astype(np.uint16)
    digests = set()
    for turn in range(8):
        start_store(str(tmp_path / str(turn)), plan)
        digests.add(write_shard(str(tmp_path / str(turn)), plan, 0, {"codes": codes}, {}).objects["codes"].sha256)
    assert len(digests) == 1


def test_shards_written_in_any_order_and_twice_leave_the_same_bytes(clean, tmp_path, stores, tree):
    expected = tree(clean.url)
    for seed, order in enumerate([[2, 1, 0], [1, 0, 1, 2, 2, 0], [0, 1, 2]]):
        url, plan = str(tmp_path / str(seed)), stores.plan()
        for shard in order:
            start_store(url, plan)
            stores.write(url, plan, shard, REJECTED)
        publish(url, plan)
        publish(url, plan)
        assert tree(url) == expected


def test_a_start_that_was_interrupted_anywhere_is_completed(tmp_path, stores, tree):
    plan = stores.plan()
    whole = str(tmp_path / "whole")
    start_store(whole, plan)
    written = tree(whole)
    in_order = ["plan.json", "zarr.json", *(f"{spec.name}/zarr.json" for spec in plan.arrays)]
    assert set(in_order) == set(written)
    for done in range(len(in_order) + 1):
        url = str(tmp_path / str(done))
        for name in in_order[:done]:
            files.write_bytes(files.join(url, name), written[name])
        start_store(url, plan)
        assert tree(url) == written


def test_starting_again_touches_no_shard_that_is_there(tmp_path, stores, tree):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    stores.write(url, plan, 1)
    before = tree(url)
    start_store(url, plan)
    assert tree(url) == before
    assert missing_shards(url, plan) == [0, 2]


def test_a_store_without_all_shards_is_not_published(tmp_path, stores):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    for shard in (0, 2):
        stores.write(url, plan, shard)
        with pytest.raises(ValueError, match=r"lacks shards \[1"):
            publish(url, plan)
    assert not files.exists(files.join(url, "manifest.json"))
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_store(url, "tokens")
    stores.write(url, plan, 1)
    publish(url, plan)
    open_store(url, "tokens")


def test_the_first_commit_of_a_shard_is_kept(tmp_path, stores):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    columns, index = stores.columns(plan, 0), stores.index(plan, 0)
    first = write_shard(url, plan, 0, columns, index, (3,))
    second = write_shard(url, plan, 0, {**columns, "label": columns["label"] + 1}, index, (4,))
    assert second == first
    assert first.rejected == (3,)


def test_columns_of_the_wrong_shape_or_type_are_a_programming_error(tmp_path, stores):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    columns, index = stores.columns(plan, 0), stores.index(plan, 0)
    for codes in (columns["codes"][:-1], columns["codes"][:, :1], columns["codes"].astype(np.int64)):
        with pytest.raises(AssertionError):
            write_shard(url, plan, 0, {**columns, "codes": codes}, index)
    assert missing_shards(url, plan) == [0, 1, 2]


def test_rejected_rows_keep_their_position_and_their_reason(clean, stores):
    assert clean.manifest.rejected == REJECTED
    assert [clean.commit(shard).rejected for shard in range(3)] == [(3,), (8,), (19,)]
    assert committed_rejects(clean.url, clean.manifest.plan) == [(f"k{row}", "bad") for row in REJECTED]
    index = clean.index().to_pydict()
    assert index["key"] == [f"k{row}" for row in range(20)]
    assert [row for row, reason in enumerate(index["reason"]) if reason] == list(REJECTED)


@pytest.mark.filterwarnings("ignore:Object at")  # zarr warns about the index and the commits
def test_plain_zarr_reads_the_store(clean):
    group = zarr.open_group(clean.url, mode="r")
    assert group.attrs["kind"] == "tokens"
    assert sorted(group.array_keys()) == sorted(clean.specs)
    for name in clean.specs:
        assert bits(group[name][:]) == bits(clean.read_all(name))
        assert bits(group[name][5:7]) == bits(clean.read_all(name)[5:7])


def test_plain_pyarrow_reads_the_index(clean):
    folder = Path(clean.url) / "index"
    table = pq.read_table(folder)
    assert table.column("key").to_pylist() == [f"k{row}" for row in range(20)]
    assert sorted(os.listdir(folder)) == ["00000.parquet", "00001.parquet", "00002.parquet"]


def test_the_manifest_names_the_digest_of_everything_that_is_read(clean, tree):
    manifest, on_disk = clean.manifest, tree(clean.url)
    assert set(manifest.commits) == {"00000", "00001", "00002"}
    assert set(manifest.metadata) == {"zarr.json", *(f"{name}/zarr.json" for name in clean.specs)}
    described = {"manifest.json", "plan.json", *manifest.metadata, *(f"commits/{n}.json" for n in manifest.commits)}
    described |= {name for shard in range(3) for name in manifest.plan.objects(shard).values()}
    assert set(on_disk) == described
    assert json.loads(on_disk["plan.json"]) == plan_to_json(manifest.plan)


def test_metadata_of_the_arrays_does_not_depend_on_where_they_come_from(tmp_path, stores, tree):
    for seed in (0, 1):
        create_arrays(str(tmp_path / str(seed)), stores.plan(seed=seed))
    assert tree(tmp_path / "0") == tree(tmp_path / "1")


def test_environments_are_recorded_once_and_belong_to_no_digest(clean, tmp_path, stores):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    for shard in range(plan.num_shards):
        leave_environment(url)
        stores.write(url, plan, shard, REJECTED)
    assert publish(url, plan).store_id == clean.id
    (name,) = files.list_names(files.join(url, "environments"))
    assert files.read_json(files.join(url, "environments", name)) == json.loads(json.dumps(environment()))
    store = open_store(url, "tokens")
    files.write_json(files.join(url, "environments", "other.json"), {"host": "elsewhere"})
    assert problems(store) == []
    files.remove(files.join(url, "environments"))
    assert problems(store) == []
