"""The log of a training: one JSON object of metrics per line, and the same metrics for TensorBoard."""

import json
import math
import os
from typing import Any

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.disk import naming

LOG = "log.jsonl"


class TrainingLog:
    """OUT/log.jsonl and OUT/tensorboard, and a Weights & Biases project where one is named."""

    def __init__(self, out: str, active: bool, resume_step: int, wandb_project: str = "") -> None:
        """active: whether to write at all; only the first rank does. resume_step: later lines are dropped.

        Raises ValueError when a project is named but wandb is not installed.
        """
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
        files.write_bytes(path, "".join(map(_line, kept)).encode())
        self._file = open(path, "a", buffering=1)  # noqa: SIM115, closed by close()

    def write(self, step: int, **metrics: Any) -> None:
        """Add one line. The value of a metric is a number, or a list by step t, with None where there is none.

        A value that is not finite becomes None too: JSON has no such number. Raises OSError when the disk is full.
        """
        if not self._file:
            return
        metrics = {name: _finite(value) for name, value in {"step": step, **metrics}.items()}
        with naming(self._file.name):
            self._file.write(_line(metrics))
            for name, value in metrics.items():
                many = isinstance(value, list)
                parts = {f"{name}/{t + 1}": part for t, part in enumerate(value)} if many else {name: value}
                for part, number in parts.items():
                    if number is not None:
                        self._board.add_scalar(part, number, step)
        if self._run:
            self._run.log(metrics, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add a picture, (H, W, C) uint8, to TensorBoard."""
        if self._file:
            with naming(self._file.name):
                self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write everything to disk and close the log."""
        if self._file:
            with naming(self._file.name):
                os.fsync(self._file.fileno())
                self._file.close()
                self._board.close()
        if self._run:
            self._run.finish()


def _finite(value: Any) -> Any:
    """A value for JSON: None for a number that is not finite, also in lists."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(metrics: dict[str, Any]) -> str:
    return json.dumps({name: _finite(value) for name, value in metrics.items()}, allow_nan=False) + "\n"


def _start_run(project: str, out: str) -> Any:
    """The run named after `out`: a new one, or the old one continued."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"wandb is {project!r}, but wandb is not installed; pip install wandb, or leave it out"
        ) from None
    name = out.rstrip("/").replace("/", "-")
    return wandb.init(project=project, id=name, name=name, dir=out, resume="allow")


def read_log(path: str) -> list[dict[str, Any]]:
    """Every complete line of a log; a last line that a kill cut short is left out.

    Logs of version 1 say "learning_rate" for "lr". Numbers that are not finite, which older releases wrote, are None.
    """
    if not files.exists(path):
        return []
    lines = files.read_bytes(path).decode().split("\n")[:-1]
    return [json.loads(line, parse_constant=lambda _: None) for line in lines if line]
