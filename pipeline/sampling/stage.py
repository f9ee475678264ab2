"""Drawing sets of images: a Ray Data graph over shards of (index, label, seed), both models in each actor."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import pydantic
import torch

from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig, preset
from rdpm.pipeline.cluster import cluster
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.inference.rdpm import RDPM, Precision, open_cards
from rdpm.pipeline.sampling.formats import Format, write_files
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import missing_shards, publish, start_store, write_shard
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import Manifest, Plan, plan_from_json, to_json
from rdpm.storage_schemas.samples import KIND, sample_arrays

SamplerSetting = Annotated[SamplerConfig, pydantic.BeforeValidator(lambda v: preset(v) if isinstance(v, str) else v)]
"""SamplerConfig in a config file: its fields, or the name of a preset."""


@dataclass(frozen=True)
class SampleConfig:
    """A set of samples: per_class images of every class, in a shuffled order fixed by the seed.

    labels: the classes drawn, all of them when empty. batch: images the generator sees at once, one shape for every
    call. precision, compiled: as in RDPM; like `batch`, they round differently and so belong to what a sample is.
    formats: what is written beside the store: "npz" (OUT/samples.npz, which the ADM evaluator reads), "png"
    (OUT/png/<class>/<index>.png) and "tar" (OUT/tar/<shard>.tar, a WebDataset).
    """

    generator: str
    tokenizer: str
    out: str
    sampler: SamplerSetting = field(default_factory=SamplerConfig)
    labels: tuple[int, ...] = ()
    per_class: int = 50
    seed: int = 0
    shard_rows: int = 1000
    batch: int = 50
    precision: Precision = "fp32"
    compiled: bool = False
    formats: tuple[Format, ...] = ("npz",)
    threads: int = 1
    resources: cluster.Resources = field(default_factory=cluster.Resources)

    def __post_init__(self) -> None:
        if self.per_class < 1 or self.batch < 1:
            raise ValueError(f"per_class is {self.per_class} and batch is {self.batch}; both need 1 or more")
        # Then sample i has the same place in the same batch for every shard size.
        if self.shard_rows < 1 or self.shard_rows % self.batch:
            raise ValueError(f"shard_rows is {self.shard_rows}; use a multiple of batch {self.batch}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels is {list(self.labels)}; name each class once")


def make_plan(config: SampleConfig, generator: ModelCard, tokenizer: ModelCard) -> Plan:
    """The plan of a sample store: a function of the models and the settings. Raises ValueError for a foreign label."""
    space = generator.config
    foreign = [label for label in config.labels if not 0 <= label < space["num_classes"]]
    if foreign:
        raise ValueError(f"label {foreign[0]} is no class of the generator; use 0 to {space['num_classes'] - 1}")
    labels = config.labels or range(space["num_classes"])
    identity = {
        "generator_digest": generator.digest,
        "tokenizer_digest": tokenizer.digest,
        "noise_version": generator.noise_version,
        "sampler": asdict(config.sampler),
        "labels": list(labels),
        "per_class": config.per_class,
        "seed": config.seed,
        "batch": config.batch,
        "precision": config.precision,
        "compiled": config.compiled,
        "classes": generator.made_from["classes"],
    }
    rows = len(labels) * config.per_class
    arrays = sample_arrays(space["num_steps"], space["grid"], tokenizer.config["image_size"])
    shard_rows = min(config.shard_rows, rows)
    return Plan(KIND, rows, shard_rows, shard_rows, arrays, identity)


def labels_and_seeds(
    indices: np.ndarray, per_class: int, labels: Sequence[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What sample i is: its label int32 and its seed uint64.

    Labels are balanced over the whole set and shuffled, for the ADM evaluator's Inception Score reads splits in order.
    """
    shuffled = permute(indices, per_class * len(labels), seed, np.zeros_like(indices))
    seeds = child_seeds(seed, torch.from_numpy(indices)).numpy().view(np.uint64)
    return np.array(labels, np.int32)[shuffled // per_class], seeds


class ShardSampler:
    """Both models of a set: the number of a work item to a committed shard. Runs as a Ray actor.

    sets: generator, tokenizer, store and plan of each set; see `locate`.
    """

    def __init__(self, sets: list[dict[str, Any]], threads: int) -> None:
        torch.set_num_threads(threads)
        self.sets = [{**each, "plan": plan_from_json(each["plan"])} for each in sets]
        self.plans = [each["plan"] for each in self.sets]
        self.model = functools.lru_cache(maxsize=1)(RDPM.from_pretrained)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        number = int(batch["shard"][0])
        position, shard = locate(number, self.plans)
        each, plan = self.sets[position], self.plans[position]
        facts = plan.identity
        model = self.model(
            each["generator"], each["tokenizer"],
            batch=facts["batch"], precision=facts["precision"], compiled=facts["compiled"],
        )  # fmt: skip
        rows = plan.shard_range(shard)
        indices = np.arange(rows.start, rows.stop, dtype=np.int64)
        labels, seeds = labels_and_seeds(indices, facts["per_class"], facts["labels"], facts["seed"])
        configs = [SamplerConfig(**facts["sampler"])] * len(rows)
        drawn = model.draw(labels.astype(np.int64), seeds.view(np.int64), configs)
        columns = {"images": drawn.images, "codes": drawn.codes, "label": labels, "seed": seeds}
        commit = write_shard(each["store"], plan, shard, columns, {"index": indices, "label": labels, "seed": seeds})
        return {"shard": [number], "rows": [commit.rows]}


def locate(number: int, plans: Sequence[Plan]) -> tuple[int, int]:
    """The set, and the shard of that set, of a work item: items count the shards of all sets on end."""
    for position, plan in enumerate(plans):
        if number < plan.num_shards:
            return position, number
        number -= plan.num_shards
    raise AssertionError(number)


def sample_set(config: SampleConfig) -> Manifest:
    """Run the job to its manifest and its files. Only shards without a commit are drawn.

    Raises ValueError when a model is missing, the two do not belong together, or the store holds another plan.
    """
    return sample_sets([config])[0]


def sample_sets(configs: Sequence[SampleConfig]) -> list[Manifest]:
    """Several sets in one run, with the resources and threads of the first."""
    plans = [make_plan(config, *open_cards(config.generator, config.tokenizer)) for config in configs]
    work, first = [], 0
    for config, plan in zip(configs, plans, strict=True):
        start_store(config.out, plan)
        work += [first + shard for shard in missing_shards(config.out, plan)]
        first += plan.num_shards
    if work:
        _run(configs, plans, work)
    cluster.forget_attempts(configs[0].out)
    manifests = []
    for config, plan in zip(configs, plans, strict=True):
        manifests.append(publish(config.out, plan))
        write_files(Store(config.out, manifests[-1]), config.formats)
    return manifests


def _run(configs: Sequence[SampleConfig], plans: Sequence[Plan], work: list[int]) -> None:
    sets = [
        {
            "generator": files.absolute(config.generator),
            "tokenizer": files.absolute(config.tokenizer),
            "store": files.absolute(config.out),
            "plan": to_json(plan),
        }
        for config, plan in zip(configs, plans, strict=True)
    ]
    resources = configs[0].resources
    rows = sum(plan.rows for plan in plans)
    done = rows - sum(len(plans[position].shard_range(shard)) for position, shard in (locate(n, plans) for n in work))
    say(f"sample: {rows} images in {sum(plan.num_shards for plan in plans)} shards, {len(work)} to do; starting Ray")
    cluster.start(resources)
    try:
        with ProgressLine("sample", rows, "images", done) as progress:
            arguments = {"sets": sets, "threads": configs[0].threads}
            for row in cluster.run_shards(work, None, ShardSampler, arguments, resources, configs[0].out):
                done += row["rows"]
                progress.update(done)
    finally:
        cluster.stop()
