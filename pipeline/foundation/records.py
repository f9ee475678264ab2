"""The machine-readable record that every job leaves beside its output: `<out>.record.json`.

A job writes it when it starts and replaces it when it ends. A job that finds its own finished record does nothing. A
job that finds a record with other settings refuses to run, so no output is ever overwritten or mixed. The record holds
every setting, but only what decides the result is compared: `identity_of` the config, and the inputs.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, saved_identity, to_dict
from rdpm.pipeline.foundation.environment import environment
from rdpm.pipeline.foundation.lease import Lease, held
from rdpm.storage_schemas.canonical import canonical_json

RECORD_VERSION = 2
_SUFFIX = ".record.json"
_TYPES = {"job": str, "settings": dict, "finished": bool, "seconds": int | float, "result": dict}
_SINCE_VERSION_2 = {"inputs": dict, "environment": dict}


@dataclass
class JobRecord:
    """One run of one job: its settings and inputs and, once it is finished, its result."""

    job: str
    """Name of the job."""
    out: str
    """Path or URL of the job's output."""
    settings: dict[str, Any]
    """The value of every field of the job's config."""
    inputs: dict[str, Any]
    """Digests of the inputs, and other facts that decide the result but are no settings."""
    finished: bool = False
    """Whether the output is complete."""
    seconds: float = 0.0
    """Seconds that the last start of the job took, the one that finished it."""
    result: dict[str, Any] = field(default_factory=dict)
    """Facts about the output, by name."""
    environment: dict[str, Any] = field(default_factory=environment)
    """Where the job ran; see `environment`."""
    version: int = RECORD_VERSION
    """Version of the record's form."""
    started: float = field(default_factory=time.monotonic, compare=False, repr=False)
    """Monotonic clock when this process started the job; not written."""
    lease: Lease | None = field(default=None, compare=False, repr=False)
    """Allows this process to write `out`; None in a finished record, and on all ranks but the first. Not written."""

    def to_json(self) -> dict[str, Any]:
        """The record as it is written to disk."""
        return {
            "version": self.version,
            "job": self.job,
            "settings": self.settings,
            "inputs": self.inputs,
            "finished": self.finished,
            "seconds": round(self.seconds, 3),
            "result": self.result,
            "environment": self.environment,
        }

    def finish(self, result: dict[str, Any]) -> None:
        """Write the finished record, with its result and the seconds since this start. Raises LeaseLost."""
        self.seconds = time.monotonic() - self.started
        self.result, self.finished = result, True
        with files.atomic_file(self.out + _SUFFIX) as file:
            file.write(canonical_json(self.to_json()))
            if self.lease is not None:
                self.lease.check()


@contextlib.contextmanager
def begin(
    job: str,
    config: Any,
    inputs: Callable[[], dict[str, Any]],
    makes: tuple[str, ...] = (),
    first: bool = True,
    grows: str = "",
) -> Iterator[JobRecord]:
    """Start or continue the job that makes `config.out`, and hold the lease of `out` for the length of the block.

    inputs: makes the JSON data that decides the result, besides the config; called under the lease if there is work to
    do. makes: files under `out`; if one is missing, the job is not finished, whatever the record says. first: whether
    this process writes for all ranks; the others neither take the lease nor write the record. grows: a field of the
    config that may change from start to start: the job then goes on with the new value, and each of its parts has a
    record of its own, which guards it.
    Yields the record; its `finished` tells whether the job is done, and then it has no lease. Raises ValueError when
    `out` was started or finished with other settings or inputs, when `out` holds something without a record, and when
    another start holds the lease.
    """
    out = config.out.rstrip("/")
    if not out:
        raise ValueError(f"out is {config.out!r}; name a file or folder below it")
    record = JobRecord(job, out, to_dict(config), {})
    old = read_record(out)
    if not first or (old and old.finished):  # then nobody else may be at work
        record.inputs = inputs()
        _compare(record, config, makes, grows)
        if record.finished or not first:
            yield record
            return
    with held(out, job) as lease:
        record.inputs = record.inputs or inputs()
        if _compare(record, config, makes, grows):
            files.write_json(out + _SUFFIX, record.to_json())
        record.lease = None if record.finished else lease
        yield record


def refuse_folder(out: str) -> None:
    """Raises ValueError where a job that writes one file is told to write a folder."""
    if files.exists(out) and not files.is_file(out):
        raise ValueError(f"out {out!r} is a folder; give the path of the file to write")


def _compare(new: JobRecord, config: Any, makes: tuple[str, ...], grows: str) -> bool:
    """Compare with the record on disk, and if that is finished, finish the new one likewise.

    Returns whether the record on disk must be written or replaced. Raises ValueError as `begin`.
    """
    out, path = new.out, new.out + _SUFFIX
    old = read_record(out)
    if old is None:
        if _occupied(out) and not files.exists(path):
            raise ValueError(
                f"{out} already holds something that no job has recorded; choose another out, or delete it"
            )
        return True
    change = _change(old, new, config, grows)
    there = files.exists(out)
    if change and there:
        raise ValueError(f"{out} was made with other settings ({change}); choose another out, or delete it and {path}")
    if change or old.settings.get(grows) != new.settings.get(grows):  # nothing is there, or parts of it
        return True
    new.finished = old.finished and there and all(files.exists(files.join(out, name)) for name in makes)
    if new.finished:
        new.seconds, new.result, new.environment = old.seconds, old.result, old.environment
    return False


def read_record(out: str) -> JobRecord | None:
    """The record beside `out`, of any version, or None when there is none. Raises ValueError for a damaged record."""
    out = out.rstrip("/")
    path = out + _SUFFIX
    if not files.exists(path):
        return None
    data = files.read_json(path)
    version = data.get("version", 1) if isinstance(data, dict) else None
    if type(version) is int and version > RECORD_VERSION:
        raise ValueError(f"{path} has version {version}, and this release knows 1 to {RECORD_VERSION}; update rdpm")
    wanted = _TYPES if version == 1 else _TYPES | _SINCE_VERSION_2
    if version not in (1, 2) or not all(isinstance(data.get(name), kind) for name, kind in wanted.items()):
        raise ValueError(f"{path} is no job record; delete it and {out} to start again")
    facts = {name: data[name] for name in wanted}
    if version == 1:  # inputs are among the settings, and there is no environment
        facts |= {"inputs": data["settings"], "environment": {}}
    return JobRecord(out=out, version=version, **facts)


def _change(old: JobRecord, new: JobRecord, config: Any, grows: str) -> str | None:
    """The first difference in what decides the result, besides the field that grows, as "key old -> new", or None."""
    if old.job != new.job:
        return f"job {old.job} -> {new.job}"
    asked = identity_of(config)
    made = saved_identity(type(config), old.settings) | {name: asked[name] for name in asked if name == grows}
    change = first_change(made, asked)
    inputs = old.inputs
    if old.version == 1:
        known = {*(field.name for field in dataclasses.fields(config)), *getattr(config, "RENAMED", {})}
        inputs = {name: value for name, value in inputs.items() if name not in known}
    return change or first_change(inputs, new.inputs)


def _occupied(out: str) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return files.exists(out) and (bool(files.list_names(out) or files.list_folders(out)) or files.is_file(out))


def first_change(old: Any, new: Any, name: str = "") -> str | None:
    """The first difference between two trees of JSON data, as "key old -> new"; None where they are equal."""
    if _objects(old) and _objects(new) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            change = first_change(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if change:
                return change
        return None
    return None if old == new else f"{name} {old!r} -> {new!r}"


def _objects(value: Any) -> bool:
    """Whether this is a list of JSON objects."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
