"""Clusters of several nodes on this machine: they grow, lack GPUs, and have nodes that see or run something else."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.processes import Family, wait_until
from tests.faults.ray_nodes import RayCluster

WORK = """
import json, os, sys, time
from pathlib import Path
import ray
from rdpm.pipeline.cluster.capacity import pool_for
from rdpm.pipeline.cluster.probe import probe_of
from rdpm.pipeline.cluster.session import Resources, session
from rdpm.pipeline.cluster.shards import ShardDone, Work, run_shards

class Worker:
    def __init__(self, out):
        self.out, self.here = Path(out), f"{os.getpid()}-{ray.get_runtime_context().get_node_id()}"
        (self.out / f"replica-{self.here}").touch()

    def __call__(self, shard):
        time.sleep(0.3)
        while shard >= 4 and (self.out / "hold").exists():
            time.sleep(0.1)
        (self.out / f"{shard}-{self.here}").touch()
        return ShardDone(shard, 1)

out, gpus, settings = sys.argv[1], sys.argv[2] == "gpus", json.loads(sys.argv[3])
resources, shards = Resources(**settings), list(range(40))
try:
    with session(resources):
        pool = pool_for(resources, gpus, False, 1, len(shards))
        print("pool", pool.first, pool.most, flush=True)
        list(run_shards(shards, Work(None, Worker, {"out": out}), resources, pool, probe_of([out])))
