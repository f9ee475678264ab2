"""Sets of samples: what image i is, whatever the shards; the files beside the store; a run killed five times."""

import json
import os
import signal
import subprocess
import tarfile
import time
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rdpm.pipeline.cluster.cluster import Resources

from rdpm.models.sampler import PRESETS, SamplerConfig
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.sampling.formats import write_files
from rdpm.pipeline.sampling.plan import SampleConfig, labels_and_seeds, make_plan
from rdpm.pipeline.sampling.stage import sample_sets
from rdpm.pipeline.sampling.worker import ShardSampler, locate
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan, to_json
from rdpm.storage_schemas.samples import sample_arrays


@pytest.fixture(scope="module")
def run(tmp_path_factory, exports) -> str:
    """A folder with a generator of two classes and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("run"))
    exports.generator(f"{folder}/generator", exports.tokenizer(f"{folder}/tokenizer"))
    return folder


def config_of(run: str, out: str, **settings) -> SampleConfig:
    defaults = {"sampler": SamplerConfig(guidance=1.5), "per_class": 15, "seed": 3, "shard_rows": 8, "batch": 4}
    return SampleConfig(f"{run}/generator", f"{run}/tokenizer", out, **{**defaults, **settings})


def drawn(config: SampleConfig, order: int = 1) -> Store:
    """The store of a config, its shards drawn in this process, backwards when order is -1."""
    plan = make_plan(config, *read_pair(config.generator, config.tokenizer))
    start_store(config.out, plan)
    each = {"generator": config.generator, "tokenizer": config.tokenizer, "store": config.out, "plan": to_json(plan)}
    sampler = ShardSampler([each], threads=1)
    for shard in range(plan.num_shards)[::order]:
        sampler({"shard": np.array([shard])})
    return Store(config.out, publish(config.out, plan))


@pytest.fixture(scope="module")
def store(run, tmp_path_factory) -> Store:
    """30 images in 4 shards, the last one short."""
    return drawn(config_of(run, str(tmp_path_factory.mktemp("samples") / "out")))


@pytest.mark.parametrize(("shard_rows", "order"), [(4, -1), (12, 1), (100, -1)])
def test_samples_are_the_same_in_any_shard_size_and_order(run, store, tmp_path, shard_rows, order):
    other = drawn(config_of(run, f"{tmp_path}/out", shard_rows=shard_rows), order)
    for name in ("images", "codes", "label", "seed"):
        assert np.array_equal(other.read_all(name), store.read_all(name)), name


def test_a_set_holds_what_the_python_interface_draws(run, store):
    model = RDPM.from_pretrained(run, batch=4)
    images = model.sample(store.read_all("label").tolist(), seed=3, guidance=1.5)
    assert np.array_equal(images, store.read_all("images"))


@pytest.mark.parametrize("labels", [range(5), [7], [9, 2, 4]])
def test_labels_are_balanced_and_shuffled_over_the_whole_set_and_seeds_differ(labels):
    rows = 40 * len(labels)
    found, seeds = labels_and_seeds(np.arange(rows), 40, labels, 3)
    assert {label: int((found == label).sum()) for label in labels} == dict.fromkeys(labels, 40)
    assert len(np.unique(seeds)) == rows
    assert len(labels) == 1 or (np.diff(found) != 0).mean() > 0.4
    part = labels_and_seeds(np.arange(7, 19), 40, labels, 3)
    assert np.array_equal(part[0], found[7:19])
    assert np.array_equal(part[1], seeds[7:19])


def test_only_the_classes_asked_for_are_drawn(run, tmp_path):
    config = config_of(run, f"{tmp_path}/out", labels=(1,))
    cards = read_pair(config.generator, config.tokenizer)
    assert make_plan(config, *cards).rows == 15
    with pytest.raises(ValueError, match=r"label 2 is no class of the generator; use 0 to 1"):
        make_plan(replace(config, labels=(1, 2)), *cards)


def test_what_touches_a_sample_is_in_the_plan_and_what_does_not_is_not(run):
    config = config_of(run, "out")
    cards = read_pair(config.generator, config.tokenizer)
    plan = make_plan(config, *cards)
    same = [{"threads": 3}, {"formats": ("png",)}, {"out": "elsewhere"}, {"resources": Resources(actors=3)}]
    other = [{"seed": 4}, {"batch": 2}, {"precision": "bf16"}, {"compiled": True}, {"sampler": SamplerConfig(top_k=4)}]
    assert all(make_plan(replace(config, **change), *cards) == plan for change in same)
    assert all(make_plan(replace(config, **change), *cards) != plan for change in other)


def test_a_config_may_name_a_preset_or_spell_it_out():
    given = ["generator=g", "tokenizer=t", "out=o"]
    assert load_config(SampleConfig, "sample", None, [*given, "sampler=cfg-linear"]).sampler == PRESETS["cfg-linear"]
    spelt = load_config(SampleConfig, "sample", None, [*given, "sampler.guidance=3", "sampler.top_k=9"]).sampler
    assert spelt == SamplerConfig(guidance=3.0, top_k=9)


def test_work_items_count_the_shards_of_all_sets_on_end():
    plans = [Plan("samples", rows, 4, 4, (), {}) for rows in (9, 4, 13)]
    assert [locate(n, plans) for n in range(8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_every_format_holds_the_same_images_and_labels(store, tree):
    write_files(store, ("npz", "png", "tar"))
    images, labels = store.read_all("images"), store.read_all("label")
    with np.load(f"{store.url}/samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], images)
        assert np.array_equal(archive["arr_1"], labels)
    source = list_images(f"{store.url}/png")
    assert source.classes == ("one", "zero")
    for place in range(len(source)):
        key = source.key(place)
        row = int(Path(key).stem)
        assert source.classes[source.label(place)] == ("zero", "one")[labels[row]]
        assert np.array_equal(Image.open(f"{store.url}/png/{key}"), images[row])
    members = {}
    for path in sorted(Path(store.url, "tar").iterdir()):
        with tarfile.open(path) as archive:
            members |= {member.name: archive.extractfile(member).read() for member in archive}
    assert len(members) == 60
    for row in range(30):
        assert int(members[f"{row:08d}.cls"]) == labels[row]
        assert np.array_equal(Image.open(BytesIO(members[f"{row:08d}.png"])), images[row])
    before = tree(store.url)
    write_files(store, ("npz", "png", "tar"))
    assert tree(store.url) == before


def test_a_folder_appears_whole_or_not_at_all_and_a_killed_writer_is_swept_up(store, tmp_path, monkeypatch):
    write, written = files.write_bytes, []

    def fail_at_the_tenth(url: str, data: bytes) -> None:
        written.append(url)
        if len(written) == 10:
            raise KeyboardInterrupt
        write(url, data)

    copy = Store(store.url, store.manifest)
    target = tmp_path / "png"
    joined = "rdpm.pipeline.sampling.formats.files.join"
    monkeypatch.setattr(joined, lambda root, *parts: "/".join([root, *parts]).replace(f"{store.url}/png", str(target)))
    with monkeypatch.context() as broken:
        broken.setattr(files, "write_bytes", fail_at_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            write_files(copy, ("png",))
    assert not target.exists()
    write_files(copy, ("png",))
    assert len(list(target.rglob("*.png"))) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["png"]


def test_memory_is_flat_from_1_000_to_50_000_images(tmp_path):
    """The peak while samples.npz is written, which is that of one shard."""
    peaks = {}
    for rows in (1_000, 50_000):
        arrays = sample_arrays(1, 1, 16)
        plan, url = Plan("samples", rows, 500, 500, arrays, {"classes": ["only"]}), f"{tmp_path}/{rows}"
        start_store(url, plan)
        zeros = {spec.name: np.zeros((500, *spec.row_shape), spec.dtype) for spec in arrays}
        for shard in range(plan.num_shards):
            write_shard(url, plan, shard, zeros, {"index": np.arange(500)})
        store = Store(url, publish(url, plan))
        tracemalloc.start()
        write_files(store, ("npz",))
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[50_000] < 1.1 * peaks[1_000]


@pytest.mark.slow
def test_several_sets_in_one_run_are_what_each_would_be_alone(run, store, tmp_path):
    """Of two generators, a set half done already among them."""
    few = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)
    settings = ({}, {"per_class": 5, "labels": (1,)}, {"sampler": PRESETS["raw"]})
    configs = [config_of(run, f"{tmp_path}/{i}", resources=few, formats=(), **each) for i, each in enumerate(settings)]
    plan = make_plan(configs[0], *read_pair(configs[0].generator, configs[0].tokenizer))
    start_store(configs[0].out, plan)
    columns = store.shard(1, tuple(store.specs))
    write_shard(
        configs[0].out,
        plan,
        1,
        columns,
        {"index": np.arange(8, 16), "label": columns["label"], "seed": columns["seed"]},
    )
    first, *others = sample_sets(configs)
    assert first.plan == store.manifest.plan
    assert np.array_equal(Store(configs[0].out, first).read_all("images"), store.read_all("images"))
    for config, manifest in zip(configs[1:], others, strict=True):
        alone = drawn(replace(config, out=f"{config.out}-alone"))
        assert manifest.store_id == alone.id


@pytest.mark.long
def test_a_run_killed_five_times_leaves_what_an_unbroken_one_leaves(run, python, repository, tmp_path, tree):
    settings = {"per_class": 600, "shard_rows": 60, "formats": ("npz", "tar")}
    whole = drawn(config_of(run, f"{tmp_path}/whole", **settings))
    write_files(whole, settings["formats"])
    command = [
        *python, "-m", "rdpm", "sample", f"generator={run}/generator", f"tokenizer={run}/tokenizer",
        f"out={tmp_path}/broken", "sampler.guidance=1.5", "per_class=600", "seed=3", "shard_rows=60", "batch=4",
        "formats=[npz, tar]", "resources={cpus: 4, object_store_mb: 128, actors: 2}",
    ]  # fmt: skip

    def start() -> subprocess.Popen:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=repository, start_new_session=True, text=True, **streams)

    commits = tmp_path / "broken" / "commits"
    for least in (1, 4, 7, 10, 13):
        process = start()
        while len(list(commits.glob("[0-9]*.json"))) < least:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "broken" / "manifest.json").exists()
    process = start()
    assert process.wait(timeout=120) == 0, process.communicate()[0][-3000:]
    assert tree(tmp_path / "broken") == tree(whole.url)
    assert json.loads((tmp_path / "broken.record.json").read_text())["finished"]
