"""A campaign of seeded faults over tokenizing, training, sampling and publishing: nothing is lost.

Transient faults end in the bytes of an undisturbed run; the others in a sentence that names the cause, after which a
later start ends in the same bytes.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rdpm.pipeline.foundation import files
from rdpm.pipeline.sampling.stage import sample_set
from rdpm.pipeline.training.generator.stage import run as train
from tests.faults.campaign import cluster, gradients, ranks, writers
from tests.faults.campaign.tally import KILLS, Tally
from tests.pipeline.stores.facts import put_facts
from tests.pipeline.stores.test_store_faults import WRITER
from tests.pipeline.training.trainings import config, log_lines

Part = Callable[[Tally, Path], None]
SEED = 12
THOUSAND = {
    "throttle": 170, "conflict": 30, "reset": 170, "lost reply": 170, "cut reply": 170,
    "worker killed": 30, "worker stopped": 20, "node killed": 20, "driver killed": 20,
    "rank killed": 20, "training killed": 20, "writer killed": 30,
    "disk full": 40, "disk read-only": 25, "torn object": 25, "second start": 20, "gradient not finite": 20,
}  # fmt: skip
SOME = {
    "writer killed": 3, "disk full": 12, "disk read-only": 6, "torn object": 8, "second start": 4,
    "gradient not finite": 1,
}  # fmt: skip


def visible(folder: str | Path) -> dict[str, bytes]:
    """Every file of a folder or URL that is not hidden."""
    return {name: files.read_bytes(files.join(str(folder), name)) for name, _ in files.list_files(str(folder))}


@pytest.fixture
def builder(stores, repository, python, tmp_path) -> writers.Stores:
    """A token store of 9 shards that is made in no time, here or in a process that can be killed."""
    plan, facts = stores.plan(rows=66), tmp_path / "facts"
    put_facts(facts, plan, stores)
    stores.build(str(tmp_path / "example"), plan)
    keys = [(key, shard) for shard in range(plan.num_shards) for key in plan.objects(shard).values()]
    objects = tuple((key, shard, files.digest_file(str(tmp_path / "example" / key)).sha256) for key, shard in keys)
    return writers.Stores(
        lambda out: stores.build(out, plan), objects, lambda out: [*python, "-c", WRITER, str(out), str(facts)], visible
    )


@pytest.fixture
def everybody(builder, run, store, config_of, inputs) -> list[writers.Writer]:
    """Writers of a token store, of a sample set whose shards are drawn, and of a training."""

    def samples(out: Path) -> None:
        for name, data in visible(store.url).items():
            if name != "manifest.json" and not (out / name).exists():
                files.write_bytes(str(out / name), data)
        sample_set(config_of(run, str(out), formats=("npz", "png", "tar")))

    def training(out: Path) -> None:
        train(config("generator", inputs, out, "steps=3", "checkpoint_every=1", "micro_batch=8"))

    def trained(out: Path) -> dict[str, object]:
        return {"log": log_lines(out)} | {
            name: (out / name).read_bytes() for name in ("model.safetensors", "card.json")
        }

    return [
        writers.Writer("store", lambda out: builder.build(str(out)), visible, weight=6),
        writers.Writer("samples", samples, visible, weight=5),
        writers.Writer("training", training, trained, weight=3),
    ]


@pytest.fixture
def on_cluster(run, digits, faulty_s3, ray_cluster, repository) -> Part:
    """Tokenizing and sampling on Ray, onto S3."""

    def part(tally: Tally, folder: Path) -> None:
        url, proxy = faulty_s3(tally.seed, latency=0.03)
        for number, (pixels, label) in enumerate(zip(digits[0][:200], digits[1][:200], strict=True)):
            path = folder / "images" / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        sizes = ["shard_rows=8", "batch=4", "resources.actor_cpus=0.5", f"tokenizer={run}/tokenizer"]
        sampling = ["sampler.guidance=1.5", "per_class=60", "formats=[npz,tar]", f"generator={run}/generator"]
        commands = {
            "tokenize": ["tokenize", f"images={folder}/images", "views=[center,flip]", "chunk_rows=4", *sizes],
            "sample": ["sample", *sampling, *sizes],
        }
        cluster.Part(cluster.Jobs(commands, url, repository, visible), ray_cluster, proxy, tally, folder).run()

    return part


@pytest.fixture
def on_ranks(inputs, repository) -> Part:
    """Training on two ranks."""
    return lambda tally, folder: ranks.Part(inputs, repository, tally, folder).run()


@pytest.fixture
def in_gradients(inputs) -> Part:
    """Training with gradients that are not finite."""
    return lambda tally, folder: gradients.Part(inputs, tally, folder).run()


@pytest.fixture
def in_writers(builder, everybody, run, repository) -> Part:
    """Every writer on this machine."""
    job = ["sample", f"generator={run}/generator", f"tokenizer={run}/tokenizer", "per_class=1"]
    return lambda tally, folder: writers.Part(everybody, builder, job, repository, tally, folder).run()


def throw(goals: dict[str, int], parts: dict[str, Part], folder: Path) -> Tally:
    """A campaign of these parts, and its table on the terminal."""
    tally = Tally(SEED, goals)
    for name, part in parts.items():
        (folder / name).mkdir()
        began = time.monotonic()
        part(tally, folder / name)
        tally.seconds[name] = time.monotonic() - began
    return tally


@pytest.mark.long
def test_a_thousand_faults_lose_nothing(on_cluster, on_ranks, in_gradients, in_writers, tmp_path, capsys) -> None:
    parts = {"cluster": on_cluster, "ranks": on_ranks, "gradients": in_gradients, "writers": in_writers}
    tally = throw(THOUSAND, parts, tmp_path)
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert tally.lost == []
    assert tally.thrown.total() >= 1000
    assert sum(tally.thrown[kind] for kind in KILLS) >= 60
    assert min(tally.thrown[kind] for kind in THOUSAND) >= 20


@pytest.mark.long
def test_some_faults_of_this_machine_lose_nothing(in_gradients, in_writers, tmp_path, capsys) -> None:
    """Half a minute, without Ray and without ranks of their own."""
    tally = throw(SOME, {"gradients": in_gradients, "writers": in_writers}, tmp_path)
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert tally.lost == []
    assert all(tally.thrown[kind] >= SOME[kind] for kind in SOME)
