import copy
import itertools
import json

import pytest

from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.canonical import canonical_json, digest_of
from rdpm.storage_schemas.manifest import (
    SCHEMA_VERSION,
    Commit,
    Manifest,
    ObjectDigest,
    Plan,
    commit_from_json,
    manifest_from_json,
    plan_from_json,
    to_json,
)
from rdpm.storage_schemas.samples import sample_arrays
from rdpm.storage_schemas.tokens import noise_seed, token_arrays

PLAN = Plan(
    "tokens", 70, 32, 8, token_arrays(10, (8, 4, 4), True, True), {"classes": ["ä", "b"], "tokenizer": {"depth": 2}}
)
COMMIT = Commit(1, 32, (33, 40), {"codes": ObjectDigest(12, "ab"), "index": ObjectDigest(34, "cd")})
MANIFEST = Manifest(PLAN, (33, 40), {"00000": "aa", "00001": "bb", "00002": "cc"}, {"zarr.json": "dd"})


def through_disk(record):
    return json.loads(canonical_json(to_json(record)))


@pytest.mark.parametrize(
    ("record", "inverse"),
    [(PLAN, plan_from_json), (COMMIT, commit_from_json), (MANIFEST, manifest_from_json)],
    ids=["plan", "commit", "manifest"],
)
def test_records_survive_json(record, inverse):
    assert inverse(through_disk(record)) == record


@pytest.mark.parametrize("arrays", [token_arrays(2, (4, 2, 2), False, False), sample_arrays(2, 2, 8)])
def test_array_specs_of_every_kind_of_store_survive_json(arrays):
    plan = Plan("kind", 1, 1, 1, arrays, {})
    assert plan_from_json(through_disk(plan)).arrays == arrays


def test_shard_ranges_hold_every_row_exactly_once_and_none_is_empty():
    for rows, chunk_rows, chunks in itertools.product(range(1, 30), range(1, 4), range(1, 4)):
        plan = Plan("tokens", rows, chunk_rows * chunks, chunk_rows, PLAN.arrays, {})
        ranges = [plan.shard_range(shard) for shard in range(plan.num_shards)]
        assert [row for r in ranges for row in r] == list(range(rows))
        assert all(0 < len(r) <= plan.shard_rows for r in ranges)


def test_a_shard_outside_the_plan_is_our_own_mistake():
    for shard in (-1, PLAN.num_shards):
        with pytest.raises(AssertionError):
            PLAN.shard_range(shard)


@pytest.mark.parametrize(("shard_rows", "chunk_rows"), [(10, 4), (4, 8), (0, 4), (8, 0), (-8, 4), (8, -4)])
def test_shard_rows_that_chunk_rows_do_not_divide_are_refused_by_both_numbers(shard_rows, chunk_rows):
    with pytest.raises(ValueError, match=rf"shard_rows {shard_rows} .*chunk_rows {chunk_rows}"):
        Plan("tokens", 10, shard_rows, chunk_rows, PLAN.arrays, {})


@pytest.mark.parametrize("rows", [0, -1])
def test_a_plan_without_rows_is_refused(rows):
    with pytest.raises(ValueError, match=str(rows)):
        Plan("tokens", rows, 8, 4, PLAN.arrays, {})


def test_no_two_objects_of_a_store_share_a_name():
    names = [name for shard in range(PLAN.num_shards) for name in PLAN.objects(shard).values()]
    assert len(names) == len(set(names)) == PLAN.num_shards * (len(PLAN.arrays) + 1)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, str(SCHEMA_VERSION), None])
def test_an_unknown_schema_version_is_refused_by_name(version):
    data = {**through_disk(PLAN), "schema_version": version}
    with pytest.raises(ValueError, match=f"version {version} is not {SCHEMA_VERSION}"):
        plan_from_json(data)
    with pytest.raises(ValueError, match=f"version {version}"):
        manifest_from_json({**through_disk(MANIFEST), "plan": data})


def test_canonical_json_depends_on_the_value_and_not_on_the_order_of_its_keys():
    one = {"b": [1, {"y": "ü", "x": None}], "a": 1.5}
    other = {"a": 1.5, "b": [1, {"x": None, "y": "ü"}]}
    assert canonical_json(one) == canonical_json(other)
    assert json.loads(canonical_json(one)) == one
    assert canonical_json(one).endswith(b"}\n")
    assert canonical_json({"b": [{"y": "ü", "x": None}, 1], "a": 1.5}) != canonical_json(one)  # lists keep theirs


def changed(value):
    """Another value of the same type that is valid wherever the first was."""
    return not value if isinstance(value, bool) else value * 2 if isinstance(value, int) else f"{value}x"


def test_every_field_of_a_manifest_is_part_of_the_store_id(leaves):
    data = through_disk(MANIFEST)
    ids = {manifest_from_json(data).store_id}
    paths = [path for path, _ in leaves(data) if path[-1] != "schema_version"]
    for path in paths:
        other = copy.deepcopy(data)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(place[path[-1]])
        ids.add(manifest_from_json(other).store_id)
    assert len(paths) > 30
    assert len(ids) == 1 + len(paths)


def test_store_id_is_the_same_for_equal_manifests():
    assert manifest_from_json(through_disk(MANIFEST)).store_id == MANIFEST.store_id == digest_of(through_disk(MANIFEST))


def test_token_arrays_have_one_name_for_each_axis_and_only_what_was_asked_for():
    for accumulated, latents in itertools.product((False, True), repeat=2):
        arrays = {spec.name: spec for spec in token_arrays(5, (8, 4, 2), accumulated, latents)}
        assert ("accumulated" in arrays, "latents" in arrays) == (accumulated, latents)
        assert arrays["codes"] == ArraySpec("codes", "uint16", (5, 4, 2), ("step", "height", "width"))
        assert all(len(spec.dims) == len(spec.row_shape) for spec in arrays.values())
    assert all(len(spec.dims) == len(spec.row_shape) for spec in sample_arrays(5, 4, 16))


def test_noise_seeds_differ_by_store_seed_key_and_view_and_their_parts_cannot_run_together():
    cases = [
        (0, "a/1", "center"),
        (1, "a/1", "center"),
        (0, "a/11", "center"),
        (0, "a/1", "flip"),
        (0, "a/1c", "enter"),
    ]
    seeds = {noise_seed(*case) for case in cases}
    assert len(seeds) == len(cases)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_noise_seed_is_frozen():
    """Stores of any release hold it; a new rule needs a new schema version."""
    assert noise_seed(0, "3/0012.png", "center") == 1194471941528912030
