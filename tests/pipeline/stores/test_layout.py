import json
import random

import numpy as np
import pytest
import zarr

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.layout import create_arrays, decode_shard, encode_shard, fill_value, metadata_objects
from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import sample_arrays
from rdpm.storage_schemas.tokens import token_arrays

ARRAYS = (
    *token_arrays(10, (32, 16, 16), True, True),
    *(spec for spec in sample_arrays(10, 16, 32) if spec.name in ("images", "seed")),
    ArraySpec("raw", "float32", (3,), ("x",), compressed=False),
)
names = pytest.mark.parametrize("spec", ARRAYS, ids=[spec.name for spec in ARRAYS])


@pytest.fixture(scope="module")
def plan_of(stores):
    """A function that plans two shards of eight rows in chunks of two; the last shard and its last chunk are short."""

    def make(*arrays: ArraySpec, rows: int = 11) -> Plan:
        return Plan("tokens", rows, 8, 2, arrays, stores.IDENTITY)

    return make


def values_of(spec: ArraySpec, rows: int) -> np.ndarray:
    size = rows * int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize
    return np.frombuffer(np.random.default_rng(0).bytes(size), spec.dtype).reshape(rows, *spec.row_shape)


@names
def test_chunks_are_bit_shuffled_and_every_chunk_and_the_table_end_in_a_crc(plan_of, spec):
    metadata = json.loads(metadata_objects(plan_of(spec))[f"{spec.name}/zarr.json"])
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["index_location"] == "end"
    codecs = sharding["configuration"]["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", *(["blosc"] if spec.compressed else []), "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    if spec.compressed:
        blosc = codecs[1]["configuration"]
        assert (blosc["shuffle"], blosc["cname"]) == ("bitshuffle", "lz4")
        assert blosc["typesize"] == np.dtype(spec.dtype).itemsize
    assert metadata["dimension_names"] == ["row", *spec.dims]


@names
def test_a_shard_decodes_bit_for_bit_to_what_zarr_reads(tmp_path, plan_of, spec):
    plan = plan_of(spec)
    create_arrays(str(tmp_path), plan)
    written = values_of(spec, plan.rows)
    for shard in range(plan.num_shards):
        rows = plan.shard_range(shard)
        data = encode_shard(plan, spec, shard, written[rows.start : rows.stop])
        files.write_bytes(f"{tmp_path}/{plan.objects(shard)[spec.name]}", data)
        mine = decode_shard(plan, spec, shard, data)
        assert (mine.shape, mine.dtype) == ((len(rows), *spec.row_shape), np.dtype(spec.dtype))
        assert mine.tobytes() == written[rows.start : rows.stop].tobytes()
    assert zarr.open_group(str(tmp_path), mode="r")[spec.name][:].tobytes() == written.tobytes()


@names
def test_a_reader_without_checks_sees_values_that_no_row_has_in_place_of_a_missing_object(tmp_path, plan_of, spec):
    plan = plan_of(spec)
    create_arrays(str(tmp_path), plan)
    data = encode_shard(plan, spec, 0, values_of(spec, 8))
    files.write_bytes(f"{tmp_path}/{plan.objects(0)[spec.name]}", data)
    lost = zarr.open_group(str(tmp_path), mode="r")[spec.name][8:]
    expected = np.full_like(lost, fill_value(spec.dtype))
    assert np.array_equal(lost, expected, equal_nan=lost.dtype.kind == "f")
    assert fill_value("uint16") == 65535  # above any code
    assert fill_value("int32") == -1  # no label


def test_a_flipped_byte_in_any_chunk_is_an_error_to_zarr_itself(tmp_path, plan_of):
    spec = token_arrays(10, (4, 4, 4), False, False)[0]
    plan = plan_of(spec, rows=8)
    create_arrays(str(tmp_path), plan)
    path = tmp_path / plan.objects(0)["codes"]
    values = values_of(spec, 8)
    data = encode_shard(plan, spec, 0, values)
    files.write_bytes(str(path), data)
    for place in random.Random(0).sample(range(len(data)), 60):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            zarr.open_group(str(tmp_path), mode="r")["codes"][:]


def test_random_codes_of_a_full_shard_take_at_most_a_hundredth_more_than_their_bits(stores):
    """The paper's shape: T = 10, 16 x 16 codes out of 4,096, 3,840 bytes per image."""
    spec = token_arrays(10, (32, 16, 16), False, False)[0]
    plan = Plan("tokens", 1024, 1024, 256, (spec,), stores.IDENTITY)
    codes = np.random.default_rng(0).integers(0, 4096, (1024, 10, 16, 16)).astype(np.uint16)
    assert len(encode_shard(plan, spec, 0, codes)) / 1024 <= 1.01 * 3840
