"""The sample store: what its images depend on, and its arrays. Row i is image i of the set."""

from dataclasses import dataclass
from typing import Any, Literal

from rdpm.storage_schemas.arrays import ArraySpec

KIND = "samples"
INDEX_COLUMNS = ("index", "label", "seed")
SAMPLER_VERSION = 2


@dataclass(frozen=True)
class SampleIdentity:
    """Everything that the images of a sample store depend on."""

    generator_digest: str
    """Digest of the generator's card."""
    tokenizer_digest: str
    """Digest of the tokenizer's card."""
    noise_version: int
    """Version of the noise that images were drawn from."""
    sampler: dict[str, Any]
    """Settings of the sampler, in their current form."""
    labels: tuple[int, ...]
    """Classes that were drawn."""
    per_class: int
    """Images per class."""
    seed: int
    """Seed of the set; the seed of image i is child i of it."""
    batch: int
    """Images per call of the generator."""
    precision: Literal["fp32", "bf16"]
    """Precision of generator and decoder: fp32 or bf16."""
    compile: bool
    """Whether the steps of Algorithm 2 were compiled."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    attention: Literal["sdpa", "math", "flash_attn"] | None = None
    """Attention kernel. None where a plan of version 1 does not say."""
    device: str | None = None
    """Kind of device that sampled: cpu or cuda. None where a plan of version 1 does not say."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SampleIdentity":
        """From a plan of any version. In version 1 `compile` was called `compiled`."""
        data = dict(data)
        if "compiled" in data:
            data["compile"] = data.pop("compiled")
        lists = {"labels": tuple(data["labels"]), "classes": tuple(data["classes"])}
        return cls(**{**data, **lists, "sampler": current_sampler(data["sampler"])})


def current_sampler(settings: dict[str, Any]) -> dict[str, Any]:
    """Sampler settings of any version in their current form.

    Version 1 had no version key, its temperature multiplied the logits (tau of Eq. 8), and null meant the argmax.
    Since version 2 the temperature divides the logits, and 0 means the argmax.
    """
    if "version" in settings:
        return settings
    tau = settings.get("temperature", 1.0)
    return {**settings, "version": SAMPLER_VERSION, "temperature": 0.0 if tau is None else 1 / tau}


def sample_arrays(num_steps: int, grid: int, image_size: int) -> tuple[ArraySpec, ...]:
    """images (H, W, 3) uint8, label int32, seed uint64 and the drawn codes (T, h, w) uint16."""
    return (
        ArraySpec("images", "uint8", (image_size, image_size, 3), ("y", "x", "rgb")),
        ArraySpec("label", "int32", (), ()),
        ArraySpec("seed", "uint64", (), ()),
        ArraySpec("codes", "uint16", (num_steps, grid, grid), ("step", "height", "width")),
    )
