"""The lease of an output: at most one process at a time may write it, on any number of machines.

    OUT.lease/00000003.json   a `Holder`. Who puts the next number, which must be absent, holds the lease.

The holder renews: it rewrites its own file, and no other, every `RENEW` seconds. A start that finds a lease takes the
next number if the last one is released, if its process is gone from this machine, or if it has run out. No two clocks
are compared for that. On the holder's machine, its own clock tells, which all processes share. Elsewhere, a start
watches: it gives up once the file changes, because then the holder lives, and takes over after a whole period without
a change. A holder counts a period from before it wrote, so it gives up first.

What this asks of storage is that a file is put only if it is absent, and that a reader then sees it: link(2) on local
disks and NFS, If-None-Match on S3. NFS may show new names late to `check`, but a file is looked up anew whenever it is
opened, so watching works, and a holder that was cut off knows by its clock that its time is over.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.processes import is_gone, machine, started
from rdpm.pipeline.foundation.progress import say
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.parsing import parse

SECONDS, RENEW = 60.0, 15.0
_WAIT, _LENT = "RDPM_WAIT", "RDPM_LEASE"  # in the environment, so that the processes of a job have them too
_MARGIN = 1.1  # how much longer than the holder others believe in a lease, for what is on its way when it runs out
_POLL = 60  # looks per period

_given_back: set[str] = set()  # owners that this process has released, also where a full disk took no mark of it


class LeaseLost(ValueError):
    """This process may write no more, because its lease has run out or another start has taken it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and for how long."""

    owner: str
    """A random id of this one start."""
    job: str
    """Name of the job."""
    host: str
    """Name of the machine."""
    machine: str
    """The `machine` that the process runs on, whose processes also share one clock; "" if unknown."""
    pid: int
    """The process."""
    process: str
    """When it `started`."""
    since: float
    """When the lease was taken, in seconds since 1970. For people, like `until`; nothing is decided by it."""
    until: float
    """When the lease runs out unless it is renewed, in seconds since 1970."""
    renewed: float
    """The machine's `_clock` when it was renewed."""
    seconds: float
    """Length of a period."""
    released: bool = False
    """Whether the holder has given it back."""

    def __str__(self) -> str:
        return f"{self.job} on {self.host}, process {self.pid}, since {_time(self.since)}"


