"""rdpm prepare digits: scikit-learn's 1,797 real digits as class folders of PNGs, split into train and val."""

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from rdpm.jobs.arguments import parse
from rdpm.models.fields import EXECUTION
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import begin

JOB = "prepare"


@dataclass(frozen=True)
class PrepareConfig:
    """The digits as images."""

    out: str = field(default="runs/demo/data", metadata=EXECUTION)
    """Folder that gets train/<digit>/*.png and val/<digit>/*.png."""
    image_size: int = 16
    """Pixels per side; the 8 x 8 digits are enlarged (bicubic)."""
    held_out: int = 297
    """Images that go to val."""
    seed: int = 0
    """Seed by which they are drawn."""

    def __post_init__(self) -> None:
        if self.image_size < 8 or not 0 < self.held_out < 1797:
            raise ValueError(f"image_size is {self.image_size} (8 or more), held_out {self.held_out} (1 to 1796)")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    if not arguments or arguments[0] != "digits":
        raise ValueError(f"data set {arguments[0] if arguments else ''!r} is unknown; use: rdpm prepare digits")
    config = parse(PrepareConfig, JOB, arguments[1:])
    with begin(JOB, config, dict) as record:
        if record.finished:
            say(f"prepare: {config.out} is already there")
            return
        _write(config)
        record.finish({"train": 1797 - config.held_out, "val": config.held_out})


def _write(config: PrepareConfig) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target)
    held_out = set(permute(np.arange(config.held_out), count, config.seed, np.zeros(config.held_out, int)).tolist())
    with ProgressLine("prepare", count, "images") as progress:
        for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = "val" if number in held_out else "train"
            path = files.join(config.out, split, str(label), f"{number:04d}.png")
            files.write_bytes(path, _png(values, config.image_size))
            progress.update(number + 1)


def _png(values: np.ndarray, size: int) -> bytes:
    """8 x 8 values of 0 ... 16 to a grey PNG."""
    picture = Image.fromarray((values * (255 / 16)).round().astype(np.uint8))
    buffer = io.BytesIO()
    picture.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
