"""A made run, as the jobs would leave it: untrained models, real digits, and stores from the project's writer."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.evaluation.fidelity import reconstruct
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.records import JobRecord
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.cards import GeneratorOrigin, TokenizerOrigin
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import SampleIdentity, sample_arrays
from rdpm.storage_schemas.tokens import TokenIdentity, token_arrays

CLASSES = ("0", "1", "<b>&2")
TRAIN, HELD_OUT, DRAWN = 20, 5, 10  # images per class
TOKENIZER = TokenizerConfig(8, AutoencoderConfig(1, 8, (1, 1), 1, (), 4), QuantizerConfig(16, 4))
GENERATOR = GeneratorConfig(depth=1, num_classes=3, codebook_size=16, code_dim=4, grid=4)


def class_pixels(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits start ... stop - 1 of every class, class by class: (n, 8, 8, 1) uint8 and labels."""
    data = load_digits()
    rows = np.concatenate([np.flatnonzero(data.target == y)[start:stop] for y in range(len(CLASSES))])
    return (data.images[rows] * (255 / 16)).round().astype(np.uint8)[..., None], data.target[rows]


@dataclass(frozen=True)
class MadeRun:
    """Where the run is, and what its stores are made with."""

    root: Path
    """Folder with tokenizer, generator, store, samples, train and val."""
    tokenizer: Tokenizer
    """The tokenizer, whose weights are in `root`/tokenizer."""
    tokenizer_digest: str
    """Digest of its card."""
    generator_digest: str
    """Digest of the generator's card."""

    def samples(self, name: str, pixels: np.ndarray, labels: np.ndarray, **identity) -> str:
        """Write a sample store of these images (n, 8, 8, 1); returns its path. identity: fields that differ."""
        facts = {
            "generator_digest": self.generator_digest,
            "tokenizer_digest": self.tokenizer_digest,
            "noise_version": NOISE_VERSION,
            "sampler": {},
            "labels": (0, 1, 2),
            "per_class": DRAWN,
            "seed": 0,
            "batch": 16,
            "precision": "fp32",
            "compile": False,
            "classes": CLASSES,
        }
        rows = len(pixels)
        plan = Plan("samples", rows, rows, rows, sample_arrays(10, 4, 8), SampleIdentity(**facts | identity))
        columns = {
            "images": np.repeat(pixels, 3, axis=-1),
            "label": labels.astype(np.int32),
            "seed": np.arange(rows, dtype=np.uint64),
            "codes": reconstruct(Codec(self.tokenizer, 16), pixels, seed=1).codes,
        }
        _write(f"{self.root}/{name}", plan, columns)
        return f"{self.root}/{name}"

    def config(self, **changes) -> EvaluateConfig:
        """An evaluation of everything that the run has."""
        root = self.root
        given = {
            "train_images": f"{root}/train",
            "images": f"{root}/val",
            "tokenizer": f"{root}/tokenizer",
            "samples": f"{root}/samples",
            "out": f"{root}/metrics.json",
            "threads": 1,
        }
        return EvaluateConfig(**given | changes)


def make_run(root: Path) -> MadeRun:
    """Write the folders, exports, logs and stores of one run."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER).eval()
    weights, origin = tokenizer.state_dict(), TokenizerOrigin("s0", CLASSES)
    card = save_export(f"{root}/tokenizer", "tokenizer", TOKENIZER, weights, origin, {}, 5)
    identity = TokenIdentity(
        card.digest, card.config, NOISE_VERSION, "s0", CLASSES, ("center",), 0, 64, "fp32", compile=False, device="cpu"
    )
    plan = Plan("tokens", 2, 2, 2, token_arrays(10, (4, 4, 4), False, False), identity)
    columns = {"codes": np.ones((2, 10, 4, 4), np.uint16), "noise_seed": np.ones(2, np.uint64)}
    store_id = _write(f"{root}/store", plan, columns | {"label": np.ones(2, np.int32)})
    origin = GeneratorOrigin(card.digest, (store_id,), CLASSES)
    weights = Generator(GENERATOR).state_dict()
    generator = save_export(f"{root}/generator", "generator", GENERATOR, weights, origin, {"note": "<i>"}, 9)
    for name in ("tokenizer", "generator"):
        lines = [{"step": s, "loss": 1 / s, "loss_by_step": [None, *[0.5] * 9], "lr": 1e-3} for s in (1, 2, 3)]
        files.write_bytes(f"{root}/{name}/log.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        JobRecord(f"train-{name}", f"{root}/{name}", {}, {}).finish({})
    _folder(root / "train", *class_pixels(0, TRAIN))
    _folder(root / "val", *class_pixels(TRAIN, TRAIN + HELD_OUT))
    made = MadeRun(root, tokenizer, card.digest, generator.digest)
    made.samples("samples", *class_pixels(50, 50 + DRAWN))
    return made


def _folder(root: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / CLASSES[label] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def _write(url: str, plan: Plan, columns: dict[str, np.ndarray]) -> str:
    """Write and publish a store of one shard; returns its id."""
    start_store(url, plan)
    write_shard(url, plan, 0, columns, {"label": columns["label"]})
    return publish(url, plan).store_id
