"""The tokenizing job on Ray: its store depends only on the plan, not on the number of replicas or their order."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from rdpm.jobs.tokenize_images import main
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.cluster.shards import ShardDone
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import LeaseLost
from rdpm.pipeline.images.worklist import Worklist, remove_worklists
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import missing_shards, publish
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.rows import ShardReader, ShardRows
from rdpm.pipeline.tokenizing.stage import tokenize
from rdpm.storage_schemas.manifest import plan_from_json


def few(actors: int) -> Resources:
    """A small Ray on this machine."""
    return Resources(cpus=4, object_store_mb=128, actors=actors, actor_cpus=0.5)


@pytest.fixture
def tokenizer(tmp_path: Path, exports) -> str:
    """The folder of a small tokenizer."""
    folder = str(tmp_path / "tokenizer")
    exports.tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, digits) -> str:
    """200 files in two class folders: real digits as PNGs, but the last one is no image."""
    for number, (pixels, label) in enumerate(zip(digits[0][:200], digits[1][:200], strict=True)):
        path = tmp_path / "images" / ("even" if label % 2 == 0 else "odd") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    path.write_bytes(b"<html>not found</html>")
    return str(tmp_path / "images")


@pytest.mark.long
def test_one_and_three_replicas_write_the_same_store_from_folders_and_a_tar(
    tmp_path: Path, tokenizer, folder, tree
) -> None:
    tar = shutil.make_archive(str(tmp_path / "images"), "tar", folder)
    for actors, images in ((1, folder), (3, tar)):
        main(
            [
                f"images={images}", f"tokenizer={tokenizer}", f"out={tmp_path}/store-{actors}", "views=[center,flip]",
                "latents=true", "shard_rows=64", "chunk_rows=16", "batch=16", "max_rejects=0.01",
                f"resources={{cpus: 4, object_store_mb: 128, actors: {actors}, actor_cpus: 0.5}}",
            ]
        )  # fmt: skip
    assert tree(tmp_path / "store-1") == tree(tmp_path / "store-3")
    store = open_store(str(tmp_path / "store-1"), "tokens")
    index = store.index().to_pylist()
    assert len(index) == len(store) == 400
    assert [row["key"] for row in index[::2]] == sorted(row["key"] for row in index[::2])
    rejected = [number for number, row in enumerate(index) if row["status"] != "ok"]  # the file that is no image
    assert tuple(rejected) == store.manifest.rejected
    assert [index[number]["view"] for number in rejected] == ["center", "flip"]
    assert all("image" in index[number]["reason"] for number in rejected)


@pytest.mark.long
def test_a_finished_store_is_recognized_without_listing_its_containers_again(
    tmp_path: Path, tokenizer, folder, monkeypatch, capsys
) -> None:
    tar = shutil.make_archive(str(tmp_path / "images"), "tar", folder)
    arguments = [
        f"images={tar}", f"tokenizer={tokenizer}", f"out={tmp_path}/store", "chunk_rows=16", "shard_rows=64",
        "max_rejects=0.01", "resources={cpus: 4, object_store_mb: 128, actors: 1, actor_cpus: 0.5}",
    ]  # fmt: skip
    main(arguments)
    assert "  shards 4/4  rejects 1" in capsys.readouterr().out
    monkeypatch.setattr("rdpm.pipeline.images.worklist.Catalog", lambda source: pytest.fail("listed again"))
    main(arguments)
    assert "already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        main([*arguments, "seed=1"])


@pytest.mark.long
def test_too_many_rejects_end_the_job_without_a_manifest_and_are_named(tmp_path: Path, tokenizer, folder) -> None:
    out = str(tmp_path / "store")
    config = TokenizeConfig(folder, tokenizer, out, chunk_rows=16, shard_rows=64, resources=few(1))
    with pytest.raises(ValueError, match=r"1 of 200 rows are unusable.*\.png \(cannot identify"):
        tokenize(config)
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.long
def test_a_shard_that_kills_its_encoder_is_named_and_the_others_are_committed(
    tmp_path: Path, tokenizer, folder, tree
) -> None:
    class Fragile(ShardEncoder):
        """Dies on shard 2, as if memory were short."""

        def __call__(self, shard: int, rows: ShardRows) -> ShardDone:
            if shard == 2:
                with open(f"{self.store}/../deaths", "a") as file:
                    file.write("x")
                os._exit(1)
            return super().__call__(shard, rows)

    out = str(tmp_path / "store")
    config = TokenizeConfig(folder, tokenizer, out, chunk_rows=16, shard_rows=32, max_rejects=0.01, resources=few(2))
    with pytest.raises(ValueError, match=r"shards \[2\] .* killed their worker 3 times"):
        tokenize(config, encoder=Fragile)
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert missing_shards(out, plan_from_json(files.read_json(f"{out}/plan.json"))) == [2]
    tokenize(config)
    assert not verify_store(open_store(out, "tokens")).findings
    assert not [name for name in tree(out) if name.startswith(".")]


class Overtaken(Worklist):
    """Once the listing of this job is written, another start takes over, encodes everything and publishes."""

    def write(self, images: Mapping[int, range]) -> None:
        super().write(images)
        files.write_bytes(f"{self._store}.lease/00000002.json", b"of the other start")
        plan = plan_from_json(files.read_json(f"{self._store}/plan.json"))
        rival = ShardEncoder(f"{self._store}/../tokenizer", self._store, plan, 1)
        for shard in images:
            rival(shard, ShardReader(plan, self.folder, 8, 1).read(shard, {}))
        publish(self._store, plan)
        remove_worklists(self._store)


@pytest.mark.long
def test_a_job_that_has_lost_its_lease_says_so_and_leaves_the_store_of_the_other_whole(
    tmp_path: Path, tokenizer, folder, tree, monkeypatch
) -> None:
    out = str(tmp_path / "store")
    config = TokenizeConfig(folder, tokenizer, out, chunk_rows=16, shard_rows=32, max_rejects=0.01, resources=few(2))
    monkeypatch.setattr("rdpm.pipeline.tokenizing.stage.Worklist", Overtaken)
    with pytest.raises(LeaseLost, match="another start has taken it over"):
        tokenize(config)
    assert not verify_store(open_store(out, "tokens")).findings
    assert not [name for name in tree(out) if name.startswith(".")]
