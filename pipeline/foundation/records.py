"""The machine-readable record that every job leaves beside what it made: `<out>.record.json`.

It is written when a job starts and replaced when it ends. A job that finds its own finished record does nothing. One
that finds a record of other settings refuses, so nothing is ever overwritten or mixed. A record holds every setting;
compared is only what decides the result (`identity_of` the config) and what went in (`inputs`).
"""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, saved_identity, to_dict
from rdpm.pipeline.foundation.environment import environment
from rdpm.storage_schemas.canonical import canonical_json

RECORD_VERSION = 2
_SUFFIX = ".record.json"
_KEYS = {"job", "settings", "finished", "seconds", "result"}


@dataclass
class JobRecord:
    """One run of one job: what it was asked for, and, once it is finished, what came of it."""

    job: str
    """Name of the job."""
    out: str
    """What the job makes."""
    settings: dict[str, Any]
    """Every value of the job's config."""
    inputs: dict[str, Any]
    """Digests of what went in, and other facts that decide the result but are no settings."""
    finished: bool = False
    """Whether the result is there."""
    seconds: float = 0.0
    """Seconds of the start that finished."""
    result: dict[str, Any] = field(default_factory=dict)
    """What came out, by name."""
    environment: dict[str, Any] = field(default_factory=environment)
    """Where it ran; see `environment`."""
    version: int = RECORD_VERSION
    """Version of the record."""
    _started: float = field(default_factory=time.monotonic)

    def to_json(self) -> dict[str, Any]:
        """The record as it is written."""
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
        """Publish the result, with the seconds since this start of the job."""
        self.seconds = time.monotonic() - self._started
        self.result, self.finished = result, True
        files.write_json(self.out + _SUFFIX, self.to_json())


def begin(job: str, config: Any, inputs: dict[str, Any], makes: tuple[str, ...] = ()) -> JobRecord:
    """Start or continue the job that makes `config.out`.

    inputs: JSON data that decides the result beside the config. makes: files under `out` without which the job is not
    finished, whatever the record says. Returns the record, whose `finished` says whether anything is left to do. Raises
    ValueError when `out` was made, or begun, with other settings or inputs, or holds what no job of ours made.
    """
    out = config.out.rstrip("/")
    record = JobRecord(job, out, to_dict(config), inputs)
    path = out + _SUFFIX
    if not files.exists(path) and _occupied(out):
        raise ValueError(f"{out} already holds something that this job did not make; choose another out, or delete it")
    if files.create_bytes(path, canonical_json(record.to_json())):
        return record
    old = read_record(out)
    assert old is not None
    change = _change(old, record, config)
    if change and not files.exists(out):  # an earlier start with other settings failed before it made anything
        files.write_json(path, record.to_json())
        return record
    if change:
        raise ValueError(f"{out} was made with other settings ({change}); choose another out, or delete it and {path}")
    record.finished = old.finished and files.exists(out) and all(files.exists(files.join(out, name)) for name in makes)
    record.seconds, record.result = old.seconds, old.result
    return record


def read_record(out: str) -> JobRecord | None:
    """The record beside `out`, of any version, or None when there is none. Raises ValueError when it is damaged."""
    out = out.rstrip("/")
    path = out + _SUFFIX
    if not files.exists(path):
        return None
    data = files.read_json(path)
    if not isinstance(data, dict) or not data.keys() >= _KEYS:
        raise ValueError(f"{path} is no job record; delete it and {out} to start again")
    version = data.get("version", 1)
    if version > RECORD_VERSION:
        raise ValueError(f"{path} has version {version}, this release knows 1 to {RECORD_VERSION}; update rdpm")
    facts = {name: data[name] for name in _KEYS}
    inputs = data["settings"] if version == 1 else data["inputs"]  # version 1 has its inputs among the settings
    return JobRecord(out=out, inputs=inputs, environment=data.get("environment", {}), version=version, **facts)


def _change(old: JobRecord, new: JobRecord, config: Any) -> str | None:
    """The first place where two records differ in what decides the result, as "key old -> new"."""
    if old.job != new.job:
        return f"job {old.job} -> {new.job}"
    change = first_change(saved_identity(type(config), old.settings), identity_of(config))
    inputs = old.inputs
    if old.version == 1:
        settings = {*(field.name for field in dataclasses.fields(config)), *getattr(config, "RENAMED", {})}
        inputs = {name: value for name, value in inputs.items() if name not in settings}
    return change or first_change(inputs, new.inputs)


def _occupied(out: str) -> bool:
    """Whether there is a file, or a folder with anything in it."""
    return files.exists(out) and (bool(files.list_names(out) or files.list_folders(out)) or files.is_file(out))


def first_change(old: Any, new: Any, name: str = "") -> str | None:
    """The first place where two trees of JSON data differ, as "key old -> new"; None where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            change = first_change(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if change:
                return change
        return None
    return None if old == new else f"{name} {old!r} -> {new!r}"
