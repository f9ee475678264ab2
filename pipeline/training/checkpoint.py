"""Checkpoints that continue on any number of ranks under any ZeRO stage.

OUT/checkpoints/step-00001000/ holds full tensors in safetensors files of about 1 GiB, each rank writing its share:

    part-00000-00000.safetensors   of rank 0, its first; tensors are named ENGINE/KIND/PARAMETER
    part-00000.json                sizes and digests of rank 0's files, once they are on disk
    checkpoint.json                Saved, written last by the first rank; without it there is no checkpoint

Tensors are copied while the training waits and written while it goes on.
"""

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from rdpm.models.generator import current_name
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, saved_identity
from rdpm.pipeline.foundation.records import first_change
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.ranks import Ranks, barrier, gather
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import ObjectDigest

_WHOLE = "checkpoint.json"
_PART_BYTES = 1 << 30
CHECKPOINT_VERSION = 2


@dataclass(frozen=True)
class Saved:
    """The record of one checkpoint."""

    step: int
    """Steps done."""
    identity: dict[str, Any]
    """What decides how the training continues: its data, its order and its model."""
    score: float | None
    """Score of the last validation, lower is better; None where there was none."""
    parts: dict[str, ObjectDigest]
    """Digest of each file by its name."""
    version: int = CHECKPOINT_VERSION
    """Version of the checkpoint. In version 1 some tensors of the generator had other names."""


