"""Training on two ranks from a store on S3 behind the proxy, while ranks and their launcher are killed."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.campaign.tally import Tally
from tests.faults.processes import Family
from tests.pipeline.training.trainings import arguments, log_lines, worst

STEPS = 40
_OPTIONS = [f"steps={STEPS}", "checkpoint_every=1", "engine.zero_stage=2"]
KINDS = ("rank killed", "training killed")
_RESTARTS = 3  # on the ranks that are left, in one start
_LONGEST = 240  # seconds that one start may take


class Part:
    """This part of a campaign. inputs: a folder as in `trainings.arguments`."""

    def __init__(self, inputs: Path, repository: Path, tally: Tally, folder: Path) -> None:
        self.inputs, self.repository, self.tally, self.folder = inputs, repository, tally, folder
        self.draw = random.Random(f"{tally.seed} ranks")
        self.family = Family(folder / "ranks.log")
        self.turn = 0

    def run(self) -> None:
        """Train until every fault of this part is thrown; every third training goes on with the rank that is left."""
        undisturbed = self.folder / "undisturbed"
        assert self._start(undisturbed, 2, 0).wait(_LONGEST) == 0, self.family.printed()
        while self.tally.wants(*KINDS):
            out = self.folder / f"training-{self.turn}"
            fewer = self.turn % 3 == 2
            self._through(out, fewer)
            if fewer:
                off = worst(log_lines(out), log_lines(undisturbed), "loss")
                self.tally.compare(f"{out} on fewer ranks: losses within 1e-4", off < 1e-4, True)
            else:
                self.tally.compare(str(out), _result(out), _result(undisturbed))
            self.turn += 1

    def _start(self, out: Path, ranks: int, restarts: int) -> subprocess.Popen:
        shutil.rmtree(self.inputs / "cache", ignore_errors=True)  # so that every start reads the store
        options = [*_OPTIONS, f"ranks={ranks}", f"micro_batch={8 // ranks}", f"max_restarts={restarts}"]
        command = [sys.executable, "-m", "rdpm", "train-generator", *arguments("generator", self.inputs, out, *options)]
        return self.family.start(command, {"CUDA_VISIBLE_DEVICES": ""}, self.repository)

    def _through(self, out: Path, fewer: bool) -> None:
        """One training, with kills, to its end."""
        ranks = 2
        for _ in range(20):
            job = self._start(out, ranks, _RESTARTS if fewer else 0)
            goal = _steps(out) + self.draw.randint(1, 8)
            while job.poll() is None:
                time.sleep(0.02)
                if _steps(out) >= goal and self.tally.wants(*KINDS):
                    self._kill(job)
                    goal = _steps(out) + self.draw.randint(1, 8)
            if job.returncode == 0:
                return
            self.family.close()  # ranks that outlived their launcher would be a fault of their own
            if job.returncode != -signal.SIGKILL:
                self.tally.refusals["train-generator"] += 1
            ranks = self.draw.choice((1, 2)) if fewer else 2
        raise AssertionError(f"{out} was not finished in 20 starts: {self.family.printed()}")

    def _kill(self, job: subprocess.Popen) -> None:
        kind = self.draw.choice([kind for kind in KINDS if self.tally.wants(kind)])
        if kind == "training killed":
            job.kill()
            job.wait()
        else:
            ranks = [process for process in self.family.members("rdpm train-generator") if process.pid != job.pid]
            if not ranks:
                return
            self.draw.choice(ranks).kill()
        self.tally.thrown[kind] += 1


def _steps(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _result(out: Path) -> dict[str, Any]:
    export = {name: (out / name).read_bytes() for name in ("model.safetensors", "card.json")}
    return {**export, "log": log_lines(out)}
