"""rdpm verify: check every byte of a store and that its parts agree, and repair it."""

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from rdpm.jobs.arguments import parse
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.lease import Lease, held
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.repair import repair
from rdpm.pipeline.stores.staging import sweep
from rdpm.pipeline.stores.verification import Accumulate, Verification, verify_store
from rdpm.storage_schemas.manifest import STAGED

JOB = "verify"
_BATCH = 64
_SHOWN = 10  # classes named one by one
_SHARDS_PER_PROCESS = 8  # fewer are not worth the seconds in which a process starts
_WANTED = "STORE [tokenizer=FOLDER] [processes=N] [resume=FILE] [--repair CONFIG.yaml [key=value ...]]"


@dataclass(frozen=True)
class VerifyConfig:
    """What may stand before --repair."""

    store: str
    """The store: what stands first."""
    tokenizer: str = ""
    """Folder of the tokenizer that wrote the store, to compare codes and z'_T."""
    processes: int = 0
    """Processes that read shards; 0 for one per core, but no more than one for every few shards."""
    resume: str = ""
    """File that lists the shards that are verified; a verification that was killed goes on with it."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ValueError(f"processes is {self.processes}; use 1 or more, or 0 for one per core")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError that names what is damaged."""
    at = arguments.index("--repair") if "--repair" in arguments else len(arguments)
    store, options, repair_by = arguments[:at][:1], arguments[:at][1:], arguments[at + 1 :]
    pairs = all("=" in given for given in (*options, *repair_by[1:]))
    if not store or bool(repair_by) != (at < len(arguments)) or not pairs:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not {_WANTED}")
    _verify(parse(VerifyConfig, JOB, [f"store={json.dumps(store[0])}", *options]), repair_by)


def _verify(options: VerifyConfig, repair_by: list[str]) -> None:
    store = open_store(options.store)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = store.manifest.plan.num_shards // _SHARDS_PER_PROCESS
    processes = options.processes or max(1, min(cores, most))
    accumulate = _FromCodes(store, options.tokenizer, cores, processes) if options.tokenizer else None
    verify = partial(verify_store, store, accumulate, quiet=False, processes=processes, resume=options.resume)
    found = verify()
    if repair_by:
        with held(store.url, f"{JOB} --repair") as lease:
            sweep(options.store)
            if found.findings:
                _repair(store, found, lease, repair_by[0], repair_by[1:])
                found = verify()
    if found.findings:
        first = "; ".join(f.sentence.removesuffix(f"; run rdpm verify {store.url}") for f in found.findings[:5])
        count = len(found.findings)
        raise ValueError(
            f"{count} {'problem' if count == 1 else 'problems'} in {store.url}: {first}; repair it "
            f"by rdpm verify {store.url} --repair CONFIG.yaml, with the config that made it"
        )
    _tell(store, bool(accumulate), found)


@dataclass(frozen=True)
class _FromCodes:
    """Codes to z'_T by the tokenizer in a folder. Each process loads it when it needs it first."""

    store: Store
    """What is verified."""
    folder: str
    """Folder or URL of the tokenizer that wrote the store."""
    cores: int
    """Cores of the machine."""
    processes: int
    """Processes that share them."""

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """See `Accumulate`. Raises ValueError unless the tokenizer wrote the store."""
        return self._accumulate(codes)

    @cached_property
    def _accumulate(self) -> Accumulate:
        import torch

        from rdpm.pipeline.inference.codec import Codec  # with torch, which checking bytes does not need
        from rdpm.pipeline.tokenizing.plan import tokenizer_of

        if self.processes > 1:
            torch.set_num_threads(max(1, self.cores // self.processes))
        return Codec(tokenizer_of(self.store, self.folder), _BATCH, torch.device("cpu")).accumulate


def _repair(store: Store, found: Verification, lease: Lease, path: str, overrides: list[str]) -> None:
    from rdpm.pipeline.tokenizing.plan import TokenizeConfig
    from rdpm.pipeline.tokenizing.stage import tokenize_again  # with Ray, which checking does not need

    config = load_config(TokenizeConfig, "tokenize", path, overrides)

    def make_again(folder: str, shards: list[int]) -> None:
        tokenize_again(replace(config, out=folder), store.manifest.plan, shards, lease)

    again = repair(store, found.findings, make_again)
    say(f"verify: records restored; shards made again: {', '.join(map(str, again)) or 'none'}")


def _tell(store: Store, compared: bool, found: Verification) -> None:
    plan = store.manifest.plan
    say(f"verify: {store.url} is undamaged: store {store.id[:12]}, {len(store)} rows, {plan.num_shards} shards")
    say(f"verify: {_labels(found, plan.identity.classes)}; {len(store.manifest.rejected)} rejects")
    if any(spec.name == "accumulated" for spec in plan.arrays):
        agreed = f"accumulated is what the codes give in {found.accumulated} rows"
        left_out = "not checked: whether accumulated is what the codes give; tokenizer=FOLDER checks it"
        say(f"verify: {agreed if compared else left_out}")
    late = len(files.list_names(files.join(store.url, STAGED)))
    if late:
        say(
            f"verify: {STAGED}/ holds {late} objects of attempts that came too late; the job, or --repair, deletes them"
        )


def _labels(found: Verification, classes: tuple[str, ...]) -> str:
    """Rows by class: each where they are few, else the range."""
    counts = found.labels
    if len(counts) > _SHOWN:
        return f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} rows"
    names = {label: classes[label] if label < len(classes) else str(label) for label in counts}
    return "rows by class: " + ", ".join(f"{names[label]} {count}" for label, count in counts.items())
