"""Plans and manifests: different ones, older ones, and data that are neither."""

import dataclasses
import json
from pathlib import Path

import pytest

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.storage_schemas.canonical import canonical_json, digest_of
from rdpm.storage_schemas.manifest import STORE_ID, Plan, plan_to_json
from rdpm.storage_schemas.samples import SampleIdentity, sample_arrays
from rdpm.storage_schemas.tokens import token_arrays


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 21}, "rows 20 -> 21"),
        ({"shard_rows": 12}, "shard_rows 8 -> 12"),
        ({"chunk_rows": 2}, "chunk_rows 4 -> 2"),
        ({"kind": "samples"}, "kind tokens -> samples"),
        ({"tokenizer_digest": "t1"}, "tokenizer_digest t0 -> t1"),
        ({"classes": ("zero",)}, r"classes \('zero', 'one'\) -> \('zero',\)"),
        ({"seed": 1, "precision": "bf16"}, "seed 0 -> 1, precision fp32 -> bf16"),
        ({"device": "cuda"}, "device cpu -> cuda"),
        ({"device": None}, "device cpu -> None"),
        ({"arrays": token_arrays(3, (4, 4, 4), False, False)}, "arrays"),
    ],
)
def test_another_plan_is_refused_by_the_field_that_differs_and_changes_nothing(tmp_path, stores, tree, change, named):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    stores.write(url, plan, 0)
    before = tree(url)
    with pytest.raises(ValueError, match=named):
        start_store(url, changed(plan, **change))
    assert tree(url) == before


def changed(plan: Plan, **facts) -> Plan:
    """The plan with other values, in its own fields or in those of its identity."""
    own = {name: facts.pop(name) for name in list(facts) if hasattr(plan, name)}
    return dataclasses.replace(plan, **own, identity=dataclasses.replace(plan.identity, **facts))


def test_what_a_plan_of_version_1_does_not_record_is_no_difference(tmp_path, stores, tree):
    """The store keeps its old plan, and therefore the digest that the old release would have computed."""
    url, plan = str(tmp_path / "store"), stores.plan()
    old = {**plan_to_json(plan), "schema_version": 1}
    del old["identity"]["device"]
    files.write_bytes(files.join(url, "plan.json"), canonical_json(old))
    existing = start_store(url, plan)
    assert (existing.schema_version, existing.tokens.device) == (1, None)
    assert files.read_bytes(files.join(url, "plan.json")) == canonical_json(old)
    for shard in range(existing.num_shards):
        stores.write(url, existing, shard)
    assert publish(url, existing).plan.schema_version == 1
    assert verify_store(open_store(url)).findings == ()
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        start_store(url, stores.plan(seed=1))


SAMPLES = SampleIdentity(
    generator_digest="g0",
    tokenizer_digest="t0",
    noise_version=1,
    sampler=dataclasses.asdict(SamplerConfig(temperature=0.5)),
    labels=(0, 1),
    per_class=2,
    seed=0,
    batch=2,
    precision="fp32",
    compile=False,
    classes=("zero", "one"),
    attention="sdpa",
    device="cpu",
)


def test_a_sample_store_of_version_1_is_continued_with_its_sampler_in_the_current_form(tmp_path):
    """In version 1 the temperature multiplied the logits, and plans recorded neither attention nor device."""
    url, plan = str(tmp_path / "store"), Plan("samples", 4, 4, 4, sample_arrays(2, 2, 4), SAMPLES)
    old = {**plan_to_json(plan), "schema_version": 1}
    identity = old["identity"]
    identity["compiled"] = identity.pop("compile")
    identity["sampler"] = {"guidance": 0.0, "ramp": "linear", "temperature": 2.0, "top_k": 0, "top_p": 1.0}
    del identity["attention"], identity["device"]
    files.write_bytes(files.join(url, "plan.json"), canonical_json(old))
    assert start_store(url, plan).schema_version == 1
    other = dataclasses.asdict(SamplerConfig(temperature=2.0))
    for change, named in (({"sampler": other}, "sampler"), ({"compile": True}, "compile False -> True")):
        with pytest.raises(ValueError, match=named):
            start_store(url, changed(plan, **change))


