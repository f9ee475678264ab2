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
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.rows import Killers, ShardReader, ShardRows, images_of
from rdpm.storage_schemas.manifest import Plan


@dataclass(frozen=True)
class ShardWork:
    """What is done with the shards of one store."""

    reader: ShardReader
    """Reads and decodes their images."""
    encoder: type[ShardEncoder]
    """The worker class."""
    arguments: dict[str, Any]
    """What it is called with."""

    def rehearse(self, shard: int, images: range, killers: Killers, stage: str) -> None:
        """Read some images of a shard, and encode them if `stage` is ACTOR; writes nothing."""
        others = set(range(len(images_of(self.reader.plan, shard)))).difference(images)
        rows = self.reader.read(shard, {shard: (*others, *killers.get(shard, ()))})
        if stage == ACTOR:
            self.encoder(**self.arguments).rehearse(rows)


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
    reader = ShardReader(plan, files.absolute(listing), tokenizer.image_size, tokenizer.autoencoder.in_channels)
    return ShardWork(reader, encoder, arguments)


def encode_shards(work: ShardWork, shards: list[int], config: TokenizeConfig) -> Generator[ShardDone, None, None]:
    """Write and commit these shards in the session that is open.

    A shard that kills its processes is taken apart, and encoded without the images that did it, which become rejects.
    Yields shards as they are done. Raises ValueError for what cannot run; ShardsDied for shards in which no image kills
    alone; see `run_shards` for more.
    """
    reader, resources, killers = work.reader, config.resources, dict[int, tuple[int, ...]]()
    device = reader.plan.tokens.device
    on_gpus = device == "cuda" or (device is None and gpus() > 0)
    first = partial(reader.first_image, shards[0])
    image = sight(f"the image {reader.keys(shards[0])[0]!r} of images={config.images}", first)
    probe = probe_of([config.out], [image])
    while True:
        pool = pool_for(resources, on_gpus, True, reader.shard_bytes(), len(shards))
        preparation = Preparation(partial(reader.read, killers=killers), ShardRows)
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
        images = {shard: len(images_of(work.reader.plan, shard)) for shard, where in stages.items() if where == stage}
        rehearse = partial(work.rehearse, killers=known, stage=stage)
        for shard, found in find_killers(rehearse, images, needs, resources.shard_minutes).items():
            killers[shard] = (*killers.get(shard, ()), *found)
            keys = [work.reader.keys(shard)[image] for image in found]
            say(f"tokenize: {', '.join(keys[:20])} kill their workers and are rejected")
    return killers
