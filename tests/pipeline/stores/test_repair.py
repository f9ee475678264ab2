"""A repair restores the published bytes, or changes nothing."""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest

from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.repair import repair
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import start_store
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import tokenize, tokenize_again

REJECTED = (3, 8, 19)


@pytest.fixture
def store(tmp_path, stores) -> Store:
    """A published store, to be damaged."""
    return stores.build(str(tmp_path / "store"), rejected=REJECTED)


class Remake:
    """Replaces the encoder, which has a test of its own below: writes the same rows, and lists the shards it made.

    The shard `other` comes out without its rejects.
    """

    def __init__(self, store: Store, stores, other: int | None = None) -> None:
        self.plan, self.stores, self.other = store.manifest.plan, stores, other
        self.shards: list[int] = []

    def __call__(self, folder: str, shards: list[int]) -> None:
        start_store(folder, self.plan)
        for shard in shards:
            self.shards.append(shard)
            self.stores.write(folder, self.plan, shard, () if shard == self.other else REJECTED)


@pytest.fixture
def remake(store, stores) -> Remake:
    """What makes the shards of the store again."""
    return Remake(store, stores)


def damage(store: Store, name: str, draw: random.Random) -> None:
    path = Path(store.url) / name
    if draw.random() < 0.5:
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1
        path.write_bytes(bytes(data))


def repaired(store: Store, remake: Remake) -> list[int]:
    """The shards that a repair of all findings makes again."""
    remake.shards.clear()
    return repair(store, verify_store(store).findings, remake)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 12])
def test_any_damage_except_of_the_manifest_is_repaired_to_the_published_bytes(store, remake, tree, count):
    clean = tree(store.url)
    draw = random.Random(count)
    for _ in range(8):
        names = draw.sample(sorted(clean.keys() - {"manifest.json"}), count)
        for name in names:
            damage(store, name, draw)
        again = repaired(store, remake)
        objects = {key: shard for shard in range(3) for key in store.manifest.plan.objects(shard).values()}
        assert again == remake.shards == sorted({objects[name] for name in names if name in objects})
        assert tree(store.url) == clean
        assert verify_store(store).findings == ()


def test_missing_records_are_restored_without_encoding_anything(store, remake, tree):
    clean = tree(store.url)
    for name in clean:
        if name.endswith(".json") and name != "manifest.json":
            files.remove(files.join(store.url, name))
    assert repaired(store, remake) == remake.shards == []
    assert tree(store.url) == clean


def test_missing_records_of_a_store_of_version_1_get_their_old_bytes(repository, tmp_path, tree):
    url = str(shutil.copytree(repository / "tests" / "fixtures" / "v1" / "store", tmp_path / "store"))
    store, before = open_store(url), tree(url)
    for name in ("plan.json", "zarr.json", "codes/zarr.json", "commits/00001.json"):
        files.remove(files.join(url, name))
    assert repair(store, verify_store(store).findings, lambda folder, shards: pytest.fail("made again")) == []
    assert tree(url) == before


def test_a_shard_that_comes_out_differently_changes_no_object(store, stores, tree):
    plan = store.manifest.plan
    for shard in (0, 2):
        files.write_bytes(files.join(store.url, plan.objects(shard)["codes"]), b"damage")
    before = tree(store.url)
    with pytest.raises(ValueError, match=r"shard 2 .*differs from what was published, so nothing was changed"):
        repaired(store, Remake(store, stores, other=2))
    assert tree(store.url) == before


@pytest.mark.slow
def test_a_repair_interrupted_at_any_object_loses_nothing_and_can_be_run_again(store, remake, tree, monkeypatch):
    clean = tree(store.url)
    write, plan = files.write_bytes, store.manifest.plan
    moved = [*plan.objects(1).values(), "commits/00001.json"]
    for last in range(len(moved)):
        for name in (moved[0], moved[-2]):
            files.remove(files.join(store.url, name))

        def cut_short(url, data, last=f"{store.url}/{moved[last]}"):
            if url == last:
                raise KeyboardInterrupt
            write(url, data)

        monkeypatch.setattr(files, "write_bytes", cut_short)
        findings = verify_store(store).findings
        with pytest.raises(KeyboardInterrupt):
            repair(store, findings, remake)
        monkeypatch.setattr(files, "write_bytes", write)
        assert all(clean[name] == data for name, data in tree(store.url).items())
        repaired(store, remake)
        assert tree(store.url) == clean


def test_a_store_whose_metadata_this_release_would_not_write_is_left_alone(store, remake, tree):
    metadata = {**store.manifest.metadata, "codes/zarr.json": "0" * 64}
    foreign = Store(store.url, dataclasses.replace(store.manifest, metadata=metadata))
    before = tree(store.url)
    with pytest.raises(ValueError, match=r"another release, whose codes/zarr\.json differs"):
        repair(foreign, verify_store(foreign).findings, remake)
    assert tree(store.url) == before


@pytest.mark.long
def test_the_job_encodes_damaged_shards_again_and_refuses_what_would_make_another_store(
    tmp_path, exports, digit_folder, tree
):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    exports.tokenizer(str(tmp_path / "other"), seed=1)
    few = Resources(cpus=4, object_store_mb=128, actors=1, actor_cpus=0.5)
    config = TokenizeConfig(
        digit_folder, str(tmp_path / "tokenizer"), str(tmp_path / "store"), shard_rows=8, chunk_rows=4, resources=few
    )
    tokenize(config)

    def make_again(config: TokenizeConfig):
        """What the job `verify` uses."""
        plan = store.manifest.plan
        return lambda folder, shards: tokenize_again(dataclasses.replace(config, out=folder), plan, shards, lease)

    store = open_store(config.out)
    clean = tree(config.out)
    for shard in (0, 2):
        files.remove(files.join(config.out, store.manifest.plan.objects(shard)["codes"]))
    before, findings = tree(config.out), verify_store(store).findings
    with held(config.out, "verify") as lease:
        for change in ({"tokenizer": str(tmp_path / "other")}, {"seed": 1}, {"views": ("flip",)}):
            with pytest.raises(ValueError, match="the config makes another store"):
                repair(store, findings, make_again(dataclasses.replace(config, **change)))
            assert tree(config.out) == before
        assert repair(store, findings, make_again(config)) == [0, 2]
    assert tree(config.out) == clean
