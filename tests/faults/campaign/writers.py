"""Every writer, in this process: on disks that are full or read-only, over torn objects, killed, and started twice."""

import io
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation.lease import held
from rdpm.storage_schemas.manifest import staged_name
from tests.faults.campaign.tally import Tally, refusal
from tests.faults.mounts import Disk, small_disk

WORDS = {"disk full": ("is full", "No space left on device"), "disk read-only": ("read-only", "Read-only file system")}
KINDS = (*WORDS, "torn object", "second start", "writer killed")
_PLENTY = 64 << 10  # KiB


@dataclass(frozen=True)
class Writer:
    """Something that writes into a folder, and goes on where an earlier call of it failed."""

    name: str
    """Its name in the table."""
    write: Callable[[Path], object]
    """Write everything into this folder. Raises what the job would end with."""
    result: Callable[[Path], object]
    """What must not depend on faults."""
    weight: int
    """How often it is drawn, beside the others."""


@dataclass(frozen=True)
class Stores:
    """A token store that is written in this process, or by a process that can be killed."""

    build: Callable[[str], object]
    """Write and publish it into a folder."""
    objects: tuple[tuple[str, int, str], ...]
    """(key, shard, sha256) of every object of it."""
    command: Callable[[Path], list[str]]
    """The command of a process that writes it into a folder."""
    tree: Callable[[Path], dict[str, bytes]]
    """Reads it."""


class Part:
    """This part of a campaign. job: arguments of `rdpm` for a job, without its `out`."""

    def __init__(
        self, writers: list[Writer], stores: Stores, job: list[str], repository: Path, tally: Tally, folder: Path
    ) -> None:
        self.writers, self.stores, self.job = writers, stores, job
        self.repository, self.tally, self.folder = repository, tally, folder
        self.draw = random.Random(f"{tally.seed} writers")
        self.turn = 0

    def run(self) -> None:
        """Throw every fault of this part."""
        self.clean, self.sizes = {}, {}
        for writer in self.writers:
            out = self.folder / f"undisturbed-{writer.name}"
            writer.write(out)
            self.clean[writer.name] = writer.result(out)
            self.sizes[writer.name] = sum(-(-path.stat().st_size // 4096) * 4 for path in out.rglob("*"))
        self.store = self.folder / "undisturbed-store"
        self.stores.build(str(self.store))
        faults = {**dict.fromkeys(WORDS, self._on_disk), "torn object": self._torn, "second start": self._twice}
        for kind, throw in {**faults, "writer killed": self._killed}.items():
            while self.tally.wants(kind):
                self.turn += 1
                self.tally.thrown[kind] += throw(kind)

    def _on_disk(self, kind: str) -> bool:
        (writer,) = self.draw.choices(self.writers, [writer.weight for writer in self.writers])
        with small_disk(self.folder / f"disk-{self.turn}", _PLENTY) as disk:
            out = disk.folder / "out"
            self._fill(kind, disk, writer)
            said = refusal(lambda: writer.write(out))
            if not said and kind == "disk full":
                return False  # there was room enough
            assert any(words in said for words in WORDS[kind]), f"{writer.name}, {kind}: it says {said!r}"
            self.tally.refusals[kind] += 1
            disk.resize(_PLENTY)
            writer.write(out)
            self.tally.compare(f"{writer.name}, {kind}", writer.result(out), self.clean[writer.name])
        return True

    def _fill(self, kind: str, disk: Disk, writer: Writer) -> None:
        if kind == "disk full":
            disk.resize(self.draw.randrange(8, max(12, self.sizes[writer.name]), 4))
            return
        if self.draw.random() < 0.5:  # it has begun before the disk became read-only
            disk.resize(max(8, self.sizes[writer.name] // 2))
            refusal(lambda: writer.write(disk.folder / "out"))
            disk.resize(_PLENTY)
        disk.make_read_only()

    def _torn(self, kind: str) -> bool:
        """What no writer of ours leaves: half an object under its key, or under its staged name."""
        out = self.folder / f"torn-{self.turn}"
        key, shard, sha256 = self.draw.choice(self.stores.objects)
        data = (self.store / key).read_bytes()
        torn = out / self.draw.choice([key, staged_name(shard, sha256)])
        torn.parent.mkdir(parents=True)
        torn.write_bytes(data[: self.draw.randrange(len(data))])
        self.stores.build(str(out))
        self.tally.compare(f"{torn}, {kind}", self.stores.tree(out), self.stores.tree(self.store))
        return True

    def _twice(self, kind: str) -> bool:
        out = str(self.folder / f"twice-{self.turn}")
        with ExitStack() as stack:
            stack.enter_context(held(out, "another job"))
            said = stack.enter_context(redirect_stderr(io.StringIO()))
            assert main([*self.job, f"out={out}"]) == 2
        assert f"is being written by another job on {os.uname().nodename}, process {os.getpid()}" in said.getvalue()
        assert not Path(out).exists()
        self.tally.refusals[kind] += 1
        return True

    def _killed(self, kind: str) -> bool:
        """Three kills of one store, one after the other; then it is finished."""
        out = self.folder / f"killed-{self.tally.thrown[kind] // 3}"
        killed = self._run(out, self.draw.uniform(0.0, 0.1))
        if not killed or self.tally.thrown[kind] % 3 == 2:
            assert not self._run(out, None)
            self.tally.compare(f"{out}, {kind}", self.stores.tree(out), self.stores.tree(self.store))
        return killed

    def _run(self, out: Path, seconds: float | None) -> bool:
        """Write the store in a process that is killed so many seconds after it began; whether it was killed."""
        command = self.stores.command(out)
        process = subprocess.Popen(command, cwd=self.repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it begins to write
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
        return process.returncode != 0
