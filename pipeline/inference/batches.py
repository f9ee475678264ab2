"""How rows go through a model: in batches of one size, of which the last is padded.

A matrix product of another shape rounds differently. Because every call has the same shape, the result of a row depends
neither on the other rows nor on their number. float32 is float32 here, whatever the process allows: TF32 or bfloat16 in
its place would make results depend on the kind of processor.
"""

import socket
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rdpm.models.precision import full_precision

BatchFunction = Callable[..., tuple[Tensor, ...]]
"""function(rows, *tensors) returns one tensor per column of results. rows: those of the N rows that the batch holds."""


@torch.no_grad()
@full_precision()
def in_batches(
    function: BatchFunction, columns: tuple[np.ndarray, ...], batch: int, device: torch.device
) -> list[np.ndarray]:
    """Apply `function` to columns of N rows, `batch` rows per call, with zeros as padding.

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
    """The kind of device, cpu or cuda, that a config's `device` (auto, cpu or cuda) means on this machine."""
    return best_device().type if wanted == "auto" else wanted


def own_device(wanted: str) -> torch.device:
    """The device of this process that `device` (auto, cpu or cuda) means. Raises ValueError for cuda without a GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is cuda, and {socket.gethostname()} has no GPU that PyTorch can use; use device=cpu")
    return best_device() if wanted == "auto" else torch.device(wanted)


def device_of_kind(kind: str | None) -> torch.device:
    """The device of the kind that a plan names; the best one where the plan names none.

    Raises ValueError where this process has no such device, because another kind rounds differently.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the plan is for cuda, and {socket.gethostname()} has no GPU; run on machines with one")
    return torch.device(kind) if kind else best_device()
