"""SIGKILL of the driver, a worker or the Ray node at random moments of the tokenizing job."""

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from PIL import Image

KILLS = 30
RESOURCES = "{cpus: 4, object_store_mb: 128, actors: 2, actor_cpus: 0.5}"


def commits(store: Path) -> int:
    """Number of shards committed so far."""
    return len(list(store.glob("commits/*.json")))


class Job:
    """`rdpm tokenize` as a process, with everything that it starts."""

    def __init__(self, command: list[str], folder: Path, store: Path) -> None:
        self._store, self._before = store, commits(store)
        self._log = open(folder / "job.log", "ab")  # noqa: SIM115, it is closed with the job
        self._driver = subprocess.Popen(command, cwd=folder, stdout=self._log, stderr=self._log)
        self._seen: dict[int, psutil.Process] = {}

    def processes(self, name: str) -> list[psutil.Process]:
        """The live descendants of the driver whose command name starts with `name`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._driver.pid).children(recursive=True):
                self._seen[process.pid] = process
        alive = []
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline() and os.path.basename(process.cmdline()[0]).startswith(name):
                    alive.append(process)
        return alive

    def kill_one(self, what: str, draw: random.Random) -> bool:
        """Kill one process of this kind, once this start of the job has committed a shard. Returns whether it did."""
        if commits(self._store) == self._before:  # otherwise few starts would reach their first shard
            return False
        workers, nodes = self.processes("ray::"), self.processes("raylet")
        victims = {"worker": workers, "node": nodes, "driver": [self._driver]}[what]
        if not victims:  # the job is ending, and its processes are gone
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            draw.choice(victims).send_signal(signal.SIGKILL)
        return True

    def ended(self, seconds: float) -> bool:
        """Whether the driver ends within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._driver.wait(seconds)
        return self.code is not None

    @property
    def code(self) -> int | None:
        """The driver's exit code."""
        return self._driver.returncode

    def close(self) -> None:
        """Kill every process of the job that is left."""
        self._driver.kill()
        self._driver.wait()
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._seen.values()), timeout=30)
        self._log.close()


@pytest.fixture
def images(tmp_path: Path, digits) -> str:
    """1,000 real digits in class folders."""
    for number, (pixels, label) in enumerate(zip(digits[0][:1000], digits[1][:1000], strict=True)):
        path = tmp_path / "images" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(tmp_path / "images")


@pytest.mark.long
def test_a_job_killed_many_times_writes_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, images, exports, tree, python, repository
) -> None:
    exports.tokenizer(str(tmp_path / "tokenizer"))

    def job(store: str) -> Job:
        settings = [
            f"images={images}",
            f"tokenizer={tmp_path}/tokenizer",
            f"out={tmp_path}/{store}",
            "views=[center,flip]",
        ]
        sizes = ["shard_rows=4", "chunk_rows=4", "batch=4", f"resources={RESOURCES}"]
        code = f"import sys; sys.path.insert(0, {str(repository)!r}); from rdpm.jobs.cli import main; sys.exit(main())"
        return Job([*python, "-c", code, "tokenize", *settings, *sizes], tmp_path, tmp_path / store)

    draw = random.Random(KILLS)
    kinds = ["worker", "driver", "node", *draw.choices(["worker", "driver", "node"], [0.7, 0.15, 0.15], k=KILLS - 3)]
    store, running = 0, job("store-0")
    try:
        while kinds:
            if not running.ended(draw.uniform(0.1, 1.5)):
                if not running.kill_one(kinds[0], draw):
                    continue
                if kinds.pop(0) == "worker" or not running.ended(20):
                    continue
            running.close()
            if running.code == 0:  # the store is finished before all kills: continue with another one of the same plan
                store += 1
            running = job(f"store-{store}")
        for _ in range(4):  # a shard that was killed three times in one start ends the job, so run it again
            assert running.ended(120)
            if running.code == 0:
                break
            running.close()
            running = job(f"store-{store}")
        assert running.code == 0, (tmp_path / "job.log").read_text()[-2000:]
    finally:
        running.close()
    clean = job("clean")
    assert clean.ended(120)
    clean.close()
    for number in range(store + 1):
        assert tree(tmp_path / f"store-{number}") == tree(tmp_path / "clean")
