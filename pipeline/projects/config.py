"""The settings of `rdpm init`."""

from dataclasses import dataclass, field

from rdpm.models.fields import EXECUTION


@dataclass(frozen=True)
class InitConfig:
    """Choose the settings of a run for some pictures, this machine and some hours."""

    images: str = field(metadata=EXECUTION)
    """Path, URL or pattern of class folders, one folder, tar files or Parquet files."""
    out: str = field(metadata=EXECUTION)
    """Folder of the run; it gets the configs, and later everything that its stages make."""
    size: int = 0
    """Pixels per side of the pictures that are learned; 0 to choose it."""
    hours: float = 1.0
    """Hours of the clock for the whole road."""
    perceptual: str = "none"
    """VGG16 for LPIPS: torchvision (which downloads it), the path of vgg16-397923af.pth, or none."""
    seed: int = 0
    """Seed by which held-out pictures are drawn."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size is {self.size}; use pixels per side, for example 32, or 0 to let it be chosen")
        if not 0 < self.hours < 10_000:
            raise ValueError(f"hours is {self.hours:g}; use more than 0, for example 0.5")
        if "://" in self.out:
            raise ValueError(f"run {self.out!r} is a URL; name a folder of this machine, where trainings can write")
