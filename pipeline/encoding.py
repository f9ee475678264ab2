"""Tokenizing a source: read and decode in CPU tasks, encode in actors, commit whole shards."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.tokenizer import Tokenizer, from_pixels
from pipeline import cluster, files
from pipeline.exports import load_tokenizer, read_card
from pipeline.images.decode import Reject, View, center_view
from pipeline.images.sources import Source, open_folder
from pipeline.progress import ProgressLine, say
from pipeline.tokens.writer import committed_rejects, difference, missing_shards, publish, start_store, write_shard
from storage_schemas.cards import ModelCard
from storage_schemas.manifest import Manifest, Plan, plan_from_json, to_json
from storage_schemas.tokens import KIND, OK, REJECTED, noise_seed, token_arrays


@dataclass(frozen=True)
class EncodeConfig:
    """A token store: which images, by which tokenizer, as which rows.

    views: every image gives one row a view. batch: images an encoder sees at once, one shape for every call.
    max_rejects: share of rows that may be unusable before the job ends without a store.
    """

    images: str
    tokenizer: str
    out: str
    views: tuple[View, ...] = ("center",)
    accumulated: bool = True
    latents: bool = False
    seed: int = 0
    shard_rows: int = 4096
    chunk_rows: int = 256
    batch: int = 64
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


def make_plan(config: EncodeConfig, source: Source, card: ModelCard) -> Plan:
    """The plan of a store: a function of the source, the tokenizer and the settings that touch the rows."""
    tokenizer = card.config
    T, d = tokenizer["schedule"]["num_steps"], tokenizer["quantizer"]["code_dim"]
    grid = tokenizer["image_size"] // 2 ** (len(tokenizer["autoencoder"]["multipliers"]) - 1)
    identity = {
        "tokenizer_digest": card.digest,
        "tokenizer_config": tokenizer,
        "noise_version": card.noise_version,
        "source_digest": source.digest,
        "classes": list(source.classes),
        "views": list(config.views),
        "seed": config.seed,
        "encoder_batch": config.batch,
    }
    rows = len(source) * len(config.views)
    shard_rows = min(config.shard_rows, -(-rows // config.chunk_rows) * config.chunk_rows)
    arrays = token_arrays(T, (d, grid, grid), config.accumulated, config.latents)
    return Plan(KIND, rows, shard_rows, config.chunk_rows, arrays, identity)


def decode_shard(batch: dict[str, np.ndarray], *, size: int, channels: int) -> dict[str, np.ndarray]:
    """One work item (its urls, keys, labels and views) to the pixels and facts of its rows. Runs in a Ray task."""
    item = {name: values[0] for name, values in batch.items()}
    count = len(item["keys"])
    pixels = np.zeros((count, size, size, channels), np.uint8)
    facts: dict[str, list[Any]] = {"width": [], "height": [], "source_digest": [], "reason": []}
    for row, (url, view) in enumerate(zip(item["urls"], item["views"], strict=True)):
        width = height = 0
        reason = digest = ""
        try:
            data = _read(url)
            digest = hashlib.sha256(data).hexdigest()
            decoded = center_view(data, size, channels, view)
            pixels[row], width, height = decoded.pixels, decoded.width, decoded.height
        except Reject as reject:
            reason = str(reject)
        facts["source_digest"].append(digest)
        facts["width"].append(width)
        facts["height"].append(height)
        facts["reason"].append(reason)
    named = {"key": item["keys"], "view": item["views"], "label": item["labels"].astype(np.int32)}
    columns = {name: np.asarray(values) for name, values in {**facts, **named}.items()}
    return {"pixels": pixels, "shard": np.full(count, item["shard"]), **columns}


def _read(url: str) -> bytes:
    try:
        return files.read_bytes(url)
    except FileNotFoundError:
        raise Reject("the file is gone since it was listed") from None


class ShardEncoder:
    """A tokenizer replica: pixels of one shard to a committed shard. Runs as a Ray actor."""

    def __init__(self, tokenizer: str, store: str, plan: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(tokenizer)[0].to(self.device)
        self.store, self.plan = store, plan_from_json(plan)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        shard, identity = int(batch["shard"][0]), self.plan.identity
        pairs = zip(batch["key"], batch["view"], strict=True)
        seeds = np.array([noise_seed(identity["seed"], str(k), str(v)) for k, v in pairs], np.uint64)
        columns = encode_pixels(self.tokenizer, batch["pixels"], seeds, identity["encoder_batch"], self.device)
        columns |= {"noise_seed": seeds, "label": batch["label"]}
        start = self.plan.shard_range(shard).start
        rejected = np.flatnonzero(batch["reason"] != "")
        status = np.where(batch["reason"] != "", REJECTED, OK)
        index = {
            **{name: batch[name] for name in ("key", "label", "view")},
            "shard": batch["shard"].astype(np.int32),
            "row": np.arange(len(seeds), dtype=np.int32),
            **{name: batch[name].astype(np.int32) for name in ("width", "height")},
            "source_digest": batch["source_digest"],
            "status": status,
            "reason": batch["reason"],
        }
        wanted = {spec.name: columns[spec.name] for spec in self.plan.arrays}
        commit = write_shard(self.store, self.plan, shard, wanted, index, tuple(int(start + r) for r in rejected))
        return {"shard": [shard], "rows": [commit.rows], "rejected": [len(commit.rejected)]}


@torch.no_grad()
def encode_pixels(
    tokenizer: Tokenizer, pixels: np.ndarray, seeds: np.ndarray, batch: int, device: str
) -> dict[str, np.ndarray]:
    """uint8 pixels (N, H, W, C) and uint64 seeds (N,) to codes, accumulated and latents as stored.

    Every call of the encoder sees `batch` images; the last is padded, so that a row does not depend on its neighbours.
    """
    parts: dict[str, list[np.ndarray]] = {"codes": [], "accumulated": [], "latents": []}
    for start in range(0, len(pixels), batch):
        part, seed = pixels[start : start + batch], seeds[start : start + batch]
        pad = batch - len(part)
        images = np.pad(part, ((0, pad), (0, 0), (0, 0), (0, 0)))
        seeds_in = torch.from_numpy(np.pad(seed, (0, pad)).view(np.int64)).to(device)
        latents = tokenizer.encoder(from_pixels(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))).float()
        result = tokenizer.quantize(latents, seeds_in)
        keep = len(part)
        parts["codes"].append(result.codes[:keep].cpu().numpy().astype(np.uint16))
        parts["accumulated"].append(result.accumulated[:keep].cpu().numpy().astype(np.float16))
        parts["latents"].append(latents[:keep].cpu().numpy().astype(np.float16))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def work_items(source: Source, plan: Plan, shards: list[int]) -> list[dict[str, Any]]:
    """What each shard is made of; row r is image r // V in view r % V."""
    views = plan.identity["views"]
    items = []
    for shard in shards:
        rows = plan.shard_range(shard)
        images = [row // len(views) for row in rows]
        items.append(
            {
                "shard": shard,
                "keys": np.array([source.keys[i] for i in images]),
                "urls": np.array([source.url(i) for i in images]),
                "labels": np.array([source.labels[i] for i in images]),
                "views": np.array([views[row % len(views)] for row in rows]),
            }
        )
    return items


def encode(config: EncodeConfig) -> Manifest:
    """Run the job to its manifest. Only shards without a commit are worked on.

    Raises ValueError when the source or tokenizer is missing, the store holds another plan, or too many rejects.
    """
    card = read_card(config.tokenizer, "tokenizer")
    source = open_folder(files.absolute(config.images))
    plan = make_plan(config, source, card)
    start_store(config.out, plan)
    missing = missing_shards(config.out, plan)
    if missing:
        _run(config, source, plan, card, missing)
    _check_rejects(config, plan)
    return publish(config.out, plan)


def encode_again(config: EncodeConfig, plan: Plan, shards: list[int]) -> None:
    """Write these shards of a store that is there into `config.out`, which gets no manifest.

    Raises ValueError when the config makes another plan than that store's.
    """
    card = read_card(config.tokenizer, "tokenizer")
    source = open_folder(files.absolute(config.images))
    found = make_plan(config, source, card)
    if found != plan:
        raise ValueError(f"the config makes another store ({difference(plan, found)}); give that of the store's job")
    start_store(config.out, plan)
    _run(config, source, plan, card, shards)


def _run(config: EncodeConfig, source: Source, plan: Plan, card: ModelCard, missing: list[int]) -> None:
    size, channels = card.config["image_size"], card.config["autoencoder"]["in_channels"]
    prepare = _bind(decode_shard, size=size, channels=channels)
    arguments = {
        "tokenizer": files.absolute(config.tokenizer),
        "store": files.absolute(config.out),
        "plan": to_json(plan),
        "threads": config.threads,
    }
    done = sum(len(plan.shard_range(s)) for s in set(range(plan.num_shards)) - set(missing))
    rejects = 0
    say(f"tokenize: {plan.rows} rows in {plan.num_shards} shards, {len(missing)} to do; starting Ray")
    cluster.start(config.resources)
    try:
        with ProgressLine("tokenize", plan.rows, "images", done) as progress:
            items = work_items(source, plan, missing)
            for row in cluster.run_shards(items, prepare, ShardEncoder, arguments, config.resources):
                done, rejects = done + row["rows"], rejects + row["rejected"]
                progress.update(done, {"rejects": rejects})
    finally:
        cluster.stop()


def _bind(function: Callable, **fixed: Any) -> Callable[[dict], dict]:
    def call(batch: dict) -> dict:
        return function(batch, **fixed)

    return call


def _check_rejects(config: EncodeConfig, plan: Plan) -> None:
    """Raise ValueError, with the first few reasons, when more rows were rejected than the config allows."""
    rejects = committed_rejects(config.out, plan)
    if len(rejects) > config.max_rejects * plan.rows:
        listed = "; ".join(f"{key} ({reason})" for key, reason in rejects[:5])
        raise ValueError(
            f"{len(rejects)} of {plan.rows} images are unusable, more than max_rejects {config.max_rejects}: {listed}; "
            f"raise max_rejects, or mend them and delete {config.out} and its record"
        )
