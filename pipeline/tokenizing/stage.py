"""Tokenizing a source: read and decode in CPU tasks, encode in actors, commit whole shards."""

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch

from rdpm.models.tokenizer import Tokenizer, from_pixels
from rdpm.pipeline.cluster import cluster
from rdpm.pipeline.exports.exports import load_tokenizer, read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.images.decode import ViewWord, view_names
from rdpm.pipeline.images.worklist import ListingGone, Summary, Worklist, remove_worklists
from rdpm.pipeline.stores.writer import committed_rejects, difference, missing_shards, publish, start_store, write_shard
from rdpm.pipeline.tokenizing.rows import decode_shard, images_of
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import INDEX, MANIFEST, Manifest, Plan
from rdpm.storage_schemas.tokens import KIND, OK, REJECTED, noise_seed, token_arrays


@dataclass(frozen=True)
class EncodeConfig:
    """A token store: which images, by which tokenizer, as which rows.

    images: see `open_source`. views: every image gives one row a view, ten for the word ten-crop. batch: images an
    encoder sees at once, one shape for every call. precision, compile: of the encoder; the quantizer is always fp32.
    max_rejects: share of rows that may be unusable before the job ends without a store.
    """

    images: str
    tokenizer: str
    out: str
    views: tuple[ViewWord, ...] = ("center",)
    accumulated: bool = True
    latents: bool = False
    seed: int = 0
    shard_rows: int = 4096
    chunk_rows: int = 256
    batch: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    max_rejects: float = 0.001
    threads: int = 1
    resources: cluster.Resources = field(default_factory=cluster.Resources)

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"views is {list(self.views)}; name one or more, each once")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; use 1 or more")
        if self.chunk_rows < 1 or self.shard_rows < 1 or self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} must be a multiple of chunk_rows {self.chunk_rows}")
        if not 0 <= self.max_rejects < 1:
            raise ValueError(f"max_rejects is {self.max_rejects}; use a share from 0 to below 1")


