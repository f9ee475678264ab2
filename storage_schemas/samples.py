"""The sample store: what its images depend on, and its arrays. Row i is image i of the set."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.parsing import parse

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
    """Classes that were sampled."""
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
    """Attention kernel. None in a plan of version 1, which does not record it."""
    device: str | None = None
    """Kind of device that sampled: cpu or cuda. None in a plan of version 1, which does not record it."""
    rounding: int | None = None
    """Version of how models round in bf16 and when compiled. None where they run in fp32 and uncompiled, and in older
    plans."""

    @classmethod
    def from_json(cls, data: Any) -> "SampleIdentity":
        """The identity in a plan of any version; version 1 called `compile` `compiled`. Raises ValueError."""
        if isinstance(data, dict) and "compiled" in data:
            data = {**data, "compile": data["compiled"]}
            del data["compiled"]
        identity = parse(cls, data, "the plan: identity")
        return replace(identity, sampler=current_sampler(identity.sampler))


def current_sampler(settings: dict[str, Any]) -> dict[str, Any]:
    """Sampler settings of any version in their current form.

    Version 1 has no version key. Its temperature multiplied the logits (tau of Eq. 8), and null meant the argmax. Since
    version 2 the temperature divides the logits, and 0 means the argmax.
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
