"""The stage behind `rdpm calibrate`: a generator to the same generator with matched latents (`models.matching`).

It draws as `rdpm sample` does and compares the latents that the decoder would get with those of a token store. The
weights stay as they are. Rivals may be matched too: docs/comparison.md.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rdpm.models.fields import EXECUTION
from rdpm.models.generator import Generator
from rdpm.models.matching import Matching, boxes, matching_of
from rdpm.models.noise import Stream, child_seeds, normal
from rdpm.models.rivals.rival import Rival
from rdpm.models.sampler import SamplerConfig
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import generator_config, read_pair, tokenizer_config
from rdpm.pipeline.exports.weights import load_model, load_tokenizer, save_export
from rdpm.pipeline.foundation.config import to_dict
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.inference.batches import in_batches
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.inference.rivals import RivalSampler, sampler_of
from rdpm.pipeline.sampling.plan import check_drawing
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.storage_schemas.cards import CARD, WEIGHTS, ModelCard
from rdpm.storage_schemas.tokens import KIND

JOB = "calibrate"


@dataclass(frozen=True)
class CalibrateConfig:
    """Give a generator matched latents: samples get the means and the covariance of real images' latents."""

    generator: str = field(metadata=EXECUTION)
    """Export of a generator without matching."""
    tokenizer: str = field(metadata=EXECUTION)
    """Export of its tokenizer."""
    store: str = field(metadata=EXECUTION)
    """A token store that it was trained on."""
    out: str = field(metadata=EXECUTION)
    """Folder or URL of the export with matching."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Settings that samples will be drawn with. A matching for one guidance does not suit another."""
    evaluations: int = 0
    """Forward passes per image of a rival that has a choice; 0 for its usual number."""
    per_class: int = 200
    """Samples to draw per class, and most rows of the store per class to compare them with."""
    draws: int = 4
    """Noises per row where the store holds latents. Without latents, the store's own codes are taken."""
    boxes: int = 4
    """Most boxes per side in whose means latents are matched: the largest such number that divides the grid is used."""
    own_share: float = 0.0
    """How much of its own covariance a class gets; the rest is that within all classes. 0 makes one matrix, more than 0
    one per class, which needs many samples of each."""
    seed: int = 0
    """Seed of the samples and of all noise."""
    batch: int = 50
    """Images per call of the generator. Another number rounds differently."""
    threads: int = field(default=2, metadata=EXECUTION)
    """CPU threads."""

    def __post_init__(self) -> None:
        for name in ("per_class", "draws", "boxes", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"own_share is {self.own_share}; use a share from 0 to 1")


def run(config: CalibrateConfig) -> None:
    """Write the generator with its matching, unless its record says that this is done.

    Raises ValueError when models and store do not belong together, the generator has a matching, or rows are too few.
    """
    cards = read_pair(config.generator, config.tokenizer)
    store = open_store(config.store, KIND)
    _check(config, *cards, store)
    inputs = {"generator_digest": cards[0].digest, "store_id": store.id}
    with begin(JOB, config, lambda: inputs, (WEIGHTS, CARD)) as record:
        if record.lease is None:
            say(f"calibrate: {config.out} is already there")
            return
        torch.set_num_threads(config.threads)
        generator = load_model(config.generator)[0]
        if generator.matching is not None:
            raise ValueError(f"generator {config.generator} has a matching; give the export that it was made from")
        generator.matching = _matching(generator, store, config)
        record.lease.check()
        old, weights = cards[0], generator.state_dict()
        training = {**old.training, JOB: {"sampler": to_dict(config.sampler), **inputs}}
        card = save_export(config.out, "generator", generator.config, weights, old.made_from, training, old.steps)
        record.finish({"digest": card.digest, "samples": config.per_class * len(old.classes)})
        say(f"calibrate: {config.out} is generator {card.digest[:12]}")


def _check(config: CalibrateConfig, generator: ModelCard, tokenizer: ModelCard, store: Store) -> None:
    tokens = store.manifest.plan.tokens
    if tokens.tokenizer_digest != tokenizer.digest:
        raise ValueError(f"store {config.store} was made by another tokenizer than {config.tokenizer}; give its own")
    if tokens.classes != generator.classes:
        raise ValueError(
            f"store {config.store} has classes {list(tokens.classes)[:10]}, but the generator draws "
            f"{list(generator.classes)[:10]}; give a store that it was trained on"
        )
    if tokenizer_config(tokenizer).continuous and "latents" not in store.specs:
        raise ValueError(f"store {config.store} has no latents, which the decoder gets; make one with latents: true")
    check_drawing(generator_config(generator), config.sampler, config.evaluations)