def test_a_sampler_setting_added_later_is_no_difference_at_its_default(tmp_path):
    """As if this release had added top_p since the store was started."""
    url, plan = str(tmp_path / "store"), Plan("samples", 4, 4, 4, sample_arrays(2, 2, 4), SAMPLES)
    old = plan_to_json(plan)
    del old["identity"]["sampler"]["top_p"]
    files.write_bytes(files.join(url, "plan.json"), canonical_json(old))
    assert "top_p" not in start_store(url, plan).samples.sampler
    with pytest.raises(ValueError, match=r"has another plan \(sampler"):
        start_store(url, changed(plan, sampler={**SAMPLES.sampler, "top_p": 0.9}))


@pytest.fixture
def store(tmp_path, stores) -> Path:
    """A published store, to be damaged."""
    return Path(stores.build(str(tmp_path / "store")).url)


def republished(store: Path, change) -> None:
    """Change the data of the manifest and give it the matching digest, as another program could."""
    data = json.loads((store / "manifest.json").read_text())
    del data[STORE_ID]
    change(data)
    (store / "manifest.json").write_bytes(canonical_json({**data, STORE_ID: digest_of(data)}))


CHANGES = {
    "no plan": lambda data: data.pop("plan"),
    "an empty plan": lambda data: data.update(plan={}),
    "a list for a plan": lambda data: data.update(plan=[1]),
    "no rows": lambda data: data["plan"].pop("rows"),
    "rows that are a text": lambda data: data["plan"].update(rows="20"),
    "no identity": lambda data: data["plan"].pop("identity"),
    "an identity without classes": lambda data: data["plan"]["identity"].pop("classes"),
    "a stranger in the identity": lambda data: data["plan"]["identity"].update(stranger=1),
    "an array without a type": lambda data: data["plan"]["arrays"][0].pop("dtype"),
    "another kind": lambda data: data["plan"].update(kind="images"),
    "rejects that are no numbers": lambda data: data.update(rejected=["a"]),
    "shards that do not divide": lambda data: data["plan"].update(chunk_rows=3),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.mark.slow
@changes
def test_a_manifest_that_is_no_manifest_is_refused_in_one_sentence(store, change):
    republished(store, change)
    with pytest.raises(ValueError, match=r"manifest\.json: ") as refusal:
        open_store(str(store))
    assert "\n" not in str(refusal.value)


def test_a_store_of_a_newer_version_is_refused_by_number(store):
    republished(store, lambda data: data["plan"].update(schema_version=3))
    with pytest.raises(ValueError, match=r"manifest\.json: .* version 3, and this release knows 1 to 2; update rdpm"):
        open_store(str(store))


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("no plan", "rejects that are no numbers")])
def test_a_plan_that_is_no_plan_is_refused_in_one_sentence_where_a_store_is_started(tmp_path, stores, tree, name):
    url, plan = tmp_path / "store", stores.plan()
    data = {"plan": json.loads(canonical_json(plan_to_json(plan)))}
    CHANGES[name](data)
    files.write_json(f"{url}/plan.json", data["plan"])
    before = tree(url)
    with pytest.raises(ValueError, match=r"store/plan\.json: ") as refusal:
        start_store(str(url), plan)
    assert "\n" not in str(refusal.value)
    assert tree(url) == before


def test_a_plan_of_a_newer_version_or_without_json_is_refused_where_a_store_is_started(tmp_path, stores):
    url, plan = tmp_path / "store", stores.plan()
    files.write_json(f"{url}/plan.json", {**plan_to_json(plan), "schema_version": 3})
    with pytest.raises(ValueError, match=r"plan\.json: the plan has schema version 3, .*; update rdpm"):
        start_store(str(url), plan)
    files.write_bytes(f"{url}/plan.json", b"{")
    with pytest.raises(ValueError, match=r"plan\.json' is not JSON"):
        start_store(str(url), plan)
