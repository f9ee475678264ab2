"""The page about a store shows what the store holds."""

import dataclasses
import re

import numpy as np
import pytest

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation import files
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting.inspection import read_contents, render
from rdpm.pipeline.stores.reader import DamagedStore
from rdpm.pipeline.tokenizing.plan import tokenizer_of

REJECTED = (3, 8, 19)


@pytest.fixture
def store(tmp_path, exports, stores):
    """A store of 20 rows whose plan names the tokenizer beside it."""
    card = exports.tokenizer(str(tmp_path / "tokenizer"))
    return stores.build(
        str(tmp_path / "store"), stores.plan(**exports.identity(card), classes=("<b>", "one")), rejected=REJECTED
    )


def test_contents_are_counted_without_rejects_for_any_shards(store, tmp_path, stores):
    contents = read_contents(store)
    kept = np.delete(store.read_all("codes"), REJECTED, axis=0)
    for t, step in enumerate(kept.swapaxes(0, 1)):
        assert np.array_equal(contents.counts[t], np.bincount(step.ravel(), minlength=16))
        shares = contents.counts[t][contents.counts[t] > 0] / step.size
        assert contents.perplexity[t] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        assert contents.usage[t] == len(np.unique(step)) / 16
    assert contents.labels == {0: 9, 1: 8}
    assert contents.reasons == {"bad": 3}
    assert [key for key, _ in contents.shown[1]] == [f"k{row} center" for row in range(1, 20, 2) if row not in REJECTED]
    plan = dataclasses.replace(store.manifest.plan, shard_rows=4, written=None)
    other = stores.build(str(tmp_path / "other"), plan)
    assert other.manifest.plan.num_shards > store.manifest.plan.num_shards
    assert np.array_equal(read_contents(other).counts.sum(axis=1), contents.counts.sum(axis=1) + 3 * 16)
    rejected = stores.build(str(tmp_path / "rejected"), plan, rejected=REJECTED)
    assert np.array_equal(read_contents(rejected).counts, contents.counts)


@pytest.mark.slow
def test_the_page_is_self_contained_and_shows_pictures_if_there_is_a_tokenizer(store, tmp_path):
    contents = read_contents(store)
    codec = Codec(tokenizer_of(store, str(tmp_path / "tokenizer")), 8)
    bare, full = render(store, contents, None), render(store, contents, codec)
    for text in (bare, full):
        assert "<script" not in text
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert "&lt;b&gt;" in text
        assert "<b>" not in text
        for part in (store.id, store.manifest.plan.tokens.tokenizer_digest, "bad"):
            assert part in text
    assert full.count("<img") == bare.count("<img") + 17


@pytest.mark.slow
def test_the_job_says_what_the_store_was_made_from_and_writes_the_page_beside_it(store, tmp_path, capsys):
    assert main(["inspect", store.url, f"tokenizer={tmp_path}/tokenizer"]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in (store.id, "20 rows, 3 rejects, 3 shards", "seed 0", f"{store.url}.html"))
    assert files.read_bytes(f"{store.url}.html").startswith(b"<!doctype html>")
    assert main(["inspect", store.url, f"out={tmp_path}/deep/page.html"]) == 0
    assert files.exists(f"{tmp_path}/deep/page.html")


@pytest.mark.parametrize("given", [[], ["tokenizer"], ["a", "b"]])
def test_wrong_arguments_are_refused(store, given, capsys):
    assert main(["inspect", *([store.url] if given else []), *given]) == 2
    assert "STORE [tokenizer=FOLDER]" in capsys.readouterr().err


def test_an_unknown_key_is_refused_with_the_known_ones(store, capsys):
    assert main(["inspect", store.url, "page=x"]) == 2
    assert "unknown config key page; known keys: store, tokenizer, out" in capsys.readouterr().err


def test_another_tokenizer_and_a_damaged_store_are_refused(store, tmp_path, exports, capsys):
    exports.tokenizer(str(tmp_path / "other"), seed=1)
    assert main(["inspect", store.url, f"tokenizer={tmp_path}/other"]) == 2
    assert "was written by" in capsys.readouterr().err
    files.remove(files.join(store.url, store.manifest.plan.objects(1)["codes"]))
    with pytest.raises(DamagedStore, match="codes/c/1"):
        read_contents(store)