class Lease:
    """A lease that this process holds and renews, or that a process which started this one holds for it."""

    def __init__(self, out: str, number: int, holder: Holder, every: float | None) -> None:
        """every: seconds between renewals; None if another process renews."""
        self.out, self.number = out, number
        """The output, and the number of the lease, which is greater than that of every earlier one."""
        self.lost = False
        """Whether a renewal has found the lease lost; `check` finds out now."""
        self._holder, self._every = holder, every
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {out}", daemon=True)
        if every is not None:
            self._thread.start()

    def check(self) -> None:
        """Raise LeaseLost unless this process may write now. Call it right before anything is published or removed.

        It takes one listing of a short folder, and one small read in a process that did not take the lease itself.
        """
        if (_numbers(self.out) or [0])[-1] > self.number:
            self._lose("another start has taken it over")
        if self._every is None:
            self._holder = _read(self.out, self.number) or replace(self._holder, released=True)
        if self._holder.released or _ran_out(self._holder, 1.0):
            self._lose(f"this one was stopped, or cut off from it, for more than {self._holder.seconds:g} s")

    def _lose(self, why: str) -> None:
        self.lost = True
        raise LeaseLost(f"the lease of {self.out} is lost ({why}), so nothing more was written; run it again")

    def _renew(self) -> None:
        while not self._stopping.wait(self._every):
            try:
                self.check()
                self._write(released=False)
            except LeaseLost:
                return
            except Exception:  # of the storage; tried again while the lease lasts
                continue

    def _write(self, released: bool) -> None:
        until = time.time() + self._holder.seconds
        holder = replace(self._holder, until=until, renewed=_clock(), released=released)
        files.write_json(_path(self.out, self.number), asdict(holder))
        if not _ran_out(self._holder, 1.0):  # else others may have looked before this was written
            self._holder = holder

    def release(self) -> None:
        """Give the lease back, unless it is lost or was taken by another process. `check` then raises LeaseLost."""
        if self._every is None:
            return
        self._stopping.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # without the mark, it runs out
            self.check()
            self._write(released=True)
        self._holder = replace(self._holder, released=True)
        _given_back.add(self._holder.owner)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Processes that are started in this block write `out` under this lease instead of taking one."""
        os.environ[_LENT] = f"{self.number} {self.out}"
        try:
            yield
        finally:
            del os.environ[_LENT]


@contextlib.contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """In this block, and in the processes that it starts, a lease that another start holds is waited for so long."""
    former = os.environ.get(_WAIT)
    os.environ[_WAIT] = str(seconds)
    try:
        yield
    finally:
        if former is None:
            del os.environ[_WAIT]
        else:
            os.environ[_WAIT] = former


@contextlib.contextmanager
def held(out: str, job: str, *, seconds: float = SECONDS, every: float = RENEW) -> Iterator[Lease]:
    """Hold the lease of an output for the length of the block, or use the one that was lent to this process.

    seconds: a lease lasts that long without a renewal. every: seconds between renewals. Raises ValueError that names
    the holder if another start holds it; see `waiting`.
    """
    number, _, name = os.environ.get(_LENT, "").partition(" ")
    holder = _read(out, int(number)) if name == out else None
    lease = Lease(out, int(number), holder, None) if holder else _take(out, job, seconds, every)
    try:
        yield lease
    finally:
        lease.release()


def at_work(out: str) -> Holder | None:
    """Who holds the lease of an output, as far as one look can tell; None if nobody does. For people, not to decide."""
    number = (_numbers(out) or [0])[-1]
    holder = _read(out, number) if number else None
    if holder is None or _is_free(holder, 0.0):
        return None
    here = holder.machine == machine()
    return holder if here or holder.until > time.time() else None


def _take(out: str, job: str, seconds: float, every: float) -> Lease:
    files.require_create(_folder(out))
    start, wait = time.monotonic(), float(os.environ.get(_WAIT, "0"))
    watched: tuple[int, Holder | None] | None = None  # the newest lease, unchanged since `watched_since`
    watched_since, changed = start, False
    while True:
        number = (_numbers(out) or [0])[-1]
        holder = _read(out, number) if number else None
        now = time.monotonic()
        if watched != (number, holder):
            changed = watched is not None
            watched, watched_since = (number, holder), now
        if holder is None or _is_free(holder, now - watched_since):
            lease = _claim(out, number + 1, job, seconds, every)
            if lease is not None:
                return lease
        elif (changed or holder.machine == machine()) and now - start >= wait:
            raise ValueError(
                f"{out} is being written by {holder}, whose lease lasts until {_time(holder.until)} and is renewed "
                "while it runs; let it end, or wait for that with --wait[=SECONDS]"
            )
        elif watched_since == now and not changed:
            say(f"{job}: {out} is being written by {holder}; waiting for it")
        time.sleep(seconds / _POLL)


def _is_free(holder: Holder, unchanged: float) -> bool:
    """Whether another may take the lease of this holder, which has not changed for so many seconds."""
    if holder.released or holder.owner in _given_back:
        return True
    if holder.machine and holder.machine == machine():
        return is_gone(holder.pid, holder.process) or _ran_out(holder, _MARGIN)
    return unchanged > holder.seconds * _MARGIN


def _ran_out(holder: Holder, margin: float) -> bool:
    return _clock() - holder.renewed > holder.seconds * margin


def _claim(out: str, number: int, job: str, seconds: float, every: float) -> Lease | None:
    """Take the lease of this number; None if another start was faster."""
    here, now = machine(), time.time()
    holder = Holder(
        owner=uuid.uuid4().hex,
        job=job,
        host=socket.gethostname(),
        machine=here,
        pid=os.getpid(),
        process=started(os.getpid()) if here else "",
        since=now,
        until=now + seconds,
        renewed=_clock(),
        seconds=seconds,
    )
    path = _path(out, number)
    if not files.create_bytes(path, canonical_json(asdict(holder))):
        winner = _read(out, number)
        if winner is None or winner.owner != holder.owner:  # it is this start where a lost reply was asked for again
            return None
    others = [other for other in _numbers(out) if other != number]
    if any(other > number for other in others):  # this process was stopped for so long that `number` came and went
        files.remove(path)
        return None
    for old in others:  # a number goes only when there is a higher one
        files.remove(_path(out, old))
    return Lease(out, number, holder, every)


def _folder(out: str) -> str:
    return f"{out}.lease"


def _path(out: str, number: int) -> str:
    return files.join(_folder(out), f"{number:08d}.json")


def _numbers(out: str) -> list[int]:
    """The numbers of the leases that are on disk, ascending."""
    names = (name.removesuffix(".json") for name in files.list_names(_folder(out)))
    return sorted(int(name) for name in names if name.isdecimal())


def _read(out: str, number: int) -> Holder | None:
    """Who took a number; None if the file is gone. Raises ValueError for a file that is no lease."""
    path = _path(out, number)
    try:
        return parse(Holder, files.read_json(path), path)
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"{path} is no lease; if no job writes {out}, delete it") from None


def _clock() -> float:
    """Seconds since the machine started, also those of its sleep where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
