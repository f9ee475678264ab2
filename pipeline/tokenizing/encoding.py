"""The shards of a store on Ray: read and decoded in tasks, encoded in replicas. Images that kill become rejects."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.cluster.capacity import Pool, pool_for
from rdpm.pipeline.cluster.isolate import find_killers
from rdpm.pipeline.cluster.probe import probe_of, sight
from rdpm.pipeline.cluster.session import Resources, gpus
from rdpm.pipeline.cluster.shards import ACTOR, TASK, Preparation, ShardDone, ShardsDied, Work, run_shards
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.decode import Reject
from rdpm.pipeline.images.listing import read_images
from rdpm.pipeline.images.worklist import read_worklist
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.rows import ShardRows, images_of, read_rows
from rdpm.storage_schemas.manifest import Plan

Killers = Mapping[int, tuple[int, ...]]
"""By shard, the images that kill their worker, numbered from 0 in the shard."""


@dataclass(frozen=True)
class ShardWork:
    """What is done with the shards of one store, on any node."""

    plan: Plan
    """Plan of the store."""
    listing: str
    """Folder or URL of the worklist."""
    tokenizer: TokenizerConfig
    """The tokenizer's config."""
    encoder: type[ShardEncoder]
    """The worker class."""
    arguments: dict[str, Any]
    """What it is called with."""

    def read(self, shard: int, killers: Killers) -> ShardRows:
        """The rows of a shard."""
        size, channels = self.tokenizer.image_size, self.tokenizer.autoencoder.in_channels
        without = killers.get(shard, ())
        return read_rows(shard, plan=self.plan, listing=self.listing, size=size, channels=channels, without=without)

    def rehearse(self, shard: int, images: range, killers: Killers, stage: str) -> None:
        """Read some images of a shard, and encode them if `stage` is ACTOR; writes nothing."""
        others = set(range(len(images_of(self.plan, shard)))).difference(images)
        rows = self.read(shard, {shard: (*others, *killers.get(shard, ()))})
        if stage == ACTOR:
            self.encoder(**self.arguments).rehearse(rows)

    def first_image(self, shard: int) -> bytes:
        """The first image of a shard as it lies in the source; nothing if it is gone or has changed."""
        ((_, data),) = read_images(read_worklist(self.listing, shard).slice(0, 1))
        return b"" if isinstance(data, Reject) else data

    def keys(self, shard: int) -> list[str]:
        """The keys of a shard's images."""
        return read_worklist(self.listing, shard)["key"].to_pylist()

    def shard_bytes(self) -> int:
        """Size of a shard's pixels."""
        return self.plan.shard_rows * self.tokenizer.image_size**2 * self.tokenizer.autoencoder.in_channels


def shard_work(
    config: TokenizeConfig, plan: Plan, listing: str, tokenizer: TokenizerConfig, encoder: type[ShardEncoder]
) -> ShardWork:
    """The work of a config, in a form that any node understands."""
    arguments = {
        "tokenizer": files.absolute(config.tokenizer),
        "store": files.absolute(config.out),
        "plan": plan,
        "threads": config.threads,
    }
    return ShardWork(plan, files.absolute(listing), tokenizer, encoder, arguments)


def encode_shards(work: ShardWork, shards: list[int], config: TokenizeConfig) -> Generator[ShardDone, None, None]:
    """Write and commit these shards in the session that is open.

    A shard that kills its processes is taken apart, and encoded without the images that did it, which become rejects.
    Yields shards as they are done. Raises ValueError for what cannot run; ShardsDied for shards in which no image kills
    alone; see `run_shards` for more.
    """
    resources, killers = config.resources, dict[int, tuple[int, ...]]()
    device = work.plan.tokens.device
    on_gpus = device == "cuda" or (device is None and gpus() > 0)
    first = partial(work.first_image, shards[0])
    image = sight(f"the image {work.keys(shards[0])[0]!r} of images={config.images}", first)
    probe = probe_of([config.out], [image])
    while True:
        pool = pool_for(resources, on_gpus, True, work.shard_bytes(), len(shards))
        preparation = Preparation(partial(work.read, killers=killers), ShardRows)
        try:
            yield from run_shards(shards, Work(preparation, work.encoder, work.arguments), resources, pool, probe)
            return
        except ShardsDied as died:
            known, shards = killers, sorted(died.stages)
            killers = _with_killers_of(work, died.stages, known, resources, pool)
            if killers == known:
                raise


def _with_killers_of(
    work: ShardWork, stages: Mapping[int, str], known: Killers, resources: Resources, pool: Pool
) -> dict[int, tuple[int, ...]]:
    """The known killers and those of shards that died. stages: by shard, where it died."""
    say(f"tokenize: shards {sorted(stages)[:20]} killed their workers; looking for the images that do it")
    killers = dict(known)
    for stage, needs in ((TASK, pool.task), (ACTOR, pool.replica)):
        images = {shard: len(images_of(work.plan, shard)) for shard, where in stages.items() if where == stage}
        rehearse = partial(work.rehearse, killers=known, stage=stage)
        for shard, found in find_killers(rehearse, images, needs, resources.shard_minutes).items():
            killers[shard] = (*killers.get(shard, ()), *found)
            keys = [work.keys(shard)[image] for image in found]
            say(f"tokenize: {', '.join(keys[:20])} kill their workers and are rejected")
    return killers
