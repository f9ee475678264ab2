"""What callers give once for all images, or once per image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig


def seeds_of(seed: int | Sequence[int], count: int) -> np.ndarray:
    """The seeds of the images, (N,) int64."""
    if isinstance(seed, (int, np.integer)):
        return child_seeds(int(seed), torch.arange(count)).numpy()
    if len(seed) != count:
        raise ValueError(f"there are {len(seed)} seeds and {count} images; give one seed for all, or one per image")
    return np.concatenate([child_seeds(int(each), torch.arange(1)).numpy() for each in seed])


def configs_of(settings: dict[str, Any], count: int) -> list[SamplerConfig]:
    """One config per image."""
    known = [field.name for field in dataclasses.fields(SamplerConfig) if field.name != "version"]
    columns: dict[str, list[Any]] = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"sampler setting {name!r} is unknown; use {', '.join(known)}")
        columns[name] = [value] * count if np.ndim(value) == 0 else list(value)
        if len(columns[name]) != count:
            raise ValueError(
                f"{name} has {len(columns[name])} values and there are {count} images; give one value for all, or one "
                "per image"
            )
    return [SamplerConfig(**{name: values[i] for name, values in columns.items()}) for i in range(count)]
