"""Images that kill whoever decodes or encodes them: they become rejects, and the other rows of their shards live."""

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.cluster.probe import remove_nonce
from rdpm.pipeline.cluster.session import Resources, session
from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.images.worklist import Worklist, remove_worklists
from rdpm.pipeline.inference.codec import Encoded
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.encoding import ShardWork, encode_shards, shard_work
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import KILLS, ShardReader, ShardRows, images_of

FEW = Resources(cpus=4, object_store_mb=128, actors=1, actor_cpus=0.5)


@pytest.fixture
def config(tmp_path: Path, digits, exports) -> TokenizeConfig:
    """6 real digits, two views each, in three shards of 4 rows."""
    exports.tokenizer(str(tmp_path / "tokenizer"))
    for number, pixels in enumerate(digits[0][:6]):
        path = tmp_path / "images" / str(number % 2) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return TokenizeConfig(
        f"{tmp_path}/images", f"{tmp_path}/tokenizer", f"{tmp_path}/store", views=("center", "flip"), shard_rows=4,
        chunk_rows=4, batch=4, max_rejects=0.3, resources=FEW,
    )  # fmt: skip


def test_an_image_that_kills_is_not_read_and_its_rows_say_so(config) -> None:
    """The second image of a shard whose first image has rows in another shard too."""
    config = replace(config, views=("center", "flip", "ten-crop-1.1"), shard_rows=40, chunk_rows=20)
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, read_card(config.tokenizer, "tokenizer"), "cpu")
        worklist.write({1: images_of(plan, 1)})
    rows, images = plan.shard_range(1), images_of(plan, 1)
    killer = images.start + 1
    whole, rest = (ShardReader(plan, worklist.folder, 8, 1).read(1, {1: without}) for without in ((), (1,)))
    killed = np.array([row // 12 == killer for row in rows])
    assert killed.sum() == 12
    assert rest.reason.tolist() == [KILLS if each else "" for each in killed]
    assert not rest.pixels[killed].any()
    assert set(rest.source_digest[killed]) == {""}
    for name, column in vars(whole).items():
        assert np.array_equal(column[~killed], getattr(rest, name)[~killed]), name
    for name in ("key", "label", "view"):
        assert np.array_equal(getattr(whole, name), getattr(rest, name)), name


def work_of(config: TokenizeConfig, worklist: Worklist, encoder: type[ShardEncoder] = ShardEncoder) -> ShardWork:
    """The work of a config whose store is started."""
    card = read_card(config.tokenizer, "tokenizer")
    plan = start_store(config.out, token_plan(config, worklist.summary, card, "cpu"))
    worklist.write({shard: images_of(plan, shard) for shard in range(plan.num_shards)})
    return shard_work(config, plan, worklist.folder, tokenizer_config(card), encoder)


def finish(work: ShardWork, out: str) -> Store:
    """The published store of this work."""
    remove_worklists(out)
    remove_nonce(out)
    return Store(out, publish(out, work.reader.plan))


@pytest.mark.long
def test_decoding_tasks_do_not_load_torch(config) -> None:
    """It would take every one of them seconds at the start of a job."""

    class Light(ShardReader):
        def read(self, shard: int, killers: Mapping[int, tuple[int, ...]]) -> ShardRows:
            if "torch" in sys.modules:
                raise ValueError("a decoding task has loaded torch")
            return super().read(shard, killers)

    with closing(Worklist(config.images, config.out)) as worklist, session(config.resources):
        work = work_of(config, worklist)
        work = replace(work, reader=Light(**vars(work.reader)))
        assert {done.shard for done in encode_shards(work, [0, 1, 2], config)} == {0, 1, 2}


@pytest.mark.long
def test_images_that_kill_decoder_or_encoder_are_rejected_and_nothing_else_changes(
    config, tmp_path, digits, tree, capsys
) -> None:
    """Keys: 0/00, 0/02 | 0/04, 1/01 | 1/03, 1/05. Shard 2 is left alone."""

    class Deadly(ShardReader):
        """Reading image 1 of shard 0, 0/02.png, kills."""

        def read(self, shard: int, killers: Mapping[int, tuple[int, ...]]) -> ShardRows:
            if shard == 0 and 1 not in killers.get(0, ()):
                os._exit(1)
            return super().read(shard, killers)

    class Fragile(ShardEncoder):
        """Encoding 1/01.png kills."""

        def encode(self, pixels: np.ndarray, seeds: np.ndarray) -> Encoded:
            if (pixels[..., 0] == digits[0][1]).all((1, 2)).any():
                os._exit(1)
            return super().encode(pixels, seeds)

    with closing(Worklist(config.images, config.out)) as worklist, session(config.resources):
        work = work_of(config, worklist, Fragile)
        work = replace(work, reader=Deadly(**vars(work.reader)))
        list(encode_shards(work, [0, 1, 2], config))
    store = finish(work, config.out)
    assert not verify_store(store).findings
    rejected = [(row["key"], row["view"], row["reason"]) for row in store.index().to_pylist() if row["status"] != "ok"]
    assert rejected == [(key, view, KILLS) for key in ("0/02.png", "1/01.png") for view in ("center", "flip")]
    printed = capsys.readouterr().out
    assert "tokenize: shards [0, 1] killed their workers; looking for the images that do it" in printed
    for key in ("0/02.png", "1/01.png"):
        assert f"{key} kill their workers and are rejected" in printed

    here = replace(config, out=f"{tmp_path}/here")  # the same, by hand, in this process
    with closing(Worklist(here.images, here.out)) as worklist:
        work = work_of(here, worklist)
        encoder = ShardEncoder(here.tokenizer, here.out, work.reader.plan, 1)
        for shard in range(3):
            encoder(shard, work.reader.read(shard, {0: (1,), 1: (1,)}))
    finish(work, here.out)
    assert tree(config.out) == tree(here.out)
