"""What several rooms test with: real digits in folders, small stores, small models with made weights."""

import contextlib
import dataclasses
import io
import os
import socket
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard, TokenizerOrigin
from rdpm.storage_schemas.manifest import Plan, plan_to_json
from rdpm.storage_schemas.tokens import OK, REJECTED, TokenIdentity, noise_seed, token_arrays

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
TOKENIZER = TokenizerConfig(
    image_size=8,
    autoencoder=AutoencoderConfig(
        in_channels=1, channels=8, multipliers=(1, 2), num_res_blocks=1, attention_factors=(), groups=4
    ),
    quantizer=QuantizerConfig(codebook_size=16, code_dim=4),
    schedule=Schedule(num_steps=3),
)
CLASSES = ("zero", "one")
GENERATOR = GeneratorConfig(depth=1, num_classes=2, num_steps=3, codebook_size=16, code_dim=4, grid=4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest module runs first, so that two workers end together."""
    items.sort(key=lambda item: REPOSITORY / "tests" / "road" not in item.path.parents)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def python() -> list[str]:
    """How a test starts another Python that finds the project's packages: run it in `repository`."""
    return [sys.executable]


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 real digits: pixels (N, 8, 8) uint8 and labels (N,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), data.target


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory, digits) -> str:
    """Class folders of 24 real digits, 8 x 8 grey PNGs, no two alike."""
    root = tmp_path_factory.mktemp("digits")
    for number, (pixels, label) in enumerate(zip(digits[0][:24], digits[1][:24], strict=True)):
        folder = root / str(label)
        folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / f"{number:04d}.png").write_bytes(buffer.getvalue())
    return str(root)


class StoreMaker:
    """Small token stores whose content is a pure function of their plan: row i has label i % classes and key k<i>."""

    CLASSES = CLASSES
    IDENTITY = TokenIdentity(
        tokenizer_digest="t0",
        tokenizer_config=identity_of(TOKENIZER),
        noise_version=NOISE_VERSION,
        source_digest="s0",
        classes=CLASSES,
        views=("center",),
        seed=0,
        encoder_batch=64,
        precision="fp32",
        compile=False,
        device="cpu",
    )

    def plan(self, rows: int = 20, shard_rows: int = 8, chunk_rows: int = 4, **identity) -> Plan:
        """A plan of 3 shards by default, the last one short, with every array that a token store can have."""
        arrays = token_arrays(3, (4, 4, 4), with_accumulated=True, with_latents=True)
        return Plan("tokens", rows, shard_rows, chunk_rows, arrays, replace(self.IDENTITY, **identity))

    def columns(self, plan: Plan, shard: int) -> dict[str, np.ndarray]:
        """Arrays of one shard: labels and seeds as said, other values drawn from all that their type holds, by row."""
        rows = plan.shard_range(shard)
        store = zlib.crc32(canonical_json(plan_to_json(plan)["identity"]))
        columns = {}
        for number, spec in enumerate(plan.arrays):
            size = int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize
            drawn = b"".join(np.random.default_rng((store, number, row)).bytes(size) for row in rows)
            columns[spec.name] = np.frombuffer(drawn, spec.dtype).reshape(len(rows), *spec.row_shape)
        if "codes" in columns:
            columns["codes"] = columns["codes"] % 16
        if "label" in columns:
            columns["label"] = (np.array(rows) % len(self.CLASSES)).astype(columns["label"].dtype)
        if "noise_seed" in columns:
            seed, view = plan.tokens.seed, plan.tokens.views[0]
            columns["noise_seed"] = np.array([noise_seed(seed, f"k{row}", view) for row in rows], np.uint64)
        return columns

    def index(self, plan: Plan, shard: int, rejected: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
        """Index columns of one shard."""
        rows = plan.shard_range(shard)
        bad = np.isin(rows, rejected)
        return {
            "key": np.array([f"k{row}" for row in rows]),
            "label": (np.array(rows) % len(self.CLASSES)).astype(np.int32),
            "view": np.full(len(rows), plan.tokens.views[0]),
            "shard": np.full(len(rows), shard, np.int32),
            "row": np.arange(len(rows), dtype=np.int32),
            "status": np.where(bad, REJECTED, OK),
            "reason": np.where(bad, "bad", ""),
        }

    def write(self, url: str, plan: Plan, shard: int, rejected: tuple[int, ...] = ()) -> None:
        """Write and commit one shard; `rejected` are rows of the store."""
        mine = tuple(row for row in rejected if row in plan.shard_range(shard))
        write_shard(url, plan, shard, self.columns(plan, shard), self.index(plan, shard, mine), mine)

    def build(self, url: str, plan: Plan | None = None, rejected: tuple[int, ...] = ()) -> Store:
        """A published store."""
        plan = plan or self.plan()
        start_store(url, plan)
        for shard in range(plan.num_shards):
            self.write(url, plan, shard, rejected)
        return Store(url, publish(url, plan))


@pytest.fixture(scope="session")
def stores() -> StoreMaker:
    """The maker of small stores."""
    return StoreMaker()


class ExportMaker:
    """Untrained exports whose weights are a pure function of a seed."""

    tokenizer_config, generator_config = TOKENIZER, GENERATOR

    def tokenizer(self, folder: str, seed: int = 0, continuous: bool = False) -> ModelCard:
        """A tokenizer of 8 x 8 grey images: 3 steps of 4 x 4 codes out of 16."""
        config = dataclasses.replace(TOKENIZER, continuous=continuous)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = Tokenizer(config).state_dict()
        return save_export(folder, "tokenizer", config, weights, TokenizerOrigin("s0", CLASSES), {"seed": seed}, 1)

    def generator(self, folder: str, tokenizer: ModelCard, seed: int = 0) -> ModelCard:
        """A generator of that tokenizer's codes, of two classes."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = Generator(GENERATOR).state_dict()
        made_from = GeneratorOrigin(tokenizer.digest, (), CLASSES)
        return save_export(folder, "generator", GENERATOR, weights, made_from, {"seed": seed}, 1)

    def identity(self, tokenizer: ModelCard) -> dict:
        """What the identity of a token store says of its tokenizer."""
        return {"tokenizer_digest": tokenizer.digest, "tokenizer_config": tokenizer.config}


@pytest.fixture(scope="session")
def exports() -> ExportMaker:
    """The maker of small exported models."""
    return ExportMaker()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """An S3 server (moto's) as a process of its own, and the environment in which it is found. Kept off other tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    began = time.monotonic()
    while time.monotonic() - began < 60:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert server.poll() is None, "the S3 server has ended"
        time.sleep(0.1)
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.kill()
    server.wait()


@pytest.fixture
def s3(s3_server, monkeypatch) -> str:
    """An empty bucket, s3://..., for this test and the processes it starts."""
    import fsspec

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path) -> Iterator[str]:
    """An empty folder on this machine, and one on a file system that is not local."""
    if request.param == "local":
        yield str(tmp_path)
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    files.remove(url)


@pytest.fixture(params=["local", "s3"])
def anywhere(request, tmp_path) -> str:
    """A folder on this machine, and a bucket."""
    return request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path / "anywhere")


def _tree(root: str | Path) -> dict[str, bytes]:
    if "://" in str(root):
        return {name: files.read_bytes(files.join(str(root), name)) for name, _ in files.list_files(str(root))}
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def tree():
    """A folder as {name under it: bytes}, on this machine with hidden and temporary files."""
    return _tree


@pytest.fixture(scope="session")
def leaves():
    """Every leaf of JSON data as (path, value)."""

    def walk(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            yield path, value
            return
        for key, inner in items:
            yield from walk(inner, (*path, key))

    return walk
