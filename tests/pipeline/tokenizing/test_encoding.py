"""A store depends only on its plan. These tests run the steps of the job in this process."""

import hashlib
import io
import pickle
import subprocess
from contextlib import closing
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.decode import VIEWS, decode_views
from rdpm.pipeline.images.worklist import Worklist, remove_worklists
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.encoding import shard_work
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import ShardReader, ShardRows, images_of
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import noise_seed


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, exports) -> str:
    """The folder of a small tokenizer of 8 x 8 grey images."""
    folder = str(tmp_path_factory.mktemp("models") / "tokenizer")
    exports.tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def some_images(digits) -> dict[str, bytes]:
    """30 real digits of 11 x 9 pixels by class and name, and one file that is no image."""
    images = {}
    for number, (pixels, label) in enumerate(zip(digits[0][:30], digits[1][:30], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((11, 9)).save(buffer, "PNG")
        images[f"{label % 3}/no_{number}.png"] = buffer.getvalue()
    images["1/page.jpg"] = b"<html>not found</html>"
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory, some_images) -> str:
    """These images as class folders."""
    root = tmp_path_factory.mktemp("images")
    for key, data in some_images.items():
        files.write_bytes(f"{root}/{key}", data)
    return str(root)


def rows_of(plan: Plan, worklist: Worklist, shard: int) -> ShardRows:
    """The decoded rows of a shard."""
    return ShardReader(plan, worklist.folder, 8, 1).read(shard, {})


def tokenize_here(config: TokenizeConfig) -> Store:
    """The job without Ray: shards one after another, the last one first."""
    card = read_card(config.tokenizer, "tokenizer")
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, card, "cpu")
        start_store(config.out, plan)
        worklist.write({shard: images_of(plan, shard) for shard in range(plan.num_shards)})
    encoder = ShardEncoder(config.tokenizer, config.out, plan, 1)
    for shard in reversed(range(plan.num_shards)):
        encoder(shard, rows_of(plan, worklist, shard))
    remove_worklists(config.out)
    return Store(config.out, publish(config.out, plan))


def small(images: str, tokenizer: str, out: str, **settings) -> TokenizeConfig:
    """A config of small shards, chunks and batches."""
    return TokenizeConfig(images, tokenizer, out, **{"shard_rows": 8, "chunk_rows": 4, "batch": 4, **settings})


@pytest.mark.slow
def test_the_bytes_of_a_store_are_the_same_from_every_kind_of_source(
    tmp_path, write_source, some_images, folder, tokenizer, tree
):
    source = write_source(tmp_path / "source", some_images)
    from_source = tokenize_here(small(source, tokenizer, str(tmp_path / "store"), views=("center", "flip")))
    from_folders = tokenize_here(small(folder, tokenizer, str(tmp_path / "folders"), views=("center", "flip")))
    assert from_source.id == from_folders.id
    assert tree(tmp_path / "store") == tree(tmp_path / "folders")


@pytest.mark.slow
def test_every_row_is_its_image_in_its_view_wherever_shards_begin(tmp_path, folder, some_images, tokenizer):
    """Ten views and shards of 8 rows: most images have rows in two shards."""
    words = ("ten-crop-1.1", "center")
    store = tokenize_here(small(folder, tokenizer, str(tmp_path / "store"), views=words, seed=3))
    index, codes = store.index().to_pylist(), store.read_all("codes")
    names = [name for name in VIEWS if name.startswith("ten-crop-1.1/")] + ["center"]
    assert [(row["key"], row["view"]) for row in index] == [(k, v) for k in sorted(some_images) for v in names]
    assert [row["label"] for row in index] == [int(row["key"][0]) for row in index]
    seeds = np.array([noise_seed(3, row["key"], row["view"]) for row in index], np.uint64)
    assert np.array_equal(store.read_all("noise_seed"), seeds)
    pixels = np.zeros((len(index), 8, 8, 1), np.uint8)
    for number, row in enumerate(index):
        assert row["source_digest"] == hashlib.sha256(some_images[row["key"]]).hexdigest()
        assert (row["status"] == "rejected") == (row["key"] == "1/page.jpg") == (row["reason"] != "")
        if row["status"] == "ok":
            pixels[number] = decode_views(some_images[row["key"]], 8, 1, [row["view"]]).pixels[0]
            assert (row["width"], row["height"]) == (11, 9)
    codec = Codec(load_tokenizer(tokenizer)[0], batch=4, device=torch.device("cpu"))
    assert np.array_equal(codes, codec.encode(pixels, seeds).codes)
    assert store.manifest.rejected == tuple(n for n, row in enumerate(index) if row["status"] == "rejected")


def test_an_image_that_changes_during_the_job_keeps_its_row_with_the_reason(tmp_path, some_images, tokenizer):
    for key, data in some_images.items():
        files.write_bytes(f"{tmp_path}/images/{key}", data)
    config = small(f"{tmp_path}/images", tokenizer, str(tmp_path / "store"))
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, read_card(tokenizer, "tokenizer"), "cpu")
        worklist.write({0: images_of(plan, 0)})
    keys = sorted(some_images)
    (tmp_path / "images" / keys[2]).write_bytes(b"longer or shorter")
    (tmp_path / "images" / keys[5]).unlink()
    rows = rows_of(plan, worklist, 0)
    reasons = {2: "changed since it was listed", 5: "gone since it was listed"}
    assert rows.reason.tolist() == [reasons.get(row, "") for row in range(8)]
    assert rows.key.tolist() == keys[:8]
    assert [bool(rows.pixels[row].any()) for row in range(8)] == [row not in reasons for row in range(8)]


