"""Drawing images: a Ray Data graph over (index, label, seed), models in each actor, whole shards out."""

import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from models.generator import Generator
from models.noise import child_seeds
from models.sampler import SamplerConfig, sample
from models.tokenizer import Tokenizer, to_pixels
from pipeline import cluster, files
from pipeline.exports import load_generator, load_tokenizer, read_card
from pipeline.order import permute
from pipeline.progress import ProgressLine, say
from pipeline.tokens.reader import Store
from pipeline.tokens.writer import missing_shards, publish, start_store, write_shard
from storage_schemas.cards import ModelCard
from storage_schemas.manifest import Manifest, Plan, plan_from_json, to_json
from storage_schemas.samples import KIND, sample_arrays


@dataclass(frozen=True)
class SampleConfig:
    """A set of samples: per_class images of every class, in a shuffled order fixed by the seed.

    batch: images the generator sees at once, one shape for every call. npz: also write OUT/samples.npz, which the ADM
    evaluator reads.
    """

    generator: str
    tokenizer: str
    out: str
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    per_class: int = 50
    seed: int = 0
    shard_rows: int = 1000
    batch: int = 50
    npz: bool = True
    threads: int = 1
    resources: cluster.Resources = field(default_factory=cluster.Resources)

    def __post_init__(self) -> None:
        if self.per_class < 1 or self.batch < 1:
            raise ValueError(f"per_class is {self.per_class} and batch is {self.batch}; both need 1 or more")
        # Then sample i has the same place in the same batch for every shard size.
        if self.shard_rows < 1 or self.shard_rows % self.batch:
            raise ValueError(f"shard_rows is {self.shard_rows}; use a multiple of batch {self.batch}")


def open_cards(config: SampleConfig) -> tuple[ModelCard, ModelCard]:
    """Cards of the generator and the tokenizer. Raises ValueError unless the generator was trained on its codes."""
    generator = read_card(config.generator, "generator")
    tokenizer = read_card(config.tokenizer, "tokenizer")
    trained_on = generator.made_from["tokenizer_digest"]
    if trained_on != tokenizer.digest:
        raise ValueError(
            f"generator {config.generator} was trained on codes of tokenizer {trained_on[:12]}, but {config.tokenizer} "
            f"is {tokenizer.digest[:12]}; give the tokenizer it was trained with"
        )
    return generator, tokenizer


def make_plan(config: SampleConfig, generator: ModelCard, tokenizer: ModelCard) -> Plan:
    """The plan of a sample store: a function of the models and the settings."""
    space = generator.config
    identity = {
        "generator_digest": generator.digest,
        "tokenizer_digest": tokenizer.digest,
        "noise_version": generator.noise_version,
        "sampler": asdict(config.sampler),
        "per_class": config.per_class,
        "seed": config.seed,
        "batch": config.batch,
        "classes": generator.made_from["classes"],
    }
    rows = space["num_classes"] * config.per_class
    arrays = sample_arrays(space["num_steps"], space["grid"], tokenizer.config["image_size"])
    shard_rows = min(config.shard_rows, rows)
    return Plan(KIND, rows, shard_rows, shard_rows, arrays, identity)


