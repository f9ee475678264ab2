"""Checkpoints that continue on any number of ranks under any ZeRO stage.

OUT/checkpoints/step-00001000/ holds full tensors in safetensors files of about 1 GiB. Each rank writes its share:

    part-00000-00000.safetensors   the first file of rank 0; its tensors are named ENGINE/KIND/PARAMETER
    checkpoint.json                a `Saved`, written last, by the first rank

All of it is written to `.step-00001000.NUMBER`, where NUMBER is that of the lease, and renamed when every rank's files
are on disk. So a folder that is named `step-…` is a checkpoint, and two starts never write into one folder.

The training waits while tensors are copied to memory, and continues while they are written. The ranks tell each other
after every step how far they are, over their process group; no rank waits for a file of another one.
"""

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, saved_identity
from rdpm.pipeline.foundation.disk import sync_folder
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.records import first_change
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.ranks import Ranks, SharedError, barrier, gather, given_by_first
from rdpm.pipeline.training.saved_state import RECORD, Saved, SavedState, checkpoint_folder, complete_checkpoints
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import ObjectDigest

_ATTEMPT = re.compile(r"\.step-\d{8}\.(\d+)")
_PART_BYTES = 1 << 30


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one of the best score."""

    def __init__(
        self,
        out: str,
        ranks: Ranks,
        model: Any,
        identity: Mapping[str, Any],
        keep: int,
        lease: Lease | None,
    ) -> None:
        """Find the newest checkpoint in `out`, and remove what a killed run left half written.

        model: config of the trained model. identity: JSON data that, with it, decides how the training continues.
        lease: of `out`, on the first rank. Raises ValueError when the newest checkpoint is damaged or belongs to
        another training, and LeaseLost.
        """
        self.folder, self.ranks, self.keep = checkpoint_folder(out), ranks, keep
        self._model, self._lease = type(model), lease
        self._number: int = given_by_first(lease.number if lease else 0)
        self.identity = json.loads(canonical_json({**identity, "model": identity_of(model)}))
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[dict[str, ObjectDigest]] | None = None
        self._published: Future[None] | None = None
        self._saving: tuple[int, float | None] | None = None
        """Step and score of a checkpoint that is not known to be on disk, on every rank."""
        if ranks.first:
            self._sweep()
        barrier()
        self.newest = self._read_newest()

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _sweep(self) -> None:
        """Remove what dead writers left: attempts of this lease and of those before it, and checkpoints half removed.

        An attempt of a later lease belongs to somebody who is at work.
        """
        if not os.path.isdir(self.folder):
            return
        self._check_lease()
        for name in os.listdir(self.folder):
            attempt = _ATTEMPT.fullmatch(name)
            half = name.startswith("step-") and not files.exists(files.join(self.folder, name, RECORD))
            if half or (attempt and int(attempt[1]) <= self._number):
                files.remove(files.join(self.folder, name))

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

    def _attempt(self, step: int) -> str:
        return files.join(self.folder, f".step-{step:08d}.{self._number}")

    def _read_newest(self) -> Saved | None:
        """The newest checkpoint. Its files are verified, a share of them on each rank.

        Raises ValueError when it belongs to another training or a file is damaged.
        """
        complete = complete_checkpoints(self.folder)
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

        Waits first until the previous checkpoint is on disk. Raises SharedError when that failed, and when a tensor is
        not finite; then nothing is written.
        """
        self.finish()
        share: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        number = 0
        for engine_name, engine in engines.items():
            for name, value in engine.state():
                if number % self.ranks.count == self.ranks.rank:
                    share[f"{engine_name}/{name}"] = value.to("cpu", copy=True)
                    finite[f"{engine_name}/{name}"] = torch.isfinite(value).all()
                number += 1
        damaged = [name for names in gather([n for n, whole in finite.items() if not whole]) for name in names]
        if damaged:
            raise SharedError(
                f"{damaged[0]} is not finite after step {step}, so no checkpoint of it is written; train into another "
                "out with a lower learning rate (the last checkpoint is undamaged)"
            )
        self._saving = step, score if score is None or math.isfinite(score) else None
        self._written = self._writer.submit(self._write, step, share)

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its share of the last save."""
        return self._written is not None and not self._written.done()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write its share, or, on the first rank, publish the checkpoint."""
        return any(f is not None and f.done() and f.exception() is not None for f in (self._written, self._published))

    def publish(self) -> None:
        """When every rank has written its share of the last save, start publishing it; every rank calls it.

        Waits for the slowest rank. Does nothing where there is nothing to publish. Raises SharedError.
        """
        if self._saving is None or self._written is None:
            return
        shares = self._together(self._written)
        self._written = None
        if self.ranks.first:
            step, score = self._saving
            parts = {name: digest for share in shares for name, digest in share.items()}
            self._published = self._writer.submit(self._publish, Saved(step, self.identity, score, parts))

    def finish(self) -> None:
        """Wait until the last save is on disk; every rank calls it. Raises SharedError when that failed on any rank."""
        if self._saving is not None:
            self.publish()
            self._together(self._published)
            self._published = self._saving = None

    def _together(self, work: Future | None) -> list[Any]:
        """Wait for work on every rank. Returns its results; raises SharedError, on all ranks, if it failed on any."""
        assert self._saving is not None
        step = self._saving[0]
        error = work.exception() if work else None
        found = work.result() if work and not error else None
        outcomes = gather((found, error and (getattr(error, "strerror", None) or str(error))))
        problems = [(rank, problem) for rank, (_, problem) in enumerate(outcomes) if problem]
        if problems:
            self._saving = self._written = self._published = None
            if self.ranks.first:
                files.remove(self._attempt(step))
            rank, problem = problems[0]
            raise SharedError(
                f"checkpoint {self._path(step)} is not written, because of rank {rank} of {self.ranks.count}: "
                f"{problem} (the last checkpoint is undamaged; run it again to continue from there)"
            )
        return [result for result, _ in outcomes]

    def _write(self, step: int, share: dict[str, Tensor]) -> dict[str, ObjectDigest]:
        """Write this rank's files. Returns their digests, as they are on disk."""
        digests = {}
        for number, part in enumerate(_parts(share)):
            path = files.join(self._attempt(step), f"part-{self.ranks.rank:05d}-{number:05d}.safetensors")
            files.write_bytes(path, save(part))
            digests[os.path.basename(path)] = files.digest_file(path)
        return digests

    def _publish(self, saved: Saved) -> None:
        """Complete a checkpoint and give it its name; then remove the checkpoints that are not kept."""
        attempt, path = self._attempt(saved.step), self._path(saved.step)
        files.write_json(files.join(attempt, RECORD), asdict(saved))
        self._check_lease()
        try:
            os.rename(attempt, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ValueError("another start of this training has written it") from None
            raise
        sync_folder(self.folder)
        complete = complete_checkpoints(self.folder)
        kept = [one.step for one in complete[-self.keep :]]
        kept += [step for _, step in sorted((s.score, s.step) for s in complete if s.score is not None)[:1]]  # the best
        for one in complete:
            if one.step not in kept:
                self._check_lease()
                os.rename(self._path(one.step), self._attempt(one.step))  # half a checkpoint must not look complete
                files.remove(self._attempt(one.step))


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
