import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import zarr

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import DamagedStore, Store, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import committed_rejects, missing_shards, publish, start_store
from tests.pipeline.stores.facts import put_facts

ARRAYS = ("codes", "noise_seed", "label", "accumulated", "latents")
SHARD = 1  # the shard whose objects are damaged


def problems(store: Store) -> list[str]:
    """The sentences of what verify finds."""
    return [finding.sentence for finding in verify_store(store).findings]


@pytest.fixture(scope="module")
def clean(tmp_path_factory, stores) -> Store:
    """A published store. Not to be changed."""
    return stores.build(str(tmp_path_factory.mktemp("clean") / "store"), rejected=(3, 8))


@pytest.fixture
def store(clean, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(clean.url, tmp_path / "store"))


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


DAMAGES = {
    "first byte": lambda path: flip(path, 0),
    "byte in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1, 3),
    "cut by one": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": lambda path: path.unlink(),
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@damaged
@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_is_never_returned(clean, store, name, damage):
    key = clean.manifest.plan.objects(SHARD)[name]
    damage(store / key)
    opened = open_store(str(store), "tokens")
    for read in (lambda: opened.shard(SHARD, (name,)), lambda: opened.read_all(name)):
        with pytest.raises(DamagedStore, match=key):
            read()
    assert [key in problem for problem in problems(opened)] == [True]


def test_what_is_not_damaged_can_still_be_read(clean, store):
    DAMAGES["deleted"](store / clean.manifest.plan.objects(SHARD)["codes"])
    opened = open_store(str(store), "tokens")
    for shard, names in ((0, ARRAYS), (SHARD, ("label", "latents")), (2, ARRAYS)):
        found, expected = opened.shard(shard, names), clean.shard(shard, names)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in names)


@damaged
def test_a_damaged_index_is_never_returned(clean, store, damage):
    key = clean.manifest.plan.objects(SHARD)["index"]
    damage(store / key)
    opened = open_store(str(store), "tokens")
    with pytest.raises(DamagedStore, match=key):
        opened.index()
    assert [key in problem for problem in problems(opened)] == [True]


@damaged
def test_nothing_is_returned_by_a_damaged_commit(store, damage):
    key = f"commits/0000{SHARD}.json"
    damage(store / key)
    opened = open_store(str(store), "tokens")
    for read in (lambda: opened.shard(SHARD, ("label",)), opened.index, lambda: opened.read_all("codes")):
        with pytest.raises(DamagedStore, match=key):
            read()
    assert [key in problem for problem in problems(opened)] == [True]


