"""Plans, commits and manifests that a stranger wrote: no name in them leads anywhere but to the store's own objects."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import DamagedStore, Store, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import committed_rejects, publish, start_store
from rdpm.storage_schemas.canonical import canonical_json, digest_of
from rdpm.storage_schemas.manifest import STORE_ID, plan_to_json

NAMES = (
    "../codes", "..", ".", "", "/etc/codes", "a/b", "a\\b", "..\\codes", "C:codes", "C:\\codes", "co\0des", "codes\n",
    "file://codes", "%2e%2e", ".hidden", "~", "commits", "index", "staged", "environments",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_array_whose_name_is_no_plain_name_is_refused_in_one_sentence(stores, name):
    plan = stores.plan()
    arrays = (dataclasses.replace(plan.arrays[0], name=name), *plan.arrays[1:])
    with pytest.raises(ValueError, match="the plan has an array") as refusal:
        dataclasses.replace(plan, arrays=arrays)
    assert "\n" not in str(refusal.value)


def test_two_arrays_of_one_name_are_refused(stores):
    plan = stores.plan()
    with pytest.raises(ValueError, match="the plan has an array 'codes'"):
        dataclasses.replace(plan, arrays=(*plan.arrays, plan.arrays[0]))


@pytest.fixture(scope="module")
def clean(tmp_path_factory, stores) -> Store:
    """A published store. Not to be changed."""
    return stores.build(str(tmp_path_factory.mktemp("clean") / "store"), rejected=(3,))


@pytest.fixture
def store(clean, tmp_path) -> Path:
    """A copy of it, beside which lies a folder that nobody should read or write."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "zarr.json").write_bytes(b"{}")
    return Path(shutil.copytree(clean.url, tmp_path / "store"))


def rewrite_manifest(store: Path, change) -> None:
    """Change the manifest and give it the digest that fits, as a stranger would."""
    data = json.loads((store / "manifest.json").read_text())
    del data[STORE_ID]
    change(data)
    (store / "manifest.json").write_bytes(canonical_json({**data, STORE_ID: digest_of(data)}))


MANIFESTS = {
    "an array outside": lambda data: data["plan"]["arrays"][0].update(name="../outside/codes"),
    "metadata outside": lambda data: data["metadata"].update({"../outside/zarr.json": "0" * 64}),
    "absolute metadata": lambda data: data["metadata"].update({"/etc/passwd": "0" * 64}),
    "no metadata of an array": lambda data: data["metadata"].pop("codes/zarr.json"),
    "a commit outside": lambda data: data["commits"].update({"../00000": data["commits"].pop("00000")}),
    "one commit more": lambda data: data["commits"].update({"00003": "0" * 64}),
    "one commit less": lambda data: data["commits"].pop("00001"),
    "more shards than commits": lambda data: data["plan"].update(rows=10**15),
    "a reject that is no row": lambda data: data.update(rejected=[20]),
    "a reject before the first row": lambda data: data.update(rejected=[-1]),
    "rejects twice": lambda data: data.update(rejected=[3, 3]),
    "rejects out of order": lambda data: data.update(rejected=[4, 3, 5]),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_names_anything_but_the_plans_own_objects_is_refused_in_one_sentence(store, change):
    rewrite_manifest(store, change)
    with pytest.raises(ValueError, match=r"manifest\.json: the (plan|manifest) ") as refusal:
        open_store(str(store))
    assert "\n" not in str(refusal.value)


COMMITS = {
    "an object outside": lambda data: data["objects"].update({"../outside/zarr.json": data["objects"]["codes"]}),
    "no index": lambda data: data["objects"].pop("index"),
    "a digest that is a path": lambda data: data["objects"]["codes"].update(sha256="../../outside/zarr.json"),
    "a digest in capitals": lambda data: data["objects"]["codes"].update(sha256="A" * 64),
    "a size below zero": lambda data: data["objects"]["codes"].update(size=-1),
    "another shard": lambda data: data.update(shard=1),
    "a shard that is none": lambda data: data.update(shard=-(10**9)),
    "other rows": lambda data: data.update(rows=9),
    "a reject of another shard": lambda data: data.update(rejected=[8]),
}


@pytest.mark.parametrize("change", COMMITS.values(), ids=COMMITS)
def test_a_commit_that_is_not_of_its_shard_is_refused_by_writer_and_reader_and_touches_nothing(
    clean, store, tree, change
):
    plan, record = clean.manifest.plan, store / "commits" / "00000.json"
    data = json.loads(record.read_text())
    change(data)
    record.write_bytes(canonical_json(data))
    rewrite_manifest(store, lambda data: data["commits"].update({"00000": files.digest_file(str(record)).sha256}))
    with pytest.raises(DamagedStore, match=r"commits/00000\.json is no commit"):
        open_store(str(store)).shard(0, ("codes",))
    assert [finding.name for finding in verify_store(open_store(str(store))).findings] == ["commits/00000.json"]

    (store / "manifest.json").unlink()
    (store / "staged").mkdir()
    (store / "staged" / f"00000-{'0' * 64}").write_bytes(b"left by a killed attempt")
    before = tree(store.parent)
    for act in (start_store, committed_rejects, publish):
        with pytest.raises(ValueError, match=r"commits/00000\.json is no commit record; delete it and run") as refusal:
            act(str(store), plan)
        assert "\n" not in str(refusal.value)
    assert tree(store.parent) == before


def test_a_plan_that_points_outside_is_refused_where_a_store_is_started(tmp_path, stores, tree):
    url, plan = tmp_path / "store", stores.plan()
    data = json.loads(json.dumps(plan_to_json(plan)))
    data["arrays"][0]["name"] = "../../outside"
    files.write_json(f"{url}/plan.json", data)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"plan\.json: the plan has an array '\.\./\.\./outside'"):
        start_store(str(url), plan)
    assert tree(tmp_path) == before


def test_names_among_what_is_staged_that_no_attempt_would_give_are_passed_over(tmp_path, stores, tree):
    url, plan = str(tmp_path / "store"), stores.plan()
    start_store(url, plan)
    stores.write(url, plan, 0)
    strangers = ("00000", f"00000-{'z' * 64}", f"00007-{'0' * 64}", "zarr.json")
    for name in strangers:
        files.write_bytes(files.join(url, "staged", name), b"stranger")
    start_store(url, plan)
    assert files.list_names(files.join(url, "staged")) == sorted(strangers)
    for shard in (1, 2):
        stores.write(url, plan, shard)
    publish(url, plan)
    assert files.list_names(files.join(url, "staged")) == []
