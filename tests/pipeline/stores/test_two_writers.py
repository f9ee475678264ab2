"""Two processes that write one store."""

import subprocess
from pathlib import Path

import pytest

from rdpm.pipeline.stores.writer import publish, start_store
from tests.pipeline.stores.facts import put_facts

WRITER = """
import random, sys, time
import numpy as np
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.writer import start_store, write_shard
from rdpm.storage_schemas.manifest import plan_from_json

facts, mine, *urls = sys.argv[1:]
plan = plan_from_json(files.read_json(f"{facts}/plan.json"))
shards = [dict(np.load(f"{facts}/{shard}.npz")) for shard in range(plan.num_shards)]
part = lambda shard, kind: {n.split(".")[1]: v for n, v in shards[shard].items() if n.startswith(kind)}
for turn, url in enumerate(urls):
    files.write_bytes(f"{facts}/ready{turn}/{mine}", b"")
    began = time.monotonic()
    while len(files.list_names(f"{facts}/ready{turn}")) < 2:
        assert time.monotonic() - began < 30, "the other writer is gone"
    start_store(url, plan)
    order = list(range(plan.num_shards))
    random.Random(mine + url).shuffle(order)
    for shard in order:
        write_shard(url, plan, shard, part(shard, "columns"), part(shard, "index"))
"""


def run_together(facts: Path, urls: list[str], python: list[str], repository: Path) -> list[str]:
    """Two processes write every shard of every store, in two orders; both start at once. Returns their errors."""
    writers = [
        subprocess.Popen(
            [*python, "-c", WRITER, str(facts), name, *urls], cwd=repository, stderr=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    return [line for writer in writers for line in writer.communicate(timeout=60)[1].splitlines()[-1:]]


@pytest.mark.slow
def test_two_processes_that_write_one_started_store_leave_the_same_bytes(tmp_path, stores, tree, python, repository):
    plan = stores.plan(rows=50)
    put_facts(tmp_path / "facts", plan, stores)
    expected = stores.build(str(tmp_path / "clean"), plan)
    urls = [f"{tmp_path}/shared{turn}" for turn in range(2)]
    for url in urls:
        start_store(url, plan)
    assert run_together(tmp_path / "facts", urls, python, repository) == []
    for url in urls:
        assert publish(url, plan).store_id == expected.id
        assert tree(url) == tree(expected.url)


@pytest.mark.long
def test_two_processes_that_start_one_store_leave_the_same_bytes(tmp_path, anywhere, stores, tree, python, repository):
    plan = stores.plan(rows=4)
    put_facts(tmp_path / "facts", plan, stores)
    expected = stores.build(str(tmp_path / "clean"), plan)
    urls = [f"{anywhere}/shared{turn}" for turn in range(3)]
    assert run_together(tmp_path / "facts", urls, python, repository) == []
    for url in urls:
        assert publish(url, plan).store_id == expected.id
        assert tree(url) == tree(expected.url)
