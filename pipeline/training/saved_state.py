"""What a checkpoint on disk holds: its record, and tensors, of which a rank reads only what it needs."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rdpm.models.generator import current_parts
from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.manifest import ObjectDigest

CHECKPOINT_VERSION = 3
RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Saved:
    """The record of one complete checkpoint."""

    step: int
    """Optimizer steps done."""
    identity: dict[str, Any]
    """What decides how the training continues: its data, their order and its model."""
    score: float | None
    """Score of the validation at this step, lower is better; None where there was none."""
    parts: dict[str, ObjectDigest]
    """Digest of each file by name."""
    version: int = CHECKPOINT_VERSION
    """Version of the checkpoint. Before it, some parameters of the generator had other names (`current_parts`)."""


def checkpoint_folder(out: str) -> str:
    """Where a training keeps its checkpoints. Raises ValueError for a remote `out`."""
    return files.local_path(files.join(out, "checkpoints"))


def newest_step(out: str) -> int:
    """Step of the newest checkpoint of a training; 0 where there is none."""
    return max((saved.step for saved in complete_checkpoints(checkpoint_folder(out))), default=0)


def complete_checkpoints(folder: str) -> list[Saved]:
    """The records of the complete checkpoints in a folder, oldest first. Raises ValueError for a damaged record."""
    records = []
    for tag in files.list_folders(folder):
        path = files.join(folder, tag, RECORD)
        if files.exists(path):
            data = files.read_json(path)
            version = data.get("version", 1) if isinstance(data, dict) else 1
            if version > CHECKPOINT_VERSION:
                raise ValueError(
                    f"{path} has version {version}, and this release knows 1 to {CHECKPOINT_VERSION}; update rdpm"
                )
            try:
                parts = {name: ObjectDigest(**digest) for name, digest in data.pop("parts").items()}
                records.append(Saved(**{"version": 1, **data}, parts=parts))
            except (TypeError, KeyError, AttributeError):
                raise ValueError(
                    f"{path} is not a checkpoint record; delete its folder to continue from an older checkpoint"
                ) from None
    return records


class SavedState(Mapping[str, Tensor]):
    """Full tensors by KIND/PARAMETER. Each is read from disk when it is looked up."""

    def __init__(self, paths: list[str], engine: str) -> None:
        prefix = f"{engine}/"
        self._files = [safe_open(path, framework="pt") for path in paths]
        saved = {
            name.removeprefix(prefix): (file, name)
            for file in self._files
            for name in file.keys()  # noqa: SIM118, no mapping
            if name.startswith(prefix)
        }
        self._tensors = {name: [saved[part] for part in parts] for name, parts in _current(saved).items()}

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(full) for file, full in self._tensors[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # a mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of one axis or more. Reads none of it."""
        shapes = [file.get_slice(full).get_shape() for file, full in self._tensors[name]]
        return sum(first for first, *_ in shapes), *shapes[0][1:]

    def flat_part(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start ... stop - 1 of a flattened tensor, (at most stop - start,). Reads no other rows of it."""
        found = []
        for file, full in self._tensors[name]:
            part, size = _elements(file, full, start, stop)
            found.append(part)
            start, stop = start - size, stop - size
        return torch.cat(found)


def _elements(file: Any, name: str, start: int, stop: int) -> tuple[Tensor, int]:
    """Those of the elements start ... stop - 1 of a flattened tensor of a file that it has, and its size."""
    rows = file.get_slice(name)
    count, *shape = rows.get_shape() or [1]
    row = max(1, math.prod(shape))
    start, stop = max(0, start), max(0, stop)
    first, last = min(start // row, count), min(-(-stop // row), count)
    part = rows[first:last] if rows.get_shape() else file.get_tensor(name)
    return part.flatten()[start - first * row : stop - first * row], count * row


def flat_part(state: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Elements start ... stop - 1 of a flattened tensor of a state in memory or on disk, fewer at its end."""
    if isinstance(state, SavedState):
        return state.flat_part(name, start, stop)
    return state[name].flatten()[start:stop]


def named(state: Mapping[str, Tensor], *kinds: str) -> dict[str, Tensor]:
    """The tensors of these kinds by the name of their parameter or buffer."""
    parts = ((name.split("/", 1), name) for name in state)
    return {own: state[name] for (kind, own), name in parts if kind in kinds}


def _current(tensors: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of a checkpoint by their current names, each with those of any version that make it up."""
    current: dict[str, list[str]] = {}
    generators: dict[str, list[str]] = {}
    for tensor in tensors:
        owner, dot, parameter = tensor.partition("/generator.")
        if dot:
            generators.setdefault(owner + dot, []).append(parameter)
        else:
            current[tensor] = [tensor]
    for prefix, parameters in generators.items():
        for name, parts in current_parts(parameters).items():
            current[prefix + name] = [prefix + part for part in parts]
    return current
