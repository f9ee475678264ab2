"""A small job and its starts, for the tests of records."""

from dataclasses import dataclass, field

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.foundation.records import JobRecord, begin


@dataclass(frozen=True)
class Model:
    depth: int = 2
    parts: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Config:
    out: str = field(metadata=EXECUTION)
    seed: int = 0
    model: Model = field(default_factory=Model)
    name: str = "a"
    threads: int = field(default=1, metadata=EXECUTION)


INPUTS = {"source": "s0", "digests": {"tokenizer": "t0"}}


def start(
    out: str, inputs: dict = INPUTS, makes: tuple[str, ...] = (), job: str = "sample", grows: str = "", **settings
) -> JobRecord:
    """The record of a start that fails before it finishes anything, or finds the job finished."""
    with begin(job, Config(out, **settings), lambda: inputs, makes, grows=grows) as record:
        return record


def finish(out: str, result: dict, makes: tuple[str, ...] = (), **settings) -> JobRecord:
    """The record of a start that finishes the job."""
    with begin("sample", Config(out, **settings), lambda: INPUTS, makes) as record:
        record.finish(result)
    return record
