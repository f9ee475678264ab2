import copy
import functools
import itertools
import json
import operator

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
    plan_to_json,
    to_json,
)
from rdpm.storage_schemas.samples import SampleIdentity, sample_arrays
from rdpm.storage_schemas.tokens import TokenIdentity, noise_seed, token_arrays

IDENTITY = TokenIdentity(
    tokenizer_digest="t0",
    tokenizer_config={"quantizer": {"codebook_size": 16, "code_dim": 8}},
    noise_version=1,
    source_digest="s0",
    classes=("ä", "b"),
    views=("center",),
    seed=3,
    encoder_batch=64,
    precision="fp32",
    compile=False,
    device="cpu",
)
SAMPLES = SampleIdentity(
    generator_digest="g0",
    tokenizer_digest="t0",
    noise_version=1,
    sampler={"guidance": 1.5, "temperature": 0.5, "version": 2},
    labels=(0, 1),
    per_class=2,
    seed=3,
    batch=4,
    precision="bf16",
    compile=True,
    classes=("ä", "b"),
    attention="math",
    device="cuda",
    rounding=2,
)
PLAN = Plan("tokens", 70, 32, 8, token_arrays(10, (8, 4, 4), True, True), IDENTITY)
SAMPLE_PLAN = Plan("samples", 4, 4, 4, sample_arrays(2, 2, 8), SAMPLES)
COMMIT = Commit(1, 32, (33, 40), {"codes": ObjectDigest(12, "ab"), "index": ObjectDigest(34, "cd")})
MANIFEST = Manifest(PLAN, (33, 40), {"00000": "aa", "00001": "bb", "00002": "cc"}, {"zarr.json": "dd"})


def through_disk(record):
    data = plan_to_json(record) if isinstance(record, Plan) else to_json(record)
    return json.loads(canonical_json(data))


RECORDS = {
    "token plan": (PLAN, plan_from_json),
    "sample plan": (SAMPLE_PLAN, plan_from_json),
    "commit": (COMMIT, commit_from_json),
    "manifest": (MANIFEST, manifest_from_json),
}
every_record = pytest.mark.parametrize(("record", "inverse"), RECORDS.values(), ids=RECORDS)


@every_record
def test_records_survive_json(record, inverse):
    assert inverse(through_disk(record)) == record


@pytest.mark.parametrize("arrays", [token_arrays(2, (4, 2, 2), False, False), sample_arrays(2, 2, 8)])
def test_array_specs_of_every_kind_of_store_survive_json(arrays):
    plan = Plan("tokens", 1, 1, 1, arrays, IDENTITY)
    assert plan_from_json(through_disk(plan)).arrays == arrays


def test_a_plan_that_was_read_is_written_as_it_was_read():
    data = {**through_disk(PLAN), "schema_version": 1}
    del data["identity"]["device"]
    plan = plan_from_json(data)
    assert plan.tokens.device is None
    assert plan_to_json(plan) == data
    assert to_json(Manifest(plan, (), {}, {}))["plan"] == data


def test_shard_ranges_hold_every_row_exactly_once_and_none_is_empty():
    for rows, chunk_rows, chunks in itertools.product(range(1, 30), range(1, 4), range(1, 4)):
        plan = Plan("tokens", rows, chunk_rows * chunks, chunk_rows, PLAN.arrays, IDENTITY)
        ranges = [plan.shard_range(shard) for shard in range(plan.num_shards)]
        assert [row for r in ranges for row in r] == list(range(rows))
        assert all(0 < len(r) <= plan.shard_rows for r in ranges)


def test_a_shard_outside_the_plan_is_a_programming_error():
    for shard in (-1, PLAN.num_shards):
        with pytest.raises(AssertionError):
            PLAN.shard_range(shard)


@pytest.mark.parametrize(("shard_rows", "chunk_rows"), [(10, 4), (4, 8), (0, 4), (8, 0), (-8, 4), (8, -4)])
def test_shard_rows_that_chunk_rows_do_not_divide_are_refused_by_both_numbers(shard_rows, chunk_rows):
    with pytest.raises(ValueError, match=rf"shard_rows {shard_rows} .*chunk_rows {chunk_rows}"):
        Plan("tokens", 10, shard_rows, chunk_rows, PLAN.arrays, IDENTITY)


@pytest.mark.parametrize("rows", [0, -1])
def test_a_plan_without_rows_is_refused(rows):
    with pytest.raises(ValueError, match=str(rows)):
        Plan("tokens", rows, 8, 4, PLAN.arrays, IDENTITY)


