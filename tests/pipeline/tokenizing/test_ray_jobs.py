"""The two Ray Data jobs: what they leave depends on the plan alone, not on actors, shards or order."""

import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rdpm.pipeline.cluster.cluster import Resources

from rdpm.jobs.tokenize_images import main
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.cluster import cluster
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.worklist import Worklist, remove_worklists
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sampling.stage import sample_set
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import missing_shards, publish
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.rows import decode_shard
from rdpm.pipeline.tokenizing.stage import EncodeConfig, encode
from rdpm.storage_schemas.manifest import plan_from_json


def few(actors: int) -> Resources:
    """A small Ray on this machine."""
    return Resources(cpus=4, object_store_mb=128, actors=actors, actor_cpus=0.5)


@pytest.fixture
def models(tmp_path: Path, exports) -> tuple[str, str]:
    """Folders of a small tokenizer and a generator of its codes."""
    tokenizer, generator = str(tmp_path / "tokenizer"), str(tmp_path / "generator")
    exports.generator(generator, exports.tokenizer(tokenizer))
    return tokenizer, generator


@pytest.fixture
def folder(tmp_path: Path, digits) -> str:
    """200 real digits as PNGs in two class folders, one of them no image."""
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(digits[0][:200], digits[1][:200], strict=True)):
        path = tmp_path / "images" / ("even" if label % 2 == 0 else "odd") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    path.write_bytes(b"<html>not found</html>")
    return str(tmp_path / "images")


@pytest.mark.slow
def test_one_and_three_encoders_leave_the_same_store_from_folders_and_a_tar_with_the_bad_image_in_its_place(
    tmp_path: Path, models, folder, tree
) -> None:
    tar = shutil.make_archive(str(tmp_path / "images"), "tar", folder)
    for actors, images in ((1, folder), (3, tar)):
        main(
            [
                f"images={images}", f"tokenizer={models[0]}", f"out={tmp_path}/store-{actors}", "views=[center,flip]",
                "latents=true", "shard_rows=64", "chunk_rows=16", "batch=16", "max_rejects=0.01",
                f"resources={{cpus: 4, object_store_mb: 128, actors: {actors}, actor_cpus: 0.5}}",
            ]
        )  # fmt: skip
    assert tree(tmp_path / "store-1") == tree(tmp_path / "store-3")
    store = open_store(str(tmp_path / "store-1"), "tokens")
    index = store.index().to_pylist()
    assert len(index) == len(store) == 400
    assert [row["key"] for row in index[::2]] == sorted(row["key"] for row in index[::2])
    rejected = [number for number, row in enumerate(index) if row["status"] != "ok"]
    assert tuple(rejected) == store.manifest.rejected
    assert [index[number]["view"] for number in rejected] == ["center", "flip"]
    assert all("image" in index[number]["reason"] for number in rejected)