def _matching(generator: Generator | Rival, store: Store, config: CalibrateConfig) -> Matching:
    space, tokenizer = generator.config, load_tokenizer(config.tokenizer)[0]
    model = sampler_of(generator, tokenizer, batch=config.batch, evaluations=config.evaluations)
    side = max(side for side in range(1, min(config.boxes, space.grid) + 1) if space.grid % side == 0)
    labels = np.repeat(np.arange(space.num_classes), config.per_class)
    say(f"calibrate: drawing {len(labels)} samples, whose latents are matched in {side} x {side} boxes")
    drawn = _draw(model, labels, config)
    real, real_labels = _real(tokenizer, store, side, config, model.device)
    rows = boxes(torch.from_numpy(drawn), side), torch.from_numpy(labels), real, real_labels
    return matching_of(*rows, space.num_classes, config.own_share).to(model.device)


def _draw(model: RDPM | RivalSampler, labels: np.ndarray, config: CalibrateConfig) -> np.ndarray:
    """What the decoder would get of samples of these classes."""
    seeds, parts = child_seeds(config.seed, torch.arange(len(labels))).numpy(), []
    with ProgressLine("calibrate", len(labels), "samples") as progress:
        for start in range(0, len(labels), config.batch):
            rows = slice(start, start + config.batch)
            drawing = labels[rows], seeds[rows], [config.sampler] * len(labels[rows])
            if isinstance(model, RDPM):
                parts.append(model.codec.accumulate(model.draw(*drawing).codes))
            else:
                parts.append(model.latents(*drawing))
            progress.update(start + len(parts[-1]))
    return np.concatenate(parts)


def _real(
    tokenizer: Tokenizer, store: Store, side: int, config: CalibrateConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The box means of what the decoder sees of rows of the store, and their labels."""
    fresh, quantizer = "latents" in store.specs, tokenizer.quantizer
    rows, labels = _rows(store, "latents" if fresh else "codes", config.per_class, config.seed)

    def accumulate(_: range, rows: Tensor, seeds: Tensor) -> tuple[Tensor]:
        if tokenizer.config.continuous:
            return (boxes(rows, side),)
        if not fresh:
            return (boxes(quantizer.codebook.accumulated(rows, rows.shape[1]), side),)
        shape = tuple(rows.shape[1:])
        return (boxes(quantizer.quantize(rows, lambda t: normal(seeds, t, shape, Stream.TOKENIZER)).accumulated, side),)

    values = rows.astype(np.float32 if fresh else np.int64)
    draws = range(1, 1 + config.draws) if fresh and not tokenizer.config.continuous else range(1)
    seeds = [child_seeds(config.seed + draw, torch.arange(len(labels))).numpy() for draw in draws]
    found = [in_batches(accumulate, (values, each), config.batch, device)[0] for each in seeds]
    return torch.from_numpy(np.concatenate(found)), torch.from_numpy(labels).repeat(len(found))


def _rows(store: Store, name: str, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each class that hold an image, drawn at random, in this array, and their labels.

    Rows of a class lie in the order of their names, so that its first ones may have much in common. Reads one shard at
    a time.
    """
    plan, every = store.manifest.plan, store.read_all("label")
    rejected = [store.manifest.rejected_of(shard) for shard in range(plan.num_shards)]
    usable = ~np.isin(np.arange(len(every)), np.concatenate(rejected))
    chosen = np.zeros(len(every), bool)
    for label in range(len(plan.tokens.classes)):
        found = np.flatnonzero(usable & (every == label))
        order = permute(np.arange(len(found)), len(found), seed, np.full(len(found), label))
        chosen[found[order[:per_class]]] = True
    parts = []
    for shard in range(plan.num_shards):
        inside = chosen[np.asarray(plan.shard_range(shard))]
        if inside.any():
            parts.append(store.shard(shard, (name,))[name][inside])
    return np.concatenate(parts), every[chosen].astype(np.int64)
