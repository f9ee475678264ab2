"""Checkpoints that are either whole or not there: engines first, the pointer last."""

from collections.abc import Mapping
from typing import Any

from pipeline import files
from pipeline.training.engine import Engine, Ranks, barrier

_POINTER = "checkpoint.json"


def check_intervals(log_every: int, checkpoint_every: int) -> None:
    """Raise ValueError unless checkpoints fall on lines of the log, so that a resumed run leaves no seam in it."""
    if log_every < 1:
        raise ValueError(f"log_every is {log_every}; use 1 or more")
    if checkpoint_every < 1 or checkpoint_every % log_every:
        raise ValueError(f"checkpoint_every is {checkpoint_every}; use a multiple of log_every {log_every}")


class Checkpoints:
    """The checkpoints of one run, under OUT/checkpoints; OUT/checkpoints/checkpoint.json names the last whole one."""

    def __init__(self, out: str, ranks: Ranks) -> None:
        self.folder, self.ranks = files.local_path(files.join(out, "checkpoints")), ranks

    def load(self, engines: Mapping[str, Engine], identity: Mapping[str, Any]) -> int:
        """Restore the engines; returns the step to go on from, 0 when there is nothing yet.

        Raises ValueError when the checkpoint belongs to other data, or is sharded over another number of ranks.
        """
        pointer = files.join(self.folder, _POINTER)
        if not files.exists(pointer):
            return 0
        found = files.read_json(pointer)
        if not isinstance(found, dict) or not {"tag", "step", "ranks", "identity"} <= found.keys():
            raise ValueError(f"{pointer} is no checkpoint pointer; delete {self.folder} to start anew")
        if found["identity"] != dict(identity):
            raise ValueError(
                f"the checkpoint in {self.folder} continues other data ({found['identity']}); choose another out"
            )
        sharded = any(engine.config.zero_stage for engine in engines.values())
        if sharded and found["ranks"] != self.ranks.count:
            raise ValueError(
                f"the checkpoint in {self.folder} was sharded over {found['ranks']} ranks; resume with as many, or "
                "train with engine.zero_stage=0, which continues on any number"
            )
        for name, engine in engines.items():
            engine.load(files.join(self.folder, found["tag"]), name)
        return found["step"]

    def save(self, step: int, engines: Mapping[str, Engine], identity: Mapping[str, Any]) -> None:
        """Write everything, then point to it, then drop what it replaces."""
        tag = f"step-{step:08d}"
        folder = files.join(self.folder, tag)
        if self.ranks.first:
            files.remove(folder)  # left by a run that was killed before it could point here
        barrier()
        for name, engine in engines.items():
            engine.save(folder, name)
        barrier()
        if self.ranks.first:
            pointer = {"tag": tag, "step": step, "ranks": self.ranks.count, "identity": dict(identity)}
            files.write_json(files.join(self.folder, _POINTER), pointer)
            for old in files.list_folders(self.folder):
                if old != tag:
                    files.remove(files.join(self.folder, old))
        barrier()
