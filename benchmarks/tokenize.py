"""The tokenizing job against its two limits: its encoder alone, and decoding alone.

    python -m benchmarks.tokenize [--images 64] [--null-images 8192] [--batch 8] [--actors 1] [--threads 1]

Prints one line of JSON. `efficiency`: images/s of the whole job over those of encoder and quantizer on tensors in
memory, in as many processes, at the same batch and precision. `null_encoder_ratio`: images/s of the job with an encoder
that does nothing, over those of decoding and cropping alone, in one process per core. `startup_s`: seconds of the job
beyond its images at that rate (the start of Ray, the imports of every worker, the first and the last shard). And the
bytes that move per image. The images/s of a job are those between a quarter and three quarters of its commits. Images
are 500 x 375.
"""

import argparse
import io
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.untrained import export_tokenizer
from rdpm.models.tokenizer import TokenizerConfig, from_pixels
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.images.decode import center_view
from rdpm.pipeline.inference.codec import Encoded
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig
from rdpm.pipeline.tokenizing.stage import tokenize
from rdpm.storage_schemas.manifest import Plan

_CLASSES, _DIFFERENT = 10, 64


def write_images(root: Path, count: int) -> None:
    """Class folders of JPEGs of about 100 kB: waves under noise, of which a few dozen differ."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:375, 0:500].astype(np.float32)
    pictures = []
    for _ in range(min(count, _DIFFERENT)):
        waves = np.stack([np.sin(x * a + y * b) for a, b in random.uniform(-0.03, 0.03, (3, 2))], -1)
        noise = random.normal(0, 12, (375, 500, 3))
        buffer = io.BytesIO()
        Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    for number in range(count):
        folder = root / f"class-{number % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(pictures[number % len(pictures)])


class NullEncoder(ShardEncoder):
    """Writes zeros."""

    def __init__(self, tokenizer: str, store: str, plan: Plan, threads: int) -> None:
        self.store, self.plan = store, plan

    def encode(self, pixels: np.ndarray, seeds: np.ndarray) -> Encoded:
        shapes = {spec.name: spec.row_shape for spec in self.plan.arrays}
        codes = np.zeros((len(seeds), *shapes["codes"]), np.uint16)
        latents = np.zeros((len(seeds), *shapes["accumulated"]), np.float16)
        return Encoded(codes, latents, latents)


def job(config: TokenizeConfig, images: int, encoder: type = ShardEncoder) -> dict[str, float]:
    """images/s of the middle half of a job, the seconds beyond that, and the bytes stored per image."""
    began = time.monotonic()
    tokenize(config, encoder=encoder)
    taken = time.monotonic() - began
    commits = sorted(path.stat().st_mtime for path in Path(config.out, "commits").glob("*.json"))
    shards = len(commits)
    first, last = shards // 4, 3 * shards // 4
    rate = (last - first) * images / shards / (commits[last] - commits[first])
    stored = sum(path.stat().st_size for path in Path(config.out).rglob("*") if path.is_file())
    return {"images_per_s": rate, "startup_s": taken - images / rate, "stored_bytes": stored / images}


def encoder_alone(tokenizer: str, batch: int, batches: int, threads: int, bf16: bool) -> float:
    """images/s of encoder and quantizer on a tensor in memory. Runs in a separate process."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_tokenizer(tokenizer)[0].to(device)
    size = model.config.image_size
    images = from_pixels(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)).to(device)
    seeds = torch.arange(batch, device=device)
    with torch.no_grad():
        for call in range(batches + 1):
            if call == 1:  # the first call is not counted
                began = time.monotonic()
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                latents = model.encoder(images)
            model.quantize(latents.float(), seeds).codes.cpu()
    return batch * batches / (time.monotonic() - began)


def decode_alone(paths: list[str], size: int) -> int:
    """Decode and crop these files."""
    return sum(center_view(Path(path).read_bytes(), size, 3).shape[0] // size for path in paths)


def decoding_rate(root: Path, size: int, cores: int) -> float:
    """images/s of decoding and cropping alone, with one process per core."""
    paths = sorted(str(path) for path in root.rglob("*.jpg"))
    parts = [paths[part::cores] for part in range(cores)]
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(decode_alone, size=size), [part[:4] for part in parts]))  # imports are not counted
        began = time.monotonic()
        done = sum(pool.map(partial(decode_alone, size=size), parts))
        return done / (time.monotonic() - began)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64, help="through the encoder")
    parser.add_argument("--null-images", type=int, default=8192)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    resources = Resources(actors=options.actors, actor_cpus=0.9)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, tokenizer = Path(folder), f"{folder}/tokenizer"
        config = TokenizerConfig()
        export_tokenizer(tokenizer, config, _CLASSES)
        write_images(root / "null", options.null_images)
        write_images(root / "images", options.images)

        def settings(name: str, rows: int) -> TokenizeConfig:
            return TokenizeConfig(
                f"{folder}/{name}", tokenizer, f"{folder}/store-{name}", shard_rows=rows, chunk_rows=rows,
                batch=options.batch, precision=options.precision, threads=options.threads, resources=resources,
            )  # fmt: skip

        null = job(settings("null", options.shard_rows), options.null_images, NullEncoder)
        decoding = decoding_rate(root / "null", config.image_size, os.cpu_count() or 1)
        result |= {"null_images_per_s": null["images_per_s"], "decoding_images_per_s": decoding}
        result["null_encoder_ratio"] = null["images_per_s"] / decoding

        whole = job(settings("images", options.batch), options.images)
        with ProcessPoolExecutor(options.actors, mp_context=multiprocessing.get_context("spawn")) as pool:
            batches = max(1, options.images // options.batch // options.actors)
            alone = partial(encoder_alone, tokenizer, options.batch, batches, options.threads)
            rates = list(pool.map(alone, [options.precision == "bf16"] * options.actors))
        result |= {"job_images_per_s": whole["images_per_s"], "encoder_images_per_s": sum(rates)}
        result["efficiency"] = whole["images_per_s"] / sum(rates)
        result["startup_s"] = whole["startup_s"]
        read = sum(path.stat().st_size for path in (root / "images").rglob("*.jpg")) / options.images
        pixels = config.image_size**2 * 3
        result |= {"read_bytes": read, "pixel_bytes": pixels, "stored_bytes": whole["stored_bytes"]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