def labels_and_seeds(indices: np.ndarray, per_class: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What sample i is: its label int32 and its seed uint64.

    Labels are balanced over the whole set and shuffled, for the ADM evaluator's Inception Score reads splits in order.
    """
    shuffled = permute(indices, per_class * num_classes, seed, np.zeros_like(indices))
    seeds = child_seeds(seed, torch.from_numpy(indices)).numpy().view(np.uint64)
    return (shuffled // per_class).astype(np.int32), seeds


class ShardSampler:
    """A generator and a decoder: a shard number to a committed shard. Runs as a Ray actor."""

    def __init__(self, generator: str, tokenizer: str, store: str, plan: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = load_generator(generator)[0].to(self.device)
        self.tokenizer = load_tokenizer(tokenizer)[0].to(self.device)
        self.store, self.plan = store, plan_from_json(plan)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        shard, identity = int(batch["shard"][0]), self.plan.identity
        rows = self.plan.shard_range(shard)
        indices = np.arange(rows.start, rows.stop, dtype=np.int64)
        labels, seeds = labels_and_seeds(indices, identity["per_class"], len(identity["classes"]), identity["seed"])
        settings = SamplerConfig(**identity["sampler"])
        columns = draw(self.generator, self.tokenizer, labels, seeds, settings, identity["batch"], self.device)
        columns |= {"label": labels, "seed": seeds}
        commit = write_shard(self.store, self.plan, shard, columns, {"index": indices, "label": labels, "seed": seeds})
        return {"shard": [shard], "rows": [commit.rows]}


@torch.no_grad()
def draw(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: np.ndarray,
    seeds: np.ndarray,
    settings: SamplerConfig,
    batch: int,
    device: str,
) -> dict[str, np.ndarray]:
    """Images (N, H, W, 3) uint8 and codes (N, T, h, w) uint16 for labels (N,) int32 and seeds (N,) uint64.

    Every call of the models sees `batch` images; the last is padded, so a sample does not depend on its neighbours.
    """
    images, codes = [], []
    for start in range(0, len(labels), batch):
        label, seed = labels[start : start + batch], seeds[start : start + batch]
        keep, pad = len(label), batch - len(label)
        labels_in = torch.from_numpy(np.pad(label, (0, pad)).astype(np.int64)).to(device)
        seeds_in = torch.from_numpy(np.pad(seed, (0, pad)).view(np.int64)).to(device)
        drawn = sample(generator, tokenizer.quantizer.codebook, labels_in, seeds_in, settings)
        pixels = to_pixels(tokenizer.decode(drawn.accumulated[:, -1])).expand(-1, 3, -1, -1)
        images.append(pixels[:keep].permute(0, 2, 3, 1).cpu().numpy())
        codes.append(drawn.codes[:keep].cpu().numpy().astype(np.uint16))
    return {"images": np.ascontiguousarray(np.concatenate(images)), "codes": np.concatenate(codes)}


def sample_set(config: SampleConfig) -> Manifest:
    """Run the job to its manifest and its .npz. Only shards without a commit are drawn.

    Raises ValueError when a model is missing, the two do not belong together, or the store holds another plan.
    """
    generator, tokenizer = open_cards(config)
    plan = make_plan(config, generator, tokenizer)
    start_store(config.out, plan)
    missing = missing_shards(config.out, plan)
    if missing:
        _run(config, plan, missing)
    manifest = publish(config.out, plan)
    cluster.forget_attempts(config.out)
    if config.npz:
        write_npz(Store(config.out, manifest), files.join(config.out, "samples.npz"))
    return manifest


def _run(config: SampleConfig, plan: Plan, missing: list[int]) -> None:
    arguments = {
        "generator": files.absolute(config.generator),
        "tokenizer": files.absolute(config.tokenizer),
        "store": files.absolute(config.out),
        "plan": to_json(plan),
        "threads": config.threads,
    }
    done = sum(len(plan.shard_range(s)) for s in set(range(plan.num_shards)) - set(missing))
    say(f"sample: {plan.rows} images in {plan.num_shards} shards, {len(missing)} to do; starting Ray")
    cluster.start(config.resources)
    try:
        with ProgressLine("sample", plan.rows, "images", done) as progress:
            for row in cluster.run_shards(missing, None, ShardSampler, arguments, config.resources, config.out):
                done += row["rows"]
                progress.update(done)
    finally:
        cluster.stop()


def write_npz(store: Store, url: str) -> None:
    """The whole set as the ADM evaluator reads it: arr_0 images (N, H, W, 3) uint8, arr_1 labels (N,) int64.

    Written shard by shard, so memory holds one; the bytes depend on the store alone.
    """
    plan = store.manifest.plan
    shape = (plan.rows, *store.specs["images"].row_shape)
    shards = range(plan.num_shards)
    with files.atomic_file(url) as file, zipfile.ZipFile(file, "w") as archive:
        _write_member(archive, "arr_0", np.uint8, shape, (store.shard(i, ("images",))["images"] for i in shards))
        labels = (store.shard(i, ("label",))["label"].astype(np.int64) for i in shards)
        _write_member(archive, "arr_1", np.int64, (plan.rows,), labels)


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: type, shape: tuple[int, ...], parts: Iterator[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).tobytes())