except ValueError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A cluster without nodes, which end with the test."""
    made = RayCluster(tmp_path)
    yield made
    made.close()


@pytest.fixture
def work(tmp_path, cluster, repository) -> Iterator[Callable[..., tuple[Family, subprocess.Popen]]]:
    """Starts 40 shards of half a second each on the cluster: (what each replica uses, settings of Resources)."""
    jobs = []

    def start(uses: str, **settings) -> tuple[Family, subprocess.Popen]:
        jobs.append(Family(tmp_path / f"job-{len(jobs)}.log"))
        spec = json.dumps({"address": cluster.address, **settings})
        command = [sys.executable, "-c", WORK, str(tmp_path / "out"), uses, spec]
        return jobs[-1], jobs[-1].start(command, cluster.environment, repository)

    (tmp_path / "out").mkdir()
    yield start
    for job in jobs:
        job.close()


def where(folder: Path, what: str = "[0-9]*") -> list[tuple[str, str]]:
    """(process, node) of every shard that is done, or of every replica."""
    return [tuple(path.name.split("-")[1:]) for path in folder.glob(f"{what}-*-*")]


@pytest.mark.long
def test_a_pool_grows_onto_nodes_that_join(cluster, work, tmp_path) -> None:
    out = tmp_path / "out"
    (out / "hold").touch()  # shards wait until the pool has grown
    cluster.add(cpus=2)
    job, process = work("cpus")
    wait_until(lambda: len(where(out)) >= 4 or process.poll() is not None, 120, "shards")
    assert "pool 1 40" in job.printed()
    cluster.add(cpus=2)
    grown = lambda: len({node for _, node in where(out, "replica")}) == 2  # noqa: E731
    wait_until(lambda: grown() or process.poll() is not None, 120, "replicas")
    (out / "hold").unlink()
    assert process.wait(180) == 0, job.printed()
    assert len(where(out)) == 40
    assert len({node for _, node in where(out)}) == 2


@pytest.mark.long
def test_a_job_waits_for_gpus_and_fails_when_they_do_not_come_instead_of_using_cpus(cluster, work, tmp_path) -> None:
    cluster.add(cpus=2)
    job, process = work("gpus", min_gpus=2, wait_seconds=4)
    assert process.wait(90) == 1
    assert "waiting for 2 GPUs, at most 4 s" in job.printed()
    assert "refused: there are 0 GPUs, fewer than resources.min_gpus 2; add GPUs or lower it" in job.printed()
    job, process = work("gpus", wait_seconds=4, actor_memory_mb=0)
    assert process.wait(90) == 1
    assert "waiting for 0.9 CPUs, 1 GPU, at most 4 s" in job.printed()
    assert "a model replica needs 0.9 CPUs, 1 GPU, and Ray's node has 2 CPUs, 0 GPUs" in job.printed()
    assert where(tmp_path / "out") == []
    job, process = work("gpus", min_gpus=2, wait_seconds=300)
    wait_until(lambda: "waiting for 2 GPUs" in job.printed(), 90, "the line")
    cluster.add(cpus=8, gpus=8)
    assert process.wait(180) == 0, job.printed()
    done = where(tmp_path / "out")
    assert len(done) == 40
    assert len({node for _, node in done}) == 1


@pytest.mark.long
def test_gpus_that_another_job_uses_are_waited_for(cluster, work, tmp_path) -> None:
    cluster.add(cpus=4, gpus=1)
    first, running = work("gpus")
    wait_until(lambda: where(tmp_path / "out") or running.poll() is not None, 90, "shards")
    second, process = work("gpus", wait_seconds=0)
    wait_until(lambda: "waiting for" in second.printed(), 60, "the line")
    assert "waiting for 0.9 CPUs, 1 GPU, 512 MiB, which other jobs use" in second.printed()
    assert running.poll() is None
    assert process.wait(180) == 0, second.printed()
    assert running.wait(0) == 0, first.printed()


@pytest.mark.long
def test_eight_gpus_with_eight_cpus_leave_a_cpu_for_decoding(cluster, work, tmp_path) -> None:
    cluster.add(cpus=8, gpus=8)
    job, process = work("gpus", actor_memory_mb=0, actor_cpus=1.1)
    assert process.wait(180) == 0, job.printed()
    assert "pool 7 40" in job.printed()


def refused(cluster: RayCluster, folder: Path, repository: Path, job: str, *settings: str) -> str:
    """Run a job on the cluster that writes 20 rows. Returns what it prints; it must fail before it writes a shard."""
    family, out = Family(folder / f"{job}.log"), f"{folder}/stores/{job}"
    where = [f"tokenizer={folder}/tokenizer", f"out={out}", "batch=4", f"resources.address={cluster.address}"]
    command = [sys.executable, "-m", "rdpm", job, *where, "shard_rows=4", *settings]
    assert family.start(command, cluster.environment, repository).wait(180) == 2, family.printed()
    assert not list(Path(out).glob("commits/*"))
    return " ".join(family.printed().split())


@pytest.mark.long
@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        ("stores", r"does not see out={}/stores/tokenize as the driver does (it is not there); use a path or URL"),
        (
            "images",
            r"does not see the image '0/0000.png' of images={}/images as the driver does (it reads other bytes)",
        ),
    ],
)
def test_a_node_that_does_not_see_what_the_driver_sees_is_named(
    cluster, tmp_path, exports, digits, repository, hidden, words
) -> None:
    """The head runs nothing. The other node has a folder of its own in the place of a shared one."""
    exports.generator(str(tmp_path / "generator"), exports.tokenizer(str(tmp_path / "tokenizer")))
    for number, pixels in enumerate(digits[0][:20]):
        path = tmp_path / "images" / str(number % 2) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "stores").mkdir()
    cluster.add(cpus=0)
    own = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path}/{hidden} && exec "$@"', "-"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids mounts")
    cluster.add(cpus=4, within=own)
    printed = refused(cluster, tmp_path, repository, "tokenize", f"images={tmp_path}/images", "chunk_rows=4")
    assert "rdpm tokenize: node 1" in printed
    assert words.format(tmp_path) in printed
    if hidden == "stores":
        printed = refused(cluster, tmp_path, repository, "sample", f"generator={tmp_path}/generator", "per_class=10")
        assert f"does not see out={tmp_path}/stores/sample as the driver does (it is not there)" in printed


@pytest.mark.long
def test_a_node_with_another_version_is_named(cluster, work, tmp_path) -> None:
    (tmp_path / "packages" / "zarr-9.9.dist-info").mkdir(parents=True)
    (tmp_path / "packages" / "zarr-9.9.dist-info" / "METADATA").write_text("Name: zarr\nVersion: 9.9\n")
    cluster.add(cpus=0)
    cluster.add(cpus=2, environment={"PYTHONPATH": str(tmp_path / "packages")})
    job, process = work("cpus")
    assert process.wait(120) == 1
    assert " has zarr 9.9 and the driver has 3." in job.printed()
    assert "; install the same on every node" in job.printed()
