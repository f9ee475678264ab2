"""Checkpoints that continue on any number of ranks under any ZeRO stage.

OUT/checkpoints/step-00001000/ holds full tensors in safetensors files of about 1 GiB. Each rank writes its share:

    part-00000-00000.safetensors   the first file of rank 0; its tensors are named ENGINE/KIND/PARAMETER
    part-00000.json                sizes and digests of rank 0's files, written when they are on disk
    checkpoint.json                a `Saved`, written last, by the first rank; without it there is no checkpoint

The training waits while tensors are copied to memory, and continues while they are written.
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

_RECORD = "checkpoint.json"
_PART_BYTES = 1 << 30
CHECKPOINT_VERSION = 2


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


class SavedState(Mapping[str, Tensor]):
    """The tensors of one engine in a checkpoint by KIND/PARAMETER. Each is read from disk when it is looked up."""

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

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _current(tensor: str) -> str:
    """Today's name of a tensor, given its name in a checkpoint of any version."""
    kind, _, parameter = tensor.partition("/")
    module, dot, name = parameter.partition(".")
    return f"{kind}/generator.{current_name(name)}" if (module, dot) == ("generator", ".") else tensor


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one of the best score."""

    def __init__(self, out: str, ranks: Ranks, model: Any, identity: Mapping[str, Any], keep: int = 1) -> None:
        """Find the newest checkpoint in `out`, and remove what a killed run left half written.

        model: config of the trained model. identity: JSON data that, with it, decides how the training continues.
        Raises ValueError when the newest checkpoint is damaged or belongs to another training.
        """
        self.folder, self.ranks, self.keep = files.local_path(files.join(out, "checkpoints")), ranks, keep
        self._model = type(model)
        self.identity = json.loads(canonical_json({**identity, "model": identity_of(model)}))
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        if ranks.first:
            for tag in files.list_folders(self.folder):
                if not files.exists(files.join(self.folder, tag, _RECORD)):
                    files.remove(files.join(self.folder, tag))
        barrier()
        self.newest = self._read_newest()

    @property
    def step(self) -> int:
        """The step to continue from; 0 when there is no checkpoint."""
        return self.newest.step if self.newest else 0

    def state(self, engine: str) -> SavedState | None:
        """An engine's tensors in the newest checkpoint; None when there is no checkpoint."""
        if self.newest is None:
            return None
        folder = self._path(self.newest.step)
        return SavedState([files.join(folder, name) for name in sorted(self.newest.parts)], engine)

    def _path(self, step: int) -> str:
        return files.join(self.folder, f"step-{step:08d}")

    def _complete(self) -> list[Saved]:
        """The records of all complete checkpoints, oldest first."""
        records = []
        for tag in files.list_folders(self.folder):
            path = files.join(self.folder, tag, _RECORD)
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

    def _read_newest(self) -> Saved | None:
        """The newest checkpoint. Its files are verified, a share of them on each rank.

        Raises ValueError when it belongs to another training or a file is damaged.
        """
        complete = self._complete()
        if not complete:
            return None
        newest = complete[-1]
        folder = self._path(newest.step)
        old = {**newest.identity, "model": saved_identity(self._model, newest.identity["model"])}
        change = first_change({name: old.get(name) for name in self.identity}, self.identity)
        if change:
            raise ValueError(f"checkpoint {folder} belongs to another training ({change}); choose another out")
        share = sorted(newest.parts)[self.ranks.rank :: self.ranks.count]
        bad = [name for name in share if _digest(files.join(folder, name)) != newest.parts[name]]
        damaged = [name for names in gather(bad) for name in names]
        if damaged:
            raise ValueError(
                f"checkpoint {folder} is damaged ({', '.join(damaged)}); delete that folder to continue from an older "
                "checkpoint, or from the start if there is none"
            )
        return newest

    def save(self, step: int, engines: Mapping[str, Engine], score: float | None = None) -> None:
        """Copy this rank's share of all tensors to memory and start writing it; every rank calls it.

        Waits first until the previous checkpoint is written.
        """
        self.finish()
        share: dict[str, Tensor] = {}
        number = 0
        for engine_name, engine in engines.items():
            for name, value in engine.state():
                if number % self.ranks.count == self.ranks.rank:
                    share[f"{engine_name}/{name}"] = value.to("cpu", copy=True)
                number += 1
        self._writing = self._writer.submit(self._write, step, share, score)

    def finish(self) -> None:
        """Wait until the last save is on disk. Raises what writing it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, share: dict[str, Tensor], score: float | None) -> None:
        folder, rank = self._path(step), self.ranks.rank
        digests = {}
        for number, part in enumerate(_parts(share)):
            name = f"part-{rank:05d}-{number:05d}.safetensors"
            files.write_bytes(files.join(folder, name), save(part))
            digests[name] = files.digest_file(files.join(folder, name))
        files.write_json(files.join(folder, f"part-{rank:05d}.json"), {name: asdict(d) for name, d in digests.items()})
        if self.ranks.first:
            self._publish(Saved(step, self.identity, score, self._gather_parts(folder)))

    def _gather_parts(self, folder: str) -> dict[str, ObjectDigest]:
        """The digests of all ranks' files. Waits until every rank has written its own."""
        parts: dict[str, ObjectDigest] = {}
        for rank in range(self.ranks.count):
            path = files.join(folder, f"part-{rank:05d}.json")
            while not files.exists(path):
                time.sleep(0.02)
            parts |= {name: ObjectDigest(**digest) for name, digest in files.read_json(path).items()}
        return parts

    def _publish(self, saved: Saved) -> None:
        """Write the record that completes a checkpoint, then remove the checkpoints that are not kept."""
        files.write_json(files.join(self._path(saved.step), _RECORD), asdict(saved))
        complete = self._complete()
        kept = [one.step for one in complete[-self.keep :]]
        kept += [step for _, step in sorted((s.score, s.step) for s in complete if s.score is not None)[:1]]  # the best
        for one in complete:
            if one.step not in kept:
                files.remove(
                    files.join(self._path(one.step), _RECORD)
                )  # first: half a checkpoint must not look complete
                files.remove(self._path(one.step))


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of about `_PART_BYTES`; one empty group where there are no tensors."""
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