def test_no_two_objects_of_a_store_share_a_name():
    names = [name for shard in range(PLAN.num_shards) for name in PLAN.objects(shard).values()]
    assert len(names) == len(set(names)) == PLAN.num_shards * (len(PLAN.arrays) + 1)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, str(SCHEMA_VERSION), None, True, 1.0])
def test_an_unknown_schema_version_is_refused_by_number(version):
    data = {**through_disk(PLAN), "schema_version": version}
    message = f"the plan has schema version {version}, and this release knows 1 to {SCHEMA_VERSION}; update rdpm"
    with pytest.raises(ValueError, match=message):
        plan_from_json(data)
    with pytest.raises(ValueError, match=message):
        manifest_from_json({**through_disk(MANIFEST), "plan": data})


FREE = ("objects", "commits", "metadata", "sampler", "tokenizer_config")  # objects with keys of any name
OPTIONAL = ("device", "attention", "rounding", "compressed")


def parts(data, path=()):
    """Paths to every object in the data whose keys are fields."""
    if isinstance(data, dict) and path[-1:] not in {(name,) for name in FREE}:
        yield path
    if isinstance(data, dict | list) and path[-1:] not in {("sampler",), ("tokenizer_config",)}:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from parts(value, (*path, key))


def damages(data):
    """The data with one key missing, of the wrong type, or unknown; for every key."""
    for path in parts(data):
        at = functools.partial(functools.reduce, operator.getitem, path)
        for key in at(data):
            if key not in OPTIONAL:
                del at(other := copy.deepcopy(data))[key]
                yield other
            at(other := copy.deepcopy(data))[key] = "x" if isinstance(at(data)[key], int | dict | list) else 1.5
            yield other
        at(other := copy.deepcopy(data))["stranger"] = 1
        yield other


@every_record
def test_a_missing_an_unknown_or_a_mistyped_key_anywhere_is_refused_in_one_sentence(record, inverse):
    others = list(damages(through_disk(record)))
    assert len(others) > 8
    for other in others:
        with pytest.raises(ValueError) as refusal:
            inverse(other)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 200


@every_record
@pytest.mark.parametrize("data", [[], None, 3, "text", {}])
def test_what_is_no_record_is_refused_in_one_sentence(record, inverse, data):
    with pytest.raises(ValueError, match="restore it or make it again"):
        inverse(data)


@pytest.mark.parametrize("kind", ["images", None, 3, []])
def test_a_plan_of_an_unknown_kind_is_refused_by_the_kind(kind):
    with pytest.raises(ValueError, match="not one of tokens, samples"):
        plan_from_json({**through_disk(PLAN), "kind": kind})


def test_canonical_json_depends_on_the_value_and_not_on_the_order_of_its_keys():
    one = {"b": [1, {"y": "ü", "x": None}], "a": 1.5}
    other = {"a": 1.5, "b": [1, {"x": None, "y": "ü"}]}
    assert canonical_json(one) == canonical_json(other)
    assert json.loads(canonical_json(one)) == one
    assert canonical_json(one).endswith(b"}\n")
    assert canonical_json({"b": [{"y": "ü", "x": None}, 1], "a": 1.5}) != canonical_json(
        one
    )  # the order in a list counts


def changed(value):
    """Another value of the same type that is valid wherever the first was."""
    return not value if isinstance(value, bool) else value * 2 if isinstance(value, int) else f"{value}x"


def test_every_field_of_a_manifest_is_part_of_the_store_id(leaves):
    data = through_disk(MANIFEST)
    ids = {manifest_from_json(data).store_id}
    fixed = ("schema_version", "kind", "precision")  # only a few values are valid
    paths = [path for path, _ in leaves(data) if path[-1] not in fixed]
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


def test_token_arrays_have_one_name_per_axis_and_only_the_requested_arrays_exist():
    for accumulated, latents in itertools.product((False, True), repeat=2):
        arrays = {spec.name: spec for spec in token_arrays(5, (8, 4, 2), accumulated, latents)}
        assert ("accumulated" in arrays, "latents" in arrays) == (accumulated, latents)
        assert arrays["codes"] == ArraySpec("codes", "uint16", (5, 4, 2), ("step", "height", "width"))
        assert all(len(spec.dims) == len(spec.row_shape) for spec in arrays.values())
    assert all(len(spec.dims) == len(spec.row_shape) for spec in sample_arrays(5, 4, 16))


def test_noise_seeds_differ_by_store_seed_key_and_view_whose_boundaries_count():
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
    """Stores of all releases hold such seeds; a new rule needs a new schema version."""
    assert noise_seed(0, "3/0012.png", "center") == 1194471941528912030
