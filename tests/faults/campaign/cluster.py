"""Tokenizing and sampling on a Ray cluster of two nodes, onto S3 behind the proxy, while processes die and stall."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.campaign.tally import NETWORK, Tally
from tests.faults.processes import Family
from tests.faults.proxy import Proxy
from tests.faults.ray_nodes import RayCluster

KINDS = ("worker killed", "worker stopped", "node killed", "driver killed")
SHARES = {"throttle": 0.02, "conflict": 0.25, "reset": 0.02, "lost reply": 0.02, "cut reply": 0.02}
_CPUS = 2  # of each node
_LONGEST = 240  # seconds that an undisturbed job may take
_STARTS = 60  # of one job, at most


@dataclass(frozen=True)
class Jobs:
    """The jobs of this part: each is a command without its `out`."""

    commands: dict[str, list[str]]
    """Name -> arguments of `rdpm`."""
    root: str
    """Folder or URL under which they write."""
    repository: Path
    """Where to run them."""
    tree: Callable[[str], dict[str, bytes]]
    """Reads everything under an output."""


class Part:
    """This part of a campaign."""

    def __init__(self, jobs: Jobs, cluster: RayCluster, proxy: Proxy, tally: Tally, logs: Path) -> None:
        self.jobs, self.cluster, self.proxy, self.tally = jobs, cluster, proxy, tally
        self.draw = random.Random(f"{tally.seed} cluster")
        self.driver = Family(logs / "drivers.log")
        self.turn = 0

    def run(self) -> None:
        """Run jobs until every fault of this part is thrown."""
        for _ in range(2):
            self.cluster.add(_CPUS)
        clean = {name: self._undisturbed(name) for name in self.jobs.commands}
        while self.tally.wants(*KINDS, *NETWORK):
            name = list(clean)[self.turn % len(clean)]
            out = f"{self.jobs.root}/{name}-{self.turn}"
            self.proxy.shares = {kind: share for kind, share in SHARES.items() if self.tally.wants(kind)}
            self._through(name, out)
            self.proxy.shares = {}
            self.tally.compare(out, self.jobs.tree(out), clean[name])
            self.turn += 1

    def _undisturbed(self, name: str) -> dict[str, bytes]:
        out = f"{self.jobs.root}/{name}-undisturbed"
        self.proxy.shares = {}
        job = self._start(name, out)
        assert job.wait(_LONGEST) == 0, self.driver.printed()
        return self.jobs.tree(out)

    def _start(self, name: str, out: str) -> subprocess.Popen:
        where = [f"out={out}", f"resources.address={self.cluster.address}"]
        command = [sys.executable, "-m", "rdpm", *self.jobs.commands[name], *where]
        return self.driver.start(command, self.cluster.environment, self.jobs.repository)

    def _through(self, name: str, out: str) -> None:
        """One output, with faults, to its end."""
        for _ in range(_STARTS):
            job, commits = self._start(name, out), self.proxy.commits
            while job.poll() is None:
                time.sleep(self.draw.uniform(0.2, 2.0))
                if self.proxy.commits > commits and self.tally.wants(*KINDS):  # every start commits something
                    self._disturb(job)
                self._count()
            if job.returncode == 0:
                return
            if job.returncode != -signal.SIGKILL:
                said = self.driver.printed(600)
                assert "Traceback" not in said, said
                self.tally.refusals[name] += 1
        raise AssertionError(f"{out} was not finished in {_STARTS} starts: {self.driver.printed()}")

    def _disturb(self, job: subprocess.Popen) -> None:
        kind = self.draw.choice([kind for kind in KINDS if self.tally.wants(kind)])
        if kind == "driver killed":
            job.kill()
            job.wait()
        elif kind == "node killed":
            self.cluster.nodes.pop().close()
            self.cluster.add(_CPUS)
        else:
            workers = [process for node in self.cluster.nodes for process in node.members("ray::Map")]
            if not workers:
                return
            victim = self.draw.choice(workers)
            try:
                if kind == "worker killed":
                    victim.kill()
                else:
                    victim.suspend()
                    time.sleep(self.draw.uniform(0.1, 0.5))
                    victim.resume()
            except psutil.NoSuchProcess:  # it ended meanwhile
                return
        self.tally.thrown[kind] += 1

    def _count(self) -> None:
        for kind in NETWORK:
            self.tally.thrown[kind] = self.proxy.counts[kind]
        self.proxy.shares = {kind: share for kind, share in SHARES.items() if self.tally.wants(kind)}
