"""The settings of a set of samples, and the plan that follows from them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
import torch

from rdpm.models.attention import Backend
from rdpm.models.fields import EXECUTION
from rdpm.models.generator import GeneratorConfig
from rdpm.models.methods import evaluations_of, learns_codes
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig, preset
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.exports.card import generator_config, tokenizer_config
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.inference.precision import Precision, check_precision, rounding_of
from rdpm.pipeline.sampling.formats import Format
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import KIND, SampleIdentity, current_sampler, sample_arrays

SamplerSetting = Annotated[SamplerConfig, pydantic.BeforeValidator(lambda v: preset(v) if isinstance(v, str) else v)]
"""A SamplerConfig that a config file may give by its fields or by the name of a preset."""


@dataclass(frozen=True)
class SampleConfig:
    """Settings of a set of samples: per_class images of every class, in an order that is shuffled by the seed."""

    RENAMED: ClassVar[dict[str, str]] = {"compiled": "compile"}

    generator: str = field(metadata=EXECUTION)
    """Folder or URL of the generator's export."""
    tokenizer: str = field(metadata=EXECUTION)
    """Folder or URL of the export of its tokenizer."""
    out: str = field(metadata=EXECUTION)
    """Folder or URL of the sample store to write."""
    sampler: SamplerSetting = field(default_factory=SamplerConfig)
    """Settings of the sampler, or the name of a row of Table 3: raw, cfg, cfg-linear, gumbel."""
    labels: tuple[int, ...] = ()
    """Classes to draw; all classes when empty."""
    per_class: int = 50
    """Images per class."""
    seed: int = 0
    """Seed of the set; the seed of image i is child i of it."""
    shard_rows: int = 1000
    """Images per shard; a multiple of batch."""
    batch: int = 50
    """Images per call of the generator. Every call has this shape, because another shape rounds differently."""
    precision: Precision = "fp32"
    """Precision of generator and decoder. Logits and the last convolution are fp32 in bf16 too."""
    compile: bool = False
    """Whether to compile the decoder and a step of Algorithm 2. A GPU then replays all steps as one CUDA graph."""
    attention: Backend = "sdpa"
    """Attention kernel of the generator: sdpa, math or flash_attn."""
    evaluations: int = 0
    """Forward passes per image of a rival that has a choice: Euler's steps of flow, rounds of maskgit; 0 for 10."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=EXECUTION)
    """Kind of device to sample on; auto is cuda where there is a GPU. The plan records the kind, and a worker without
    such a device refuses."""
    formats: tuple[Format, ...] = field(default=("npz",), metadata=EXECUTION)
    """Files to write into the store's folder: npz (OUT/samples.npz, for the ADM evaluator), png
    (OUT/png/<class>/<index>.png), tar (OUT/tar/<shard>.tar, a WebDataset)."""
    threads: int = field(default=1, metadata=EXECUTION)
    """CPU threads of every model replica."""
    resources: Resources = field(default_factory=Resources, metadata=EXECUTION)
    """What the job may use of this machine or of a cluster."""

    @staticmethod
    def upgrade(settings: dict[str, Any]) -> dict[str, Any]:
        """Saved settings of any release, in their current form."""
        return {**settings, "sampler": current_sampler(settings["sampler"])} if "sampler" in settings else settings

    def __post_init__(self) -> None:
        for name in ("per_class", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        # A multiple of batch puts sample i at the same position of the same batch for every shard size.
        if self.shard_rows < 1 or self.shard_rows % self.batch:
            raise ValueError(f"shard_rows is {self.shard_rows}; use a multiple of batch {self.batch}")
        check_precision(self.precision, self.attention)
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels is {list(self.labels)}; name each class only once")


def sample_plan(config: SampleConfig, generator: ModelCard, tokenizer: ModelCard, device: str) -> Plan:
    """The plan of a sample store, from its settings, the cards of its models and the kind of device.

    Raises ValueError for a label that is no class of the generator.
    """
    space, image_size = generator_config(generator), tokenizer_config(tokenizer).image_size
    unknown = [label for label in config.labels if not 0 <= label < space.num_classes]
    if unknown:
        raise ValueError(f"label {unknown[0]} is no class of the generator; use 0 to {space.num_classes - 1}")
    _check_method(config, space)
    labels = config.labels or tuple(range(space.num_classes))
    # Plans of RDPM's samples have no such key.
    asked = {"evaluations": config.evaluations} if config.evaluations else {}
    identity = SampleIdentity(
        generator_digest=generator.digest,
        tokenizer_digest=tokenizer.digest,
        noise_version=generator.noise_version,
        sampler=asdict(config.sampler) | asked,
        labels=labels,
        per_class=config.per_class,
        seed=config.seed,
        batch=config.batch,
        precision=config.precision,
        compile=config.compile,
        classes=generator.classes,
        attention=config.attention,
        device=device,
        rounding=rounding_of(config.precision, config.compile),
    )
    rows = len(labels) * config.per_class
    shard_rows = min(config.shard_rows, rows)
    arrays = sample_arrays(space.num_steps, space.grid, image_size)
    if not learns_codes(space):
        arrays = tuple(spec for spec in arrays if spec.name != "codes")
    return Plan(KIND, rows, shard_rows, shard_rows, arrays, identity)


def check_drawing(space: GeneratorConfig, sampler: SamplerConfig, evaluations: int) -> None:
    """Raise ValueError for settings with which the generator's method does not draw."""
    evaluations_of(space, evaluations)
    if not learns_codes(space) and (sampler.temperature != 1 or sampler.top_k or sampler.top_p != 1):
        raise ValueError(
            f"method {space.method} draws latents, which have no temperature, top_k and top_p; leave them out"
        )


def _check_method(config: SampleConfig, space: GeneratorConfig) -> None:
    """Raise ValueError for settings that the generator's method does not have."""
    check_drawing(space, config.sampler, config.evaluations)
    if space.method != "rdpm" and (config.precision != "fp32" or config.compile):
        raise ValueError(
            f"precision is {config.precision} and compile is {str(config.compile).lower()}; method {space.method} is "
            "drawn in fp32 and uncompiled"
        )


def labels_and_seeds(
    indices: np.ndarray, per_class: int, labels: Sequence[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels (int32) and seeds (uint64) of the samples at these indices of a set.

    Labels are balanced over the whole set, and shuffled because ADM's inception score splits a set in its order.
    """
    shuffled = permute(indices, per_class * len(labels), seed, np.zeros_like(indices))
    seeds = child_seeds(seed, torch.from_numpy(indices)).numpy().view(np.uint64)
    return np.array(labels, np.int32)[shuffled // per_class], seeds