def test_the_columns_of_a_shards_rows_are_equally_long_and_have_the_documented_types(tmp_path, folder, tokenizer):
    config = small(folder, tokenizer, str(tmp_path / "store"), views=("center", "flip"))
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, read_card(tokenizer, "tokenizer"), "cpu")
        worklist.write({7: images_of(plan, 7)})
    rows = rows_of(plan, worklist, 7)
    types = {field.name: (getattr(rows, field.name).dtype, getattr(rows, field.name).shape) for field in fields(rows)}
    text, number = (np.dtype(object), (6,)), (np.dtype(np.int32), (6,))
    assert types == {
        "pixels": (np.dtype(np.uint8), (6, 8, 8, 1)),
        **dict.fromkeys(("label", "width", "height"), number),
        **dict.fromkeys(("key", "view", "source_digest", "reason"), text),
    }


def test_precision_compilation_batch_and_device_are_part_of_a_plan(folder, tokenizer, tmp_path):
    card = read_card(tokenizer, "tokenizer")
    with closing(Worklist(folder, str(tmp_path))) as worklist:
        plans = [
            token_plan(small(folder, tokenizer, "", **settings), worklist.summary, card, "cpu")
            for settings in ({}, {"precision": "bf16"}, {"compile": True}, {"batch": 8})
        ]
        plans.append(token_plan(small(folder, tokenizer, ""), worklist.summary, card, "cuda"))
        same = token_plan(small(folder, tokenizer, "", device="cpu", threads=3), worklist.summary, card, "cpu")
    assert len({str(plan.identity) for plan in plans}) == 5
    assert [plan.tokens.device for plan in plans] == ["cpu"] * 4 + ["cuda"]
    assert same == plans[0]


def test_a_worker_refuses_a_plan_for_another_kind_of_device(tmp_path, folder, tokenizer, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with closing(Worklist(folder, str(tmp_path))) as worklist:
        config = small(folder, tokenizer, str(tmp_path / "store"))
        plan = token_plan(config, worklist.summary, read_card(tokenizer, "tokenizer"), "cuda")
    with pytest.raises(ValueError, match=r"the plan is for cuda, and .* has no GPU; run on machines with one"):
        ShardEncoder(tokenizer, config.out, plan, 1)
    assert not (tmp_path / "store").exists()


def latents_of(tokenizer, pixels: np.ndarray, **settings) -> np.ndarray:
    seeds = np.arange(len(pixels), dtype=np.uint64)
    codec = Codec(tokenizer, batch=8, device=torch.device("cpu"), **settings)
    return codec.encode(pixels, seeds).latents.astype(np.float32)


def test_bf16_rounds_the_encoder_and_nothing_else(tokenizer, digits):
    model, pixels = load_tokenizer(tokenizer)[0], digits[0][:20, :, :, None]
    full, half = latents_of(model, pixels), latents_of(model, pixels, precision="bf16")
    assert 0 < np.abs(full - half).mean() < 0.02 * np.abs(full).mean()
    assert np.array_equal(half, latents_of(model, pixels, precision="bf16"))


@pytest.mark.long
def test_a_compiled_encoder_gives_the_latents_of_the_plain_one(tokenizer, digits, tmp_path, folder):
    pixels = digits[0][:20, :, :, None]
    with closing(Worklist(folder, str(tmp_path))) as worklist:
        config = small(folder, tokenizer, str(tmp_path), compile=True, batch=8)
        plan = token_plan(config, worklist.summary, read_card(tokenizer, "tokenizer"), "cpu")
    compiled = ShardEncoder(tokenizer, str(tmp_path), plan, 1).encode(pixels, np.arange(20, dtype=np.uint64))
    plain = latents_of(load_tokenizer(tokenizer)[0], pixels)
    assert np.abs(compiled.latents.astype(np.float32) - plain).max() < 0.01  # they are stored as float16


def test_what_a_decoding_task_is_sent_loads_no_torch(python, repository, tmp_path, folder, tokenizer):
    config = TokenizeConfig(folder, tokenizer, f"{tmp_path}/store", shard_rows=10, chunk_rows=10)
    card = read_card(tokenizer, "tokenizer")
    with closing(Worklist(folder, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, card, "cpu")
        work = shard_work(config, plan, worklist.folder, tokenizer_config(card), ShardEncoder)
    (tmp_path / "sent").write_bytes(pickle.dumps(work.reader.read))
    check = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); assert 'torch' not in sys.modules"
    subprocess.run([*python, "-c", check, str(tmp_path / "sent")], cwd=repository, check=True)


@pytest.mark.parametrize("name", ["batch", "threads"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; use 1 or more"):
        small("images", "tokenizer", "out", **{name: 0})
