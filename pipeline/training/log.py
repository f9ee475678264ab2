"""The training log: one JSON object a line, by step, and the same for TensorBoard; resuming leaves no seam."""

import json
import os
from typing import Any

import numpy as np

from rdpm.pipeline.foundation import files

LOG = "log.jsonl"


class TrainingLog:
    """OUT/log.jsonl and OUT/tensorboard, and a Weights & Biases project where one is named; by the first rank only.

    Raises ValueError when a project is named and wandb is not installed.
    """

    def __init__(self, out: str, active: bool, resume_step: int, wandb_project: str = "") -> None:
        self._file, self._run = None, None
        if not active:
            return
        if wandb_project:
            self._run = _start_run(wandb_project, out)
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
        if self._run:
            self._run.log(figures, step=step)

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
        if self._run:
            self._run.finish()


def _start_run(project: str, out: str) -> Any:
    """The run named after `out`, new or gone on with."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"wandb is {project!r}, but wandb is not installed; pip install wandb, or leave it out"
        ) from None
    name = out.rstrip("/").replace("/", "-")
    return wandb.init(project=project, id=name, name=name, dir=out, resume="allow")


def read_log(path: str) -> list[dict[str, Any]]:
    """Every whole line of a log; a last line cut short by a kill is left out."""
    if not files.exists(path):
        return []
    lines = files.read_bytes(path).decode().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
