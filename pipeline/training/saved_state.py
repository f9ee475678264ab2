"""What a checkpoint on disk holds: its record, and tensors, of which a rank reads only what it needs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor

from rdpm.models.generator import current_name
from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.manifest import ObjectDigest

CHECKPOINT_VERSION = 2
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
    """Version of the checkpoint. In version 1, some parameters of the generator had other names."""


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
        self._tensors = {
            _current(name.removeprefix(prefix)): (file, name)
            for file in self._files
            for name in file.keys()  # noqa: SIM118, no mapping
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> Tensor:
        file, full = self._tensors[name]
        return file.get_tensor(full)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # a mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def flat_part(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start ... stop - 1 of a flattened tensor, (at most stop - start,). Reads no other rows of it."""
        file, full = self._tensors[name]
        rows = file.get_slice(full)
        count, *shape = rows.get_shape() or [1]
        size = max(1, math.prod(shape))  # of a row
        first, last = min(start // size, count), min(-(-stop // size), count)
        part = rows[first:last] if rows.get_shape() else file.get_tensor(full)
        return part.flatten()[start - first * size : stop - first * size]


def flat_part(state: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Elements start ... stop - 1 of a flattened tensor of a state in memory or on disk, fewer at its end."""
    if isinstance(state, SavedState):
        return state.flat_part(name, start, stop)
    return state[name].flatten()[start:stop]


def named(state: Mapping[str, Tensor], *kinds: str) -> dict[str, Tensor]:
    """The tensors of these kinds by the name of their parameter or buffer."""
    parts = ((name.split("/", 1), name) for name in state)
    return {own: state[name] for (kind, own), name in parts if kind in kinds}


def _current(tensor: str) -> str:
    """Today's name of a tensor, given its name in a checkpoint of any version."""
    kind, _, parameter = tensor.partition("/")
    module, dot, name = parameter.partition(".")
    return f"{kind}/generator.{current_name(name)}" if (module, dot) == ("generator", ".") else tensor
