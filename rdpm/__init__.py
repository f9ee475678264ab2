"""RDPM: images to discrete codes by a diffusion of ten steps, and codes to images by a transformer."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdpm.pipeline.inference.rdpm import RDPM as RDPM

__version__ = version("rdpm")


def __getattr__(name: str) -> object:
    if name == "RDPM":
        from rdpm.pipeline.inference.rdpm import RDPM

        return RDPM
    raise AttributeError(name)
