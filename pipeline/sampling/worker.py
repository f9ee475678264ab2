"""The worker of the stage: draws, writes and commits one shard per call. Runs as a Ray actor."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.cluster.shards import ShardDone
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.inference.batches import device_of_kind
from rdpm.pipeline.inference.precision import rounding_of
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.inference.rivals import RivalSampler, load_sampler
from rdpm.pipeline.sampling.plan import labels_and_seeds
from rdpm.pipeline.stores.writer import leave_environment, write_shard
from rdpm.storage_schemas.manifest import Plan


@dataclass(frozen=True)
class SetToDraw:
    """One sample set of a job, in a form that workers on other machines can use."""

    generator: str
    """Path or URL of the generator's export."""
    tokenizer: str
    """Path or URL of the tokenizer's export."""
    store: str
    """Path or URL of the sample store."""
    plan: Plan
    """Plan of the store."""


class ShardSampler:
    """Draws the shards of several sets. It holds the models of one set, and loads others when a shard needs them.

    Raises ValueError where there is no device of the kind that a plan names, and for a set that a release began which
    rounds otherwise.
    """

    def __init__(self, sets: list[SetToDraw], threads: int) -> None:
        torch.set_num_threads(threads)
        self.sets = sets
        self.model = functools.lru_cache(maxsize=1)(self._load)

    def _load(self, position: int) -> RDPM | RivalSampler:
        to_draw = self.sets[position]
        identity = to_draw.plan.samples
        if identity.rounding != rounding_of(identity.precision, identity.compile):
            raise ValueError(
                f"{to_draw.store} was begun by another release, which rounds otherwise in bf16 and when compiled; "
                "finish it with that release, or draw it again elsewhere"
            )
        leave_environment(to_draw.store)
        # A plan of version 1 names no kernel. Its release used the one that the generator's card names.
        attention = identity.attention or read_card(to_draw.generator, "generator").config.get("attention", "sdpa")
        return load_sampler(
            to_draw.generator,
            to_draw.tokenizer,
            batch=identity.batch,
            precision=identity.precision,
            compile=identity.compile,
            attention=attention,
            device=device_of_kind(identity.device),
            evaluations=identity.sampler.get("evaluations", 0),
        )

    def __call__(self, number: int) -> ShardDone:
        """Draw, write and commit one shard. number: of the work item; see `locate`."""
        position, shard = locate(number, [each.plan for each in self.sets])
        to_draw, model = self.sets[position], self.model(position)
        identity, rows = to_draw.plan.samples, to_draw.plan.shard_range(shard)
        indices = np.arange(rows.start, rows.stop, dtype=np.int64)
        labels, seeds = labels_and_seeds(indices, identity.per_class, identity.labels, identity.seed)
        settings = {name: value for name, value in identity.sampler.items() if name != "evaluations"}
        configs = [SamplerConfig(**settings)] * len(rows)
        drawn = model.draw(labels.astype(np.int64), seeds.view(np.int64), configs)
        columns = {"images": drawn.images, "codes": drawn.codes, "label": labels, "seed": seeds}
        columns = {spec.name: columns[spec.name] for spec in to_draw.plan.arrays}
        index = {"index": indices, "label": labels, "seed": seeds}
        commit = write_shard(to_draw.store, to_draw.plan, shard, columns, index)
        return ShardDone(number, commit.rows)


def locate(number: int, plans: Sequence[Plan]) -> tuple[int, int]:
    """The position of a work item's set, and its shard in that set. Items number the shards of all sets in order."""
    for position, plan in enumerate(plans):
        if number < plan.num_shards:
            return position, number
        number -= plan.num_shards
    raise AssertionError(number)