class SavedState(Mapping[str, Tensor]):
    """The tensors of one engine in a checkpoint, named KIND/PARAMETER, each read when it is asked for."""

    def __init__(self, paths: list[str], engine: str) -> None:
        prefix = f"{engine}/"
        self._files = [safe_open(path, framework="pt") for path in paths]
        self._found = {
            _current(name.removeprefix(prefix)): (file, name)
            for file in self._files
            for name in file.keys()  # noqa: SIM118, no mapping
            if name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> Tensor:
        file, full = self._found[name]
        return file.get_tensor(full)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _current(tensor: str) -> str:
    """The name of a tensor, given its name in a checkpoint of any version."""
    kind, _, parameter = tensor.partition("/")
    module, dot, name = parameter.partition(".")
    return f"{kind}/generator.{current_name(name)}" if (module, dot) == ("generator", ".") else tensor


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one of the best score."""

    def __init__(self, out: str, ranks: Ranks, model: Any, identity: Mapping[str, Any], keep: int = 1) -> None:
        """model: the config of what is trained. identity: JSON data that decides how the training continues."""
        self.folder, self.ranks, self.keep = files.local_path(files.join(out, "checkpoints")), ranks, keep
        self._model = type(model)
        self.identity = json.loads(canonical_json({**identity, "model": identity_of(model)}))
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        if ranks.first:
            for tag in files.list_folders(self.folder):  # left by a run that was killed while it wrote
                if not files.exists(files.join(self.folder, tag, _WHOLE)):
                    files.remove(files.join(self.folder, tag))
        barrier()
        self.newest = self._read_newest()

    @property
    def step(self) -> int:
        """The step to continue from; 0 when there is nothing yet."""
        return self.newest.step if self.newest else 0

    def state(self, engine: str) -> SavedState | None:
        """What the newest checkpoint holds of an engine, or None when there is none."""
        if self.newest is None:
            return None
        folder = self._path(self.newest.step)
        return SavedState([files.join(folder, name) for name in sorted(self.newest.parts)], engine)

    def _path(self, step: int) -> str:
        return files.join(self.folder, f"step-{step:08d}")

    def _whole(self) -> list[Saved]:
        """The records of all whole checkpoints, oldest first."""
        records = []
        for tag in files.list_folders(self.folder):
            path = files.join(self.folder, tag, _WHOLE)
            if files.exists(path):
                data = files.read_json(path)
                try:
                    parts = {name: ObjectDigest(**digest) for name, digest in data.pop("parts").items()}
                    records.append(Saved(**{"version": 1, **data}, parts=parts))
                except (TypeError, KeyError, AttributeError):
                    raise ValueError(
                        f"{path} is no checkpoint record; delete its folder to continue from an older one"
                    ) from None
        return records

    def _read_newest(self) -> Saved | None:
        """The newest checkpoint, with its bytes checked, each rank its share.

        Raises ValueError when it belongs to another training or a file of it is damaged.
        """
        found = self._whole()
        if not found:
            return None
        newest = found[-1]
        folder = self._path(newest.step)
        old = {**newest.identity, "model": saved_identity(self._model, newest.identity["model"])}
        change = first_change({name: old.get(name) for name in self.identity}, self.identity)
        if change:
            raise ValueError(f"the checkpoint in {folder} is of another training ({change}); choose another out")
        share = sorted(newest.parts)[self.ranks.rank :: self.ranks.count]
        bad = [name for name in share if _digest(files.join(folder, name)) != newest.parts[name]]
        damaged = [name for names in gather(bad) for name in names]
        if damaged:
            raise ValueError(
                f"checkpoint {folder} is damaged ({', '.join(damaged)}); delete that folder to continue from an older "
                "checkpoint, or from the start where there is none"
            )
        return newest

    def save(self, step: int, engines: Mapping[str, Engine], score: float | None = None) -> None:
        """Copy everything to memory, each rank a share, and have it written; a former writing is waited for first."""
        self.finish()
        mine: dict[str, Tensor] = {}
        place = 0
        for engine, owner in engines.items():
            for name, value in owner.state():
                if place % self.ranks.count == self.ranks.rank:
                    mine[f"{engine}/{name}"] = value.to("cpu", copy=True)
                place += 1
        self._writing = self._writer.submit(self._write, step, mine, score)

    def finish(self) -> None:
        """Wait until what was saved is on disk. Raises what the writing raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, mine: dict[str, Tensor], score: float | None) -> None:
        folder, rank = self._path(step), self.ranks.rank
        digests = {}
        for number, part in enumerate(_parts(mine)):
            name = f"part-{rank:05d}-{number:05d}.safetensors"
            files.write_bytes(files.join(folder, name), save(part))
            digests[name] = files.digest_file(files.join(folder, name))
        files.write_json(files.join(folder, f"part-{rank:05d}.json"), {name: asdict(d) for name, d in digests.items()})
        if self.ranks.first:
            self._publish(Saved(step, self.identity, score, self._gather_parts(folder)))

    def _gather_parts(self, folder: str) -> dict[str, ObjectDigest]:
        """The digests of all ranks' files, as soon as each rank has left its own."""
        parts: dict[str, ObjectDigest] = {}
        for rank in range(self.ranks.count):
            path = files.join(folder, f"part-{rank:05d}.json")
            while not files.exists(path):
                time.sleep(0.02)
            parts |= {name: ObjectDigest(**digest) for name, digest in files.read_json(path).items()}
        return parts

    def _publish(self, saved: Saved) -> None:
        """Make a checkpoint the newest, then drop those that nobody needs any more."""
        files.write_json(files.join(self._path(saved.step), _WHOLE), asdict(saved))
        whole = self._whole()
        kept = [found.step for found in whole[-self.keep :]]
        kept += [step for _, step in sorted((s.score, s.step) for s in whole if s.score is not None)[:1]]  # the best
        for found in whole:
            if found.step not in kept:
                files.remove(files.join(self._path(found.step), _WHOLE))
                files.remove(self._path(found.step))


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of about `_PART_BYTES`; at least one group, be it empty."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        part[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= _PART_BYTES:
            yield part
            part, size = {}, 0
    if part or not tensors:
        yield part


def _digest(path: str) -> ObjectDigest | None:
    try:
        return files.digest_file(path)
    except FileNotFoundError:
        return None
