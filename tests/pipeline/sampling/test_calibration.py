"""rdpm calibrate: what it writes, what it refuses, and that edits of images stay edits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rdpm.models.matching import boxes
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.sampling.calibration import CalibrateConfig, _rows, run
from rdpm.pipeline.stores.reader import open_store
from rdpm.storage_schemas.tokens import token_arrays

SETTINGS = SamplerConfig(guidance=0.5)


@pytest.fixture(scope="module")
def config(tmp_path_factory, exports, stores) -> CalibrateConfig:
    """A generator that is calibrated on a store of its tokenizer, 200 rows of two classes."""
    folder = str(tmp_path_factory.mktemp("calibrate"))
    card = exports.tokenizer(f"{folder}/tokenizer")
    exports.generator(f"{folder}/plain", card)
    plan = stores.plan(rows=200, shard_rows=100, chunk_rows=50, **exports.identity(card))
    stores.build(f"{folder}/codes", replace(plan, arrays=token_arrays(3, (4, 4, 4), False, False)))
    made = CalibrateConfig(
        f"{folder}/plain", f"{folder}/tokenizer", f"{folder}/codes", f"{folder}/out",
        sampler=SETTINGS, per_class=100, boxes=2, batch=20, threads=1,
    )  # fmt: skip
    run(made)
    return made


def test_its_samples_get_the_class_means_and_the_covariance_of_the_store(config):
    model, store = RDPM.from_pretrained(config.out, config.tokenizer, batch=20, device="cpu"), open_store(config.store)
    matching = model.generator.matching
    assert matching is not None
    labels = np.repeat([0, 1], config.per_class)
    seeds = child_seeds(config.seed, torch.arange(len(labels))).numpy()
    codes = model.draw(labels, seeds, [SETTINGS] * len(labels)).codes
    plain = torch.from_numpy(model.codec.accumulate(codes))
    found = boxes(matching(plain, matching.table[torch.from_numpy(labels)]), 2)
    real = boxes(torch.from_numpy(model.codec.accumulate(store.read_all("codes"))), 2)
    moments = []
    for values, groups in ((found, labels), (real, store.read_all("label"))):
        means = torch.stack([values[groups == each].mean(0) for each in (0, 1)])
        centred = values - means[torch.from_numpy(groups).long()]
        moments.append((means, centred.T @ centred / len(values)))
    for value, wanted in zip(*moments, strict=True):
        assert torch.allclose(value, wanted, atol=2e-3)


def test_images_are_decoded_from_matched_latents_and_codes_stay(config):
    plain = RDPM.from_pretrained(config.generator, config.tokenizer, batch=4, device="cpu")
    model = RDPM.from_pretrained(config.out, config.tokenizer, batch=4, device="cpu")
    labels, seeds = np.arange(6) % 2, np.arange(6)
    first, second = (each.draw(labels, seeds, [SETTINGS] * 6) for each in (plain, model))
    assert np.array_equal(first.codes, second.codes)
    matching = model.generator.matching
    assert matching is not None
    latents = torch.from_numpy(model.codec.accumulate(second.codes))
    matched = matching(latents, matching.table[torch.from_numpy(labels)])
    assert np.array_equal(second.images[..., :1], model.codec.decode_latents(matched.numpy()))
    last: list[np.ndarray] = []
    model.draw(labels[:4], seeds[:4], [SETTINGS] * 4, callback=lambda t, rows, images: last.append(images))
    assert np.array_equal(last[-1], second.images[:4])


def test_edits_of_real_images_are_not_matched(config):
    plain = RDPM.from_pretrained(config.generator, config.tokenizer, batch=4, device="cpu")
    model = RDPM.from_pretrained(config.out, config.tokenizer, batch=4, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for step in (0, 3):
        assert np.array_equal(plain.vary(images, [0, 1, 0, 1], step), model.vary(images, [0, 1, 0, 1], step))


def test_a_calibrated_generator_is_a_generator_of_its_own_and_is_not_made_twice(config, capsys):
    old, new = (read_card(folder, "generator") for folder in (config.generator, config.out))
    assert old.digest != new.digest
    assert (old.config, old.made_from, old.steps) == (new.config, new.made_from, new.steps)
    run(config)
    assert "is already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has a matching; give the export that it was made from"):
        run(replace(config, generator=config.out, out=f"{config.out}-twice"))


def test_classes_may_have_matrices_of_their_own(config, tmp_path):
    """They are saved and loaded, and draw other images than one matrix for all; mixes of classes are drawn too."""
    own = replace(config, own_share=0.5, out=str(tmp_path / "own"))
    run(own)
    first, second = (RDPM.from_pretrained(c.out, c.tokenizer, batch=4, device="cpu") for c in (config, own))
    assert second.generator.matching.matrix.shape == (2, *first.generator.matching.matrix.shape)
    assert not np.array_equal(first.sample([0, 1]), second.sample([0, 1]))
    blended = second.blend([0, 0], [1, 1], [0.0, 1.0], seed=[5, 6])
    assert np.array_equal(blended, np.concatenate([second.sample([0], [5]), second.sample([1], [6])]))
    with pytest.raises(ValueError, match=r"own_share is 1.5; use a share from 0 to 1"):
        replace(config, own_share=1.5)


def test_rejected_rows_are_no_images(config, stores, exports, tmp_path):
    plan = stores.plan(
        rows=200, shard_rows=100, chunk_rows=50, **exports.identity(read_card(config.tokenizer, "tokenizer"))
    )
    store = stores.build(f"{tmp_path}/store", plan, rejected=(0, 3, 150))
    rows, labels = _rows(store, "codes", 500, 0)
    kept = np.setdiff1d(np.arange(200), [0, 3, 150])
    assert len(rows) == len(labels) == 197
    assert sorted(map(bytes, rows)) == sorted(map(bytes, store.read_all("codes")[kept]))
    assert np.bincount(_rows(store, "codes", 10, 0)[1]).tolist() == [10, 10]


def test_rows_to_compare_with_are_drawn_from_the_whole_store(config):
    """Not the first ones of each class: names, and so rows, may be sorted by what is seen."""
    store = open_store(config.store)
    codes, labels = store.read_all("codes"), store.read_all("label")
    found = {bytes(row) for row in _rows(store, "codes", 20, 0)[0]}
    places = np.array([bytes(row) in found for row in codes])
    assert places.sum() == 40
    for label in (0, 1):
        mine = np.flatnonzero(labels == label)
        assert 5 <= places[mine[: len(mine) // 2]].sum() <= 15
    assert {bytes(row) for row in _rows(store, "codes", 20, 1)[0]} != found


def test_what_does_not_belong_together_is_refused_before_anything_is_drawn(config, stores, exports, tmp_path):
    stores.build(f"{tmp_path}/foreign", stores.plan())
    with pytest.raises(ValueError, match="was made by another tokenizer"):
        run(replace(config, store=f"{tmp_path}/foreign", out=f"{tmp_path}/out"))
    card = read_card(config.tokenizer, "tokenizer")
    stores.build(f"{tmp_path}/classes", stores.plan(**exports.identity(card), classes=("a", "z")))
    with pytest.raises(ValueError, match="has classes"):
        run(replace(config, store=f"{tmp_path}/classes", out=f"{tmp_path}/out"))
    with pytest.raises(ValueError, match="raise per_class, or lower boxes"):
        run(replace(config, per_class=2, out=f"{tmp_path}/out"))
    with pytest.raises(ValueError, match="draws is 0; use 1 or more"):
        replace(config, draws=0)
