"""Verifying in several processes, killed and gone on with."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.verification import verify_store


@pytest.fixture(scope="module")
def clean(tmp_path_factory, stores) -> Store:
    """A published store of 13 shards. Not to be changed."""
    return stores.build(str(tmp_path_factory.mktemp("clean") / "store"), stores.plan(rows=100), rejected=(3, 8, 99))


@pytest.fixture
def store(clean, tmp_path) -> Store:
    """A copy of it, to be damaged."""
    return open_store(str(shutil.copytree(clean.url, tmp_path / "store")))


def damage(store: Store, shard: int, name: str) -> None:
    files.write_bytes(files.join(store.url, store.manifest.plan.objects(shard)[name]), b"damage")


@dataclass(frozen=True)
class Fatal:
    """Kills the process that verifies the codes of one shard. It gives no z'_T that any row has."""

    codes: bytes

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        if codes.tobytes() == self.codes:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((len(codes), 4, 4, 4), np.inf, np.float32)


@pytest.mark.long
def test_any_number_of_processes_finds_the_same_in_the_same_order(clean, store):
    for shard, name in ((2, "codes"), (7, "label"), (7, "index"), (11, "latents")):
        damage(store, shard, name)
    files.remove(files.join(store.url, "commits", "00005.json"))
    alone = verify_store(store)
    assert [finding.shard for finding in alone.findings] == [2, 5, 7, 7, 11]
    assert verify_store(store, processes=2) == alone


@pytest.mark.slow
def test_a_killed_process_ends_the_verification_with_one_sentence(clean):
    fatal = Fatal(clean.shard(4, ("codes",))["codes"].tobytes())
    with pytest.raises(ValueError, match=r"was killed .*; give fewer processes") as refusal:
        verify_store(clean, fatal, processes=2)
    assert "\n" not in str(refusal.value)


def test_a_verification_that_was_interrupted_goes_on_with_the_shards_that_are_left(clean, store, tmp_path, monkeypatch):
    ledger, whole, read = str(tmp_path / "verified.jsonl"), verify_store(clean), []
    shard_index = Store.shard_index

    def interrupted(self, shard):
        read.append(shard)
        if read == [0, 1, 3, 4, 5, 6]:  # 2 is damaged, so its index is not read
            raise KeyboardInterrupt
        return shard_index(self, shard)

    damage(store, 2, "codes")
    monkeypatch.setattr(Store, "shard_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify_store(store, resume=ledger)
    with open(ledger, "ab") as file:
        file.write(b'[6, {"0": 4, "1')  # a line that a kill has cut
    assert [finding.shard for finding in verify_store(store, resume=ledger).findings] == [2]
    assert read == [0, 1, 3, 4, 5, 6, *range(6, 13)]

    shutil.copy(*(Path(place, clean.manifest.plan.objects(2)["codes"]) for place in (clean.url, store.url)))
    read.clear()
    assert verify_store(store, resume=ledger) == whole
    assert read == [2]
    assert not Path(ledger).exists()
    read.clear()
    assert verify_store(store, resume=ledger) == whole
    assert len(read) == 13


def test_a_file_of_another_verification_is_refused_by_name_and_kept(clean, stores, tmp_path):
    other = stores.build(str(tmp_path / "other"), stores.plan(rows=9))
    damage(other, 1, "codes")
    path = tmp_path / "verified.jsonl"
    verify_store(other, resume=str(path))
    for content in (path.read_bytes(), b"[1]\n", b"text\n", b'{"a": 1}\n[0, 1, 2]\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"verified\.jsonl was not left by this verification"):
            verify_store(clean, resume=str(path))
        assert path.read_bytes() == content
    path.write_bytes(b"")
    assert verify_store(clean, resume=str(path)).findings == ()


DRIVER = """
import os, sys, time
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.verification import verify_store

def wait(codes):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    verify_store(open_store(sys.argv[1]), wait, processes=2)
"""


@pytest.mark.long
def test_processes_end_with_the_one_that_started_them_even_if_it_is_killed(clean, tmp_path, python, repository):
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [*python, str(tmp_path / "driver.py"), clean.url]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    children = {int(driver.stdout.readline()) for _ in range(2)}
    assert len(children - {driver.pid}) == 2
    driver.kill()
    driver.wait()
    began = time.monotonic()
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() - began < 10, "a process is left"
        time.sleep(0.05)
