"""Codes against the accumulated latents stored beside them, with the tokenizer that wrote them."""

import numpy as np
import pytest
import torch

from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.verification import TOLERANCE, verify_store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.pipeline.tokenizing.plan import tokenizer_of


@pytest.fixture
def written(tmp_path, exports, stores, digits):
    """A function that encodes real digits into a store, and passes their accumulated latents through `change`."""
    folder = str(tmp_path / "tokenizer")
    card = exports.tokenizer(folder)
    codec = Codec(load_tokenizer(folder)[0], 4, torch.device("cpu"))
    plan = stores.plan(**exports.identity(card))

    def write(name: str, change=lambda accumulated: accumulated) -> Store:
        url = str(tmp_path / name)
        start_store(url, plan)
        for shard in range(plan.num_shards):
            rows = plan.shard_range(shard)
            columns = stores.columns(plan, shard)
            pixels = digits[0][rows.start : rows.stop, :, :, None]
            columns |= vars(codec.encode(pixels, columns["noise_seed"]))
            columns["accumulated"] = change(columns["accumulated"].copy())
            write_shard(url, plan, shard, columns, stores.index(plan, shard))
        return Store(url, publish(url, plan))

    return folder, write


def accumulate(store: Store, folder: str):
    """How the tokenizer that wrote the store turns codes into z'_T; a batch does not divide a shard."""
    return Codec(tokenizer_of(store, folder), 3, torch.device("cpu")).accumulate


def test_codes_of_the_encoder_give_the_stored_latents_in_every_row(written):
    folder, write = written
    store = write("store")
    found = verify_store(store, accumulate(store, folder))
    assert found.findings == ()
    assert found.accumulated == len(store) == 20
    assert verify_store(store).accumulated == 0
    made, stored = accumulate(store, folder)(store.read_all("codes")), store.read_all("accumulated")
    assert np.abs(made - stored).max() < TOLERANCE / 2 * np.abs(made).max()


def test_one_value_that_the_codes_do_not_give_is_found_and_so_is_a_nan(written):
    folder, write = written

    def off(accumulated):
        accumulated[2, 1, 0, 0] += 2 * TOLERANCE * np.abs(accumulated).max()
        return accumulated

    def nan(accumulated):
        accumulated[1, 0, 0, 0] = np.nan
        return accumulated

    for name, change in (("off", off), ("nan", nan)):
        store = write(name, change)
        found = verify_store(store, accumulate(store, folder))
        assert [finding.shard for finding in found.findings] == [0, 1, 2]
        assert all("in 1 rows" in finding.sentence for finding in found.findings)
        assert verify_store(store).findings == ()


def test_a_tokenizer_that_did_not_write_the_store_is_refused_by_both_digests(tmp_path, written, exports):
    store = written[1]("store")
    other = exports.tokenizer(str(tmp_path / "other"), seed=1)
    with pytest.raises(ValueError, match=rf"{other.digest[:12]}.*{store.manifest.plan.tokens.tokenizer_digest[:12]}"):
        tokenizer_of(store, str(tmp_path / "other"))
