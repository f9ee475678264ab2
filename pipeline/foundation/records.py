"""The machine-readable record that every job leaves beside what it made: `<out>.record.json`.

It is made when a job starts and replaced when it ends. A job that finds its own finished record does nothing; one that
finds a record of other settings refuses, so that nothing is ever overwritten or mixed.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.manifest import canonical_json, digest_of

_SUFFIX = ".record.json"
_KEYS = {"job", "identity", "settings", "finished", "seconds", "result"}


@dataclass
class JobRecord:
    """One run of one job: what it was asked for (`settings`), and, once `finished`, what came of it (`result`)."""

    job: str
    out: str
    settings: dict[str, Any]
    finished: bool = False
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def identity(self) -> str:
        """Digest of the job and its settings."""
        return digest_of({"job": self.job, "settings": self.settings})

    def to_json(self) -> dict[str, Any]:
        """The record as it is written."""
        return {
            "job": self.job,
            "identity": self.identity,
            "settings": self.settings,
            "finished": self.finished,
            "seconds": round(self.seconds, 3),
            "result": self.result,
        }

    def finish(self, result: dict[str, Any]) -> None:
        """Publish the result, with the seconds since this start of the job."""
        self.seconds = time.monotonic() - self._started
        self.result, self.finished = result, True
        files.write_json(self.out + _SUFFIX, self.to_json())


def begin(job: str, out: str, settings: dict[str, Any], makes: tuple[str, ...] = ()) -> JobRecord:
    """Start or continue the job that makes `out`.

    settings: JSON data that fixes the result (not where or how fast it runs). makes: files under `out` without which it
    is not finished, whatever the record says. Returns the record, whose `finished` says whether anything is left to do.
    Raises ValueError when `out` was made, or begun, with other settings, or holds something that no job of ours made.
    """
    out = out.rstrip("/")
    record = JobRecord(job, out, settings)
    path = out + _SUFFIX
    if not files.exists(path) and _occupied(out):
        raise ValueError(f"{out} already holds something that is not of this job; choose another out, or delete it")
    if files.create_bytes(path, canonical_json(record.to_json())):
        return record
    found = files.read_json(path)
    if not isinstance(found, dict) or not found.keys() >= _KEYS:
        raise ValueError(f"{path} is no job record; delete it and {out} to start anew")
    if found["identity"] != record.identity and not files.exists(out):  # begun otherwise, but nothing came of it
        files.write_json(path, record.to_json())
        return record
    if found["identity"] != record.identity:
        change = _first_change(found["settings"], settings) or f"job {found['job']} -> {job}"
        raise ValueError(f"{out} was made with other settings ({change}); choose another out, or delete it and {path}")
    record.finished = (
        found["finished"] and all(files.exists(files.join(out, name)) for name in makes) and files.exists(out)
    )
    record.seconds, record.result = found["seconds"], found["result"]
    return record


def _occupied(out: str) -> bool:
    """Whether there is a file, or a folder with anything in it."""
    return files.exists(out) and (bool(files.list_names(out) or files.list_folders(out)) or files.is_file(out))


def read_record(out: str) -> dict[str, Any] | None:
    """The record beside `out`, or None when there is none."""
    path = out.rstrip("/") + _SUFFIX
    return files.read_json(path) if files.exists(path) else None


def _first_change(old: Any, new: Any, name: str = "") -> str | None:
    """The first place where two settings differ, as "key old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            change = _first_change(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if change:
                return change
        return None
    return None if old == new else f"{name} {old!r} -> {new!r}"
