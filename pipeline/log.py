"""The training log: one JSON object a line, by step; a resumed run continues it without a seam."""

import json
import os
from typing import Any

from pipeline import files

LOG = "log.jsonl"


class TrainingLog:
    """OUT/log.jsonl, written by the first rank only."""

    def __init__(self, out: str, active: bool, resume_step: int) -> None:
        self._file = None
        if not active:
            return
        path = files.local_path(files.join(out, LOG))
        kept = [line for line in read_log(path) if line["step"] <= resume_step]
        files.write_bytes(path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        self._file = open(path, "a", buffering=1)  # noqa: SIM115, closed by close()

    def write(self, step: int, **figures: Any) -> None:
        """Add one line."""
        if self._file:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self) -> None:
        """Flush and close the file."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()


def read_log(path: str) -> list[dict[str, Any]]:
    """Every whole line of a log; a last line cut short by a kill is left out."""
    if not files.exists(path):
        return []
    lines = files.read_bytes(path).decode().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
