"""The training log: one JSON object a line, by step, and the same for TensorBoard; resuming leaves no seam."""

import json
import os
from typing import Any

import numpy as np

from pipeline import files

LOG = "log.jsonl"


class TrainingLog:
    """OUT/log.jsonl and OUT/tensorboard, written by the first rank only."""

    def __init__(self, out: str, active: bool, resume_step: int) -> None:
        self._file = None
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = files.local_path(files.join(out, "tensorboard"))
        self._board = SummaryWriter(folder, purge_step=resume_step + 1)
        path = files.local_path(files.join(out, LOG))
        kept = [line for line in read_log(path) if line["step"] <= resume_step]
        files.write_bytes(path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        self._file = open(path, "a", buffering=1)  # noqa: SIM115, closed by close()

    def write(self, step: int, **figures: Any) -> None:
        """Add one line; a list holds a figure for each step t, with None where there is none."""
        if not self._file:
            return
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        for name, value in figures.items():
            parts = (
                {f"{name}/{t + 1}": part for t, part in enumerate(value)} if isinstance(value, list) else {name: value}
            )
            for part, number in parts.items():
                if number is not None:
                    self._board.add_scalar(part, number, step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, (H, W, C) uint8, in TensorBoard."""
        if self._file:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the file."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
            self._board.close()


def read_log(path: str) -> list[dict[str, Any]]:
    """Every whole line of a log; a last line cut short by a kill is left out."""
    if not files.exists(path):
        return []
    lines = files.read_bytes(path).decode().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
