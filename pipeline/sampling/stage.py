"""The stage: a generator and its tokenizer to sample stores, on Ray."""

import contextlib
import math
from collections.abc import Sequence

from rdpm.pipeline.cluster.capacity import pool_for
from rdpm.pipeline.cluster.probe import probe_of, remove_nonce
from rdpm.pipeline.cluster.session import cluster_device, gpus, session
from rdpm.pipeline.cluster.shards import Work, run_shards
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease, held
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import JobRecord, begin
from rdpm.pipeline.inference.batches import device_kind
from rdpm.pipeline.sampling.formats import NAMES, write_files
from rdpm.pipeline.sampling.plan import SampleConfig, sample_plan
from rdpm.pipeline.sampling.worker import SetToDraw, ShardSampler, locate
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.staging import sweep
from rdpm.pipeline.stores.writer import missing_shards, publish, start_store
from rdpm.storage_schemas.manifest import MANIFEST, Manifest, Plan

JOB = "sample"


def run(config: SampleConfig) -> None:
    """Write the set config.out and its record, unless its record is finished. Raises ValueError; see `sample_set`."""
    run_sets([config])


def run_sets(configs: list[SampleConfig]) -> None:
    """Draw the sets whose records are not finished, in one session of Ray. Raises ValueError; see `sample_set`."""
    with contextlib.ExitStack() as leases:
        unfinished = []
        for config in configs:
            record = leases.enter_context(_begin(config))
            if record.lease is None:
                sweep(config.out)
                say(f"sample: {config.out} is already there")
            else:
                unfinished.append((config, record, record.lease))
        if unfinished:
            manifests = _draw([config for config, _, _ in unfinished], [lease for _, _, lease in unfinished])
            for (config, record, _), manifest in zip(unfinished, manifests, strict=True):
                record.finish({"store_id": manifest.store_id, "rows": manifest.plan.rows})
                say(f"sample: {config.out} is sample set {manifest.store_id[:12]}, {manifest.plan.rows} images")


def _begin(config: SampleConfig) -> contextlib.AbstractContextManager[JobRecord]:
    cards = read_pair(config.generator, config.tokenizer)
    sample_plan(config, *cards, device_kind(config.device))  # refuses an unknown label before anything is written
    inputs = {"generator_digest": cards[0].digest, "tokenizer_digest": cards[1].digest}
    return begin(JOB, config, lambda: inputs, (MANIFEST, *(NAMES[name] for name in config.formats)))


def sample_set(config: SampleConfig) -> Manifest:
    """Draw and publish one set, and write its files. Shards that are committed already are not drawn again.

    Raises ValueError when a model is missing, the models do not belong together, another start holds the lease of the
    set, or the store holds another plan.
    """
    return sample_sets([config])[0]


def sample_sets(configs: Sequence[SampleConfig]) -> list[Manifest]:
    """`sample_set` for several sets in one session, with the resources and threads of the first config."""
    with contextlib.ExitStack() as leases:
        return _draw(configs, [leases.enter_context(held(config.out, JOB)) for config in configs])


def _draw(configs: Sequence[SampleConfig], leases: Sequence[Lease]) -> list[Manifest]:
    plans, work, first = [], [], 0
    for config in configs:
        cards = read_pair(config.generator, config.tokenizer)
        device = device_kind(cluster_device(config.device, config.resources))
        plan = start_store(config.out, sample_plan(config, *cards, device))
        work += [first + shard for shard in missing_shards(config.out, plan)]
        first += plan.num_shards
        plans.append(plan)
    if work:
        _run(configs, plans, work, leases)
    for lease in leases:
        lease.check()
    manifests = []
    for config, plan, lease in zip(configs, plans, leases, strict=True):
        remove_nonce(config.out)
        manifests.append(publish(config.out, plan, lease))
        write_files(Store(config.out, manifests[-1]), config.formats, lease)
    return manifests


def _run(configs: Sequence[SampleConfig], plans: Sequence[Plan], work: list[int], leases: Sequence[Lease]) -> None:
    """Draw the missing shards. Stops early when a lease is lost."""
    sets = [
        SetToDraw(files.absolute(config.generator), files.absolute(config.tokenizer), files.absolute(config.out), plan)
        for config, plan in zip(configs, plans, strict=True)
    ]
    resources = configs[0].resources
    rows = sum(plan.rows for plan in plans)
    done = rows - sum(len(plans[position].shard_range(shard)) for position, shard in (locate(n, plans) for n in work))
    say(f"sample: {rows} images in {sum(plan.num_shards for plan in plans)} shards, {len(work)} to do; starting Ray")
    draw = Work(None, ShardSampler, {"sets": sets, "threads": configs[0].threads})
    with session(resources), ProgressLine("sample", rows, "images", done) as progress:
        probe = probe_of([config.out for config in configs])
        pool = pool_for(resources, _on_gpus(plans), False, _shard_bytes(plans), len(work))
        with contextlib.closing(run_shards(work, draw, resources, pool, probe)) as finished:
            for shard in finished:
                done += shard.rows
                progress.update(done)
                if any(lease.lost for lease in leases):
                    return


def _on_gpus(plans: Sequence[Plan]) -> bool:
    devices = {plan.samples.device for plan in plans}
    return "cuda" in devices or (None in devices and gpus() > 0)


def _shard_bytes(plans: Sequence[Plan]) -> int:
    """Size of the images of the largest shard."""
    return max(
        plan.shard_rows * math.prod(spec.row_shape) for plan in plans for spec in plan.arrays if spec.name == "images"
    )
