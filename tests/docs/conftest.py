"""A folder in which the pages' code runs: runs/demo as `make demo` leaves it, in little and untrained."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.models.generator import Generator
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard

CLASSES = tuple("0123456789")
PER_CLASS = {"train": 12, "val": 6}


def lay_images(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Class folders of real digits, 8 x 8 grey PNGs, those of val other ones than those of train."""
    for label in CLASSES:
        rows = np.flatnonzero(labels == int(label))
        for split, count in PER_CLASS.items():
            for number, row in enumerate(rows[:count] if split == "train" else rows[-count:]):
                buffer = io.BytesIO()
                Image.fromarray(pixels[row]).save(buffer, "PNG")
                path = folder / split / label / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(buffer.getvalue())


def save_generator(folder: str, exports, tokenizer: ModelCard) -> None:
    """An untrained generator of the ten digits."""
    config = replace(exports.generator_config, num_classes=len(CLASSES))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = Generator(config).state_dict()
    save_export(folder, "generator", config, weights, GeneratorOrigin(tokenizer.digest, (), CLASSES), {}, 1)


@pytest.fixture(scope="session")
def place(tmp_path_factory, repository, digits, exports, stores) -> Path:
    """The folder: runs/demo in it, and the configs of the checkout."""
    place = tmp_path_factory.mktemp("place")
    demo = place / "runs" / "demo"
    lay_images(demo / "data", *digits)
    card = exports.tokenizer(f"{demo}/tokenizer")
    save_generator(f"{demo}/generator", exports, card)
    stores.build(f"{demo}/store", stores.plan(rows=200, shard_rows=64, classes=CLASSES, **exports.identity(card)))
    labels = np.arange(100) % len(CLASSES)
    images = RDPM.from_pretrained(str(demo), device="cpu", batch=50).sample(labels.tolist())
    (demo / "samples").mkdir()
    np.savez(demo / "samples" / "samples.npz", images, labels)
    (place / "configs").symlink_to(repository / "configs")
    (place / "store").symlink_to(demo / "store")
    return place
