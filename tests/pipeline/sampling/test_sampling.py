"""Sets of samples: their plan, image i for shards of any size, several sets in one session, and a killed job."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest

from rdpm.models.sampler import PRESETS, SAMPLER_VERSION, SamplerConfig
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.sampling.formats import write_files
from rdpm.pipeline.sampling.plan import SampleConfig, labels_and_seeds, sample_plan
from rdpm.pipeline.sampling.stage import sample_set, sample_sets
from rdpm.pipeline.sampling.worker import SetToDraw, ShardSampler, locate
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.writer import start_store, write_shard
from rdpm.storage_schemas import samples
from rdpm.storage_schemas.manifest import Plan, plan_from_json, plan_to_json
from rdpm.storage_schemas.samples import current_sampler


@pytest.mark.slow
@pytest.mark.parametrize(("shard_rows", "order"), [(4, -1), (12, 1), (100, -1)])
def test_samples_are_the_same_in_any_shard_size_and_order(
    run, store, config_of, draw_here, tmp_path, shard_rows, order
):
    other = draw_here(config_of(run, f"{tmp_path}/out", shard_rows=shard_rows), order)
    for name in ("images", "codes", "label", "seed"):
        assert np.array_equal(other.read_all(name), store.read_all(name)), name


def test_a_set_holds_what_the_python_interface_draws(run, store):
    model = RDPM.from_pretrained(run, batch=4, device="cpu")
    images = model.sample(store.read_all("label").tolist(), seed=3, guidance=1.5)
    assert np.array_equal(images, store.read_all("images"))


@pytest.mark.parametrize("labels", [range(5), [7], [9, 2, 4]])
def test_labels_are_balanced_and_shuffled_over_the_whole_set_and_seeds_differ(labels):
    rows = 40 * len(labels)
    drawn, seeds = labels_and_seeds(np.arange(rows), 40, labels, 3)
    assert {label: int((drawn == label).sum()) for label in labels} == dict.fromkeys(labels, 40)
    assert len(np.unique(seeds)) == rows
    assert len(labels) == 1 or (np.diff(drawn) != 0).mean() > 0.4
    part = labels_and_seeds(np.arange(7, 19), 40, labels, 3)
    assert np.array_equal(part[0], drawn[7:19])
    assert np.array_equal(part[1], seeds[7:19])


def test_only_the_requested_classes_are_drawn(run, config_of, tmp_path):
    config = config_of(run, f"{tmp_path}/out", labels=(1,))
    cards = read_pair(config.generator, config.tokenizer)
    assert sample_plan(config, *cards, "cpu").rows == 15
    with pytest.raises(ValueError, match=r"label 2 is no class of the generator; use 0 to 1"):
        sample_plan(replace(config, labels=(1, 2)), *cards, "cpu")


def test_a_plan_holds_what_decides_the_samples_and_nothing_else(run, config_of):
    config = config_of(run, "out")
    cards = read_pair(config.generator, config.tokenizer)
    plan = sample_plan(config, *cards, "cpu")
    same = [
        {"threads": 3}, {"formats": ("png",)}, {"out": "elsewhere"}, {"resources": Resources(actors=3)},
        {"device": "auto"},
    ]  # fmt: skip
    other = [
        {"seed": 4}, {"batch": 2}, {"precision": "bf16"}, {"compile": True}, {"sampler": SamplerConfig(top_k=4)},
        {"attention": "math"},
    ]  # fmt: skip
    assert all(sample_plan(replace(config, **change), *cards, "cpu") == plan for change in same)
    assert all(sample_plan(replace(config, **change), *cards, "cpu") != plan for change in other)
    assert (plan.samples.device, plan.samples.attention) == ("cpu", "sdpa")
    assert sample_plan(config, *cards, "cuda").samples == replace(plan.samples, device="cuda")
    assert plan_from_json(plan_to_json(plan)) == plan


def test_a_worker_refuses_a_set_for_another_kind_of_device(run, config_of, draw_here, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"the plan is for cuda, and .* has no GPU; run on machines with one"):
        draw_here(config_of(run, f"{tmp_path}/out"), device="cuda")
    assert not list(tmp_path.glob("out/commits/*"))


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"compile": True}], ids=["bf16", "compiled"])
def test_a_set_that_an_older_release_began_in_bf16_or_compiled_is_not_continued(run, config_of, tmp_path, settings):
    """Its plan does not say how models round. A set in fp32 says nothing either, and is continued."""
    config = config_of(run, f"{tmp_path}/out", **settings)
    cards = read_pair(config.generator, config.tokenizer)
    plan = sample_plan(config, *cards, "cpu")
    assert plan.samples.rounding == 2
    assert sample_plan(replace(config, precision="fp32", compile=False), *cards, "cpu").samples.rounding is None
    old = replace(plan, identity=replace(plan.samples, rounding=None))
    start_store(config.out, old)
    assert start_store(config.out, plan) == old
    sampler = ShardSampler([SetToDraw(config.generator, config.tokenizer, config.out, old)], threads=1)
    with pytest.raises(ValueError, match=r"out was begun by another release, which rounds otherwise in bf16"):
        sampler(0)


def test_flash_attn_needs_bf16(run, config_of):
    with pytest.raises(
        ValueError, match="attention is flash_attn, which computes in bf16 only; use precision bf16, or"
    ):
        config_of(run, "out", attention="flash_attn")
    assert config_of(run, "out", attention="flash_attn", precision="bf16").attention == "flash_attn"


def test_current_sampler_converts_settings_of_version_1():
    """Their temperature multiplied the logits, null was the argmax, and there was no version."""
    old = {"guidance": 0.5, "ramp": "linear", "temperature": 2.0, "top_k": 8, "top_p": 1.0}
    assert current_sampler(old) == {**old, "temperature": 0.5, "version": 2}
    assert current_sampler({**old, "temperature": None}) == {**old, "temperature": 0.0, "version": 2}
    assert current_sampler({"guidance": 1.0})["temperature"] == 1.0
    new = {**old, "version": 2}
    assert current_sampler(new) == new
    assert SamplerConfig(**current_sampler(old)) == SamplerConfig(guidance=0.5, temperature=0.5, top_k=8)
    assert samples.SAMPLER_VERSION == SAMPLER_VERSION


def test_a_config_may_name_a_preset_or_give_its_fields():
    given = ["generator=g", "tokenizer=t", "out=o"]
    assert load_config(SampleConfig, "sample", None, [*given, "sampler=cfg-linear"]).sampler == PRESETS["cfg-linear"]
    fields = load_config(SampleConfig, "sample", None, [*given, "sampler.guidance=3", "sampler.top_k=9"]).sampler
    assert fields == SamplerConfig(guidance=3.0, top_k=9)


def test_work_items_number_the_shards_of_all_sets_in_order(store):
    plans = [Plan("samples", rows, 4, 4, (), store.manifest.plan.identity) for rows in (9, 4, 13)]
    assert [locate(n, plans) for n in range(8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


@pytest.mark.long
def test_samples_are_the_same_from_one_and_three_replicas_and_any_shard_size(run, tmp_path):
    sets: list[Store] = []
    for actors, shard_rows in ((1, 20), (3, 8)):
        out = str(tmp_path / f"samples-{actors}")
        sampler = SamplerConfig(guidance=1.5)
        few = Resources(cpus=4, object_store_mb=128, actors=actors, actor_cpus=0.5)
        sample_set(
            SampleConfig(
                f"{run}/generator",
                f"{run}/tokenizer",
                out,
                sampler,
                per_class=17,
                shard_rows=shard_rows,
                batch=4,
                resources=few,
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


@pytest.mark.long
def test_several_sets_in_one_session_equal_sets_drawn_alone(run, store, config_of, draw_here, tmp_path):
    """One of them is partly drawn already."""
    few = Resources(cpus=4, object_store_mb=128, actors=2, actor_cpus=0.5)
    settings = ({}, {"per_class": 5, "labels": (1,)}, {"sampler": PRESETS["raw"]})
    configs = [config_of(run, f"{tmp_path}/{i}", resources=few, formats=(), **each) for i, each in enumerate(settings)]
    plan = sample_plan(configs[0], *read_pair(configs[0].generator, configs[0].tokenizer), "cpu")
    start_store(configs[0].out, plan)
    columns = store.shard(1, tuple(store.specs))
    index = {"index": np.arange(8, 16), "label": columns["label"], "seed": columns["seed"]}
    write_shard(configs[0].out, plan, 1, columns, index)
    first, *others = sample_sets(configs)
    assert first.plan == store.manifest.plan
    assert np.array_equal(Store(configs[0].out, first).read_all("images"), store.read_all("images"))
    for config, manifest in zip(configs[1:], others, strict=True):
        alone = draw_here(replace(config, out=f"{config.out}-alone"))
        assert manifest.store_id == alone.id


@pytest.mark.long
def test_a_run_killed_five_times_writes_the_bytes_of_an_undisturbed_run(
    run, config_of, draw_here, python, repository, tmp_path, tree
):
    settings = {"per_class": 600, "shard_rows": 60, "formats": ("npz", "tar")}
    undisturbed = draw_here(config_of(run, f"{tmp_path}/undisturbed", **settings))
    with held(undisturbed.url, "sample") as lease:
        write_files(undisturbed, settings["formats"], lease)
    command = [
        *python, "-m", "rdpm", "sample", f"generator={run}/generator", f"tokenizer={run}/tokenizer",
        f"out={tmp_path}/killed", "sampler.guidance=1.5", "per_class=600", "seed=3", "shard_rows=60", "batch=4",
        "device=cpu", "formats=[npz, tar]", "resources={cpus: 4, object_store_mb: 128, actors: 2}",
    ]  # fmt: skip

    def start() -> subprocess.Popen:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=repository, start_new_session=True, text=True, **streams)

    commits = tmp_path / "killed" / "commits"
    for least in (1, 4, 7, 10, 13):
        process = start()
        while len(list(commits.glob("[0-9]*.json"))) < least:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed" / "manifest.json").exists()
    process = start()
    assert process.wait(timeout=120) == 0, process.communicate()[0][-3000:]
    assert tree(tmp_path / "killed") == tree(undisturbed.url)
    assert json.loads((tmp_path / "killed.record.json").read_text())["finished"]


@pytest.mark.parametrize("name", ["per_class", "batch", "threads"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; use 1 or more"):
        SampleConfig("generator", "tokenizer", "out", **{name: 0})