@pytest.mark.slow
def test_a_finished_store_of_the_same_containers_is_found_without_listing_them(
    tmp_path: Path, models, folder, monkeypatch, capsys
) -> None:
    tar = shutil.make_archive(str(tmp_path / "images"), "tar", folder)
    arguments = [
        f"images={tar}", f"tokenizer={models[0]}", f"out={tmp_path}/store", "chunk_rows=16", "shard_rows=64",
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
def test_too_many_bad_images_end_the_job_before_the_manifest_and_are_named(tmp_path: Path, models, folder) -> None:
    settings = EncodeConfig(folder, models[0], str(tmp_path / "store"), chunk_rows=16, shard_rows=64, resources=few(1))
    with pytest.raises(ValueError, match=r"1 of 200 images are unusable.*\.png \(cannot identify"):
        encode(settings)
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.long
def test_a_shard_that_kills_its_encoder_is_named_and_the_others_are_committed(
    tmp_path: Path, models, folder, tree
) -> None:
    class Fragile(ShardEncoder):
        """Dies of shard 2, as for want of memory."""

        def __call__(self, batch: dict) -> dict:
            if int(batch["shard"][0]) == 2:
                with open(f"{self.store}/../deaths", "a") as file:
                    file.write("x")
                os._exit(1)
            return super().__call__(batch)

    out = str(tmp_path / "store")
    config = EncodeConfig(
        folder, models[0], out, chunk_rows=16, shard_rows=32, max_rejects=0.01, resources=few(2)
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"shards \[2\] .* killed their worker 3 times"):
        encode(config, encoder=Fragile)
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert missing_shards(out, plan_from_json(files.read_json(f"{out}/plan.json"))) == [2]
    encode(config)
    assert not verify_store(open_store(out, "tokens")).findings
    assert not [name for name in tree(out) if name.startswith(".")]


class Overtaken(Worklist):
    """Another job on the same store does everything and publishes, once this one's listing is written."""

    def write(self, images: Mapping[int, range]) -> None:
        super().write(images)
        plan = plan_from_json(files.read_json(f"{self._store}/plan.json"))
        rival = ShardEncoder(f"{self._store}/../tokenizer", self._store, plan, 1)
        for shard in images:
            rival(decode_shard({"shard": [shard]}, plan=plan, listing=self.folder, size=8, channels=1))
        publish(self._store, plan)
        remove_worklists(self._store)


@pytest.mark.long
def test_a_job_that_another_one_overtakes_ends_as_finished(tmp_path: Path, models, folder, tree) -> None:
    out = str(tmp_path / "store")
    config = EncodeConfig(folder, models[0], out, chunk_rows=16, shard_rows=32, max_rejects=0.01, resources=few(2))
    with closing(Overtaken(folder, out)) as worklist:
        manifest = encode(config, worklist)
    assert manifest.store_id == open_store(out, "tokens").id
    assert not verify_store(open_store(out, "tokens")).findings
    assert not [name for name in tree(out) if name.startswith(".")]


@pytest.mark.slow
def test_a_shard_that_kills_its_decoder_is_given_up_after_three_times(tmp_path: Path) -> None:
    def prepare(batch: dict) -> dict:
        if int(batch["shard"][0]) == 3:
            os._exit(1)
        return {"shard": batch["shard"], "value": batch["shard"] * 10}

    class Actor:
        def __call__(self, batch: dict) -> dict:
            return {"shard": batch["shard"], "value": batch["value"] + 1}

    values = []

    def run() -> None:
        for row in cluster.run_shards(list(range(6)), prepare, Actor, {}, few(2), str(tmp_path)):
            values.append(row["value"])

    cluster.start(few(2))
    try:
        with pytest.raises(ValueError, match=r"shards \[3\] \(1 in all\) killed"):
            run()
    finally:
        cluster.stop()
    assert sorted(values) == [1, 11, 21, 41, 51]


@pytest.mark.slow
def test_samples_are_the_same_from_one_and_three_actors_and_any_shard_size(tmp_path: Path, models) -> None:
    tokenizer, generator = models
    sets: list[Store] = []
    for actors, shard_rows in ((1, 20), (3, 8)):
        out = str(tmp_path / f"samples-{actors}")
        sampler = SamplerConfig(guidance=1.5)
        sample_set(
            SampleConfig(
                generator, tokenizer, out, sampler, per_class=17, shard_rows=shard_rows, batch=4, resources=few(actors)
            )
        )
        sets.append(open_store(out, "samples"))
    for name in ("images", "codes", "label", "seed"):
        assert np.array_equal(sets[0].read_all(name), sets[1].read_all(name)), name
    archives = [np.load(tmp_path / f"samples-{actors}" / "samples.npz") for actors in (1, 3)]
    assert np.array_equal(archives[0]["arr_0"], sets[0].read_all("images"))
    assert np.array_equal(archives[1]["arr_1"], sets[1].read_all("label"))
    assert np.bincount(archives[0]["arr_1"]).tolist() == [17, 17]
    assert len(np.unique(sets[0].read_all("seed"))) == 34