@pytest.mark.slow
@damaged
@pytest.mark.parametrize("name", ["", *(f"{name}/" for name in ARRAYS)])
def test_damaged_metadata_is_found_and_does_not_mislead_our_reader(clean, store, name, damage):
    """zarr.json is for other programs; our reader uses the plan in the manifest."""
    damage(store / f"{name}zarr.json")
    opened = open_store(str(store), "tokens")
    (problem,) = problems(opened)
    assert f"{name}zarr.json" in problem
    for array in ARRAYS:
        assert opened.read_all(array).tobytes() == clean.read_all(array).tobytes()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_a_damaged_manifest_is_no_store(store, damage):
    """A missing manifest has a test of its own."""
    DAMAGES[damage](store / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_store(str(store), "tokens")


def test_a_bit_flipped_anywhere_in_the_manifest_is_refused_by_name(store):
    path = store / "manifest.json"
    good = path.read_bytes()
    draw = random.Random(0)
    for place in draw.sample(range(len(good)), 300):
        flip(path, place, draw.randrange(8))
        with pytest.raises(ValueError, match=r"manifest\.json"):
            open_store(str(store), "tokens")
        path.write_bytes(good)
    open_store(str(store), "tokens")


def test_objects_of_another_store_are_detected(clean, store, stores, tmp_path):
    other = stores.build(str(tmp_path / "other"), stores.plan(rows=17))
    key = clean.manifest.plan.objects(2)["codes"]
    shutil.copy(Path(other.url) / key, store / key)
    with pytest.raises(DamagedStore, match=key):
        open_store(str(store), "tokens").read_all("codes")


def test_a_store_without_a_manifest_is_refused(store):
    (store / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_store(str(store), "tokens")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_store(str(store / "nowhere"), "tokens")


def test_the_wrong_kind_of_store_is_refused_by_both_kinds(clean):
    with pytest.raises(ValueError, match="store of tokens, not of samples"):
        open_store(clean.url, "samples")


@damaged
@pytest.mark.parametrize("name", ["codes", "index"])
def test_a_shard_damaged_after_its_commit_is_not_published_or_never_returned(clean, store, name, damage):
    """Publishing compares sizes only: the worker has read back what it committed, and readers check every digest."""
    (store / "manifest.json").unlink()
    plan, key = clean.manifest.plan, clean.manifest.plan.objects(SHARD)[name]
    damage(store / key)
    if (store / key).exists() and (store / key).stat().st_size == os.path.getsize(f"{clean.url}/{key}"):
        assert publish(str(store), plan) == clean.manifest
        assert [key in problem for problem in problems(open_store(str(store)))] == [True]
        return
    with pytest.raises(ValueError, match=key):
        publish(str(store), plan)
    assert not (store / "manifest.json").exists()


@pytest.mark.parametrize("damage", ["cut in half", "empty", "first byte"])
def test_a_commit_that_is_not_a_commit_is_not_published(clean, store, damage):
    (store / "manifest.json").unlink()
    DAMAGES[damage](store / f"commits/0000{SHARD}.json")
    with pytest.raises(ValueError, match=rf"commits/0000{SHARD}\.json"):
        publish(str(store), clean.manifest.plan)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["byte in the middle", "cut in half", "empty", "deleted"])
@pytest.mark.parametrize("shard", [0, 2], ids=["full shard", "short shard"])
@pytest.mark.parametrize("name", ["codes", "label", "index"])
def test_whatever_a_dead_writer_left_of_an_uncommitted_shard_is_overwritten(
    clean, store, stores, tree, name, shard, damage
):
    (store / "manifest.json").unlink()
    (store / f"commits/0000{shard}.json").unlink()
    plan = clean.manifest.plan
    DAMAGES[damage](store / plan.objects(shard)[name])
    assert missing_shards(str(store), plan) == [shard]
    stores.write(str(store), plan, shard, rejected=(3, 8))
    assert publish(str(store), plan).store_id == clean.id
    assert tree(store) == tree(clean.url)


WRITER = """
import sys
import numpy as np
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.writer import missing_shards, publish, start_store, write_shard
from rdpm.storage_schemas.manifest import plan_from_json

url, facts = sys.argv[1:]
plan = plan_from_json(files.read_json(f"{facts}/plan.json"))
shards = [dict(np.load(f"{facts}/{shard}.npz")) for shard in range(plan.num_shards)]
part = lambda shard, kind: {n.split(".")[1]: v for n, v in shards[shard].items() if n.startswith(kind)}
print("writing", flush=True)
start_store(url, plan)
for shard in missing_shards(url, plan):
    write_shard(url, plan, shard, part(shard, "columns"), part(shard, "index"))
publish(url, plan)
"""


@pytest.mark.long
def test_a_writer_killed_repeatedly_leaves_the_bytes_of_a_clean_run(tmp_path, stores, tree, python, repository):
    plan = stores.plan(rows=200)
    facts, killed = tmp_path / "facts", str(tmp_path / "killed")
    put_facts(facts, plan, stores)
    began = time.monotonic()
    expected = stores.build(str(tmp_path / "clean"), plan)
    seconds = time.monotonic() - began

    def run(kill_after: float | None) -> int:
        command = [*python, "-c", WRITER, killed, str(facts)]
        writer = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert writer.stdout.readline() == b"writing\n"
        if kill_after is not None:
            time.sleep(kill_after)
            writer.send_signal(signal.SIGKILL)
        complaint = writer.communicate(timeout=60)[1]
        assert writer.returncode == -signal.SIGKILL or not complaint, complaint.decode()
        return writer.returncode

    delays = random.Random(time.time_ns())
    kills, done = 0, []
    for _ in range(5):
        if run(delays.uniform(0, seconds / 4)) == 0:
            break
        kills += 1
        assert not os.path.exists(f"{killed}/manifest.json") or open_store(killed, "tokens").id == expected.id
        done.append(plan.num_shards - len(missing_shards(killed, plan)))
    assert kills >= 2
    assert done == sorted(done)
    assert run(None) == 0

    assert missing_shards(killed, plan) == []
    assert problems(open_store(killed, "tokens")) == []
    found, clean = tree(killed), tree(expected.url)
    leftovers = {name for name in found if name not in clean}
    assert {name: found[name] for name in clean} == clean
    assert all(Path(name).name.startswith(".") or name.endswith(".partial") for name in leftovers), leftovers
    listed = {name for spec in plan.arrays for name in files.list_names(f"{killed}/{spec.name}")}
    assert listed == {"zarr.json"}
    assert files.list_names(f"{killed}/index") == files.list_names(f"{expected.url}/index")
    assert zarr.open_group(killed, mode="r")["codes"][:].tobytes() == expected.read_all("codes").tobytes()


def test_a_start_killed_at_any_file_continues(tmp_path, stores, tree):
    """A kill can leave a folder without zarr.json, but never a half-written zarr.json."""
    plan = stores.plan()
    start_store(str(tmp_path / "clean"), plan)
    for name in [spec.name for spec in plan.arrays]:
        url = tmp_path / name
        start_store(str(url), plan)
        shutil.rmtree(url / plan.arrays[-1].name)
        (url / name).mkdir(exist_ok=True)
        (url / name / f".zarr.{'0' * 32}.partial").write_bytes(b"{")
        start_store(str(url), plan)
        assert {key: data for key, data in tree(url).items() if not key.endswith(".partial")} == tree(
            tmp_path / "clean"
        )


def test_a_plan_that_differs_from_the_manifest_is_found(store):
    plan = json.loads((store / "plan.json").read_text())
    (store / "plan.json").write_text(json.dumps({**plan, "rows": plan["rows"] + 1}))
    assert any("plan.json" in problem for problem in problems(open_store(str(store), "tokens")))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"shard": 1}', b"3"])
def test_a_commit_that_is_no_commit_is_named_wherever_it_is_read(clean, store, stores, content):
    (store / "manifest.json").unlink()
    (store / f"commits/0000{SHARD}.json").write_bytes(content)
    plan = clean.manifest.plan
    reads = (
        lambda: publish(str(store), plan),
        lambda: committed_rejects(str(store), plan),
        lambda: stores.write(str(store), plan, SHARD, rejected=(8,)),
    )
    for read in reads:
        with pytest.raises(ValueError, match=rf"commits/0000{SHARD}\.json is no commit record; delete it") as refusal:
            read()
        assert "\n" not in str(refusal.value)
