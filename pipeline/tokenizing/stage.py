"""The stage: images and a tokenizer to a token store, on Ray."""

import contextlib
import functools
from contextlib import closing
from typing import Any

from rdpm.pipeline.cluster.probe import remove_nonce
from rdpm.pipeline.cluster.session import cluster_device, session
from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.foundation.lease import Lease, held
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import begin, read_record
from rdpm.pipeline.images.sources.source import open_source
from rdpm.pipeline.images.worklist import ListingGone, Worklist, remove_worklists
from rdpm.pipeline.inference.batches import device_kind
from rdpm.pipeline.stores.staging import sweep
from rdpm.pipeline.stores.writer import committed_rejects, difference, missing_shards, publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.encoding import encode_shards, shard_work
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import images_of
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import INDEX, MANIFEST, Manifest, Plan

JOB = "tokenize"


def run(config: TokenizeConfig) -> None:
    """Write the store config.out and its record, unless its record is finished. Raises ValueError; see `tokenize`."""
    digest, recorded = read_card(config.tokenizer, "tokenizer").digest, _recorded_digest(config)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def listed() -> Worklist:
            return stack.enter_context(closing(Worklist(config.images, config.out)))

        def inputs() -> dict[str, Any]:
            return {"tokenizer_digest": digest, "source": recorded or listed().summary.digest}

        record = stack.enter_context(begin(JOB, config, inputs, (MANIFEST,)))
        if record.lease is None:
            sweep(config.out)
            say(f"tokenize: {config.out} is already there")
            return
        manifest = _tokenize(config, listed(), ShardEncoder, record.lease)
        result = {"store_id": manifest.store_id, "rows": manifest.plan.rows, "rejected": len(manifest.rejected)}
        record.finish({**result, "containers": listed().source.fingerprint})
    counts = f"{manifest.plan.rows} rows, {len(manifest.rejected)} rejects"
    say(f"tokenize: {config.out} is store {manifest.store_id[:12]}, {counts}")


def _recorded_digest(config: TokenizeConfig) -> str:
    """The source's digest in the finished record, if the containers have not changed since, else "".

    Then the images need not be listed.
    """
    record = read_record(config.out)
    fingerprint = open_source(config.images).fingerprint
    if record and fingerprint and record.result.get("containers") == fingerprint:
        return record.inputs["source"]
    return ""


def tokenize(config: TokenizeConfig, encoder: type[ShardEncoder] = ShardEncoder) -> Manifest:
    """Write and publish the store, without a record. Shards that are committed already are not encoded again.

    encoder: the worker class. Raises ValueError when the source or tokenizer is missing, another start holds the lease
    of the store, the store holds another plan, too many rows are rejected, or a shard kills its worker three times.
    """
    with held(config.out, JOB) as lease, closing(Worklist(config.images, config.out)) as worklist:
        return _tokenize(config, worklist, encoder, lease)


def _tokenize(config: TokenizeConfig, worklist: Worklist, encoder: type[ShardEncoder], lease: Lease) -> Manifest:
    card = read_card(config.tokenizer, "tokenizer")
    plan = start_store(config.out, token_plan(config, worklist.summary, card, _device(config)))
    missing = missing_shards(config.out, plan)
    if missing:
        try:
            _run(config, worklist, plan, card, missing, encoder, lease)
        except ListingGone:
            lease.check()  # whoever took over has published the store and deleted the listing
            raise
    lease.check()
    _check_rejects(config, plan)
    manifest = publish(config.out, plan, lease)
    lease.check()
    remove_worklists(config.out)
    remove_nonce(config.out)
    return manifest


def tokenize_again(config: TokenizeConfig, plan: Plan, shards: list[int], lease: Lease) -> None:
    """Encode these shards of an existing store of this plan into `config.out`, which gets no manifest.

    lease: of the existing store. Raises ValueError when the config makes another plan.
    """
    card = read_card(config.tokenizer, "tokenizer")
    with closing(Worklist(config.images, config.out)) as worklist:
        change = difference(plan, token_plan(config, worklist.summary, card, _device(config)))
        if change:
            raise ValueError(f"the config makes another store ({change}); give the config that made this one")
        start_store(config.out, plan)
        _run(config, worklist, plan, card, shards, ShardEncoder, lease)
    lease.check()
    remove_nonce(config.out)


def _run(
    config: TokenizeConfig,
    worklist: Worklist,
    plan: Plan,
    card: ModelCard,
    missing: list[int],
    encoder: type[ShardEncoder],
    lease: Lease,
) -> None:
    """Encode the missing shards. Stops early when too many rows are rejected, and when the lease is lost."""
    worklist.write({shard: images_of(plan, shard) for shard in missing})
    work = shard_work(config, plan, worklist.folder, tokenizer_config(card), encoder)
    rows, rejects = plan.rows - sum(len(plan.shard_range(shard)) for shard in missing), 0
    shards = plan.num_shards - len(missing)
    say(f"tokenize: {plan.rows} rows in {plan.num_shards} shards, {len(missing)} to do; starting Ray")
    with (
        session(config.resources),
        ProgressLine("tokenize", plan.rows, "images", rows) as progress,
        closing(encode_shards(work, missing, config)) as finished,
    ):
        for done in finished:
            rows, rejects, shards = rows + done.rows, rejects + done.rejected, shards + 1
            progress.update(rows, {"shards": f"{shards}/{plan.num_shards}", "rejects": rejects})
            if rejects > config.max_rejects * plan.rows or lease.lost:
                return


def _device(config: TokenizeConfig) -> str:
    return device_kind(cluster_device(config.device, config.resources))


def _check_rejects(config: TokenizeConfig, plan: Plan) -> None:
    """Raise ValueError, which lists the first of them, when more rows were rejected than the config allows."""
    rejects = committed_rejects(config.out, plan)
    if len(rejects) > config.max_rejects * plan.rows:
        listed = "; ".join(f"{key} ({reason})" for key, reason in rejects[:20])
        raise ValueError(
            f"{len(rejects)} of {plan.rows} rows are unusable, more than max_rejects {config.max_rejects}: {listed}"
            f"{'; ...' if len(rejects) > 20 else ''} (all are in {config.out}/{INDEX}, with their reasons); "
            f"raise max_rejects, or repair these images and delete {config.out} and its record"
        )
