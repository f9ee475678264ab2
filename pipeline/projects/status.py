"""Where a run stands, from the records, leases and logs that its stages leave. Nothing is started or changed."""

import json
from typing import Literal, NamedTuple

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import at_work
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.projects.road import Stage

State = Literal["done", "running", "interrupted", "next", "later"]
_LOG = "log.jsonl"


class Standing(NamedTuple):
    """Where one stage stands."""

    stage: Stage
    """The stage."""
    state: State
    """done, running, interrupted (it will be continued), next, or later."""
    note: str
    """How long it took, how far it is, or who is at work."""


def standings(stages: list[Stage]) -> list[Standing]:
    """Where every stage stands, in order."""
    found: list[Standing] = []
    for stage in stages:
        reached = all(before.state == "done" for before in found)
        found.append(_standing(stage, reached))
    return found


def _standing(stage: Stage, reached: bool) -> Standing:
    record = read_record(stage.out)
    if record and record.finished and files.exists(stage.out):
        return Standing(stage, "done", _duration(record.seconds))
    holder = at_work(stage.out)
    if holder is not None:
        return Standing(stage, "running", ", ".join(note for note in (_progress(stage), str(holder)) if note))
    if record and not record.finished:
        return Standing(stage, "interrupted", _progress(stage))
    return Standing(stage, "next" if reached else "later", "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _progress(stage: Stage) -> str:
    """How far a training is, from the last complete line of its log."""
    steps, path = stage.settings.get("steps"), files.join(stage.out, _LOG)
    if steps is None or not files.exists(path):
        return ""
    lines = files.read_bytes(path).decode().splitlines()
    for line in reversed(lines):
        try:
            return f"step {json.loads(line)['step']} of {steps}"
        except ValueError:  # a line that is being written
            continue
    return ""
