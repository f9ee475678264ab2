"""SIGSTOP of a whole job beyond its lease: another start takes over, and the first, once awake, writes nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdpm.pipeline.foundation.lease import SECONDS
from tests.faults.processes import Family, wait_until


@pytest.mark.long
def test_a_job_that_sleeps_past_its_lease_writes_nothing_more(tmp_path, exports, digit_folder, repository, tree):
    exports.tokenizer(str(tmp_path / "tokenizer"))
    settings = [
        f"images={digit_folder}", f"tokenizer={tmp_path}/tokenizer", "shard_rows=1", "chunk_rows=1", "batch=1",
        "resources={cpus: 4, object_store_mb: 128, actors: 1, actor_cpus: 0.5}",
    ]  # fmt: skip
    first, second = Family(tmp_path / "first.log"), Family(tmp_path / "second.log")

    def start(family: Family, out: Path, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "rdpm", "tokenize", *options, f"out={out}", *settings]
        return family.start(command, folder=repository)

    try:
        sleeper = start(first, tmp_path / "store")
        wait_until(lambda: list((tmp_path / "store" / "commits").glob("*.json")), 120, first.printed(), 0.01)
        assert first.send(signal.SIGSTOP) > 3
        assert sleeper.poll() is None
        refused = start(second, tmp_path / "store")
        assert refused.wait(60) == 2
        assert "is being written by tokenize on" in second.printed()
        assert f"process {sleeper.pid}" in second.printed()
        time.sleep(SECONDS)
        assert start(second, tmp_path / "store", "--wait").wait(120) == 0, second.printed()
        written = tree(tmp_path / "store")
        first.send(signal.SIGCONT)
        assert sleeper.wait(120) == 2, first.printed()
        assert "is lost" in first.printed()
        assert tree(tmp_path / "store") == written
        assert start(second, tmp_path / "alone").wait(120) == 0, second.printed()
        assert tree(tmp_path / "alone") == written
    finally:
        first.close()
        second.close()