def make_plan(config: EncodeConfig, images: Summary, card: ModelCard) -> Plan:
    """The plan of a store: a function of the source, the tokenizer and the settings that touch the rows."""
    tokenizer = card.config
    T, d = tokenizer["schedule"]["num_steps"], tokenizer["quantizer"]["code_dim"]
    grid = tokenizer["image_size"] // 2 ** (len(tokenizer["autoencoder"]["multipliers"]) - 1)
    views = view_names(config.views)
    identity = {
        "tokenizer_digest": card.digest,
        "tokenizer_config": tokenizer,
        "noise_version": card.noise_version,
        "source_digest": images.digest,
        "classes": list(images.classes),
        "views": views,
        "seed": config.seed,
        "encoder_batch": config.batch,
        "precision": config.precision,
        "compile": config.compile,
    }
    rows = images.images * len(views)
    shard_rows = min(config.shard_rows, -(-rows // config.chunk_rows) * config.chunk_rows)
    arrays = token_arrays(T, (d, grid, grid), config.accumulated, config.latents)
    return Plan(KIND, rows, shard_rows, config.chunk_rows, arrays, identity)


class ShardEncoder:
    """A tokenizer replica: pixels of one shard to a committed shard. Runs as a Ray actor."""

    def __init__(self, tokenizer: str, store: str, plan: Plan, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(tokenizer)[0].to(self.device)
        if plan.identity["compile"]:
            self.tokenizer.encoder.compile(dynamic=False)
        self.store, self.plan = store, plan

    def encode(self, pixels: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """What the tokenizer makes of a shard's pixels and seeds, as stored."""
        facts = self.plan.identity
        return encode_pixels(
            self.tokenizer, pixels, seeds, facts["encoder_batch"], self.device, bf16=facts["precision"] == "bf16"
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        shard = int(batch["shard"][0])
        pairs = zip(batch["key"], batch["view"], strict=True)
        seeds = np.array([noise_seed(self.plan.identity["seed"], str(k), str(v)) for k, v in pairs], np.uint64)
        columns = self.encode(batch["pixels"], seeds) | {"noise_seed": seeds, "label": batch["label"]}
        start = self.plan.shard_range(shard).start
        bad = batch["reason"] != ""
        index = {
            **{name: batch[name] for name in ("key", "label", "view", "shard")},
            "row": np.arange(len(seeds), dtype=np.int32),
            **{name: batch[name] for name in ("width", "height", "source_digest")},
            "status": np.where(bad, REJECTED, OK),
            "reason": batch["reason"],
        }
        wanted = {spec.name: columns[spec.name] for spec in self.plan.arrays}
        rejected = tuple(int(start + row) for row in np.flatnonzero(bad))
        commit = write_shard(self.store, self.plan, shard, wanted, index, rejected)
        return {"shard": [shard], "rows": [commit.rows], "rejected": [len(commit.rejected)]}


@torch.no_grad()
def encode_pixels(
    tokenizer: Tokenizer, pixels: np.ndarray, seeds: np.ndarray, batch: int, device: str, *, bf16: bool = False
) -> dict[str, np.ndarray]:
    """uint8 pixels (N, H, W, C) and uint64 seeds (N,) to codes, accumulated and latents as stored.

    Every call of the encoder sees `batch` images; the last is padded, so that a row does not depend on its neighbours.
    bf16: the encoder runs under autocast.
    """
    parts: dict[str, list[np.ndarray]] = {"codes": [], "accumulated": [], "latents": []}
    for start in range(0, len(pixels), batch):
        part, seed = pixels[start : start + batch], seeds[start : start + batch]
        pad = batch - len(part)
        images = np.pad(part, ((0, pad), (0, 0), (0, 0), (0, 0)))
        seeds_in = torch.from_numpy(np.pad(seed, (0, pad)).view(np.int64)).to(device)
        inputs = from_pixels(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            latents = tokenizer.encoder(inputs)
        latents = latents.float()
        result = tokenizer.quantize(latents, seeds_in)
        keep = len(part)
        parts["codes"].append(result.codes[:keep].cpu().numpy().astype(np.uint16))
        parts["accumulated"].append(result.accumulated[:keep].cpu().numpy().astype(np.float16))
        parts["latents"].append(latents[:keep].cpu().numpy().astype(np.float16))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def encode(config: EncodeConfig, worklist: Worklist | None = None, encoder: type = ShardEncoder) -> Manifest:
    """Run the job to its manifest. Only shards without a commit are worked on.

    worklist: the config's images, where they are listed already; it is the caller's. encoder: what runs as the actor.
    Raises ValueError when the source or tokenizer is missing, the store holds another plan, too many images are
    rejected, or a shard kills its worker again and again.
    """
    card = read_card(config.tokenizer, "tokenizer")
    if worklist is None:
        with closing(Worklist(config.images, config.out)) as mine:
            return encode(config, mine, encoder)
    plan = make_plan(config, worklist.summary, card)
    start_store(config.out, plan)
    missing = missing_shards(config.out, plan)
    if missing:
        try:
            _run(config, worklist, plan, card, missing, encoder)
        except ListingGone:
            if not files.exists(files.join(config.out, MANIFEST)):
                raise
            say(f"tokenize: another job has finished {config.out}")
    _check_rejects(config, plan)
    manifest = publish(config.out, plan)
    remove_worklists(config.out)
    cluster.forget_attempts(config.out)
    return manifest


def encode_again(config: EncodeConfig, plan: Plan, shards: list[int]) -> None:
    """Write these shards of a store that is there into `config.out`, which gets no manifest.

    Raises ValueError when the config makes another plan than that store's.
    """
    card = read_card(config.tokenizer, "tokenizer")
    with closing(Worklist(config.images, config.out)) as worklist:
        found = make_plan(config, worklist.summary, card)
        if found != plan:
            raise ValueError(
                f"the config makes another store ({difference(plan, found)}); give that of the store's job"
            )
        start_store(config.out, plan)
        _run(config, worklist, plan, card, shards, ShardEncoder)
    cluster.forget_attempts(config.out)


def _run(
    config: EncodeConfig, worklist: Worklist, plan: Plan, card: ModelCard, missing: list[int], encoder: type
) -> None:
    """Encode the missing shards; ends early when too many rows are rejected for a store."""
    worklist.write({shard: images_of(plan, shard) for shard in missing})
    size, channels = card.config["image_size"], card.config["autoencoder"]["in_channels"]
    prepare = partial(decode_shard, plan=plan, listing=files.absolute(worklist.folder), size=size, channels=channels)
    arguments = {
        "tokenizer": files.absolute(config.tokenizer),
        "store": files.absolute(config.out),
        "plan": plan,
        "threads": config.threads,
    }
    done, rejects = plan.rows - sum(len(plan.shard_range(shard)) for shard in missing), 0
    shards = plan.num_shards - len(missing)
    say(f"tokenize: {plan.rows} rows in {plan.num_shards} shards, {len(missing)} to do; starting Ray")
    cluster.start(config.resources)
    try:
        with ProgressLine("tokenize", plan.rows, "images", done) as progress:
            for row in cluster.run_shards(missing, prepare, encoder, arguments, config.resources, config.out):
                done, rejects, shards = done + row["rows"], rejects + row["rejected"], shards + 1
                progress.update(done, {"shards": f"{shards}/{plan.num_shards}", "rejects": rejects})
                if rejects > config.max_rejects * plan.rows:
                    return
    finally:
        cluster.stop()


def _check_rejects(config: EncodeConfig, plan: Plan) -> None:
    """Raise ValueError, with the first of the list, when more rows were rejected than the config allows."""
    rejects = committed_rejects(config.out, plan)
    if len(rejects) > config.max_rejects * plan.rows:
        listed = "; ".join(f"{key} ({reason})" for key, reason in rejects[:20])
        raise ValueError(
            f"{len(rejects)} of {plan.rows} images are unusable, more than max_rejects {config.max_rejects}: {listed}"
            f"{'; ...' if len(rejects) > 20 else ''} (all are in {config.out}/{INDEX}, with their reasons); "
            f"raise max_rejects, or mend them and delete {config.out} and its record"
        )
