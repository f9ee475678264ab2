"""What the first release left on disk opens, reads, samples and is recognized as finished.

Continuing its checkpoints is tested in tests/pipeline/training.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from rdpm import RDPM, TokenStream, open_store
from rdpm.jobs.cli import main
from rdpm.pipeline.exports.card import generator_config, read_card, tokenizer_config
from rdpm.pipeline.images.decode import center_view
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.tokenizing.plan import tokenizer_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
ARRAYS = np.load(FIXTURE / "expected.npz")
SAME_ROUNDING = 0.99  # share of codes and pixels that another processor or torch may not move


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the old release's folder, which is the working directory."""
    folder = tmp_path / "v1"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    return folder


def current(job: str) -> str:
    """The config of a job in today's words, as a user would rewrite it: keys renamed, temperature inverted."""
    tree = yaml.safe_load(Path(f"configs/{job}.yaml").read_text())
    if "sampler" in tree:
        tau = tree["sampler"]["temperature"]
        tree["sampler"]["temperature"] = 0 if tau is None else 1 / tau
    model = tree.get("model", {})
    for part in (model, model.get("autoencoder", {})):
        if "checkpoint" in part:
            part["activation_checkpointing"] = part.pop("checkpoint")
    path = f"current-{job}.yaml"
    Path(path).write_text(yaml.safe_dump(tree))
    return path


def old_rows(store: Path) -> dict[str, np.ndarray]:
    """Every array of a token store."""
    opened = open_store(str(store))
    return {name: opened.read_all(name) for name in (array.name for array in opened.manifest.plan.arrays)}


@pytest.mark.parametrize("name", EXPECTED["stores"])
def test_a_store_opens_with_its_old_identity_and_every_byte_is_checked(old, name):
    store, expected = open_store(name), EXPECTED["stores"][name]
    assert (store.id, len(store), list(store.manifest.rejected)) == tuple(expected.values())
    assert verify_store(store).findings == ()


def test_the_rows_of_a_token_store_are_read_and_streamed(old):
    store = open_store("store")
    rejects = [
        {"key": row["key"], "view": row["view"], "reason": row["reason"]}
        for row in store.index().to_pylist()
        if row["reason"]
    ]
    assert rejects == EXPECTED["rejects"]
    stream = TokenStream([store], seed=3, latents=False)
    batch = stream.batch(np.arange(len(stream)))
    usable = np.delete(store.read_all("codes"), store.manifest.rejected, axis=0)
    assert sorted(map(bytes, batch.codes)) == sorted(map(bytes, usable))


def test_cards_keep_their_digests_and_their_configs_are_read(old):
    cards = {kind: read_card(kind, kind) for kind in ("tokenizer", "generator")}
    assert {kind: card.digest for kind, card in cards.items()} == EXPECTED["digests"]
    # How the old training ran (math attention, recomputation) does not bind anybody.
    assert generator_config(cards["generator"]).attention == "sdpa"
    assert not generator_config(cards["generator"]).activation_checkpointing
    assert not tokenizer_config(cards["tokenizer"]).autoencoder.activation_checkpointing
    assert tokenizer_config(cards["tokenizer"]).schedule.base == 0.75
    assert generator_config(cards["generator"]).hidden_width == 8 * 64 // 3  # no multiple of 8, as was usual


def test_the_old_models_sample_and_encode_as_they_did(old):
    model = RDPM.from_pretrained(".", batch=16, device="cpu")
    settings = EXPECTED["sampled"]["settings"]
    images = model.sample(settings["labels"], settings["seed"], guidance=settings["guidance"], temperature=0.5)
    assert images.shape == ARRAYS["sampled"].shape
    assert (images == ARRAYS["sampled"]).mean() >= SAME_ROUNDING
    keys = EXPECTED["encoded"]["keys"]
    pictures = np.stack([center_view(Path("images/train", key).read_bytes(), 8, 1) for key in keys])
    codes = model.encode(pictures, EXPECTED["encoded"]["seed"])
    assert codes.dtype == ARRAYS["encoded"].dtype
    assert (codes == ARRAYS["encoded"]).mean() >= SAME_ROUNDING


def test_the_old_tokenizer_agrees_with_its_store(old):
    store = open_store("store")
    codec = Codec(tokenizer_of(store, "tokenizer"), batch=8)
    assert verify_store(store, codec.accumulate).accumulated == len(store)


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("train-tokenizer", "tokenizer"),
        ("tokenize", "store"),
        ("train-generator", "generator"),
        ("sample", "samples"),
        ("sample", "samples-argmax"),
        ("evaluate", "evaluation"),
    ],
)
def test_a_finished_job_of_the_old_release_is_not_done_again(old, capsys, tree, command, config):
    path = current(config)
    before = tree(old)
    assert main([command, path]) == 0, capsys.readouterr().err
    assert "is already" in capsys.readouterr().out
    assert tree(old) == before


@pytest.mark.parametrize(
    ("command", "config", "override", "named"),
    [
        ("train-generator", "generator", "seed=1", "seed 0 -> 1"),
        ("train-tokenizer", "tokenizer", "optimizer.lr=0.1", "optimizer.lr 0.004 -> 0.1"),
        ("tokenize", "store", "views=[center]", "views"),
        ("sample", "samples", "sampler.temperature=2.0", "sampler.temperature 0.5 -> 2.0"),
        ("evaluate", "evaluation", "draws=3", "draws 2 -> 3"),
    ],
)
def test_other_settings_are_refused_by_name(old, capsys, tree, command, config, override, named):
    path = current(config)
    before = tree(old)
    assert main([command, path, override]) == 2
    assert named in capsys.readouterr().err
    assert tree(old) == before


@pytest.mark.long
def test_an_unfinished_old_store_is_finished_around_what_it_has(old, tree):
    """Bytes of a shard are promised for one kind of processor; another one may round a few codes otherwise."""
    before, rows_before = tree(old / "store"), old_rows(old / "store")
    for name in ("manifest.json", "commits/00001.json"):
        (old / "store" / name).unlink()
    record = old / "store.record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "finished": False, "result": {}}))
    assert main(["tokenize", current("store")]) == 0
    after = {name: data for name, data in tree(old / "store").items() if not name.startswith("environments/")}
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    encoded = {"manifest.json", "commits/00001.json", *(name for name in before if name.endswith("c/1/0/0/0"))}
    assert changed <= encoded
    rows = old_rows(old / "store")
    for name, column in rows.items():
        if name == "codes":
            assert (column == rows_before[name]).mean() >= SAME_ROUNDING
        elif column.dtype == np.float16:
            assert np.abs(column.astype(float) - rows_before[name]).max() < 0.1
        else:
            assert np.array_equal(column, rows_before[name])


def test_the_fixture_is_as_it_was(old):
    for name, digest in EXPECTED["files"].items():
        assert hashlib.sha256((old / name).read_bytes()).hexdigest() == digest, name
