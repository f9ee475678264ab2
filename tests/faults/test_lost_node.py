"""A Ray cluster of two and three nodes on this machine, one of which is lost for good in mid-job."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.verification import verify_store
from tests.faults.processes import wait_until


@pytest.fixture
def start(tmp_path, family, ray_cluster, exports, digits, repository) -> Callable[[Path, str], subprocess.Popen]:
    """Starts `rdpm tokenize` of 400 digits, two views each, in shards of 4 rows: (out, address)."""
    exports.tokenizer(str(tmp_path / "tokenizer"))
    for number, (pixels, label) in enumerate(zip(digits[0][:400], digits[1][:400], strict=True)):
        path = tmp_path / "images" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    settings = [
        f"images={tmp_path}/images", f"tokenizer={tmp_path}/tokenizer", "views=[center,flip]", "shard_rows=4",
        "chunk_rows=4", "batch=4", "resources.actor_cpus=0.5",
    ]  # fmt: skip

    def start(out: Path, address: str) -> subprocess.Popen:
        where = [f"resources.address={address}"] if address else ["resources.cpus=4"]
        command = [sys.executable, "-m", "rdpm", "tokenize", f"out={out}", *settings, *where]
        return family.start(command, ray_cluster.environment, repository)

    return start


@pytest.mark.long
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_node_lost_for_good_loses_no_shard(start, family, ray_cluster, tmp_path, tree, nodes) -> None:
    for _ in range(nodes):
        ray_cluster.add(cpus=2)
    commits = tmp_path / "store" / "commits"
    job = start(tmp_path / "store", ray_cluster.address)
    goal = random.Random(nodes).randint(10, 60)
    wait_until(lambda: len(list(commits.glob("*.json"))) >= goal or job.poll() is not None, 120, "commits")
    assert job.poll() is None, family.printed()
    ray_cluster.nodes.pop().close()
    assert len(list(commits.glob("*.json"))) < 200
    assert job.wait(240) == 0, family.printed()
    store = open_store(str(tmp_path / "store"), "tokens")
    assert verify_store(store).findings == ()
    alone = start(tmp_path / "alone", "")
    assert alone.wait(240) == 0, family.printed()
    assert tree(tmp_path / "store") == tree(tmp_path / "alone")
