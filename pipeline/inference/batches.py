"""The one way in which rows go through a model: always as many at once, the last ones padded.

A matrix product of another shape rounds differently. With one shape for every call, what comes out for a row does not
depend on the other rows or on their number.
"""

import socket
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BatchFunction = Callable[..., tuple[Tensor, ...]]
"""function(rows, *tensors): one tensor per column of results. rows: which of the N rows the batch holds."""


@torch.no_grad()
def in_batches(
    function: BatchFunction, columns: tuple[np.ndarray, ...], batch: int, device: torch.device
) -> list[np.ndarray]:
    """The columns of results that `function` makes of columns of N rows, `batch` rows per call, zeros as padding.

    Returns one array of N rows per tensor that the function returns. N must be 1 or more.
    """
    parts = []
    for start in range(0, len(columns[0]), batch):
        rows = range(start, min(start + batch, len(columns[0])))
        tensors = [_padded(column[rows.start : rows.stop], batch).to(device) for column in columns]
        parts.append([result[: len(rows)].cpu().numpy() for result in function(rows, *tensors)])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _padded(rows: np.ndarray, batch: int) -> Tensor:
    margin = ((0, batch - len(rows)), *((0, 0),) * (rows.ndim - 1))
    return torch.from_numpy(np.pad(rows, margin))


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_kind(wanted: str) -> str:
    """cpu or cuda: what a config's `device` (auto, cpu or cuda) means on this machine."""
    return best_device().type if wanted == "auto" else wanted


def device_of_kind(kind: str | None) -> torch.device:
    """The device of a kind that a plan names; the best one where it names none.

    Raises ValueError where this process has no such device: another kind would round differently.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the plan is for cuda, and {socket.gethostname()} has no GPU; run on machines with one")
    return torch.device(kind) if kind else best_device()
